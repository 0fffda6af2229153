"""Hugging Face transformers on our kernels.

    from pyflash.integrations import transformers as integration

    integration.register()
    model.set_attn_implementation("pyfused")  # or from_pretrained(..., attn_implementation="pyfused")
"""

from __future__ import annotations

from transformers import AttentionInterface, AttentionMaskInterface

from pyflash.integrations.transformers.attention import NAME, attention_forward, attention_mask

__all__ = ["NAME", "register"]


def register() -> None:
    """Makes `attn_implementation="pyfused"` known to transformers, once a process. A second call changes nothing."""
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, attention_mask)  # without one, no mask is made, and padding is lost
