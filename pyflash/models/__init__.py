"""Whole networks written on pyflash.nn.

Every model takes `nn` as its last keyword: `nn=torch.nn` builds its twin from the same code, with the same keys in its
state_dict and, under the same seed, the same weights.
"""

from pyflash.models.convnext import ConvNeXt, convnext_tiny
from pyflash.models.lenet import LeNet
from pyflash.models.mlp import MLP
from pyflash.models.resnet import ResNet, resnet18, resnet34, resnet50

__all__ = ["MLP", "ConvNeXt", "LeNet", "ResNet", "convnext_tiny", "resnet18", "resnet34", "resnet50"]
