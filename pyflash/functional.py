"""torch.nn.functional's names and signatures, and the fused operations beside them."""

from pyflash.ops.attention import public as _attention
from pyflash.ops.attention.public import *  # noqa: F403
from pyflash.ops.conv import public as _conv
from pyflash.ops.conv.public import *  # noqa: F403
from pyflash.ops.embedding import public as _embedding
from pyflash.ops.embedding.public import *  # noqa: F403
from pyflash.ops.gan import public as _gan
from pyflash.ops.gan.public import *  # noqa: F403
from pyflash.ops.linear import public as _linear
from pyflash.ops.linear.public import *  # noqa: F403
from pyflash.ops.loss import public as _loss
from pyflash.ops.loss.public import *  # noqa: F403
from pyflash.ops.norm import public as _norm
from pyflash.ops.norm.public import *  # noqa: F403
from pyflash.ops.optim import public as _optim
from pyflash.ops.optim.public import *  # noqa: F403
from pyflash.ops.pointwise import public as _pointwise
from pyflash.ops.pointwise.functions import *  # noqa: F403  (type checkers do not follow the next line there)
from pyflash.ops.pointwise.public import *  # noqa: F403
from pyflash.ops.pool import public as _pool
from pyflash.ops.pool.public import *  # noqa: F403
from pyflash.ops.recurrent import public as _recurrent
from pyflash.ops.recurrent.public import *  # noqa: F403
from pyflash.ops.resample import public as _resample
from pyflash.ops.resample.public import *  # noqa: F403
from pyflash.ops.softmax import public as _softmax
from pyflash.ops.softmax.public import *  # noqa: F403

__all__: list[str] = []
__all__ += _attention.__all__
__all__ += _conv.__all__
__all__ += _embedding.__all__
__all__ += _gan.__all__
__all__ += _linear.__all__
__all__ += _loss.__all__
__all__ += _norm.__all__
__all__ += _optim.__all__
__all__ += _pointwise.__all__
__all__ += _pool.__all__
__all__ += _recurrent.__all__
__all__ += _resample.__all__
__all__ += _softmax.__all__
