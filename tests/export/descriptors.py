"""Small seeded networks in the layouts of published descriptors, and networks that are none.

Tests load this file as a module and, copied, as the `hubconf.py` of a folder.
"""

from __future__ import annotations

import math
import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

dependencies = ["torch"]
SIDE, PATCH, WIDTH = 56, 14, 32


def seeded(module: nn.Module) -> nn.Module:
    """Draw all weights from a seed, so that activations keep their size."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        fan = math.prod(parameter.shape[1:]) if parameter.ndim > 1 else 16
        parameter.data = torch.randn(parameter.shape, generator=generator) / math.sqrt(fan)
    return module


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        count, length, width = x.shape
        heads = self.qkv(self.norm1(x)).reshape(count, length, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
        q, k, v = heads.unbind(0)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(count, length, width))
        return x + self.mlp(self.norm2(x))


class Vit(nn.Module):
    """A ViT whose position table belongs to another grid and is interpolated, as DINOv2's is."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.first = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.positions = nn.Parameter(torch.zeros(1, 6 * 6 + 1, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        count, _, height, width = pictures.shape
        grid = (height // PATCH, width // PATCH)
        table = self.positions[:, 1:].reshape(1, 6, 6, WIDTH).permute(0, 3, 1, 2)
        table = F.interpolate(table, size=grid, mode="bicubic").flatten(2).transpose(1, 2)
        x = self.patches(pictures).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(count, -1, -1), x], dim=1)
        x = x + torch.cat([self.positions[:, :1], table], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return x[:, 1:].transpose(1, 2).reshape(count, WIDTH, *grid), x[:, 0]


class Transport(nn.Module):
    """A ViT with an aggregator by optimal transport between patches and clusters, with a bin for the rest."""

    CLUSTERS, LOCAL = 6, 8

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Vit()
        self.whole = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 16))
        self.local = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1), nn.Dropout(0.3), nn.ReLU(), nn.Conv2d(WIDTH, 8, 1))
        self.cost = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1), nn.Dropout(0.3), nn.ReLU(), nn.Conv2d(WIDTH, 6, 1))
        self.rest = nn.Parameter(torch.zeros(()))

    def forward(self, pictures: Tensor) -> Tensor:
        height, width = (round(side / PATCH) * PATCH for side in pictures.shape[2:])
        if (height, width) != tuple(pictures.shape[2:]):
            pictures = F.interpolate(pictures, (height, width), mode="bilinear", antialias=True)
        patches, whole = self.backbone(pictures)
        costs = self.cost(patches).flatten(2)
        count, clusters, length = costs.shape
        table = torch.empty(count, clusters + 1, length, dtype=costs.dtype, device=costs.device)
        table[:, :clusters], table[:, clusters] = costs, self.rest
        share = -torch.tensor(math.log(clusters + length))
        rows = share.expand(clusters + 1).contiguous()
        rows[-1] = rows[-1] + math.log(length - clusters)
        rows, columns = rows.expand(count, -1), share.expand(length).contiguous().expand(count, -1)
        u, v = torch.zeros_like(rows), torch.zeros_like(columns)
        for _ in range(3):
            u = rows - torch.logsumexp(table + v.unsqueeze(1), dim=2).squeeze()
            v = columns - torch.logsumexp(table + u.unsqueeze(2), dim=1).squeeze()
        plan = (table + u.unsqueeze(2) + v.unsqueeze(1) - share).exp()[:, :-1]
        sums = (self.local(patches).flatten(2).unsqueeze(2) * plan.unsqueeze(1)).sum(dim=-1)
        parts = [F.normalize(self.whole(whole), dim=-1), F.normalize(sums, dim=1).flatten(1)]
        return F.normalize(torch.cat(parts, dim=-1), dim=-1)


class Residual(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(before, after, 3, 2, 1), nn.Conv2d(after, after, 3, 1, 1)
        self.norm1, self.norm2, self.short = (
            nn.BatchNorm2d(after),
            nn.BatchNorm2d(after),
            nn.Conv2d(before, after, 1, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.second(F.relu(self.norm1(self.first(x)))))
        return F.relu(y + self.short(x))


class GemPooled(nn.Module):
    """A ResNet with generalised-mean pooling and a linear layer."""

    def __init__(self, dim: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 7, 2, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.layers = nn.Sequential(Residual(16, 32), Residual(32, 48))
        self.p = nn.Parameter(torch.zeros(1))
        self.linear = nn.Linear(48, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.normalize(self.layers(self.stem(x)), dim=1)
        power = 3 + self.p
        x = F.avg_pool2d(x.clamp(min=1e-6).pow(power), (x.size(-2), x.size(-1))).pow(1.0 / power)
        return F.normalize(self.linear(x.flatten(1)), dim=1)


class LearnedQueries(nn.Module):
    """A ViT whose patches learned queries look at. It returns the descriptors and the attention maps."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Vit()
        self.encoders = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, 0.0, batch_first=True) for _ in range(2)
        )
        self.queries = nn.ParameterList(nn.Parameter(torch.zeros(1, 5, WIDTH)) for _ in range(2))
        self.own = nn.ModuleList(nn.MultiheadAttention(WIDTH, 4, batch_first=True) for _ in range(2))
        self.look = nn.ModuleList(nn.MultiheadAttention(WIDTH, 4, batch_first=True) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.linear = nn.Linear(10, 3)

    def forward(self, pictures: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = self.backbone(pictures)[0].flatten(2).permute(0, 2, 1)
        seen, maps = [], []
        for encoder, query, own, look, norm in zip(
            self.encoders, self.queries, self.own, self.look, self.norms, strict=True
        ):
            x = encoder(x)
            q = query.repeat(x.size(0), 1, 1)
            q = norm(q + own(q, q, q)[0])
            out, attention = look(q, x, x)
            seen.append(out)
            maps.append(attention.detach())
        out = self.linear(torch.cat(seen, dim=1).permute(0, 2, 1)).flatten(1)
        return F.normalize(out, dim=-1), maps


def transport() -> nn.Module:
    sys.stdout.write("loading\n")  # which never reaches the stdout of a command
    return seeded(Transport())


def gem(dim: int = 64) -> nn.Module:
    return seeded(GemPooled(dim))


def queries() -> nn.Module:
    return seeded(LearnedQueries())


class Wrong(nn.Module):
    """A network that is no descriptor, in one of several ways."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault, self.image_size = fault, SIDE
        self.linear = nn.Linear(3, 8)

    def forward(self, x: Tensor) -> object:
        found = self.linear(x.mean(dim=(2, 3)))
        if self.fault == "infinite":
            return found / 0
        if self.fault == "dark":
            return found / (x.amax(dim=(1, 2, 3)) > 0).float()[:, None]
        if self.fault == "changing":
            return found.repeat(1, len(x))
        if self.fault == "wide":
            return found.repeat(1, 10_000)
        if self.fault == "one":
            return found[0]
        if self.fault == "two":
            return found, found * 2
        if self.fault == "map":
            return x
        raise RuntimeError("no such\nweights")


def wrong(fault: str) -> nn.Module:
    return Wrong(fault)


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x.mean(dim=(2, 3)) * mask


def two_inputs() -> nn.Module:
    return TwoInputs()


def number() -> int:
    return 3


def failing() -> nn.Module:
    raise FileNotFoundError("weights.pth is missing\nas always")
