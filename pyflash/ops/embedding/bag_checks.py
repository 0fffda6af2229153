"""What is wrong with the values of a bag's indices and offsets, in torch's words."""

from __future__ import annotations

import torch


def wrong_index_of_bag(index: int, rows: int) -> str:
    return (
        f"pyflash.embedding_bag: Expected idx >= 0 && idx < num_embeddings but found idx to be {index}, of {rows}"
        " embeddings"
    )


def wrong_bounds(bounds: list[int], n: int) -> str:
    """bounds: where bags begin and the last one ends."""
    if bounds[0] != 0:
        problem = (
            "offsets[0] has to be 0, i.e., the first sequence in the mini-batch has to start from position 0. However, got"
            f" {bounds[0]}"
        )
    elif max(bounds) > n:
        problem = f"offsets[-1] can not be greater than input's length {n} but got offsets[-1] of {max(bounds)}"
    else:
        problem = f"offsets are {bounds}, expected ascending ones"
    return f"pyflash.embedding_bag: {problem}"


def expect_bags(indices: torch.Tensor, bounds: torch.Tensor, rows: int) -> None:
    """Raises RuntimeError where the values, which can be read here, do not fit."""
    values = bounds.tolist()
    if values[0] != 0 or values[-1] > indices.numel() or sorted(values) != values:
        raise RuntimeError(wrong_bounds(values, indices.numel()))
    used = indices[: values[-1]]
    if used.numel():
        low, high = (int(value) for value in used.aminmax())
        if low < 0 or high >= rows:
            raise RuntimeError(wrong_index_of_bag(low if low < 0 else high, rows))
