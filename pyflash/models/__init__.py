"""Whole networks written on pyflash.nn.

Every model takes `nn` as its last keyword: `nn=torch.nn` builds its twin from the same code, with the same keys in its
state_dict and, under the same seed, the same weights.
"""

from pyflash.models.bert import BERT, BERTConfig
from pyflash.models.checkpoints import load
from pyflash.models.clip import CLIP, CLIPConfig
from pyflash.models.convnext import ConvNeXt, convnext_tiny
from pyflash.models.dalle import DALLE, DALLEConfig
from pyflash.models.gpt import GPT, GPTConfig
from pyflash.models.lenet import LeNet
from pyflash.models.mlp import MLP
from pyflash.models.resnet import ResNet, resnet18, resnet34, resnet50
from pyflash.models.seq2seq import Seq2Seq, Seq2SeqConfig
from pyflash.models.t5 import T5, T5Config
from pyflash.models.vit import ViT, ViTConfig

__all__ = [
    "BERT",
    "CLIP",
    "DALLE",
    "GPT",
    "MLP",
    "T5",
    "BERTConfig",
    "CLIPConfig",
    "ConvNeXt",
    "DALLEConfig",
    "GPTConfig",
    "LeNet",
    "ResNet",
    "Seq2Seq",
    "Seq2SeqConfig",
    "T5Config",
    "ViT",
    "ViTConfig",
    "convnext_tiny",
    "load",
    "resnet18",
    "resnet34",
    "resnet50",
]  # fmt: skip
