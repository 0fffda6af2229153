"""What the ahead-of-time table compiles: which calls of launchers (aot_calls.py), at which sizes, for which architectures."""

from benchmarks import aot_calls as calls

# W_hh in shared memory, re-read by a program that walks all steps, and a launch a step.
RECURRENT = (
    ("gru", "bfloat16", 64),
    ("lstm", "bfloat16", 128),
    ("lstm", "bfloat16", 512),
    ("lstm", "float32", 128),
    ("gru", "float32", 512),
)


# Rows that a program holds, longer ones, and columns of both kinds.
SOFTMAXES = (
    ("4096", (1024, 4096), 1),
    ("32768", (1024, 32768), 1),
    ("columns", (4, 64, 1024), 1),
    ("columns/1024", (4, 1024, 1024), 1),
)

# Convolutions: (label, channels of a group in and out, groups, size, kernel, stride, memory format, activation or gradient).
# ResNet-50's 3x3, its pointwise layers (row: contiguous, whose places are in a row), the first of a stage, its stem;
# ConvNeXt's and MobileNetV2's depthwise ones; ResNeXt's groups.
CONVOLUTIONS = (
    ("3x3/forward", 256, 256, 1, 14, 3, 1, "last", "relu"),
    ("3x3/input_grad", 256, 256, 1, 14, 3, 1, "last", "input_grad"),
    ("3x3/weight_grad", 256, 256, 1, 14, 3, 1, "last", "weight_grad"),
    ("3x3/gelu", 64, 64, 1, 56, 3, 1, "last", "gelu"),
    ("3x3/contiguous", 64, 64, 1, 56, 3, 1, "first", "gelu"),
    ("3x3/modulated", 64, 64, 1, 64, 3, 1, "last", "modulated"),
    ("3x3/contiguous/weight_grad", 64, 64, 1, 56, 3, 1, "first", "weight_grad"),
    ("1x1/forward", 256, 1024, 1, 14, 1, 1, "last", ""),
    ("1x1/row", 64, 256, 1, 56, 1, 1, "first", "relu"),
    ("1x1/row/weight_grad", 64, 256, 1, 56, 1, 1, "first", "weight_grad"),
    ("stride/input_grad", 128, 128, 1, 56, 3, 2, "last", "input_grad"),
    ("stem/forward", 3, 64, 1, 224, 7, 2, "last", "relu"),
    ("stem/weight_grad", 3, 64, 1, 224, 7, 2, "last", "weight_grad"),
    ("depthwise/forward", 1, 1, 384, 28, 7, 1, "last", ""),
    ("depthwise/input_grad", 1, 1, 384, 28, 3, 2, "last", "input_grad"),
    ("depthwise/weight_grad", 1, 1, 384, 28, 7, 1, "last", "weight_grad"),
    ("depthwise/contiguous", 1, 1, 384, 28, 3, 1, "first", ""),
    ("groups/forward", 4, 4, 32, 56, 3, 1, "last", ""),
)

# What is compiled without a word: every kernel once for each architecture that the tests promise something of, at most
# 190 compilations. --full is everything.
SHORT = (
    *(
        f"sm{arch}/{case}"
        for arch in (80, 90)
        for case in (
            "attention/bfloat16/64",
            "attention/bfloat16/128",
            "attention/float32/64",
            "attention_weights/bfloat16/64",
            "decode/bfloat16/128",
            "linear/bfloat16/gelu",
            "recurrent/lstm/bfloat16/128",
            "row_wise/bfloat16",
            "resample/bfloat16",
            "upfirdn2d/bfloat16",
        )
    ),
    "sm90/attention/bfloat16/64/bias",
    "sm90/linear/bfloat16/dgrad",
    "sm90/linear/bfloat16/wgrad",
    "sm90/layer_norm/bfloat16/32768",
    "sm90/rms_norm/bfloat16/4096",
    "sm90/channel_norm/bfloat16/batch",
    "sm90/embedding/bfloat16",
    "sm90/embedding_bag/float32",
    "sm90/rotary/bfloat16",
    "sm90/pool/bfloat16/2d",
    "sm90/gan_loss/bfloat16",
    "sm90/cross_entropy/bfloat16",
    "sm90/linear_cross_entropy/bfloat16",
    "sm90/nll_loss/bfloat16",
    "sm90/elementwise_loss/bfloat16",
    "sm90/row_loss/bfloat16",
    "sm90/minibatch_stddev/bfloat16",
    "sm90/tensor_stats/bfloat16",
    "sm90/optim_step/bfloat16/adam",
    "sm90/total_norm/bfloat16",
    "sm90/filtered_lrelu/bfloat16",
    "sm80/conv/bfloat16/3x3/forward",
    "sm90/conv/bfloat16/3x3/gelu",
    "sm90/conv/bfloat16/3x3/modulated",
    "sm90/conv/bfloat16/3x3/contiguous",
    "sm90/conv/bfloat16/3x3/weight_grad",
    "sm90/conv/bfloat16/depthwise/forward",
    "sm90/conv/bfloat16/depthwise/weight_grad",
    "sm90/softmax/bfloat16/4096",
    "sm90/softmax/bfloat16/columns/1024",
    "sm100/attention/bfloat16/64",
    "sm100/decode/bfloat16/128",
    "sm100/linear/bfloat16/gelu",
)


def cases():
    """name -> (architecture, call, its arguments). A row of the table is a name and the kernel's."""
    rows = {}

    def add(arch, call, label, **arguments):
        rows[f"sm{arch}/{call.__name__}/{label}"] = (arch, call.__name__, arguments)

    for arch in (80, 86, 90, 100):
        for head_dim in (64, 128, 256):
            add(arch, calls.attention, f"bfloat16/{head_dim}", dtype="bfloat16", head_dim=head_dim)
        add(arch, calls.decode, "bfloat16/128", dtype="bfloat16", head_dim=128)
        add(arch, calls.linear, "bfloat16/gelu", dtype="bfloat16")
        for kind in ("forward", "dgrad", "wgrad"):
            add(arch, calls.linear, f"bfloat16/{kind}", dtype="bfloat16", kind=kind)
        if arch == 86:
            continue
        for head_dim in (64, 128):
            add(arch, calls.attention, f"float32/{head_dim}", dtype="float32", head_dim=head_dim)
        for dtype in ("bfloat16", "float32"):
            add(arch, calls.attention_weights, f"{dtype}/64", dtype=dtype, head_dim=64)
        add(arch, calls.linear, "float32/gelu", dtype="float32")
    for arch in (80, 90):
        add(arch, calls.attention, "float16/64", dtype="float16", head_dim=64)
        add(arch, calls.attention, "bfloat16/96", dtype="bfloat16", head_dim=96)
        add(arch, calls.attention, "bfloat16/64/full", dtype="bfloat16", head_dim=64, window=(-1, -1))
        add(arch, calls.attention, "bfloat16/128/full", dtype="bfloat16", head_dim=128, window=(-1, -1))
        add(arch, calls.attention, "bfloat16/64/window", dtype="bfloat16", head_dim=64, window=(256, 0))
        add(arch, calls.attention, "bfloat16/64/bias", dtype="bfloat16", head_dim=64, window=(-1, -1), bias=True)
        add(arch, calls.attention, "bfloat16/64/dropout", dtype="bfloat16", head_dim=64, dropout_p=0.1)
        add(arch, calls.attention, "bfloat16/64/varlen", dtype="bfloat16", head_dim=64, varlen=True)
        for dtype in ("bfloat16", "float32"):
            add(arch, calls.attention_weights, f"{dtype}/128", dtype=dtype, head_dim=128)
        extras = dict(dtype="bfloat16", window=(-1, 0), bias=True, dropout_p=0.1)
        for head_dim in (64, 128):
            add(arch, calls.attention_weights, f"bfloat16/{head_dim}/extras", head_dim=head_dim, **extras)
        add(arch, calls.row_wise, "bfloat16", dtype="bfloat16")
        for dtype in ("bfloat16", "float32"):
            add(arch, calls.resample, dtype, dtype=dtype)
            add(arch, calls.upfirdn2d, dtype, dtype=dtype)
            add(arch, calls.filtered_lrelu, dtype, dtype=dtype)
            add(arch, calls.minibatch_stddev, dtype, dtype=dtype)
            add(arch, calls.gan_loss, dtype, dtype=dtype)
            add(arch, calls.cross_entropy, dtype, dtype=dtype)
            add(arch, calls.linear_cross_entropy, dtype, dtype=dtype)
            add(arch, calls.tensor_stats, dtype, dtype=dtype)
            for rule in ("sgd", "adam", "rmsprop"):
                add(arch, calls.optim_step, f"{dtype}/{rule}", dtype=dtype, rule=rule)
            add(arch, calls.total_norm, dtype, dtype=dtype)
            add(arch, calls.nll_loss, dtype, dtype=dtype)
            add(arch, calls.elementwise_loss, dtype, dtype=dtype)
            add(arch, calls.row_loss, dtype, dtype=dtype)
        for cols in (8192, 16384, 32768):
            add(arch, calls.layer_norm, f"bfloat16/{cols}", dtype="bfloat16", cols=cols)
        for cols in (4096, 32768):
            add(arch, calls.rms_norm, f"bfloat16/{cols}", dtype="bfloat16", cols=cols)
        add(arch, calls.embedding, "bfloat16", dtype="bfloat16")
        add(arch, calls.embedding_bag, "float32", dtype="float32")
        add(arch, calls.rotary, "bfloat16", dtype="bfloat16")
        add(arch, calls.pool, "bfloat16/2d", dtype="bfloat16")
        for label, sizes, dim in SOFTMAXES:
            add(arch, calls.softmax, f"bfloat16/{label}", sizes=sizes, dim=dim)
        for label, groups, is_last in (("batch", 0, False), ("batch_last", 0, True), ("group_last", 32, True)):
            add(arch, calls.channel_norm, f"bfloat16/{label}", dtype="bfloat16", groups=groups, is_last=is_last)
        for label, *form in CONVOLUTIONS:
            add(arch, calls.conv, f"bfloat16/{label}", dtype="bfloat16", form=form)
        add(arch, calls.conv, "float32/3x3/forward", dtype="float32", form=CONVOLUTIONS[0][1:])
        add(arch, calls.conv, "float32/3x3/weight_grad", dtype="float32", form=CONVOLUTIONS[2][1:])
        for cell, dtype, hidden in RECURRENT:
            add(arch, calls.recurrent, f"{cell}/{dtype}/{hidden}", cell=cell, dtype=dtype, hidden=hidden)
    return rows
