"""The only Python that takes addresses: checked tensors in, integers to the native module. One file a kernel family.

Every function here is an implementation of an `Op`, called with CPU tensors that the operation has checked, and with
outputs the registry has allocated. The tensors stay alive in the caller's frame for the whole call.
"""

import torch

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}  # csrc/common/dtype.h
