"""The calls of launchers that the ahead-of-time table compiles (aot_cases.py), on tensors that `empty` makes of sizes, without
memory."""


def attention(empty, dtype, head_dim, window=(-1, 0), bias=False, dropout_p=0.0, varlen=False):
    """Forward and backward, causal unless said, 32 query heads on 8 key heads, in [batch, length, heads] order."""
    from pyflash.kernels.attention import dense as kernels

    scalars = dropout_p, head_dim**-0.5, 0.0, *window
    seed = empty(1, dtype="int64")
    if varlen:
        q, out, dout, dq = (empty(4096, 32, head_dim, dtype=dtype) for _ in range(4))
        k, v, dk, dv = (empty(4096, 8, head_dim, dtype=dtype) for _ in range(4))
        lse, cu_seqlens = empty(32, 4096), empty(5, dtype="int32")
        lengths = None, seed, 1024, 1024
        kernels.attention_varlen_fwd(q, k, v, cu_seqlens, cu_seqlens, *lengths, *scalars, True, out, lse)
        kernels.attention_varlen_bwd(
            dout, None, q, k, v, out, lse, cu_seqlens, cu_seqlens, *lengths, *scalars, True, dq, dk, dv
        )
        return
    q, out, dout, dq = (empty(4, 1024, 32, head_dim, dtype=dtype).transpose(1, 2) for _ in range(4))
    k, v, dk, dv = (empty(4, 1024, 8, head_dim, dtype=dtype).transpose(1, 2) for _ in range(4))
    lse = empty(*((2,) if bias else ()), 4, 32, 1024)
    mask = empty(1, 32, 1024, 1024, dtype=dtype).expand(4, -1, -1, -1) if bias else None
    dmask = empty(1, 32, 1024, 1024, dtype=dtype) if bias else None
    kernels.attention_fwd(q, k, v, mask, None, seed, *scalars, 0, out, lse)
    kernels.attention_bwd(dout, None, q, k, v, out, lse, mask, None, seed, *scalars, 0, bias, dq, dk, dv, dmask)


def attention_weights(empty, dtype, head_dim, window=(-1, -1), bias=False, dropout_p=0.0):
    """Forward and backward of the matrix, all keys visible unless said, as nn.MultiheadAttention asks for it."""
    from pyflash.kernels.attention import weights as kernels

    scalars = dropout_p, head_dim**-0.5, 0.0, *window, 0
    seed = empty(1, dtype="int64")
    q, k, dq, dk = (empty(4, 1024, 16, head_dim, dtype=dtype).transpose(1, 2) for _ in range(4))
    weights, dweights = (empty(4, 16, 1024, 1024, dtype=dtype) for _ in range(2))
    lse = empty(*((2,) if bias else ()), 4, 16, 1024)
    mask = empty(1, 16, 1024, 1024, dtype=dtype).expand(4, -1, -1, -1) if bias else None
    dmask = empty(1, 16, 1024, 1024, dtype=dtype) if bias else None
    kernels.attention_weights_fwd(q, k, mask, seed, *scalars, weights, lse)
    kernels.attention_weights_bwd(dweights, q, k, weights, lse, mask, seed, *scalars, bias, dq, dk, dmask)


def decode(empty, dtype, head_dim):
    from pyflash.kernels.attention import decode as kernels

    q, out = (empty(1, 32, 1, head_dim, dtype=dtype) for _ in range(2))
    k, v = (empty(1, 8, 8192, head_dim, dtype=dtype) for _ in range(2))
    kernels.attention_decode(q, k, v, empty(1, dtype="int32"), None, None, 1.0, 0.0, -1, 0, out, empty(1, 32, 1))


def linear(empty, dtype, kind="gelu"):
    """The product with a fused GELU, or one of the three that a plain layer takes."""
    from pyflash.kernels import linear as kernels

    x, weight, bias = empty(1024, 512, dtype=dtype), empty(2048, 512, dtype=dtype), empty(2048, dtype=dtype)
    y, preact = (empty(1024, 2048, dtype=dtype) for _ in range(2))
    if kind == "gelu":
        kernels.linear_fwd(x, weight, bias, "gelu", 0.0, 0.0, True, y, preact)
    elif kind == "forward":
        kernels.linear_fwd(x, weight, bias, "", 0.0, 0.0, False, y, None)
    else:
        grads = empty(1024, 512, dtype=dtype), empty(2048, 512, dtype=dtype), bias
        kernels.linear_bwd(y, x, weight, None, "", 0.0, 0.0, kind == "dgrad", kind == "wgrad", False, *grads)


def conv(empty, dtype, form):
    """A forward with what follows it, an input gradient or a weight gradient, of 32 images."""
    from pyflash.kernels import conv as kernels

    inputs, outputs, groups, size, kernel, stride, layout, what = form

    def image(channels, size):
        shape = (32, channels, size, size) if layout == "first" else (32, size, size, channels)
        return empty(*shape, dtype=dtype) if layout == "first" else empty(*shape, dtype=dtype).permute(0, 3, 1, 2)

    x, (y, preact, residual) = image(inputs * groups, size), (image(outputs * groups, size // stride) for _ in range(3))
    shape = (outputs * groups, inputs, kernel, kernel)
    weight = empty(*shape, dtype=dtype)
    if layout == "last":
        weight = empty(*(shape[i] for i in (0, 2, 3, 1)), dtype=dtype).permute(0, 3, 1, 2)
    bias = empty(outputs * groups, dtype=dtype)
    geometry = (stride, stride), (kernel // 2, kernel // 2), (1, 1), groups
    if what == "input_grad":
        kernels.conv_input_grad(y, weight, None, x.shape[2:], *geometry, False, x)
    elif what == "weight_grad":
        kernels.conv_weight_grad(y, x, weight.shape[2:], *geometry, weight)
    elif what == "modulated":
        style, scale, noise = empty(32, inputs, dtype=dtype), empty(32, outputs, dtype=dtype), residual[:, :1]
        leaky = "leaky_relu", 0.2, 0.0, 1.4, 256.0
        kernels.modulated_conv_fwd(x, weight, style, scale, bias, noise, y.shape[2:], *geometry, *leaky, False, y)
    else:
        kernels.conv_fwd(
            x,
            weight,
            None,
            bias,
            residual if what else None,
            y.shape[2:],
            *geometry,
            what,
            0.0,
            0.0,
            what == "gelu",
            False,
            y,
            preact,
        )


def recurrent(empty, cell, dtype, hidden):
    """One direction of 64 rows, 128 steps; the backward of stored gates."""
    from pyflash.auto.recurrent import GATES
    from pyflash.kernels.recurrent import layers as kernels

    gates, length, batch = GATES[cell], 128, 64
    x, y, dy, dx = (empty(length, batch, hidden, dtype=dtype) for _ in range(4))
    h_0, c_0, h_n, c_n, dh_n, dc_n, dh_0, dc_0 = (empty(1, batch, hidden, dtype=dtype) for _ in range(8))
    shapes = (gates * hidden, hidden), (gates * hidden, hidden), (gates * hidden,), (gates * hidden,)
    weights, dweights = ([empty(*shape, dtype=dtype) for shape in shapes] for _ in range(2))
    cells, saved = empty(1, length, batch, hidden), empty(1, length, batch, 4, hidden)
    if cell != "lstm":
        c_0 = dc_n = None
    if cell.startswith("rnn"):
        saved = empty(0)
    form = cell, False
    kernels.rnn_fwd(x, h_0, c_0, weights, None, None, *form, True, True, y, h_n, c_n, cells, saved)
    needs = [True, True, c_0 is not None, *[True] * 4]
    kernels.rnn_bwd(
        x, dy, dh_n, dc_n, None, h_0, c_0, weights, None, None, y, cells, saved, *form, needs, dx, dh_0, dc_0, *dweights
    )


def layer_norm(empty, dtype, cols):
    """Rows that no program holds in its registers."""
    from pyflash.kernels.norm import layer_norm as kernels

    x, y, dx = (empty(1024, cols, dtype=dtype) for _ in range(3))
    weight, bias, dweight, dbias = (empty(cols, dtype=dtype) for _ in range(4))
    mean, rstd = empty(1024), empty(1024)
    kernels.layer_norm_fwd(x, None, weight, bias, 1e-5, y, None, mean, rstd)
    kernels.layer_norm_bwd(y, None, x, weight, mean, rstd, True, True, True, dx, dweight, dbias)


def rms_norm(empty, dtype, cols):
    """LayerNorm's kernels without a mean: what is left of them. In registers up to 8192 columns."""
    from pyflash.kernels.norm import rms_norm as kernels

    x, y, dx = (empty(1024, cols, dtype=dtype) for _ in range(3))
    weight, dweight = (empty(cols, dtype=dtype) for _ in range(2))
    rstd = empty(1024)
    kernels.rms_norm_fwd(x, None, weight, 1e-6, y, None, rstd)
    kernels.rms_norm_bwd(y, None, x, weight, rstd, True, True, dx, dweight)


def embedding(empty, dtype):
    """BERT's words, 8 x 512 of them: look-up, gradient and renormalised rows."""
    from pyflash.kernels.embedding import embedding as kernels

    weight, dweight = (empty(30522, 768, dtype=dtype) for _ in range(2))
    y, indices = empty(4096, 768, dtype=dtype), empty(4096, dtype="int64")
    kernels.embedding_fwd(weight, indices, y)
    kernels.embedding_bwd(y, indices, 30522, 0, False, dweight)
    kernels.embedding_renorm(weight, indices, 1.0, 2.0, y)


def embedding_bag(empty, dtype):
    """DLRM's, 2048 bags of 32: the sum with factors, the gradients of table and factors, and the maximum's."""
    from pyflash.kernels.embedding import bag as kernels

    weight, dweight, y = empty(100000, 64, dtype=dtype), empty(100000, 64, dtype=dtype), empty(2048, 64, dtype=dtype)
    indices, factors, dfactors = empty(65536, dtype="int64"), empty(65536, dtype=dtype), empty(65536, dtype=dtype)
    bounds, counts, winners = (empty(*shape, dtype="int64") for shape in ((2049,), (2048,), (2048, 64)))
    for mode, per_sample in (("max", None), ("sum", factors)):  # one row of the table a kernel: the last
        kernels.embedding_bag_fwd(weight, indices, bounds, per_sample, mode, -1, y, counts, winners)
        kernels.embedding_bag_bwd(y, indices, bounds, per_sample, counts, winners, 100000, mode, -1, False, dweight)
    kernels.embedding_bag_dots(y, weight, indices, bounds, -1, dfactors)


def rotary(empty, dtype):
    """Llama's: views of projections, each with both ways to pair elements."""
    from pyflash.kernels.embedding import rotary as kernels

    x, y = (empty(1, 2048, 32, 128, dtype=dtype).transpose(1, 2) for _ in range(2))
    cos, sin = empty(1, 2048, 64), empty(1, 2048, 64)
    for interleaved in (True, False):  # one row of the table: the last
        kernels.rotary(x, cos, sin, interleaved, False, y)


def pool(empty, dtype):
    """Windows of 3 x 3 that overlap, on images."""
    from pyflash.kernels.pool import avg_pool, max_pool, max_unpool

    x, dx, (y, dy) = (
        *(empty(8, 64, 112, 112, dtype=dtype) for _ in range(2)),
        [empty(8, 64, 56, 56, dtype=dtype) for _ in range(2)],
    )
    indices = empty(8, 64, 56, 56, dtype="int32")
    windows = (56, 56), (3, 3), (2, 2), (1, 1)
    max_pool.max_pool_fwd(x, *windows, (1, 1), 32, y, indices)
    max_pool.max_pool_bwd(dy, indices, x.shape, False, *windows, (1, 1), dx)
    avg_pool.avg_pool_fwd(x, *windows, True, 0, y)
    avg_pool.avg_pool_bwd(dy, x.shape, False, *windows, True, 0, dx)
    places = empty(8, 64, 56, 56, dtype="int64")
    max_unpool.max_unpool_fwd(y, places, (112, 112), False, x)
    max_unpool.max_unpool_bwd(dx, places, 2, False, dy)


def softmax(empty, sizes, dim):
    """Softmax of a half type into float32, as attention's scores, and its backward; the logarithm in one type."""
    from pyflash.kernels.softmax import softmax as kernels

    x, dx, log_y = (empty(*sizes, dtype="bfloat16") for _ in range(3))
    y, dy = empty(*sizes), empty(*sizes)
    kernels.softmax_fwd(x, dim, "log_softmax", log_y.dtype, log_y)
    kernels.softmax_fwd(x, dim, "softmax", y.dtype, y)
    kernels.softmax_bwd(dy, y, dim, "softmax", dx.dtype, dx)


def channel_norm(empty, dtype, groups, is_last):
    """BatchNorm with ReLU, or GroupNorm with SiLU, after a residual, and the norms of a pixel's channels; 8 images of 256."""
    from pyflash.kernels.norm import channels as kernels
    from pyflash.kernels.norm import channels_second, local_response, normalize, spectral

    batch, channels, positions = 8, 256, 3136
    shape = (batch, positions, channels) if is_last else (batch, channels, positions)
    x, residual, y, dy, dx, dresidual = (empty(*shape, dtype=dtype) for _ in range(6))
    if is_last:
        x, residual, y, dy, dx, dresidual = (t.transpose(1, 2) for t in (x, residual, y, dy, dx, dresidual))
    weight, bias, running, new = (empty(channels) for _ in range(4))
    mean, rstd = (empty(batch * groups if groups else channels) for _ in range(2))
    tracked = (None, None) if groups else (running, running)
    ending = "silu" if groups else "relu", 0.0, 0.0
    kernels.channel_norm_fwd(
        x, residual, weight, bias, *tracked, groups, True, 0.1, 1e-5, *ending, y, mean, rstd, new, new
    )
    kernels.channel_norm_bwd(
        dy, x, residual, weight, bias, mean, rstd, groups, True, *ending, not groups, *[True] * 4, dx, dresidual, weight,
        bias,
    )  # fmt: skip
    channels_second.channel_norm_bwd_bwd(
        dy, x, residual, weight, bias, mean, rstd, dx, None, weight, None, groups, True, *ending, True, True, bool(groups),
        True, bool(groups), y, dx, dresidual, weight, bias,
    )  # fmt: skip
    local_response.local_response_norm_fwd(x, 5, 1e-4, 0.75, 2.0, y)
    local_response.local_response_norm_bwd(dy, x, 5, 1e-4, 0.75, 2.0, dx)
    shape = (batch * positions, channels, 1) if is_last else (batch, channels, positions)
    x, y, dy, dx = (empty(*shape, dtype=dtype) for _ in range(4))
    norm = empty(shape[0], shape[2])
    normalize.normalize_fwd(x, "two", 1e-12, y, norm)
    normalize.normalize_bwd(dy, x, norm, "two", 1e-12, dx)
    # The weights of three layers: two convolutions and a transposed one.
    dims, sizes = [0, 0, 1], ((256, 128, 3, 3), (512, 256, 4, 4), (512, 256, 4, 4))
    weights = [empty(*size, dtype=dtype) for size in sizes]
    rows = [size[dim] for dim, size in zip(dims, sizes)]
    us = [empty(n, dtype=dtype) for n in rows]
    vs = [empty(w.numel() // n, dtype=dtype) for w, n in zip(weights, rows)]
    for iterations in (1, 0):
        spectral.spectral_sigma(
            weights, us, vs, dims, [iterations] * 3, [1e-12] * 3, *us, *vs, *(empty(1) for _ in rows)
        )
    spectral.spectral_scale_fwd(weights[2], us[2], vs[2], norm, 1, weights[1])
    spectral.spectral_scale_bwd(weights[0], weights[2], us[2], vs[2], norm, 1, weights[1])


def row_wise(empty, dtype):
    """LayerNorm with a residual, dropout and an activation, and what is pointwise besides."""
    from pyflash.kernels.norm import layer_norm
    from pyflash.kernels.pointwise import activation, bias_act, dropout, gated, prelu, rrelu

    x, residual, y, summed = (empty(4096, 1024, dtype=dtype) for _ in range(4))
    weight, bias, dweight, dbias = (empty(1024, dtype=dtype) for _ in range(4))
    mean, rstd = empty(4096), empty(4096)
    layer_norm.layer_norm_fwd(x, residual, weight, bias, 1e-5, y, summed, mean, rstd)
    layer_norm.layer_norm_bwd(y, x, summed, weight, mean, rstd, True, True, True, residual, dweight, dbias)
    seed, sums = empty(1, dtype="int64"), empty(1024)
    dropout.dropout(x, seed, 0.1, y)
    activation.activation_fwd(x, "gelu", 0.0, 0.0, y)
    activation.activation_bwd_bwd(x, residual, x, "gelu", 0.0, 0.0, True, y, summed)
    bias_act.bias_act_fwd(x, bias, residual, seed, 1, "gelu", 0.0, 0.0, 1.0, -1.0, 0.1, y)
    bias_act.bias_act_bwd(y, x, bias, seed, 1, "gelu", 0.0, 0.0, 1.0, -1.0, 0.1, True, residual, sums)
    gated.gated_fwd(x, residual, False, "silu", 0.0, 0.0, y)
    gated.gated_bwd(y, x, residual, False, "silu", 0.0, 0.0, y, summed)
    gated.gated_bwd_bwd(x, x, residual, y, y, False, "silu", 0.0, 0.0, y, summed, residual)
    prelu.prelu_fwd(x, weight, y)
    prelu.prelu_bwd(y, x, weight, True, residual, sums)
    rrelu.rrelu(x, x, seed, 0.1, 0.3, y)


def gan_loss(empty, dtype):
    """A discriminator's logits, their gradients and those of these: of a U-Net, and of a batch."""
    from pyflash.kernels.loss import means

    dy = empty(dtype=dtype)
    terms = "softplus_negative", "softplus"
    for shape in ((64, 1), (16, 256, 256)):
        x, z, ddx, ddz, dx, dz = (empty(*shape, dtype=dtype) for _ in range(6))
        means.mean_terms_fwd(x, z, *terms, dy.dtype, dy)
    means.mean_terms_second(dy, ddx, ddz, x, z, *terms, dy, dx, dz)
    means.mean_terms_bwd(dy, x, z, *terms, True, True, dx, dz)


def cross_entropy(empty, dtype):
    """Of classes, a language model's tokens, and of a segmentation's pixels with smoothing."""
    from pyflash.kernels.loss import cross_entropy as kernels

    for shape, smoothing in (((4096, 32768), 0.0), ((4, 21, 65536), 0.1)):
        x, dx = empty(*shape, dtype=dtype), empty(*shape, dtype=dtype)
        softmaxes = shape[0], *shape[2:]
        targets, tops, logs = empty(*softmaxes, dtype="int64"), empty(*softmaxes), empty(*softmaxes)
        loss, total, options = empty(dtype=dtype), empty(), (-100, smoothing, "mean")
        kernels.cross_entropy_fwd(x, targets, None, None, *options, loss.dtype, loss, tops, logs, total)
        kernels.cross_entropy_bwd(loss, x, targets, None, None, tops, logs, total, *options, True, False, dx, dx)


def linear_cross_entropy(empty, dtype):
    """A language model's head, with smoothing too; its products are `linear`'s."""
    from pyflash.kernels.loss import linear_cross_entropy as kernels

    rows, classes, features = 4096, 32768, 1024
    x, weight, bias = (
        empty(rows, features, dtype=dtype),
        empty(classes, features, dtype=dtype),
        empty(classes, dtype=dtype),
    )
    targets, tops, logs = empty(rows, dtype="int64"), empty(rows), empty(rows)
    loss, total, nothing = empty(dtype=dtype), empty(), empty(0, dtype=dtype)
    for smoothing, class_weight, of_scores in ((0.0, None, None), (0.1, empty(classes), bias)):
        head, options = (x, weight, of_scores, targets, class_weight), (-100, smoothing, "mean")
        needs = (False,) * 3
        gradients = nothing, nothing, nothing
        kernels.linear_cross_entropy_fwd(*head, *options, loss.dtype, *needs, loss, tops, logs, total, *gradients)
        kernels.linear_cross_entropy_bwd(loss, *head, tops, logs, total, *options, *needs, *gradients)


def nll_loss(empty, dtype):
    """Of a language model's tokens, and of a segmentation's pixels with weights."""
    from pyflash.kernels.loss import nll as kernels

    for shape, is_weighted in (((4096, 32768), False), ((4, 21, 65536), True)):
        x, dx, targets = (
            empty(*shape, dtype=dtype),
            empty(*shape, dtype=dtype),
            empty(shape[0], *shape[2:], dtype="int64"),
        )
        weight = empty(shape[1]) if is_weighted else None
        loss, total, options = empty(dtype=dtype), empty(), (-100, "mean")
        kernels.nll_loss_fwd(x, targets, weight, *options, loss.dtype, loss, total)
        kernels.nll_loss_bwd(loss, shape, targets, weight, total, *options, x.dtype, dx)


def row_loss(empty, dtype):
    """Embeddings in pairs, and in triplets that are swapped."""
    from pyflash.kernels.loss import row_loss as kernels

    a, b, c, da, db, dc = (empty(4096, 512, dtype=dtype) for _ in range(6))
    y, sums, target = empty(dtype=dtype), empty(4096, 3, dtype="float64"), empty(4096, dtype=dtype)
    for tensors, loss, is_swapped in (
        ((a, b, None, target), "cosine_embedding", False),
        ((a, b, c, None), "triplet_margin", True),
    ):
        options = loss, 1.0, 1e-6, 2, is_swapped, "sum", 4096.0
        kernels.row_loss_fwd(*tensors, *options, y.dtype, y, sums)
        kernels.row_loss_bwd(y, *tensors, sums, *options, True, True, tensors[2] is not None, da, db, dc)


def elementwise_loss(empty, dtype):
    """Images that are compared, and logits of classes with weights of their positive examples."""
    from pyflash.kernels.loss import elementwise as kernels

    y, total = empty(dtype=dtype), empty(dtype="float64")
    for loss, shape in (("mse", (32, 3, 256, 256)), ("binary_cross_entropy_with_pos_weight", (4096, 1000))):
        x, target, dx = (empty(*shape, dtype=dtype) for _ in range(3))
        pos_weight = None if loss == "mse" else empty(1000, dtype=dtype)
        tensors, options = (x, target, None, pos_weight), (loss, 0.0, "sum")
        kernels.elementwise_loss_fwd(*tensors, *options, 1.0, y.dtype, y, total)
        kernels.elementwise_loss_bwd(y, *tensors, total, *options, True, False, dx, dx)


def resample(empty, dtype):
    """An image of twice the size, bilinear; its gradient has the same kernel."""
    from pyflash.kernels.resample import resample as kernels
    from pyflash.ops.resample.tables import identity, interpolated

    x, y = empty(8, 64, 64, 64, dtype=dtype), empty(8, 64, 128, 128, dtype=dtype)
    axis = interpolated("bilinear", False, 64, 128, 0.0, False, False, False)
    kernels.resample(x, 8 * 64, (identity(1), axis, axis), 1, 0.0, y)


def upfirdn2d(empty, dtype):
    """StyleGAN2's to twice the size and to half of it."""
    from pyflash.kernels.gan import upfirdn2d as kernels
    from pyflash.ops.gan.filters import Pass

    x, y, f = empty(8, 64, 64, 64, dtype=dtype), empty(8, 64, 128, 128, dtype=dtype), empty(4, 4, dtype="float32")
    up = Pass((128, 128), (2, 2), (1, 1), (2, 2), False, 4.0)
    kernels.upfirdn2d(x, f, up, 8 * 64, 1, (64, 64), y)
    kernels.upfirdn2d(y, f, Pass((64, 64), (1, 1), (2, 2), (1, 1), True, 4.0), 8 * 64, 1, (128, 128), x)


def filtered_lrelu(empty, dtype):
    """StyleGAN3's, and its gradient, in one launch; where it doubles the size, the axes one after another."""
    from pyflash.kernels.gan import filtered_lrelu as kernels
    from pyflash.ops.gan.filters import Pass, transposed

    size, middle = (64, 64), (138, 138)
    x, y, dx = (empty(8, 64, *size, dtype=dtype) for _ in range(3))
    f, bias, numbers = empty(12, dtype="float32"), empty(64, dtype=dtype), (1.4, 0.2, 256.0)
    up, down = Pass(middle, (2, 2), (1, 1), (11, 11), False, 4.0), Pass(size, (1, 1), (2, 2), (0, 0), False, 1.0)
    at = 8 * 64, 1, 64
    kernels.filtered_lrelu(x, (f, up), bias, None, None, (f, down), numbers, *at, size, None, y)
    of_v, to_x = (f, transposed(down, f, middle)), (f, transposed(up, f, size))
    kernels.filtered_lrelu(x, (f, up), bias, y, of_v, to_x, numbers, *at, size, size, dx)
    f4, up4 = empty(24, dtype="float32"), Pass((266, 266), (4, 4), (1, 1), (16, 16), False, 16.0)
    larger, y4 = Pass((128, 128), (1, 1), (2, 2), (0, 0), False, 1.0), empty(8, 64, 128, 128, dtype=dtype)
    kernels.filtered_lrelu(x, (f4, up4), bias, None, None, (f, larger), numbers, *at, size, None, y4)


def tensor_stats(empty, dtype):
    """Columns, runs, a whole tensor."""
    from pyflash.kernels.statistics.tensor_stats import tensor_stats

    x = empty(4096, 1024, dtype=dtype)
    for outer, groups, inner in ((4096, 1024, 1), (64, 64, 1024), (1, 1, 4096 * 1024)):
        tensor_stats(x, outer, groups, inner, -1.0, 1.0, empty(groups, 5, dtype="float64"))


def _parameters(like):
    from pyflash.ops.optim.columns import Lists

    return Lists(like.dtype, like.device, [0, 1], [1024, 1 << 24], [[1 << 20, 1 << 30]])


def optim_step(empty, dtype, rule):
    """A bias and a weight: SGD with momentum, Adam, RMSprop; their gradients are clipped and cleared."""
    from pyflash.kernels.optim.step import step
    from pyflash.ops.optim.update import RULES, Options

    lists, count = _parameters(empty(1, dtype=dtype)), min(len(RULES[rule]), 2) if rule == "adam" else 1
    columns = lists.columns * (2 + count) + [[]] * (3 - count) + [[]]
    step(lists, columns, Options(rule, gradients="zeroed"), empty(1, dtype="float64"))


def total_norm(empty, dtype):
    """And what the gradients are multiplied by."""
    from pyflash.kernels.optim.norm import scale, total_norm

    lists = _parameters(empty(1, dtype=dtype))
    total_norm([lists], "euclidean")
    scale(lists, empty(1, dtype="float64"))


def minibatch_stddev(empty, dtype):
    """StyleGAN2's, and its derivatives."""
    from pyflash.kernels.gan import minibatch_stddev as kernels
    from pyflash.ops.gan.minibatch_stddev import EPS, Layout

    x, v, dx = (empty(32, 512, 4, 4, dtype=dtype) for _ in range(3))
    y, ddy = (empty(32, 513, 4, 4, dtype=dtype) for _ in range(2))
    for layout in (Layout(8, 4, 16, 1, 512, 1), Layout(8, 4, 1, 1, 8192, 16)):
        kernels.minibatch_stddev_fwd(x, layout, EPS, y)
    kernels.minibatch_stddev_bwd(y, x, layout, EPS, dx)
    kernels.minibatch_stddev_bwd_bwd(v, y, x, layout, EPS, ddy, dx)
