"""What the family offers in pyflash.functional, and which of torch's functions that stands for."""

from functools import partial

import torch
import torch.nn.functional as F

from pyflash.activations import ACTIVATIONS
from pyflash.ops.core.public import stands_for
from pyflash.ops.pointwise import functions
from pyflash.ops.pointwise.bias_act import bias_act, bias_act_dropout_add
from pyflash.ops.pointwise.dropout import dropout
from pyflash.ops.pointwise.dropout_forms import alpha_dropout, dropout1d, dropout2d, dropout3d, feature_alpha_dropout
from pyflash.ops.pointwise.functions import *  # noqa: F403
from pyflash.ops.pointwise.gated import gated_act, glu
from pyflash.ops.pointwise.prelu import prelu
from pyflash.ops.pointwise.rrelu import rrelu, rrelu_

__all__ = ["alpha_dropout", "bias_act", "bias_act_dropout_add", "dropout", "dropout1d", "dropout2d", "dropout3d"]
__all__ += ["feature_alpha_dropout", "gated_act", "glu", "prelu", "rrelu"]
__all__ += functions.__all__

stands_for({F.dropout: dropout})
stands_for({F.glu: glu, F.prelu: prelu, torch.Tensor.prelu: prelu, F.rrelu: rrelu, torch.rrelu_: rrelu_})
for _form in (alpha_dropout, dropout1d, dropout2d, dropout3d, feature_alpha_dropout):
    stands_for({getattr(F, _form.__name__): _form})
for _row in ACTIVATIONS.values():  # F.tanh and F.sigmoid reach a mode as the tensor methods that they call
    _ours = getattr(functions, _row.function)
    stands_for(dict.fromkeys({getattr(F, _row.function), *_row.torch_functions}, _ours))
    if _row.inplace:
        _name = f"{_row.function}_"
        _torchs = {getattr(module, _name) for module in (F, torch, torch.Tensor) if hasattr(module, _name)}
        stands_for(dict.fromkeys(_torchs, partial(_ours, inplace=True)))
