"""What kernels rely on of columns of tensors: the short way to find it says what the long one says."""

import pytest
import torch

from pyflash.ops.optim import columns


def usual(tensors):
    return columns._usual(tensors, columns._facts([t for column in tensors for t in column], len(tensors)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("width", [1, 2, 4])
def test_usual_columns_are_found_as_one_by_one(width, dtype):
    tensors = [
        [torch.randn(3, 4, dtype=dtype), torch.randn(5, dtype=dtype), torch.randn(1)[0].to(dtype)] for _ in range(width)
    ]
    assert usual(tensors) == columns._checked(list(zip(*tensors))) and usual(tensors)[1] == {}


def made():
    return [[torch.randn(4, 3), torch.randn(5)] for _ in range(2)]


def with_inference():
    with torch.inference_mode():
        return torch.randn(5)


UNUSUAL = {
    "one memory twice": lambda first: first,
    "the end of another's": lambda first: torch.as_strided(first.view(-1), (5,), (1,), 3),
    "negative": lambda first: torch._neg_view(torch.randn(5)),
    "of inference_mode": lambda first: with_inference(),
    "of another type": lambda first: torch.randn(5).double(),
    "of integers": lambda first: torch.arange(5),
    "not contiguous": lambda first: torch.randn(10)[::2],
    "of another shape": lambda first: torch.randn(5, 1),
    "empty": lambda first: torch.randn(0),
    "sparse": lambda first: torch.randn(5).to_sparse(),
    "a subclass": lambda first: torch.randn(5).as_subclass(type("Own", (torch.Tensor,), {})),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_is_unusual_is_looked_at_one_by_one(name):
    tensors = made()
    tensors[1][1] = UNUSUAL[name](tensors[0][0])
    assert usual(tensors) is None
    served, refused = columns.Checked()(tensors)
    assert 1 in refused and all(1 not in lists.rows for lists in served)


def test_columns_that_change_are_looked_at_again():
    checked, tensors = columns.Checked(), made()
    assert checked(tensors)[1] == {}
    tensors[0][1] = tensors[1][1] = torch.randn(5)
    assert 1 in checked(tensors)[1]
