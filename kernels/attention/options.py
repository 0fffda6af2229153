"""What an attention call is told beside its tensors. No Triton here: operators, references and kernels share it.

torch.library takes no tuples, so an operator's schema has the fields one by one, in this order. They are taken apart where
an operator is called, and put together where an implementation begins.
"""

from __future__ import annotations

from typing import NamedTuple

MAX_HEAD_DIM = 256  # of the kernels for GPUs, whose tiles hold whole rows


class Options(NamedTuple):
    dropout_p: float
    scale: float  # multiplies q.k
    softcap: float  # scores become softcap tanh(score / softcap); 0 is off
    window_left: int  # keys visible before and after the diagonal; negative is all of them
    window_right: int
    diagonal: int | None  # row i stands at key i + diagonal; None: the last row stands at the last key of its sequence

    def of_sequences(self) -> tuple:
        """As `attention_varlen`'s operators take them: each sequence has a diagonal of its own, from one corner or the other."""
        return *self[:-1], self.diagonal is None

    @classmethod
    def from_sequences(cls, *scalars) -> Options:
        *shared, bottom_right = scalars
        return cls(*shared, None if bottom_right else 0)

    def of_caches(self) -> tuple:
        """As `attention_decode`'s operator takes them: no dropout, and the last query stands at the last key."""
        return self[1:-1]

    @classmethod
    def from_caches(cls, *scalars) -> Options:
        return cls(0.0, *scalars, None)


# The same in the words of torch.library.
OF_CACHES = "float scale, float softcap, int window_left, int window_right"
OF_SEQUENCES = f"float dropout_p, {OF_CACHES}, bool bottom_right"
SCHEMA = f"float dropout_p, {OF_CACHES}, int diagonal"
