"""Load a model from a bundle, or from a checkpoint that is exported first."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pairvpr.errors import CheckpointError
from pairvpr.runtime.model import Model, load_model

log = logging.getLogger(__name__)


@contextmanager
def open_model(bundle: str | Path | None = None, checkpoint: str | Path | None = None) -> Iterator[Model]:
    """Yield the model of a bundle or of a checkpoint; without either, the default model.

    A checkpoint needs torch. It is exported to a temporary float32 bundle, so that the measured model is the one that
    a robot runs. Raises CheckpointError, BundleError, EngineError, ExportError.
    """
    if checkpoint is None:
        yield load_model(bundle)
        return
    try:
        from pairvpr.export.bundle_writer import export_bundle
        from pairvpr.model import load_checkpoint
    except ImportError as error:
        raise CheckpointError(
            f'{checkpoint}: a checkpoint needs torch, timm and onnx ({error}); run pip install "pairvpr[export]" '
            "or give --model BUNDLE"
        ) from error
    with tempfile.TemporaryDirectory(prefix="pairvpr-eval-") as folder:
        exported = export_bundle(load_checkpoint(checkpoint), "fp32", Path(folder) / "bundle", log.info)
        yield load_model(exported.path)
