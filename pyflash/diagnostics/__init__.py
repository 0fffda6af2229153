"""What a model does while it learns.

`gradient_flow` watches activations and gradients, layer by layer and step by step, and names what is wrong with them.
"""

from pyflash.diagnostics.flow import gradient_flow
from pyflash.diagnostics.verdicts import VERDICTS, Layer, Moments, Report, Thresholds

__all__ = ["VERDICTS", "Layer", "Moments", "Report", "Thresholds", "gradient_flow"]
