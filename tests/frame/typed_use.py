"""What a user's type checker sees of pyflash: checked by `make lint`, never run."""

import torch
from torch import Tensor

import pyflash
import pyflash.functional as PF
import pyflash.nn as nn

x = torch.randn(2, 4, 8)
weight = torch.randn(8, 8)

linear: Tensor = PF.linear(x, weight, None)
fused: Tensor = PF.linear_act(x, weight, None, "gelu")
normal: Tensor = PF.layer_norm(x, [8], weight[0])
root: Tensor = PF.rms_norm(x, [8], weight[0], 1e-6)
rows: Tensor = PF.embedding(x.long(), weight, 0, max_norm=1.0)
bags: Tensor = PF.embedding_bag(x.long()[0], weight, mode="max")
turned: tuple[Tensor, Tensor] = PF.rotary_embedding(x[None], x[None], weight, weight, interleaved=True)
slopes: Tensor = PF.alibi_slopes(8)
both: tuple[Tensor, Tensor] = PF.add_layer_norm(x, x, [8])
shares: Tensor = PF.softmax(PF.log_softmax(x, 1), dim=-1, dtype=torch.float32)
pooled: Tensor = PF.relu(PF.max_pool2d(PF.avg_pool2d(x, 2, divisor_override=3), (2, 1)))
folded: Tensor = PF.conv_bias_act(PF.conv1d(x, weight[..., None], padding="same"), weight[..., None], activation="relu")
unfolded: Tensor = PF.conv_transpose2d(x, weight[..., None, None], stride=2, output_padding=(1, 0), dilation=2)
dropped: Tensor = PF.dropout(x, 0.1)
channels: Tensor = PF.feature_alpha_dropout(PF.dropout1d(x, 0.1), 0.1, training=True)
active: Tensor = PF.mish(PF.gelu(PF.relu(x, inplace=True), approximate="tanh"))
fused_tail: Tensor = PF.bias_act_dropout_add(PF.bias_act(x, weight[0], act="lrelu", dim=2), None, x, dropout_p=0.1)
one_sided: Tensor = PF.gated_act(PF.glu(PF.prelu(PF.rrelu(x), weight[0, :1])), activation="gelu")
attended: Tensor = PF.scaled_dot_product_attention(x, x, x, is_causal=True, scale=0.5)
matrix: Tensor = PF.attention_weights(x, x, dropout_p=0.1)
out, lse = PF.attention(x, x, x, window_size=(3, 0), return_lse=True)
output, (h, c) = PF.lstm(x, None, [weight, weight])

model: torch.nn.Module = pyflash.replace(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU()), exclude="1")
report: pyflash.Report = pyflash.report(model, example_inputs=x)
names: list[str] = [row.name for row in report.rows]
calls: int = pyflash.counts(reset=True)["linear", "cpu", ""]
with pyflash.use_backend("cpu"), pyflash.overrides():
    model(x)
layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
modules: list[torch.nn.Module] = [
    nn.Linear(8, 8),
    nn.RMSNorm(8),
    nn.GELU("tanh"),
    nn.LSTM(8, 8),
    nn.MaxPool2d(2),
    layer,
]
PF.linear(x, "weight")  # type: ignore[arg-type]
PF.attention(x, x, x, softcap="0")  # type: ignore[arg-type]
nn.TransformerEncoderLayer("8", 2)  # type: ignore[arg-type]
nn.MultiheadAttention(8, 2, heads=3)  # type: ignore[call-arg]
logits: Tensor = pyflash.models.resnet18(10, nn=torch.nn)(x)
net: torch.nn.Sequential = pyflash.models.MLP(
    (8, 16, 2), ("elu", {"alpha": 0.5}), dropout=0.1, norm="layer", nn=torch.nn
)
config = pyflash.models.GPTConfig(11, 8, 12, 2, 3, positions="rotary", gated=True, activation="silu")
gpt: pyflash.models.GPT = pyflash.models.load(pyflash.models.GPT(config, nn=torch.nn), {}, source="transformers")
text: Tensor = gpt.generate(x.long(), 4, temperature=0.7, top_k=3)
with pyflash.diagnostics.gradient_flow(net, dead=0.9) as flow:
    net(x).sum().backward()
verdicts: dict[str, str] = {row.name: row.verdict for row in flow.report().rows}
said: str = flow.plot("flow.png") + flow.to_json()
pyflash.models.MLP((8, "2"))  # type: ignore[arg-type]
pyflash.models.GPTConfig(11, 8, "12", 2, 3)  # type: ignore[arg-type]
