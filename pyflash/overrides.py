"""overrides: torch.nn.functional calls of any code go to pyflash.functional, inside a `with` block."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode

import pyflash.functional as ours


def _layers(function, data, *args, **options):
    """torch.lstm and its kin, what nn.LSTM calls: (input, hx, params, has_biases, num_layers, dropout, train,
    bidirectional, batch_first), or with batch_sizes before hx and without batch_first."""
    is_packed = isinstance(args[2], (list, tuple))  # params
    if is_packed:
        data, args = PackedSequence(data, args[0]), (*args[1:], False)
    hx, params, _, _, dropout, training, bidirectional, batch_first = args
    output, states = function(
        data, hx, params, bidirectional=bidirectional, batch_first=batch_first, dropout=dropout, training=training,
        **options,
    )  # fmt: skip
    output = output.data if is_packed else output
    return (output, *states) if isinstance(states, tuple) else (output, states)


# F.tanh and F.sigmoid reach a mode as the tensor methods that they call.
_OURS = {
    F.linear: ours.linear,
    F.layer_norm: ours.layer_norm,
    F.dropout: ours.dropout,
    F.scaled_dot_product_attention: ours.scaled_dot_product_attention,
    F.multi_head_attention_forward: ours.multi_head_attention_forward,
    F.relu: ours.relu,
    torch.relu: ours.relu,
    torch.Tensor.relu: ours.relu,
    F.gelu: ours.gelu,
    F.silu: ours.silu,
    torch.tanh: ours.tanh,
    torch.Tensor.tanh: ours.tanh,
    torch.sigmoid: ours.sigmoid,
    torch.Tensor.sigmoid: ours.sigmoid,
    torch.lstm: partial(_layers, ours.lstm),
    torch.gru: partial(_layers, ours.gru),
    torch.rnn_tanh: partial(_layers, ours.rnn),
    torch.rnn_relu: partial(_layers, ours.rnn, nonlinearity="relu"),
    torch.lstm_cell: ours.lstm_cell,
    torch.gru_cell: ours.gru_cell,
    torch.rnn_tanh_cell: ours.rnn_cell,
    torch.rnn_relu_cell: partial(ours.rnn_cell, nonlinearity="relu"),
}


class overrides(TorchFunctionMode):
    """Context manager: calls of torch.nn.functional's linear, layer_norm, dropout, scaled_dot_product_attention,
    multi_head_attention_forward, relu, gelu, silu, tanh and sigmoid inside are ours, whoever makes them; so is what
    torch.nn's RNN, LSTM, GRU and their cells call.

    A torch function mode: nothing is patched, other threads see nothing, and it may be nested.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if kwargs and kwargs.get("out") is not None:
            return func(*args, **kwargs)  # our functions allocate their results
        return _OURS.get(func, func)(*args, **(kwargs or {}))
