"""Choose the storage of tokens in a new map: the smallest one that keeps the scores, measured with the bundle."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pairvpr.runtime.features import Features
from pairvpr.runtime.map.tokens import KEY, NO_TOKENS, TokenFormat
from pairvpr.runtime.model import Model
from pairvpr.runtime.reference import TOLERANCES, Reference

TOLERANCE = TOLERANCES["fp16"]
"""Score change that storing tokens may cause: the same as for computing in float16."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Effect:
    """Hold the measured change of pair scores when database tokens are stored.

    pairs: number of pairs of the bundle's reference pictures.
    largest: the largest absolute change.
    mean: the mean absolute change.
    spread: the largest score minus the smallest, for comparison.
    tolerable: True if every change is within TOLERANCE.
    engine: the engine that measured it.
    """

    pairs: int
    largest: float
    mean: float
    spread: float
    tolerable: bool
    engine: str


def measure_effect(model: Model, token_format: TokenFormat) -> Effect:
    """Compare the pair scores of stored tokens and of float32 tokens. Raise BundleError or EngineError."""
    exact = Reference.from_bundle(model.bundle).features
    stored = Features(exact.descriptors, np.stack([token_format.store(tokens).load() for tokens in exact.tokens]))
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
    """Return the settings of a new map, with the measured effect on scores.

    model: the map's model. Without a pair classifier it makes no tokens.
    token_type: "float16" or "int8". None chooses int8 if its effect is tolerable, else float16.
    keep: the share of tokens to store, None for all.

    Raises BundleError or EngineError.
    """
    if not model.bundle.info.pair_classifier:
        for option, value in (("--tokens", token_type), ("--keep-tokens", keep)):
            if value is not None:
                model.bundle.require_pair_classifier(option)
        return {KEY: asdict(TokenFormat(NO_TOKENS))}
    effect = None
    if token_type is None:
        effect = measure_effect(model, TokenFormat("int8"))
        token_type = "int8" if effect.tolerable else "float16"
        if not effect.tolerable:
            log.debug("storing tokens as float16: int8 would change scores by up to %.3g", effect.largest)
    token_format = TokenFormat(token_type, 1.0 if keep is None else keep)
    if effect is None or token_format != TokenFormat("int8"):
        effect = measure_effect(model, token_format)
    settings = {KEY: {**asdict(token_format), "effect": asdict(effect)}}
    log.debug("tokens: %s", describe(settings[KEY]))
    return settings


def describe(tokens: Mapping[str, Any]) -> str:
    """Describe a map's token settings in words."""
    if tokens["type"] == NO_TOKENS:
        return "none: the model has no pair classifier"
    share = "" if tokens["keep"] == 1 else f", merged to {tokens['keep']:.0%} of them"
    effect = tokens.get("effect")
    if effect is None:
        return f"{tokens['type']}{share}"
    return (
        f"{tokens['type']}{share}; changes the scores of {effect['pairs']} reference pairs, which span "
        f"{effect['spread']:.3g}, by {effect['mean']:.2g} on average and {effect['largest']:.2g} at most"
    )
