"""Attention and RotaryEmbedding of opset 23 on, and the attention of ``com.microsoft``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qcompiler.capture.onnx.call import Call
from qcompiler.capture.onnx.registry import converter


@dataclass(frozen=True)
class Heads:
    """Query, key and value as [batch, heads, length, width]; ``past``: how many keys come from earlier calls."""

    query: Tensor
    key: Tensor
    value: Tensor
    past: int | torch.SymInt


@converter("Attention", since=23)
def attention(call: Call) -> tuple[Tensor | None, ...]:
    """softmax(scale Q K' + masks) V, with past keys and values before the new ones; 3-d operands hold their heads side by side."""
    joined = call.tensor(0).ndim == 3
    heads = _heads(call)
    windows = max(call.integer("left_window_size", -1), call.integer("right_window_size", -1)) >= 0
    plain = not any(call.node.outputs[3:4]) and call.real("softcap") == 0.0 and not call.has(6) and not windows
    if plain and isinstance(heads.past, int) and heads.past == 0:
        result, scores = _fused(call, heads), None
    else:
        result, scores = _written_out(call, heads)
    if joined:
        result = result.transpose(1, 2).flatten(2)
    return result, heads.key if call.has(4) else None, heads.value if call.has(5) else None, scores


def _heads(call: Call) -> Heads:
    query, key, value = (call.tensor(position) for position in range(3))
    if query.ndim == 3:
        query = _split(query, call.integer("q_num_heads"))
        key, value = _split(key, call.integer("kv_num_heads")), _split(value, call.integer("kv_num_heads"))
    past: int | torch.SymInt = 0
    if call.has(4):
        past = call.tensor(4).shape[2]
        key, value = torch.cat([call.tensor(4), key], 2), torch.cat([call.tensor(5), value], 2)
    return Heads(query, key, value, past)


def _split(x: Tensor, heads: int) -> Tensor:
    """[batch, length, heads * width] as [batch, heads, length, width]."""
    separate: Tensor = x.unflatten(2, [heads, x.shape[2] // heads])
    return separate.transpose(1, 2)


def _scale(call: Call, heads: Heads) -> float:
    return call.real("scale", 1 / math.sqrt(heads.query.shape[-1]))


def _fused(call: Call, heads: Heads) -> Tensor:
    mask, causal = _mask(call, heads), call.flag("is_causal")
    if causal and (mask is not None or heads.query.shape[2] != heads.key.shape[2]):
        allowed = _allowed(call, heads)
        mask = allowed if mask is None or allowed is None else _both(mask, allowed)
        causal = False
    grouped = heads.query.shape[1] != heads.key.shape[1]
    scale = call.attribute("scale")
    return F.scaled_dot_product_attention(
        heads.query, heads.key, heads.value, mask, 0.0, causal, scale=None if scale is None else float(scale), enable_gqa=grouped
    )


def _mask(call: Call, heads: Heads) -> Tensor | None:
    """The mask; one that is shorter than the keys hides the rest."""
    mask = call.optional(3)
    if mask is None:
        return None
    missing = heads.key.shape[2] - mask.shape[-1]
    if isinstance(missing, int) and missing == 0:
        return mask
    return F.pad(mask, [0, missing], value=False if mask.dtype is torch.bool else -math.inf)


def _allowed(call: Call, heads: Heads) -> Tensor | None:
    """Which keys j a query i sees, by position: i + offset - j from 0 (causal) or -right on, up to left; and only keys that are none of
    the padding. The offset is the number of past keys, or that of each sample's keys less that of its queries."""
    rows, columns = heads.query.shape[2], heads.key.shape[2]
    counts = call.tensor(6).reshape(-1, 1, 1, 1) if call.has(6) else None
    offset: Any = heads.past if counts is None else counts.sub(rows)
    distance: Tensor = torch.arange(rows)[:, None] + offset - torch.arange(columns)[None, :]
    left, right = call.integer("left_window_size", -1), call.integer("right_window_size", -1)
    conditions = [distance >= 0] if call.flag("is_causal") else []
    conditions += [distance <= left] if left >= 0 else []
    conditions += [distance >= -right] if right >= 0 else []
    conditions += [torch.arange(columns) < counts] if counts is not None else []
    return reduce(torch.logical_and, conditions) if conditions else None


def _both(mask: Tensor, allowed: Tensor) -> Tensor:
    return torch.logical_and(mask, allowed) if mask.dtype is torch.bool else torch.where(allowed, mask, -math.inf)


def _masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return scores
    return torch.where(mask, scores, -math.inf) if mask.dtype is torch.bool else scores + mask


def _written_out(call: Call, heads: Heads) -> tuple[Tensor, Tensor]:
    """Product, soft cap, masks, softmax; the scores that are an output too are those after the step that the mode names."""
    key, value = _repeated(heads.key, heads), _repeated(heads.value, heads)
    scale, cap = math.sqrt(_scale(call, heads)), call.real("softcap")
    scores = torch.matmul(heads.query * scale, (key * scale).transpose(2, 3))
    capped = torch.tanh(scores / cap) * cap if cap else scores
    masked = _masked(_masked(capped, _mask(call, heads)), _allowed(call, heads))
    weights = torch.softmax(masked, -1)
    return torch.matmul(weights, value), (capped, capped, masked, weights)[call.integer("qk_matmul_output_mode")]


def _repeated(x: Tensor, heads: Heads) -> Tensor:
    """Each head of keys and values serves as many heads of queries as there are more of these."""
    count = heads.query.shape[1] // x.shape[1]
    if count == 1:
        return x
    batch, own, length, width = x.shape
    return x.unsqueeze(2).expand(batch, own, count, length, width).reshape(batch, own * count, length, width)


@converter("RotaryEmbedding", since=23)
def rotary_embedding(call: Call) -> Tensor:
    """Pairs of elements turned by the angle of their position: (a cos - b sin, b cos + a sin)."""
    x, cosine, sine = call.tensor(0), call.tensor(1), call.tensor(2)
    joined = x.ndim == 3
    x = x.unflatten(2, [call.integer("num_heads"), -1]) if joined else x.transpose(1, 2)
    width = call.integer("rotary_embedding_dim") or int(x.shape[-1])
    if call.has(3):
        positions = call.tensor(3).long()
        cosine, sine = F.embedding(positions, cosine), F.embedding(positions, sine)
    cosine, sine = (part[..., : width // 2].unsqueeze(2) for part in (cosine, sine))
    turned, rest = x[..., :width], x[..., width:]
    if call.flag("interleaved"):
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack([a * cosine - b * sine, b * cosine + a * sine], -1).flatten(-2)
    else:
        a, b = turned[..., : width // 2], turned[..., width // 2 :]
        turned = torch.cat([a * cosine - b * sine, b * cosine + a * sine], -1)
    result = torch.cat([turned, rest], -1) if rest.shape[-1] else turned
    return result.flatten(2) if joined else result.transpose(1, 2)
