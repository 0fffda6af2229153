"""torch's own operation database: every sample of the functions we have, forward and gradients, and every refusal."""

import pytest
import torch
from helpers import assert_error_within, use

import pyflash.functional as PF
from pyflash.activations import rows_by

opinfo = pytest.importorskip("torch.testing._internal.common_methods_invocations")

FUNCTIONS = {
    "nn.functional.embedding": lambda weight, input, **kwargs: PF.embedding(
        input, weight, **kwargs
    ),  # as the database's
    "nn.functional.embedding_bag": lambda weight, input, **kwargs: PF.embedding_bag(input, weight, **kwargs),
    **{
        f"nn.functional.{name}{n}d": getattr(PF, f"{name}{n}d")
        for name in ("conv", "conv_transpose")
        for n in (1, 2, 3)
    },
    "nn.functional.linear": PF.linear,
    "nn.functional.layer_norm": PF.layer_norm,
    **{f"nn.functional.{name}": getattr(PF, name) for name in ("glu", "prelu", "rrelu")},
    **{
        f"nn.functional.{name}": getattr(PF, name)
        for name in ("interpolate", "pad", "upsample_nearest", "upsample_bilinear")
    },
    **{
        f"nn.functional.{kind}_pool{n}d": getattr(PF, f"{kind}_pool{n}d")
        for kind in ("max", "avg", "adaptive_max", "adaptive_avg")
        for n in (1, 2, 3)
    },
    **{f"nn.functional.max_unpool{n}d": getattr(PF, f"max_unpool{n}d") for n in (1, 2, 3)},
    "nn.functional.batch_norm": PF.batch_norm,
    "nn.functional.group_norm": PF.group_norm,
    "nn.functional.instance_norm": PF.instance_norm,
    "nn.functional.local_response_norm": PF.local_response_norm,
    "nn.functional.normalize": lambda x, p=2.0, **kwargs: (
        PF if p in (1, 2, float("inf")) else torch.nn.functional
    ).normalize(x, p, **kwargs),  # other p are torch's
    "nn.functional.poisson_nll_loss": lambda x, target, log_input=True, full=False, *args, **kwargs: (
        torch.nn.functional if full else PF
    ).poisson_nll_loss(x, target, log_input, full, *args, **kwargs),  # Stirling's term is torch's
    "nn.functional.scaled_dot_product_attention": PF.scaled_dot_product_attention,
    **{f"nn.functional.{name}": getattr(PF, name) for name in ("rms_norm", "cross_entropy", "nll_loss")},
    **{
        f"nn.functional.{name}": getattr(PF, name)
        for name in (
            "binary_cross_entropy",
            "binary_cross_entropy_with_logits",
            "cosine_embedding_loss",
            "hinge_embedding_loss",
            "huber_loss",
            "kl_div",
            "l1_loss",
            "margin_ranking_loss",
            "mse_loss",
            "smooth_l1_loss",
            "soft_margin_loss",
            "triplet_margin_loss",
            "triplet_margin_with_distance_loss",
        )
    },
    **{
        prefix + name: getattr(PF, name)
        for name in ("softmax", "log_softmax", "softmin")
        for prefix in ("nn.functional.", "")
    },
    **{prefix + name: getattr(PF, name) for name in rows_by("function") for prefix in ("nn.functional.", "")},
}
INFOS = [info for info in opinfo.op_db if info.name in FUNCTIONS and info.variant_test_name != "complex"]


def leaves(sample, dtype):
    def convert(value):
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value.detach().to(dtype).requires_grad_(value.requires_grad)
        return value

    args = [convert(v) for v in (sample.input, *sample.args)]
    return args, {name: convert(v) for name, v in sample.kwargs.items()}


def results(function, sample, dtype):
    args, kwargs = leaves(sample, dtype)
    out = function(*args, **kwargs)
    out, *indices = (out,) if isinstance(out, torch.Tensor) else out
    others = [t.double() for t in indices]  # exact, and compared as numbers
    wanted = [v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor) and v.requires_grad]
    if not wanted or not out.requires_grad:
        return (out.detach(), *others)
    dout = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape).to(out.dtype)
    return (out.detach(), *others, *torch.autograd.grad(out, wanted, dout, allow_unused=True))


def is_random(sample):
    return sample.kwargs.get("dropout_p", 0.0) > 0 or sample.kwargs.get("training", False)


def check_samples(info, backend, dtype, samples):
    function, checked = FUNCTIONS[info.name], 0
    for sample in samples:
        if is_random(sample):
            continue
        theirs, truth = results(info.op, sample, dtype), results(info.op, sample, torch.float64)
        with use(backend):
            ours = results(function, sample, dtype)
        terms = [t for t in (*truth, sample.input) if isinstance(t, torch.Tensor)]
        if "attention" in info.name:  # scores of a hundred, whose last place is what the exponential sees
            terms.append((sample.input.detach().double() @ sample.args[0].detach().double().mT).abs())
        assert_error_within(ours, theirs, truth, *terms, floor_ulp=8)
        checked += 1
    assert checked


@pytest.mark.parametrize("info", INFOS, ids=lambda info: f"{info.name} {info.variant_test_name}".rstrip())
@pytest.mark.parametrize("backend", ["cpu", "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_samples(info, backend, dtype):
    if not info.supports_dtype(dtype, "cpu"):
        pytest.skip("torch has no such kernel to compare with")
    check_samples(info, backend, dtype, info.sample_inputs("cpu", dtype, requires_grad=True))


@pytest.mark.parametrize("info", INFOS, ids=lambda info: f"{info.name} {info.variant_test_name}".rstrip())
def test_samples_with_gaps(info):
    """NaN between the elements of every tensor: statistics and weights, too, are read by their strides, or copied."""
    samples = (s.noncontiguous() for s in info.sample_inputs("cpu", torch.float32, requires_grad=True))
    check_samples(info, "cpu", torch.float32, samples)


@pytest.mark.parametrize("info", [info for info in INFOS if info.error_inputs_func], ids=lambda info: info.name)
@pytest.mark.parametrize("backend", ["cpu", "auto"])
def test_refusals(info, backend):
    for case in info.error_inputs(torch.device("cpu")):
        sample = case.sample_input
        with use(backend), pytest.raises(case.error_type, match=case.error_regex):
            FUNCTIONS[info.name](sample.input, *sample.args, **sample.kwargs)
