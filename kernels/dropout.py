"""How a probability becomes what Philox words are compared with. No Triton here: references and the CPU's callers share it."""


def threshold(p: float) -> int:
    """An element is kept iff its 32-bit word is at least this. At p = 1 the scale is 0, so the last word does no harm."""
    return min(int(p * 2**32), 2**32 - 1)


def keep_scale(p: float) -> float:
    """What kept elements are multiplied by: 1 / (1 - p), and 0 where nothing is kept."""
    return 1 / (1 - p) if p < 1 else 0.0


ALPHA = 1.7580993408473766  # minus the limit of SELU at minus infinity: what alpha dropout puts for a dropped element


def affine(p: float, is_alpha: bool, has_shift: bool) -> tuple[float, float, float]:
    """(what kept elements are multiplied by, what is added to kept ones, what stands for dropped ones): of alpha dropout
    the ones that keep mean 0 and variance 1. Klambauer et al. 2017, arXiv:1706.02515, section "New Dropout Technique"."""
    if not is_alpha:
        return keep_scale(p), 0.0, 0.0
    if p >= 1:  # as torch: zeros
        return 0.0, 0.0, 0.0
    scale = 1 / ((ALPHA * ALPHA * p + 1) * (1 - p)) ** 0.5
    return (scale, ALPHA * scale * p, ALPHA * scale * (p - 1)) if has_shift else (scale, 0.0, 0.0)


def by_channel(x) -> tuple[int, int, int, bool]:
    """(batch, channels, elements of a channel, do channels lie next to each other?) of dense x."""
    if x.dim() < 2:
        return 1, 1, x.numel(), False
    batch, channels = x.shape[:2]
    inner = x.numel() // max(1, batch * channels)
    return batch, channels, inner, inner == 1 or not x.is_contiguous()
