"""Compute as published, in plain PyTorch eager: full attention matrices, nothing shared between pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from pairvpr.model import PairVPR
from pairvpr.model.decoder import merge_heads, split_heads
from pairvpr.model.encoder import Encoder
from pairvpr.model.presets import HEAD_DIM


def plain_encoder(network: PairVPR) -> PairVPR:
    """Make a transformer encoder's attention plain, as DINOv2's own is without a fused kernel."""
    if isinstance(network.encoder, Encoder):
        for block in network.encoder.vit.blocks:
            block.attn.fused_attn = False
    return network


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute attention with its matrix (B, heads, N, M) written out."""
    return merge_heads((q @ k.transpose(-1, -2) * HEAD_DIM**-0.5).softmax(dim=-1) @ v)


def pair_logits(network: PairVPR, first: Tensor, second: Tensor) -> Tensor:
    """Return pair logits (B,) of one order; first, second: (B, T, D) decoder-ready tokens."""
    decoder = network.decoder
    x = decoder.with_class_token(first)
    for block in decoder.blocks:
        q, k, v = (split_heads(part) for part in block.attn.qkv(block.norm1(x)).chunk(3, dim=-1))
        x = x + block.attn.proj(attention(q, k, v))
        memory, cross = block.norm_y(second), block.cross_attn
        q = split_heads(cross.projq(block.norm2(x)))
        x = x + cross.proj(attention(q, split_heads(cross.projk(memory)), split_heads(cross.projv(memory))))
        x = x + block.mlp(block.norm3(x))
    logits = decoder.logits(decoder.norm(x)[:, 0])
    return logits if decoder.late is None else logits + decoder.late(first, second)


@torch.no_grad()
def score(network: PairVPR, query: Tensor, database: Tensor) -> Tensor:
    """Return pair scores (B,) of query tokens (1, T, D) with database tokens (B, T, D), both orders summed."""
    query = query.expand(len(database), -1, -1)
    return pair_logits(network, query, database) + pair_logits(network, database, query)


@torch.no_grad()
def encode(network: PairVPR, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return descriptors and tokens of pictures uint8 (B, H, W, 3); `network` comes from `plain_encoder`."""
    return network.encode(images)
