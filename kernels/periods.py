"""How the kernels of all backends see a tensor that is broadcast along another. No Triton here."""

from math import prod


def period_of(shape, of):
    """(count, inner): element i of a contiguous tensor of shape `of` has number i // inner % count of one of `shape`. None where
    no two numbers say so: where it is broadcast between dimensions that it has, or does not fit at all."""
    if len(shape) > len(of):
        return None
    sizes = (1,) * (len(of) - len(shape)) + tuple(shape)
    own = [dim for dim, size in enumerate(sizes) if size != 1]
    if not own:
        return 1, 1
    first, last = own[0], own[-1] + 1
    if sizes[first:last] != tuple(of[first:last]):
        return None
    return prod(sizes[first:last]), prod(of[last:])
