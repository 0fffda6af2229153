"""report: what a model's modules are, and what they take in a forward."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from helpers import use

import pyflash
import pyflash.nn as nn
from pyflash.auto import norm as layer_norm
from pyflash.nn._twins import ORIGINALS
from pyflash.ops.core import backends
from tests.frame.test_replace import Plain, transformer


def test_report():
    model = torch.nn.Sequential(transformer(), torch.nn.SyncBatchNorm(3), Plain(2, 2), nn.PositionalEncoding(4))
    assert pyflash.report(model).replaced == 0
    pyflash.replace(model, exclude=[torch.nn.TransformerEncoderLayer, "0.decoder.norm"])
    report = pyflash.report(model)
    rows = {row.name: row for row in report.rows}
    assert len(rows) == len(report.rows)
    assert report.replaced == sum(type(m) in ORIGINALS for m in model.modules())
    assert report.isinstance_changed == []
    assert rows["0.encoder.layers.0"].reason == rows["0.decoder.norm"].reason == "excluded"
    attention = rows["0.encoder.layers.0.self_attn"]
    assert attention.now == "pyflash.nn.MultiheadAttention" and attention.before == "torch.nn.MultiheadAttention"
    assert "bypassed in eval" in attention.reason
    assert "bypassed" not in rows["0.decoder.layers.0.self_attn"].reason
    assert rows["0.encoder.layers.0.self_attn.out_proj"].reason == "its MultiheadAttention reads the weights"
    assert rows["0.encoder.layers.0.self_attn.out_proj"].backend == "its parent's"
    assert rows["1"].reason == "no class of ours yet" and rows["3"].reason == "no counterpart in torch.nn"
    assert rows["2"].before == rows["2"].now
    if not backends.MISSING["cpu"]:
        assert rows["0.decoder.layers.0.linear1"].backend == "cpu"
        with use("torch"):
            assert pyflash.report(model[0].decoder.layers[0].linear1).rows[0].backend == "torch (asked for)"
    as_json = json.loads(report.to_json())
    assert as_json["replaced"] == report.replaced and len(as_json["modules"]) == len(rows)
    text = str(report)
    assert "0.encoder.layers.0.self_attn " in text and f"{report.replaced} of {len(rows)} modules" in text
    # a copy forgets why a module was left, and says what could become of it
    copied = {row.name: row.reason for row in pyflash.report(copy.deepcopy(model)).rows}
    assert copied["0.decoder.norm"] == "would become pyflash.nn.LayerNorm"


def test_report_of_an_out_proj_that_is_called():
    attend = nn.MultiheadAttention(8, 2)
    x = torch.randn(3, 2, 8)
    assert pyflash.report(attend).rows[1].reason == "its MultiheadAttention reads the weights"
    attend.out_proj.register_forward_hook(lambda m, i, o: None)
    assert pyflash.report(attend).rows[1].reason == ""
    with use("torch"):
        row = pyflash.report(attend, example_inputs=(x, x, x)).rows[1]
    assert row.name == "out_proj" and row.took[0]["operation"] == "linear"


def test_report_names_the_reason_of_a_fallback():
    model = pyflash.replace(torch.nn.Sequential(torch.nn.Tanh()).to("meta"))
    model.register_parameter("p", torch.nn.Parameter(torch.empty(1, device="meta")))
    assert pyflash.report(model).rows[0].backend == "torch (no kernel for meta tensors)"
    with use("cpu"):
        assert pyflash.report(model).rows[0].backend == "cpu would raise: cpu takes cpu tensors, not meta"


class Attends(torch.nn.Module):
    """A user's own attention, which calls torch's function."""

    def __init__(self):
        super().__init__()
        self.qkv = torch.nn.Linear(16, 48)
        self.identity = torch.nn.Identity()

    def forward(self, x):
        q, k, v = self.identity(self.qkv(x)).unflatten(-1, (3, 2, 8)).movedim(-3, 0).transpose(-2, -3)
        return F.scaled_dot_product_attention(q, k, v).transpose(-2, -3).flatten(-2)


@pytest.mark.skipif(bool(backends.MISSING["cpu"]), reason="no native module")
def test_report_of_a_forward():
    """What each module took, and why: small layers torch, large ones ours, fused ones their parent's."""
    model = torch.nn.ModuleDict(
        {
            "attend": Attends(), "norm": torch.nn.LayerNorm(16), "fused": torch.nn.Sequential(
                torch.nn.Linear(16, 16), torch.nn.GELU("tanh")), "unused": torch.nn.Linear(3, 3),
            "pair": torch.nn.Bilinear(1, 1, 1), "drop": torch.nn.Dropout(0.5),
        }
    )  # fmt: skip

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = model

        def forward(self, x, times=1):
            for _ in range(times):
                x = self.parts["drop"](self.parts["fused"](self.parts["norm"](self.parts["attend"](x))))
            return x

    model = pyflash.replace(Model().eval())
    before = pyflash.counts()
    x, many = torch.randn(2, 5, 16), torch.randn(40, 1024, 16)
    why, why_many = (
        layer_norm.rules("cpu", (rows, 16, False), x.dtype) for rows in (10, 40 * 1024)
    )  # of this processor
    generator, hooks = torch.get_rng_state(), [len(m._forward_hooks) for m in model.modules()]
    with use("auto"):
        report = pyflash.report(model, example_inputs=x)
        rows = {row.name.removeprefix("parts."): row for row in report.rows}
        assert rows["norm"].backend == "torch" and why and rows["norm"].reason == why
        assert rows["norm"].took == ({"operation": "layer_norm", "backend": "torch", "reason": why, "calls": 1},)
        assert rows["attend.qkv"].backend == "torch" and rows["drop"].backend == "none needed"
        assert "stays torch's" in rows["attend"].reason and rows["attend"].now == rows["attend"].before
        assert rows["fused.0"].took and rows["unused"].backend == "" and "not called" in rows["unused"].reason
        assert "attend.identity" not in rows
        again = pyflash.report(model, example_inputs={"x": x, "times": 3})
        assert next(row for row in again.rows if row.name.endswith("norm")).took[0]["calls"] == 3
        large = pyflash.report(model, example_inputs=(many,))
        assert next(row for row in large.rows if row.name.endswith("norm")).backend == ("torch" if why_many else "cpu")
    with use("cpu"):
        fused = {row.name: row for row in pyflash.report(model, example_inputs=x).rows}
        assert fused["parts.fused.0"].backend == "cpu" and fused["parts.fused.1"].reason == "fused into parts.fused.0"
        assert fused["parts.attend"].reason  # torch's function, whatever the backend
    assert torch.equal(torch.get_rng_state(), generator)
    assert [len(m._forward_hooks) for m in model.modules()] == hooks
    assert pyflash.counts() != before
    text = str(report)
    assert f"{why}\n" in text and "no class of ours yet: torch.nn.Bilinear (1)\n" in text
    assert "what could serve" not in text and "what could serve" in str(pyflash.report(model))
    as_json = json.loads(report.to_json())
    assert as_json["is_observed"] and as_json["modules"][0].keys() >= {
        "name",
        "before",
        "now",
        "backend",
        "reason",
        "took",
    }


def test_a_report_whose_forward_fails_leaves_nothing_behind():
    import sys

    profile = sys.getprofile()
    with pytest.raises(RuntimeError):
        pyflash.report(pyflash.replace(torch.nn.Linear(4, 4)), example_inputs=torch.ones(2, 3))
    assert sys.getprofile() is profile
