"""torch.nn.utils.parametrizations' functions, on modules of ours as on torch's: a parametrised module of ours computes with our
kernels, and its power iterations, of vectors and one matrix each, with torch's."""

from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

__all__ = ["orthogonal", "spectral_norm", "weight_norm"]
