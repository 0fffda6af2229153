"""Spectral norm of modules of ours: torch's numbers, step by step, and torch's state_dict."""

import copy
import pickle

import pytest
import torch
from helpers import use

import pyflash
import pyflash.nn
from pyflash.nn.utils import parametrizations
from pyflash.nn.utils.parametrizations import spectral_norm, spectral_norms_together
from pyflash.ops.core import backends


def discriminator(nn, of=spectral_norm):
    torch.manual_seed(4)
    return nn.Sequential(
        of(nn.Conv2d(2, 4, 3, stride=2, padding=1)), nn.LeakyReLU(0.2), of(nn.ConvTranspose2d(4, 3, 2)), nn.Flatten(),
        of(nn.Linear(48, 5)), nn.LeakyReLU(0.2), of(nn.Linear(5, 1), n_power_iterations=3),
    )  # fmt: skip


def sigmas(model):
    for name, module in model.named_modules():
        if name.endswith("parametrizations.weight"):
            (norm,) = module
            matrix = norm._reshape_weight_to_matrix(module.original.detach())
            yield torch.vdot(norm._u, matrix @ norm._v)


@pytest.mark.parametrize("backend", ["cpu", "auto"])
@pytest.mark.parametrize("origin", ["built", "together", "replaced", "replaced before"])
def test_twenty_steps_are_torchs(backend, origin):
    if backends.MISSING["cpu"]:
        pytest.skip(backends.MISSING["cpu"])
    theirs = discriminator(torch.nn, torch.nn.utils.parametrizations.spectral_norm).double()
    if origin == "built":
        ours = discriminator(pyflash.nn).double()
    elif origin == "together":
        ours = spectral_norms_together(discriminator(pyflash.nn).double())
    elif origin == "replaced":
        ours = pyflash.replace(copy.deepcopy(theirs))
    else:
        ours = discriminator(torch.nn, lambda module, **more: spectral_norm(pyflash.replace(module), **more)).double()
        pyflash.replace(ours)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    models = ours, theirs
    optimizers = [torch.optim.SGD(model.parameters(), 0.1) for model in models]
    for step in range(20):
        x = torch.randn(3, 2, 6, 6, dtype=torch.float64)
        for model, optimizer in zip(models, optimizers):
            optimizer.zero_grad()
            with use(backend):
                (model(x).mean() - model(x.flip(0) * 2).square().mean()).backward()  # two forwards, as of real and fake
            optimizer.step()
        of_ours, of_theirs = list(sigmas(ours)), list(sigmas(theirs))
        assert len(of_ours) == 4
        for a, b in zip(of_ours, of_theirs):
            torch.testing.assert_close(a, b, msg=lambda m, step=step: f"step {step}: {m}")
    for model in models:
        model.eval()
    before = copy.deepcopy(ours.state_dict())
    with use(backend):
        torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.state_dict(), before, rtol=0, atol=0)  # no iteration in evaluation


def test_a_module_of_ours_stays_one():
    before = backends.counts.copy()
    layer = spectral_norm(pyflash.nn.Linear(64, 64))
    with pyflash.use_backend("torch" if backends.MISSING["cpu"] else "cpu"):
        layer(torch.randn(9, 64)).sum().backward()
    assert isinstance(layer, pyflash.nn.Linear) and layer.parametrizations.weight.original.grad is not None
    assert any(name == "linear" for name, _, _ in backends.counts - before)


def test_norms_are_ours_and_torchs_again():
    theirs = discriminator(torch.nn, torch.nn.utils.parametrizations.spectral_norm)
    ours = pyflash.replace(copy.deepcopy(theirs))
    assert [type(norm) for norm in norms(ours)] == [parametrizations._SpectralNorm] * 4
    assert repr(ours) == repr(theirs)
    assert [type(norm) for norm in norms(pyflash.restore(ours))] == [type(norm) for norm in norms(theirs)]
    rows = {row.name: row for row in pyflash.report(pyflash.replace(ours)).rows}
    assert rows["0.parametrizations.weight.0"].now != rows["0.parametrizations.weight.0"].before


def norms(model):
    return [module for module in model.modules() if type(module).__name__ == "_SpectralNorm"]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_seed_draws_the_same(seed):
    for make in (lambda nn: nn.Linear(7, 9), lambda nn: nn.ConvTranspose2d(3, 5, 2), lambda nn: nn.Conv1d(4, 2, 3)):
        torch.manual_seed(seed)
        theirs = torch.nn.utils.parametrizations.spectral_norm(make(torch.nn))
        after = torch.rand(3)
        torch.manual_seed(seed)
        ours = spectral_norm(make(pyflash.nn))
        assert torch.equal(torch.rand(3), after)
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)


class Branches(torch.nn.Module):
    """One layer that is called twice, one whose weight is changed before its use, one that is not always reached."""

    def __init__(self, nn, of):
        super().__init__()
        torch.manual_seed(2)
        self.twice, self.changed, self.seldom = (of(nn.Linear(6, 6)) for _ in range(3))

    def forward(self, x, reaches=True):
        x = self.twice(self.twice(x).sin())
        with torch.no_grad():
            self.changed.parametrizations.weight.original.mul_(1.5)
        x = self.changed(x)
        return self.seldom(x) if reaches else x


@pytest.mark.parametrize("backend", ["cpu", "triton", "auto"])
def test_together_is_each_by_itself(backend):
    """Steps are made where weights are asked for: buffers are torch's after each forward, of layers left out as well."""
    theirs = Branches(torch.nn, torch.nn.utils.parametrizations.spectral_norm)
    ours = spectral_norms_together(spectral_norms_together(Branches(pyflash.nn, spectral_norm)))
    assert len(ours._forward_pre_hooks) == 1
    x = torch.randn(4, 6)
    for reaches in (True, False, True):
        expected = theirs(x, reaches)
        with use(backend):
            torch.testing.assert_close(ours(x, reaches), expected)
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    with use(backend), pytest.raises(RuntimeError):
        ours(torch.randn(4, 7))
    assert not any("_pyflash_ahead" in vars(norm) for norm in norms(ours))


def test_one_launch_for_all_layers():
    model = discriminator(pyflash.nn)
    for together in (False, True):
        if together:
            spectral_norms_together(model)
        with use("cpu"), torch.profiler.profile() as profile:
            model(torch.randn(3, 2, 6, 6)).sum().backward()
        counts = {event.key: event.count for event in profile.key_averages()}
        assert counts["pyflash::spectral_sigma"] == (1 if together else 4)
        assert counts["pyflash::spectral_scale_fwd"] == counts["pyflash::spectral_scale_bwd"] == 4
        assert not [key for key in counts if key in ("aten::mv", "aten::dot", "aten::linalg_vector_norm", "aten::div")]


@pytest.mark.parametrize("together", [False, True])
def test_cached_copied_and_removed(together):
    models = [discriminator(torch.nn, torch.nn.utils.parametrizations.spectral_norm), discriminator(pyflash.nn)]
    if together:
        spectral_norms_together(models[1])
    x = torch.randn(3, 2, 6, 6)
    for _ in range(2):
        results = []
        for model in models:
            with use("cpu"), torch.nn.utils.parametrize.cached():
                results.append(model(x) + model(x * 2))  # one step
        torch.testing.assert_close(*results)
        torch.testing.assert_close(*(model.state_dict() for model in models))
        models = [copy.deepcopy(model) for model in models]
        assert all(type(norm) is parametrizations._SpectralNorm for norm in norms(models[1]))
    with use("cpu"):
        weights = [torch.nn.utils.parametrize.remove_parametrizations(model[0], "weight").weight for model in models]
    torch.testing.assert_close(*weights)
    assert type(models[1][0]) is pyflash.nn.Conv2d and list(models[1].state_dict()) == list(models[0].state_dict())
    torch.testing.assert_close(models[1](x), models[0](x))
    with pytest.raises(RuntimeError, match="Serialization of parametrized modules"):
        pickle.dumps(models[1][4])


@pytest.mark.parametrize("together", [False, True])
def test_a_gradient_penalty(together):
    models = [discriminator(torch.nn, torch.nn.utils.parametrizations.spectral_norm), discriminator(pyflash.nn)]
    if together:
        spectral_norms_together(models[1])
    real, fake = torch.randn(2, 3, 2, 6, 6)
    for model in models:
        torch.manual_seed(5)
        with use("cpu"):
            (pyflash.functional.gradient_penalty(model, real, fake) + model(real).mean()).backward()
    for ours, theirs in zip(models[1].parameters(), models[0].parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_compile():
    models = [discriminator(torch.nn, torch.nn.utils.parametrizations.spectral_norm), discriminator(pyflash.nn)]
    x = torch.randn(3, 2, 6, 6)
    compiled = torch.compile(spectral_norms_together(models[1]), backend="aot_eager")
    for _ in range(2):
        with use("cpu"):
            torch.testing.assert_close(compiled(x), models[0](x))
        torch.testing.assert_close(models[1].state_dict(), models[0].state_dict())


def test_a_vector_is_normalised():
    theirs, ours = (
        of(nn.LayerNorm(5))
        for nn, of in ((torch.nn, torch.nn.utils.parametrizations.spectral_norm), (pyflash.nn, spectral_norm))
    )
    with use("cpu"):
        torch.testing.assert_close(ours.weight, theirs.weight)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("name, size", [("_u", 3), ("_u", 7), ("_v", 2), ("_v", 10)])
def test_buffers_of_another_size_reach_no_kernel(name, size, together):
    model = pyflash.nn.Sequential(spectral_norm(pyflash.nn.Linear(5, 6)))
    model = spectral_norms_together(model) if together else model
    setattr(model[0].parametrizations.weight[0], name, torch.randn(size))
    with use("cpu"), pytest.raises(NotImplementedError, match="u or v are of another size than the weight's"):
        model(torch.randn(4, 5))


def test_the_rest_of_utils_is_torchs():
    assert pyflash.nn.utils.clip_grad_norm_ is torch.nn.utils.clip_grad_norm_
    assert pyflash.nn.utils.rnn is torch.nn.utils.rnn and "rnn" in dir(pyflash.nn.utils)
    with pytest.raises(AttributeError, match=r"nor has torch\.nn\.utils"):
        pyflash.nn.utils.no_such_thing  # noqa: B018
