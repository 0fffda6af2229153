"""Which backend serves a call.

A public function asks `choose` once. The answer is either the wish that goes into the operation ("auto" or a name, so a
compiled or exported graph carries it) or None: torch's own function is called, and the reason is counted for `explain`.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, get_num_threads, is_grad_enabled
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling

from pyflash.auto.processor import place
from pyflash.ops.core.backends import DEVICES, ORDER, Operation, _state, counts, fall_back, record, why_not
from pyflash.ops.core.checks import PLAIN_TYPES, device_type


def is_jit_tracing() -> bool:
    """torch.jit.trace records torch's operators, and would take what a kernel of ours writes for uninitialised memory."""
    return torch._C._get_tracing_state() is not None


def tracing_derivatives(tensors) -> bool:
    """torch.func transforms and forward-mode duals see torch operations, which have every rule."""
    return torch._C._are_functorch_transforms_active() or (
        forward_ad._current_level >= 0
        and any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)
    )


OURS = ()
_UNASKED = object()  # of a call that no rule was asked about


def are_usual(*tensors) -> bool:
    """Ordinary tensors on the CPU that nothing watches: of a call whose rules were asked (`Refused.holds` is False),
    nothing is left to choose."""
    for t in tensors:
        if t is not None and not (type(t) in PLAIN_TYPES and t.is_cpu and t.layout is torch.strided):
            return False
    return not (torch.is_autocast_enabled("cpu") or tracing_derivatives(tensors))


class Refused:
    """What `auto` said of calls that were alike in what is cheap to read. `holds` is the first thing that a public function
    asks: a look into this is all that a call of torch's costs.

    An answer is what is counted for a call of torch's; OURS where the call is ours; None where no rule says; or where it
    depends, a dictionary of these by (are gradients needed, is there one thread). A dictionary is held, not inherited from:
    torch.compile would watch one that it meets, and compile again when a call outside added to it.
    """

    LIMIT = 4096  # sizes of a process; sequences have many lengths
    FINER = 64  # of a size

    def __init__(self, operation: Operation, size_of, key_of=None, decides: int = 0, finer_of=None, is_coarse=None):
        """
        decides: which of the tensors the device and the type are read of.
        size_of: (are gradients needed, *tensors) -> what the rule takes as the size; None where they do not fit.
        key_of: (*tensors) -> what of them the rule depends on; None: the shape, type and device of the first.
        finer_of: (*tensors) -> what else it depends on where is_coarse(size) does not say that the key is enough: what the
            answers of most small calls need not be asked for.
        """
        self.operation, self.size_of, self.key_of, self.decides = operation, size_of, key_of, decides
        self.finer_of, self.is_coarse = finer_of, is_coarse
        self.answers: dict = {}
        _all_refused.append(self)

    def holds(self, x, *others) -> bool | None:
        """Does `auto` leave this call to torch? Then it is counted. None where the wish is another, while a graph is made,
        or for a subclass of Tensor: `choose` says more of those. False says that the rules, asked, gave it to our kernels."""
        # All of torch's calls pass here, and the shortest takes 1 us: what is asked is asked in line, 0.4 us of it.
        if _state.wish != "auto" or _state.twice or type(x) is not Tensor or is_dynamo_compiling():
            return None
        key_of = self.key_of
        try:
            key = (x.shape, x.dtype, x.is_cpu) if key_of is None else key_of(x, *others)
            counted = self.answers[key]
        except (KeyError, RuntimeError, AttributeError, TypeError):
            counted = self.answer(x, *others)
        else:
            if type(counted) is dict:
                counted = self._of_this(counted, x, *others)
        if counted:
            counts[counted] += 1
            return True
        return None if counted is None or is_jit_tracing() else False

    def answer(self, x, *others) -> tuple | None:
        """As `holds`, what would be counted, OURS or None, without counting it."""
        if _state.wish != "auto" or _state.twice or type(x) is not Tensor or is_dynamo_compiling():
            return None
        if is_jit_tracing():  # sizes are tensors then, and would be remembered
            return None
        try:
            key = (x.shape, x.dtype, x.is_cpu) if self.key_of is None else self.key_of(x, *others)
            found = self.answers.get(key, _UNASKED)
        except (RuntimeError, AttributeError, TypeError):
            # A NestedTensor has no shape, what is no tensor nothing of it, and what is not hashed is not looked up.
            return None
        if found is _UNASKED:
            if len(self.answers) >= self.LIMIT:
                self.answers.clear()
            is_enough = self.finer_of is None or self._is_enough(x, *others)
            found = self.answers[key] = self._ask(x, *others) if is_enough else {}
        return self._of_this(found, x, *others) if type(found) is dict else found

    def _is_enough(self, *tensors) -> bool:
        size = self.size_of(False, *tensors)
        return size is not None and self.is_coarse(size)

    def _of_this(self, answers: dict, *tensors) -> tuple | None:
        """The answer for a call with these tensors, of those that its key has: by (gradients, threads), or by what is finer."""
        if self.finer_of is None:
            return _of_call(answers, *tensors)
        try:
            finer = self.finer_of(*tensors)
        except (RuntimeError, AttributeError):  # without strides
            return None
        found = answers.get(finer, _UNASKED)
        if found is _UNASKED:
            if len(answers) >= self.FINER:
                answers.clear()
            found = answers[finer] = self._ask(*tensors)
        return _of_call(found, *tensors) if type(found) is dict else found

    def _ask(self, *tensors):
        x = tensors[self.decides]
        device = device_type(x)
        names = ("cpu",) if x.is_cpu else ORDER if x.is_cuda else ()
        places = [place(name) for name in names if not self.operation.unserved(name, device, x.dtype)]
        if not places or self.size_of(False, *tensors) is None:
            return None
        found = {}
        for training in (False, True):
            size = self.size_of(training, *tensors)
            for threads in ("one", "several"):
                first, *others = (
                    self.operation.rules.decide(here if here.is_gpu else here._replace(threads=threads), size, x.dtype)
                    for here in places
                )
                is_torchs = first and all(others)  # where a later one is faster than torch, `choose` says which
                left = (self.operation.name, "torch", first) if is_torchs else None
                found[training, threads == "one"] = left if first else OURS
        return found if len(set(found.values())) > 1 else found[False, True]


def _of_call(answers: dict, *tensors) -> tuple | None:
    """The answer for a call with these tensors, of those that depend on whether gradients are needed, and on the threads."""
    training = False
    if is_grad_enabled():
        for t in tensors:
            if isinstance(t, Tensor) and t.requires_grad:  # what is neither is torch's to refuse
                training = True
                break
    return answers[training, get_num_threads() == 1]


_all_refused: list[Refused] = []
follows_rules: list[MutableMapping] = []  # what others remember of the rules' answers


def forget_refused() -> None:
    """After a change of what the rules read: the instruction set, a table."""
    for answers in (*(refused.answers for refused in _all_refused), *follows_rules):
        answers.clear()


def _subclass_of(tensors) -> str:
    """ ", not DTensor": the class that makes these no tensors for a kernel, for the reason given."""
    kinds = {type(t).__name__ for t in tensors if isinstance(t, torch.Tensor)} - {"Tensor", "Parameter"}
    return f", not {' or '.join(sorted(kinds))}" if kinds else ""


def choose(
    operation: Operation,
    x: torch.Tensor,
    tensors=(),
    size: Any = None,
    refused: str = "",
    lacking: Mapping[str, str] | None = None,
    is_flat: bool = False,
    order: tuple[str, ...] = ORDER,
) -> str | None:
    """The wish to pass to the operation, or None: call torch's own function.

    Args:
        operation: whose kernels are asked for.
        x: the tensor whose device and dtype decide.
        tensors: the other tensors of the call.
        size: what the `auto` rules compare, a number or what `Operation.sizes` names; default the number of elements of `x`.
        refused: why no kernel of ours takes these arguments at all, when that is so.
        lacking: backend -> why it has no kernel for them, though others may.
        is_flat: gradients are needed, and they change with `x` in steps alone: inside `differentiated_twice` no rule is asked.
        order: of backends, which `auto` tries one after the other until it finds one that the rules prefer to torch.
    Raises:
        NotImplementedError: a backend asked for by name cannot serve the call.
    """
    wish, lacking = _state.wish, lacking or {}
    if refused:
        refused += _subclass_of((x, *tensors))
    if wish == "torch":
        record(operation.name, "torch", "asked for")
        return None
    if tracing_derivatives((x, *tensors)):
        record(operation.name, "torch", "torch.func transform or forward-mode derivative")
        return None
    if is_jit_tracing():
        record(operation.name, "torch", "torch.jit.trace")
        return None
    if torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export():
        return None  # ONNX has no operators of ours
    device = device_type(x)
    if wish != "auto":
        reason = refused or operation.unserved(wish, device, x.dtype) or lacking.get(wish, "")
        if reason:
            raise NotImplementedError(f'pyflash.{operation.name}: {reason}; use_backend("torch") serves it')
        record(operation.name, wish)
        return wish
    # An exported program serves sizes that are not known yet: a threshold would refuse those on its other side.
    is_asked = operation.rules is not None and not (is_flat and _state.twice) and not torch.compiler.is_exporting()
    reason, preferred = refused, ""
    for backend in order:
        if backend not in operation.dtypes or device not in DEVICES[backend] or (device == "cpu" and backend != "cpu"):
            continue
        why = refused or operation.unserved(backend, device, x.dtype) or lacking.get(backend, "")
        if why:
            reason = reason or why  # the preferred one's
            continue
        if is_asked:
            slower = operation.rules(backend, x.numel() if size is None else size, x.dtype)
            if slower:
                preferred = preferred or slower
                continue
        record(operation.name, backend)
        return "auto" if backend == _first_of(operation, device) else backend
    if preferred:
        record(operation.name, "torch", preferred)
        return None
    fall_back(operation.name, reason or f"no kernel for {device} tensors")
    return None


def _first_of(operation: Operation, device: str) -> str:
    """What "auto" means to an operator, which knows no rules: the first that is there. One behind it goes by its name."""
    if device == "cpu":
        return "cpu"
    for backend in ORDER:
        if backend in operation.dtypes and device in DEVICES[backend] and not why_not(backend, device):
            return backend
    return ""
