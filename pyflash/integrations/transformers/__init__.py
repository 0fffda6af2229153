"""Hugging Face transformers on our kernels.

    import pyflash
    from pyflash.integrations import transformers as integration

    integration.register()
    model.set_attn_implementation("pyfused")  # or from_pretrained(..., attn_implementation="pyfused")
    pyflash.replace(model)

Once this is imported, `replace` takes the classes of theirs that are torch's in all but name, too (forms.py).
"""

from __future__ import annotations

from transformers import AttentionInterface, AttentionMaskInterface

from pyflash.integrations._forms import take
from pyflash.integrations.transformers.attention import NAME, attention_forward, attention_mask
from pyflash.integrations.transformers.forms import FORMS

__all__ = ["NAME", "register"]

take(__name__, "transformers", FORMS)


def register() -> None:
    """Makes `attn_implementation="pyfused"` known to transformers, once a process. A second call changes nothing."""
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, attention_mask)  # without one, no mask is made, and padding is lost
