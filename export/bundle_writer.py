"""Write a bundle: trace and verify graphs, and only then put them into the bundle's folder."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import timm
import torch

import pairvpr
from pairvpr.calibration.splits import split_pictures
from pairvpr.errors import BundleError, CheckpointError, ExportError
from pairvpr.export.descriptor_graph import write_descriptor
from pairvpr.export.descriptor_source import Descriptor
from pairvpr.export.graphs import check_positions
from pairvpr.export.int8_bundle import Int8Export, Pictures
from pairvpr.export.precision import DTYPES, Precision
from pairvpr.export.tracing import graph_specs, write_graph
from pairvpr.export.verification import Progress, Truth, descriptor_truth, network_truth, verify_export
from pairvpr.model import Checkpoint, PairVPR
from pairvpr.model.presets import HEAD_DIM
from pairvpr.runtime.bundle import REFERENCE, Bundle, sha256
from pairvpr.runtime.bundle_info import (
    DESCRIPTOR,
    ENCODER,
    FILE,
    BundleInfo,
    Dims,
    FileInfo,
    FirstStage,
    GraphFiles,
    PictureFormat,
    PrecisionInfo,
    Weights,
)
from pairvpr.runtime.engines.open import INT8
from pairvpr.runtime.resize_rules import SQUASH

TOKEN_FORMAT = "decoder_embed applied, positions added"
PRESET, TOP_K = "descriptor", 100
"""Name of a descriptor alone, and the number of matches of its answers."""


def export_bundle(
    checkpoint: Checkpoint | None,
    precision: Precision,
    out: Path,
    progress: Progress,
    descriptor: Descriptor | None = None,
) -> Bundle:
    """Export a network in one precision into the bundle folder `out`, beside the precisions that it already has.

    checkpoint: the network that compares pairs. None exports a descriptor alone.
    progress: called with a text at each step.
    descriptor: makes the descriptors in place of the checkpoint's network.
    Raises CheckpointError for a stage-one checkpoint, BundleError if the folder is not this model's bundle, ExportError
    if a graph differs from the network. The folder is then left as it was.
    """
    with _export(checkpoint, descriptor, out, progress) as export:
        export.trace(precision, export.folder)
    return Bundle.open(out)


def export_int8(
    checkpoint: Checkpoint | None, images: Path, out: Path, progress: Progress, descriptor: Descriptor | None = None
) -> Bundle:
    """Export a network in the three INT8 precisions, calibrated on the pictures of the folder `images`.

    Works as `export_bundle`. Float graphs that `out` already has are used if the same versions made them. A precision
    that is not accurate enough is left out and logged. Also raises SourceError for too few pictures, and ExportError if
    no precision is accurate enough.
    """
    pictures = Pictures(*split_pictures(images))
    with (
        _export(checkpoint, descriptor, out, progress) as export,
        tempfile.TemporaryDirectory(dir=export.folder) as scratch,
    ):
        floats = Path(scratch)
        for precision in DTYPES:
            export.reuse_or_trace(precision, floats)
        bundle = Bundle(floats, export.info_of(floats))
        precisions, calibration = Int8Export(bundle, export.folder, pictures, progress).write(export.truth.reference())
        export.precisions, export.calibration = precisions, {INT8: calibration}
    return Bundle.open(out)


@dataclass
class _Export:
    """Hold the networks of an export, the folder of their files, and the description written so far.

    network: compares pairs, None for a descriptor alone. descriptor: makes descriptors, None if the network does.
    earlier: the bundle that is added to, None for a new one.
    """

    network: PairVPR | None
    descriptor: Descriptor | None
    info: BundleInfo
    earlier: Bundle | None
    folder: Path
    progress: Progress
    precisions: dict[str, PrecisionInfo] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def truth(self) -> Truth:
        """The networks' results on the reference pictures."""
        own = None if self.network is None else network_truth(self.network, self.progress)
        if self.descriptor is not None:
            return descriptor_truth(self.descriptor, self.progress, own)
        assert own is not None
        return own

    def trace(self, precision: Precision, folder: Path) -> None:
        """Write the graphs in a float precision into `folder`, and compare them with the network."""
        graphs = {}
        for name, spec in {} if self.network is None else graph_specs(self.network, precision).items():
            self.progress(f"tracing {name} ({precision})")
            graphs[name] = write_graph(name, spec, precision, folder)
        if self.descriptor is not None:
            name = ENCODER if self.network is None else DESCRIPTOR
            self.progress(f"tracing {name} ({precision})")
            graphs[name] = write_descriptor(name, self.descriptor.graph(), precision, folder)
        self._verify(precision, graphs, folder)

    def reuse_or_trace(self, precision: Precision, folder: Path) -> None:
        """Copy the graphs in a float precision from the earlier bundle if the same versions made them, else trace them.

        They are compared with the network in both cases. Raises BundleError if a file of the bundle is damaged.
        """
        earlier = self.earlier
        if earlier is None or precision not in earlier.info.precisions or earlier.info.made_with != self.info.made_with:
            return self.trace(precision, folder)
        self.progress(f"using the bundle's {precision} graphs")
        graphs = earlier.info.precisions[precision].graphs
        for file in earlier.verify(sorted({name for each in graphs.values() for name in each.names})):
            shutil.copyfile(file, folder / file.name)
        return self._verify(precision, graphs, folder)

    def _verify(self, precision: Precision, graphs: Mapping[str, GraphFiles], folder: Path) -> None:
        """Compare the graphs in `folder` with the network, and describe them with their errors."""
        self.precisions[precision] = PrecisionInfo(dict(graphs), {})
        # The errors are measured on the bundle as the runtime opens it, then stored in it.
        errors = verify_export(Bundle(folder, self.info_of(folder)), precision, self.truth, self.progress)
        self.precisions[precision] = PrecisionInfo(dict(graphs), errors)

    def info_of(self, folder: Path) -> BundleInfo:
        """Return the description of the current content of `folder`."""
        files = {file.name: FileInfo(file.stat().st_size, sha256(file)) for file in sorted(folder.iterdir())}
        return dataclasses.replace(
            self.info, files=files, precisions=dict(self.precisions), calibration=dict(self.calibration)
        )


@contextmanager
def _export(
    checkpoint: Checkpoint | None, descriptor: Descriptor | None, out: Path, progress: Progress
) -> Iterator[_Export]:
    """Prepare an export, let the block make the files, and put them into the bundle."""
    network = None if checkpoint is None else checkpoint.network
    if checkpoint is not None and network is not None:
        if not network.config.pair_classifier:
            raise CheckpointError(
                f"{checkpoint.weights.origin}: a stage-one checkpoint has no pair classifier; export a stage-two "
                "checkpoint"
            )
        if network.config.decoder_depth < 2:
            raise CheckpointError(
                f"{checkpoint.weights.origin}: its pair decoder has one block and cannot be cut in two; train with "
                "network.decoder_depth = 2 or more"
            )
        check_positions(network.decoder)
    progress("reading the weights")
    info = describe(checkpoint, descriptor)
    earlier = _earlier_bundle(out, info)
    with _workshop(out) as folder:
        export = _Export(network, descriptor, info, earlier, folder, progress)
        yield export
        export.truth.reference().save(folder / REFERENCE)
        info = export.info_of(folder)
        if earlier is not None:
            info = _merge(earlier.info, info)
        (folder / FILE).write_text(info.to_json(), encoding="utf-8")
        _put(folder, out)


def describe(checkpoint: Checkpoint | None, descriptor: Descriptor | None = None) -> BundleInfo:
    """Return the content of `bundle.json` before anything is exported.

    descriptor: makes the descriptors in place of the checkpoint's network. Without a checkpoint it is the whole model.
    """
    if checkpoint is None:
        assert descriptor is not None
        return BundleInfo(
            identity=_with_token_format(descriptor.digest(), "none"),
            preset=PRESET,
            picture=descriptor.picture,
            dims=Dims(descriptor.dim),
            weights=descriptor.weights,
            top_k=TOP_K,
            made_with=_versions(),
        )
    info = _describe_network(checkpoint)
    if descriptor is None:
        return info
    return dataclasses.replace(
        info,
        identity=_with_token_format(descriptor.digest(), info.identity),
        dims=dataclasses.replace(info.dims, descriptor=descriptor.dim),
        descriptor=FirstStage(descriptor.picture, descriptor.weights),
    )


def _with_token_format(descriptor: str, tokens: str) -> str:
    """Return one hash for two: the descriptor's, and the identity of the network that makes the tokens."""
    return hashlib.sha256(f"{descriptor} {tokens}".encode()).hexdigest()


def _describe_network(checkpoint: Checkpoint) -> BundleInfo:
    network, config = checkpoint.network, checkpoint.network.config
    picture = PictureFormat(config.image_size, config.image_size, SQUASH, config.mean, config.std)
    return BundleInfo(
        identity=identity(network, picture),
        preset=config.preset,
        picture=picture,
        dims=Dims(
            descriptor=config.descriptor_dim,
            tokens=len(network.decoder.positions),
            token_dim=config.decoder_dim,
            heads=config.decoder_dim // HEAD_DIM,
            decoder_depth=config.decoder_depth,
            split=config.split,
            look=config.look_dim,
        ),
        weights=Weights(**dataclasses.asdict(checkpoint.weights)),
        top_k=config.top_k,
        made_with=_versions(),
    )


def _versions() -> dict[str, str]:
    return {
        "pairvpr": pairvpr.__version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "onnx": onnx.__version__,
    }


def identity(network: PairVPR, picture: PictureFormat) -> str:
    """Return the hash of weights, preprocessing and token format. Features can be compared if this hash is the same."""
    digest = hashlib.sha256(json.dumps([dataclasses.asdict(picture), TOKEN_FORMAT], allow_nan=False).encode())
    for name, tensor in sorted(network.state_dict().items()):
        array = tensor.numpy()
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _earlier_bundle(out: Path, now: BundleInfo) -> Bundle | None:
    """Return the bundle that `out` already holds, or None. Raise BundleError if `out` holds anything else."""
    if not out.exists():
        return None
    if not out.is_dir():
        raise BundleError(f"{out}: not a folder; choose another --out")
    if not (out / FILE).exists():
        if any(out.iterdir()):
            raise BundleError(f"{out}: holds other files and is not a bundle; choose another --out")
        return None
    bundle = Bundle.open(out)
    if bundle.identity != now.identity:
        raise BundleError(
            f"{out}: holds another model's bundle ({bundle.identity[:12]}, {bundle.info.weights.origin}); "
            "choose another --out"
        )
    if bundle.info.graphs != now.graphs:
        raise BundleError(
            f"{out}: holds graphs of an older version, which do not go together with this one's; choose another --out "
            "(maps stay valid)"
        )
    return bundle


@contextmanager
def _workshop(out: Path) -> Iterator[Path]:
    """Yield an empty folder beside `out` to work in, and remove it afterwards."""
    folder = out.parent / f".{out.name}.partial"
    try:
        shutil.rmtree(folder, ignore_errors=True)  # a killed export may have left it
        folder.mkdir(parents=True)
        yield folder
    except OSError as error:
        raise ExportError(
            f"{out}: cannot be written ({error.strerror or error}); free space, or allow writing to the folder, or "
            "choose another --out"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _merge(earlier: BundleInfo, now: BundleInfo) -> BundleInfo:
    """Return the earlier bundle with this export's precisions added or replaced.

    All INT8 precisions are replaced together, because the bundle describes one INT8 export.
    """
    gone = {name for name in earlier.precisions if INT8 in now.calibration and name.partition("-")[0] == INT8}
    old = {file for name in gone for graph in earlier.precisions[name].graphs.values() for file in graph.names}
    return dataclasses.replace(
        now,
        files={**{name: info for name, info in earlier.files.items() if name not in old}, **now.files},
        precisions={**{k: each for k, each in earlier.precisions.items() if k not in gone}, **now.precisions},
        calibration={**earlier.calibration, **now.calibration},
    )


def _put(folder: Path, out: Path) -> None:
    """Move the finished files into `out`, the description last. Delete the files that it no longer names."""
    if not out.exists():
        folder.rename(out)
        return
    earlier, now = (set(BundleInfo.from_json((each / FILE).read_text("utf-8"), each).files) for each in (out, folder))
    for file in sorted(folder.iterdir(), key=lambda file: file.name == FILE):
        file.replace(out / file.name)
    for name in earlier - now:
        (out / name).unlink()
