"""Tables and dense tensors to the Triton kernel."""

from pyflash.kernels.resample.resample import resample
from pyflash.ops.resample import plans


def interpolate(x, *arguments):
    *arguments, y = arguments
    resample(x, *plans.interpolation(x, *arguments), y)


def pad(x, *arguments):
    *arguments, y = arguments
    resample(x, *plans.padding(x, *arguments), y)
