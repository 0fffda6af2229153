"""Weights of convolutions as a kernel reads them, Winograd's transforms among them, kept from call to call."""

from __future__ import annotations

import torch

from pyflash import _cpu
from pyflash.ops.core.layouts import CHANNELS_LAST
from pyflash.ops.core.packed_weights import packed_weights

# Packing less takes no longer than finding it again.
LEAST_BYTES = 64 << 10

# Places that the kernel is laid on, from which a call compares every element of its weight with what was packed, and not
# only a line of each 4 KB: reading it is then a fiftieth of the product.
WHOLE_PLACES = 1024


class Kept:
    """A packed weight, and what tells whether it still is the weight's."""

    __slots__ = ("fingerprints", "memory", "nbytes", "used")

    def __init__(self, weight, packed_bytes, threads):
        places = [(weight.data_ptr(), weight.shape[0], weight.nbytes // weight.shape[0])]
        self.fingerprints = _cpu.Fingerprints(places, threads)
        self.memory = torch.empty(packed_bytes, dtype=torch.uint8, device="cpu")
        self.nbytes = packed_bytes


def run_with_kept(form, weight, packed_bytes, places, run) -> bool:
    """Runs with the weight packed in an earlier call, or packs it for the later ones; False where it is not kept, and
    nothing ran.

    Args:
        form: what else the packed weight depends on.
        places: that the kernel is laid on.
        run: (memory, does it hold the packed weight) -> None, which fills it where it does not.
    """
    if packed_bytes < LEAST_BYTES or weight.is_inference():  # no version, and a change is not seen
        return False
    if not (
        weight.is_contiguous()
        or weight.is_contiguous(memory_format=CHANNELS_LAST.get(weight.dim(), torch.contiguous_format))
    ):
        return False
    threads = torch.get_num_threads()
    place = (_cpu.isa(), weight.data_ptr(), weight.dtype, weight.shape, weight.stride(), packed_bytes, form)
    made = []

    def make():
        made.append(Kept(weight, packed_bytes, threads))
        run(made[0].memory, False)
        return made[0]

    while True:
        kept = packed_weights.find(place, weight._version, (weight,), lambda: packed_bytes, make)
        if kept is None:
            return False
        if made:
            return True
        if kept.fingerprints.is_current(places >= WHOLE_PLACES, threads):
            run(kept.memory, True)
            return True
        packed_weights.drop(place)
