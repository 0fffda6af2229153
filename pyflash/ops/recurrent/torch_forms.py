"""torch.lstm and its kin, what nn.LSTM calls, in terms of our functions."""

from __future__ import annotations

from torch.nn.utils.rnn import PackedSequence


def as_torch_calls(function, data, *args, **options):
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
