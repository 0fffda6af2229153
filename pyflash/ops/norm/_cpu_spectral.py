"""Spectral norms; bindings/spectral.cpp reads the tuples field by field, in this order."""

from math import prod

import torch

from pyflash import _cpu
from pyflash.ops.core.native import DTYPES
from pyflash.ops.core.workspace import take_workspace


def _matrix(weight, dim):
    shape = weight.shape
    return weight.data_ptr(), prod(shape[:dim]), shape[dim], prod(shape[dim + 1 :])


def spectral_sigma(weights, us, vs, dims, iterations, eps, *outputs):
    n = len(weights)
    next_us, next_vs, sigmas = outputs[:n], outputs[n : 2 * n], outputs[2 * n :]
    layers = [
        (
            *_matrix(weight, dims[i]), us[i].data_ptr(), vs[i].data_ptr(), next_us[i].data_ptr(), next_vs[i].data_ptr(),
            sigmas[i].data_ptr(), iterations[i], eps[i],
        )
        for i, weight in enumerate(weights)
    ]  # fmt: skip
    workspace = take_workspace(_cpu.spectral_sigma_workspace(layers) * sigmas[0].element_size(), "spectral")
    _cpu.spectral_sigma(layers, (workspace.data_ptr(), DTYPES[weights[0].dtype]), torch.get_num_threads())


def _scale(dy, weight, u, v, sigma, dim, to):
    of = _matrix(weight, dim)
    parts = 0 if dy is None else take_workspace(_cpu.spectral_scale_workspace(*of[1:]) * 8, "spectral").data_ptr()
    problem = (
        *of, 0 if dy is None else dy.data_ptr(), u.data_ptr(), v.data_ptr(), sigma.data_ptr(), to.data_ptr(), parts,
        DTYPES[weight.dtype],
    )  # fmt: skip
    _cpu.spectral_scale(problem, torch.get_num_threads())


def spectral_scale_fwd(weight, u, v, sigma, dim, y):
    _scale(None, weight, u, v, sigma, dim, y)


def spectral_scale_bwd(dy, weight, u, v, sigma, dim, dweight):
    _scale(dy, weight, u, v, sigma, dim, dweight)
