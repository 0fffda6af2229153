"""Which classes of transformers ours stand for, and their forwards: the same numbers, rounded where theirs are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D as TheirConv1D

import pyflash.functional as F
from pyflash.integrations._forms import Form
from pyflash.integrations._parts import GELU, HALVES, GELUTanh, Mish, Part, SiLU, gated
from pyflash.nn._fuse import activation_of
from pyflash.nn._twins import ORIGINALS, is_bare
from pyflash.nn.transformer import add_norm, feed_forward


class LlamaRMSNorm(Part):
    """RMSNorm in float32, rounded to the input's type before the weight multiplies it."""

    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        dtype = hidden_states.dtype
        if dtype in HALVES or dtype == self.weight.dtype == torch.float32:
            return _normed(self, hidden_states)
        return super().forward(hidden_states)  # of float64 theirs computes in float32


class T5LayerNorm(Part):
    """RMSNorm in float32, rounded to a half type of the weight before this multiplies it."""

    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        dtype = hidden_states.dtype
        if dtype == self.weight.dtype and (dtype == torch.float32 or dtype in HALVES):
            return _normed(self, hidden_states)
        return super().forward(hidden_states)


class GemmaRMSNorm(Part):
    """RMSNorm in float32 with the weight 1 + weight, rounded at the end."""

    weight: Tensor
    eps: float

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32 and x.dtype not in HALVES:
            return super().forward(x)  # of float64 theirs computes in float32
        return F.rms_norm(x, self.weight.shape, 1.0 + self.weight.float(), self.eps).to(x.dtype)


class Conv1D(Part):
    """A Linear whose weight is [in, out]."""

    weight: Tensor
    bias: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.t(), self.bias)


class GPT2MLP(Part):
    """c_proj(act(c_fc(x))): the activation is in the product's kernel."""

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        fused, c_fc = activation_of(self.act), self.c_fc
        if fused is None or ORIGINALS.get(type(c_fc)) is not TheirConv1D or not is_bare(c_fc, type(c_fc)):
            return super().forward(hidden_states)
        hidden = F.linear_act(hidden_states, c_fc.weight.t(), c_fc.bias, fused)
        return self.dropout(self.c_proj(hidden))


class BertIntermediate(Part):
    """intermediate_act_fn(dense(x)): the activation is in the product's kernel."""

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        return feed_forward(hidden_states, self.dense, self.intermediate_act_fn, _same, _same)


class BertOutput(Part):
    """LayerNorm(dropout(dense(x)) + input_tensor): the addition is in the norm's kernel."""

    def forward(self: Any, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        return add_norm(self.dropout(self.dense(hidden_states)), input_tensor, self.LayerNorm)[0]


class CLIPMLP(Part):
    """fc2(activation_fn(fc1(x))): the activation is in the product's kernel."""

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        return feed_forward(hidden_states, self.fc1, self.activation_fn, _same, self.fc2)


class LlamaMLP(Part):
    """down_proj(act_fn(gate_proj(x)) up_proj(x)): the activation is in the product of the two."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.down_proj(gated(x, self.gate_proj, self.up_proj, self.act_fn))


class T5DenseActDense(Part):
    """wo(dropout(act(wi(x)))), in wo's type: the activation is in the product's kernel."""

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        return feed_forward(hidden_states, self.wi, self.act, self.dropout, _in_its_type(self.wo))


class T5DenseGatedActDense(Part):
    """wo(dropout(act(wi_0(x)) wi_1(x))), in wo's type: the activation is in the product of the two."""

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        hidden = self.dropout(gated(hidden_states, self.wi_0, self.wi_1, self.act))
        return _in_its_type(self.wo)(hidden)


def _normed(norm: Any, x: Tensor) -> Tensor:
    """RMSNorm in float32; of a half type it is rounded before the weight multiplies it."""
    weight, eps = norm.weight, norm.variance_epsilon
    if x.dtype == torch.float32:
        return F.rms_norm(x, weight.shape, weight, eps)
    return weight * F.rms_norm(x, weight.shape, None, eps).to(x.dtype)


def _same(x: Tensor) -> Tensor:
    return x


def _in_its_type(linear: Any):
    """The call of a Linear, which may be kept in float32, or in integers, in a model of another type."""
    weight = linear.weight
    if not isinstance(weight, Tensor) or weight.dtype == torch.int8:
        return linear
    return lambda x: linear(x.to(weight.dtype))


_MODELS = "transformers.models"
_RMS, _MLP = ("rms_norm",), ("gated_act",)
FORMS = (
    Form("transformers.activations:GELUActivation", GELU, ("gelu",), activation="gelu"),
    Form("transformers.activations:NewGELUActivation", GELUTanh, ("gelu_tanh",), activation="gelu_tanh"),
    Form("transformers.activations:AccurateGELUActivation", GELUTanh, ("gelu_tanh",), activation="gelu_tanh"),
    Form("transformers.activations:GELUTanh", GELUTanh, ("gelu_tanh",), activation="gelu_tanh"),
    Form("transformers.activations:SiLUActivation", SiLU, ("silu",), activation="silu"),
    Form("transformers.activations:MishActivation", Mish, ("mish",), activation="mish"),
    Form("transformers.pytorch_utils:Conv1D", Conv1D, ("linear",)),
    Form(f"{_MODELS}.llama.modeling_llama:LlamaRMSNorm", LlamaRMSNorm, _RMS, ("RMSNorm",)),
    Form(f"{_MODELS}.t5.modeling_t5:T5LayerNorm", T5LayerNorm, _RMS, ("LayerNorm", "RMSNorm")),
    Form(f"{_MODELS}.gemma.modeling_gemma:GemmaRMSNorm", GemmaRMSNorm, _RMS, ("RMSNorm",)),
    Form(f"{_MODELS}.llama.modeling_llama:LlamaMLP", LlamaMLP, _MLP, ("MLP",)),
    Form(f"{_MODELS}.t5.modeling_t5:T5DenseActDense", T5DenseActDense, ("linear_act",), ("DenseActDense",)),
    Form(f"{_MODELS}.t5.modeling_t5:T5DenseGatedActDense", T5DenseGatedActDense, _MLP, ("DenseGatedActDense",)),
    Form(f"{_MODELS}.gpt2.modeling_gpt2:GPT2MLP", GPT2MLP, ("linear_act",), ("MLP",)),
    Form(f"{_MODELS}.bert.modeling_bert:BertIntermediate", BertIntermediate, ("linear_act",), ("Intermediate",)),
    Form(f"{_MODELS}.bert.modeling_bert:BertOutput", BertOutput, ("add_layer_norm",), ("Output",)),
    Form(f"{_MODELS}.clip.modeling_clip:CLIPMLP", CLIPMLP, ("linear_act",), ("MLP",)),
)
