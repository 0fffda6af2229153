"""A recurrent encoder and decoder learn to write a date that they read in words as 1987-03-14: torch.nn, and the same after
pyflash.replace.

The dates are the calendar's, in six forms ("saturday, 14th of march 1987", "mar 14, 1987"), letter by letter. Same weights, same
batches: the loss curves must agree, and more than 95% of the held-out dates must be written without a mistake, or it exits with
1. The same model without attention, to which a text is the one state behind its last letter, is trained beside it. One picture
shows the curves and, of one date, which letters of the source each letter attends to (Luong et al. 2015, figure 7).

    python examples/seq2seq_dates.py [--quick] [--steps 1200] [--out seq2seq-dates-output]
"""

from __future__ import annotations

import calendar
import datetime
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

import pyflash
from pyflash.cli import _learning, demo
from pyflash.show import picture

STEPS, QUICK_STEPS = 1200, 700
BATCH, HELD_OUT = 64, 256
LEARNING_RATE = 8e-3
WANTED = 0.95  # of the held-out dates
SEED = 2
FIRST, LAST = datetime.date(1900, 1, 1), datetime.date(2099, 12, 31)
SHOWN = datetime.date(1987, 3, 14)

FORMS = (
    "{weekday}, {day}{th} of {month} {year}",
    "{day} {month} {year}",
    "{month} {day}, {year}",
    "{mon} {day}, {year}",
    "{weekday} the {day}{th}, {mon} {year}",
    "in {year}, on {month} {day}",
)
LETTERS = " ,0123456789abcdefghijklmnopqrstuvwxyz"
NUMBER_OF = {letter: i for i, letter in enumerate(LETTERS)}
START, END = 0, 1
WRITTEN = "0123456789-"  # behind START and END


def told(date: datetime.date, form: str) -> str:
    """The date in words."""
    th = "th" if date.day in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(date.day % 10, "th")
    month = calendar.month_name[date.month].lower()
    weekday = calendar.day_name[date.weekday()].lower()
    return form.format(weekday=weekday, day=date.day, th=th, month=month, mon=month[:3], year=date.year)


def encoded(texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, longest]: the numbers of the letters, and where there are any."""
    longest = max(map(len, texts))
    ids = torch.tensor([[NUMBER_OF[letter] for letter in text.ljust(longest)] for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
    return ids, mask


def targets_of(dates: list[datetime.date]) -> torch.Tensor:
    """[N, 11]: 1987-03-14 and the end."""
    return torch.tensor([[2 + WRITTEN.index(letter) for letter in date.isoformat()] + [END] for date in dates])


def calendar_days() -> tuple[list[datetime.date], list[datetime.date]]:
    """Those to learn from, and those that are held out, in an order of their own."""
    days = [FIRST + datetime.timedelta(n) for n in range((LAST - FIRST).days + 1)]
    order = torch.randperm(len(days), generator=torch.Generator().manual_seed(SEED)).tolist()
    days = [days[i] for i in order if days[i] != SHOWN]
    return days[HELD_OUT:], days[:HELD_OUT]


def batches(days: list[datetime.date], steps: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(ids, mask, targets) of dates, each in some form; the same every time."""
    generator = torch.Generator().manual_seed(SEED)
    for _ in range(steps):
        chosen = [days[i] for i in torch.randint(len(days), (BATCH,), generator=generator)]
        forms = torch.randint(len(FORMS), (BATCH,), generator=generator).tolist()
        yield *encoded([told(day, FORMS[form]) for day, form in zip(chosen, forms)]), targets_of(chosen)


def build(has_attention: bool = True) -> nn.Module:
    torch.manual_seed(SEED)
    config = pyflash.models.Seq2SeqConfig(
        len(LETTERS), 2 + len(WRITTEN), 64, cell="gru", has_attention=has_attention, start_token=START, end_token=END
    )
    return pyflash.models.Seq2Seq(config, nn=nn)


def without_mistake(model: nn.Module, days: list[datetime.date]) -> float:
    """The share of dates that are written as they should be, each told in one of the forms."""
    ids, mask = encoded([told(day, FORMS[i % len(FORMS)]) for i, day in enumerate(days)])
    wanted = targets_of(days)
    written = model.eval().generate(ids, wanted.shape[1], attention_mask=mask)[:, 1:]
    missing = wanted.shape[1] - written.shape[1]
    written = torch.nn.functional.pad(written, (0, missing), value=START)
    return (written == wanted).all(1).float().mean().item()


def train(name: str, model: nn.Module, learned, held_out, steps: int) -> demo.Run:
    def loss_of(batch):
        ids, mask, targets = batch
        return model(ids, targets=targets, attention_mask=mask)[1]

    return _learning.learn(
        name, model, batches(learned, steps), steps, LEARNING_RATE, loss_of, lambda: without_mistake(model, held_out)
    )


def draw(stock: demo.Run, ours: demo.Run, blind: demo.Run, model: nn.Module, path: Path) -> str:
    text, wanted = told(SHOWN, FORMS[0]), targets_of([SHOWN])
    begun = torch.cat((torch.full((1, 1), START), wanted[:, :-1]), 1)
    with torch.no_grad():
        weights = model.eval().attention_weights(encoded([text])[0], begun)[0]

    def curves(axes):
        _learning.draw_curves(axes, stock, ours)
        axes.semilogy(blind.losses, color="#718096", linewidth=1, alpha=0.7, label="without attention")

    def attention(axes):
        axes.imshow(weights[:-1].numpy(), cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(text)), text)
        axes.set_yticks(range(len(SHOWN.isoformat())), SHOWN.isoformat())
        axes.set(ylabel="written", xlabel="read", title="Which letters each letter attends to")

    return picture.draw(path, [curves, attention], (15, 4.5), "examples", one_scale=False)


def run(steps: int, out: Path) -> int:
    learned, held_out = calendar_days()
    stock, (ours, changed) = build(), demo.replace(build())
    parameters = sum(parameter.numel() for parameter in stock.parameters())
    print(
        f"Seq2Seq, {parameters:,} parameters, GRU with attention, learns to write {len(learned)} days in {len(FORMS)} forms;"
        f" {len(held_out)} are held out, and one to look at"
    )
    demo.print_replaced(ours, changed)
    stock_run, our_run = _learning.compared(
        train("torch.nn", stock, learned, held_out, steps), train("pyflash", ours, learned, held_out, steps)
    )
    print(f"  torch.nn took {stock_run.seconds / our_run.seconds:.2f} times as long")
    blind_run = train("without", demo.replace(build(has_attention=False))[0], learned, held_out, steps)
    print(f"  with attention {our_run.held_out:.1%} of the held-out dates are right, without {blind_run.held_out:.1%}")
    print(draw(stock_run, our_run, blind_run, ours, out / "seq2seq-dates.png"))
    does = "writes {} of the held-out dates without a mistake"
    found = _learning.failures(stock_run, our_run, changed.total(), WANTED, does)
    return _learning.verdict(found)


def main(arguments: list[str] | None = None) -> int:
    return _learning.command(arguments, __doc__, run, "steps", STEPS, QUICK_STEPS, "seq2seq-dates-output")


if __name__ == "__main__":
    sys.exit(main())
