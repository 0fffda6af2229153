"""Packed weights that outlive a call: those of convolutions and of the recurrent layers, while gradients are off.

What is packed is kept while there is room, and belongs to the storages of its weights: it dies with them (weak references
to the tensors themselves would forbid torch.utils.swap_tensors). Whoever comes when the room is taken is refused, and
packs nothing that would be thrown away at once: layers visited in turn would otherwise each push out the next. Only what
was not used once while another weight was refused PATIENCE times gives way to it.
"""

from __future__ import annotations

import os
import re
import threading
import weakref

PATIENCE = 16  # refusals; packing costs a few steps of a stream, so at most a fraction of these is lost
REMEMBERED = 1024  # weights that were refused

_UNITS = {"": 1, "b": 1} | {
    name: base**power
    for power, letter in enumerate("kmgt", 1)
    for name, base in ((letter + "b", 1000), (letter + "ib", 1024))
}


def bytes_of(name: str, text: str) -> int:
    """The bytes that the environment variable `name` gives as `text`: 1073741824, 512MB, 1GB, 1.5GiB."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *([a-z]*)", text.strip().lower())
    if match is None or match[2] not in _UNITS:
        raise ImportError(
            f"{name} is {text!r}, expected a number of bytes such as 1073741824, 512MB, 1GB or 1GiB (0: keep nothing)"
        )
    return int(float(match[1]) * _UNITS[match[2]]) if "." in match[1] else int(match[1]) * _UNITS[match[2]]


class PackedWeights:
    """Packed weights by the place of what they were made of. Safe to call from any thread.

    Those kept have `nbytes`, and `used`, which takes `refusals` whenever they are used.
    """

    def __init__(self, limit: int):
        self.limit, self.bytes, self.refusals = limit, 0, 0
        self._lock = threading.RLock()  # a finalizer may run while this thread holds it
        self._entries: dict[tuple, tuple] = {}  # place -> (owners, state, packed)
        self._refused: dict[tuple, tuple[int, int]] = {}  # place -> (how often, `refusals` at the first time)

    def __len__(self):
        return len(self._entries)

    def find(self, place: tuple, state: tuple, weights, size, make):
        """The packed form of the weights that lie at `place`: from before if their state was the same, or what `make`
        gives now. None where there is no room for it.

        size: () -> its bytes.
        """
        with self._lock:
            entry = self._entries.get(place)
            if entry is not None and entry[1] == state and all(owner() is not None for owner in entry[0]):
                entry[2].used = self.refusals
                return entry[2]
            self.drop(place)
            if not self._make_room(place, size()):
                return None
        packed = make()
        owners = tuple(
            weakref.ref(weight.untyped_storage(), lambda ref: self.drop(place, ref)) for weight in weights
        )  # fmt: skip
        with self._lock:
            self.drop(place)
            if self.bytes + packed.nbytes <= self.limit:  # another thread may have been faster
                packed.used = self.refusals
                self._entries[place] = (owners, state, packed)
                self.bytes += packed.nbytes
        return packed

    def _make_room(self, place, size) -> bool:
        excess = self.bytes + size - self.limit
        if excess > 0:
            self.refusals += 1
            times, first = self._refused.get(place, (0, self.refusals))
            idle = [] if times + 1 < PATIENCE else [p for p, entry in self._entries.items() if entry[2].used < first]
            if sum(self._entries[p][2].nbytes for p in idle) < excess:
                if len(self._refused) >= REMEMBERED:
                    self._refused.clear()
                self._refused[place] = (0, self.refusals + 1) if times + 1 >= PATIENCE else (times + 1, first)
                return False
            for p in sorted(idle, key=lambda p: self._entries[p][2].used):
                if self.bytes + size > self.limit:
                    self.drop(p)
        self._refused.pop(place, None)
        return True

    def drop(self, place, owner=None):
        with self._lock:
            entry = self._entries.get(place)
            if entry is not None and (owner is None or any(owner is one for one in entry[0])):
                del self._entries[place]
                self.bytes -= entry[2].nbytes

    def clear(self):
        with self._lock:
            self._entries.clear()
            self._refused.clear()
            self.bytes = 0


packed_weights = PackedWeights(bytes_of("PYFLASH_CACHE_BYTES", os.environ.get("PYFLASH_CACHE_BYTES", "1GiB")))
