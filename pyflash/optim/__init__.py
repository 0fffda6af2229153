"""torch.optim's optimisers, each group's step in one pass over memory; `replace` makes one of a torch optimiser."""

from pyflash.optim.adam import Adam
from pyflash.optim.adamw import AdamW
from pyflash.optim.replace import replace, restore
from pyflash.optim.rmsprop import RMSprop
from pyflash.optim.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "RMSprop", "replace", "restore"]
