"""The model that ships, on the engine there is, and the setting tuned for a map."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pairvpr.doctor.check import REINSTALL, Check, import_problem
from pairvpr.errors import BundleError, EngineError, MapError

if TYPE_CHECKING:
    from pairvpr.runtime.bundle import Bundle

MODEL, TUNED = "default model", "tuned setting"


def default_model() -> list[Check]:
    """The default bundle: its files, the origin of its weights, and its reference check on this engine."""
    problem = import_problem("pairvpr.runtime")
    if problem is not None:
        return [Check(MODEL, "broken", f"cannot be opened: {problem}", REINSTALL)]
    from pairvpr.runtime.bundle import Bundle
    from pairvpr.runtime.model import default_bundle

    if not default_bundle().exists():
        return [Check(MODEL, "missing", f"{default_bundle()}: not there", REINSTALL)]
    try:
        bundle = Bundle.open(default_bundle())
        bundle.verify()
    except BundleError as error:
        return [Check(MODEL, "broken", str(error), REINSTALL)]
    info = bundle.info
    detail = f"{info.preset} ({', '.join(info.precisions)}), {len(info.files)} files verified, {bundle.path}"
    origin = f"{info.weights.origin}, licence {info.weights.licence}"
    if not info.weights.trained:
        origin += "; never trained: it runs, but does not recognise places"
    return [
        Check(MODEL, "ok", detail),
        Check("its weights", "ok" if info.weights.trained else "info", origin),
        _reference(bundle),
    ]


def _reference(bundle: Bundle) -> Check:
    """The bundle's reference pictures through the engine, compared with what the network made of them."""
    from pairvpr.runtime.model import load_model
    from pairvpr.runtime.reference import check_reference

    name = "reference check"
    try:
        model = load_model(bundle.path)
        errors = check_reference(model)
    except BundleError as error:
        return Check(name, "broken", str(error), REINSTALL)
    except EngineError as error:
        return Check(name, "broken", str(error), "see the engine's lines above")
    detail = (
        f"{model.engines.description}: descriptors within {errors.descriptors:.1e}, "
        f"scores within {errors.scores:.1e} of the network's"
    )
    if errors.ok:
        return Check(name, "ok", detail)
    return Check(name, "broken", detail, "try another version of onnxruntime, and report this page")


def tuned_setting(db: Path) -> Check:
    """The setting that a map's answers are given with here, opened as they would open it."""
    from pairvpr.runtime.bundle import Bundle
    from pairvpr.runtime.calibrated.tuning import Tuning
    from pairvpr.runtime.map import Map

    remedy = f"pairvpr tune --db {db} --images PICTURES"
    try:
        with Map.open(db) as places:
            model = places.model_path
        tuning = Tuning.find_in(Bundle.open(model))
    except (MapError, BundleError) as error:
        return Check(TUNED, "broken", str(error))
    if tuning is None:
        return Check(TUNED, "info", f"{db}: none, the defaults answer", remedy)
    try:
        tuning.open(model)
    except (EngineError, BundleError) as error:
        return Check(TUNED, "missing", f"{db}: {tuning.setting}; not used, the defaults answer: {error}", remedy)
    return Check(TUNED, "ok", f"{db}: {tuning}")
