"""What the tests of optimisers share: parameters in every layout, seeded gradients, and as many steps by two optimisers."""

from __future__ import annotations

import torch

from pyflash.optim.replace import OURS

TWINS = {torchs.__name__: (ours, torchs) for torchs, ours in OURS.items()}

# optimiser, options
OPTIONS = [
    ("SGD", dict(lr=0.1)),
    ("SGD", dict(lr=0.1, weight_decay=0.1, maximize=True)),
    ("SGD", dict(lr=0.1, momentum=0.9)),
    ("SGD", dict(lr=0.1, momentum=0.9, dampening=0.3, weight_decay=0.1)),
    ("SGD", dict(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1, maximize=True)),
    ("Adam", dict(lr=0.01)),
    ("Adam", dict(lr=0.01, betas=(0.4, 0.9), eps=1e-3)),
    ("Adam", dict(lr=0.01, weight_decay=0.1, amsgrad=True)),
    ("Adam", dict(lr=0.01, maximize=True, decoupled_weight_decay=True, weight_decay=0.1)),
    ("AdamW", dict(lr=0.01)),
    ("AdamW", dict(lr=torch.tensor(0.01, dtype=torch.float64), amsgrad=True, weight_decay=0.3, maximize=True)),
    ("AdamW", dict(lr=0.0)),
    ("RMSprop", dict(lr=0.01)),
    ("RMSprop", dict(lr=0.01, alpha=0.7, eps=1e-3, weight_decay=0.1)),
    ("RMSprop", dict(lr=0.01, momentum=0.9, maximize=True)),
    ("RMSprop", dict(lr=0.01, centered=True)),
    ("RMSprop", dict(lr=0.01, centered=True, momentum=0.9, weight_decay=0.1)),
]


def name_of(row) -> str:
    name, options = row
    return " ".join([name, *(key if value is True else f"{key}={value}" for key, value in options.items())])


SHAPES = [(), (1,), (3, 37), (70, 5), (0, 4), (2, 3, 5, 5), (4099,)]


def parameters(dtype=torch.float32, shapes=SHAPES) -> list[torch.nn.Parameter]:
    """With one in channels_last and one that is a transposed view, both without holes."""
    generator = torch.Generator(device="cpu").manual_seed(1)
    values = [
        torch.randn(shape, generator=generator, device="cpu").to(torch.empty(0).device, dtype) for shape in shapes
    ]
    laid = [
        v.to(memory_format=torch.channels_last) if v.dim() == 4 else v.mT.contiguous().mT if v.shape == (70, 5) else v
        for v in values
    ]
    return [torch.nn.Parameter(v) for v in laid]


def give_gradients(params, step: int, scale: float = 1.0) -> None:
    """Of this step, rounded to bfloat16 so that every type has the same; as autograd lays them out."""
    generator = torch.Generator(device="cpu").manual_seed(100 + step)
    for p in params:
        grad = torch.randn(p.shape, generator=generator, device="cpu").bfloat16().mul(scale)
        p.grad = torch.empty_like(p).copy_(grad)


def tensors_of(optimizer) -> list[torch.Tensor]:
    """The parameters, then all states in the order of their names, but for the counts of steps."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    states = [optimizer.state[p][name] for p in params for name in sorted(optimizer.state[p]) if name != "step"]
    return [t.detach() for t in (*params, *states)]


def run(cls, options, dtype, steps: int, shapes=SHAPES, **more):
    params = parameters(torch.float32, shapes)
    params = [torch.nn.Parameter(torch.empty_like(p, dtype=dtype).copy_(p.detach())) for p in params]
    optimizer = cls(params, **options)
    for step in range(steps):
        give_gradients(params, step)
        optimizer.step(**more)
    return optimizer
