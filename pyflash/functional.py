"""torch.nn.functional's names and signatures, and the fused operations beside them."""

from pyflash.ops.activation import gelu, relu, sigmoid, silu, tanh
from pyflash.ops.attention import attention, scaled_dot_product_attention
from pyflash.ops.attention_decode import attention_decode
from pyflash.ops.attention_varlen import attention_varlen
from pyflash.ops.attention_weights import attention_weights
from pyflash.ops.dropout import dropout
from pyflash.ops.layer_norm import add_layer_norm, layer_norm
from pyflash.ops.linear import linear, linear_act
from pyflash.ops.multi_head_attention import multi_head_attention_forward
from pyflash.ops.recurrent import gru, lstm, rnn
from pyflash.ops.rnn_cell import gru_cell, lstm_cell, rnn_cell

__all__ = [
    "add_layer_norm", "attention", "attention_decode", "attention_varlen", "attention_weights", "dropout", "gelu",
    "gru", "gru_cell", "layer_norm", "linear", "linear_act", "lstm", "lstm_cell", "multi_head_attention_forward", "relu", "rnn", "rnn_cell",
    "scaled_dot_product_attention", "sigmoid", "silu", "tanh",
]  # fmt: skip
