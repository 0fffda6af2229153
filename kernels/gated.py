"""How gate and value lie in memory. No Triton here: references and the CPU's callers share it."""


def halves(gate, value, swapped):
    """(gate, value), or where value is None the halves of `gate` [rows, 2 cols] that they are: the first and the second, or
    with `swapped` the second and the first."""
    if value is not None:
        return gate, value
    first, second = gate.chunk(2, 1)
    return (second, first) if swapped else (first, second)


def all_halves(ddgate, ddvalue, gate, value, dgate, dvalue, swapped):
    """The same of what a second derivative reads and writes; packed, both that arrive lie in `ddgate`."""
    if value is None:
        (ddgate, ddvalue), dvalue = halves(ddgate, None, swapped), None
    return ddgate, ddvalue, *halves(gate, value, swapped), *halves(dgate, dvalue, swapped)


def rows_of(*tensors):
    """(rows, cols, row stride of each): one row where all are dense, in one order of their memory; else of matrices. What is None
    has a stride of 0."""
    given = [t for t in tensors if t is not None]
    if all([t.stride() == given[0].stride() and _is_whole(t) for t in given]):
        return 1, given[0].numel(), (0,) * len(tensors)
    rows, cols = given[0].shape
    return rows, cols, tuple([0 if t is None else t.stride(0) for t in tensors])


def _is_whole(t):
    """Of a tensor that is dense or a matrix of rows with adjacent columns: is it dense?"""
    return t.is_contiguous() or t.dim() != 2 or (t.stride(1) != 1 and t.shape[1] != 1)
