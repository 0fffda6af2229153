"""What `auto` prefers on a GPU of which no table speaks: what an H200 took, and how large a call has to be.

From GPU_ELEMENTS on, a call that is bound by memory takes an H200 longer than launching it takes the host: 60 to 250 us of
ours, 10 to 60 of torch's. Below, a faster kernel waits for its launch.
"""

from typing import NamedTuple

import torch

from pyflash.auto import SMALL

GPU_ELEMENTS = 1 << 26
NOT_MEASURED = "not measured on a GPU"
AS_FAST = "torch's own is as fast or faster on a GPU, by what an H200 took"
LEAST = 1.04  # of a ratio; a tie is torch's


class Times(NamedTuple):
    """torch's time over ours, kernels only: of a forward, and of forward and backward together; 0: not measured."""

    inference: float
    training: float


# Triton: rows `gpu` of the benchmarks, about 64 M elements; the least where an operation has several, a layout say. They are in
# benchmarks/results/nvidia-h200: layer_norm in 2026-11-26-smoke-second.jsonl, batch_norm in evaluation and columns of halves
# in 2026-11-27-others.txt, all others in 2026-11-27-smoke.jsonl. The kernels of interpolation and padding were rewritten after that.
IN_HALVES = {
    "layer_norm": Times(1.4, 1.1),
    "add_layer_norm": Times(1.5, 1.1),
    "rms_norm": Times(1.22, 1.17),
    "add_rms_norm": Times(1.36, 0),
    "batch_norm": Times(1.15, 1.53),
    "batch_norm evaluation": Times(1.37, 2.00),
    "batch_norm_act": Times(1.39, 1.01),  # contiguous 3.29 and 3.27
    "group_norm_act": Times(2.80, 1.23),
    "instance_norm": Times(2.33, 1.05),
    "local_response_norm": Times(8.11, 4.21),
    "normalize": Times(2.13, 5.83),
    "softmax rows": Times(1.58, 1.76),
    "softmax columns": Times(4.09, 3.74),
    "gelu": Times(1.25, 1.24),
    "gelu_tanh": Times(1.16, 1.10),
    "silu": Times(1.09, 1.05),
    "mish": Times(1.72, 1.71),
    "sigmoid": Times(1.09, 1.04),
    "elu": Times(1.57, 1.24),
    "selu": Times(1.57, 1.24),
    "celu": Times(1.52, 1.23),
    "softplus": Times(1.15, 1.11),
    "softshrink": Times(1.09, 1.04),
    "softsign": Times(3.39, 5.62),
    "tanhshrink": Times(1.33, 1.91),
    "dropout": Times(1.26, 1.10),
    "dropout2d": Times(2.21, 2.22),
    "gated_act": Times(1.72, 1.77),
    "glu": Times(2.09, 1.85),
    "prelu": Times(2.37, 1.54),
    "bias_act": Times(3.80, 1.93),
    "bias_act_dropout_add": Times(2.00, 1.28),
    "max_pool2d": Times(1.71, 1.40),
    "max_pool2d channels_last": Times(3.73, 1.27),
    "avg_pool2d": Times(2.29, 1.90),
    "max_unpool2d": Times(0.52, 0.64),
    "max_unpool2d channels_last": Times(1.21, 1.55),
    "embedding": Times(1.04, 3.13),
    "embedding_bag": Times(0.75, 0),
    # 2026-11-28-smoke.jsonl, 32 M elements, as are these two in float32. filtered_lrelu, 10 and 11.6, has not run with channels last.
    "cosine_embedding_loss": Times(2.92, 6.20),
    "triplet_margin_loss": Times(3.19, 5.15),
    "minibatch_stddev": Times(6.40, 4.60),
}
IN_FLOAT32 = {
    **dict.fromkeys(("relu", "silu", "tanh"), Times(1.0, 1.0)),
    "gelu": Times(0.90, 0.96),
    "softmax rows": Times(1.55, 1.81),
    "log_softmax columns": Times(5.79, 3.76),
    "dropout": Times(1.15, 0),
    "rrelu": Times(2.42, 1.44),
    "prelu": Times(1.43, 1.37),
    "bias_act": Times(3.58, 2.66),
    "embedding": Times(4.75, 1.63),
    "embedding_bag": Times(0.94, 0.97),
    "cosine_embedding_loss": Times(3.96, 6.09),
    "triplet_margin_loss": Times(3.73, 4.17),
}
# CUDA C++, 2026-11-28-cuda-smoke.jsonl; what is missing is no faster than torch's own: tanh, sigmoid and what costs as little 0.94 to
# 1.0, gelu 0.4 to 0.65, rms_norm (rows of 2048 and more alone were timed) 0.5 to 0.8, softmax over 21 channels 0.25.
CUDA_IN_HALVES = {
    "layer_norm": Times(1.06, 1.22),
    "add_layer_norm": Times(1.22, 0),
    "mish": Times(1.60, 1.42),
    "elu": Times(1.09, 1.02),
    "selu": Times(1.10, 1.02),
    "celu": Times(1.07, 0.97),
    "softshrink": Times(1.09, 1.03),
    "softsign": Times(3.40, 5.47),
    "tanhshrink": Times(1.85, 2.17),
    "softmax rows": Times(1.32, 1.13),
    "upfirdn2d": Times(1.16, 2.82),
}
CUDA_IN_FLOAT32 = {
    "softmax rows": Times(1.06, 1.52),
    "upfirdn2d": Times(1.19, 2.79),
    "log_softmax columns": Times(2.44, 1.97),
}
LONGEST_ROW = 1024  # of its norms: of 2048 columns and more 0.5 to 0.98 of torch's speed, but for one forward

BY_DTYPE = {
    "triton": {torch.bfloat16: IN_HALVES, torch.float16: IN_HALVES, torch.float32: IN_FLOAT32},
    "cuda": {torch.bfloat16: CUDA_IN_HALVES, torch.float16: CUDA_IN_HALVES, torch.float32: CUDA_IN_FLOAT32},
}


def decide(kernels: str, name: str, elements: int, training: bool, dtype: torch.dtype) -> str:
    """Why torch is to be preferred; empty where a kernel of ours is. kernels: whose, "triton" or "cuda"; name: a row's above."""
    times = BY_DTYPE[kernels].get(dtype, {}).get(name, Times(0, 0))[training]
    if not times:
        return NOT_MEASURED
    return AS_FAST if times < LEAST else SMALL if elements < GPU_ELEMENTS else ""
