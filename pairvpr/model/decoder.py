"""The pair decoder, which reads one picture's tokens with another picture's tokens as memory.

Architecture: CroCo's cross-attention decoder (Weinzaepfel et al., NeurIPS 2022) as Pair-VPR uses it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pairvpr.model.presets import HEAD_DIM, NetworkConfig

NORM_EPS = 1e-6
PIXELS = 3  # colour channels of a reconstructed pixel


def split_heads(x: Tensor, width: int = HEAD_DIM) -> Tensor:
    """Split (B, N, D) into heads (B, heads, N, width)."""
    return torch.unflatten(x, -1, (-1, width)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Join heads (B, heads, N, width) to (B, N, D)."""
    return x.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Multi-head self-attention."""

    head_dim = HEAD_DIM

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(part, self.head_dim) for part in self.qkv(x).chunk(3, dim=-1))
        return self.proj(merge_heads(F.scaled_dot_product_attention(q, k, v)))


class CrossAttention(nn.Module):
    """Multi-head attention to keys and values projected from the other picture's tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.projq = nn.Linear(dim, dim)
        self.projk = nn.Linear(dim, dim)
        self.projv = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        q = split_heads(self.projq(x))
        return self.proj(merge_heads(F.scaled_dot_product_attention(q, keys, values)))


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm self-attention, cross-attention to the memory, and MLP. The memory never changes."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = SelfAttention(dim)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.cross_attn = CrossAttention(dim)
        self.norm3 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim)
        self.norm_y = nn.LayerNorm(dim, eps=NORM_EPS)

    def memory(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values (B, heads, N, 64) of the other picture's tokens (B, N, D)."""
        y = self.norm_y(tokens)
        return split_heads(self.cross_attn.projk(y)), split_heads(self.cross_attn.projv(y))

    def forward(self, x: Tensor, memory: tuple[Tensor, Tensor]) -> Tensor:
        return self.look(self.attend(x), memory)

    def attend(self, x: Tensor) -> Tensor:
        """Apply the first step, self-attention, which does not depend on the memory."""
        return x + self.attn(self.norm1(x))

    def look(self, x: Tensor, memory: tuple[Tensor, Tensor]) -> Tensor:
        """Apply the second and third step to each token: cross-attention and MLP."""
        x = x + self.cross_attn(self.norm2(x), *memory)
        return x + self.mlp(self.norm3(x))


class Blocks(nn.ModuleList):
    """Decoder blocks in order."""

    def __iter__(self) -> Iterator[Block]:
        return super().__iter__()  # type: ignore[return-value]


class LateInteraction(nn.Module):
    """Score pairs by their tokens' best counterparts, without attention (as ColBERT, Khattab & Zaharia, SIGIR 2020).

    Projected tokens have unit length, so that a picture scores highest with itself. What a token's position adds to it
    makes near counterparts count more than far ones.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, dim, bias=False)
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return (B,) float32 of decoder-ready tokens (1 or B, N, D) and (1 or B, M, D), in the order first, second."""
        return self.weight.float() * self.similarities(first, second).amax(dim=2).float().mean(dim=1)

    def both(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the sum of both orders (B,), float32."""
        forward, backward = self.orders(first, second)
        return self.weight.float() * (forward + backward)

    def orders(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean similarity of the best counterparts in each order, (B,) each, float32, without the weight."""
        similarities = self.similarities(first, second)
        return similarities.amax(dim=2).float().mean(dim=1), similarities.amax(dim=1).float().mean(dim=1)

    def similarities(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the cosines (B, N, M) of projected tokens, in the type of the tokens.

        Lengths are computed in float32, because squares of float16 numbers overflow.
        """
        a, b = (F.normalize(self.proj(tokens).float(), dim=-1).to(tokens.dtype) for tokens in (first, second))
        return a @ b.transpose(1, 2)


class PairDecoder(nn.Module):
    """Embeds encoder tokens, and decodes the first picture's tokens with the second picture's as memory."""

    class_token: nn.Parameter | None
    late: LateInteraction | None

    def __init__(self, config: NetworkConfig, encoder_width: int, patch_size: int) -> None:
        super().__init__()
        dim = config.decoder_dim
        tokens = (config.image_size // patch_size) ** 2
        self.embed = nn.Linear(encoder_width, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("positions", sincos_positions(dim, tokens))
        self.blocks = Blocks(Block(dim) for _ in range(config.decoder_depth))
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.reconstruction = nn.Linear(dim, PIXELS * patch_size**2)
        self.classifier = nn.Sequential(
            nn.Linear(dim, config.classifier_dim), nn.ReLU(), nn.Linear(config.classifier_dim, 1)
        )
        self.late = LateInteraction(dim) if config.late_interaction else None
        if config.pair_classifier:
            self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
            self.register_buffer("class_positions", torch.cat([torch.zeros(1, dim), self.positions]))
        else:
            self.class_token = None

    positions: Tensor
    class_positions: Tensor

    def tokens(self, dense: Tensor) -> Tensor:
        """Embed encoder patch tokens (B, T, C) and add positions: decoder-ready tokens (B, T, D)."""
        return self.embed(dense) + self.positions

    def with_class_token(self, tokens: Tensor) -> Tensor:
        """Put the class token in front of decoder-ready tokens (B, T, D): (B, T + 1, D)."""
        assert self.class_token is not None, "a stage-one network has no class token"
        first = self.class_token + self.class_positions[:1]
        return torch.cat([first.expand(tokens.shape[0], -1, -1), tokens], dim=1)

    def decode(self, x: Tensor, memory: Tensor) -> Tensor:
        """Apply all blocks: x (B, N, D) attends to itself and to `memory` (B, M, D)."""
        for block in self.blocks:
            x = block(x, block.memory(memory))
        return self.norm(x)

    def logits(self, x: Tensor) -> Tensor:
        """Return pair logits (...) of class tokens after the last norm (..., D). Higher means the same place."""
        return self.classifier(x).squeeze(-1)


def sincos_positions(dim: int, tokens: int) -> Tensor:
    """Return fixed 2-D sine-cosine positions (tokens, dim) of a square grid, x first (MAE, He et al. 2022)."""
    grid = round(tokens**0.5)
    omega = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    ys, xs = torch.meshgrid(*2 * [torch.arange(grid, dtype=torch.float64)], indexing="ij")
    angles = [axis.reshape(-1, 1) * omega for axis in (xs, ys)]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1).float()
