"""pyflash: hand-written Triton, C++ SIMD and CUDA kernels behind drop-in torch.nn modules."""

import torch  # noqa: F401  before the native module, so that both share one OpenMP runtime

from pyflash import functional
from pyflash.ops._backends import FallbackWarning, use_backend
from pyflash.ops.linear import clear_cache

__version__ = "0.1.0"
__all__ = ["FallbackWarning", "clear_cache", "functional", "use_backend"]
