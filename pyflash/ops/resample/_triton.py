"""Tables and dense tensors to the Triton kernel."""

from pyflash.kernels.resample.resample import resample
from pyflash.ops.core.layouts import dense
from pyflash.ops.resample import plans


def interpolate(x, *arguments):
    *arguments, y = arguments
    x = dense(x, arguments[-1])  # whoever calls the operator: x is read as it would lie then
    resample(x, *plans.interpolation(x, *arguments), y)


def pad(x, *arguments):
    *arguments, y = arguments
    x = dense(x, arguments[-1])  # whoever calls the operator: x is read as it would lie then
    resample(x, *plans.padding(x, *arguments), y)
