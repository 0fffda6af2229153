"""torch.nn's names, with ours where we have one: `import pyflash.nn as nn`.

Names that are not ours (Module, ModuleList, Parameter, ...) are torch.nn's own.
"""

import torch

from pyflash.nn import (
    activation,
    batchnorm,
    container,
    conv,
    dropout,
    instancenorm,
    linear,
    loss,
    normalization,
    padding,
    pooling,
    positional,
    rnn,
    sparse,
    transformer,
    upsampling,
)
from pyflash.nn import (
    utils as utils,
)
from pyflash.nn.activation import *  # noqa: F403
from pyflash.nn.batchnorm import *  # noqa: F403
from pyflash.nn.container import *  # noqa: F403
from pyflash.nn.conv import *  # noqa: F403
from pyflash.nn.dropout import *  # noqa: F403
from pyflash.nn.instancenorm import *  # noqa: F403
from pyflash.nn.linear import *  # noqa: F403
from pyflash.nn.loss import *  # noqa: F403
from pyflash.nn.normalization import *  # noqa: F403
from pyflash.nn.padding import *  # noqa: F403
from pyflash.nn.pooling import *  # noqa: F403
from pyflash.nn.positional import *  # noqa: F403
from pyflash.nn.rnn import *  # noqa: F403
from pyflash.nn.sparse import *  # noqa: F403
from pyflash.nn.transformer import *  # noqa: F403
from pyflash.nn.upsampling import *  # noqa: F403

__all__: list[str] = []
__all__ += activation.__all__
__all__ += batchnorm.__all__
__all__ += container.__all__
__all__ += conv.__all__
__all__ += dropout.__all__
__all__ += instancenorm.__all__
__all__ += linear.__all__
__all__ += loss.__all__
__all__ += normalization.__all__
__all__ += padding.__all__
__all__ += pooling.__all__
__all__ += positional.__all__
__all__ += rnn.__all__
__all__ += sparse.__all__
__all__ += transformer.__all__
__all__ += upsampling.__all__


def __getattr__(name: str):
    try:
        return getattr(torch.nn, name)
    except AttributeError:
        raise AttributeError(f"module 'pyflash.nn' has no attribute {name!r}, nor has torch.nn") from None


def __dir__():
    return sorted({*globals(), *dir(torch.nn)})
