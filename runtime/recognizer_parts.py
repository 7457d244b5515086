"""Load the model that answers for a map, with the settings that its user left open."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pairvpr.errors import BundleError, MapError
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.calibrated.acceptance import AnswerDefaults
from pairvpr.runtime.calibrated.cascade import Cascade
from pairvpr.runtime.calibrated.tuning import RuntimeSetting, open_tuned
from pairvpr.runtime.map import Map
from pairvpr.runtime.model import Model
from pairvpr.runtime.reference import check_foreign


@dataclass(frozen=True)
class LoadedParts:
    """The model of a map on a device, and the settings that go with it.

    note: about the tuned setting, for the log.
    """

    model: Model
    top_k: int
    cascade: Cascade | None
    note: str


def load_parts(
    map_: Map,
    setting: RuntimeSetting,
    model: str | Path | None,
    top_k: int | None,
    rerank: bool,
    model_digest: str | None,
) -> LoadedParts:
    """Load the model of an opened map, and find the settings that the caller left open.

    For the arguments and errors see `PlaceRecognizer.open`.
    """
    _check_size(map_, top_k)
    bundle = map_.model_path if model is None else Path(model)
    defaults = AnswerDefaults.from_bundle(Bundle.open(bundle))
    if setting.exact is None and rerank:
        setting = replace(setting, exact=defaults.exact)
    for digest in (model_digest, map_.model_digest):
        if digest is not None:  # before any graph is loaded
            Bundle.open(bundle).check_digest(digest)
    note = ""
    if model is None:
        loaded, setting, note = open_tuned(bundle, setting)
    else:
        loaded = setting.load(bundle)
    _check_model(map_, loaded.bundle)
    check_foreign(loaded)
    k = defaults.top_k if top_k is None else top_k  # a map that grows has more
    return LoadedParts(loaded, k, _choose_cascade(loaded.bundle, setting.exact) if rerank else None, note)


def _check_size(map_: Map, top_k: int | None) -> None:
    """Raise MapError for an empty map and for a top_k outside 1 to the map's size."""
    count = len(map_.records)
    if count == 0:
        if (map_.path / "tiles").is_dir():
            raise MapError(f"{map_.path}: the map holds no pictures yet; fetch them with `pairvpr fleet pull`")
        raise MapError(
            f"{map_.path}: the map holds no pictures yet; wait for its `pairvpr map build`, run it again if it was "
            "interrupted, or add pictures with `pairvpr map add`"
        )
    if top_k is not None and not 1 <= top_k <= count:
        raise MapError(f"{map_.path}: --top-k {top_k} is outside 1 to {count}, the map's pictures; choose another")


def _check_model(map_: Map, bundle: Bundle) -> None:
    """Raise MapError if the map was made with another model."""
    if bundle.identity != map_.identity:
        raise MapError(
            f"{map_.path}: made with model {map_.identity[:12]}, not with {bundle.identity[:12]} "
            f"({bundle.path}); use the map's own model or build the map again"
        )
    if misfit := map_.find_misfit(bundle.info.dims):
        raise MapError(f"{map_.path}: {misfit}; restore the map from a copy or build it again")


def _choose_cascade(bundle: Bundle, exact: bool | None) -> Cascade | None:
    """Return the bundle's cascade, None without one or with `exact`. Raises BundleError if `exact` is False without."""
    cascade = None if exact else Cascade.find_in(bundle)
    if exact is False:
        bundle.require_pair_classifier("--cascade")
    if cascade is None and exact is False:
        raise BundleError(
            f"{bundle.path}: no cascade was calibrated, but --cascade needs one; run "
            "`pairvpr calibrate cascade`, or leave out --cascade"
        )
    return cascade
