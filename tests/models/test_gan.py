"""Adversarial models: twins in torch.nn with the same numbers, and a training that can be interrupted and watches itself."""

from __future__ import annotations

import copy
import functools
import pickle

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_error_within, backend_params, use

import pyflash
from pyflash.models import gan

SIZES = {"image_size": 16, "channels": 2, "latent_dim": 12, "width": 4}
GENERATORS = {
    "DCGANGenerator": gan.DCGANGenerator,
    "StyleGenerator": functools.partial(gan.StyleGenerator, mapping_depth=2),
}
DISCRIMINATORS = {
    "DCGANDiscriminator": gan.DCGANDiscriminator,
    "WGANCritic": gan.WGANCritic,
    "StyleDiscriminator": functools.partial(gan.StyleDiscriminator, mapping_depth=2),
}
ALL = {**GENERATORS, **DISCRIMINATORS}
BACKENDS = backend_params()


def build(name, **options):
    torch.manual_seed(3)
    return ALL[name](**{**SIZES, **options})


def given(name, num_classes=0, batch=4, **sizes):
    sizes = {**SIZES, **sizes}
    shape = (sizes["latent_dim"],) if name in GENERATORS else (sizes["channels"], *(sizes["image_size"],) * 2)
    labels = (torch.arange(batch) % num_classes,) if num_classes else ()
    return torch.randn(batch, *shape), *labels


def results(model, inputs, dtype):
    """What a training step has: the result, the gradients of the input and of every parameter."""
    model = copy.deepcopy(model).to(dtype)
    x = inputs[0].to(dtype).requires_grad_()
    torch.manual_seed(5)  # of a style's noise
    options = {"noise": "const"} if isinstance(model, gan.StyleGenerator) else {}
    y = model(x, *inputs[1:], **options)
    (y * torch.linspace(-1, 1, y.numel(), dtype=dtype).view_as(y)).sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize("name", ALL)
def test_the_twin_has_the_same_numbers(name, num_classes, backend):
    ours, twin = build(name, num_classes=num_classes), build(name, num_classes=num_classes, nn=torch.nn)
    for (key, a), (_, b) in zip(ours.state_dict().items(), twin.state_dict().items(), strict=True):
        assert torch.equal(a, b), key
    for parameter in (*ours.parameters(), *twin.parameters()):
        with torch.no_grad():  # noise, biases and gamma begin as 0, and 0.02 is lost beside them
            parameter.add_(torch.linspace(-0.3, 0.3, parameter.numel()).view_as(parameter))
    inputs = given(name, num_classes)
    truth = results(twin, inputs, torch.float64)
    torchs = results(twin, inputs, torch.float32)
    with use(backend):
        found = results(ours, inputs, torch.float32)
    for i, (a, b, exact) in enumerate(zip(found, torchs, truth, strict=True)):
        allowed = 4 * (b - exact).abs().max() + 2e-5 * exact.abs().max()
        assert (a - exact).abs().max() <= allowed, i


@pytest.mark.parametrize("image_size", [8, 32, 64, 128, 256])
@pytest.mark.parametrize("name", ALL)
def test_sizes_of_pictures(name, image_size):
    model = build(name, image_size=image_size, width=1, channels=3)
    with torch.no_grad():
        y = model(*given(name, batch=2, image_size=image_size, channels=3))
    assert y.shape == ((2, 3, image_size, image_size) if name in GENERATORS else (2,)) and y.isfinite().all()


@pytest.mark.parametrize("name", ALL)
def test_arguments_that_are_refused(name):
    for size in (4, 12, 512):
        with pytest.raises(ValueError, match=f"image_size is {size}, expected a power of two from 8 to 256"):
            build(name, image_size=size)
    with pytest.raises(ValueError, match="there are labels, expected none: num_classes is 0"):
        build(name)(*given(name, 3))
    with pytest.raises(ValueError, match=r"there are no labels, expected labels \[N\]: num_classes is 3"):
        build(name, num_classes=3)(*given(name))


@pytest.mark.parametrize("name", ALL)
def test_a_copy_is_the_model(name):
    model, inputs = build(name).eval(), given(name)
    options = {"noise": "none"} if name == "StyleGenerator" else {}
    with torch.no_grad():
        expected = model(*inputs, **options)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(*inputs, **options), expected)


def test_names_of_the_example_of_pytorch():
    """examples/dcgan of pytorch/examples: 64 pixels, and layers in the same places."""
    generator, discriminator = gan.DCGANGenerator(), gan.DCGANDiscriminator()
    assert generator.main[0].weight.shape == (100, 512, 4, 4) and generator.main[12].weight.shape == (64, 3, 4, 4)
    assert discriminator.main[0].weight.shape == (64, 3, 4, 4) and discriminator.main[11].weight.shape == (1, 512, 4, 4)
    assert {key.rpartition(".")[0] for key in generator.state_dict()} == {
        f"main.{i}" for i in (0, 1, 3, 4, 6, 7, 9, 10, 12)
    }


def test_truncation_and_noise():
    model, (z,) = build("StyleGenerator"), given("StyleGenerator")
    for _ in range(3):
        model(z)  # in training the mean style is learned
    assert model.mapping.w_avg.abs().max() > 0
    model.eval()
    with torch.no_grad():
        for layer in (model.synthesis.b8.conv0, model.synthesis.b16.conv1):
            layer.noise_strength.fill_(1.0)
        alike = model(z, truncation=0.0, noise="none")
        assert torch.allclose(alike[0], alike[1], atol=1e-5)
        assert not torch.allclose(model(z, noise="none")[0], model(z, noise="none")[1], atol=1e-3)
        assert torch.equal(model(z, noise="const"), model(z, noise="const"))
        assert not torch.equal(model(z), model(z))
    with pytest.raises(ValueError, match="noise is 'some', expected 'random', 'const' or 'none'"):
        model(z, noise="some")


@pytest.mark.parametrize("backend", BACKENDS)
def test_self_attention(backend):
    block, twin = gan.SelfAttention2d(16), gan.SelfAttention2d(16, nn=torch.nn)
    x = torch.randn(2, 16, 5, 7)
    assert torch.equal(block(x), x)  # begins as nothing
    with torch.no_grad():
        block.gamma.fill_(0.7)
    twin.load_state_dict(block.state_dict())
    (truth, *_), (torchs, *_) = results(twin, (x,), torch.float64), results(twin, (x,), torch.float32)
    with use(backend):
        assert_error_within(results(block, (x,), torch.float32)[0], torchs, truth)
    q, k, v = (of(x).flatten(2) for of in (twin.query, twin.key, twin.value))
    expected = x + 0.7 * twin.out((v @ (q.mT @ k).softmax(-1).mT).unflatten(2, (5, 7)))
    torch.testing.assert_close(twin(x), expected)
    with pytest.raises(ValueError, match="channels is 12, expected a multiple of 8"):
        gan.SelfAttention2d(12)


# ---- training -----------------------------------------------------------------------------------------------------


def blobs(number):
    """Pictures of one bright square each, somewhere."""
    random = torch.Generator().manual_seed(number)
    x = torch.full((16, 2, 16, 16), -1.0)
    for picture in x:
        r, c = torch.randint(0, 10, (2,), generator=random).tolist()
        picture[:, r : r + 5, c : c + 5] = 1
    return x


def pair(generator="DCGANGenerator", discriminator="DCGANDiscriminator", **options):
    return build(generator, **options), build(discriminator, **options)


def weights(trained):
    return [t.clone() for t in trained.generator.state_dict().values()]


STYLE = {"generator": "StyleGenerator", "discriminator": "StyleDiscriminator"}
RUNS = {  # models and arguments of train
    "dcgan": ({}, {"loss": "non_saturating"}),
    "hinge of labels": ({"num_classes": 4}, {"loss": "hinge"}),
    "wgan-gp": ({"discriminator": "WGANCritic"}, {"loss": "wasserstein", "gradient_penalty": 10.0, "critic_steps": 2}),
    "style": (STYLE, {"loss": "non_saturating", "r1": 1.0, "regularize_every": 2}),
    "bfloat16": ({}, {"loss": "least_squares", "autocast": torch.bfloat16}),
}


def batches(num_classes=0, **_):
    return (lambda number: (blobs(number), torch.arange(16) % num_classes)) if num_classes else blobs


@pytest.mark.parametrize("name", RUNS)
def test_resumed_training_is_that_which_was_not_interrupted(name, tmp_path):
    models, options = RUNS[name]
    options = {"learning_rate": 1e-3, "look_every": 3, "checkpoint_every": 2, "title": None, **options}
    file = tmp_path / "run.pt"
    torch.manual_seed(1)
    whole = gan.train(*pair(**models), batches(**models), steps=6, **options)
    torch.manual_seed(1)
    gan.train(*pair(**models), batches(**models), steps=4, checkpoint=file, **options)
    torch.manual_seed(99)  # the file knows
    resumed = gan.train(*pair(**models), batches(**models), steps=6, checkpoint=file, **options)
    assert resumed.history.discriminator == whole.history.discriminator and len(whole.history.generator) == 6
    assert resumed.history.generator == whole.history.generator
    for a, b in zip(weights(resumed), weights(whole), strict=True):
        assert torch.equal(a, b)
    assert any(
        not torch.equal(a, b) for a, b in zip(weights(whole), pair(**models)[0].state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("name", ["wgan-gp", "dcgan"])
def test_a_step_is_torchs(name):
    """By our modules and by torch.nn's, and the first of each as its definition has it."""
    pytest.importorskip("pyflash._cpu")
    models, options = RUNS[name]
    options = {"steps": 2, "learning_rate": 1e-4, "title": None, **options}
    torch.manual_seed(1)
    with use("cpu"):
        ours = gan.train(*pair(**models), blobs, **options)
    torch.manual_seed(1)
    theirs = gan.train(*pair(**models, nn=torch.nn), blobs, **options)
    assert ours.history.discriminator == pytest.approx(theirs.history.discriminator, rel=1e-3, abs=1e-4)
    assert ours.history.generator == pytest.approx(theirs.history.generator, rel=1e-3, abs=1e-4)

    generator, discriminator = pair(**models, nn=torch.nn)
    z = torch.randn(16, 12, generator=torch.Generator().manual_seed(0))
    real, fake = discriminator.train()(blobs(0)), discriminator(generator.train()(z))
    expected = fake.mean() - real.mean() if name == "wgan-gp" else F.softplus(-real).mean() + F.softplus(fake).mean()
    assert theirs.history.discriminator[0] == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)


def test_the_running_mean():
    generator, discriminator = pair()
    trained = gan.train(generator, discriminator, blobs, steps=2, ema_decay=0.0, title=None)
    for kept, now in zip(trained.generator.parameters(), generator.parameters()):
        torch.testing.assert_close(kept, now.detach())
    assert not trained.generator.training and not any(p.requires_grad for p in trained.generator.parameters())
    generator, discriminator = pair()
    first = copy.deepcopy(generator)
    trained = gan.train(generator, discriminator, blobs, steps=1, ema_decay=0.9, title=None)
    for kept, before, now in zip(trained.generator.parameters(), first.parameters(), generator.parameters()):
        torch.testing.assert_close(kept, 0.9 * before.detach() + 0.1 * now.detach())


def test_batches_may_be_an_iterable_that_is_begun_again():
    of_function = gan.train(*pair(), lambda number: blobs(number % 2), steps=5, title=None)
    of_list = gan.train(*pair(), [blobs(0), blobs(1)], steps=5, title=None)
    assert of_list.history.generator == of_function.history.generator
    with pytest.raises(ValueError, match="batches is empty, or an iterator that has ended"):
        gan.train(*pair(), iter([blobs(0)]), steps=2, title=None)
    with pytest.raises(ValueError, match="loss is 'l1', expected one of 'minimax', 'non_saturating'"):
        gan.train(*pair(), blobs, steps=2, loss="l1")


def test_divergence_is_named_and_ends_training():
    generator, discriminator = pair()
    with torch.no_grad():
        discriminator.main[0].weight.fill_(float("nan"))
    trained = gan.train(generator, discriminator, blobs, steps=5, title=None)
    assert len(trained.history.generator) == 1
    assert trained.history.warnings[0].startswith("divergence: at step 1 the losses are nan")


def test_mode_collapse_is_named():
    generator, discriminator = pair()
    with torch.no_grad():
        generator.main[0].weight.zero_()  # z is not seen
    trained = gan.train(generator, discriminator, blobs, steps=2, learning_rate=0.0, look_every=1, title=None)
    assert [text.split(":")[0] for text in trained.history.warnings] == ["mode collapse"]  # once
    assert trained.history.diversity[0][1] < 0.01


def test_a_discriminator_that_wins_is_named():
    generator, discriminator = pair()
    trained = gan.train(
        generator, discriminator, blobs, steps=60, learning_rate=(0.0, 5e-3), look_every=100, title=None
    )
    assert any(text.startswith("the discriminator wins") for text in trained.history.warnings)


def test_pictures_and_what_is_printed(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    said = []
    trained = gan.train(
        *pair(),
        blobs,
        steps=4,
        look_every=2,
        out=tmp_path,
        title="digits",
        on_look=lambda step, mean: said.append(step) or "well",
    )
    assert said == [2, 4] and "step 2: well" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "losses.png",
        "samples-000002.png",
        "samples-000004.png",
    ]
    assert trained.pictures[-1].endswith("losses.png")


def test_a_replaced_pair_trains_as_before():
    models = pair(nn=torch.nn)
    stock = gan.train(*copy.deepcopy(models), blobs, steps=3, title=None)
    ours = gan.train(*(pyflash.replace(model) for model in models), blobs, steps=3, title=None)
    assert ours.history.generator == pytest.approx(stock.history.generator, rel=1e-3)
