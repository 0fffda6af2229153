"""Modules of a generator in a model: which become ours, and which are views and copies that torch does."""

import torch

import pyflash
import pyflash.nn as nn


def test_replace():
    model = torch.nn.Sequential(
        torch.nn.ReflectionPad2d(3), torch.nn.Upsample(scale_factor=2, mode="bilinear"), torch.nn.PixelShuffle(2)
    )
    x = torch.randn(1, 4, 5, 6)
    expected = model(x)
    pyflash.replace(model)
    assert [type(m) for m in model] == [nn.ReflectionPad2d, nn.Upsample, torch.nn.PixelShuffle]
    with pyflash.use_backend("cpu"):
        torch.testing.assert_close(model(x), expected)
    report = pyflash.report(model)
    assert [(row.name, row.backend) for row in report.rows] == [("0", "cpu"), ("1", "cpu")]
    assert type(pyflash.restore(model)[0]) is torch.nn.ReflectionPad2d
