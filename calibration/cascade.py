"""Calibrating the cascade: which candidates can be dropped after the pair prefix, and how often that loses the winner.

Teacher is the full score. The pictures, in the order of their names, are cut into blocks; every other block is for
learning, the rest for checking, because neighbouring pictures of a drive are alike and would check nothing.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pairvpr.errors import MapError, SourceError
from pairvpr.runtime.calibrated.cascade import Cascade
from pairvpr.runtime.map import Map
from pairvpr.runtime.mapping.builder import add_pictures
from pairvpr.runtime.model import Model
from pairvpr.runtime.search import FaissIndex
from pairvpr.runtime.sources import list_pictures

PROBABILITY = 0.998
"""Share of queries whose winner is to go on: so high that 99.5 % are kept beyond doubt (`benchmarks.settings`)."""
MIN_PICTURES = 40
"""With fewer than 20 queries to check, an interval says nothing."""
MIN_PLACES = 3
"""The query picture itself, and two to choose from."""
BLOCKS = 10
PENALTIES = tuple(float(penalty) for penalty in np.logspace(-5, 1, 13))
"""Of the ridge regression, on standardised inputs and per observation."""
SAME = 1 - 1e-5
"""Similarity from which a candidate is the query picture itself, which a robot never meets."""

Progress = Callable[[str, int, int], None]
"""Told what is being done, how many are done and of how many."""
Floats = npt.NDArray[np.floating]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ComparedQuery:
    """A query's candidates: summaries (k, 4 D) of the pairs after the prefix, full scores (k,)."""

    inputs: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]


@contextmanager
def map_of(images: str | Path, model: Model, progress: Progress) -> Iterator[Map]:
    """A passing map of the pictures in the folder `images`, where there is none to calibrate for."""
    with tempfile.TemporaryDirectory(prefix="pairvpr-calibrate-") as folder:
        path = Path(folder) / "map"
        add_pictures(images, path, model, create=True, progress=lambda *counts: progress("building a map", *counts))
        with Map.open(path) as map_:
            yield map_


def calibrate_cascade(map_: Map, model: Model, images: str | Path, progress: Progress) -> Cascade:
    """Learn a cascade for `model` from the pictures in the folder `images`, asked of the map `places`.

    Every picture is compared in full with as many candidates as in use; all their summaries stay in memory, 16 D
    bytes a pair. Raises SourceError for too few pictures that can be read, MapError for a map of too few, and what map
    and engine raise.
    """
    if len(map_) < MIN_PLACES:
        raise MapError(f"{map_.path}: {len(map_)} pictures leave nothing to drop; calibrate on a larger map")
    check_enough(images, len(list_pictures(images)))
    queries = compare(map_, model, images, progress)
    check_enough(images, len(queries))
    learning, checking = split(len(queries))
    head, bias, gaps = fit([[queries[i] for i in block] for block in learning])
    margin = margin_for(gaps, PROBABILITY)
    checked = [queries[i] for i in checking]
    predicted = [query.inputs @ head + bias for query in checked]
    survived = sum(gap_of_winner(p, query.scores) <= margin for p, query in zip(predicted, checked, strict=True))
    if len(gaps) < margin_needs(PROBABILITY):
        log.warning(
            "%d pictures to learn from are few for a margin that keeps the winner in %.1f %% of queries: with %d or "
            "more pictures the share could be as promised",
            len(gaps),
            100 * PROBABILITY,
            2 * margin_needs(PROBABILITY),
        )
    return Cascade(
        identity=model.bundle.identity,
        engine=model.engines.description,
        head=head,
        bias=bias,
        margin=margin,
        probability=PROBABILITY,
        candidates=max(len(query.scores) for query in queries),
        fitted=len(gaps),
        checked=len(checked),
        survived=survived,
        interval=wilson_interval(survived, len(checked)),
        kept=float(sum(kept(p, margin, model.batch_size) for p in predicted) / sum(len(p) for p in predicted)),
    )


def check_enough(images: str | Path, count: int) -> None:
    """Raise SourceError where so many pictures are too few."""
    if count < MIN_PICTURES:
        raise SourceError(
            f"{images}: {count} pictures that can be used; calibrating needs at least {MIN_PICTURES}, better "
            f"{2 * margin_needs(PROBABILITY)}"
        )


def compare(map_: Map, model: Model, images: str | Path, progress: Progress) -> list[ComparedQuery]:
    """Each picture that can be read against its candidates in the map, itself left out.

    Those with fewer than two candidates leave nothing to choose and are left out too.
    """
    pictures = list_pictures(images)
    index = FaissIndex(map_.descriptors)
    top_k = min(model.bundle.info.top_k, len(map_))
    found = []
    for number, (_, path) in enumerate(pictures, 1):
        progress("comparing pictures", number, len(pictures))
        try:
            image = model.prepare(path)
        except SourceError as error:
            log.warning("skipped: %s", error)
            continue
        query = model.encode_prepared(image[None])
        similarities, rows = index.search(query.descriptors, min(top_k + 1, len(map_)))
        rows = rows[similarities < SAME][:top_k]
        if len(rows) < 2:
            continue
        inputs, scores = [], []
        for start in range(0, len(rows), model.batch_size):
            tokens = map_.read_tokens(rows[start : start + model.batch_size])
            pairs = model.prefix(query.tokens, tokens)
            inputs.append(pairs.summaries)
            scores.append(model.suffix(pairs, np.arange(len(tokens))))
        found.append(ComparedQuery(np.concatenate(inputs), np.concatenate(scores)))
    return found


def split(count: int) -> tuple[list[npt.NDArray[np.int64]], npt.NDArray[np.int64]]:
    """Of `count` queries in order: the blocks to learn from, and those to check with; no query is in both."""
    blocks = np.array_split(np.arange(count), BLOCKS)
    return blocks[::2], np.concatenate(blocks[1::2])


def fit(blocks: Sequence[Sequence[ComparedQuery]]) -> tuple[npt.NDArray[np.float32], float, npt.NDArray[np.float64]]:
    """Head (d,) and bias by ridge regression, and each query's gap (n,), predicted by heads that did not see it.

    The penalty is the one whose heads predict the blocks they did not see with the least squared error.
    """
    moments = [_moments(block) for block in blocks]
    whole = np.sum(moments, axis=0)
    error = np.zeros(len(PENALTIES))
    gaps = np.zeros((len(PENALTIES), sum(len(block) for block in blocks)))
    number = 0
    for block, own in zip(blocks, moments, strict=True):
        heads, biases = ridge(whole - own, PENALTIES)
        for query in block:
            predicted = heads @ query.inputs.T.astype(np.float64) + biases[:, None]
            error += np.square(predicted - query.scores).sum(axis=1)
            gaps[:, number] = [gap_of_winner(each, query.scores) for each in predicted]
            number += 1
    best = int(np.argmin(error))
    heads, biases = ridge(whole, PENALTIES[best : best + 1])
    return heads[0].astype(np.float32), float(biases[0]), gaps[best]


def ridge(moments: Floats, penalties: Sequence[float]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Heads (p, d) and biases (p,) for p penalties, from the moments (d + 2, d + 2) of inputs, 1 and scores.

    Hoerl & Kennard, Technometrics 1970, on inputs of mean 0 and standard deviation 1; constant ones get weight 0.
    """
    mean = moments[:, -2] / moments[-2, -2]
    covariance = moments / moments[-2, -2] - np.outer(mean, mean)
    scale = np.sqrt(np.diag(covariance)[:-2].clip(0))
    useful = scale > 1e-6 * np.maximum(np.abs(mean[:-2]), 1e-6)
    inverse = np.where(useful, 1 / np.where(useful, scale, 1), 0)
    values, vectors = np.linalg.eigh(covariance[:-2, :-2] * np.outer(inverse, inverse))
    rotated = vectors.T @ (covariance[:-2, -1] * inverse)
    heads = (rotated / (values.clip(0) + np.asarray(penalties)[:, None])) @ vectors.T * inverse
    return heads, mean[-1] - heads @ mean[:-2]


def gap_of_winner(predicted: Floats, scores: Floats) -> float:
    """How far the prediction of the candidate with the best full score lies below the best prediction."""
    return float(predicted.max() - predicted[np.argmax(scores)])


def margin_for(gaps: Floats, probability: float) -> float:
    """The smallest margin that a further gap exceeds with a chance of at most 1 - probability.

    That of split conformal prediction (Vovk, Gammerman & Shafer 2005): the gap of rank (n + 1) probability. Where
    there are too few gaps for that (`margin_needs`), the largest.
    """
    rank = math.ceil((len(gaps) + 1) * probability)
    return float(np.sort(gaps)[min(rank, len(gaps)) - 1])


def margin_needs(probability: float) -> int:
    """How many gaps `margin_for` needs to keep its promise."""
    return math.ceil(probability / (1 - probability) - 1e-9)


def kept(predicted: Floats, margin: float, batch: int) -> int:
    """How many of the candidates, predicted in batches in descriptor order, go on."""
    best = np.maximum.accumulate(predicted)
    ends = np.minimum(np.arange(len(predicted)) // batch * batch + batch, len(predicted)) - 1
    return int(np.sum(predicted >= best[ends] - margin))


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % confidence interval of a share (Wilson, JASA 1927)."""
    z = 1.959964
    share, spread = successes / trials, z * z / trials
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def _moments(block: Sequence[ComparedQuery]) -> npt.NDArray[np.float64]:
    """The sums of products of inputs, 1 and scores, (d + 2, d + 2)."""
    total = np.zeros(2 * (block[0].inputs.shape[1] + 2,))
    for query in block:
        rows = np.column_stack([query.inputs, np.ones(len(query.scores)), query.scores]).astype(np.float64)
        total += rows.T @ rows
    return total
