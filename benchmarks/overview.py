"""README's picture and short table: a few rows that a reader recognises, from the newest committed results."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import Machine
from benchmarks.rows import Row
from benchmarks.table import share

ROOT = Path(__file__).resolve().parent.parent
README, PICTURE = ROOT / "README.md", ROOT / "docs" / "overview.png"
BEGIN, END = "<!-- python -m benchmarks overview -->", "<!-- end of what it wrote -->"
AMD, INTEL = ("zen5", "zen4"), ("amx",)
COLOURS = {"AMD": "#2b6cb0", "Intel": "#90cdf4"}
LIMIT = "#1a202c"


@dataclass(frozen=True)
class Shown:
    """One row, in a reader's words: what it is, its shape, and the row of the suite behind it."""

    what: str
    shape: str
    operation: str
    case: str
    mode: str
    dtype: str = "float32"
    drawn: bool = True

    @property
    def key(self) -> tuple[str, ...]:
        return self.operation, self.case, self.mode, self.dtype, "pyflash"


SHOWN = (
    Shown("GPT training step, dropout 0.1", "4 layers, width 256, 16 x 256 tokens, AdamW",
          "transformer", "step 4 layers, dropout 0.1", "training"),
    Shown("GPT training step, no dropout", "the same", "transformer", "step 4 layers, no dropout", "training"),
    Shown("BERT, inference", "width 768, 2 layers, 8 x 128 tokens", "models", "BERT B8", "forward"),
    Shown("BERT training step", "the same, AdamW", "models", "BERT B8 step", "training"),
    Shown("Llama, inference", "width 1024, 2 layers, 128 tokens", "models", "Llama B1", "forward"),
    Shown("ViT training step", "B/16, 2 layers, 8 pictures, AdamW", "models", "ViT B8 step", "training", drawn=False),
    Shown("Whisper, inference", "base, 2 + 2 layers, 10 s of sound", "models", "Whisper B1", "forward"),
    Shown("attention, 2048 tokens", "8 heads of 64", "attention", "B1 H8 N2048 D64", "forward"),
    Shown("attention, 2048 tokens, causal, training", "8 heads of 64", "attention", "B1 H8 N2048 D64 causal", "training"),
    Shown("attention with dropout, training", "2 x 512 tokens, 8 heads of 64", "attention", "B2 H8 N512 D64 dropout",
          "training"),
    Shown("LSTM, one step", "256 units, batch 1", "rnn", "LSTM T1 B1 H256", "forward"),
    Shown("LSTM training, 128 steps", "256 units, batch 32", "rnn", "LSTM T128 B32 H256", "training", drawn=False),
    Shown("GRU, 128 steps", "256 units, batch 1", "rnn", "GRU T128 B1 H256", "forward"),
    Shown("Linear", "4096 rows, 256 to 1024", "linear", "4096x256x1024", "forward"),
    Shown("LayerNorm of a sum", "4096 x 1024", "layer_norm", "residual 4096x1024", "forward"),
    Shown("dropout", "4M elements", "dropout", "4M elements", "forward", drawn=False),
    Shown("bias, GELU and residual", "4096 x 4096", "bias_act_dropout_add", "bias gelu residual 4096x4096", "forward"),
    Shown("softmax", "4096 x 4096", "softmax", "softmax 4096x4096", "forward"),
    Shown("BatchNorm with ReLU, backward", "8 pictures, 64 x 56 x 56", "batch_norm", "8x64x56x56 NCHW relu", "backward",
          drawn=False),
    Shown("max pooling, training", "8 pictures, 64 x 112 x 112", "max_pool", "8x64x112x112 k3 s2", "training"),
    Shown("word embedding, training", "4096 words of 30522 x 768", "embedding", "words 4096 of 30522x768", "training"),
    Shown("rotary positions, training", "32 heads, 2048 tokens of 128", "rotary_embedding", "B1 H32 N2048 D128", "training",
          drawn=False),
    Shown("bilinear upsampling", "8 pictures, 64 x 64 x 64 to 128 x 128", "interpolate", "bilinear x2 8x64x64x64", "forward",
          drawn=False),
    Shown("GPT-2 training step: its Conv1D is not replaced", "2 layers, 8 x 128 tokens", "models", "GPT-2 B8 step",
          "training", drawn=False),
    Shown("3x3 convolution, channels last", "8 pictures, 128 x 28 x 28", "conv2d", "8x128x28 to 128 k3 channels_last", "forward"),
    Shown("depthwise 7x7 convolution, training", "8 pictures, 96 x 56 x 56", "conv2d", "8x96x56 depthwise k7", "training"),
    Shown("3x3 convolution", "8 pictures, 64 x 56 x 56", "conv2d", "8x64x56 to 64 k3", "forward", drawn=False),
    Shown("ResNet training step", "8 pictures", "models", "ResNet B8 step", "training"),
    Shown("ResNet, inference", "8 pictures", "models", "ResNet B8", "forward", drawn=False),
    Shown("Linear in bfloat16", "1024 rows, 512 to 2048", "linear", "1024x512x2048", "forward", "bfloat16", drawn=False),
    Shown("GroupNorm with SiLU", "2 x 320 x 64 x 64, channels last", "group_norm", "2x320x64x64 NHWC silu", "forward",
          drawn=False),
    Shown("nearest upsampling, channels last", "2 x 320 x 32 x 32", "interpolate", "nearest x2 2x320x32x32 channels_last",
          "forward", drawn=False),
    Shown("ReLU", "64 x 3072", "activation", "relu small 64x3072", "forward", drawn=False),
    Shown("LayerNorm backward", "4096 x 256", "layer_norm", "4096x256", "backward"),
    Shown("attention, second derivative", "8 x 128 tokens, 8 heads of 64", "attention", "twice B8 H8 N128 D64",
          "double-backward", drawn=False),
    Shown("a tiny Linear", "8 rows, 16 to 16", "linear", "tiny 8x16x16", "forward", drawn=False),
)  # fmt: skip

Found = tuple[Row, Machine, Path]
Result = tuple[Path, list[Row], list[Machine]]


def find(shown: Shown, results: list[Result], families: tuple[str, ...]) -> Found | None:
    """The newest result of a processor of these families in which the row has a ratio. Newest results come first."""
    for path, rows, machines in results:
        for row, machine in zip(rows, machines, strict=True):
            if row.key == shown.key and machine.family in families and row.ratio is not None:
                return row, machine, path
    return None


def found(results: list[Result]) -> list[tuple[Shown, Found | None, Found | None]]:
    """(what is shown, its row on AMD, its row on Intel); what neither has is left out."""
    every = [(shown, find(shown, results, AMD), find(shown, results, INTEL)) for shown in SHOWN]
    return [one for one in every if one[1] or one[2]]


def cell(one: Found | None) -> str:
    return "–" if one is None else f"{one[0].ratio:.2f}" + "*" * (one[0].served == "torch")


def generation(one: Found | None) -> str:
    return "" if one is None else f" ({one[1].generation})"


def markdown(results: list[Result]) -> str:
    lines = [
        "| what | shape | times torch on AMD | on Intel | share of the limit |",
        "| --- | --- | --- | --- | --- |",
    ]
    sources: dict[Path, Machine] = {}
    for shown, amd, intel in found(results):
        share_cell = "–" if amd is None or amd[0].share is None else share(amd[0])
        lines.append(f"| {shown.what} | {shown.shape} | {cell(amd)}{generation(amd)} | {cell(intel)} | {share_cell} |")
        sources.update({one[2]: one[1] for one in (amd, intel) if one})
    lines += [
        "",
        "\\*: `auto` gives it to torch; what is missing to 1 is what our call adds. –: not measured, or no limit known.",
        "",
    ]
    for path, machine in sorted(sources.items(), reverse=True):
        link = f"[{path.name}]({path.relative_to(ROOT).as_posix()})"
        lines.append(f"- {link}: {machine.title}, torch {machine.torch}, {machine.date[:10]}")
    return "\n".join(lines)


def written_into(text: str, table: str) -> str:
    """A document with the table between its marks. Raises ValueError where the marks are missing."""
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"no lines {BEGIN} and {END} to write between")
    return pattern.sub(lambda _: f"{BEGIN}\n{table}\n{END}", text, count=1)


def draw(results: list[Result], path: Path) -> None:
    """Two bars a row, AMD over Intel, and the limit of the AMD machine. Raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [one for one in found(results) if one[0].drawn]
    figure, axes = plt.subplots(figsize=(9, 0.42 * len(rows) + 1), layout="constrained")
    for place, (_, *pair) in enumerate(rows):
        for name, one, offset in zip(COLOURS, pair, (-0.2, 0.2), strict=True):
            if one is None:
                continue
            ratio = one[0].ratio
            axes.barh(place + offset, ratio - 1, left=1, height=0.38, color=COLOURS[name])
            limit = one[0].limit_ratio if name == "AMD" else None
            if limit is not None:
                axes.plot([limit] * 2, [place + offset - 0.22, place + offset + 0.22], color=LIMIT, linewidth=1.5)
            near = limit is not None and ratio < limit < 1.4 * ratio
            axes.annotate(
                f"{ratio:.2f}x", (limit if near else max(ratio, 1), place + offset), (3, 0), textcoords="offset points",
                va="center", fontsize=7,
            )  # fmt: skip
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xticks([0.5, 1, 2, 4, 8, 16], ["0.5x", "torch", "2x", "4x", "8x", "16x"], fontsize=8)
    is_mixed = len({amd[1].family for _, amd, _ in rows if amd}) > 1
    names = [shown.what + generation(amd) * is_mixed for shown, amd, _ in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.spines[["top", "right"]].set_visible(False)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in COLOURS.values()]
    handles.append(plt.Line2D([], [], color=LIMIT, linewidth=1.5))
    axes.legend(handles, ["AMD EPYC", "Intel Xeon", "what the AMD machine's peaks allow"], fontsize=8, frameon=False,
                loc="lower right")  # fmt: skip
    axes.set_title("Times the speed of torch in the same run, two cores, float32", loc="left", fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)
