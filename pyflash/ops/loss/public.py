"""What the family offers in pyflash.functional, and which of torch's functions that stands for."""

import torch.nn.functional as F

from pyflash.ops.core.public import stands_for
from pyflash.ops.loss.cross_entropy import cross_entropy
from pyflash.ops.loss.embeddings import (
    cosine_embedding_loss,
    triplet_margin_loss,
    triplet_margin_with_distance_loss,
)
from pyflash.ops.loss.gan import gan_discriminator_loss, gan_generator_loss
from pyflash.ops.loss.linear_cross_entropy import linear_cross_entropy
from pyflash.ops.loss.margins import hinge_embedding_loss, margin_ranking_loss
from pyflash.ops.loss.nll import nll_loss
from pyflash.ops.loss.penalties import gradient_penalty, r1_penalty
from pyflash.ops.loss.probabilities import binary_cross_entropy, binary_cross_entropy_with_logits, kl_div
from pyflash.ops.loss.regression import (
    huber_loss,
    l1_loss,
    mse_loss,
    poisson_nll_loss,
    smooth_l1_loss,
    soft_margin_loss,
)

__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cosine_embedding_loss",
    "cross_entropy",
    "gan_discriminator_loss",
    "gan_generator_loss",
    "gradient_penalty",
    "hinge_embedding_loss",
    "huber_loss",
    "kl_div",
    "l1_loss",
    "linear_cross_entropy",
    "margin_ranking_loss",
    "mse_loss",
    "nll_loss",
    "poisson_nll_loss",
    "r1_penalty",
    "smooth_l1_loss",
    "soft_margin_loss",
    "triplet_margin_loss",
    "triplet_margin_with_distance_loss",
]

_TORCHS = (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cosine_embedding_loss,
    cross_entropy,
    hinge_embedding_loss,
    huber_loss,
    kl_div,
    l1_loss,
    linear_cross_entropy,
    margin_ranking_loss,
    mse_loss,
    nll_loss,
    poisson_nll_loss,
    smooth_l1_loss,
    soft_margin_loss,
    triplet_margin_loss,
    triplet_margin_with_distance_loss,
)
# linear_cross_entropy is new in torch 2.13.
stands_for({getattr(F, ours.__name__): ours for ours in _TORCHS if hasattr(F, ours.__name__)})
