"""Chains in a Sequential: convolution, batch norm and activation as one; against torch's modules, one after the other."""

import copy
from collections import Counter

import pytest
import torch
from helpers import use

import pyflash
import pyflash.nn as nn
from pyflash.nn import _chains
from pyflash.ops.core import backends

CONVS = {1: torch.nn.Conv1d, 2: torch.nn.Conv2d, 3: torch.nn.Conv3d}
NORMS = {1: torch.nn.BatchNorm1d, 2: torch.nn.BatchNorm2d, 3: torch.nn.BatchNorm3d}


def settled(model):
    """With statistics and parameters that are no one's defaults."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            for t in (module.running_mean, module.weight, module.bias):
                None if t is None else t.data.normal_()
            if module.running_var is not None:
                module.running_var.uniform_(0.5, 2)
    return model


def chain(rank=2, activation=None, norm=(), **options):
    """A convolution, a batch norm with these options, and an activation; None leaves one out."""
    conv = CONVS[rank](4, 6, **{"kernel_size": 3, "padding": 1, **options})
    norms = [] if norm is None else [NORMS[rank](6, **dict(norm))]
    return settled(torch.nn.Sequential(conv, *norms, *([] if activation is None else [activation])))


CASES = {
    "conv bn relu": lambda: chain(2, torch.nn.ReLU()),
    "in place": lambda: chain(2, torch.nn.ReLU(inplace=True)),
    "conv bn": lambda: chain(2),
    "conv gelu": lambda: chain(2, torch.nn.GELU(), norm=None),
    "1d, leaky": lambda: chain(1, torch.nn.LeakyReLU(0.2), stride=2),
    "3d, silu": lambda: chain(3, torch.nn.SiLU()),
    "groups, no bias": lambda: chain(2, torch.nn.ReLU6(), groups=2, bias=False),
    "same, dilated": lambda: chain(2, torch.nn.Hardswish(), padding="same", dilation=2),
    "reflect": lambda: chain(2, torch.nn.ELU(), padding_mode="reflect"),
    "no affine": lambda: chain(2, torch.nn.ReLU(), norm={"affine": False}),
    "no running statistics": lambda: chain(2, torch.nn.ReLU(), norm={"track_running_stats": False}),
    "average of all batches": lambda: chain(2, torch.nn.ReLU(), norm={"momentum": None, "eps": 1e-3}),
    "bn mish": lambda: settled(torch.nn.Sequential(torch.nn.BatchNorm2d(4), torch.nn.Mish())),
    "two": lambda: torch.nn.Sequential(*chain(2, torch.nn.ReLU()), *settled(torch.nn.Sequential(
        torch.nn.Conv2d(6, 5, 1), torch.nn.BatchNorm2d(5), torch.nn.Conv2d(5, 3, 2), torch.nn.Sigmoid()))),
}  # fmt: skip


def like(model, dtype=torch.float32, layout=torch.contiguous_format, size=9):
    rank = {"1": 1, "2": 2, "3": 3}[type(model[0]).__name__[-2]]
    x = torch.randn(3, 4, *[size] * rank, dtype=dtype)
    return x.to(memory_format=layout) if rank == 2 else x


def results(model, x):
    """Output, gradients, buffers."""
    x = x.clone().requires_grad_()
    y = model(x)
    model.zero_grad()
    y.square().sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in model.parameters()), *(b.clone() for b in model.buffers())]


@pytest.mark.parametrize("backend", ["cpu", "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_as_torchs_modules_one_after_the_other(name, dtype, backend):
    theirs = CASES[name]().to(dtype)
    ours = pyflash.replace(copy.deepcopy(theirs))
    assert type(ours) is nn.Sequential and ours.state_dict().keys() == theirs.state_dict().keys()
    for layout in (torch.contiguous_format, torch.channels_last):
        x = like(theirs, dtype, layout)
        for training in (True, False):
            expected = results(theirs.train(training), x)
            with use(backend):
                found = results(ours.train(training), x)
            # The gradient of a bias in front of batch statistics is what rounding leaves of larger ones' sum.
            largest = max(float(t.abs().max()) for t in expected)
            close = (
                dict(rtol=1e-9, atol=1e-11 * largest)
                if dtype == torch.float64
                else dict(rtol=1e-4, atol=1e-5 * largest)
            )
            torch.testing.assert_close(found, expected, **close)
            assert found[0].stride() == expected[0].stride()
            with torch.no_grad(), use(backend):
                torch.testing.assert_close(ours(x), found[0]) if not training else None


def taken(model, x, backend="cpu"):
    with use(backend):
        before = backends.counts.copy()
        model(x)
        return Counter({name: n for (name, _, _), n in (backends.counts - before).items()})


def test_what_runs():
    """In evaluation one operation, in training two; of batch statistics nothing is folded."""
    model = pyflash.replace(chain(2, torch.nn.ReLU()))
    x = like(model, size=32)
    assert taken(model.train(), x) == {"conv2d": 1, "batch_norm_act": 1}
    assert taken(model.eval(), x) == {"conv_bias_act": 1}
    with torch.no_grad():
        assert taken(model, x) == {"conv_bias_act": 1}
    assert "conv_bias_act" not in taken(model, x, "auto")  # no table speaks of so few channels
    assert taken(model[:1], x) == {"conv2d": 1}
    assert taken(model[1:], torch.randn(2, 6, 9, 9)) == {"batch_norm_act": 1}
    unknown = pyflash.replace(CASES["no running statistics"]()).eval()
    assert taken(unknown, x) == {"conv2d": 1, "batch_norm_act": 1}
    assert taken(pyflash.replace(CASES["conv bn"]()).train(), x) == {"conv2d": 1, "batch_norm": 1}
    with use("torch"):  # to the bit
        assert torch.equal(model(x), pyflash.restore(copy.deepcopy(model))(x))


@pytest.mark.parametrize("at", range(3))
@pytest.mark.parametrize("how", ["forward", "pre", "backward", "instance", "subclass", "parametrized"])
def test_what_switches_it_off(how, at):
    """A hook on a module, or a forward of its own: it is called, with what torch's would be called with."""
    model = pyflash.replace(chain(2, torch.nn.ReLU())).eval()
    x = like(model, size=32)
    expected, module, seen = model(x), model[at], []
    if how == "forward":
        module.register_forward_hook(lambda m, args, out: seen.append((args[0], out)))
    elif how == "pre":
        module.register_forward_pre_hook(lambda m, args: seen.append((args[0], m.forward(args[0]))))
    elif how == "backward":
        module.register_full_backward_hook(lambda m, grad_in, grad_out: seen.append(grad_out))
    elif how == "instance":
        module.forward = lambda input: seen.append((input, type(module).forward(module, input))) or seen[-1][1]
    elif how == "subclass":

        class Own(type(module)):
            def forward(self, input):
                seen.append((input, super().forward(input)))
                return seen[-1][1]

        module.__class__ = Own
    elif at < 2:
        torch.nn.utils.parametrize.register_parametrization(module, "weight", Doubled())
        expected = pyflash.restore(copy.deepcopy(model))(x)
    y = model(x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    if how in ("forward", "pre", "instance", "subclass"):
        ((given, made),) = seen
        with use("torch"):
            torch.testing.assert_close(given, model[:at](x) if at else x, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(made, module.forward(given), rtol=1e-4, atol=1e-5)
    if how == "backward":
        y.sum().backward()
        assert len(seen) == 1


class Doubled(torch.nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_a_direct_call_is_of_the_module_alone():
    model, x = pyflash.replace(chain(2, torch.nn.ReLU())).eval(), torch.randn(2, 4, 32, 32)
    model(x)
    torchs = pyflash.restore(copy.deepcopy(model))
    for at in range(3):
        given = x if at == 0 else torch.randn(2, 6, 8, 8)
        torch.testing.assert_close(model[at](given), torchs[at](given))


CHANGES = {
    "weight": lambda conv, norm: conv.weight.data.mul_(2),
    "clamp": lambda conv, norm: conv.weight.data.clamp_(min=0),
    "bias": lambda conv, norm: conv.bias.data.add_(1),
    "gamma": lambda conv, norm: norm.weight.data.neg_(),
    "beta": lambda conv, norm: setattr(norm.bias, "data", norm.bias.data + 1),
    "mean": lambda conv, norm: norm.running_mean.add_(1),
    "variance": lambda conv, norm: norm.running_var.data.mul_(3),
    "numpy": lambda conv, norm: norm.running_var.numpy().fill(0.7),
    "eps": lambda conv, norm: setattr(norm, "eps", 0.5),
    "reset": lambda conv, norm: norm.reset_running_stats(),
    "another parameter": lambda conv, norm: setattr(conv, "weight", torch.nn.Parameter(conv.weight.detach() * 3)),
    "state": lambda conv, norm: norm.load_state_dict({k: v + 1 for k, v in norm.state_dict().items()}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_seen(change):
    model, x = pyflash.replace(chain(2, torch.nn.ReLU())).eval(), torch.randn(2, 4, 32, 32)
    with torch.no_grad(), use("cpu"):
        before = model(x)
        CHANGES[change](model[0], model[1])
        y = model(x)
        assert not torch.allclose(y, before, atol=1e-3)
        expected = pyflash.restore(copy.deepcopy(model))(x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


def test_statistics_after_ten_steps():
    theirs = chain(2, torch.nn.ReLU())
    ours = pyflash.replace(copy.deepcopy(theirs))
    optimizers = [torch.optim.SGD(model.parameters(), 0.01) for model in (ours, theirs)]
    for _ in range(10):
        x = torch.randn(2, 4, 9, 9)
        for model, optimizer in zip((ours, theirs), optimizers):
            with use("cpu" if model is ours else "torch"):
                model.zero_grad()
                model(x).square().mean().backward()
            optimizer.step()
    assert ours[1].num_batches_tracked == 10
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-4, atol=1e-5)


def test_a_call_that_raises_counts_no_batch():
    model = pyflash.replace(chain(2, torch.nn.ReLU()))
    with pytest.raises(RuntimeError):
        model(torch.randn(2, 5, 9, 9))
    with pytest.raises(ValueError, match="expected 4D input"):
        model(torch.randn(4, 9, 9))  # a convolution takes no batch, its norm does
    assert model[1].num_batches_tracked == 0


def test_without_a_batch_a_norm_of_rows_reads_channels_as_batch():
    """BatchNorm1d takes [channels, length] for [batch, channels]: as torch's, it normalises what are positions."""
    model = settled(torch.nn.Sequential(torch.nn.Conv1d(4, 6, 3, padding=1), torch.nn.BatchNorm1d(6), torch.nn.ReLU()))
    x = torch.randn(4, 6)
    for training in (True, False):
        model.train(training)
        expected = copy.deepcopy(model)(x)
        with use("cpu"):
            torch.testing.assert_close(pyflash.replace(copy.deepcopy(model))(x), expected, rtol=1e-4, atol=1e-5)


def test_half_types():
    theirs = chain(2, torch.nn.ReLU()).eval()
    ours, x = pyflash.replace(copy.deepcopy(theirs)), torch.randn(2, 4, 32, 32)
    exact = copy.deepcopy(theirs).double()(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        error = (theirs(x).double() - exact).abs().max()
        with use("cpu"):
            y = ours(x)
    assert y.dtype == torch.bfloat16 and (y.double() - exact).abs().max() <= 2 * error
    for model in (theirs, ours):  # the norm's parameters may stay float32
        model[0].bfloat16()
    x = x.bfloat16()
    error = (theirs(x).double() - exact).abs().max()
    with use("cpu"):
        y = ours(x)
    assert y.dtype == torch.bfloat16 and (y.double() - exact).abs().max() <= 2 * error


def test_second_derivatives():
    model = pyflash.replace(chain(2, torch.nn.SiLU(), kernel_size=2, padding=0)).double().eval()
    model[1].weight.data.abs_()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    parameters = dict(model.named_parameters())

    def gradients(x, *values):
        y = torch.func.functional_call(model, dict(zip(parameters, values)), x)
        return torch.autograd.grad(y.square().sum(), (x, *values), create_graph=True)

    with use("cpu"):
        found = gradients(x, *parameters.values())
        second = torch.autograd.grad(sum(g.square().sum() for g in found), (x, *parameters.values()))
    with use("torch"):
        found = gradients(x, *parameters.values())
        expected = torch.autograd.grad(sum(g.square().sum() for g in found), (x, *parameters.values()))
    torch.testing.assert_close(second, expected, rtol=1e-8, atol=1e-8)


def test_report():
    model = pyflash.replace(torch.nn.Sequential(chain(2, torch.nn.ReLU()), torch.nn.Flatten(), torch.nn.Linear(6144, 2),
                                                torch.nn.Tanh()))  # fmt: skip
    x = torch.randn(1, 4, 32, 32)
    for training, of_norm, of_last in ((True, "", "fused into 0.1"), (False, "folded into 0.0", "fused into 0.0")):
        model.train(training)
        with use("cpu"):
            reports = pyflash.report(model), pyflash.report(model, example_inputs=x)
        for report in reports:
            rows = {row.name: row for row in report.rows}
            assert (rows["0.1"].reason, rows["0.2"].reason) == (of_norm, of_last)
            assert rows["3"].reason == "fused into 2" and not rows["0.0"].reason and not rows["2"].reason
        operations = [call["operation"] for name in ("0.0", "0.1", "2") for call in rows[name].took]
        assert operations == [*(["conv2d", "batch_norm_act"] if training else ["conv_bias_act"]), "linear_act"]
        assert not rows["0.2"].took and rows["0.2"].backend == ""
    model[0][2].register_forward_hook(lambda *_: None)
    rows = {row.name: row for row in pyflash.report(model).rows}
    assert not rows["0.2"].reason and rows["0.1"].reason == "folded into 0.0"
    pyflash.restore(model)
    assert type(model[0]) is torch.nn.Sequential and not any("into" in row.reason for row in pyflash.report(model).rows)


def test_excluded_modules_are_called():
    model, x = chain(2, torch.nn.ReLU()).eval(), torch.randn(2, 4, 32, 32)
    assert taken(pyflash.replace(copy.deepcopy(model), exclude="1"), x) == {"conv2d": 1, "relu": 1}
    assert taken(pyflash.replace(copy.deepcopy(model), exclude="2"), x) == {"conv_bias_act": 1}
    lazy = torch.nn.Sequential(torch.nn.LazyConv2d(6, 3), torch.nn.LazyBatchNorm2d(), torch.nn.ReLU())
    assert type(pyflash.replace(lazy)) is nn.Sequential
    lazy(x)
    assert taken(lazy.eval(), x) == {"conv_bias_act": 1}


def test_what_may_be_chained_is_what_is():
    modules = [cls(4, 4, 1) if "Conv" in cls.__name__ else cls(4) for cls in (*CONVS.values(), *NORMS.values())]
    modules += [torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.GELU(), torch.nn.Dropout(), torch.nn.Flatten()]
    for a in modules:
        for b in modules:
            pair = torch.nn.Sequential(copy.deepcopy(a), copy.deepcopy(b))
            may = _chains.may_be_chained(*pair)
            pyflash.replace(pair)
            assert may == (_chains.chain_of(list(pair)) is not None) == (type(pair) is nn.Sequential), (a, b)


def test_compile_export_and_fx():
    model, x = pyflash.replace(chain(2, torch.nn.ReLU())).eval(), torch.randn(2, 4, 32, 32)
    expected = model(x)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(program.module()(x[:3]), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.jit.trace(model, x)(x), expected, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()
    for training in (True, False):
        ours, theirs = model.train(training), copy.deepcopy(model)
        compiled = torch.compile(ours, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), theirs(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(list(ours.buffers()), list(theirs.buffers()))
    torch.testing.assert_close(torch.func.vmap(model)(x[:, None]), model(x)[:, None], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["running_mean", "running_var", "weight", "bias"])
def test_a_norm_of_other_channels_is_torchs_error(name):
    """What reads as many channels as the convolution has would read behind it."""
    model = pyflash.replace(chain(2, torch.nn.ReLU())).eval()
    norm = model[1]
    wrong = torch.ones(2)
    setattr(norm, name, wrong if "running" in name else torch.nn.Parameter(wrong))
    with use("cpu"), torch.no_grad(), pytest.raises(RuntimeError):
        model(like(model))


def kept_bytes(model, x):
    """What a training forward keeps for its backward, each memory once."""
    kept = {}

    def keep(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        y = model(x)
    return sum(kept.values()), y


@pytest.mark.parametrize(
    "last",
    [torch.nn.ReLU(True), torch.nn.LeakyReLU(0.2, True), torch.nn.ELU(1.5, True), torch.nn.CELU(0.5, True)],
    ids=str,
)
def test_an_activation_behind_torchs_convolution_keeps_what_torch_keeps(last):
    """By the result, in place, also where a gradient is wanted; and the second derivative is the same."""
    torchs = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), last, torch.nn.Conv2d(4, 1, 3))
    ours = pyflash.replace(copy.deepcopy(torchs))
    x = torch.randn(2, 3, 9, 9)
    found = []
    for model in (torchs, ours):
        leaf = x.clone().requires_grad_()
        with use("torch"):
            kept, y = kept_bytes(model, leaf)
            (dx,) = torch.autograd.grad(y.sum(), leaf, create_graph=True)
            (ddx,) = torch.autograd.grad(dx.square().sum(), model[0].weight)
        found.append((kept, y, dx, ddx))
    (torchs_bytes, *expected), (our_bytes, *values) = found
    assert our_bytes == torchs_bytes
    for a, b in zip(values, expected):
        torch.testing.assert_close(a, b)


def test_an_activation_that_its_result_does_not_tell_is_not_in_place():
    """A negative slope: torch refuses the gradient of it in place."""
    torchs = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.LeakyReLU(-0.2))
    ours, x = pyflash.replace(copy.deepcopy(torchs)), torch.randn(2, 3, 9, 9)
    with use("torch"):
        for model in (torchs, ours):
            model(x).square().sum().backward()
    torch.testing.assert_close(ours[0].weight.grad, torchs[0].weight.grad)
