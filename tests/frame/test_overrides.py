"""overrides: calls of torch.nn.functional, and checkpoints inside."""

import threading
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from helpers import use
from torch.utils.checkpoint import checkpoint

import pyflash
from pyflash.ops.core import backends
from pyflash.overrides import overrides
from tests.frame.test_replace import transformer

CALLS = {
    "embedding": lambda f: f.embedding(torch.arange(3), torch.eye(8), 1, scale_grad_by_freq=True),
    "embedding_bag": lambda f: f.embedding_bag(torch.arange(6).view(3, 2), torch.eye(8), mode="max"),
    "conv1d": lambda f: f.conv1d(torch.eye(8)[None], torch.ones(4, 8, 3), torch.ones(4), padding="same"),
    "conv2d": lambda f: f.conv2d(torch.eye(8)[None], torch.ones(4, 1, 3, 3), stride=2),
    "conv_transpose2d": lambda f: f.conv_transpose2d(torch.eye(8)[None], torch.ones(1, 4, 3, 3), groups=1, dilation=2),
    "linear": lambda f: f.linear(torch.ones(64, 64), torch.ones(8, 64), torch.ones(8)),
    "layer_norm": lambda f: f.layer_norm(torch.eye(8), (8,), torch.ones(8), bias=torch.ones(8), eps=1e-3),
    "batch_norm": lambda f: f.batch_norm(torch.eye(8), torch.zeros(8), torch.ones(8), training=True),
    "group_norm": lambda f: f.group_norm(torch.eye(8), 2, torch.ones(8)),
    "instance_norm": lambda f: f.instance_norm(torch.eye(8)[None], weight=torch.ones(8)),
    "local_response_norm": lambda f: f.local_response_norm(torch.eye(8)[None], 3, alpha=0.5),
    "normalize": lambda f: f.normalize(torch.eye(8), p=1, dim=0, eps=2.0),
    "rms_norm": lambda f: f.rms_norm(torch.eye(8), (8,), torch.ones(8), eps=1e-3),
    "max_pool2d": lambda f: f.max_pool2d(torch.eye(9)[None], 3, stride=2, ceil_mode=True),
    "adaptive_avg_pool2d": lambda f: f.adaptive_avg_pool2d(torch.eye(9)[None], 1),
    "avg_pool1d": lambda f: f.avg_pool1d(torch.eye(9), 3),
    "max_pool1d": lambda f: f.max_pool1d(torch.eye(9), 3, return_indices=True)[0],
    "max_unpool2d": lambda f: f.max_unpool2d(*f.max_pool2d(torch.eye(8)[None], 2, return_indices=True), 2),
    "dropout": lambda f: f.dropout(torch.ones(8, 8), p=1.0),
    "dropout1d": lambda f: f.dropout1d(torch.ones(8, 8), p=1.0),
    "dropout2d": lambda f: f.dropout2d(torch.ones(2, 4, 8, 8), p=1.0),
    "dropout3d": lambda f: f.dropout3d(torch.ones(2, 4, 8, 8, 1), p=1.0),
    "alpha_dropout": lambda f: f.alpha_dropout(torch.ones(8, 8), 1.0, True),
    "feature_alpha_dropout": lambda f: f.feature_alpha_dropout(torch.ones(8, 8), 1.0, training=True),
    "interpolate": lambda f: f.interpolate(torch.eye(8)[None, None], scale_factor=2, mode="bilinear"),
    "pad": lambda f: f.pad(torch.eye(4)[None], (1, 2), mode="reflect"),
    "scaled_dot_product_attention": lambda f: f.scaled_dot_product_attention(*[torch.eye(8)[None, None]] * 3),
    "relu": lambda f: f.relu(torch.eye(4) - 0.5, inplace=True),
    "gelu": lambda f: f.gelu(torch.eye(4), approximate="tanh"),
    "silu": lambda f: f.silu(torch.eye(4)),
    "tanh": lambda f: f.tanh(torch.eye(4)),
    "sigmoid": lambda f: f.sigmoid(torch.eye(4)),
    "glu": lambda f: f.glu(torch.eye(4), dim=0),
    "prelu": lambda f: f.prelu(torch.eye(4) - 0.5, torch.ones(1)),
    "rrelu": lambda f: f.rrelu(torch.eye(4) - 0.5, 0.25, 0.25, training=True),
    "softmax": lambda f: f.softmax(torch.eye(4), dim=0, dtype=torch.float64),
    "log_softmax": lambda f: f.log_softmax(torch.eye(4), -1),
    "softmin": lambda f: f.softmin(torch.eye(4), 1),
    "cross_entropy": lambda f: f.cross_entropy(torch.eye(4), torch.arange(4), label_smoothing=0.1),
    "nll_loss": lambda f: f.nll_loss(torch.eye(4), torch.arange(4), reduction="sum"),
    "mse_loss": lambda f: f.mse_loss(torch.eye(4), torch.ones(4, 4), weight=torch.ones(4, 4)),
    "l1_loss": lambda f: f.l1_loss(torch.eye(4), torch.ones(4, 4), reduction="none"),
    "smooth_l1_loss": lambda f: f.smooth_l1_loss(torch.eye(4), torch.ones(4, 4), beta=0.5),
    "huber_loss": lambda f: f.huber_loss(torch.eye(4), torch.ones(4, 4), "sum", 0.5),
    "binary_cross_entropy": lambda f: f.binary_cross_entropy(torch.full((4,), 0.2), torch.ones(4), torch.ones(4)),
    "binary_cross_entropy_with_logits": lambda f: f.binary_cross_entropy_with_logits(torch.eye(4), torch.eye(4)),
    "kl_div": lambda f: f.kl_div(torch.eye(4), torch.eye(4), reduction="batchmean", log_target=True),
    "poisson_nll_loss": lambda f: f.poisson_nll_loss(torch.eye(4), torch.eye(4), log_input=False),
    "soft_margin_loss": lambda f: f.soft_margin_loss(torch.eye(4), torch.ones(4, 4)),
    "margin_ranking_loss": lambda f: f.margin_ranking_loss(torch.eye(4), torch.ones(4, 4), torch.ones(4, 4)),
    "hinge_embedding_loss": lambda f: f.hinge_embedding_loss(torch.eye(4), torch.ones(4, 4), 0.5),
    "cosine_embedding_loss": lambda f: f.cosine_embedding_loss(torch.eye(4), torch.ones(4, 4), torch.ones(4), 0.5),
    "triplet_margin_loss": lambda f: f.triplet_margin_loss(torch.eye(4), torch.ones(4, 4), torch.zeros(4, 4), 2.0),
}


if hasattr(F, "linear_cross_entropy"):  # from torch 2.13 on
    CALLS["linear_cross_entropy"] = lambda f: f.linear_cross_entropy(torch.eye(4), torch.eye(5, 4), torch.arange(4))


@pytest.mark.parametrize("name", CALLS)
def test_overrides(name):
    call, recorded = CALLS[name], {"gelu": "gelu_tanh", "scaled_dot_product_attention": "attention"}.get(name, name)

    def ours():
        return sum(n for (op, backend, _), n in backends.counts.items() if op == recorded and backend == "cpu")

    expected, before = call(F), ours()
    with use("cpu"):
        call(F)
        assert ours() == before
        with pyflash.overrides():
            torch.testing.assert_close(call(F), expected)
            assert ours() == before + 1
            with pyflash.overrides():
                torch.testing.assert_close(call(F), expected)
            assert ours() == before + 2
            call(F)
        assert ours() == before + 3
        call(F)
    assert ours() == before + 3


def test_overrides_reach_into_torchs_modules():
    model = transformer()
    src, tgt = torch.randn(2, 5, 16), torch.randn(2, 4, 16)
    expected = model(src, tgt)
    before = backends.counts.copy()
    with pyflash.overrides(), use("cpu"):
        found = model(src, tgt)
    torch.testing.assert_close(found, expected)
    new = backends.counts - before
    assert {op for op, backend, _ in new if backend == "cpu"} >= {"linear", "layer_norm", "attention", "relu"}
    assert not any(backend == "torch" for _, backend, _ in new)


def test_overrides_leave_other_functions_alone():
    with pyflash.overrides():
        assert torch.equal(torch.ones(2) + 1, torch.full((2,), 2.0))
        assert torch.cumsum(torch.ones(2), 0).tolist() == [1.0, 2.0]
    with pytest.raises(RuntimeError, match="boom"), pyflash.overrides():
        raise RuntimeError("boom")
    assert not torch._C._len_torch_function_stack()


def test_overrides_write_where_they_are_told():
    """`out=` is torch's: our functions allocate their results."""
    x, y = torch.randn(5, 5), torch.empty(5, 5)
    calls = {
        torch.tanh: torch.tanh(x), torch.sigmoid: torch.sigmoid(x),
        torch.nn.functional.gelu: torch.nn.functional.gelu(x),
    }  # fmt: skip
    with use("cpu"), pyflash.overrides():
        for function, expected in calls.items():
            assert function(x, out=y) is y and torch.equal(y, expected)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("backward", ["inside", "outside", "in another thread"])
@pytest.mark.parametrize("wish", ["auto", "cpu"])
def test_a_checkpoint_inside_overrides_drops_what_its_forward_dropped(wish, backward, use_reentrant):
    """Zeros of the gradient are those of the output: where the backend is asked for, small inputs are ours, too."""

    def block(x):
        inner = checkpoint(lambda x: F.dropout(x, 0.5, True) + 0 * x.tanh(), x, use_reentrant=use_reentrant)
        return F.dropout(inner, 0.1, True)

    def run_backward():
        y.backward(torch.ones_like(y))

    for shape in ((7, 11), (300, 200)):
        x = torch.ones(shape, requires_grad=True)
        torch.manual_seed(0)
        with use(wish), pyflash.overrides(), pyflash.overrides():
            y = checkpoint(block, x, use_reentrant=use_reentrant)
            if backward == "inside":
                run_backward()
        if backward == "outside":
            run_backward()
        elif backward != "inside":
            thread = threading.Thread(target=run_backward)
            thread.start()
            thread.join()
        assert 0 < (y == 0).sum() < y.numel()
        assert torch.equal(x.grad, y.detach())


def test_checkpoints_are_torchs_again_after_overrides():
    module = torch.utils.checkpoint
    before = module.CheckpointFunction.apply, module._CheckpointFrame.__init__
    entered, leave = threading.Event(), threading.Event()

    def other_thread():
        with pyflash.overrides():
            entered.set()
            leave.wait(20)

    thread = threading.Thread(target=other_thread)
    with pytest.raises(RuntimeError, match="boom"), pyflash.overrides(), pyflash.overrides():
        thread.start()
        assert entered.wait(20)
        raise RuntimeError("boom")
    kept = []
    x = torch.ones(3, requires_grad=True)

    def function(x):
        kept.append(torch._C._len_torch_function_stack())
        return x.sin()

    for use_reentrant in (True, False):  # without the mode in this thread: torch's own, though another thread has it
        checkpoint(function, x, use_reentrant=use_reentrant).sum().backward()
    leave.set()
    thread.join()
    assert kept == [0] * 4
    assert module._CheckpointFrame.__init__ is before[1] and module.CheckpointFunction.apply == before[0]
    assert "apply" not in vars(module.CheckpointFunction)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_of_transformers_inside_overrides(use_reentrant):
    """GPT-2 with dropout: the gradients are those without checkpointing, from the same seed."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=2, n_head=2, n_embd=64, vocab_size=50, resid_pdrop=0.3, embd_pdrop=0.0, attn_pdrop=0.3
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).train()
    tokens = torch.randint(50, (2, 96))
    found = []
    for recompute in (False, True):
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        model.zero_grad()
        torch.manual_seed(1)
        with use("cpu" if not backends.MISSING["cpu"] else "auto"), pyflash.overrides():
            loss = model(tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    torch.testing.assert_close(found[1], found[0])


def test_our_modules_read_nothing_through_the_mode():
    """Their functions are ours already; what somebody put into one of them is still asked for by the mode."""
    seen = []

    class Watched(pyflash.overrides):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return super().__torch_function__(func, types, args, kwargs)

    modules = [
        pyflash.nn.Linear(8, 8),
        pyflash.nn.LayerNorm(8),
        pyflash.nn.ReLU(),
        pyflash.nn.Tanh(),
        pyflash.nn.Dropout(0.5),
    ]
    forwards = [type(module).forward for module in modules]
    x = torch.randn(4, 8)
    with torch.no_grad(), Watched():
        for module in modules:
            module(x)
        assert not seen
        assert torch._C._len_torch_function_stack() == 1

        class Own(torch.nn.Module):
            def forward(self, x):
                return F.linear(x, torch.ones(32, 8))

        layer = pyflash.nn.TransformerEncoderLayer(8, 2, 32, batch_first=True).eval()
        layer.linear1 = Own()
        layer(x[None])
        assert F.linear in seen
        with pytest.raises(RuntimeError):
            modules[0](torch.ones(4, 9))
        assert torch._C._len_torch_function_stack() == 1
    assert [type(module).forward for module in modules] == forwards


def test_a_chain_runs_without_the_mode(monkeypatch):
    """As a module of ours does: what it calls is ours, and each shape that it reads would cost a call of the mode."""
    asked = Counter()
    answer = overrides.__torch_function__

    def counting(self, function, types, args=(), kwargs=None):
        asked[function] += 1
        return answer(self, function, types, args, kwargs)

    monkeypatch.setattr(overrides, "__torch_function__", counting)
    chain = pyflash.nn.Sequential(pyflash.nn.Conv2d(3, 4, 3), pyflash.nn.BatchNorm2d(4), pyflash.nn.ReLU()).eval()
    x = torch.randn(2, 3, 9, 9)
    expected = chain(x)
    with pyflash.overrides():
        found = chain(x)
    assert torch.equal(found, expected) and not asked
    assert torch.equal(chain(x), expected)
