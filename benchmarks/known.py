"""What the figures cannot say themselves: per operation the limit, the best known elsewhere, and why a gap is there.

The page that `report` writes takes its words from here and its numbers from the results.
"""

from __future__ import annotations

from dataclasses import dataclass

ZEN_4, ZEN_5, AMX = ("zen4",), ("zen5",), ("amx",)


@dataclass(frozen=True)
class Gap:
    """Why rows fall short. Applies where `case` is part of the case's name and, if given, mode and dtype are equal.

    Args:
        families: the processors (Machine.family) of which it is known; empty where it holds on any.
    """

    case: str
    reason: str
    mode: str = ""
    dtype: str = ""
    families: tuple[str, ...] = ()

    def explains(self, row, machine) -> bool:
        return (
            self.case in row.case
            and self.mode in ("", row.mode)
            and self.dtype in ("", row.dtype)
            and (not self.families or machine.family in self.families)
        )


@dataclass(frozen=True)
class Story:
    limit: str
    elsewhere: str
    gaps: tuple[Gap, ...] = ()


TWICE = Gap("", "the second derivative computes the backward again, in torch's operations", mode="double-backward")
TINY = Gap("tiny", "what remains is Python: the check that sends a small call to torch")

STORIES = {
    "activation": Story(
        limit="Memory: one read and one write an element; out of cache a copy's time, and the pages of a new output.",
        elsewhere="torch's own vectorised loops; a compiler that fuses the activation into its producer beats any of them.",
        gaps=(
            TWICE,
            TINY,
            Gap("small", "a call takes 17 to 80 us, and some microseconds of Python around it show, also where torch computes",
                families=ZEN_4 + AMX),
            Gap("small", "so short a call that the Python around it shows, also where torch computes"),
            Gap("4096x3072", "the output's pages are new at every call, which a copy into memory that is there does not pay"),
            Gap("", "erf and tanh are polynomials of about 60 vector instructions here; where torch is as fast, `auto` leaves it to it"),
        ),
    ),
    "linear": Story(
        limit="FLOPs: 2 M N K a product, two products backward; small batches are bound by reading the weight.",
        elsewhere="MKL and oneDNN: 75 to 90% of the peak they use. MKL stays on 256-bit vectors on AMD, so on Zen 5 half"
        " of the peak is out of its reach; on Zen 4, whose 512-bit units are half as wide, nothing is.",
        gaps=(
            TWICE,
            TINY,
            Gap("1x", "one row is a matrix-vector product, bound by memory; torch's is nearer to it and `auto` takes it"),
            Gap("", "the matrix units (AMX) compute bfloat16, and our kernels do not use them; `auto` takes torch's",
                dtype="bfloat16", families=AMX),
            Gap("", "widening bfloat16 to float32 takes the time that the dot product would save; `auto` takes torch's",
                dtype="bfloat16"),
            Gap("", "both are near the peak, and neither side's product is far from the other's"),
        ),
    ),
    "layer_norm": Story(
        limit="Memory: x and y once, with a residual x, r, y and the sum once.",
        elsewhere="torch's kernel alone is at the limit out of cache; the separate sum is what fusing saves.",
        gaps=(
            TWICE,
            TINY,
            Gap("256x1024", "in cache the kernel takes about 40 us; Python and the outputs' allocation are the rest",
                families=ZEN_4 + AMX),
            Gap("", "the sums over rows for the weight's and bias's gradients; where the C library puts the output, in or out of cache"),
        ),
    ),
    "dropout": Story(
        limit="Memory, and ten rounds of Philox for every four elements.",
        elsewhere="torch draws its mask one element after another on one thread.",
        gaps=(Gap("", "the page faults of a fresh output, which torch pays as well"),),
    ),
    "attention": Story(
        limit="FLOPs: 4 N^2 D a head forward, 10 backward, half of it causal; one query reads the cache once: memory.",
        elsewhere="On GPUs FlashAttention-3 reports 75% of an H100's bfloat16 peak forward (Shah et al. 2024). On CPUs"
        " torch's flash kernel calls MKL for its products and reaches half of the peak.",
        gaps=(
            TWICE,
            Gap("", "the peak is that of the matrix units (AMX), which our kernels do not use; `auto` takes torch's",
                dtype="bfloat16", families=AMX),
            Gap("dropout", "a random number for each score: ten rounds of Philox for every four, forward and backward"),
            Gap("", "softmax, rescaling and the packing of each tile take what is missing to the peak"),
        ),
    ),
    "rnn": Story(
        limit="FLOPs: 2 G H (I + H) a step and row, G gates; one row reads the recurrent matrix once a step: L2's bandwidth.",
        elsewhere="oneDNN's LSTM runs at 75 to 90% of the peak; GRU, tanh RNN, packed sequences and projections loop over"
        " time steps in torch's dispatcher.",
        gaps=(
            TWICE,
            Gap("T1 B", "a single step: Python, and weights read once from wherever they lie"),
            Gap("T128 B1 ", "each core reads its half of the recurrent weights once a step (GRU 393 KB, RNN 131 KB) from L2, at"
                " 100 to 110 of the 118 GB/s that 32 bytes a cycle are; then the cores exchange h, which takes 55 ns where"
                " the hypervisor has put both in one part of the processor and 250 where it has not (RNN 0.27 and 0.35 ms)",
                mode="forward", families=ZEN_4),
            Gap("packed", "products alone, with neither activations nor copies of x, run at 93% of the peak; the rest is they and"
                " pack_padded_sequence, which the row holds on both sides", mode="forward", families=ZEN_4),
            *(Gap(few, "a step for the few rows of a small batch, or of a narrow layer, cannot fill the multiply-add units: it"
                  " reads the recurrent weights once for each") for few in ("B1 ", "B8 ", "H64")),
            Gap("LSTM", "oneDNN's kernel is as near to the peak as ours; one step with gradients is Python on both sides"),
            Gap("", "torch's kernel is as near to the peak, or the step's activations and copies are what is left"),
        ),
    ),
    "char_lm": Story(
        limit="The recurrent layers' FLOPs; the head's products and AdamW are a few percent.",
        elsewhere="as of the recurrent layers: oneDNN's LSTM near the peak, GRU step by step in torch's dispatcher.",
        gaps=(Gap("", "the LSTM's backward, where oneDNN is as near to the peak"),),
    ),
    "transformer": Story(
        limit="Linear's and attention's FLOPs together; the smaller the model, the more everything between them.",
        elsewhere="torch.compile gains nothing here on a CPU: it calls the same MKL and flash kernels.",
        gaps=(
            Gap("tiny", "what remains is Python, once for every operation inside"),
            Gap("import", "ours is torch's import and a little more"),
            Gap("", "the share of Linear, where torch is near the peak as well (Amdahl)"),
        ),
    ),
    "models": Story(
        limit="The FLOPs of their products; in inference at batch 1, everything between them.",
        elsewhere="Hugging Face's modules call torch.nn's Linear, LayerNorm and scaled_dot_product_attention; what else they"
        " compute is the same code on both sides.",
        gaps=(Gap("", "what `auto` gives to torch is torch's speed; the rest is code that replace does not reach"),),
    ),
}  # fmt: skip
