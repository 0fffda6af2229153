"""pyflash: hand-written C++ SIMD and Triton kernels behind drop-in torch.nn modules."""

import torch  # noqa: F401  before the native module, so that both share one OpenMP runtime

from pyflash import diagnostics, functional, models, nn, optim
from pyflash.ops.core import flops as _flops
from pyflash.ops.core.backends import FallbackWarning, use_backend
from pyflash.ops.core.backends import call_counts as counts
from pyflash.ops.linear.linear import clear_cache
from pyflash.overrides import overrides
from pyflash.replace import Report, replace, report, restore

_flops.register()

__version__ = "0.1.0"
__all__ = [
    "FallbackWarning",
    "Report",
    "clear_cache",
    "counts",
    "diagnostics",
    "functional",
    "models",
    "nn",
    "optim",
    "overrides",
    "replace",
    "report",
    "restore",
    "use_backend",
]
