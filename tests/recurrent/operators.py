"""Arguments of the family's operators, without the backend, for tests/frame/test_operators.py."""

import torch
from operator_arguments import saved


def recurrent(cell, *, projection=0, directions=1, layout="padded"):
    """Arguments of rnn_fwd: 3 steps of up to 4 sequences, 5 features, 6 hidden units."""
    gates, hidden, output = {"lstm": 4, "gru": 3}.get(cell, 1), 6, projection or 6
    x, rows, steps = torch.randn(3, 4, 5), None, None
    if layout == "packed":
        x, steps = torch.randn(8, 5), torch.tensor([4, 3, 1])
    elif layout == "ragged":
        x, rows, steps = torch.randn(4, 3, 5), torch.tensor([2, 0, 3, 1]), torch.tensor([3, 2, 2])
    weights = []
    for _ in range(directions):
        weights += [torch.randn(gates * hidden, 5), torch.randn(gates * hidden, output)]
        if layout != "ragged":  # there without biases
            weights += [torch.randn(gates * hidden), torch.randn(gates * hidden)]
        weights += [torch.randn(output, hidden)] if projection else []
    c_0 = torch.randn(directions, 4, hidden) if cell == "lstm" else None
    return x, torch.randn(directions, 4, output), c_0, weights, rows, steps, cell, layout == "ragged"


RECURRENT = (
    ("lstm", {}),
    ("lstm", {"projection": 2, "directions": 2, "layout": "ragged"}),
    ("gru", {"directions": 2, "layout": "packed"}),
    ("gru", {"layout": "ragged"}),
    ("rnn_tanh", {}),
    ("rnn_relu", {"layout": "packed"}),
)


def rnn_fwd():
    for i, (cell, options) in enumerate(RECURRENT):
        # gates past the end of a sequence are not defined
        yield *recurrent(cell, **options), i % 2 == 0, options.get("layout") != "ragged"


def rnn_bwd():
    for i, (cell, options) in enumerate(RECURRENT):
        for save_gates in (False, True):
            x, h_0, c_0, weights, rows, steps, *form = recurrent(cell, **options)
            y, h_n, c_n, cells, gates = saved("rnn_fwd", x, h_0, c_0, weights, rows, steps, *form, True, save_gates)
            douts = [torch.randn_like(y), torch.randn_like(h_n), None if c_0 is None else torch.randn_like(c_n), None]
            if save_gates:
                douts[1] = None
            elif c_0 is not None:
                douts[3] = torch.randn_like(cells)
            needs = [not save_gates or i % 2 == 0, True, c_0 is not None, *[True] * len(weights)]
            yield x, *douts, h_0, c_0, weights, rows, steps, y, cells, gates, *form, needs


OPERATORS = {
    "rnn_fwd": rnn_fwd,
    "rnn_cached_fwd": lambda: [
        (*recurrent("lstm", projection=2), True),
        (*recurrent("gru", layout="packed"), False),
    ],
    "rnn_step": lambda: [
        (torch.randn(3, 5), torch.randn(3, 4), None, [torch.randn(12, 5), torch.randn(12, 4)], "gru"),
        (
            torch.randn(3, 5),
            torch.randn(3, 4),
            torch.randn(3, 4),
            [torch.randn(16, 5), torch.randn(16, 4), torch.randn(16), torch.randn(16)],
            "lstm",
        ),
    ],
    "rnn_bwd": rnn_bwd,
}
