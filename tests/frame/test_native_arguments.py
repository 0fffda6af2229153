"""What crosses into the native module: every tuple is counted and every field named, and enums have one definition."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch

from pyflash.activations import ACTIVATIONS

_cpu = pytest.importorskip("pyflash._cpu")
from pyflash.ops.attention._cpu import NO_MASK, _gradients, _problem  # noqa: E402
from pyflash.ops.core.native import DTYPES  # noqa: E402
from pyflash.ops.recurrent._cpu import CELLS, _Problem  # noqa: E402

COMMON = Path(__file__).resolve().parents[2] / "csrc/common"


def attention():
    q = k = v = torch.zeros(1, 1, 1, 8)
    lse = torch.zeros(1, 1, 1)
    problem = _problem(q, k, v, None, None, None, 0.0, 1.0, 0.0, -1, -1, 0)
    gradients = _gradients(q, None, q, lse, q, k, v, None, torch.zeros(64))
    return problem, gradients


def recurrent():
    weights = [torch.zeros(4, 1), torch.zeros(4, 1), torch.zeros(4), torch.zeros(4)]
    return _Problem(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), weights, None, None, "lstm", False)


def attention_fwd(problem):
    return lambda: _cpu.attention_fwd(problem, 0, 0, 0, (0, 0, 0, 0), 0, 1)


def attention_bwd(problem, gradients):
    return lambda: _cpu.attention_bwd(problem, gradients, 1)


def replaced(fields, place, value):
    return (*fields[:place], value, *fields[place + 1 :])


def calls():
    problem, gradients = attention()
    layer = recurrent()
    shape, layout, weights = layer.shape, layer.layout, layer.weights
    tensors = (0,) * 16
    yield "attention_fwd: problem ends after 22 fields, before mask_type", attention_fwd(problem[:-1])
    yield "attention_fwd: problem has 24 fields, expected 23", attention_fwd((*problem, 0))
    yield "attention_fwd: q is 1.5, expected an address", attention_fwd(replaced(problem, 3, 1.5))
    yield r"attention_fwd: q_stride is \(1, 2\), expected 4 integers", attention_fwd(replaced(problem, 8, (1, 2)))
    yield "attention_fwd: scale is 'a', expected a number", attention_fwd(replaced(problem, 16, "a"))
    yield "attention_fwd: dtype is 4, expected a number from 0 to 3", attention_fwd(replaced(problem, 21, 4))
    yield "attention_fwd: mask_type is 5, expected a number from -1 to 4", attention_fwd(replaced(problem, 22, 5))
    yield "attention_bwd: gradients ends after 16 fields, before of_weights", attention_bwd(problem, gradients[:-1])
    yield "attention_bwd: of_weights is 1, expected True or False", attention_bwd(problem, (*gradients[:-1], 1))
    yield "rnn_sizes: shape ends after 8 fields, before dtype", lambda: _cpu.rnn_sizes(shape[:-1], 1, False, 1)
    yield (
        "rnn_sizes: directions is 3, expected a number from 1 to 2",
        lambda: _cpu.rnn_sizes(replaced(shape, 5, 3), 1, False, 1),
    )
    yield "rnn_pack: weights are those of 2 directions", lambda: _cpu.rnn_pack(shape, weights * 2, 0, False, 1)
    yield (
        "rnn_pack: weights ends after 4 fields, before w_hr",
        lambda: _cpu.rnn_pack(shape, [weights[0][:-1]], 0, False, 1),
    )
    yield (
        "rnn_bwd: layout has 9 fields, expected 8",
        lambda: _cpu.rnn_bwd(shape, (*layout, 0), weights, weights, tensors, 1),
    )
    yield (
        "rnn_bwd: tensors ends after 15 fields, before workspace",
        lambda: _cpu.rnn_bwd(shape, layout, weights, weights, tensors[:-1], 1),
    )
    of = (0, 0, 0, len(ACTIVATIONS) - 1, 0.0, 0.0, 0)  # x, y, n, activation and its values, dtype
    last = len(ACTIVATIONS) - 1
    for name, problem in (("activation_fwd", of), ("activation_bwd", (0, *of))):
        run, at = getattr(_cpu, name), len(problem) - 5
        wrong = partial(replaced, problem)
        yield f"{name}: problem ends after {at + 4} fields, before dtype", partial(run, problem[:-1], 1)
        yield f"{name}: problem has {at + 6} fields, expected {at + 5}", partial(run, (*problem, 0), 1)
        yield f"{name}: n is -1, expected 0 or more", partial(run, wrong(at, -1), 1)
        yield (
            f"{name}: activation is {last + 1}, expected a number from 0 to {last}",
            partial(run, wrong(at + 1, last + 1), 1),
        )
        yield f"{name}: activation is -1, expected a number from 0 to {last}", partial(run, wrong(at + 1, -1), 1)
        yield f"{name}: second parameter is 'a', expected a number", partial(run, wrong(at + 3, "a"), 1)
        yield f"{name}: dtype is 4, expected a number from 0 to 3", partial(run, wrong(at + 4, 4), 1)
    drops = (0, 0, 0, 0, 1, 1.0, 0)  # x, seed, y, n, drop_below, keep_scale, dtype
    yield "dropout: n is -1, expected 0 or more", partial(_cpu.dropout, replaced(drops, 3, -1), 1)
    yield (
        "dropout: drop_below is -1, expected a number from 0 to 4294967295",
        partial(_cpu.dropout, replaced(drops, 4, -1), 1),
    )
    yield "dropout: dtype is -1, expected a number from 0 to 3", partial(_cpu.dropout, replaced(drops, 6, -1), 1)
    yield "dropout: problem ends after 6 fields, before dtype", partial(_cpu.dropout, drops[:-1], 1)


@pytest.mark.parametrize("message, call", list(calls()), ids=[message for message, _ in calls()])
def test_what_does_not_fit_is_an_error_that_names_it(message, call):
    with pytest.raises(TypeError, match=re.escape("pyflash._cpu.") + message):
        call()


def members(header, name):
    """What the enum class of this name has, as written."""
    body = re.search(rf"enum class {name} : int32_t {{(.*?)}};", (COMMON / header).read_text(), re.DOTALL)[1]
    return [member.partition("=")[0].strip() for member in body.split(",")]


def test_python_knows_every_number_of_the_enums():
    assert set(DTYPES) == {torch.float32, torch.float64, torch.bfloat16, torch.float16}
    assert sorted(DTYPES.values()) == list(range(len(members("dtype.h", "Dtype"))))
    assert list(CELLS) == members("recurrent.h", "Cell") and list(CELLS.values()) == list(range(len(CELLS)))
    assert list(_cpu.ATTENTION_PASSES) == members("attention.h", "AttentionPass")
    masks = members("attention.h", "MaskType")
    assert _cpu.MASK_TYPES == {"none": -1, "boolean": len(masks) - 2} and NO_MASK == -1
    cases = re.findall(r"case (\d+): return f\((\w+)\{.*?\}\)", (COMMON / "activations.inc").read_text())
    structs = ["".join(part.capitalize() for part in name.split("_")) for name in ACTIVATIONS]
    assert cases == [(str(number), struct) for number, struct in enumerate(structs)]
