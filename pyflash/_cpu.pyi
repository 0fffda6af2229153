"""The native module, whose functions take the integers that csrc/bindings reads."""

from typing import Any

def __getattr__(name: str) -> Any: ...
