"""What the family offers in pyflash.functional, and which of torch's functions that stands for."""

from functools import partial

import torch

from pyflash.ops.core.public import stands_for
from pyflash.ops.recurrent.cells import gru_cell, lstm_cell, rnn_cell
from pyflash.ops.recurrent.layers import gru, lstm, rnn
from pyflash.ops.recurrent.torch_forms import as_torch_calls

__all__ = ["gru", "gru_cell", "lstm", "lstm_cell", "rnn", "rnn_cell"]

stands_for(
    {
        torch.lstm: partial(as_torch_calls, lstm),
        torch.gru: partial(as_torch_calls, gru),
        torch.rnn_tanh: partial(as_torch_calls, rnn),
        torch.rnn_relu: partial(as_torch_calls, rnn, nonlinearity="relu"),
        torch.lstm_cell: lstm_cell,
        torch.gru_cell: gru_cell,
        torch.rnn_tanh_cell: rnn_cell,
        torch.rnn_relu_cell: partial(rnn_cell, nonlinearity="relu"),
    }
)
