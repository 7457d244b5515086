"""Descriptors of other networks: found, exported, compared with their network, alone and before a pair classifier."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from click.testing import CliRunner, Result  # noqa: E402
from PIL import Image  # noqa: E402

from pairvpr.cli.main import main  # noqa: E402
from pairvpr.errors import ExportError  # noqa: E402
from pairvpr.export.bundle_writer import export_bundle  # noqa: E402
from pairvpr.export.descriptor_reduction import find_components, measure_loss  # noqa: E402
from pairvpr.export.descriptor_source import IMAGENET_MEAN, IMAGENET_STD, Stated, load_descriptor  # noqa: E402
from pairvpr.model import load_checkpoint  # noqa: E402
from pairvpr.runtime import PlaceRecognizer, load_model  # noqa: E402
from pairvpr.runtime.bundle import Bundle  # noqa: E402
from pairvpr.runtime.bundle_info import GRAPHS, Dims  # noqa: E402
from pairvpr.runtime.image import resize  # noqa: E402
from pairvpr.runtime.map import verify_map  # noqa: E402
from pairvpr.runtime.mapping.builder import add_pictures  # noqa: E402
from pairvpr.runtime.reference import check_reference  # noqa: E402
from tests.export import descriptors  # noqa: E402
from tests.scenes import draw_scene  # noqa: E402

MODULE = "tests.export.descriptors"
DIMS = {"transport": 64, "gem": 64, "queries": 96}
QUIET = lambda step: None  # noqa: E731
STATED = Stated(size=(56, 56))


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of torch.hub's kind."""
    folder = tmp_path_factory.mktemp("hub")
    shutil.copy(descriptors.__file__, folder / "hubconf.py")
    (folder / "LICENSE").write_text("\nMIT License\n\nCopyright\n")
    return folder


def plain(name: str, pictures: np.ndarray) -> np.ndarray:
    """The descriptors (n, G) of pictures (n, H, W, 3) by the network itself, as its author would compute them."""
    network = getattr(descriptors, name)().eval()
    found = []
    with torch.no_grad():
        for picture in pictures:
            x = torch.from_numpy(picture).permute(2, 0, 1).float() / 255
            x = (x - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
            out = network(x[None])
            found.append((out[0] if isinstance(out, tuple) else out)[0])
    return torch.nn.functional.normalize(torch.stack(found), dim=-1).numpy()


def save_onnx(network: torch.nn.Module, file: Path, *, batch: bool = True, last: bool = False, side: int = 56) -> Path:
    """Export a network as a user would."""
    if last:
        network = Last(network)
    shape = (2, side, side, 3) if last else (2, 3, side, side)
    axes = {"pictures": {0: torch.export.Dim("n", min=1)}} if batch else None
    torch.onnx.export(
        network.eval(),
        kwargs={"pictures": torch.zeros(shape)},
        f=str(file),
        input_names=["pictures"],
        output_names=["found"],
        dynamic_shapes=axes,
        dynamo=True,
        opset_version=18,
        verbose=False,
    )
    return file


class Last(torch.nn.Module):
    """A network that takes colours last."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.network(pictures.permute(0, 3, 1, 2))


class Named(torch.nn.Module):
    """A network whose input has the name that `save_onnx` gives."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.network(pictures)


@pytest.fixture(scope="module")
def exported(hub: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function: the name of a network -> its bundle in both precisions, made once."""
    made: dict[str, Path] = {}
    home = tmp_path_factory.mktemp("exported")

    def export(name: str) -> Path:
        if name not in made:
            descriptor = load_descriptor(f"torchhub:{hub}:{name}", STATED)
            for precision in ("fp32", "fp16"):
                export_bundle(None, precision, home / name, QUIET, descriptor)
            made[name] = home / name
        return made[name]

    return export


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(result: Result) -> str:
    assert result.exit_code == 2, result.output
    assert not result.stdout
    lines = result.stderr.strip().splitlines()
    assert len([line for line in lines if line.startswith("Error")]) == 1, lines
    return lines[-1]


# Parity


@pytest.mark.parametrize("name", DIMS)
def test_descriptors_are_those_of_the_network(exported: Callable[[str], Path], name: str) -> None:
    """Each layout through the runtime, at several batch sizes, from pictures of any size."""
    pictures = [draw_scene(place, 0, (90, 120)) for place in range(5)]
    expected = plain(name, np.stack([resize(Image.fromarray(each), (56, 56)) for each in pictures]))
    for precision, most in (("fp32", 1e-5), ("fp16", 5e-3)):
        model = load_model(exported(name), "cpu", precision)
        assert model.bundle.info.dims == Dims(DIMS[name])
        for count in (1, 5):
            found = model.encode(pictures[:count]).descriptors
            np.testing.assert_allclose(found, expected[:count], atol=most, rtol=0)
        assert check_reference(model).ok
    sizes = {name: info.bytes for name, info in model.bundle.info.files.items()}
    assert sizes["encoder.fp16.weights"] < 0.6 * sizes["encoder.fp32.weights"]


@pytest.mark.parametrize("name", DIMS)
def test_openvino_takes_the_same_graphs(exported: Callable[[str], Path], name: str) -> None:
    pytest.importorskip("openvino")
    for precision in ("fp32", "fp16"):
        assert check_reference(load_model(exported(name), "openvino", precision)).ok


def test_the_three_ways_give_the_same_descriptors(exported: Callable[[str], Path], hub: Path, tmp_path: Path) -> None:
    pictures = np.stack([draw_scene(place, 0, (56, 56)) for place in range(3)])
    expected = plain("gem", pictures)
    file = save_onnx(Named(descriptors.gem()), tmp_path / "gem.onnx")
    colours_last = save_onnx(descriptors.gem(), tmp_path / "last.onnx", last=True)
    ways = [f"{hub}:gem", f"{MODULE}:gem", str(file), str(colours_last)]
    identities = set()
    for number, spec in enumerate(ways):
        descriptor = load_descriptor(spec, STATED)
        bundle = export_bundle(None, "fp32", tmp_path / str(number), QUIET, descriptor)
        np.testing.assert_allclose(
            load_model(bundle.path, "cpu").encode(list(pictures)).descriptors, expected, atol=1e-5
        )
        identities.add(bundle.identity)
    assert Bundle.open(tmp_path / "0").identity == Bundle.open(tmp_path / "1").identity
    assert len(identities) == 3


def test_float16_of_an_onnx_file_stays_in_its_identity(tmp_path: Path) -> None:
    file = save_onnx(Named(descriptors.gem()), tmp_path / "gem.onnx")
    for precision in ("fp32", "fp16"):
        bundle = export_bundle(None, precision, tmp_path / "out", QUIET, load_descriptor(str(file)))
    assert set(bundle.info.precisions) == {"fp32", "fp16"}
    assert bundle.info.picture.height == 56  # from the file
    assert check_reference(load_model(bundle.path, "cpu", "fp16")).ok


def test_what_decides_the_identity(hub: Path) -> None:
    def digest(spec: str, stated: Stated = STATED) -> str:
        return load_descriptor(spec, stated).digest()

    same = digest(f"{hub}:gem")
    assert digest(f"torchhub:{hub}:gem()") == same
    assert digest(f"{hub}:gem(dim=64)") != same  # another call may choose other weights
    assert digest(f"{hub}:gem", Stated((56, 70))) != same
    assert digest(f"{hub}:gem", Stated((56, 56), resize="squash, Pillow bicubic")) != same
    assert digest(f"{hub}:gem", Stated((56, 56), mean=(0.5, 0.5, 0.5))) != same
    assert load_descriptor(f"{hub}:gem(dim=16)", STATED).dim == 16
    assert load_descriptor(f"{hub}:gem", STATED).weights.licence == "MIT License (of the code)"
    assert load_descriptor(f"{MODULE}:gem", STATED).weights.licence == "not stated"


def test_pictures_are_found_in_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    class Backbone(torch.nn.Linear):
        pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.1), "input_size": (3, 224, 224)}  # noqa: RUF012

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image_size, self.part = (42, 56), Backbone(3, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.part(x.mean(dim=(2, 3)))

    monkeypatch.setattr(descriptors, "whole", Whole, raising=False)
    picture = load_descriptor(f"{MODULE}:whole").picture
    assert (picture.height, picture.width, picture.mean, picture.std) == (42, 56, [0.5, 0.4, 0.3], [0.2, 0.2, 0.1])
    stated = Stated((14, 28), "crop, Pillow bicubic", (0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    picture = load_descriptor(f"{MODULE}:whole", stated).picture
    assert (picture.height, picture.resize, picture.mean) == (14, "crop, Pillow bicubic", [0.1, 0.2, 0.3])


def test_pictures_are_cut_where_they_are_to_be_cut() -> None:
    picture = Image.fromarray(draw_scene(0, 0, (60, 100)))
    cut = resize(picture, (60, 60), "crop, Pillow bilinear")
    np.testing.assert_array_equal(cut, np.asarray(picture)[:, 20:80])
    half = np.asarray(picture.resize((50, 30), Image.Resampling.BICUBIC))[:, 10:40].astype(int)
    assert np.abs(resize(picture, (30, 30), "crop, Pillow bicubic") - half).max() <= 2


# Before a pair classifier


@pytest.fixture(scope="module")
def both(hub: Path, checkpoint_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of `tiny-decoder` with the descriptor of `gem` in front."""
    out = tmp_path_factory.mktemp("both") / "bundle"
    checkpoint, descriptor = load_checkpoint(checkpoint_of("tiny-decoder")), load_descriptor(f"{hub}:gem", STATED)
    for precision in ("fp32", "fp16"):
        export_bundle(checkpoint, precision, out, QUIET, descriptor)
    return out


def test_both_encoders_see_the_pictures(both: Path, tiny_bundle: Path) -> None:
    pictures = [draw_scene(place, 0, (90, 120)) for place in range(3)]
    alone = load_model(tiny_bundle, "cpu", "fp32")
    tokens = alone.encode(pictures)
    expected = plain("gem", np.stack([resize(Image.fromarray(each), (56, 56)) for each in pictures]))
    for precision, most in (("fp32", 1e-4), ("fp16", 5e-3)):
        model = load_model(both, "cpu", precision)
        features = model.encode(pictures)
        assert model.bundle.info.graphs == (*GRAPHS, "descriptor")
        np.testing.assert_allclose(features.descriptors, expected, atol=most)
        np.testing.assert_allclose(features.tokens, tokens.tokens, atol=20 * most)
        assert check_reference(model).ok
    exact = load_model(both, "cpu", "fp32")
    np.testing.assert_allclose(exact.score(tokens[0], tokens), alone.score(tokens[0], tokens), atol=1e-3)
    assert exact.bundle.identity != alone.bundle.identity
    assert "descriptor: MIT License (of the code)" in exact.bundle.info.licence


def test_maps_and_answers_take_it_without_further_options(both: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for place in range(6):
        Image.fromarray(draw_scene(place, 0, (90, 120))).save(tmp_path / "pictures" / f"{place:03d}.png")
    model = load_model(both, "cpu", "fp32")
    add_pictures(tmp_path / "pictures", tmp_path / "map", model, create=True)
    assert not verify_map(tmp_path / "map")
    with PlaceRecognizer.open(tmp_path / "map", device="cpu", precision="fp32", top_k=3) as vpr:
        query = draw_scene(2, 1, (90, 120))
        answer = vpr.recognize(query)
        similarities = vpr.map.descriptors @ model.encode([query]).descriptors[0]
        nearest = {vpr.map.records[row].name for row in np.argsort(-similarities)[:3]}
    assert {match.name for match in answer.matches} == nearest
    assert {match.stage for match in answer.matches} == {"full"}
    said = invoke("map", "info", "--db", tmp_path / "map").stdout
    assert "descriptor" in said
    measured = invoke("eval", tmp_path / "pictures", tmp_path / "pictures", "--tolerance", 0, "--model", both)
    assert measured.exit_code == 0, measured.output
    assert "re-ranked" in measured.stdout


# The command


def test_the_command_exports_a_descriptor_alone(hub: Path, tmp_path: Path) -> None:
    options = ("--descriptor", f"{hub}:transport", "--descriptor-size", "56", "--out", tmp_path / "out")
    result = invoke("export", *options)
    assert result.exit_code == 0, result.output
    assert "loading" not in result.stdout
    assert "fp32, descriptors " in result.stdout
    assert "64 numbers, of pictures of 56x56 (squash, Pillow bilinear), mean 0.485, 0.456, 0.406" in result.stderr
    assert "no pair classifier" in result.stderr
    assert json.loads((tmp_path / "out" / "bundle.json").read_text())["dims"]["tokens"] == 0
    again = invoke("export", *options[:3], "70", "--out", tmp_path / "out")
    assert "holds another model's bundle" in refused(again)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("infinite", "gives descriptors that are not finite"),
        ("dark", "gives descriptors that are not finite"),
        ("changing", "gives descriptors of changing size (8, 16, 24 numbers)"),
        ("wide", "gives descriptors of 80000 numbers; a map stores 1 to 65536"),
        ("one", "gives (8,) for 3 pictures"),
        ("two", "gives (3, 8), (3, 8) for 3 pictures"),
        ("map", "gives (3, 3, 56, 56) for 3 pictures"),
        ("none", "fails on a picture (RuntimeError: no such)"),
    ],
)
def test_networks_that_are_no_descriptors(fault: str, told: str, tmp_path: Path) -> None:
    said = refused(invoke("export", "--descriptor", f"{MODULE}:wrong(fault={fault!r})", "--out", tmp_path / "out"))
    assert told in said
    assert MODULE in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (f"{MODULE}:two_inputs", "needs other inputs than a picture (mask)"),
        (f"{MODULE}:number", "gives int, not a torch.nn.Module"),
        (f"{MODULE}:failing", "cannot be loaded (FileNotFoundError: weights.pth is missing)"),
        (f"{MODULE}:missing", "cannot be loaded (AttributeError"),
        ("no.such.module:function", "cannot be loaded (ModuleNotFoundError"),
        (f"{MODULE}:gem", "does not say which pictures it takes; give --descriptor-size"),
        (f"{MODULE}:gem(64)", "its arguments cannot be read"),
        (f"{MODULE}:gem(dim=print)", "its arguments cannot be read"),
        ("gem", "give torchhub:OWNER/REPO:ENTRY"),
        ("torchhub:nowhere:gem", "give torchhub:OWNER/REPO:ENTRY"),
        ("missing.onnx", "not an ONNX file that can be read"),
    ],
)
def test_specifications_that_cannot_be_used(spec: str, told: str, tmp_path: Path) -> None:
    assert told in refused(invoke("export", "--descriptor", spec, "--out", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_onnx_files_that_cannot_be_used(tmp_path: Path) -> None:
    def told(model: onnx.ModelProto | bytes, **stated: tuple[int, int]) -> str:
        file = tmp_path / "file.onnx"
        file.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        with pytest.raises(ExportError) as error:
            load_descriptor(str(file), Stated(**stated))
        assert "\n" not in str(error.value)
        assert str(file) in str(error.value)
        return str(error.value)

    fixed = onnx.load(save_onnx(Named(descriptors.gem()), tmp_path / "fixed.onnx", batch=False))
    assert "takes exactly 2 pictures at a time; export it with a dynamic batch axis" in told(fixed)
    right = onnx.load(save_onnx(Named(descriptors.gem()), tmp_path / "right.onnx"))
    assert "takes pictures of 56x56; leave out --descriptor-size" in told(right, size=(70, 70))
    assert "not an ONNX file" in told(b"no ONNX")
    wide, two = onnx.ModelProto(), onnx.ModelProto()
    wide.CopyFrom(right)
    wide.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 4
    assert "and pictures (B, 3, H, W) or (B, H, W, 3) of float32 or uint8 are needed" in told(wide)
    two.CopyFrom(right)
    two.graph.input.append(onnx.helper.make_tensor_value_info("mask", onnx.TensorProto.FLOAT, [1]))
    assert "needs other inputs than a picture (pictures, mask)" in told(two)
    half = onnx.ModelProto()
    half.CopyFrom(right)
    half.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(2, np.float16), "half"))
    assert "holds 16-bit weights" in told(half)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pictures of scenes."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(40):
        Image.fromarray(draw_scene(number, 0, (56, 56))).save(folder / f"{number:02}.png")
    return folder


@pytest.mark.parametrize("precision", ["--fp32", "--fp16"])
def test_a_reduced_descriptor_is_a_part_of_graph_and_identity(
    precision: str, hub: Path, pictures: Path, tmp_path: Path
) -> None:
    options = ["--descriptor", f"{hub}:transport", "--descriptor-size", "56", precision]
    reduced = ["--descriptor-dim", "12", "--calibration-images", pictures]
    for name, more in (("reduced", reduced), ("again", reduced), ("whole", [])):
        result = invoke("export", *options, *more, "--out", tmp_path / name)
        assert result.exit_code == 0, result.output
        if more:
            (line,) = (line for line in result.stderr.splitlines() if "12 of 64 numbers" in line)
            said = re.search(r"([\d.]+)% of the variance kept, .* \(10 held-out pictures\)$", line)
            assert said is not None
            assert 10 < float(said[1]) < 100
    bundles = {name: Bundle.open(tmp_path / name) for name in ("reduced", "again", "whole")}
    assert bundles["reduced"].identity == bundles["again"].identity != bundles["whole"].identity
    assert bundles["reduced"].info.dims.descriptor == 12
    assert bundles["reduced"].info.weights.origin.endswith(":transport, 12 principal components")
    files = sorted(pictures.iterdir())
    small, whole = (load_model(tmp_path / name).encode(files).descriptors for name in ("reduced", "whole"))
    assert np.linalg.norm(small, axis=1) == pytest.approx(1, abs=1e-5)
    taught = whole[np.arange(40) % 4 != 0].astype(np.float64)
    mean = taught.mean(axis=0)
    values, vectors = np.linalg.eigh((taught - mean).T @ (taught - mean))
    expected = (whole - mean) @ vectors[:, np.argsort(-values)[:12]]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert small @ small.T == pytest.approx(expected @ expected.T, abs=2e-4 if precision == "--fp32" else 2e-2)


def test_an_onnx_file_is_reduced_before_a_pair_classifier(pictures: Path, tmp_path: Path, checkpoint_of) -> None:
    file = save_onnx(Named(descriptors.gem()), tmp_path / "gem.onnx")
    result = invoke(
        "export", "--checkpoint", checkpoint_of("tiny-decoder"), "--descriptor", file, "--descriptor-dim", 8,
        "--calibration-images", pictures, "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    model = load_model(tmp_path / "out")
    assert model.bundle.info.dims.descriptor == 8
    assert model.bundle.info.pair_classifier
    assert model.encode([next(pictures.iterdir())]).descriptors.shape == (1, 8)


def test_a_file_may_have_the_names_of_a_bundles_graphs(hub: Path, tmp_path: Path) -> None:
    first = invoke("export", "--descriptor", f"{hub}:transport", "--descriptor-size", 56, "--out", tmp_path / "first")
    assert first.exit_code == 0, first.output
    file = tmp_path / "first" / "encoder.fp32.onnx"  # images -> descriptors
    second = invoke("export", "--descriptor", file, "--out", tmp_path / "second")
    assert second.exit_code == 0, second.output
    picture = [draw_scene(0, 0, (56, 56))]
    found = [load_model(tmp_path / name).encode(picture).descriptors for name in ("first", "second")]
    assert found[1] == pytest.approx(found[0], abs=1e-5)


def test_the_loss_of_a_reduction() -> None:
    """All variance lies in three of six numbers: three components lose nothing, and one keeps its share."""
    rng = np.random.default_rng(0)
    found = np.zeros((80, 6), np.float32)
    found[:, :3] = rng.normal(0, (4, 2, 1), (80, 3))
    held_out = np.arange(80) % 4 == 0
    full = measure_loss(found, held_out, *find_components(found[~held_out], 3))
    assert full.variance == pytest.approx(1)
    assert full.pictures == 20
    mean, components = find_components(found[~held_out], 1)
    assert np.abs(components[0]).argmax() == 0
    part = measure_loss(found, held_out, mean, components)
    centred = found[held_out] - mean
    assert part.variance == pytest.approx(((centred @ components[0]) ** 2).sum() / (centred**2).sum(), rel=1e-4)
    assert part.same_nearest < part.still_near <= 1


def test_reductions_that_cannot_be_made_are_refused_in_one_line(hub: Path, pictures: Path, tmp_path: Path) -> None:
    options = ["export", "--descriptor", f"{hub}:transport", "--descriptor-size", "56", "--out", tmp_path / "out"]
    said = refused(invoke(*options, "--descriptor-dim", 30, "--calibration-images", pictures))
    assert f"{pictures}: 40 pictures; --descriptor-dim 30 needs 42" in said
    said = refused(invoke(*options, "--descriptor-dim", 64, "--calibration-images", pictures))
    assert "--descriptor-dim 64: the descriptor has 64 numbers; give fewer, or leave it out" in said
    said = refused(invoke(*options, "--descriptor-dim", 8, "--calibration-images", tmp_path / "missing"))
    assert "missing is not a folder" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--descriptor-size", "56"), "--descriptor-size needs --descriptor"),
        (("--descriptor-dim", "8"), "--descriptor-dim needs --descriptor"),
        (("--descriptor", "a:b", "--descriptor-dim", "8"), "--descriptor-dim needs --calibration-images"),
        (("--calibration-images", "."), "--calibration-images needs --int8 or --descriptor-dim"),
        (
            ("--descriptor", "a:b", "--int8", "--calibration-images", ".", "--tensorrt"),
            "--int8 --tensorrt does not go with --descriptor",
        ),
        (("--descriptor", "a:b", "--descriptor-size", "0"), "give a side or HEIGHTxWIDTH"),
        (("--descriptor", "a:b", "--descriptor-size", "56x"), "give a side or HEIGHTxWIDTH"),
        (("--descriptor", "a:b", "--descriptor-mean", "0.5,0.5"), "give three numbers"),
        (("--descriptor", "a:b", "--descriptor-std", "0,1,1"), "give three numbers"),
        (("--descriptor", "a:b", "--descriptor-std", "nan,1,1"), "give three numbers"),
    ],
)
def test_options_that_do_not_fit(options: tuple[str, ...], told: str) -> None:
    result = invoke("export", *options)
    assert result.exit_code == 2
    assert told in result.stderr
