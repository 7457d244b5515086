"""Calibrate the cascade: learn which candidates to drop after each look, and measure how often the best is lost.

The heads are fitted to the full scores. The pictures are sorted by name and cut into blocks. Every other block is for
learning and the rest for checking: neighbouring pictures of a drive are alike, so single pictures would check nothing.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pairvpr.errors import MapError, SourceError
from pairvpr.evaluation.recall import interval_of
from pairvpr.runtime.bundle_info import LOOK
from pairvpr.runtime.calibrated.cascade import LEAST, PREFIX, Cascade, Look, look_inputs, queries_needed, select_similar
from pairvpr.runtime.features import Features, similarities_of
from pairvpr.runtime.map import Map
from pairvpr.runtime.mapping.builder import add_pictures
from pairvpr.runtime.model import Model
from pairvpr.runtime.search import FaissIndex
from pairvpr.runtime.sources import list_pictures

PROBABILITY = 0.998
"""Share of queries whose best candidate the margins keep. It ensures 99.5 % in use (`benchmarks.settings`)."""
MIN_PICTURES = 40
"""Half of them check the result. With fewer than 20 queries to check, the interval is useless."""
MIN_PLACES = 3
"""The query picture itself and two candidates."""
BLOCKS = 10
PENALTIES = tuple(float(penalty) for penalty in np.logspace(-5, 1, 13))
"""Penalties of the ridge regression, on standardised inputs and per observation."""
SAME = 1 - 1e-5
"""Similarity from which a candidate counts as the query picture itself, which a robot never meets."""

Progress = Callable[[str, int, int], None]
"""Called with the step, the number done, and the total."""
Floats = npt.NDArray[np.floating]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ComparedQuery:
    """Hold a query's candidates: the inputs of a head (k, d), and full scores (k,)."""

    inputs: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]


@dataclass(frozen=True)
class LookedAtQuery:
    """Hold a query's candidates in descriptor order.

    similarities: (k,) of the descriptors.
    inputs: the inputs (k, d + 1) of the head of each look, by graph, in the order of looks.
    scores: (k,) full scores.
    """

    similarities: npt.NDArray[np.float32]
    inputs: Mapping[str, npt.NDArray[np.float32]]
    scores: npt.NDArray[np.float32]

    @property
    def similarity_gap(self) -> float:
        """Return the distance of the winner's similarity below the best one."""
        return winner_gap(self.similarities, self.scores)


@contextmanager
def temporary_map(images: str | Path, model: Model, progress: Progress) -> Iterator[Map]:
    """Build a map of the pictures in the folder `images`, and delete it after use."""
    with tempfile.TemporaryDirectory(prefix="pairvpr-calibrate-") as folder:
        path = Path(folder) / "map"
        add_pictures(images, path, model, create=True, progress=lambda *counts: progress("building a map", *counts))
        with Map.open(path) as map_:
            yield map_


def calibrate_cascade(map_: Map, model: Model, images: str | Path, progress: Progress) -> Cascade:
    """Learn a cascade for `model` from the pictures in the folder `images`, as queries to a map.

    Every picture is compared in full with as many candidates as in use. The inputs of the heads stay in memory, about
    24 D bytes a pair.
    Raises SourceError for too few readable pictures and MapError for too small a map. Errors of map and engine pass
    through.
    """
    if len(map_) < MIN_PLACES:
        raise MapError(
            f"{map_.path}: a map of {len(map_)} pictures has no candidates to drop; calibrate on a larger map"
        )
    check_enough(images, len(list_pictures(images)))
    queries = compare_pictures(map_, model, images, progress)
    check_enough(images, len(queries))
    learning, checking = split_blocks(len(queries))
    rule = learn_rule([[queries[i] for i in block] for block in learning], PROBABILITY)
    fitted = sum(len(block) for block in learning)
    checked = [rule.follow(queries[i], model.batch_size) for i in checking]
    survived = sum(each.survived for each in checked)
    kept = np.mean([each.kept for each in checked], axis=0)
    cascade = Cascade(
        identity=model.bundle.identity,
        engine=model.engines.description,
        similarity_margin=rule.similarity_margin,
        looks=[replace(look, kept=round(float(share), 6)) for look, share in zip(rule.looks, kept[1:], strict=True)],
        probability=PROBABILITY,
        candidates=max(len(query.scores) for query in queries),
        fitted=fitted,
        checked=len(checked),
        survived=survived,
        interval=interval_of(survived / len(checked), len(checked)),
        compared=round(float(kept[0]), 6),
    )
    for doubt in cascade.doubts:
        log.warning("%s: %s; give %d pictures or more with --images", images, doubt, 2 * queries_needed(PROBABILITY))
    return cascade


@dataclass(frozen=True)
class Course:
    """Hold how a query's candidates fared in a cascade.

    going: (k,) whether a candidate was compared in full.
    survived: the candidate with the best full score was.
    kept: share of the candidates after the similarity and after each look.
    """

    going: npt.NDArray[np.bool_]
    survived: bool
    kept: Sequence[float]


@dataclass(frozen=True)
class Rule:
    """Hold the looks in their order, and the margin of the similarity, None without one."""

    similarity_margin: float | None
    looks: Sequence[Look]

    def follow(self, query: LookedAtQuery, batch: int) -> Course:
        """Apply the rule to a query's candidates, in batches in descriptor order as in use."""
        places = np.flatnonzero(select_similar(query.similarities, self.similarity_margin))
        counts = [len(places), *(0 for _ in self.looks)]
        seen = [np.zeros(0, np.float32) for _ in self.looks]
        going = np.zeros(len(query.scores), np.bool_)
        for start in range(0, len(places), batch):
            part = places[start : start + batch]
            for number, look in enumerate(self.looks):
                predicted = look.predict(query.inputs[look.graph][part, :-1], query.similarities[part])
                kept = look.keep(predicted, seen[number])
                seen[number] = np.concatenate([seen[number], predicted])
                part = part[kept]
                counts[number + 1] += len(part)
                if not len(part):
                    break
            going[part] = True
        share = 1 / len(query.scores)
        return Course(going, bool(going[np.argmax(query.scores)]), [count * share for count in counts])


def learn_rule(blocks: Sequence[Sequence[LookedAtQuery]], probability: float) -> Rule:
    """Learn the heads, and margins that together keep the winner of a further query with this probability.

    A query's gaps, each as a share of the largest of its kind, are summarised by the greatest: the margins are the
    same share of the largest gaps. So one bound (`find_margin`) holds for all looks together.
    With fewer queries than the bound needs, the similarity drops no candidate.
    """
    queries = [query for block in blocks for query in block]
    heads: dict[str, tuple[npt.NDArray[np.float32], float]] = {}
    gaps: dict[str, npt.NDArray[np.float64]] = {}
    if len(queries) >= queries_needed(probability):
        gaps["similarity"] = np.array([query.similarity_gap for query in queries])
    for graph in queries[0].inputs:
        seen = [[ComparedQuery(query.inputs[graph], query.scores) for query in block] for block in blocks]
        head, bias, gaps[graph] = fit_head(seen)
        heads[graph] = head, bias
    largest = {name: float(each.max()) for name, each in gaps.items()}
    shares = np.max([each / max(largest[name], 1e-30) for name, each in gaps.items()], axis=0)
    share = find_margin(shares, probability)
    margins = {name: share * most for name, most in largest.items()}
    looks = [Look(graph, head, bias, margins[graph], 1.0) for graph, (head, bias) in heads.items()]
    return Rule(margins.get("similarity"), looks)


def check_enough(images: str | Path, count: int) -> None:
    """Raise SourceError if `count` pictures are too few."""
    if count < MIN_PICTURES:
        raise SourceError(
            f"{images}: {count} usable pictures; give at least {MIN_PICTURES} with --images, better "
            f"{2 * queries_needed(PROBABILITY)}"
        )


def compare_pictures(map_: Map, model: Model, images: str | Path, progress: Progress) -> list[LookedAtQuery]:
    """Compare each picture with its candidates in the map, the picture itself excluded.

    Pictures that cannot be read, or that have fewer than two candidates, are left out.
    """
    pictures = list_pictures(images)
    index = FaissIndex(map_.descriptors, map_.index_precision)
    top_k = min(model.bundle.info.top_k, len(map_))
    found = []
    for number, (_, path) in enumerate(pictures, 1):
        progress("comparing pictures", number, len(pictures))
        try:
            fitted = model.fit(path)
        except SourceError as error:
            log.warning("skipped: %s", error)
            continue
        query = model.encode_fitted([fitted])
        near, rows = index.search(query.descriptors, min(top_k + 1, len(map_)))
        rows = rows[near < SAME][:top_k]
        if len(rows) >= 2:
            found.append(look_at(map_, model, query, rows))
    return found


def look_at(map_: Map, model: Model, query: Features, rows: npt.NDArray[np.int64]) -> LookedAtQuery:
    """Compare one query with rows (k,) of the map in full. Return its scores and the inputs of the heads."""
    similarities = similarities_of(query.descriptors[0], map_.take_descriptors(rows))
    outputs: dict[str, list[npt.NDArray[np.float32]]] = {LOOK: [], PREFIX: []}
    scores = []
    for start in range(0, len(rows), model.batch_size):
        tokens = map_.read_tokens(rows[start : start + model.batch_size])
        if model.engines.pair_look is not None:
            outputs[LOOK].append(model.look(query.tokens, tokens))
        pairs = model.prefix(query.tokens, tokens)
        outputs[PREFIX].append(pairs.summaries)
        scores.append(model.suffix(pairs, np.arange(len(tokens))))
    inputs = {graph: look_inputs(np.concatenate(parts), similarities) for graph, parts in outputs.items() if parts}
    return LookedAtQuery(similarities, inputs, np.concatenate(scores))


def split_blocks(count: int) -> tuple[list[npt.NDArray[np.int64]], npt.NDArray[np.int64]]:
    """Split `count` queries, in order, into blocks to learn from and indices to check with. No query is in both."""
    blocks = np.array_split(np.arange(count), BLOCKS)
    return blocks[::2], np.concatenate(blocks[1::2])


def fit_head(
    blocks: Sequence[Sequence[ComparedQuery]],
) -> tuple[npt.NDArray[np.float32], float, npt.NDArray[np.float64]]:
    """Fit head (d,) and bias by ridge regression. Return them and the gap of each query's winner (n,).

    The gaps come from cross-validation: the head that predicts a block was fitted without it. The penalty is the one
    with the least squared error in cross-validation.
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
            gaps[:, number] = [winner_gap(each, query.scores) for each in predicted]
            number += 1
    best = int(np.argmin(error))
    heads, biases = ridge(whole, PENALTIES[best : best + 1])
    return heads[0].astype(np.float32), float(biases[0]), gaps[best]


def ridge(moments: Floats, penalties: Sequence[float]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return heads (p, d) and biases (p,) for p penalties, from the moments (d + 2, d + 2) of inputs, 1 and scores.

    Hoerl & Kennard, Technometrics 1970, on inputs of mean 0 and standard deviation 1. Constant inputs get weight 0.
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


def winner_gap(predicted: Floats, scores: Floats) -> float:
    """Return the distance of the winner's prediction below the best one. The winner has the best full score.

    It is 0 for a winner among the LEAST best predictions, who needs no margin.
    """
    winner = predicted[np.argmax(scores)]
    return 0.0 if np.sum(predicted > winner) < LEAST else float(predicted.max() - winner)


def find_margin(gaps: Floats, probability: float) -> float:
    """Return the smallest margin that a further gap exceeds with a chance of at most 1 - probability.

    It is the gap of rank (n + 1) probability, by split conformal prediction (Vovk, Gammerman & Shafer 2005). With too
    few gaps for that (`queries_needed`) it is the largest gap.
    """
    rank = math.ceil((len(gaps) + 1) * probability)
    return float(np.sort(gaps)[min(rank, len(gaps)) - 1])


def _moments(block: Sequence[ComparedQuery]) -> npt.NDArray[np.float64]:
    """Return the sums of products of inputs, 1 and scores, (d + 2, d + 2)."""
    total = np.zeros(2 * (block[0].inputs.shape[1] + 2,))
    for query in block:
        rows = np.column_stack([query.inputs, np.ones(len(query.scores)), query.scores]).astype(np.float64)
        total += rows.T @ rows
    return total
