"""What torch refuses of a recurrent call, too, with its exception types; and the form of a stack, read off its weights."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from pyflash.auto.recurrent import GATES
from pyflash.ops.core.checks import PLAIN_TYPES, expect, is_plain, readable, scalar_type


def are_plain(tensors) -> bool:
    """May a kernel read them all? They have one dtype."""
    for t in tensors:
        if type(t) not in PLAIN_TYPES or t.layout is not torch.strided or t.is_nested:
            return all([is_plain(t) for t in tensors])
    return tensors[0].is_floating_point()


class Form(NamedTuple):
    """A stack of layers, as its weights tell it."""

    inputs: int
    hidden: int
    output: int  # of one direction: the projection, or hidden
    layers: int
    directions: int
    each: int  # weights of one direction of one layer
    has_bias: bool


def form_of(operation: str, cell: str, shapes, bidirectional: bool) -> Form:
    """The form of torch's flat list of weights, every one of their shapes checked.

    Raises:
        RuntimeError: the number of weights or a shape fits no stack.
    """
    if torch.compiler.is_compiling():
        return _form_of(operation, cell, shapes, bidirectional)
    return _cached_form_of(operation, cell, shapes, bidirectional)


def _form_of(operation, cell, shapes, bidirectional):
    def check(condition, message):
        expect(condition, operation, message, RuntimeError)

    check(
        len(shapes) > 1 and all(len(s) in (1, 2) for s in shapes) and len(shapes[0]) == len(shapes[1]) == 2,
        lambda: f"params have shapes {[tuple(s) for s in shapes]}, expected torch's flat list of weights of the layers",
    )
    directions, gates = 1 + bool(bidirectional), GATES[cell]
    hidden, inputs, output = shapes[0][0] // gates, shapes[0][1], shapes[1][1]
    has_bias, has_projection = len(shapes) > 2 and len(shapes[2]) == 1, output != hidden
    each = 2 + 2 * has_bias + has_projection
    layers = len(shapes) // (each * directions)
    check(
        layers * each * directions == len(shapes),
        lambda: f"params has {len(shapes)} tensors, expected a multiple of {each * directions}:"
        f" {each} for each of {directions} directions of each layer",
    )  # fmt: skip
    check(
        not has_projection or cell == "lstm",
        lambda: f"weight_hh has shape {tuple(shapes[1])}, expected {hidden} columns",
    )
    rows = gates * hidden
    for i in range(layers * directions):
        columns = inputs if i < directions else output * directions
        wanted = [(rows, columns), (rows, output)]
        wanted += [(rows,), (rows,)] if has_bias else []
        wanted += [(output, hidden)] if has_projection else []
        found = shapes[i * each : (i + 1) * each]
        check(
            all(tuple(f) == w for f, w in zip(found, wanted)),
            lambda found=found, wanted=wanted, i=i: (
                f"the weights of layer {i // directions} have shapes {[tuple(s) for s in found]}, expected {wanted}"
            ),
        )
    return Form(inputs, hidden, output, layers, directions, each, has_bias)


_cached_form_of = lru_cache(maxsize=256)(_form_of)


def check_input(operation, input, params, form, is_packed):
    """The dimensions of the input and its type beside the weights'."""
    dims = input.dim()
    if is_packed:
        expect(dims == 2, operation, lambda: f"input must have 2 dimensions, got {dims}", RuntimeError)
    else:
        expect(dims in (2, 3), operation, lambda: f"Expected input to be 2D or 3D, got {dims}D instead")
    expect(
        input.shape[-1] == form.inputs,
        operation,
        lambda: (
            f"input.size(-1) must be equal to input_size. Expected {form.inputs}, got {input.shape[-1]} in"
            f" {tuple(input.shape)}"
        ),
        RuntimeError,
    )
    dtype, device = input.dtype, input.device
    for p in params:
        if p.dtype != dtype:
            error = (
                RuntimeError if is_packed and operation == "lstm" else ValueError
            )  # torch's LSTM asks its kernel there
            raise error(
                f"pyflash.{operation}: RNN input dtype ({dtype}) does not match weight dtype ({p.dtype}). Convert input:"
                f" input.to({p.dtype}), or convert model: model.to({dtype})"
            )
        if p.device != device:
            check_one_device(operation, input, p)


def check_one_type(operation, *tensors):
    """All of one type, on one device, where torch's own kernels would say so."""
    first = tensors[0]
    for t in tensors:
        if t is not None and t.dtype != first.dtype:
            types = f"{scalar_type(first.dtype)} and {scalar_type(t.dtype)}"
            raise RuntimeError(
                f"pyflash.{operation}: input, states and weights must have the same dtype, but got {types}"
            )
        if t is not None:
            check_one_device(operation, first, t)


def check_one_device(operation, a, b):
    if a.device != b.device:
        raise RuntimeError(f"pyflash.{operation}: tensors are on {a.device} and {b.device}, expected one device")


def check_state(operation, name, state, shape, input, is_batched):
    """An initial state, [layers * directions, B, features], or without B when the input has none."""
    dims = 3 if is_batched else 2
    shape = shape if is_batched else (shape[0], shape[2])
    if tuple(state.shape) != shape:
        if state.dim() != dims:
            raise RuntimeError(
                f"pyflash.{operation}: For {'batched 3-D' if is_batched else 'unbatched 2-D'} input,"
                f" {'hx and cx' if operation == 'lstm' else 'hx'} should also be {dims}-D but got {state.dim()}-D tensor"
            )
        raise RuntimeError(f"pyflash.{operation}: Expected {name} size {shape}, got {list(state.shape)}")
    check_one_type(operation, input, state)


def check_lengths(operation, lengths, batch, steps) -> bool:
    """Shape and type; the values too, where they may be read. True when every sequence is known to be whole."""
    expect(
        lengths.shape == (batch,)
        and not (lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool),
        operation,
        lambda: f"lengths is {lengths.dtype} of shape {tuple(lengths.shape)}, expected integers, [{batch}]",
    )
    if batch == 0 or not readable(lengths):
        return False
    least, most = (int(v) for v in lengths.to(torch.int64).aminmax())  # unsigned ones have none
    expect(
        0 <= least and most <= steps,
        operation,
        lambda: f"lengths go from {least} to {most}, expected 0 to {steps}, the steps of input",
    )
    return least == steps
