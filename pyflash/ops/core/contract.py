"""What the native module and this Python have agreed on: the structs and bindings that the one fills for the other.

setup.py stamps a module with it as it is built. In a checkout both change, and a module of another age would take what it
is handed for other fields and other addresses; a wheel holds no sources, and the two come together. Imports nothing of
pyflash: setup.py runs this file.
"""

import hashlib
import re
from pathlib import Path

CSRC = Path(__file__).parents[3] / "csrc"
FOLDERS, SUFFIXES = ("common", "bindings"), (".h", ".inc", ".cpp")
_COMMENTS_AND_SPACE = re.compile(rb"//[^\n]*|\s+")


def contract(csrc: Path = CSRC) -> str:
    """A hash of what csrc/common and csrc/bindings say, comments and spaces apart; "" where the sources are not there."""
    found = hashlib.sha256()
    paths = sorted(path for path in csrc.glob("*/*") if path.parent.name in FOLDERS and path.suffix in SUFFIXES)
    for path in paths:
        found.update(path.name.encode() + b"\0" + _COMMENTS_AND_SPACE.sub(b"", path.read_bytes()))
    return found.hexdigest()[:16] if paths else ""


def is_kept_by(module) -> bool:
    """Was the native module built from the sources that lie beside this Python?"""
    here = contract()
    return not here or getattr(module, "CONTRACT", "") == here
