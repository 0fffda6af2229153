"""How a probability becomes what Philox words are compared with. No Triton here: references and the CPU's callers share it."""


def threshold(p: float) -> int:
    """An element is kept iff its 32-bit word is at least this. At p = 1 the scale is 0, so the last word does no harm."""
    return min(int(p * 2**32), 2**32 - 1)


def keep_scale(p: float) -> float:
    """What kept elements are multiplied by: 1 / (1 - p), and 0 where nothing is kept."""
    return 1 / (1 - p) if p < 1 else 0.0
