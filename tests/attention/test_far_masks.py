"""Attention whose float mask is far from zero throughout a row, where one number for its softmax has no digits left."""

import pytest
import torch
from helpers import assert_error_within, backend_params, on_its_device, run

import pyflash
import pyflash.functional as PF

HALVES = (torch.bfloat16, torch.float16)
FAR = (-1e4, -1e6, -1e9, torch.finfo(torch.float32).min, 1e9)
FAR_OPTIONS = {
    "plain": {},
    "causal": {"is_causal": True},
    "dropout": {"dropout_p": 0.3, "seed": torch.tensor([5])},
    "softcap, window": {"softcap": 3.0, "window_size": (30, 20)},
}


def far_inputs(rows, keys, value, dtype=torch.float32):
    """(q, k, v), float mask: every second row of it is `value` throughout. A row's scores are equal, and exact in every
    type, so that they do not tell float32 from float64; what q does not see of k keeps its gradient from being 0."""
    q = torch.randint(-2, 3, (1, 2, rows, 16)).to(dtype) * (torch.arange(16) < 8)
    k = torch.where(torch.arange(16) < 8, torch.ones(1, 1, keys, 16), torch.randn(1, 1, keys, 16)).to(dtype)
    mask = torch.randn(1, 1, rows, keys)
    mask[:, :, ::2] = value
    return (q, k, torch.randn(1, 1, keys, 12).to(dtype)), mask


@pytest.mark.parametrize("value", FAR)
@pytest.mark.parametrize("name", FAR_OPTIONS)
@pytest.mark.parametrize("backend", backend_params("cpu", "triton"))
def test_rows_whose_mask_is_far_from_zero(backend, name, value):
    """lse = max + log(sum) has no digits left for log(sum) there: probabilities and gradients were off by the sum."""
    options = {"enable_gqa": True, "scale": 0.25, **on_its_device(FAR_OPTIONS[name])}
    is_triton = backend == "triton"
    sizes = ((9, 40),) if is_triton else ((70, 300), (3, 1100))  # of few rows on a CPU, keys are cut in chunks
    for dtype in (torch.float32,) if is_triton else (torch.float32, torch.float64, *HALVES):
        for rows, keys in sizes:
            (q, k, v), mask = far_inputs(rows, keys, value, dtype)
            dout, dlse, dweights = torch.randn(1, 2, rows, 12), torch.randn(1, 2, rows), torch.randn(1, 2, rows, keys)

            def attend(q, k, v, bias=mask):
                bias = bias.double() if q.dtype == torch.float64 else bias
                return PF.attention(q, k, v, bias, return_lse=True, **options)

            def weigh(q, k, bias=mask):
                return PF.attention_weights(q, k, bias.double() if q.dtype == torch.float64 else bias, **options)

            bias = () if dtype in HALVES else (mask,)  # whose range is too small for it
            calls = [(attend, (q, k, v, *bias), (dout.to(dtype), dlse))]
            if not name.startswith("softcap"):
                calls.append((weigh, (q, k, *bias), dweights.to(dtype)))
            for call, inputs, douts in calls:
                truth = run(call, inputs, douts, torch.float64, "torch")
                ours, theirs = (run(call, inputs, douts, dtype, of) for of in (backend, "torch"))
                assert_error_within(ours, theirs, truth, dout, floor_ulp=8)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("value", FAR)
@pytest.mark.parametrize("backend", backend_params("cpu", "triton"))
def test_multi_head_attention_whose_mask_is_far_from_zero(backend, value, need_weights):
    """Queries are zero, so that a float32 score is the mask's; torch is right there only with the weights."""
    theirs, ours = torch.nn.MultiheadAttention(16, 2), pyflash.nn.MultiheadAttention(16, 2)
    with torch.no_grad():
        theirs.in_proj_weight[:16] = 0
    ours.load_state_dict(theirs.state_dict())
    length = 50 if backend != "triton" else 20
    x, mask, dout = torch.randn(length, 2, 16), torch.zeros(length, length), torch.randn(length, 2, 16)
    mask[: length - 10] = value
    dweights = torch.randn(2, length, length) * need_weights

    def call(module):
        def of(x, mask, *parameters):
            named = dict(zip(dict(module.named_parameters()), parameters))
            options = {"attn_mask": mask, "need_weights": need_weights or module is theirs}
            out, weights = torch.func.functional_call(module, named, (x, x, x), options)
            return (out, torch.zeros_like(dweights) * out.sum() if weights is None else weights)

        return of

    inputs = [x, mask, *theirs.parameters()]
    results = [
        run(call(module), inputs, (dout, dweights), dtype, of)
        for module, dtype, of in (
            (ours, torch.float32, backend),
            (theirs, torch.float32, None),
            (theirs, torch.float64, None),
        )
    ]
    if not need_weights:
        results = [(*result[:1], *result[2:]) for result in results]
    assert_error_within(*results, dout, dweights, floor_ulp=8)
