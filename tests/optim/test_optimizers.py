"""Optimisers against torch's: trajectories by the error rule, and everything around a step that torch's class does."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from helpers import FLOAT_DTYPES, assert_error_within, backend_params, use_there

import pyflash
from pyflash import optim
from pyflash.ops.core import backends
from tests.optim.trajectories import (
    OPTIONS,
    SHAPES,
    TWINS,
    give_gradients,
    name_of,
    parameters,
    run,
    tensors_of,
)  # fmt: skip

BACKENDS = backend_params("cpu", "triton", "torch")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("row", OPTIONS, ids=name_of)
def test_trajectories_are_torchs(row, dtype, backend):
    """A hundred steps: parameters and moments."""
    name, options = row
    ours, torchs = TWINS[name]
    steps = 100 if backend != "triton" else 3
    if dtype == torch.float16 and name != "SGD":
        options = {**options, "eps": 1e-3}  # torch's own, 1e-8, is 0 in float16 as its operations round
    truth = run(torchs, options, torch.float64, steps)
    theirs = run(torchs, options, dtype, steps)
    with use_there(backend):
        mine = run(ours, options, dtype, steps)
    compare(mine, theirs, truth)
    for p, q in zip(params_of(mine), params_of(theirs)):
        assert mine.state[p].keys() == theirs.state[q].keys()
        if "step" in mine.state[p]:
            assert torch.equal(mine.state[p]["step"], theirs.state[q]["step"])
            assert mine.state[p]["step"].dtype == theirs.state[q]["step"].dtype


def params_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def compare(mine, theirs, truth):
    """All parameters as one vector, and all states: what a hundred roundings leave of a single number is luck. A parameter was
    of order 1 on its way."""
    assert_error_within(*(map(joined, (mine, theirs, truth))), torch.ones(()))
    assert [t.stride() for t in tensors_of(mine)] == [t.stride() for t in tensors_of(theirs)]


def joined(optimizer) -> list[torch.Tensor]:
    tensors = tensors_of(optimizer)
    count = len(params_of(optimizer))
    return [torch.cat([t.reshape(-1) for t in part]) for part in (tensors[:count], *by_name(tensors[count:], count))]


def by_name(states, count):
    each = len(states) // count
    return [states[i::each] for i in range(each)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("row", [OPTIONS[4], OPTIONS[7], OPTIONS[9], OPTIONS[16]], ids=name_of)
def test_clipping_ema_and_zeroing_in_one_pass(row, backend):
    """As clip_grad_norm_, step, an average and zero_grad one after the other."""
    name, options = row
    ours, torchs = TWINS[name]

    def by_torch(dtype):
        params = [torch.nn.Parameter(p.detach().to(dtype, memory_format=torch.preserve_format)) for p in parameters()]
        optimizer, emas = torchs(params, **options), [p.detach().clone() for p in params]
        for step in range(4):
            give_gradients(params, step, scale=10.0 if step % 2 else 1e-3)
            torch.nn.utils.clip_grad_norm_(params, 1.5)
            optimizer.step()
            torch._foreach_lerp_(emas, [p.detach() for p in params], 1 - 0.9)
        return optimizer, emas

    truth, theirs = by_torch(torch.float64), by_torch(torch.float32)
    with use_there(backend):
        params = parameters()
        mine = ours(params, max_grad_norm=1.5, ema_decay=0.9, **options)
        for step in range(4):
            give_gradients(params, step, scale=10.0 if step % 2 else 1e-3)
            before = [p.grad.clone() for p in params]
            mine.step(zero_grad=step == 3)
            if step < 3 and backend != "torch":
                assert all(map(torch.equal, before, (p.grad for p in params)))
        assert not any(p.grad.any() for p in params)
        averages = list(mine.ema_parameters())
    assert all(mine.state[p]["ema"] is ema for p, ema in zip(params, averages))
    assert_error_within(averages, theirs[1], truth[1], torch.ones(()))
    for p in params:
        del mine.state[p]["ema"]
    compare(mine, theirs[0], truth[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", TWINS)
def test_unscaling_and_found_inf(name, backend):
    ours, torchs = TWINS[name]
    made = {}
    for cls in (ours, torchs):
        params = parameters()
        optimizer = made[cls] = cls(params, lr=0.01)
        for step, found in enumerate((0.0, 1.0, 0.0)):
            give_gradients(params, step)
            if cls is torchs:
                optimizer.step() if not found else None
                continue
            expected = [p.grad.clone() for p in params]
            for p in params:
                p.grad.mul_(1024.0)
            optimizer.grad_scale, optimizer.found_inf = torch.tensor(1024.0), torch.tensor(found)
            with use_there(backend):
                optimizer.step()
            assert optimizer.grad_scale == 1024 and optimizer.found_inf == found  # GradScaler's to delete
            factor = 1024.0 if found else 1.0
            assert all(torch.equal(p.grad, grad * factor) for p, grad in zip(params, expected))
            optimizer.found_inf = torch.tensor(1.0)
            with use_there(backend):
                optimizer.step(zero_grad=True)  # no step, and no gradients
            assert not any(p.grad.any() for p in params)
    truth = run(torchs, dict(lr=0.01), torch.float64, 0)
    steps_of(truth, (0, 2))
    compare(made[ours], made[torchs], truth)


def steps_of(optimizer, which):
    for step in which:
        give_gradients(params_of(optimizer), step)
        optimizer.step()


def test_grad_scaler_calls_the_fused_step():
    params = parameters()
    optimizer = optim.Adam(params, lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(sum((p * p).sum() for p in params)).backward()
    expected = [p.grad / 4 for p in params]
    params[2].grad[0, 0] = float("inf")
    before = [p.detach().clone() for p in params]
    scaler.step(optimizer)
    scaler.update()
    assert (
        all(map(torch.equal, before, params)) and scaler.get_scale() == 2.0 and not optimizer.state.get(params[0], {})
    )
    optimizer.zero_grad()
    scaler.scale(sum((p * p).sum() for p in params)).backward()
    scaler.step(optimizer)
    assert all(map(torch.equal, expected, (p.grad for p in params)))
    assert not torch.equal(before[2], params[2]) and not hasattr(optimizer, "found_inf")


@pytest.mark.parametrize("name", TWINS)
def test_state_dicts_load_both_ways(name):
    ours, torchs = TWINS[name]
    options = dict(lr=0.01, **({"momentum": 0.9} if name in ("SGD", "RMSprop") else {}))
    for first, second in ((ours, torchs), (torchs, ours)):
        a = run(first, options, torch.float32, 3)
        params = [torch.nn.Parameter(p.detach().clone()) for p in params_of(a)]
        b = second(params, lr=5.0)
        b.load_state_dict(copy.deepcopy(a.state_dict()))
        steps_of(a, (3, 4))
        steps_of(b, (3, 4))
        for x, y in zip(tensors_of(a), tensors_of(b), strict=True):
            torch.testing.assert_close(x, y)
        assert a.state_dict().keys() == b.state_dict().keys()
        assert a.state_dict()["param_groups"] == b.state_dict()["param_groups"]


def test_what_torch_saved_leaves_our_options():
    saved = run(torch.optim.Adam, {}, torch.float32, 1).state_dict()
    mine = optim.Adam(parameters(), max_grad_norm=2.0, ema_decay=0.5)
    mine.load_state_dict(saved)
    assert mine.param_groups[0]["max_grad_norm"] == 2.0 and mine.param_groups[0]["ema_decay"] == 0.5
    steps_of(mine, (1,))
    again = optim.Adam([torch.nn.Parameter(p.detach().clone()) for p in params_of(mine)])
    again.load_state_dict(copy.deepcopy(mine.state_dict()))
    assert all(map(torch.equal, mine.ema_parameters(), again.ema_parameters()))


@pytest.mark.parametrize("remake", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["copied", "pickled"])
def test_copies_go_on(remake):
    a = run(optim.AdamW, dict(ema_decay=0.9), torch.float32, 2)
    b = remake(a)
    assert type(b) is optim.AdamW
    steps_of(a, (2,))
    steps_of(b, (2,))
    assert all(map(torch.equal, tensors_of(a), tensors_of(b)))


def test_groups_of_their_own():
    """Another lr, other options and types in each; parameters without gradients; one added later."""
    made = []
    for cls in (optim.Adam, torch.optim.Adam):
        params = parameters()
        half = torch.nn.Parameter(torch.arange(5.0).bfloat16())
        optimizer = cls([{"params": params[:3], "lr": 0.1}, {"params": [*params[3:], half], "amsgrad": True}], lr=0.01)
        give_gradients([*params, half], 0)
        params[2].grad = params[4].grad = None
        optimizer.step()
        give_gradients([*params, half], 1)  # now some are at their first step, others at their second
        optimizer.add_param_group({"params": late(), "weight_decay": 0.1})
        optimizer.step()
        made.append(optimizer)
    for x, y in zip(*map(tensors_of, made), strict=True):
        torch.testing.assert_close(x, y)


def late():
    p = torch.nn.Parameter(torch.ones(7))
    p.grad = torch.full((7,), 0.5)
    return [p]


def test_closures_and_hooks():
    seen = []
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = optim.SGD([p], lr=0.5)
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))

    def closure():
        assert torch.is_grad_enabled()
        seen.append("closure")
        optimizer.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert optimizer.step(closure) == 3.0
    assert seen == ["before", "closure", "after"] and torch.equal(p, torch.zeros(3))
    # torch's step, to which a group may go, calls no hook a second time
    torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])
    seen.clear()
    with pyflash.use_backend("torch"):
        optimizer.step()
    assert seen == ["before", "after"]
    optimizer.zero_grad(set_to_none=False)
    assert torch.equal(p.grad, torch.zeros(3))
    optimizer.zero_grad()
    assert p.grad is None


@pytest.mark.parametrize("scheduler", ["before", "after", "none"])
@pytest.mark.parametrize("name", TWINS)
def test_replace_and_restore(name, scheduler):
    ours, torchs = TWINS[name]
    optimizer = run(torchs, {}, torch.float32, 2)
    plain = run(torchs, {}, torch.float32, 2)
    rates = []
    if scheduler == "before":
        rates = [torch.optim.lr_scheduler.StepLR(o, 1, 0.5) for o in (optimizer, plain)]
    assert optim.replace(optimizer) is optimizer and type(optimizer) is ours and optim.replace(optimizer) is optimizer
    assert isinstance(optimizer, torchs)
    if scheduler == "after":
        rates = [torch.optim.lr_scheduler.StepLR(o, 1, 0.5) for o in (optimizer, plain)]
    before = backends.counts.copy()
    for step in (2, 3):
        for o in (optimizer, plain):
            steps_of(o, (step,))
        for rate in rates:
            rate.step()  # warns when it does not see the optimiser's
    assert backends.counts[OPERATION[name], "cpu", ""] - before[OPERATION[name], "cpu", ""] == 2
    assert optim.restore(optimizer) is optimizer and type(optimizer) is torchs
    before = backends.counts.copy()
    for o in (optimizer, plain):
        steps_of(o, (4,))
    assert backends.counts == before
    for x, y in zip(tensors_of(optimizer), tensors_of(plain), strict=True):
        torch.testing.assert_close(x, y)


OPERATION = {"SGD": "sgd", "Adam": "adam", "AdamW": "adam", "RMSprop": "rmsprop"}


def test_only_exact_classes_are_replaced():
    class Mine(torch.optim.Adam):
        pass

    for cls in (Mine, torch.optim.Adagrad):
        optimizer = cls(parameters())
        assert type(optim.replace(optimizer)) is cls and type(optim.restore(optimizer)) is cls


def test_torchs_errors():
    params = parameters()
    for cls, options in (
        (optim.Adam, dict(lr=-1.0)), (optim.AdamW, dict(betas=(1.0, 0.9))), (optim.SGD, dict(nesterov=True)),
        (optim.RMSprop, dict(alpha=-1.0)), (optim.Adam, dict(foreach=True, fused=True)),
        (optim.SGD, dict(lr=torch.ones(2))),
    ):  # fmt: skip
        with pytest.raises((ValueError, RuntimeError)) as ours:
            cls(params, **options)
        with pytest.raises(type(ours.value)) as theirs:
            getattr(torch.optim, cls.__name__)(params, **options)
        assert str(ours.value) == str(theirs.value)
    for options in (dict(max_grad_norm=-1.0), dict(ema_decay=1.5)):
        with pytest.raises(ValueError, match="Invalid"):
            optim.SGD(params, **options)


@pytest.mark.filterwarnings("ignore::pyflash.FallbackWarning")
def test_what_no_kernel_takes_is_torchs_and_counted():
    """Parameter by parameter: the others of the group are ours."""

    def complex_one():
        p = torch.nn.Parameter(torch.tensor([1 + 2j, 3 - 1j]))
        p.grad = torch.tensor([0.5 + 1j, -1j])
        return p

    def with_holes():
        p = torch.nn.Parameter(torch.arange(12.0).view(3, 4)[:, ::2].detach())
        p.grad = torch.ones(3, 2)
        return p

    def other_order():
        p = torch.nn.Parameter(torch.arange(6.0).view(3, 2))
        p.grad = torch.arange(6.0).view(2, 3).mT
        return p

    def with_sparse():
        p = torch.nn.Parameter(torch.ones(4, 2))
        p.grad = torch.sparse_coo_tensor([[1]], torch.ones(1, 2), (4, 2))
        return p

    def shared():
        p = torch.nn.Parameter(torch.arange(6.0))
        p.grad = p.detach()[:].clone()
        q = torch.nn.Parameter(p.detach()[2:5])
        q.grad = torch.ones(3)
        return [p, q]

    for name, make in (
        ("Adam", complex_one), ("RMSprop", complex_one), ("AdamW", with_holes), ("SGD", with_holes), ("SGD", other_order),
        ("SGD", with_sparse), ("SGD", shared),
    ):  # fmt: skip
        made = []
        options = {
            "lr": 0.1,
            **({"momentum": 0.9, "dampening": 0.5} if name == "SGD" and make is not with_sparse else {}),
        }
        before = backends.counts.copy()
        for cls in TWINS[name]:
            odd = make()
            params = [*(odd if isinstance(odd, list) else [odd]), *late()]
            optimizer = cls(params, **options)
            optimizer.step()
            optimizer.step()
            made.append(optimizer)
        for x, y in zip(*map(tensors_of, made), strict=True):
            torch.testing.assert_close(x, y)
        counted = backends.counts - before
        reasons = [reason for _, backend, reason in counted if backend == "torch"]
        assert reasons and all(reasons), name
        assert make is shared or counted[OPERATION[name], "cpu", ""] == 2
        with pytest.raises(NotImplementedError, match='use_backend\\("torch"\\) serves it'), use_cpu():
            made[0].step()
    with pytest.raises(RuntimeError, match="Adam does not support sparse gradients"):
        optim.Adam([with_sparse()]).step()


def use_cpu():
    return pyflash.use_backend("cpu")


@pytest.mark.filterwarnings("ignore::pyflash.FallbackWarning")
def test_extras_where_torch_steps():
    """Clipping, the average and zeros also for what no kernel takes."""
    made = []
    for backend in ("auto", "torch"):
        params = [torch.nn.Parameter(torch.tensor([1.0 + 1j])), torch.nn.Parameter(torch.ones(3))]
        optimizer = optim.Adam(params, lr=0.1, max_grad_norm=1.0, ema_decay=0.5)
        for _ in range(2):
            for p in params:
                p.grad = torch.full_like(p, 3.0)
            with pyflash.use_backend(backend):
                optimizer.step(zero_grad=True)
            assert not any(p.grad.any() for p in params)
        made.append(optimizer)
    for x, y in zip(*map(tensors_of, made), strict=True):
        torch.testing.assert_close(x, y)
    assert all(0 < (ema.real - p.real).min() for ema, p in zip(made[0].ema_parameters(), params_of(made[0])))


@pytest.mark.filterwarnings("ignore::pyflash.FallbackWarning")
def test_differentiable_is_torchs():
    before = backends.counts.copy()
    w = torch.ones(3, requires_grad=True)
    p = w * 2
    p.retain_grad()
    optimizer = optim.SGD([p], lr=0.5, differentiable=True)
    p.grad = w * 3
    optimizer.step()
    p.sum().backward()
    assert torch.equal(w.grad, torch.full((3,), 0.5))
    assert backends.counts - before == {("sgd", "torch", "differentiable=True"): 1}


def test_versions_move():
    """What was saved for a backward is no longer what it was, and autograd says so."""
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = optim.SGD([p], lr=0.1)
    loss = (p * p).sum()
    p.grad = torch.ones(3)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    assert p.grad._version == 0
    optimizer.step(zero_grad=True)
    assert p.grad._version == 1


def test_memory_that_moves_is_seen():
    """Between two steps parameters, moments and gradients may go elsewhere, to another type, and lose their memory."""
    made = []
    for cls in (optim.Adam, torch.optim.Adam):
        params = parameters(shapes=[(300,), (20, 3)])
        optimizer = cls(params, lr=0.01)
        steps_of(optimizer, (0, 1))
        for p in params:
            p.data = p.data.clone()
            optimizer.state[p]["exp_avg"] = optimizer.state[p]["exp_avg"].clone()
        steps_of(optimizer, (2,))
        for p in params:
            p.data = p.data.double()
            p.grad = None
            optimizer.state[p] = {k: v if k == "step" else v.double() for k, v in optimizer.state[p].items()}
        steps_of(optimizer, (3,))
        made.append(optimizer)
    for x, y in zip(*map(tensors_of, made), strict=True):
        torch.testing.assert_close(x, y)
    p = params_of(made[0])[0]
    p.grad.untyped_storage().resize_(0)
    with pytest.raises(NotImplementedError, match="no memory"), use_cpu():
        made[0].step()


@pytest.mark.parametrize("backend", backend_params("cpu"))
def test_nothing_outside_of_the_tensors_is_touched(backend):
    """Each lies between guards; what a kernel read there would be NaN."""
    size, guard = 37, 64

    def guarded(value):
        memory = torch.full((size + 2 * guard,), float("nan"))
        memory[guard : guard + size] = value
        return memory, memory[guard : guard + size]

    memories, (p, g) = zip(*[guarded(torch.randn(size)) for _ in range(2)])
    p = torch.nn.Parameter(p)
    p.grad = g
    with use_there(backend):
        optimizer = optim.Adam([p], amsgrad=True, ema_decay=0.9, max_grad_norm=0.1)
        optimizer.step()
        for name, state in list(optimizer.state[p].items()):
            if name != "step":
                memory, optimizer.state[p][name] = guarded(state)
                memories += (memory,)
        optimizer.step(zero_grad=True)
    for memory in memories:
        assert memory[guard : guard + size].isfinite().all()
        assert memory[:guard].isnan().all() and memory[guard + size :].isnan().all()


def test_results_do_not_depend_on_the_threads():
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            shapes = [(70001,), (3, 5), (40000,), (1,)]
            made = run(optim.Adam, dict(amsgrad=True, max_grad_norm=1.0, ema_decay=0.9), torch.float32, 2, shapes)
            found.append(tensors_of(made))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@pytest.mark.slow
@pytest.mark.parametrize("cls", [optim.Adam, optim.SGD])
def test_a_compiled_step_is_the_step(cls):
    a, b = (run(cls, dict(lr=0.1), torch.float32, 1) for _ in range(2))
    compiled = torch.compile(lambda: b.step(), backend="eager")
    for step in (1, 2):
        give_gradients(params_of(a), step)
        give_gradients(params_of(b), step)
        a.step()
        compiled()
    assert all(map(torch.equal, tensors_of(a), tensors_of(b)))


def test_shapes_have_all_kinds():
    params = parameters()
    assert any(p.numel() == 0 for p in params) and len(SHAPES) == len(params)
    assert sum(not p.is_contiguous() for p in params) == 2
