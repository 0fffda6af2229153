"""A Vision Transformer learns handwritten digits of 8x8 pixels, cut into 16 patches: torch.nn, and the same after pyflash.replace.

Same weights, same batches: the loss curves must agree, and more than 94% of the held-out digits must be read, or it exits
with 1. One picture shows both curves, held-out digits and which of their patches the others attend to, and the filters of the
patches. The digits come with scikit-learn: pip install 'pyflash[examples]'.

    python examples/digits_vit.py [--quick] [--epochs 30] [--out digits-vit-output]
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch
from torch import nn

import pyflash
from pyflash.cli import _digits, _learning, demo
from pyflash.show import picture

HELD_OUT = 360
EPOCHS, QUICK_EPOCHS = 30, 15
LEARNING_RATE = 4e-3
WANTED = (
    0.94  # of the held-out digits: it sees 16 vectors, and has to find out from 1437 pictures what lies beside what
)
SHOWN = 6  # digits whose attention is drawn
CONFIG = pyflash.models.ViTConfig(
    image_size=8, patch_size=2, width=48, depth=2, num_heads=4, num_classes=10, channels=1, hidden=96, pooling="mean"
)


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures [N, 1, 8, 8] of mean 0 and deviation 1, and what they show."""
    x, y = _digits.standardised()
    return x[:, None], y


def build() -> nn.Module:
    torch.manual_seed(_digits.SEED)
    return pyflash.models.ViT(CONFIG, nn=nn)


@torch.no_grad()
def attended(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """[layers, N, side, side]: how much of all patches' attention, which is 1 together, each patch of a picture is given."""
    inputs: list[torch.Tensor] = []
    layers = model.eval().encoder.layers
    hooks = [layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0])) for layer in layers]
    model(x)
    for hook in hooks:
        hook.remove()
    side = CONFIG.image_size // CONFIG.patch_size
    weights = [layer.self_attn(*3 * (layer.norm1(given),))[1] for layer, given in zip(layers, inputs)]
    return torch.stack([of_layer.mean(1) for of_layer in weights]).unflatten(-1, (side, side))


def draw(stock: demo.Run, ours: demo.Run, model: nn.Module, pictures: torch.Tensor, path: Path) -> str:
    def attention(axes):
        maps = (
            attended(model, pictures).repeat_interleave(CONFIG.patch_size, -1).repeat_interleave(CONFIG.patch_size, -2)
        )
        shown = (pictures - pictures.min()) / (pictures.max() - pictures.min())
        maps = maps / maps.amax((1, 2, 3), keepdim=True)
        axes.imshow(
            _digits.mosaic(torch.cat((shown[:, 0], *maps)), len(pictures)).numpy(), cmap="Blues", vmin=0, vmax=1
        )
        axes.set(title="Held-out digits, and which patches are attended to in each layer")
        axes.axis("off")

    def patches(axes):
        filters = model.patches.weight.detach()[:, 0]
        largest = filters.abs().max()
        axes.imshow(_digits.mosaic(filters, 8).numpy(), cmap="RdBu", vmin=-largest, vmax=largest)
        axes.set(title=f"Filters of the patches; {ours.held_out:.1%} are read")
        axes.axis("off")

    return picture.draw(
        path,
        [partial(_learning.draw_curves, stock=stock, ours=ours), attention, patches],
        (17, 4.5),
        "examples",
        one_scale=False,
    )


def run(epochs: int, out: Path) -> int:
    learned, held_out = _digits.split(*digits(), HELD_OUT)
    stock, (ours, changed) = build(), demo.replace(build())
    parameters = sum(parameter.numel() for parameter in stock.parameters())
    print(f"ViT, {parameters:,} parameters, learns from {len(learned[0])} digits; {HELD_OUT} are held out")
    demo.print_replaced(ours, changed)
    print(pyflash.report(ours, example_inputs=learned[0][: _digits.BATCH]))
    stock_run, our_run = _digits.train_both(stock, ours, learned, held_out, epochs, LEARNING_RATE)
    print(f"  torch.nn took {stock_run.seconds / our_run.seconds:.2f} times as long")
    print(draw(stock_run, our_run, ours, held_out[0][:SHOWN], out / "digits-vit.png"))
    found = _learning.failures(stock_run, our_run, changed.total(), WANTED)
    return _learning.verdict(found)


def main(arguments: list[str] | None = None) -> int:
    return _learning.command(arguments, __doc__, run, "epochs", EPOCHS, QUICK_EPOCHS, "digits-vit-output")


if __name__ == "__main__":
    sys.exit(main())
