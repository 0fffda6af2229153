"""The frame: backend choice, operators, threads, forks."""

import json
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch
from helpers import cpu_isas, use

import pyflash
import pyflash.functional as PF
import pyflash.nn as nn
from pyflash.ops.core import backends
from pyflash.ops.core.registry import Op

ROOT = Path(__file__).resolve().parents[2]
needs_cpu = pytest.mark.skipif(not cpu_isas(), reason="the native module is not built")


def python(code: str, **environment) -> str:
    """Standard output of a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ---- the choice of a backend


def test_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="name is 'gpu', expected one of auto, triton, cuda, cpu, torch"):
        pyflash.use_backend("gpu")


def test_contexts_nest():
    with pyflash.use_backend("torch"):
        with pyflash.use_backend("auto"):
            assert backends._state.wish == "auto"
        assert backends._state.wish == "torch"
    assert backends._state.wish == "auto"


def test_a_backend_without_a_with_block_holds_from_there_on():
    before = backends._state.wish
    try:
        pyflash.use_backend("torch")
        assert backends._state.wish == "torch"
        with pyflash.use_backend("auto") as context:
            assert backends._state.wish == "auto"
        assert backends._state.wish == "torch"
        pyflash.use_backend("cpu")
        with context:  # a second time: back to what was there then
            assert backends._state.wish == "auto"
        assert backends._state.wish == "cpu"
    finally:
        pyflash.use_backend(before)


def test_the_warning_points_at_the_line_of_the_caller():
    """Through a function of ours, a module of ours, and modules of torch's that hold it."""
    module = torch.nn.Sequential(torch.nn.Sequential(pyflash.nn.ReLU()))
    x = torch.randn(4, device="meta")
    for call in (PF.relu, module[0][0], module):
        backends._warned.clear()
        with pytest.warns(pyflash.FallbackWarning) as caught:
            call(x)
        assert caught[0].filename == __file__


def test_a_named_backend_raises_when_it_cannot_serve():
    with pytest.raises(NotImplementedError, match=r"pyflash.linear: cuda has no linear kernel; use_backend\("):
        with pyflash.use_backend("cuda"):
            PF.linear(torch.randn(4), torch.randn(3, 4))


@needs_cpu
def test_auto_says_once_why_it_fell_back(monkeypatch):
    monkeypatch.setitem(backends.MISSING, "cpu", "planted")
    backends._warned.clear()
    with pytest.warns(pyflash.FallbackWarning, match="pyflash.relu runs through PyTorch: planted"):
        PF.relu(torch.randn(4))
    PF.relu(torch.randn(4))  # a warning is an error in this suite
    assert backends.counts["relu", "torch", "planted"] >= 2


@needs_cpu
def test_strict_makes_a_fallback_an_error(monkeypatch):
    monkeypatch.setitem(backends.MISSING, "cpu", "planted")
    monkeypatch.setattr(backends._state, "strict", True)
    with pytest.raises(NotImplementedError, match="PYFLASH_STRICT"):
        PF.relu(torch.randn(4))


@needs_cpu
def test_auto_takes_torch_for_small_and_ours_for_large():
    backends.counts.clear()
    PF.gelu(torch.randn(8), approximate="tanh")
    PF.gelu(torch.randn(1 << 20), approximate="tanh")
    assert sum(n for (name, backend, _), n in backends.counts.items() if backend == "torch") == 1
    assert backends.counts["gelu_tanh", "cpu", ""] == 1


@needs_cpu
@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="this system has no large pages")
@pytest.mark.slow
def test_large_outputs_ask_for_large_pages():
    """In a process of its own: a mapping keeps its flags when what asked for them is freed."""
    code = """
import re, torch, pyflash
from pathlib import Path

def wish_at(address):  # the flags of the mapping that an address lies in
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(match[1], 16) <= address < int(match[2], 16)
        elif inside and line.startswith("VmFlags"):
            return line.split()

with pyflash.use_backend("cpu"):
    large, small = (pyflash.functional.relu(torch.randn(n)) for n in (9 << 20, 1 << 20))
print("hg" in wish_at(large.data_ptr() + large.nbytes // 2), "hg" in wish_at(small.data_ptr()))
"""
    assert python(code) == "True False"


@pytest.mark.slow
def test_environment_chooses_for_the_process():
    code = "import pyflash; from pyflash.ops.core import backends; print(backends._state.wish)"
    assert python(code, PYFLASH_BACKEND="torch") == "torch"
    with pytest.raises(AssertionError, match="PYFLASH_BACKEND is 'gpu'"):
        python(code, PYFLASH_BACKEND="gpu")


@needs_cpu
@pytest.mark.slow
def test_environment_chooses_the_instruction_set():
    for isa in cpu_isas():
        assert python("import torch, pyflash._cpu as c; print(c.isa())", PYFLASH_CPU_ISA=isa) == isa
    with pytest.raises(AssertionError, match="PYFLASH_CPU_ISA is 'sse9'"):
        python("import pyflash", PYFLASH_CPU_ISA="sse9")


@needs_cpu
def test_torch_func_transforms_go_to_torch():
    x = torch.randn(3, 4, dtype=torch.float64)
    with use("cpu"):
        ours = torch.func.vmap(torch.func.grad(lambda t: PF.gelu(t).sum()))(x)
        hessian = torch.func.hessian(lambda t: PF.tanh(t).sum())(x[0])
        _, tangent = torch.func.jvp(PF.silu, (x,), (torch.ones_like(x),))
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
            forward_mode = torch.autograd.forward_ad.unpack_dual(PF.silu(dual)).tangent
    F = torch.nn.functional
    torch.testing.assert_close(ours, torch.func.vmap(torch.func.grad(lambda t: F.gelu(t).sum()))(x))
    torch.testing.assert_close(hessian, torch.func.hessian(lambda t: torch.tanh(t).sum())(x[0]))
    torch.testing.assert_close(tangent, torch.func.jvp(F.silu, (x,), (torch.ones_like(x),))[1])
    torch.testing.assert_close(forward_mode, tangent)


# ---- compile and export


@needs_cpu
@pytest.mark.parametrize("where", ["around", "inside"])
@pytest.mark.slow
def test_compiled_graphs_carry_the_wish(where):
    def inside(x):
        with pyflash.use_backend("cpu"):
            return PF.gelu(x) * 2

    function = inside if where == "inside" else lambda x: PF.gelu(x) * 2
    x = torch.randn(6, 5, requires_grad=True)
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend=keep)
    with use("cpu"):
        y = compiled(x)
    assert graphs and "gelu" in str(graphs[0].graph) + str(graphs[0].print_readable(False))
    (dx,) = torch.autograd.grad(y.sum(), x)
    (expected,) = torch.autograd.grad((torch.nn.functional.gelu(x) * 2).sum(), x)
    torch.testing.assert_close(dx, expected)
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    with use("cpu"):
        torch.testing.assert_close(compiled(x), y)
    torch._dynamo.reset()


@needs_cpu
def test_export_keeps_our_operator():
    class Model(torch.nn.Module):
        def forward(self, x):
            return PF.gelu(x)

    with use("cpu"):
        program = torch.export.export(Model(), (torch.randn(4, 5),))
    assert "pyflash.activation_fwd" in str(program.graph)
    x = torch.randn(4, 5)
    torch.testing.assert_close(program.module()(x), torch.nn.functional.gelu(x))


# ---- operators


@needs_cpu
def test_the_memory_of_a_conjugate_holds_other_signs():
    """conj().imag is a view of the numbers' negatives: as an input, as a weight and as a gradient."""
    with use("cpu"):
        x, weight = (torch.randn(4, 4, dtype=torch.cfloat).conj().imag for _ in range(2))
        assert x.is_neg() and weight.is_neg()
        torch.testing.assert_close(PF.relu(x), torch.relu(x))
        torch.testing.assert_close(PF.linear(x, weight), torch.nn.functional.linear(x, weight))
        torch.testing.assert_close(
            PF.layer_norm(x, (4,), weight[0]), torch.nn.functional.layer_norm(x, (4,), weight[0])
        )
        leaf = torch.randn(4, 4, requires_grad=True)
        for function in (PF.tanh, torch.tanh):
            (gradient,) = torch.autograd.grad(function(leaf), leaf, x)
            torch.testing.assert_close(gradient, x.resolve_neg() * (1 - torch.tanh(leaf) ** 2))


def test_an_operator_alone_has_no_silent_derivative():
    x = torch.randn(3, requires_grad=True)
    y = torch.ops.pyflash.activation_bwd(x, x, "gelu", 0.0, 0.0, "torch")
    with pytest.raises(NotImplementedError, match="pyflash::activation_bwd has no derivative of its own"):
        y.sum().backward()


EXPORTED = {
    "activation": lambda: torch.nn.Sequential(torch.nn.Linear(8, 8), nn.GELU()),
    "fused": lambda: nn.Sequential(nn.Linear(8, 6), nn.Tanh()),
    "encoder layer": lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0),
    "attention with weights": lambda: MultiheadSelfAttention(8, 2),
    "lstm": lambda: nn.LSTM(8, 6, 2, bidirectional=True, proj_size=3),
    "gru": lambda: nn.GRU(8, 6),
}


class MultiheadSelfAttention(nn.MultiheadAttention):
    def forward(self, x):
        return super().forward(x, x, x)


@pytest.mark.parametrize("with_gradients", [True, False], ids=["train", "without gradients"])
@pytest.mark.parametrize("name", EXPORTED)
def test_an_exported_program_can_be_trained(name, with_gradients):
    """Our functions are not in it, only the operators: they have the derivatives of their references."""
    module, x = EXPORTED[name]().double(), torch.randn(5, 3, 8, dtype=torch.float64)
    with use("cpu"), torch.set_grad_enabled(with_gradients):
        program = torch.export.export(module, (x,))
    assert any("pyflash" in str(node.target) for node in program.graph.nodes)
    exported, grads = program.module(), []
    for each in (exported, module):
        params = dict(each.named_parameters())
        outputs = [t for t in torch.utils._pytree.tree_leaves(each(x)) if t is not None]
        grads.append(torch.autograd.grad(sum(o.sin().sum() for o in outputs), [params[n] for n in sorted(params)]))
    torch.testing.assert_close(*grads)


# ---- threads and processes


@needs_cpu
def test_four_python_threads_get_what_one_gets():
    inputs = [torch.randn(n) for n in (1000, 70_001, 300_000, 1_000_003)]
    torch.set_num_threads(2)
    try:
        with use("cpu"):
            alone = [PF.gelu(x) for x in inputs]
            results = [None] * 4

            def work(i):
                for _ in range(10):
                    results[i] = PF.gelu(inputs[i])

            Op.paranoid = False
            workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
            [w.start() for w in workers]
            [w.join() for w in workers]
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(alone, results))


FORK = """
import os, signal, torch, pyflash, pyflash.functional as F
torch.set_num_threads(2)
x = torch.randn(1 << 20)
with pyflash.use_backend("cpu"):
    y = F.gelu(x)          # the parent's pool is warm now
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        ours = F.gelu(x)
        torch.set_num_threads(1)  # torch's own regions would hang here
        os._exit(0 if torch.equal(ours, y) else 3)
    print(os.waitpid(child, 0)[1])
"""


@needs_cpu
@pytest.mark.slow
def test_a_forked_child_does_not_hang():
    assert python(FORK, OMP_NUM_THREADS="2") == "0"


@needs_cpu
@pytest.mark.slow
def test_importing_leaves_subnormal_numbers_alone():
    assert python("import torch, pyflash; print((torch.tensor([1e-40]) * 1).item() > 0)") == "True"


# ---- what a user sees


@pytest.mark.parametrize("command", ["info", "explain"])
def test_commands_print_and_give_json(command, capsys):
    from pyflash.__main__ import main

    assert main([command]) == 0
    assert "cpu" in capsys.readouterr().out
    assert main([command, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    if command == "explain":
        assert facts["operations"]["linear"]["cuda"]["reason"]


@pytest.mark.parametrize(("family", "says"), [("zen5", "the table of this kind"), ("other", "no table of this kind")])
def test_explain_says_what_was_measured_on_this_kind_of_processor(family, says, monkeypatch, capsys):
    """Zen 5 has a table; what no table has is "other". A single name that `auto` did not look up would have no points."""
    from pyflash.__main__ import main
    from pyflash.cli import explain

    monkeypatch.setattr(explain, "_family", lambda device: family)
    found = explain.measured("cpu", explain.OPERATIONS)["points"]
    without_points = {name for name, points in found.items() if not points}
    if family == "zen5":
        # Without a rule: always ours. What else has none is newer than the table (test_auto: the walk has points of it).
        assert {name for name in found if not backends.OPERATIONS[name].rules} <= without_points
        assert not without_points & {"linear", "linear_act", "attention", "attention_weights", "layer_norm", "dropout"}
        assert not without_points & {"relu", "gelu_tanh", "lstm", "gru_cell", "rnn_tanh_cell", "rnn"}
    else:
        assert without_points == set(found)
    main(["explain"])
    out = capsys.readouterr().out
    assert says in out and f"({family})" in out
    assert ("measured on this kind of processor (" in out) == (family == "zen5")


@pytest.mark.slow
def test_generated_files_are_what_the_table_gives():
    done = subprocess.run([sys.executable, "tools/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# ---- torch.nn's own refusals


@pytest.mark.parametrize("backend", ["cpu", "auto"])
@pytest.mark.parametrize("bad", [None, [1.0, 2.0], 3.0], ids=str)
def test_what_is_no_tensor_is_a_type_error(backend, bad):
    w, g, l, i = torch.randn(2, 2), torch.randn(6, 2), torch.randn(8, 2), torch.tensor([0, 1])
    calls = [
        lambda: PF.linear(bad, w), lambda: PF.linear(w, bad), lambda: PF.linear_act(bad, w), lambda: PF.relu(bad),
        lambda: PF.max_pool2d(bad, 2), lambda: PF.gelu(bad), lambda: PF.silu(bad), lambda: PF.layer_norm(bad, (2,)), lambda: PF.dropout(bad, 0.5),
        lambda: PF.scaled_dot_product_attention(bad, bad, bad), lambda: PF.scaled_dot_product_attention(w, w, bad),
        lambda: PF.attention(w, bad, w), lambda: PF.attention_weights(w, bad), lambda: PF.add_layer_norm(w, bad, (2,)),
        lambda: PF.attention_varlen(w[None], w[None], bad, i, i, 1, 1), lambda: PF.attention_varlen(w, w, w, bad, i, 1, 1),
        lambda: PF.attention_decode(w, w, w, bad), lambda: PF.gru_cell(bad, w, g, g), lambda: PF.gru_cell(w, bad, g, g),
        lambda: PF.rnn_cell(w, w, bad, w), lambda: PF.lstm_cell(w, (w, bad), l, l), lambda: PF.lstm_cell(w, bad, l, l),
    ]  # fmt: skip
    if bad is not None:  # else the default
        calls += [
            lambda: PF.linear(w, w, bad), lambda: PF.layer_norm(w, (2,), bad), lambda: PF.add_layer_norm(w, w, (2,), bad),
            lambda: PF.scaled_dot_product_attention(w, w, w, bad), lambda: PF.attention(w, w, w, alibi_slopes=bad),
            lambda: PF.gru_cell(w, w, g, g, bad, g[:, 0]),
        ]  # fmt: skip
    for call in calls:
        with use(backend), pytest.raises(TypeError):
            call()


@pytest.mark.parametrize("backend", ["cpu", "auto"])
def test_too_few_dimensions_are_torchs_error(backend):
    w, g = torch.randn(2, 2), torch.randn(6, 2)
    calls = [
        lambda f: f.scaled_dot_product_attention(w, w, w, enable_gqa=True), lambda f: f.gru_cell(w[0], w[0], g, g),
        lambda f: f.gru_cell(w, w, g[:, 0], g),
    ]  # fmt: skip
    for call, theirs in zip(calls, (torch.nn.functional, torch, torch)):
        with pytest.raises(IndexError):
            call(theirs)
        with use(backend), pytest.raises(IndexError, match=r"pyflash\..*expected (2 dim|at least 3)"):
            call(PF)


def test_meta_tensors_go_through_every_module():
    """Shapes without memory: deferred initialisation."""
    x = torch.randn(20, 4, 32, device="meta")
    with torch.device("meta"):
        models = [
            pyflash.nn.Sequential(pyflash.nn.Linear(32, 512), pyflash.nn.GELU()), pyflash.nn.Transformer(32, 4, 1, 1, 64),
            pyflash.nn.LSTM(32, 64), pyflash.nn.LayerNorm(32), pyflash.nn.Dropout(),
        ]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pyflash.FallbackWarning)
        for model in models:
            out = model(x, x) if isinstance(model, torch.nn.Transformer) else model(x)
            out = out[0] if isinstance(out, tuple) else out
            assert out.is_meta and out.shape[:2] == x.shape[:2]
            if out.requires_grad:
                out.sum().backward()


FREED = {  # operations on a tensor whose storage was freed, as FSDP does between uses
    "relu": lambda t: PF.relu(t(9, 9)),
    "dropout": lambda t: PF.dropout(t(9, 9)),
    "linear": lambda t: PF.linear(torch.randn(9, 9), t(9, 9)),
    "linear in training": lambda t: PF.linear(torch.randn(9, 9), t(9, 9).requires_grad_()),
    "linear's bias": lambda t: PF.linear(torch.randn(9, 9), torch.randn(9, 9), t(9)),
    "layer_norm": lambda t: PF.layer_norm(t(9, 9), (9,)),
    "layer_norm's weight": lambda t: PF.layer_norm(torch.randn(9, 9), (9,), t(9)),
    "max_pool2d": lambda t: PF.max_pool2d(t(9, 9, 9), 2),
    "max_unpool2d": lambda t: PF.max_unpool2d(t(9, 9, 9), torch.arange(81).view(9, 9).expand(9, 9, 9), 1),
    "attention": lambda t: PF.attention(torch.randn(1, 1, 9, 8), torch.randn(1, 1, 9, 8), t(1, 1, 9, 8)),
    "attention's slopes": lambda t: PF.attention(*[torch.randn(1, 1, 9, 8)] * 3, alibi_slopes=t(1)),
    "softmax": lambda t: PF.softmax(t(9, 9), 1),
    "lstm": lambda t: PF.lstm(t(5, 3, 4), None, [torch.randn(16, 4), torch.randn(16, 4)]),
    "lstm's weight": lambda t: PF.lstm(torch.randn(5, 3, 4), None, [torch.randn(16, 4), t(16, 4)]),
    "lstm's step": lambda t: PF.lstm(torch.randn(1, 3, 4), None, [torch.randn(16, 4), t(16, 4)]),
}


@needs_cpu
@pytest.mark.parametrize("name", FREED)
def test_no_kernel_reads_freed_memory(name):
    def freed(*shape):
        tensor = torch.randn(shape)
        tensor.untyped_storage().resize_(0)
        return tensor

    with use("cpu"), pytest.raises(RuntimeError, match="has no memory"):
        FREED[name](freed)


# ---- torch's default device

WITH_WORKSPACES = {  # calls whose kernels ask Python for memory
    "linear": lambda x: PF.linear(x, x),
    "linear_act": lambda x: PF.linear_act(x, x, None, "silu"),
    "layer_norm": lambda x: PF.layer_norm(x, (80,), x[0], x[1]),
    "attention": lambda x: PF.scaled_dot_product_attention(x, x, x),
    "attention_weights": lambda x: PF.attention_weights(x, x),
    "attention_varlen": lambda x: PF.attention_varlen(*[x.view(80, 1, 80)] * 3, *[torch.tensor([0, 9, 80], device="cpu")] * 2, 80, 80),
    "lstm": lambda x: PF.lstm(x[:, None], None, [x, x[:, :20]])[0],
    "lstm step": lambda x: PF.lstm(x[None, :1], None, [x, x[:, :20]])[0],
    "ragged": lambda x: PF.lstm(x.view(10, 8, 80), None, [x, x[:, :20]], lengths=[10, 3, 0, 1, 1, 1, 1, 9])[0],
    "gru_cell": lambda x: PF.gru_cell(x[:3], x[:3, :20], x[:60], x[:60, :20]),
    "dropout": lambda x: PF.dropout(x, 1.0),
    "softmax": lambda x: PF.softmax(x, 1),
    "softmax of columns": lambda x: PF.softmax(x, 0),
}  # fmt: skip


def _forget_workspaces():
    from pyflash.ops.core import workspace

    workspace._kept.__dict__.clear()


@needs_cpu
@pytest.mark.parametrize("name", WITH_WORKSPACES)
@pytest.mark.parametrize("grad", [False, True])
def test_kernels_take_no_memory_of_the_default_device(name, grad):
    """Under torch.set_default_device("cuda") CPU tensors still work in torch; a workspace made there was a wrong address."""
    x = torch.randn(80, 80)
    results = []
    for device in ("cpu", "meta"):
        own = x.clone().requires_grad_(grad)
        pyflash.clear_cache()
        _forget_workspaces()
        with use("cpu"), torch.device(device):
            out = WITH_WORKSPACES[name](own)
        results.append((out, *(torch.autograd.grad(out.sum(), own) if grad else ())))
    for found, expected in zip(*results):
        assert torch.equal(found, expected)


def test_nested_tensors_go_to_torch():
    for layout in (torch.strided, torch.jagged):
        q = torch.nested.nested_tensor([torch.randn(2, 5, 8), torch.randn(2, 5, 8)], layout=layout)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pyflash.FallbackWarning)
            found = PF.scaled_dot_product_attention(q, q, q)
        for f, one in zip(found.unbind(), q.unbind()):
            torch.testing.assert_close(f, torch.nn.functional.scaled_dot_product_attention(one, one, one))
        with use("cpu"), pytest.raises(NotImplementedError, match="NestedTensor"):
            PF.scaled_dot_product_attention(q, q, q)
