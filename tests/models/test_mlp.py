"""MLP: the modules, keys, weights and numbers of an nn.Sequential that is written out."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from helpers import backend_params

import pyflash
from pyflash import models, nn
from pyflash.nn._twins import ORIGINALS, TWINS
from tests.nn.module_helpers import assert_same

T = torch.nn
CASES = {  # arguments, and what they are in torch.nn
    "plain": (((5, 7, 3),), lambda: T.Sequential(T.Linear(5, 7), T.ReLU(), T.Linear(7, 3))),
    "linear": (((5, 3),), lambda: T.Sequential(T.Linear(5, 3))),
    "all": (
        ((5, 8, 6, 3), "gelu_tanh", 0.0, "layer", False),
        lambda: T.Sequential(
            T.Linear(5, 8, bias=False), T.LayerNorm(8), T.GELU("tanh"),
            T.Linear(8, 6, bias=False), T.LayerNorm(6), T.GELU("tanh"),
            T.Linear(6, 3, bias=False),
        ),
    ),
    "batch norm": (
        ((5, 8, 3), "tanh", 0.0, "batch"),
        lambda: T.Sequential(T.Linear(5, 8), T.BatchNorm1d(8), T.Tanh(), T.Linear(8, 3)),
    ),
    "dropout": (
        ([5, 8, 8, 3], ("leaky_relu", {"negative_slope": 0.2}), 0.4),
        lambda: T.Sequential(
            T.Linear(5, 8), T.LeakyReLU(0.2), T.Dropout(0.4), T.Linear(8, 8), T.LeakyReLU(0.2), T.Dropout(0.4), T.Linear(8, 3)
        ),
    ),
    "no activation": (((5, 8, 3), None), lambda: T.Sequential(T.Linear(5, 8), T.Linear(8, 3))),
    "relu6": (((5, 8, 3), "relu6"), lambda: T.Sequential(T.Linear(5, 8), T.ReLU6(), T.Linear(8, 3))),
    "a module": (((5, 8, 3), T.Softplus(2.0, 5)), lambda: T.Sequential(T.Linear(5, 8), T.Softplus(2.0, 5), T.Linear(8, 3))),
    "in place": (((5, 8, 3), T.ELU(0.5, True)), lambda: T.Sequential(T.Linear(5, 8), T.ELU(0.5, True), T.Linear(8, 3))),
    "slopes that are learnt": (
        ((5, 8, 4, 3), T.PReLU(init=0.1)),
        lambda: T.Sequential(T.Linear(5, 8), T.PReLU(init=0.1), T.Linear(8, 4), T.PReLU(init=0.1), T.Linear(4, 3)),
    ),
}  # fmt: skip


def seeded(build, *args, **options):
    torch.manual_seed(7)
    return build(*args, **options)


@pytest.mark.parametrize("name", CASES)
def test_modules_keys_and_weights_are_those_written_out(name):
    arguments, written = CASES[name]
    theirs = seeded(written)
    twin, ours = seeded(models.MLP, *arguments, nn=T), seeded(models.MLP, *arguments)
    assert repr(twin) == repr(theirs) and type(twin) is T.Sequential and type(ours) is nn.Sequential
    for model in (twin, ours):
        assert list(model.state_dict()) == list(theirs.state_dict())
        assert all(map(torch.equal, model.state_dict().values(), theirs.state_dict().values()))
    assert [type(m) for m in ours.modules()] == [TWINS[type(m)] for m in theirs.modules()]
    assert not any(type(m) in ORIGINALS for m in twin.modules())


@pytest.mark.parametrize("backend", backend_params("cpu"))
@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients(name, backend):
    """Ours after load_state_dict, and the twin after replace, are as near to float64 as what is written out."""
    arguments, written = CASES[name]
    theirs = seeded(written)
    ours = models.MLP(*arguments)
    ours.load_state_dict(theirs.state_dict())
    replaced = pyflash.replace(copy.deepcopy(theirs))
    modes = ("eval",) if name == "dropout" else ("train", "eval", "eval without gradients")
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(3))
    assert_same([ours, replaced], theirs, [x], backends=(backend, "torch"), modes=modes)


def test_each_layer_has_an_activation_of_its_own():
    given = T.PReLU()
    model = models.MLP((2, 3, 3, 1), given)
    slopes = [m.weight for m in model.modules() if isinstance(m, T.PReLU)]
    assert len({id(slope) for slope in (*slopes, given.weight)}) == 3
    assert type(given) is T.PReLU and len(list(model.parameters())) == 8

    class Mine(T.Module):
        def forward(self, x):
            return x.sin()

    model = models.MLP((2, 3, 1), Mine())
    assert type(model[1]) is Mine and model(torch.ones(2)).shape == (1,)


def test_it_learns_is_copied_and_kept():
    x = torch.randn(64, 2)
    y = (x[:, :1] * x[:, 1:]).sign()
    model = models.MLP((2, 32, 32, 1), "tanh", dropout=0.1, norm="layer")
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
    model.eval()
    assert (model(x).sign() == y).float().mean() > 0.9
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), model(x)) and type(other) is nn.Sequential


@pytest.mark.parametrize(
    "error, message, arguments",
    [
        (ValueError, r"sizes is \(3,\), expected at least two", ((3,),)),
        (ValueError, r"sizes is \(\), expected at least two", ([],)),
        (ValueError, "sizes has 0 in it", ((3, 0, 1),)),
        (TypeError, r"sizes has 2\.5 in it, expected integers", ((3, 2.5),)),
        (TypeError, "sizes has True in it", ((3, True),)),
        (TypeError, "sizes is 3, expected a sequence", (3,)),
        (TypeError, "sizes is '34', expected a sequence", ("34",)),
        (ValueError, r"models\.MLP: activation is 'rulu', expected None or one of relu", ((3, 4, 1), "rulu")),
        (ValueError, "activation is 'rulu'", ((3, 4), "rulu")),
        (ValueError, r"activation 'elu' is given 'beta'; its parameters are alpha", ((3, 4, 1), ("elu", {"beta": 1}))),
        (ValueError, "norm is 'group', expected None or one of 'layer', 'batch'", ((3, 4, 1), "relu", 0.0, "group")),
        (ValueError, r"dropout is 1\.5, expected a probability", ((3, 4, 1), "relu", 1.5)),
        (ValueError, "dropout is nan", ((3, 4, 1), "relu", float("nan"))),
        (TypeError, "dropout is '0.1'", ((3, 4, 1), "relu", "0.1")),
    ],
)
def test_what_is_refused(error, message, arguments):
    with pytest.raises(error, match=message):
        models.MLP(*arguments)
