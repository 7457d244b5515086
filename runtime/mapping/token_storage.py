"""How a new map stores tokens: the smallest way that leaves scores as they are, measured with the bundle at hand."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pairvpr.runtime.features import Features
from pairvpr.runtime.map.tokens import KEY, TokenFormat
from pairvpr.runtime.model import Model
from pairvpr.runtime.reference import TOLERANCES, Reference

TOLERANCE = TOLERANCES["fp16"]
"""Scores may change by storing tokens as much as by computing in float16."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Effect:
    """How pair scores change where database tokens are stored: in `pairs` pairs of the bundle's reference pictures.

    largest, mean: of the changes. spread: of the scores themselves, largest less smallest. tolerable: whether every
    change is within TOLERANCE. engine: what it was measured on.
    """

    pairs: int
    largest: float
    mean: float
    spread: float
    tolerable: bool
    engine: str


def measure(model: Model, how: TokenFormat) -> Effect:
    """The effect of storing tokens so, against float32 ones; raises BundleError or EngineError."""
    exact = Reference.load(model.bundle.reference()).features
    stored = Features(exact.descriptors, np.stack([how.store(tokens).load() for tokens in exact.tokens]))
    scores, changed = (
        np.concatenate([model.score(exact[i], database[i:]) for i in range(len(exact))]) for database in (exact, stored)
    )
    changes = np.abs(changed - scores)
    return Effect(
        pairs=len(scores),
        largest=round(float(changes.max()), 6),
        mean=round(float(changes.mean()), 6),
        spread=round(float(np.ptp(scores)), 6),
        tolerable=bool(np.all(changes <= TOLERANCE.scores + TOLERANCE.scores_relative * np.abs(scores))),
        engine=model.engines.description,
    )


def token_settings(model: Model, token_type: str | None = None, keep: float | None = None) -> dict[str, Any]:
    """The settings of a new map, with the measured effect.

    token_type: "float16" or "int8"; None takes int8 where its effect is tolerable, else float16. keep: the share of
    tokens to store, None all. Raises BundleError or EngineError.
    """
    effect = None
    if token_type is None:
        effect = measure(model, TokenFormat("int8"))
        token_type = "int8" if effect.tolerable else "float16"
        if not effect.tolerable:
            log.info("tokens are stored as float16: as int8, scores would change by up to %.3g", effect.largest)
    how = TokenFormat(token_type, 1.0 if keep is None else keep)
    if effect is None or how != TokenFormat("int8"):
        effect = measure(model, how)
    settings = {KEY: {**asdict(how), "effect": asdict(effect)}}
    log.info("tokens: %s", describe(settings[KEY]))
    return settings


def describe(tokens: Mapping[str, Any]) -> str:
    """A map's settings of its tokens in words."""
    share = "" if tokens["keep"] == 1 else f", merged to {tokens['keep']:.0%} of them"
    effect = tokens.get("effect")
    if effect is None:
        return f"{tokens['type']}{share}"
    return (
        f"{tokens['type']}{share}; changes the scores of {effect['pairs']} reference pairs, which span "
        f"{effect['spread']:.3g}, by {effect['mean']:.2g} on average and {effect['largest']:.2g} at most"
    )
