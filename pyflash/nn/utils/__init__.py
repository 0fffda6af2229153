"""torch.nn.utils' names. They are torch's own, and serve our modules as they are."""

import torch.nn.utils

from pyflash.nn.utils import parametrizations

__all__ = ["parametrizations"]


def __getattr__(name: str):
    try:
        return getattr(torch.nn.utils, name)
    except AttributeError:
        raise AttributeError(f"module 'pyflash.nn.utils' has no attribute {name!r}, nor has torch.nn.utils") from None


def __dir__():
    return sorted({*globals(), *dir(torch.nn.utils)})
