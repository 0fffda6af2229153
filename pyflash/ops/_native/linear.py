"""Linear on the CPU core, and the cache of packed weights.

A packed copy is only used by `linear_cached_fwd`, which runs with gradients off. It belongs to a storage and dies with it
(a weak reference to the tensor itself would forbid torch.utils.swap_tensors); its key is where and how the weight lies in
memory, its version and a fingerprint of its values read on every call, because `p.data.mul_()` leaves the version alone.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict

import torch

from pyflash import _cpu
from pyflash.ops._native import DTYPES, in_large_pages
from pyflash.ops._native.activation import ACTIVATION_IDS, activation_bwd

FINGERPRINT_SAMPLES = 1024  # places; a weight of no more elements is read whole
MIN_CACHED = 4096  # elements; fewer are packed in less time than it takes to tell that they are unchanged
CACHE_BYTES = int(os.environ.get("PYFLASH_CACHE_BYTES", 1 << 30))


class PackedCache:
    """Packed weights, least recently used first. Safe to call from any thread."""

    def __init__(self, limit: int):
        self.limit, self.bytes = limit, 0
        self._lock = threading.RLock()  # a finalizer may run while this thread holds it
        self._entries: OrderedDict[tuple, tuple[tuple, tuple, torch.Tensor]] = OrderedDict()

    def __len__(self):
        return len(self._entries)

    def get(self, weight: torch.Tensor) -> torch.Tensor:
        """The panels of `weight` [N, K], packed now unless they are here and the weight is unchanged."""
        if weight.is_inference():  # has no version
            return pack(weight)
        place = (weight.data_ptr(), weight.shape, weight.stride(), weight.dtype, _cpu.isa())
        return self.find(place, (weight._version, fingerprint(weight)), (weight,), lambda: pack(weight))

    def find(self, place: tuple, state: tuple, weights: tuple, make) -> torch.Tensor:
        """What `make` gives for the weights that lie at `place`, from before if their state was the same."""
        with self._lock:
            entry = self._entries.get(place)
            if entry is not None and entry[1] == state and all(owner() is not None for owner in entry[0]):
                self._entries.move_to_end(place)
                return entry[2]
        packed = make()
        owners = tuple(
            weakref.ref(weight.untyped_storage(), lambda ref: self._drop(place, ref)) for weight in weights
        )  # fmt: skip
        with self._lock:
            self._drop(place)
            if packed.nbytes <= self.limit:
                self._entries[place] = (owners, state, packed)
                self.bytes += packed.nbytes
                while self.bytes > self.limit:
                    self._drop(next(iter(self._entries)))
        return packed

    def _drop(self, place, owner=None):
        with self._lock:
            entry = self._entries.get(place)
            if entry is not None and (owner is None or any(owner is one for one in entry[0])):
                del self._entries[place]
                self.bytes -= entry[2].nbytes

    def clear(self):
        with self._lock:
            self._entries.clear()
            self.bytes = 0


cache = PackedCache(CACHE_BYTES)


def fingerprint(weight: torch.Tensor) -> int:
    """A hash of the bits at FINGERPRINT_SAMPLES places of a matrix."""
    rows, columns = weight.shape
    return _cpu.fingerprint(
        weight.data_ptr(), rows, columns, *weight.stride(), FINGERPRINT_SAMPLES, DTYPES[weight.dtype]
    )


def pack(weight: torch.Tensor) -> torch.Tensor:
    (n, k), dtype, threads = weight.shape, DTYPES[weight.dtype], torch.get_num_threads()
    packed = torch.empty(_cpu.linear_sizes(0, n, k, 1, 1, False, dtype, threads)[0], dtype=torch.uint8, device="cpu")
    _cpu.linear_pack(weight.data_ptr(), *weight.stride(), packed.data_ptr(), n, k, dtype, threads)
    return packed


_KEPT_BYTES = 32 << 20
_kept = threading.local()


def _workspace(size: int, purpose: str = "gemm") -> torch.Tensor:
    """Memory for one call of this thread, kept for the next one unless it is large: the C library would give it back to
    the system, and touching new pages costs more than what is written to them."""
    if size > _KEPT_BYTES:
        return in_large_pages(torch.empty(size, dtype=torch.uint8, device="cpu"))
    memory = getattr(_kept, purpose, None)
    if memory is None or memory.numel() < size:
        memory = torch.empty(size, dtype=torch.uint8, device="cpu")
        setattr(_kept, purpose, memory)
    return memory


def _run(x, weight, packed, bias, activation, y, preact):
    (m, k), n, dtype, threads = x.shape, weight.shape[0], DTYPES[x.dtype], torch.get_num_threads()
    _, size = _cpu.linear_sizes(m, n, k, x.stride(1), weight.stride(1), packed is not None, dtype, threads)
    workspace = _workspace(size)
    _cpu.linear_fwd(
        x.data_ptr(), *x.stride(), weight.data_ptr(), *weight.stride(), 0 if packed is None else packed.data_ptr(),
        0 if bias is None else bias.data_ptr(), bias.stride(0) if bias is not None and bias.dim() == 2 else 0,
        y.data_ptr(), 0 if preact is None else preact.data_ptr(), workspace.data_ptr(), m, n, k,
        ACTIVATION_IDS[activation] if activation else -1, dtype, threads,
    )  # fmt: skip


def linear_fwd(x, weight, bias, activation, save_preact, y, preact):
    _run(x, weight, None, bias, activation, y, preact if save_preact else None)


def linear_cached_fwd(x, weight, bias, activation, y):
    packed = cache.get(weight) if weight.numel() >= MIN_CACHED else None
    _run(x, weight, packed, bias, activation, y, None)


def matmul(a, b, c):
    _run(a, b.t(), None, None, "", c, None)


def linear_bwd(dy, x, weight, saved, activation, need_dx, need_dweight, need_dbias, dx, dweight, dbias):
    dz = dy
    if activation:
        dz = _workspace(dy.numel() * dy.element_size(), "dz")[: dy.numel() * dy.element_size()].view(dy.dtype)
        dz = dz.view(dy.shape)
        activation_bwd(dy.contiguous(), saved, activation, dz)
    if need_dx:
        matmul(dz, weight, dx)
    if need_dweight:
        matmul(dz.t(), x, dweight)
    if need_dbias:
        torch.sum(dz, 0, out=dbias)
