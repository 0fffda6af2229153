"""How `replace` learns of another library's classes, on one made up here: nothing need be installed."""

import copy
import pickle
import sys
import types

import pytest
import torch

import pyflash
from pyflash.integrations import _forms
from pyflash.integrations._forms import Form, have_same_code, take
from pyflash.integrations._parts import GELU, Part, gated
from pyflash.nn import _twins
from pyflash.ops.pointwise.argument import MODULES

pytestmark = pytest.mark.host

SOURCE = '''
import functools
import torch
from torch import nn

def scaled(x):
    return x * 2

def wrapped(function):
    @functools.wraps(function)
    def wrapper(self, x):
        return function(self, x)
    return wrapper

class Smooth(nn.Module):
    def forward(self, x):
        """Of the pattern alone."""
        return nn.functional.gelu(x)

class OneNorm(nn.Module):
    """What the others are copies of."""
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
    def _normed(self, x):
        return x / x.abs().mean(-1, keepdim=True)
    def forward(self, x):
        return self.weight * scaled(self._normed(x))

def start(self, size):
    nn.Module.__init__(self)
    self.weight = nn.Parameter(torch.zeros(size))

class CopiedNorm(nn.Module):
    __init__ = start
    def _normed(self, x):
        """The same."""
        return x / x.abs().mean(-1, keepdim=True)
    def forward(self, x):
        # the same
        return self.weight * scaled(self._normed(x))

class NoEnding(nn.Module):
    __init__, _normed, forward = start, CopiedNorm._normed, CopiedNorm.forward

class OtherNorm(nn.Module):
    __init__ = start
    _normed = CopiedNorm._normed
    def forward(self, x):
        return self.weight + scaled(self._normed(x))

class OtherHelperNorm(nn.Module):
    __init__ = start
    def _normed(self, x):
        return x / x.abs().amax(-1, keepdim=True)
    def forward(self, x):
        return self.weight * scaled(self._normed(x))

class RenamedNorm(nn.Module):
    __init__ = start
    def _normed(self, x):
        return x / x.abs().mean(-1, keepdim=True)
    def forward(self, input):
        return self.weight * scaled(self._normed(input))

class WrappedNorm(nn.Module):
    __init__ = start
    _normed = CopiedNorm._normed
    forward = wrapped(CopiedNorm.forward)

class SubclassNorm(CopiedNorm):
    pass

class Gated(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gate, self.value, self.act = nn.Linear(width, width), nn.Linear(width, width), Smooth()
    def forward(self, x):
        return self.act(self.gate(x)) * self.value(x)
'''


class OneNorm(Part):
    """Stands for theirs."""

    def forward(self, x):
        return self.weight * (x / x.abs().mean(-1, keepdim=True) * 2)


class Gated(Part):
    def forward(self, x):
        return gated(x, self.gate, self.value, self.act)


FORMS = (
    Form("stand_in_library.parts:Smooth", GELU, ("gelu",), activation="gelu"),
    Form("stand_in_library.parts:OneNorm", OneNorm, ("rms_norm",), ("Norm",)),
    Form("stand_in_library.parts:Gated", Gated, ("gated_act",)),
    Form("stand_in_library.gone:Away", OneNorm, (), ("Ending",)),
    Form("stand_in_library.parts:Missing", OneNorm, (), ("Ending",)),
)


@pytest.fixture
def library(monkeypatch):
    parts = types.ModuleType("stand_in_library.parts")
    exec(SOURCE, vars(parts))
    for name, module in (("stand_in_library", types.ModuleType("stand_in_library")), (parts.__name__, parts)):
        monkeypatch.setitem(sys.modules, name, module)
    for table in (_twins.TWINS, _twins.ORIGINALS, _twins.ASKS_FOR, MODULES):
        for key in set(table):
            monkeypatch.setitem(table, key, table[key])  # what is added meanwhile goes below
    before = [set(table) for table in (_twins.TWINS, _twins.ORIGINALS, _twins.ASKS_FOR, MODULES)]
    monkeypatch.setattr(_twins, "FINDERS", found := list(_twins.FINDERS))
    monkeypatch.setattr(_forms, "FINDERS", found)
    take(__name__, "stand_in_library", FORMS)
    yield parts
    for table, keys in zip((_twins.TWINS, _twins.ORIGINALS, _twins.ASKS_FOR, MODULES), before):
        for key in set(table) - keys:
            del table[key]


def test_the_pattern_and_its_copies_become_ours_and_theirs_again(library):
    model = torch.nn.Sequential(library.OneNorm(4), library.CopiedNorm(4), library.Smooth())
    parameters, x = list(model.parameters()), torch.randn(3, 4)
    keys, expected = list(model.state_dict()), model(x)
    seen = []
    model[0].register_forward_hook(lambda *_: seen.append(True))
    pyflash.replace(model)
    for module, name in zip(model, ("OneNorm", "CopiedNorm", "Smooth")):
        assert type(module) is not getattr(library, name) and isinstance(module, getattr(library, name))
        assert type(module).__name__ == name
    torch.testing.assert_close(model(x), expected)
    assert seen and list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.parameters(), parameters))
    rows = {row.name: row for row in pyflash.report(model).rows}
    assert rows["1"].before == "stand_in_library.parts.CopiedNorm" and rows["1"].now == f"{__name__}.CopiedNorm"
    assert rows["1"].isinstance_kept
    pyflash.restore(model)
    assert [type(m) for m in model] == [library.OneNorm, library.CopiedNorm, library.Smooth]


@pytest.mark.parametrize(
    "name", ["NoEnding", "OtherNorm", "OtherHelperNorm", "RenamedNorm", "WrappedNorm", "SubclassNorm"]
)
def test_what_is_no_copy_stays(library, name):
    model = torch.nn.Sequential(getattr(library, name)(4))
    pyflash.replace(model)
    assert type(model[0]) is getattr(library, name)
    (row,) = (row for row in pyflash.report(model).rows if row.name == "0")
    assert row.now == row.before and row.reason


def test_a_name_of_another_library_is_none_of_this(library):
    library.CopiedNorm.__module__ = "stand_in"
    model = pyflash.replace(torch.nn.Sequential(library.CopiedNorm(4)))
    assert type(model[0]) is library.CopiedNorm


def test_code_is_compared_with_what_it_names(library):
    assert have_same_code(library.OneNorm, library.CopiedNorm)
    other = types.ModuleType("stand_in_library.parts")
    exec(SOURCE, vars(other))  # whose `scaled` may be another
    assert not have_same_code(other.OneNorm, library.CopiedNorm)
    other.scaled = library.scaled
    assert have_same_code(other.OneNorm, library.CopiedNorm)


def test_patterns_only_and_exclude_know_their_classes(library):
    model = torch.nn.Sequential(library.OneNorm(4), library.CopiedNorm(4), torch.nn.Linear(4, 4))
    pyflash.replace(model, only=library.CopiedNorm)
    assert [type(m).__module__ for m in model] == ["stand_in_library.parts", __name__, "torch.nn.modules.linear"]


def test_copies_and_pickles(library):
    model = pyflash.replace(torch.nn.Sequential(library.CopiedNorm(4)))
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(copied[0]) is type(model[0])
        assert copied.state_dict().keys() == model.state_dict().keys()


def test_an_activation_of_theirs_is_one_of_the_table(library):
    theirs = library.Gated(8)
    x = torch.randn(5, 8)
    expected = theirs(x)
    model = pyflash.replace(torch.nn.Sequential(theirs))
    called = []
    with pyflash.use_backend("cpu"):
        torch.testing.assert_close(model(x), expected)
        model[0].act.register_forward_hook(lambda *_: called.append(True))  # then it is called
        torch.testing.assert_close(model(x), expected)
    assert called
