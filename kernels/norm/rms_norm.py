"""RMS normalisation over rows, alone and of x + residual, and its backward: y = xhat weight with xhat = x rstd and
rstd = 1 / sqrt(mean(x^2) + eps).

LayerNorm's kernels (layer_norm.py) without a mean, whose code compiles to nothing. Source: Zhang & Sennrich 2019,
arXiv:1910.07467.
"""

from pyflash.kernels.norm import layer_norm


def rms_norm_fwd(x, residual, weight, eps, y, summed, rstd):
    """Fill y, rstd and, with a residual, summed = x + residual; arguments as layer_norm_fwd's."""
    layer_norm.layer_norm_fwd(x, residual, weight, None, eps, y, summed, None, rstd)


def rms_norm_bwd(dy, dsummed, x, weight, rstd, need_dx, need_dweight, dx, dweight):
    """Fill those of dx and dweight that are needed; arguments as layer_norm_bwd's."""
    layer_norm.layer_norm_bwd(
        dy, dsummed, x, weight, None, rstd, need_dx, need_dweight, False, dx, dweight, None
    )  # fmt: skip
