"""Argument checks: what stands between a raw pointer and a wrong address."""

from __future__ import annotations

import os
from itertools import pairwise

import torch

CHECK_VALUES = os.environ.get("PYFLASH_CHECK", "0") == "1"  # read offsets and lengths on the device too, which waits


def expect(condition: bool, operation: str, message, error: type[Exception] = ValueError) -> None:
    """Raises `error` with "pyflash.<operation>: <message()>" unless `condition` holds."""
    if not condition:
        raise error(f"pyflash.{operation}: {message()}")


def expect_tensors(operation: str, optional=(), **arguments) -> None:
    """Raises TypeError, as torch does, where an argument is no tensor; one that is named in `optional` may be None."""
    for name, value in arguments.items():
        if not isinstance(value, torch.Tensor) and not (value is None and name in optional):
            raise TypeError(f"pyflash.{operation}: {name} is a {type(value).__name__}, expected a tensor")


# Code written for torch looks for its words: an error of ours begins with torch's phrase for the same mistake.
_SCALAR_TYPES = {  # as torch's errors name them: in most, and in those of its attention
    torch.float64: ("Double", "double"),
    torch.float32: ("Float", "float"),
    torch.bfloat16: ("BFloat16", "c10::BFloat16"),
    torch.float16: ("Half", "c10::Half"),
    torch.int64: ("Long", "long int"),
    torch.int32: ("Int", "int"),
}


def scalar_type(dtype: torch.dtype, is_of_c: bool = False) -> str:
    """The name of a type in torch's errors."""
    names = _SCALAR_TYPES.get(dtype)
    return names[is_of_c] if names else str(dtype).removeprefix("torch.").capitalize()


def size_mismatch(a, b, default="sizes do not match") -> str:
    """torch's words for shapes that do not broadcast; `default` where they do, and something else is wrong."""
    for i, (of_a, of_b) in enumerate(zip(reversed(a), reversed(b)), 1):
        if of_a != of_b and of_a != 1 and of_b != 1:
            dim = max(len(a), len(b)) - i
            return f"The size of tensor a ({of_a}) must match the size of tensor b ({of_b}) at non-singleton dimension {dim}"
    return default


def window_pair(operation: str, window_size) -> tuple[int, int]:
    """(left, right) of `window_size`."""
    if not isinstance(window_size, (tuple, list)) or len(window_size) != 2:
        raise TypeError(
            f"pyflash.{operation}: window_size is {window_size!r}, expected a pair (left, right) of numbers of tokens,"
            " as (4, 4), or (4, 0) for those before; -1 is unlimited"
        )
    return int(window_size[0]), int(window_size[1])


INTS = (int, torch.SymInt)


def spread(value, n: int) -> tuple[int, ...] | None:
    """A number for each of n dimensions; None for what is neither a number, nor one or n of them."""
    if type(value) in INTS:
        return (value,) * n
    if not isinstance(value, (tuple, list)) or len(value) not in (1, n):
        return None
    for v in value:
        if type(v) not in INTS:
            return None
    return tuple(value) if len(value) == n else (*value,) * n


PLAIN_TYPES = frozenset((torch.Tensor, torch.nn.Parameter))  # classes without a dispatch of their own
NOT_PLAIN = "only strided floating-point tensors are served"  # said of a tensor that is not `is_plain`


def is_plain(tensor) -> bool:
    """A floating-point tensor with memory of its own that a kernel may read."""
    return is_strided(tensor) and tensor.dtype.is_floating_point


def is_strided(tensor) -> bool:
    """A tensor with memory of its own, of any type: no subclass with its own dispatch, strided, not nested.

    Fake and functional tensors of torch.compile and torch.export count: they never reach a kernel.
    """
    kind = type(tensor)
    if kind not in PLAIN_TYPES and not torch.compiler.is_compiling():
        if kind.__torch_function__ is not torch.Tensor.__torch_function__:
            if kind.__torch_function__ is not torch._C._disabled_torch_function_impl:
                return False
        if kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__ and not _is_traced(tensor):
            return False
    return tensor.layout is torch.strided and not tensor.is_nested


def device_type(tensor: torch.Tensor) -> str:
    """tensor.device.type, without the 0.3 us that its string costs on the CPU."""
    return "cpu" if tensor.is_cpu else tensor.device.type


def _is_traced(tensor) -> bool:
    from torch._subclasses.fake_tensor import FakeTensor
    from torch._subclasses.functional_tensor import FunctionalTensor

    return isinstance(tensor, (FakeTensor, FunctionalTensor))


def readable(*tensors) -> bool:
    """May the values be read here: on the CPU (elsewhere only under PYFLASH_CHECK=1), and not while tracing."""
    if torch.compiler.is_compiling():
        return False
    return all((t.is_cpu or (CHECK_VALUES and t.device.type != "meta")) and not _is_traced(t) for t in tensors)


def _values(tensor: torch.Tensor) -> list:
    """tensor.tolist(), under torch.func transforms as well, where torch 2.9 finds no memory behind its own copies."""
    if torch._C._are_functorch_transforms_active():
        while torch._C._functorch.is_gradtrackingtensor(tensor):
            tensor = torch._C._functorch.get_unwrapped(tensor)
        if not torch._C._functorch.is_batchedtensor(tensor):
            with torch._C._DisableFuncTorch():
                return tensor.tolist()
    return tensor.tolist()


def sequence_offsets(operation: str, name: str, cu_seqlens: torch.Tensor, tokens: int, longest: int) -> list[int]:
    """The values of cu_seqlens, checked: [0, first token of sequence 1, ..., end of the last one]."""
    offsets = _values(cu_seqlens)
    expect(offsets[0] == 0, operation, lambda: f"{name} starts at {offsets[0]}, expected 0")
    for start, stop in pairwise(offsets):
        if stop < start:
            raise ValueError(f"pyflash.{operation}: {name} goes from {start} to {stop}, expected ascending offsets")
        if stop - start > longest:
            raise ValueError(
                f"pyflash.{operation}: max_seqlen_{name[-1]} is {longest}, but {name} has a sequence of {stop - start}"
            )
    expect(
        offsets[-1] <= tokens, operation, lambda: f"{name} ends at {offsets[-1]}, past the {tokens} tokens there are"
    )
    return offsets


def cache_lengths(operation: str, cache_seqlens: torch.Tensor, max_len: int) -> list[int]:
    """The values of cache_seqlens, checked."""
    lengths = _values(cache_seqlens)
    for i, length in enumerate(lengths):
        if not 0 <= length <= max_len:
            raise ValueError(
                f"pyflash.{operation}: cache_seqlens[{i}] is {length}, expected 0 to {max_len}, the length of the caches"
            )
    return lengths


def blocks_in_use(
    operation: str, block_table: torch.Tensor, lengths: list[int], block_size: int, num_blocks: int
) -> list[list[int]]:
    """Of each cache of a paged pool the blocks that hold its keys, checked; what the table has behind them is not read."""
    blocks = []
    for i, (row, length) in enumerate(zip(_values(block_table), lengths)):
        blocks.append(row[: -(-length // max(block_size, 1))])
        for j, block in enumerate(blocks[-1]):
            if not 0 <= block < num_blocks:
                raise ValueError(
                    f"pyflash.{operation}: block_table[{i}, {j}] is {block}, expected 0 to {num_blocks - 1}, a block of "
                    "the caches"
                )
    return blocks


def expect_indices(operation: str, indices: torch.Tensor, rows: int) -> None:
    """Raises IndexError unless all values are rows of a table of so many."""
    if indices.numel():
        low, high = (int(value) for value in indices.aminmax())
        if low < 0 or high >= rows:
            raise IndexError(wrong_index(operation, low if low < 0 else high, rows))


def wrong_index(operation: str, index: int, rows: int) -> str:
    return f"pyflash.{operation}: index out of range in self: {index}, expected 0 to {rows - 1}, a row of the weight"


def is_dense(tensor: torch.Tensor) -> bool:
    """Do the elements fill one piece of memory without holes or overlaps, in any order of dimensions?"""
    return tensor.is_contiguous() or torch.empty_like(tensor, device="meta").stride() == tensor.stride()
