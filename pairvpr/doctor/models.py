"""Check the model that ships on the installed engine, and the setting tuned for a map."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pairvpr.doctor.check import REINSTALL, Check
from pairvpr.errors import BundleError, EngineError, MapError

if TYPE_CHECKING:
    from pairvpr.runtime.bundle import Bundle

MODEL, TUNED = "default model", "tuned setting"


def default_model() -> list[Check]:
    """Check the default bundle: its files, the origin of its weights, and its reference pictures on this engine."""
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
        origin += "; never trained, so it does not recognise places"
    return [
        Check(MODEL, "ok", detail),
        Check("its weights", "ok" if info.weights.trained else "info", origin),
        _reference(bundle),
    ]


def _reference(bundle: Bundle) -> Check:
    """Run the bundle's reference pictures on the engine, and compare the results with the network's."""
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
    return Check(name, "broken", detail, "try another version of onnxruntime, and report this output")


def tuned_setting(db: Path) -> Check:
    """Open the setting that was tuned for a map, as answering would."""
    from pairvpr.runtime.bundle import Bundle
    from pairvpr.runtime.calibrated.tuning import Tuning
    from pairvpr.runtime.map import Map

    remedy = f"pairvpr tune --db {db} --images PICTURES"
    try:
        with Map.open(db) as map_:
            model = map_.model_path
        tuning = Tuning.find_in(Bundle.open(model))
    except (MapError, BundleError) as error:
        return Check(TUNED, "broken", str(error))
    if tuning is None:
        return Check(TUNED, "info", f"{db}: none; the defaults are used", remedy)
    try:
        tuning.open(model)
    except (EngineError, BundleError) as error:
        return Check(TUNED, "missing", f"{db}: {tuning.setting}; not used, the defaults are used: {error}", remedy)
    return Check(
        TUNED, "ok", f"{db}: {tuning.setting}, median {tuning.median_ms:.0f} ms an answer, p99 {tuning.p99_ms:.0f}"
    )
