"""The runner: which plan it takes, and that the right numbers come out of the memory it manages."""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from pairvpr.errors import EngineError
from pairvpr.export.tensorrt import build_engines
from pairvpr.runtime import Model, load_model
from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.bundle_info import FILE, GRAPHS
from pairvpr.runtime.engines.tensorrt import cuda
from pairvpr.runtime.engines.tensorrt.cuda import Gpu
from pairvpr.runtime.engines.tensorrt.network import BuildSettings
from pairvpr.runtime.engines.tensorrt.plans import PlanInfo, choose_profile, find_plans, graph_profiles, info_file
from pairvpr.runtime.features import Features
from pairvpr.runtime.model import default_bundle
from pairvpr.runtime.reference import Reference, check_reference
from tests.runtime.engines import gpu_on_cpu

HERE = Gpu(gpu_on_cpu.NAME, "8.7", 16)
VERSION = "10.3.0"


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> gpu_on_cpu.Driver:
    return gpu_on_cpu.install(monkeypatch)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default bundle with "engines" for batches to 8."""
    folder = tmp_path_factory.mktemp("bundles") / "nano"
    Bundle.open(default_bundle()).install(folder)
    with pytest.MonkeyPatch.context() as patch:
        gpu_on_cpu.install(patch)
        patch.setattr("pairvpr.export.tensorrt.Network", gpu_on_cpu.Network)
        build_engines(Bundle.open(folder), None, lambda *_: None, batches=(8, 1, 4))
    return folder


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Bundle:
    return Bundle.open(shutil.copytree(built, tmp_path / "bundle"))


def plans(bundle: Bundle) -> list[Path]:
    return sorted(bundle.path.glob("engines/*/*.plan"))


def rewrite(bundle: Bundle, **changes: object) -> None:
    for plan in plans(bundle):
        file = info_file(plan)
        file.write_text(dataclasses.replace(PlanInfo.load(file), **changes).to_json())


@pytest.fixture
def model(bundle: Bundle, driver: gpu_on_cpu.Driver) -> Model:
    return load_model(bundle.path, "tensorrt")


def test_the_reference_check_passes(model: Model) -> None:
    assert model.engines.description == "TensorRT 10.3.0 on Test Board, fp16"
    errors = check_reference(model)
    assert errors.ok
    assert 0 < errors.scores < 0.02


def test_any_batch_gives_what_each_picture_gives(model: Model, driver: gpu_on_cpu.Driver) -> None:
    assert model.batch_size == 8  # as much as the plans take
    truth = Reference.from_bundle(model.bundle)
    rows = np.resize(np.arange(len(truth.images)), 11)
    features = model.encode(list(truth.images[rows]))
    single = model.encode(list(truth.images))
    np.testing.assert_allclose(features.descriptors, single.descriptors[rows], atol=2e-3)
    scores = model.score(single[0], features)
    np.testing.assert_allclose(scores, model.score(single[0], single)[rows], atol=0.02)
    # 8 and then 3 at once, each in the profile made for it.
    assert model.engines.pair_suffix.execution.profiles[:2] == [2, 1]


def test_states_stay_on_the_gpu_and_are_those_of_their_batch(model: Model, driver: gpu_on_cpu.Driver) -> None:
    truth = Reference.from_bundle(model.bundle)
    tokens = truth.features.tokens
    first = model.prefix(tokens[:1], tokens[:2])
    second = model.prefix(tokens[:1], tokens[2:4])
    state = first.states["query_state"]
    assert isinstance(state, cuda.DeviceArray)
    fetched = driver.copied["to host"]
    later = model.suffix(second, np.array([1, 0]))
    np.testing.assert_allclose(model.suffix(first, np.array([0, 1])), truth.scores[:2], atol=0.03)
    np.testing.assert_allclose(later, truth.scores[[3, 2]], atol=0.03)
    assert driver.copied["to host"] - fetched == 4 * 4  # four scores, no state
    looked_at = np.asarray(state)
    assert looked_at.shape == (2, tokens.shape[1] + 1, tokens.shape[2])
    assert np.isfinite(looked_at).all()


@pytest.mark.parametrize("eager", [False, True])
def test_copies_run_beside_other_work(bundle: Bundle, driver: gpu_on_cpu.Driver, eager: bool) -> None:
    """Batch after batch, each staged while the one before is worked out, in either order the GPU may take."""
    driver.eager_copies = eager
    model = load_model(bundle.path, "tensorrt", batch_size=2)
    truth = Reference.from_bundle(model.bundle)
    rows = np.resize(np.arange(len(truth.images)), 11)
    for _ in range(3):
        scores = model.score(truth.features[0], Features(*(part[rows] for part in features_of(truth))))
        np.testing.assert_allclose(scores, truth.scores[rows], atol=0.03)
        shuffled = rows[::-1]
        scores = model.score(truth.features[0], Features(*(part[shuffled] for part in features_of(truth))))
        np.testing.assert_allclose(scores, truth.scores[shuffled], atol=0.03)


def test_tokens_come_while_the_batch_before_is_worked_out(bundle: Bundle, driver: gpu_on_cpu.Driver) -> None:
    model = load_model(bundle.path, "tensorrt", batch_size=2)
    truth = Reference.from_bundle(model.bundle)
    rows = np.resize(np.arange(len(truth.images)), 10)
    at_work = []
    copy = driver.cudaMemcpyAsync

    def watch(target: int, source: int, size: int, kind: object, stream: int):
        if stream == gpu_on_cpu.COPIES and size == 2 * truth.features.tokens[:2].size:
            begun = [getattr(each, "__qualname__", "") for each in driver.waiting[gpu_on_cpu.COMPUTE]]
            at_work.append(any("Context.enqueue" in name for name in begun))
        return copy(target, source, size, kind, stream)

    driver.cudaMemcpyAsync = watch  # type: ignore[method-assign]
    model.score(truth.features[0], Features(*(part[rows] for part in features_of(truth))))
    # The first has none before it; the one before the third was recorded, once, which waits for it.
    assert at_work == [False, True, False, True, True]


def test_tokens_are_copied_once(model: Model, driver: gpu_on_cpu.Driver) -> None:
    truth = Reference.from_bundle(model.bundle)
    tokens = truth.features.tokens
    before = driver.copied["to device"]
    model.score(truth.features[0], truth.features)
    went = driver.copied["to device"] - before
    half = 2 * tokens[0].size
    assert went == half * (1 + len(tokens)) + 8 * len(tokens)  # the query, the candidates, `keep`


def test_graphs_are_recorded_and_follow_their_inputs(model: Model, driver: gpu_on_cpu.Driver) -> None:
    truth = Reference.from_bundle(model.bundle)
    tokens = truth.features.tokens
    pairs = model.prefix(tokens[:1], tokens[:4])
    expected = []
    for keep in ([0, 1], [3, 2], [2, 0], [1, 3], [1], [0], [2], [0, 1, 2], [3, 1, 0], [3, 0]):
        expected.append(driver.launches)
        np.testing.assert_allclose(model.suffix(pairs, np.array(keep)), truth.scores[keep], atol=0.03)
    # A shape's second run in a row records it, its third starts what was recorded; in a profile the first such stays.
    assert np.diff([*expected, driver.launches]).tolist() == [0, 0, 1, 1, 0, 0, 1, 0, 0, 1]
    assert not driver.waiting[gpu_on_cpu.COMPUTE]


def test_states_outlive_what_is_recorded(model: Model) -> None:
    truth = Reference.from_bundle(model.bundle)
    tokens = truth.features.tokens
    batches = [model.prefix(tokens[:1], tokens[i : i + 2]) for i in (0, 2, 1)]
    pending = [model.start_suffix(pairs, np.array([1, 0])) for pairs in batches]
    for scores, i in zip(pending, (0, 2, 1), strict=True):
        np.testing.assert_allclose(model.finish(scores), truth.scores[[i + 1, i]], atol=0.03)


def test_what_cannot_be_recorded_runs_and_says_so_once(
    model: Model, driver: gpu_on_cpu.Driver, caplog: pytest.LogCaptureFixture
) -> None:
    driver.can_capture = False
    truth = Reference.from_bundle(model.bundle)
    for _ in range(4):
        np.testing.assert_allclose(model.score(truth.features[0], truth.features), truth.scores, atol=0.03)
    assert driver.launches == 0
    said = [record for record in caplog.records if "without CUDA graphs" in record.message]
    assert [record.levelname for record in said] == ["WARNING"] * 2  # prefix and suffix
    assert "pair_prefix.fp16.plan: runs without CUDA graphs" in said[0].message
    assert "cudaErrorStreamCaptureUnsupported" in said[0].message


def features_of(truth: Reference) -> tuple[np.ndarray, np.ndarray]:
    return truth.features.descriptors, truth.features.tokens


def test_memory_is_used_again(model: Model, driver: gpu_on_cpu.Driver) -> None:
    truth = Reference.from_bundle(model.bundle)
    for _ in range(4):
        model.score(truth.features[0], truth.features)
    gc.collect()
    blocks = set(driver.blocks)
    for _ in range(3):
        model.score(truth.features[0], truth.features)
    assert set(driver.blocks) == blocks
    # Memory that other batch sizes have left is given back before there is said to be too little.
    driver.limit = sum(len(block) for block in driver.blocks.values())
    model.score(truth.features[0], truth.features[:3])
    driver.limit = 1000
    with pytest.raises(
        EngineError, match="not enough GPU memory; close other programs, or build engines of smaller --ba"
    ):
        model.score(truth.features[0], truth.features[:2])


def test_engines_share_their_scratch_memory(
    bundle: Bundle, driver: gpu_on_cpu.Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One block, as large as the most that an engine needs: they run on one stream."""
    sizes = {"encoder.fp16.plan": 1 << 20, "pair_prefix.fp16.plan": 3 << 20, "pair_suffix.fp16.plan": 2 << 20}
    sizes["pair_look.fp16.plan"] = 1 << 20
    monkeypatch.setattr(gpu_on_cpu.Execution, "scratch_bytes", property(lambda self: sizes[self.name]))
    model = load_model(bundle.path, "tensorrt")
    assert [len(block) for block in driver.blocks.values()] == [3 << 20]
    assert check_reference(model).ok


def test_a_gpu_that_shares_the_hosts_memory(bundle: Bundle, driver: gpu_on_cpu.Driver) -> None:
    """Pictures and tokens are not copied to it: it reads the pinned memory that they were written to."""
    driver.integrated = True
    cuda.stream.cache_clear()
    model = load_model(bundle.path, "tensorrt", batch_size=2)
    truth = Reference.from_bundle(model.bundle)
    rows = np.resize(np.arange(len(truth.images)), 11)
    for _ in range(3):
        scores = model.score(truth.features[0], Features(*(part[rows] for part in features_of(truth))))
        np.testing.assert_allclose(scores, truth.scores[rows], atol=0.03)
    assert check_reference(model).ok
    assert not [size for size in driver.staged if size >= truth.features.tokens[0].size]


def test_too_large_a_batch(model: Model) -> None:
    with pytest.raises(EngineError, match=r"encoder.fp16.plan: built for batches of 1 to 8, got .*--batches"):
        model.encode_prepared(np.zeros((9, 112, 112, 3), np.uint8))


def test_wrong_inputs(model: Model) -> None:
    with pytest.raises(EngineError, match="takes images, got pictures"):
        model.engines.encoder.run({"pictures": np.zeros((1, 112, 112, 3), np.uint8)})


def test_no_gpu(model: Model, driver: gpu_on_cpu.Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "cudaGetDeviceProperties", lambda device: (100, None))
    with pytest.raises(EngineError, match=r"CUDA failed in cudaGetDeviceProperties \(cudaErrorNoDevice\)"):
        load_model(model.bundle.path, "tensorrt")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tensorrt": "10.4.0"}, "built by TensorRT 10.4.0, here is 10.3.0"),
        ({"gpu": Gpu(gpu_on_cpu.NAME, "8.7", 8)}, "built on Test Board .8 multiprocessors"),
        ({"sources": {"encoder.fp16.onnx": "0" * 64}}, "built from other ONNX files"),
        ({"tensorrt": "10.4.0", "version_compatible": True}, "TensorRT 10.4.0, which TensorRT 10.3.0 cannot run"),
        ({"tensorrt": "9.3.0", "version_compatible": True}, "TensorRT 9.3.0, which TensorRT 10.3.0 cannot run"),
    ],
)
@pytest.mark.usefixtures("driver")
def test_a_foreign_plan(bundle: Bundle, changes: dict[str, object], reason: str, caplog) -> None:
    rewrite(bundle, **changes)
    command = f"`pairvpr engines build --model {bundle.path} --fp16`"
    with pytest.raises(EngineError, match=reason) as error:
        load_model(bundle.path, "tensorrt")
    assert command in str(error.value)
    assert "\n" not in str(error.value)
    with caplog.at_level(logging.INFO, "pairvpr"):
        assert load_model(bundle.path).engines.device == "cpu"
    (told,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "50 times as long, because the TensorRT engines are not used" in told.message
    assert reason.replace(".8", "(8") in told.message
    assert ("the power mode is another one (set the mode of the build with sudo nvpmodel -m N)" in told.message) == (
        "gpu" in changes
    )


def test_auto_takes_plans_that_run_here(bundle: Bundle, driver: gpu_on_cpu.Driver) -> None:
    assert load_model(bundle.path).engines.device == "tensorrt"
    with pytest.raises(EngineError, match="needs --device cpu, not tensorrt"):
        load_model(bundle.path, "tensorrt", "int8-dynamic")


def test_compatible_plans_run_elsewhere(bundle: Bundle) -> None:
    info = PlanInfo.load(info_file(plans(bundle)[0]))
    assert info.find_problem(info.sources, HERE, VERSION) is None
    free = dataclasses.replace(info, version_compatible=True, hardware_compatible=True)
    assert free.find_problem(info.sources, Gpu("other", "8.0", 100), "10.16.1.11") is None
    assert "needs compute capability 8.0" in (free.find_problem(info.sources, Gpu("old", "7.5", 40), VERSION) or "")
    assert "cannot run" in (free.find_problem(info.sources, HERE, "11.0.0") or "")


def test_another_export_makes_plans_stale(bundle: Bundle) -> None:
    name = bundle.info.precisions["fp16"].graphs["pair_suffix"].weights
    files = {**bundle.info.files, name: dataclasses.replace(bundle.info.files[name], sha256="0" * 64)}
    other = Bundle(bundle.path, dataclasses.replace(bundle.info, files=files))
    with pytest.raises(EngineError, match=r"pair_suffix.fp16.plan: it was built from other ONNX files"):
        find_plans(other, "fp16", HERE, VERSION)


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize("what", ["plan", "sidecar", "no sidecar", "newer"])
def test_damage(bundle: Bundle, what: str) -> None:
    plan = plans(bundle)[0]
    expected = "not a plan's description"
    if what == "plan":
        plan.write_bytes(plan.read_bytes()[:-1] + b"?")
        expected = "damaged"
    elif what == "sidecar":
        info_file(plan).write_text("{")
    elif what == "newer":
        content = json.loads(info_file(plan).read_text())
        info_file(plan).write_text(json.dumps({**content, "format": 2}))
        expected = "plan format 2, this pairvpr reads 1"
    else:
        info_file(plan).unlink()
    with pytest.raises(EngineError, match=f"{expected}.*pairvpr engines build"):
        load_model(bundle.path, "tensorrt")


def test_a_precision_without_plans(bundle: Bundle) -> None:
    with pytest.raises(EngineError, match=r"no int8-fp16 encoder plan; build it here with .* --int8`"):
        find_plans(bundle, "int8-fp16", HERE, VERSION)


@pytest.mark.parametrize("graph", GRAPHS)
def test_profiles_take_every_batch_once(graph: str) -> None:
    info = Bundle.open(default_bundle()).info
    profiles = graph_profiles(graph, info.dims, info.picture, (1, 8, 32))
    session = gpu_on_cpu.Execution(
        str(default_bundle() / info.precisions["fp16"].graphs[graph].file).encode() + b"\nfused", graph
    )
    fixed = {port.name: port.shape for port in session.session.get_inputs()}
    for profile in profiles:
        assert profile.keys() == fixed.keys()
        for name, shapes in profile.items():
            assert shapes[0] <= shapes[1] <= shapes[2]
            for shape in shapes:
                assert all(got == want for got, want in zip(shape, fixed[name], strict=True) if isinstance(want, int))
    varying = "images" if graph == "encoder" else "keep" if graph == "pair_suffix" else "database_tokens"
    assert len(graph_profiles(graph, info.dims, info.picture, (1, 8, 32, 100))) == (3 if graph == "encoder" else 4)
    for size, expected in ((1, 0), (2, 1), (8, 1), (9, 2), (32, 2), (33, None)):
        shapes = {name: each[2] for name, each in profiles[-1].items()}
        shapes[varying] = (size, *shapes[varying][1:])
        assert choose_profile(profiles, shapes) == expected


def test_a_suffix_takes_few_out_of_many() -> None:
    info = Bundle.open(default_bundle()).info
    profiles = graph_profiles("pair_suffix", info.dims, info.picture, (1, 8, 100))
    rows, width = info.dims.tokens, info.dims.token_dim
    for batch, keep, expected in ((100, 1, 0), (100, 3, 1), (1, 1, 0), (60, 9, 2)):
        shapes = {
            "query_tokens": (1, rows, width),
            "database_tokens": (batch, rows, width),
            "query_state": (batch, rows + 1, width),
            "database_state": (batch, rows + 1, width),
            "keep": (keep,),
        }
        assert choose_profile(profiles, shapes) == expected


def test_the_bundle_keeps_its_files(bundle: Bundle) -> None:
    assert {file.name for file in bundle.path.iterdir()} == {*bundle.info.files, FILE, "engines"}
    assert BuildSettings() == BuildSettings(None, None, False, False)
