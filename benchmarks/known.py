"""What the figures cannot say themselves: per operation the limit, the best known elsewhere, and why a gap is there.

The page that `report` writes takes its words from here and its numbers from the results.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gap:
    """Why rows fall short. Applies where `case` is part of the case's name and, if given, mode and dtype are equal."""

    case: str
    reason: str
    mode: str = ""
    dtype: str = ""

    def explains(self, row) -> bool:
        return self.case in row.case and self.mode in ("", row.mode) and self.dtype in ("", row.dtype)


@dataclass(frozen=True)
class Story:
    limit: str
    elsewhere: str
    gaps: tuple[Gap, ...] = ()


TWICE = Gap("", "the second derivative computes the backward again, in torch's operations", mode="double-backward")

STORIES = {
    "activation": Story(
        limit="Memory: one read and one write an element; out of cache a copy's time, and the pages of a new output.",
        elsewhere="torch's own vectorised loops; a compiler that fuses the activation into its producer beats any of them.",
        gaps=(
            TWICE,
            Gap("tiny", "what remains is Python: the check that sends a small call to torch"),
            Gap("small", "a call takes 17 to 80 us, and some microseconds of Python around it show, also where torch computes"),
            Gap("", "erf and tanh are polynomials of about 60 vector instructions here; where torch is as fast, `auto` leaves it to it"),
        ),
    ),
    "linear": Story(
        limit="FLOPs: 2 M N K a product, two products backward; small batches are bound by reading the weight.",
        elsewhere="MKL and oneDNN: 75 to 90% of the peak they use. MKL stays on 256-bit vectors on AMD, so on Zen 5 half"
        " of the peak is out of its reach; on Zen 4, whose 512-bit units are half as wide, nothing is.",
        gaps=(
            Gap("tiny", "what remains is Python: the check that sends a small call to torch"),
            Gap("1x", "one row is a matrix-vector product, bound by memory; torch's is nearer to it and `auto` takes it"),
            Gap("", "both are near the peak: at 90% of it nobody can be 1.2 times faster"),
        ),
    ),
    "layer_norm": Story(
        limit="Memory: x and y once, with a residual x, r, y and the sum once.",
        elsewhere="torch's kernel alone is at the limit out of cache; the separate sum is what fusing saves.",
        gaps=(
            TWICE,
            Gap("tiny", "what remains is Python"),
            Gap("256x1024", "in cache the kernel takes about 40 us; Python and the outputs' allocation are the rest"),
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
            Gap("decode", "the cache is read at 0.8 of the rate of a copy; at all of it 1.6 would just be reached"),
            Gap("dropout", "torch leaves its flash path for dropout, the more so the longer the sequence; at N=512 its"
                " explicit products already run at a quarter of the peak, so no kernel can be 12 times faster here"),
            Gap("", "the peak: softmax, rescaling and the packing of each tile take what is missing to it"),
        ),
    ),
    "rnn": Story(
        limit="FLOPs: 2 G H (I + H) a step and row, G gates; one row reads the recurrent matrix once a step: L2's bandwidth.",
        elsewhere="oneDNN's LSTM runs at 75 to 90% of the peak; GRU, tanh RNN, packed sequences and projections loop over"
        " time steps in torch's dispatcher.",
        gaps=(
            TWICE,
            Gap("T128 B1 ", "each core reads its half of the recurrent weights once a step (GRU 393 KB, RNN 131 KB) from L2, at"
                " 100 to 110 of the 118 GB/s that 32 bytes a cycle are; then the cores exchange h, which takes 55 ns where"
                " the hypervisor has put both in one part of the processor and 250 where it has not (RNN 0.27 and 0.35 ms)",
                mode="forward"),
            Gap("packed", "products alone, with neither activations nor copies of x, run at 93% of the peak; they and"
                " pack_padded_sequence, which the row holds on both sides, take GRU to about 2.5 times torch's speed and no further",
                mode="forward"),
            Gap("bidirectional", "at 85% of the peak; GRU at 2.5 times torch's speed would be past it", mode="forward"),
            Gap("LSTM", "oneDNN's kernel is as near to the peak as ours; one step with gradients is Python on both sides"),
            Gap("T128 B32 H256", "asked for from Zen 5, whose multiply-add units are twice as wide; on Zen 4 torch takes a third to"
                " half of the peak, so what is asked lies at the peak or past it"),
            Gap("", "a step for the few rows of a small batch cannot fill the multiply-add units"),
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
