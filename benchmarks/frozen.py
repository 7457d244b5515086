"""Fit a network to a convolutional encoder that stays as it is: from cached features, so that a CPU is enough.

`fit_encoder` gives the aggregate its codebook and its projections, `fit_descriptor` the descriptor, `fit_tokens` the
embedding of tokens and the late interaction: all in closed form. `pair_logits` then lets a decoder learn from lists of
candidates.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pairvpr.model.convolutional import CELL_DIM, CLUSTERS, RESIDUAL_DIM, ConvolutionalEncoder
from pairvpr.model.decoder import Block, PairDecoder, merge_heads, split_heads

ROUNDS = 12
"""Of k-means."""
POSITION_DIMS = 16
"""Directions of the token's space that positions have for themselves; they hold all but 1e-4 of the table's energy."""
WAVE = 0.45
"""Radians a token: the position's part of a late interaction falls as the cosine of this times the distance."""
DISTANCE_COST = 0.003
"""Cosine that a counterpart loses for each squared token of distance."""
WHITENING = 0.2
"""Power of the variance that a token's directions are divided by."""
TOKEN_SCALE = 14.0
"""Length of an embedded token without its position."""


def principal(samples: Tensor, dims: int, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the `dims` main directions (dims, C) of samples (N, C) about zero, and the variances along them."""
    weighted = samples if weights is None else samples * weights.sqrt()[:, None]
    variances, directions = torch.linalg.eigh(weighted.T @ weighted / len(samples))
    return directions.flip(1)[:, :dims].T.contiguous(), variances.flip(0)[:dims]


def spherical_k_means(samples: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Return the centres (clusters, C), of unit length, of samples (N, C) of unit length."""
    centres = samples[torch.randperm(len(samples), generator=generator)[:clusters]]
    for _ in range(ROUNDS):
        nearest = (samples @ centres.T).argmax(dim=1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, samples)
        # A centre that is nearest to no sample stays where it is.
        centres = torch.where(sums.any(dim=1, keepdim=True), F.normalize(sums, dim=-1), centres)
    return centres


@torch.no_grad()
def fit_encoder(encoder: ConvolutionalEncoder, tokens: Tensor, cells: Tensor, generator: torch.Generator) -> None:
    """Fit the aggregate's codebook and projections to tokens (N, C) and to cells (M, c) of the middle map."""
    encoder.codebook.weight.copy_(spherical_k_means(tokens, CLUSTERS, generator))
    encoder.residual.weight.copy_(principal(tokens, RESIDUAL_DIM)[0])
    encoder.cell.weight.copy_(principal(cells, CELL_DIM)[0])


@torch.no_grad()
def fit_descriptor(descriptor: nn.Linear, aggregates: Tensor, weights: Tensor) -> None:
    """Let the descriptor be the main components of aggregates (N, A), half whitened.

    weights: (N,), how much each counts. Needs more pictures than the descriptor has numbers, raises ValueError else.
    """
    dims = descriptor.out_features
    if len(aggregates) <= dims:
        raise ValueError(f"{len(aggregates)} pictures do not decide {dims} components; take more pictures")
    weights = weights / weights.sum()
    mean = weights @ aggregates
    scaled = (aggregates - mean) * weights.sqrt()[:, None]
    # Fewer pictures than numbers in an aggregate: the eigenvectors of their Gram matrix are enough.
    variances, mixes = torch.linalg.eigh(scaled @ scaled.T)
    variances, mixes = variances.flip(0)[:dims], mixes.flip(1)[:, :dims]
    directions = (scaled.T @ mixes) * variances.rsqrt()  # (A, dims) of unit length
    descriptor.weight.copy_((directions * variances.pow(-0.25)).T)
    descriptor.bias.copy_(-descriptor.weight @ mean)


@torch.no_grad()
def fit_tokens(decoder: PairDecoder, tokens: Tensor, weights: Tensor) -> None:
    """Let embedded tokens keep the cosines of tokens (N, C), apart from their positions, and late interaction use both.

    What a token shows goes where positions are not; late interaction sees it beside a wave of the position. weights:
    (N,), how much each token counts. Raises ValueError for a decoder without late interaction.
    """
    if decoder.late is None:
        raise ValueError("the decoder has no late interaction; set network.late_interaction")
    dim, shown = decoder.embed.out_features, decoder.embed.out_features - POSITION_DIMS
    _, _, space = torch.linalg.svd(decoder.positions)
    own, rest = space[:POSITION_DIMS], space[POSITION_DIMS:]
    directions, variances = principal(tokens, shown, weights)
    seen = directions * variances.pow(-WHITENING)[:, None]
    seen = seen / (tokens @ seen.T).norm(dim=-1).mean()
    decoder.embed.weight.copy_(TOKEN_SCALE * rest.T @ seen)
    decoder.embed.bias.zero_()

    side = round(len(decoder.positions) ** 0.5)
    row, column = (torch.arange(len(decoder.positions)) // side).float(), (torch.arange(len(decoder.positions)) % side)
    waves = torch.stack([wave(WAVE * axis) for axis in (column, row) for wave in (torch.cos, torch.sin)], dim=1)
    mixes = torch.linalg.lstsq(decoder.positions @ own.T, waves).solution  # (POSITION_DIMS, 4)
    decoder.late.proj.weight.zero_()
    decoder.late.proj.weight[:shown] = rest / TOKEN_SCALE
    decoder.late.proj.weight[shown : shown + 4] = (2 * DISTANCE_COST) ** 0.5 / WAVE * (mixes.T @ own)
    assert dim == len(decoder.late.proj.weight)


def pair_logits(decoder: PairDecoder, query: Tensor, candidates: Tensor, query_first: bool) -> Tensor:
    """Return pair logits (Q, K) in one order, as `PairVPR.pair_logits` gives them, for less work.

    query: decoder-ready tokens (Q, T, D). candidates: (Q, K, T, D). What concerns the query alone is computed once, and
    the last block for the class token alone.
    """
    count = candidates.shape[1]
    flat = candidates.flatten(0, 1)
    repeated = query.repeat_interleave(count, 0)
    *blocks, last = decoder.blocks
    x = decoder.with_class_token(query if query_first else flat)
    first = blocks[0] if query_first and blocks else None
    if first is not None:
        x = first.attend(x)
    if query_first:
        x = x.repeat_interleave(count, 0)
    memory = flat if query_first else repeated
    for block in blocks:
        x = block.look(x if block is first else block.attend(x), block.memory(memory))
    x = _last_look(last, x, memory)
    logits = decoder.logits(decoder.norm(x)[:, 0])
    if decoder.late is not None:
        pair = (repeated, flat) if query_first else (flat, repeated)
        logits = logits + decoder.late(*pair)
    return logits.view(len(query), count)


def _last_look(block: Block, x: Tensor, memory: Tensor) -> Tensor:
    """Run a block for its class token alone: x (B, N, D), memory (B, M, D) -> (B, 1, D)."""
    normed, width = block.norm1(x), x.shape[-1]
    weight, bias = block.attn.qkv.weight, block.attn.qkv.bias
    asked = F.linear(normed[:, :1], weight[:width], bias[:width])
    keys, values = F.linear(normed, weight[width:], bias[width:]).chunk(2, dim=-1)
    q, k, v = (split_heads(part, block.attn.head_dim) for part in (asked, keys, values))
    class_token = x[:, :1] + block.attn.proj(merge_heads(F.scaled_dot_product_attention(q, k, v)))
    return block.look(class_token, block.memory(memory))


def list_loss(scores: Tensor, relevance: Tensor) -> Tensor:
    """Return the loss of scores (Q, K): lists ordered by relevance (Q, K), and pairs told from others.

    Cross-entropy of each list with its relevance, divided by its sum (ListNet, Cao et al., ICML 2007), plus binary
    cross-entropy of each pair, which shows the place if its relevance is above 0.
    """
    order = -(relevance / relevance.sum(dim=1, keepdim=True) * scores.log_softmax(dim=1)).sum(dim=1).mean()
    return order + F.binary_cross_entropy_with_logits(scores, 0.97 * (relevance > 0).float())
