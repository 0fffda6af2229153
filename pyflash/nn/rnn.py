"""RNN, LSTM, GRU and their cells, as torch.nn's.

The layers derive from torch.nn.RNNBase, not from torch.nn.LSTM: torch.compile breaks the graph at every subclass of the
three. So `isinstance(module, torch.nn.LSTM)` is False, and `pyflash.report` names such modules.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.nn.utils.rnn import PackedSequence

from pyflash.nn._twins import leaf, twin
from pyflash.ops.recurrent.cells import pair_of_states, step
from pyflash.ops.recurrent.layers import recurrent

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]


def _own(module: torch.nn.Module, names) -> list[Tensor]:
    """Parameters by name: parametrizations, weight_norm and functional_call give others in every call."""
    if is_dynamo_compiling():
        return [getattr(module, name) for name in names]
    own = module._parameters.get  # where most of them are still; getattr takes ten times as long to find one
    return [getattr(module, name) if (held := own(name)) is None else held for name in names]


class _Layers(torch.nn.RNNBase):
    def _arguments(self) -> dict:
        return {
            "params": _own(self, self._flat_weights_names),
            "bidirectional": self.bidirectional,
            "batch_first": self.batch_first,
            "dropout": self.dropout,
            "training": self.training,
        }


@twin("rnn", of=torch.nn.RNN)
@leaf
class RNN(_Layers):
    """Plain recurrent layers, as torch.nn.RNN; `lengths` as in `pyflash.functional.lstm`. Elman 1990."""

    def __init__(self, *args, **kwargs):
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        if len(args) > 3:
            self.nonlinearity, args = args[3], args[:3] + args[4:]
        else:
            self.nonlinearity = kwargs.pop("nonlinearity", "tanh")
        if self.nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{self.nonlinearity}'. Select from 'tanh' or 'relu'.")
        super().__init__(f"RNN_{self.nonlinearity.upper()}", *args, **kwargs)

    def forward(self, input: Tensor | PackedSequence, hx: Tensor | None = None, *, lengths: Tensor | None = None):
        return recurrent(self.mode.lower(), input, hx, lengths=lengths, **self._arguments())[:2]


@twin("lstm", of=torch.nn.LSTM)
@leaf
class LSTM(_Layers):
    """LSTM layers, as torch.nn.LSTM; `lengths` and `return_cells` as in `pyflash.functional.lstm`."""

    get_expected_cell_size = torch.nn.LSTM.get_expected_cell_size
    check_forward_args = torch.nn.LSTM.check_forward_args  # type: ignore[assignment]  # a pair of states, as torch's
    permute_hidden = torch.nn.LSTM.permute_hidden  # type: ignore[assignment]

    def __init__(self, *args, **kwargs):
        super().__init__("LSTM", *args, **kwargs)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | None = None,
        return_cells: bool = False,
    ):
        output, h_n, c_n, cells = recurrent(
            "lstm", input, hx, lengths=lengths, return_cells=return_cells, **self._arguments()
        )
        return (output, (h_n, c_n), cells) if return_cells else (output, (h_n, c_n))


@twin("gru", of=torch.nn.GRU)
@leaf
class GRU(_Layers):
    """GRU layers, as torch.nn.GRU; `lengths` as in `pyflash.functional.lstm`. Cho et al. 2014, arXiv:1406.1078."""

    def __init__(self, *args, **kwargs):
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        super().__init__("GRU", *args, **kwargs)

    def forward(self, input: Tensor | PackedSequence, hx: Tensor | None = None, *, lengths: Tensor | None = None):
        return recurrent("gru", input, hx, lengths=lengths, **self._arguments())[:2]


def _weights_of(cell: torch.nn.RNNCellBase):
    """Its parameters, None for biases that it has not."""
    own = cell._parameters
    try:
        return own["weight_ih"], own["weight_hh"], own["bias_ih"], own["bias_hh"]
    except KeyError:  # parametrized, or no parameter any more
        return cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh


def _is_usual(input, *states) -> bool:
    """A batch, and states of it: nothing is to be made of them."""
    if input.dim() != 2:
        return False
    for state in states:
        if type(state) is not Tensor or state.dim() != 2:
            return False
    return True


def _rows(module, input, states):
    """input and the states as [B, features], zeros for states that are not given; and whether input has a batch."""
    name = type(module).__name__
    if input.dim() not in (1, 2):
        raise ValueError(f"{name}: Expected input to be 1D or 2D, got {input.dim()}D instead")
    for i, state in enumerate(states):
        if state is not None and state.dim() not in (1, 2):
            which = f"hx[{i}]" if len(states) > 1 else "hidden"
            raise ValueError(f"{name}: Expected {which} to be 1D or 2D, got {state.dim()}D instead")
    is_batched = input.dim() == 2
    if not is_batched:
        input, states = input.unsqueeze(0), [s if s is None else s.unsqueeze(0) for s in states]
    if states[0] is None:
        zeros = torch.zeros(input.shape[0], module.hidden_size, dtype=input.dtype, device=input.device)
        states = [zeros for _ in states]
    return input, states, is_batched


@twin("rnn_cell")
@leaf
class RNNCell(torch.nn.RNNCell):
    """One step of a plain recurrent layer, as torch.nn.RNNCell."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        cell = f"rnn_{self.nonlinearity}"
        if _is_usual(input, hx):
            return step(cell, input, hx, None, *_weights_of(self))[0]
        input, (h,), is_batched = _rows(self, input, (hx,))
        h, _ = step(cell, input, h, None, *_weights_of(self))
        return h if is_batched else h.squeeze(0)


@twin("lstm_cell")
@leaf
class LSTMCell(torch.nn.LSTMCell):
    """One step of an LSTM, as torch.nn.LSTMCell."""

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        if type(hx) is tuple and len(hx) == 2 and _is_usual(input, *hx):
            return step("lstm", input, *hx, *_weights_of(self))
        states = (None, None) if hx is None else pair_of_states(hx)
        input, (h, c), is_batched = _rows(self, input, states)
        h, c = step("lstm", input, h, c, *_weights_of(self))
        return (h, c) if is_batched else (h.squeeze(0), c.squeeze(0))


@twin("gru_cell")
@leaf
class GRUCell(torch.nn.GRUCell):
    """One step of a GRU, as torch.nn.GRUCell."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        if _is_usual(input, hx):
            return step("gru", input, hx, None, *_weights_of(self))[0]
        input, (h,), is_batched = _rows(self, input, (hx,))
        h, _ = step("gru", input, h, None, *_weights_of(self))
        return h if is_batched else h.squeeze(0)
