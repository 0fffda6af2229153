"""Dropout masks from Philox4x32-10, a function of the seed and the element's place only: the same on every backend.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

import triton
import triton.language as tl


@triton.jit
def elementwise_words(seed, block):
    """Four words per counter for blocks of 64 elements: word w at [block, lane] belongs to element 64 block + 16 w + lane.

    Word w of 16 neighbouring counters thus serves 16 neighbouring elements: vector loads on every device.
    """
    counter = block[:, None] * 16 + tl.arange(0, 16)[None, :]  # int64, [blocks, 16]
    low = (counter & 0xFFFFFFFF).to(tl.uint32)
    high = (counter >> 32).to(tl.uint32)
    zero = tl.zeros_like(low)
    return tl.philox(seed, low, high, zero, zero)


@triton.jit
def keep_tile(seed, drop_below, head, first_row, first_col, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Which probabilities of an attention tile stay, bool [ROWS, COLS]; first_col is a multiple of 4.

    Counter (col // 4, row, head, 0); its four words serve four neighbouring columns.
    """
    row = (first_row + tl.arange(0, ROWS)).to(tl.uint32)[:, None]
    quad = (first_col // 4 + tl.arange(0, COLS // 4)).to(tl.uint32)[None, :]
    zero = tl.zeros([ROWS, COLS // 4], tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, quad + zero, row + zero, head.to(tl.uint32) + zero, zero)
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))  # [..., i, j] is word 2 i + j
    return tl.reshape(words, [ROWS, COLS]) >= drop_below
