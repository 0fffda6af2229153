"""Steps and norms of many tensors; bindings/optim.cpp reads the tuples field by field, in this order."""

import math

import torch

from pyflash import _cpu
from pyflash.ops.core.native import DTYPES

_RULES = {name: number for number, name in enumerate(_cpu.UPDATE_RULES)}
_GRADIENTS = {name: number for number, name in enumerate(_cpu.GRADIENTS)}
_KINDS = {name: number for number, name in enumerate(_cpu.NORM_KINDS)}


def step(lists, columns, options, factor):
    rule, given, *numbers, gradients = options
    options = _RULES[rule], given * factor, *numbers, _GRADIENTS[gradients]
    _cpu.optim_step((lists.sizes, *columns, *options, DTYPES[lists.dtype]), torch.get_num_threads())


def total_norm(every_lists, kind):
    """Of the first column of each, as a number."""
    problems = [(lists.sizes, lists.columns[0], _KINDS[kind], DTYPES[lists.dtype]) for lists in every_lists]
    totals = [_cpu.total_norm(problem, torch.get_num_threads()) for problem in problems]
    if kind == "euclidean":
        return math.sqrt(sum(totals))
    return max(totals) if not any(map(math.isnan, totals)) else math.nan


def scale(lists, factor):
    if factor != 1:  # or NaN
        _cpu.scale_tensors((lists.sizes, lists.columns[0], factor, DTYPES[lists.dtype]), torch.get_num_threads())
