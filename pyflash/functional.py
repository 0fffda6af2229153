"""torch.nn.functional's names and signatures, and the fused operations beside them."""

from pyflash.ops.attention.decode import attention_decode
from pyflash.ops.attention.dense import attention, scaled_dot_product_attention
from pyflash.ops.attention.multi_head import multi_head_attention_forward
from pyflash.ops.attention.varlen import attention_varlen
from pyflash.ops.attention.weights import attention_weights
from pyflash.ops.linear.linear import linear, linear_act
from pyflash.ops.norm.layer_norm import add_layer_norm, layer_norm
from pyflash.ops.norm.rms_norm import add_rms_norm, rms_norm
from pyflash.ops.pointwise.activation import gelu, relu, sigmoid, silu, tanh
from pyflash.ops.pointwise.dropout import dropout
from pyflash.ops.recurrent.cells import gru_cell, lstm_cell, rnn_cell
from pyflash.ops.recurrent.layers import gru, lstm, rnn

__all__ = [
    "add_layer_norm", "add_rms_norm", "attention", "attention_decode", "attention_varlen", "attention_weights", "dropout", "gelu",
    "gru", "gru_cell", "layer_norm", "linear", "linear_act", "lstm", "lstm_cell", "multi_head_attention_forward", "relu", "rms_norm", "rnn", "rnn_cell",
    "scaled_dot_product_attention", "sigmoid", "silu", "tanh",
]  # fmt: skip
