"""torch.nn's names, with ours where we have one: `import pyflash.nn as nn`.

Names that are not ours (Module, ModuleList, Embedding, ...) are torch.nn's own.
"""

import torch

from pyflash.nn.activation import GELU, MultiheadAttention, ReLU, Sigmoid, SiLU, Tanh
from pyflash.nn.container import Sequential
from pyflash.nn.dropout import Dropout
from pyflash.nn.linear import LazyLinear, Linear
from pyflash.nn.normalization import LayerNorm, RMSNorm
from pyflash.nn.positional import PositionalEncoding
from pyflash.nn.rnn import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
from pyflash.nn.transformer import (
    Transformer,
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
)

__all__ = [
    "GELU",
    "GRU",
    "LSTM",
    "RNN",
    "Dropout",
    "GRUCell",
    "LSTMCell",
    "LayerNorm",
    "LazyLinear",
    "Linear",
    "MultiheadAttention",
    "PositionalEncoding",
    "RMSNorm",
    "RNNCell",
    "ReLU",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Tanh",
    "Transformer",
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
]


def __getattr__(name: str):
    try:
        return getattr(torch.nn, name)
    except AttributeError:
        raise AttributeError(f"module 'pyflash.nn' has no attribute {name!r}, nor has torch.nn") from None


def __dir__():
    return sorted({*globals(), *dir(torch.nn)})
