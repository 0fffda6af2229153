"""What the family offers in pyflash.functional, and which of torch's functions that stands for."""

import torch
import torch.nn.functional as F

from pyflash.ops.core.public import stands_for
from pyflash.ops.norm.adaptive import adaptive_instance_norm
from pyflash.ops.norm.batch_norm import batch_norm, batch_norm_act
from pyflash.ops.norm.group_norm import group_norm, group_norm_act
from pyflash.ops.norm.instance_norm import instance_norm
from pyflash.ops.norm.layer_norm import add_layer_norm, layer_norm
from pyflash.ops.norm.local_response import local_response_norm
from pyflash.ops.norm.normalize import normalize
from pyflash.ops.norm.pixel_norm import pixel_norm
from pyflash.ops.norm.rms_norm import add_rms_norm, rms_norm
from pyflash.ops.norm.spectral import spectral_norm

__all__ = [
    "adaptive_instance_norm",
    "add_layer_norm",
    "add_rms_norm",
    "batch_norm",
    "batch_norm_act",
    "group_norm",
    "group_norm_act",
    "instance_norm",
    "layer_norm",
    "local_response_norm",
    "normalize",
    "pixel_norm",
    "rms_norm",
    "spectral_norm",
]

stands_for({F.batch_norm: batch_norm, F.group_norm: group_norm, F.instance_norm: instance_norm})
stands_for({F.local_response_norm: local_response_norm, F.normalize: normalize})
stands_for({F.layer_norm: layer_norm, F.rms_norm: rms_norm, torch.rms_norm: rms_norm})
