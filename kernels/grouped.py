"""How the kernels of all backends see a tensor that is reduced over one dimension. No Triton here."""

from math import prod


def grouped(tensor, dim):
    """The tensor as [outer, n, inner], n the size of `dim`: with inner 1 the elements of n are adjacent, else those of
    inner. Copied where they are not, or where the dimensions on one side have no common stride."""
    shape = tensor.shape
    if not shape:
        return tensor.reshape(1, 1, 1)
    dim %= len(shape)
    inner = prod(shape[dim + 1 :])
    view = tensor.reshape(prod(shape[:dim]), shape[dim], inner)
    last = 2 if inner != 1 else 1
    return view if view.stride(last) == 1 or view.shape[last] == 1 else view.contiguous()
