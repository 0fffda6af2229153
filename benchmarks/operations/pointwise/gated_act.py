"""SwiGLU, GEGLU and ReGLU: an activation of the gate times the value, of two tensors and of two halves of one."""

from __future__ import annotations

from benchmarks.known import TORCHS, WAS_TWICE, Story, fresh
from benchmarks.operation import Case, Operation, gpu_case, in_rows
from benchmarks.operations.pointwise._gates import BOTH, Shape, bytes_, exps, inputs
from pyflash.activations import ACTIVATIONS

CASES = (
    Case("swiglu 2048x11008", Shape(2048, 11008), BOTH, model="Llama 2 7B, 2048 tokens"),
    Case("swiglu 256x11008", Shape(256, 11008), (*BOTH, "double-backward"), quick=True, model="Llama 2 7B, 256 tokens"),
    Case("swiglu packed 2048x11008", Shape(2048, 11008, packed=True), BOTH, model="the same from one product"),
    Case("swiglu 2048x11008", Shape(2048, 11008), BOTH, dtype="bfloat16", model="Llama 2 7B, 2048 tokens"),
    Case("geglu 2048x2816", Shape(2048, 2816, "gelu_tanh"), BOTH, quick=True, model="T5 1.1 large, 4 x 512 tokens"),
    Case("geglu packed 2048x2816", Shape(2048, 2816, "gelu_tanh", True), BOTH, model="the same from one product"),
    Case("reglu 2048x2816", Shape(2048, 2816, "relu"), BOTH, model="Shazeer's ReGLU at that size"),
)

GPU = tuple(
    gpu_case(f"{name} 8192x11008", Shape(8192, 11008, activation, packed), Shape(9, 70, activation, packed), "forward", "backward")
    for name, activation, packed in (("swiglu", "silu", False), ("swiglu packed", "silu", True), ("geglu", "gelu", False))
)  # fmt: skip


def torchs(case: Case):
    activation = ACTIVATIONS[case.shape.activation].reference

    def gated(gate, value=None):
        if value is None:
            gate, value = gate.chunk(2, -1)
        return activation(gate) * value

    return gated


def ours(case: Case):
    from pyflash import functional

    return lambda *tensors: functional.gated_act(*tensors, activation=case.shape.activation)


STORY = Story(
    limit="Memory: gate, value and result once, in the backward all five tensors once; and an exponential each.",
    elsewhere="torch reads and writes what lies between twice more; torch.compile fuses it.",
    gaps=(
        WAS_TWICE,
        TORCHS,
        fresh("2048x11008"),
        fresh("geglu packed", "training"),
    ),
)

OPERATION = Operation(
    name="gated_act",
    cases=CASES,
    inputs=inputs,
    torch=torchs,
    pyflash=ours,
    flops=lambda case, mode: 0.0,
    bytes=bytes_,
    exps=exps,
    gpu=GPU,
)

POINTS = {"gated_act": lambda kind, sizes: (OPERATION, Shape(*in_rows(*sizes)))}
