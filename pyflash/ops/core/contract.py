"""What the native module and this Python have agreed on: the structs and bindings that the one fills for the other.

setup.py stamps a module with it as it is built. In a checkout both change, and a module of another age would take what it
is handed for other fields and other addresses; a wheel holds no sources, and the two come together. Imports nothing of
pyflash: setup.py runs this file.
"""

import hashlib
import re
from pathlib import Path

CSRC = Path(__file__).parents[3] / "csrc"
CPU = ("common", "bindings")  # the folders that the module pyflash._cpu is bound by
CUDA = (*CPU, "bindings/cuda")  # pyflash._cuda and pyflash._cuda_host
SUFFIXES = (".h", ".inc", ".cpp")
_COMMENTS_AND_SPACE = re.compile(rb"//[^\n]*|\s+")


def contract(csrc: Path = CSRC, folders: tuple[str, ...] = CPU) -> str:
    """A hash of what these folders say, comments and spaces apart; "" where the sources are not there."""
    found = hashlib.sha256()
    paths = sorted(path for folder in folders for path in (csrc / folder).glob("*") if path.suffix in SUFFIXES)
    for path in paths:
        found.update(path.name.encode() + b"\0" + _COMMENTS_AND_SPACE.sub(b"", path.read_bytes()))
    return found.hexdigest()[:16] if paths else ""


def is_kept_by(module, folders: tuple[str, ...] = CPU) -> bool:
    """Was the native module built from the sources that lie beside this Python?"""
    here = contract(folders=folders)
    return not here or getattr(module, "CONTRACT", "") == here
