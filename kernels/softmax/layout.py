"""The kinds of softmax, of all backends. No Triton here."""

KINDS = {"softmax": 0, "log_softmax": 1, "softmin": 2}  # csrc/common/softmax.h
NEGATES = "softmin"  # the kind that takes -x
LOGARITHM = "log_softmax"  # the kind whose result is the logarithm
