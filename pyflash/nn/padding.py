"""Padding with a constant, by reflection, replication or around a circle, as torch.nn's."""

import torch
from torch import Tensor

import pyflash.functional as F
from pyflash.nn._twins import twin

__all__ = [
    "CircularPad1d",
    "CircularPad2d",
    "CircularPad3d",
    "ConstantPad1d",
    "ConstantPad2d",
    "ConstantPad3d",
    "ReflectionPad1d",
    "ReflectionPad2d",
    "ReflectionPad3d",
    "ReplicationPad1d",
    "ReplicationPad2d",
    "ReplicationPad3d",
    "ZeroPad1d",
    "ZeroPad2d",
    "ZeroPad3d",
]


def _constant(self, input: Tensor) -> Tensor:
    return F.pad(input, self.padding, "constant", self.value)


def _reflected(self, input: Tensor) -> Tensor:
    return F.pad(input, self.padding, "reflect")


def _replicated(self, input: Tensor) -> Tensor:
    return F.pad(input, self.padding, "replicate")


def _circular(self, input: Tensor) -> Tensor:
    self._check_input_dim(input)
    return F.pad(input, self.padding, "circular")


@twin("pad")
class ConstantPad1d(torch.nn.ConstantPad1d):
    """Pads the last dimension with a constant, as torch.nn.ConstantPad1d."""

    forward = _constant


@twin("pad")
class ConstantPad2d(torch.nn.ConstantPad2d):
    """Pads the last two dimensions with a constant, as torch.nn.ConstantPad2d."""

    forward = _constant


@twin("pad")
class ConstantPad3d(torch.nn.ConstantPad3d):
    """Pads the last three dimensions with a constant, as torch.nn.ConstantPad3d."""

    forward = _constant


@twin("pad")
class ZeroPad1d(torch.nn.ZeroPad1d):
    """Pads the last dimension with zeros, as torch.nn.ZeroPad1d."""

    forward = _constant


@twin("pad")
class ZeroPad2d(torch.nn.ZeroPad2d):
    """Pads the last two dimensions with zeros, as torch.nn.ZeroPad2d."""

    forward = _constant


@twin("pad")
class ZeroPad3d(torch.nn.ZeroPad3d):
    """Pads the last three dimensions with zeros, as torch.nn.ZeroPad3d."""

    forward = _constant


@twin("pad")
class ReflectionPad1d(torch.nn.ReflectionPad1d):
    """Pads the last dimension with their reflection, without the border, as torch.nn.ReflectionPad1d."""

    forward = _reflected


@twin("pad")
class ReflectionPad2d(torch.nn.ReflectionPad2d):
    """Pads the last two dimensions with their reflection, without the border, as torch.nn.ReflectionPad2d."""

    forward = _reflected


@twin("pad")
class ReflectionPad3d(torch.nn.ReflectionPad3d):
    """Pads the last three dimensions with their reflection, without the border, as torch.nn.ReflectionPad3d."""

    forward = _reflected


@twin("pad")
class ReplicationPad1d(torch.nn.ReplicationPad1d):
    """Pads the last dimension with the places at the border, as torch.nn.ReplicationPad1d."""

    forward = _replicated


@twin("pad")
class ReplicationPad2d(torch.nn.ReplicationPad2d):
    """Pads the last two dimensions with the places at the border, as torch.nn.ReplicationPad2d."""

    forward = _replicated


@twin("pad")
class ReplicationPad3d(torch.nn.ReplicationPad3d):
    """Pads the last three dimensions with the places at the border, as torch.nn.ReplicationPad3d."""

    forward = _replicated


@twin("pad")
class CircularPad1d(torch.nn.CircularPad1d):
    """Pads the last dimension with the places at the other end, as torch.nn.CircularPad1d."""

    forward = _circular


@twin("pad")
class CircularPad2d(torch.nn.CircularPad2d):
    """Pads the last two dimensions with the places at the other end, as torch.nn.CircularPad2d."""

    forward = _circular


@twin("pad")
class CircularPad3d(torch.nn.CircularPad3d):
    """Pads the last three dimensions with the places at the other end, as torch.nn.CircularPad3d."""

    forward = _circular
