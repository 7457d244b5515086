"""Define the exported graphs: modules that take and return tensors.

Encoder, prefix and suffix together compute the same as `PairVPR.encode` and `PairVPR.score`, to float rounding, without
repeated work. The query's keys and values are computed once per batch instead of once per pair, and the query's first
self-attention once. The last block computes only its class token, whose attention then needs no keys and values. A
fourth graph takes a first look at pairs.

All other attention has the form that TensorRT documents and computes in one kernel. Its fused kernel takes no memory
that is shared by a batch, so queries of a batch that look at one memory are joined to one long sequence.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Attention  # type: ignore[attr-defined,unused-ignore]  # moves between versions
from torch import Tensor, nn

from pairvpr.errors import ExportError
from pairvpr.model import PairVPR
from pairvpr.model.decoder import Block, Blocks, PairDecoder, SelfAttention, merge_heads, split_heads
from pairvpr.model.encoder import Encoder
from pairvpr.model.presets import HEAD_DIM

M = TypeVar("M", bound=nn.Module)


class EncoderGraph(nn.Module):
    """Encoder: images uint8 (B, H, W, 3), already resized -> descriptors float32 (B, G), tokens (B, T, D)."""

    def __init__(self, network: PairVPR) -> None:
        super().__init__()
        self.normalise = network.normalise
        self.encoder: nn.Module = network.encoder
        if isinstance(network.encoder, Encoder):
            encoder = _with_fixed_positions(network.encoder, network.config.image_size)
            self.encoder = _with_decoder_attention(encoder)
        self.descriptor = network.descriptor
        self.embed = network.decoder.embed
        self.register_buffer("positions", network.decoder.positions)

    positions: Tensor

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pictures = self.normalise(images).to(self.embed.weight.dtype)
        summaries, dense = self.encoder(pictures)
        descriptors = F.normalize(self.descriptor(summaries).float(), dim=-1)
        return descriptors, self.embed(dense) + self.positions


class EncoderAttention(SelfAttention):
    """timm's attention with queries, keys and values split as in the decoder, without a five-dimensional transpose."""

    def __init__(self, attention: Attention) -> None:
        nn.Module.__init__(self)
        self.qkv, self.proj, self.head_dim = attention.qkv, attention.proj, attention.head_dim

    def forward(self, x: Tensor, **masks: object) -> Tensor:
        """Return the attention of x (B, N, C). timm passes masks by name, which pictures do not need."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.proj(attention(q, k, v, self.head_dim))


def attention(queries: Tensor, keys: Tensor, values: Tensor, width: int = HEAD_DIM) -> Tensor:
    """Return multi-head attention (B, N, D) of queries (B, N, D) to keys and values (B, M, D), heads side by side.

    width: of a head. Queries and keys are scaled before their product, because it may overflow in float16.
    """
    scale = width**-0.25
    q, k, v = (torch.unflatten(x, -1, (-1, width)) for x in (queries, keys, values))
    weights = ((q.permute(0, 2, 1, 3) * scale) @ (k.permute(0, 2, 3, 1) * scale)).softmax(dim=-1)
    return (weights @ v.permute(0, 2, 1, 3)).permute(0, 2, 1, 3).flatten(2)


def attend(block: Block, x: Tensor) -> Tensor:
    """Apply a block's first step, self-attention, to x (B, N, D)."""
    q, k, v = block.attn.qkv(block.norm1(x)).chunk(3, dim=-1)
    return x + block.attn.proj(attention(q, k, v))


def memory(block: Block, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return a block's keys and values (B, M, D) of the other picture's tokens (B, M, D)."""
    y = block.norm_y(tokens)
    return block.cross_attn.projk(y), block.cross_attn.projv(y)


def look(block: Block, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Apply a block's second and third step, cross-attention and MLP, to x (B, N, D).

    One memory (1, M, D) may serve all of x, and one x may look at each memory (B, M, D).
    """
    queries = block.cross_attn.projq(block.norm2(x))
    shared = isinstance(keys.shape[0], int) and keys.shape[0] == 1
    if shared:
        queries = queries.reshape(1, -1, queries.shape[2])
    seen = attention(queries, keys, values)
    x = x + block.cross_attn.proj(seen.reshape(x.shape) if shared else seen)
    return x + block.mlp(block.norm3(x))


class PairLook(nn.Module):
    """The first look at all candidates: a few numbers at a small share of the work of a comparison.

    query_tokens (1, T, D), database_tokens (B, M, D) -> look float32 (B, K).

    The cascade predicts scores from them. A network with late interaction gives its part of the score in each order,
    K = 2. Other networks give class token and mean of the other tokens after the first block in the database-first
    order, K = 2 D: in this order the keys and values are the query's, and are computed once.
    """

    def __init__(self, network: PairVPR) -> None:
        super().__init__()
        decoder = network.decoder
        assert decoder.class_token is not None, "export_bundle refuses stage-one networks"
        self.late = decoder.late
        if self.late is None:
            self.block = next(iter(decoder.blocks))
            self.register_buffer("class_token", decoder.class_token.detach() + decoder.class_positions[:1])

    class_token: Tensor

    def forward(self, query_tokens: Tensor, database_tokens: Tensor) -> Tensor:
        if self.late is not None:
            return self.late.weight.float() * torch.stack(self.late.orders(query_tokens, database_tokens), dim=1)
        first = self.class_token.expand(database_tokens.shape[0], -1, -1)
        state = torch.cat([first, database_tokens], dim=1)
        state = look(self.block, attend(self.block, state), *memory(self.block, query_tokens))
        return torch.cat([state[:, 0].float(), state[:, 1:].float().mean(dim=1)], dim=1)


class PairPrefix(nn.Module):
    """The first `split` blocks of both orders, for all candidates.

    query_tokens (1, T, D), database_tokens (B, M, D) -> query_state (B, T+1, D), database_state (B, M+1, D),
    class_tokens and token_means (B, 2, D).

    class_tokens and token_means are the class token and the mean of the other tokens, in the query-first and the
    database-first order. The cascade predicts scores from them. It needs the means, because a trained class token may
    hold no information yet at this depth.
    """

    def __init__(self, network: PairVPR) -> None:
        super().__init__()
        self.blocks = Blocks(list(network.decoder.blocks)[: network.config.split])
        decoder = network.decoder
        assert decoder.class_token is not None, "export_bundle refuses stage-one networks"
        self.register_buffer("class_token", decoder.class_token.detach() + decoder.class_positions[:1])

    class_token: Tensor

    def forward(self, query_tokens: Tensor, database_tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        query = torch.cat([self.class_token, query_tokens], dim=1)
        first = self.class_token.expand(database_tokens.shape[0], -1, -1)
        database = torch.cat([first, database_tokens], dim=1)
        for block in self.blocks:
            # In the first block all candidates share the query's state. Looking at each candidate's memory gives one
            # state for each pair.
            query = look(block, attend(block, query), *memory(block, database_tokens))
            database = look(block, attend(block, database), *memory(block, query_tokens))
        class_tokens = torch.cat([query[:, :1], database[:, :1]], dim=1)
        means = [state[:, 1:].float().mean(dim=1, keepdim=True).to(state.dtype) for state in (query, database)]
        return query, database, class_tokens, torch.cat(means, dim=1)


class PairSuffix(nn.Module):
    """The remaining blocks and the classifier, for the candidates that `keep` int64 (m,) selects.

    query_tokens, database_tokens, query_state, database_state as in the prefix -> scores float32 (m,), both orders
    summed.
    """

    def __init__(self, network: PairVPR) -> None:
        super().__init__()
        *blocks, last = list(network.decoder.blocks)[network.config.split :]
        self.blocks = Blocks(blocks)
        self.last = ClassTokenBlock(last)
        self.norm = network.decoder.norm
        self.classifier = network.decoder.classifier
        self.late = network.decoder.late

    def forward(
        self, query_tokens: Tensor, database_tokens: Tensor, query_state: Tensor, database_state: Tensor, keep: Tensor
    ) -> Tensor:
        candidates = database_tokens.index_select(0, keep)
        query, database = query_state.index_select(0, keep), database_state.index_select(0, keep)
        for block in self.blocks:
            query = look(block, attend(block, query), *memory(block, candidates))
            database = look(block, attend(block, database), *memory(block, query_tokens))
        class_tokens = torch.cat([self.last(query, candidates), self.last(database, query_tokens)], dim=1)
        class_tokens = self.norm(class_tokens)  # (m, 2, D)
        scores = self.classifier(class_tokens).float().sum(dim=(1, 2))
        return scores if self.late is None else scores + self.late.both(query_tokens, candidates)


class ClassTokenBlock(nn.Module):
    """A decoder block that computes only its class token: x (B, N, D), memory (B or 1, M, D) -> (B, 1, D)."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block
        q, k, v = zip(block.attn.qkv.weight.chunk(3), block.attn.qkv.bias.chunk(3), strict=True)
        cross = block.cross_attn
        self.register_buffer("query_weight", q[0].detach().clone())
        self.register_buffer("query_bias", q[1].detach().clone())
        self.self_attention = SingleQueryAttention(k[0], v[0], v[1])
        self.cross_attention = SingleQueryAttention(cross.projk.weight, cross.projv.weight, cross.projv.bias)

    query_weight: Tensor
    query_bias: Tensor

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        block, cross = self.block, self.block.cross_attn
        normed = block.norm1(x)
        asked = F.linear(normed[:, :1], self.query_weight, self.query_bias)
        x = x[:, :1] + block.attn.proj(self.self_attention(asked, normed))
        x = x + cross.proj(self.cross_attention(cross.projq(block.norm2(x)), block.norm_y(memory)))
        return x + block.mlp(block.norm3(x))


class SingleQueryAttention(nn.Module):
    """Multi-head attention of one query (B, 1, D) over tokens (B or 1, N, D), without keys or values of each token.

    With a single query q it is cheaper to move the projections to its side. q . (K t) = (K' q) . t, and the weighted
    sum of values V t + b is V applied to the weighted sum of t, plus b. The keys' bias adds the same to every token's
    weight before the softmax, so it drops out.
    """

    def __init__(self, key_weight: Tensor, value_weight: Tensor, value_bias: Tensor) -> None:
        super().__init__()
        by_head = (-1, HEAD_DIM, key_weight.shape[1])
        self.register_buffer("key_weight", key_weight.detach().reshape(by_head).clone())  # (heads, 64, D)
        value_by_head = value_weight.detach().reshape(by_head).transpose(1, 2)
        self.register_buffer("value_weight", value_by_head.contiguous().clone())  # (heads, D, 64)
        self.register_buffer("value_bias", value_bias.detach().reshape(-1, 1, HEAD_DIM).clone())

    key_weight: Tensor
    value_weight: Tensor
    value_bias: Tensor

    def forward(self, query: Tensor, tokens: Tensor) -> Tensor:
        q = split_heads(query) * HEAD_DIM**-0.5  # (B, heads, 1, 64)
        asked = (q @ self.key_weight).squeeze(2)  # (B, heads, D)
        weights = (asked @ tokens.transpose(1, 2)).softmax(dim=-1)  # (B, heads, N)
        seen = (weights @ tokens).unsqueeze(2)  # (B, heads, 1, D)
        return merge_heads(seen @ self.value_weight + self.value_bias)


def check_positions(decoder: PairDecoder) -> None:
    """Raise ExportError unless both decoder inputs use the same position table. Only then can tokens be shared."""
    if not torch.equal(decoder.class_positions[1:], decoder.positions):
        raise ExportError(
            "the checkpoint's two decoder position tables (dec_pos_embed_cls, dec_pos_embed) differ on patch "
            "rows, so the two orders cannot share tokens; this checkpoint cannot be exported, choose another"
        )


def _with_fixed_positions(encoder: Encoder, image_size: int) -> Encoder:
    """Return a copy with the same weights, and with its position table already resized to the picture's grid."""
    grid = image_size // encoder.patch_size
    class_position, positions = encoder.positions(grid, grid)
    table = positions if class_position is None else torch.cat([class_position, positions], dim=1)
    fixed, fixed.vit = _shallow(encoder), _shallow(encoder.vit)
    fixed.vit.pos_embed = nn.Parameter(table.detach(), requires_grad=False)
    return fixed


def _with_decoder_attention(encoder: Encoder) -> Encoder:
    """Return a copy with the same weights that attends as the decoder does.

    Other kinds of attention are not changed.
    """
    same, same.vit = _shallow(encoder), _shallow(encoder.vit)
    same.vit.blocks = nn.Sequential(*(_shallow(block) for block in encoder.vit.blocks))
    for block in same.vit.blocks:
        parts = block.attn.named_children()
        working = {name for name, part in parts if not isinstance(part, nn.Identity | nn.Dropout)}
        if type(block.attn) is Attention and working == {"qkv", "proj"}:
            block.attn = EncoderAttention(block.attn)
    return same


def _shallow(module: M) -> M:
    """Return a copy of a module with the same children and parameters."""
    twin = copy.copy(module)
    twin._parameters, twin._modules = dict(module._parameters), dict(module._modules)
    return twin
