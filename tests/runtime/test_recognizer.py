"""From a picture to an answer: the library's way, against comparing every picture one by one."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pairvpr.errors import BundleError, MapError, SourceError
from pairvpr.runtime import Features, Model, PlaceRecognizer, Recognition, load_model
from pairvpr.runtime.bundle_info import FILE, GRAPHS
from pairvpr.runtime.engines.base import Arrays, Engine
from pairvpr.runtime.map import Map, MapWriter, catalog
from pairvpr.runtime.mapping.builder import BuildOptions, add_pictures
from pairvpr.runtime.search import FaissIndex
from pairvpr.runtime.sources import Frame
from tests.scenes import draw_scene

COUNT, SIZE = 8, (96, 128)
STEPS = ("decode", "preprocess", "encode", "search", "gather", "rerank", "total")


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The map's pictures p0.png to p7.png, and their poses."""
    folder = tmp_path_factory.mktemp("pictures")
    for place in range(COUNT):
        Image.fromarray(draw_scene(place, 0, SIZE)).save(folder / f"p{place}.png")
    lines = [f"p{place}.png,{place},2,3,0,0,0,1" for place in range(COUNT - 1)]  # the last has none
    (folder / "poses.csv").write_text("\n".join(["name,x,y,z,qx,qy,qz,qw", *lines]))
    return folder


@pytest.fixture(scope="module")
def db(pictures: Path, model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("maps") / "map"
    report = add_pictures(pictures, path, model, BuildOptions(poses=pictures / "poses.csv"), create=True)
    assert (report.added, report.with_place) == (COUNT, COUNT - 1)
    return path


@pytest.fixture(scope="module")
def vpr(db: Path) -> Iterator[PlaceRecognizer]:
    with PlaceRecognizer.open(db) as recognizer:
        yield recognizer


@pytest.fixture(scope="module")
def query() -> np.ndarray:
    return draw_scene(3, 1, SIZE)


@pytest.fixture
def own_map(model: Model, tmp_path: Path) -> Callable[..., Path]:
    """A function: how many pictures, and what else to give the writer -> a map without files of others."""

    def build(count: int, **changes: object) -> Path:
        dims = model.bundle.info.dims
        arguments: dict = {
            "identity": model.bundle.identity,
            "descriptor_dim": dims.descriptor,
            "token_shape": (dims.tokens, dims.token_dim),
            "install_model": model.bundle.install,
        }
        with MapWriter.open(tmp_path / "own", **{**arguments, **changes}) as writer:
            for place in range(count):
                features = model.encode([draw_scene(place, 0, SIZE)])
                writer.add(name=f"p{place}.png", source="here", features=features)
        return tmp_path / "own"

    return build


def recognizer_of(map_: Map, model: Model, top_k: int, rerank: bool = True) -> PlaceRecognizer:
    return PlaceRecognizer(map_, model, FaissIndex(map_.descriptors), top_k, rerank)


def comparable(answer: Recognition) -> Recognition:
    return dataclasses.replace(answer, query="", timings={})


def test_every_kind_of_picture_gets_the_same_answer(vpr: PlaceRecognizer, query: np.ndarray, tmp_path: Path) -> None:
    file = tmp_path / "where.png"
    Image.fromarray(query).save(file)
    answer = vpr.recognize(file)
    assert answer.query == "where.png"
    for picture in (str(file), Image.fromarray(query), query):
        assert comparable(vpr.recognize(picture)) == comparable(answer)
    assert answer.best is answer.matches[0]
    assert (answer.compared, answer.complete, answer.error) == (COUNT, True, None)
    assert (answer.accepted, answer.confidence, answer.reason) == (None, None, "not calibrated")
    assert {match.stage for match in answer.matches} == {"full"}
    assert sorted(match.name for match in answer.matches) == [f"p{place}.png" for place in range(COUNT)]


def test_the_answer_is_that_of_comparing_one_by_one(vpr: PlaceRecognizer, model: Model, pictures: Path) -> None:
    reordered = 0
    for place in range(COUNT):
        query = draw_scene(place, 1, SIZE)
        asked = model.encode([query])
        slow = {}
        for file in pictures.glob("*.png"):
            stored = model.encode([file])
            rounded = Features(stored.descriptors, vpr.map.token_format.store(stored.tokens[0]).load()[None])
            similarity = float(stored.descriptors[0] @ asked.descriptors[0])
            slow[file.name] = (float(model.score(asked, rounded)[0]), float(model.score(asked, stored)[0]), similarity)

        answer = vpr.recognize(query)
        scores = [match.score for match in answer.matches]
        assert scores == sorted(scores, reverse=True)
        assert [match.name for match in answer.matches] == sorted(slow, key=lambda name: -slow[name][0])
        span = scores[0] - scores[-1]
        for match in answer.matches:
            as_stored, exact, similarity = slow[match.name]
            assert match.score == pytest.approx(as_stored, abs=1e-4)
            assert match.score == pytest.approx(exact, abs=0.01 * span)  # what the map rounds
            assert match.similarity == pytest.approx(similarity, abs=1e-4)
        reordered += sorted(answer.matches, key=lambda match: -match.similarity) != list(answer.matches)
    assert reordered  # else the ranking would say nothing of the scores


def test_without_reranking_the_order_is_that_of_the_descriptors(db: Path, query: np.ndarray) -> None:
    with PlaceRecognizer.open(db, rerank=False) as plain:
        answer = plain.recognize(query)
    similarities = [match.similarity for match in answer.matches]
    assert similarities == sorted(similarities, reverse=True)
    assert len(similarities) == COUNT
    assert {(match.score, match.stage) for match in answer.matches} == {(None, "descriptor")}
    assert (answer.compared, answer.complete) == (0, True)
    assert answer.timings["rerank"] == answer.timings["gather"] == 0


@pytest.mark.parametrize("top_k", [1, 3, COUNT])
def test_top_k_compares_the_nearest(vpr: PlaceRecognizer, model: Model, query: np.ndarray, top_k: int) -> None:
    everything = {match.name: match for match in vpr.recognize(query).matches}
    answer = recognizer_of(vpr.map, model, top_k).recognize(query)
    nearest = sorted(everything.values(), key=lambda match: -match.similarity)[:top_k]
    assert answer.compared == len(answer.matches) == top_k
    assert {match.name for match in answer.matches} == {match.name for match in nearest}
    for match in answer.matches:
        assert match.score == pytest.approx(everything[match.name].score, abs=1e-4)


def test_batches_of_candidates_change_nothing(vpr: PlaceRecognizer, model: Model, query: np.ndarray) -> None:
    small = recognizer_of(vpr.map, Model(model.bundle, model.engines, 3), COUNT).recognize(query)
    for match, expected in zip(small.matches, vpr.recognize(query).matches, strict=True):
        assert match.name == expected.name
        assert match.score == pytest.approx(expected.score, abs=1e-4)


@pytest.mark.parametrize("top_k", [-1, 0, COUNT + 1, 10**9])
def test_top_k_outside_the_map(db: Path, top_k: int) -> None:
    with pytest.raises(MapError, match=f"top-k {top_k} is outside 1 to {COUNT}"):
        PlaceRecognizer.open(db, top_k=top_k)


def test_an_empty_map(own_map: Callable[..., Path]) -> None:
    with pytest.raises(
        MapError, match=r"holds no pictures yet; .*run it again if it was interrupted.*`pairvpr map add`"
    ):
        PlaceRecognizer.open(own_map(0))


def test_a_map_of_another_model(own_map: Callable[..., Path], model: Model) -> None:
    path = own_map(1, identity="0" * 64)
    with pytest.raises(MapError, match=f"made with model {'0' * 12}, not with {model.bundle.identity[:12]}"):
        PlaceRecognizer.open(path)
    with pytest.raises(MapError, match="not with"):
        PlaceRecognizer.open(path, model=model.bundle.path)


def test_another_bundle_of_the_same_model(db: Path, model: Model, query: np.ndarray, vpr: PlaceRecognizer) -> None:
    with PlaceRecognizer.open(db, model=model.bundle.path, top_k=COUNT, batch_size=2) as other:
        assert other.model.batch_size == 2
        assert other.model.bundle.path == model.bundle.path
        names = [match.name for match in other.recognize(query).matches]
    assert names == [match.name for match in vpr.recognize(query).matches]


def test_a_picture_of_the_map_is_the_most_similar_to_itself(vpr: PlaceRecognizer, pictures: Path) -> None:
    for file in (pictures / "p0.png", pictures / "p5.png"):
        nearest = max(vpr.recognize(file).matches, key=lambda match: match.similarity)
        assert nearest.name == file.name
        assert nearest.similarity == pytest.approx(1, abs=1e-4)


def test_rounding_makes_no_similarity_above_one(db: Path, model: Model, query: np.ndarray) -> None:
    class Rounding:
        def search(self, descriptor: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
            return np.array([1 + 2e-6, 1 + 1e-6, 0.5], np.float32), np.array([2, 0, 1])

    with PlaceRecognizer(Map.open(db), model, Rounding(), top_k=3, rerank=False) as recognizer:
        matches = recognizer.recognize(query).matches
    assert [(match.name, match.similarity) for match in matches] == [("p2.png", 1), ("p0.png", 1), ("p1.png", 0.5)]


def test_poses_come_with_the_matches(vpr: PlaceRecognizer, query: np.ndarray) -> None:
    poses = {match.name: match.pose for match in vpr.recognize(query).matches}
    assert poses.pop(f"p{COUNT - 1}.png") is None
    for name, pose in poses.items():
        assert (pose.x, pose.y, pose.z, pose.q, pose.frame) == (int(name[1]), 2, 3, (0, 0, 0, 1), "map")


def test_timings_name_every_step_and_add_up(vpr: PlaceRecognizer, query: np.ndarray) -> None:
    timings = vpr.recognize(query).timings
    assert tuple(timings) == STEPS
    assert timings["total"] == pytest.approx(sum(timings[step] for step in STEPS[:-1]))
    assert all(timings[step] > 0 for step in ("preprocess", "encode", "search", "gather", "rerank"))
    frame = Frame("f#000001", 12.5, Image.fromarray(query), None, 40.0)
    assert vpr.recognize_frame(frame).timings["decode"] == 40.0


def test_frames_keep_their_name_and_time(vpr: PlaceRecognizer, query: np.ndarray) -> None:
    answer = vpr.recognize_frame(Frame("cam0#000007", 12.5, Image.fromarray(query), None, 0.0))
    assert (answer.query, answer.timestamp) == ("cam0#000007", 12.5)
    assert answer.matches == vpr.recognize(query).matches


def test_a_frame_that_could_not_be_read(vpr: PlaceRecognizer) -> None:
    answer = vpr.recognize_frame(Frame("bad.jpg", 3.0, None, "bad.jpg is damaged: replace it", 1.0))
    assert answer.error == "bad.jpg is damaged: replace it"
    assert (answer.matches, answer.compared, answer.complete) == ((), 0, False)
    with pytest.raises(LookupError, match="is damaged"):
        answer.best  # noqa: B018
    line = json.loads(answer.to_json())
    assert (line["best"], line["matches"], line["error"]) == (None, [], answer.error)


@pytest.mark.parametrize("picture", ["missing.jpg", np.zeros((8, 8, 3), np.uint8), np.zeros((50, 50), np.uint8)])
def test_pictures_that_are_none_raise(vpr: PlaceRecognizer, picture: object) -> None:
    with pytest.raises(SourceError):
        vpr.recognize(picture)


def test_a_picture_with_damaged_tokens_is_left_out(
    own_map: Callable[..., Path], query: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    path = own_map(2)
    segment = next((path / "segments").glob("*.safetensors"))
    content = bytearray(segment.read_bytes())
    content[-10] ^= 1
    segment.write_bytes(content)
    with PlaceRecognizer.open(path, strict=True) as recognizer, pytest.raises(MapError, match=r"tokens of 'p1\.png'"):
        recognizer.recognize(query)
    with PlaceRecognizer.open(path) as recognizer:
        for _ in range(2):
            answer = recognizer.recognize(query)
            assert [match.name for match in answer.matches] == ["p0.png"]
            assert (answer.compared, answer.complete) == (1, False)
    assert caplog.text.count("the tokens of 'p1.png' fail their checksum") == 1
    with PlaceRecognizer.open(path, rerank=False) as recognizer:  # reads no tokens
        assert len(recognizer.recognize(query).matches) == 2
    remove(path, "p0.png")
    with PlaceRecognizer.open(path) as recognizer:
        answer = recognizer.recognize(query)
        assert (answer.matches, answer.complete) == ((), False)
        assert "all candidates are damaged" in str(answer.error)


def test_a_map_without_its_model(own_map: Callable[..., Path], model: Model) -> None:
    path = own_map(1)
    (path / "model" / FILE).unlink()
    with pytest.raises(BundleError, match="no model bundle there"):
        PlaceRecognizer.open(path)
    with PlaceRecognizer.open(path, model=model.bundle.path) as recognizer:
        assert recognizer.top_k == 1


def test_no_map(tmp_path: Path) -> None:
    with pytest.raises(MapError, match="holds no map"):
        PlaceRecognizer.open(tmp_path / "nowhere")


def remove(path: Path, *names: str) -> None:
    with MapWriter.edit(path) as writer:
        writer.remove(names)


def names_of(answer: Recognition) -> set[str]:
    return {match.name for match in answer.matches}


def test_a_map_that_changes_is_taken_in(own_map: Callable[..., Path], model: Model, query: np.ndarray) -> None:
    path = own_map(3)
    with PlaceRecognizer.open(path) as recognizer:
        first = recognizer.map
        assert not recognizer.refresh()
        assert recognizer.map is first
        dims = model.bundle.info.dims
        shapes = (dims.descriptor, (dims.tokens, dims.token_dim))
        with MapWriter.open(
            path, identity=model.bundle.identity, descriptor_dim=shapes[0], token_shape=shapes[1]
        ) as writer:
            writer.add(name="new.png", source="here", features=model.encode([draw_scene(3, 0, SIZE)]))
        assert names_of(recognizer.recognize(query)) == {"p0.png", "p1.png", "p2.png"}
        assert recognizer.refresh()
        assert not recognizer.refresh()
        answer = recognizer.recognize(query)
        assert (names_of(answer), recognizer.top_k) == ({"p0.png", "p1.png", "p2.png", "new.png"}, 4)
        with pytest.raises(ValueError, match="closed"):
            first.read_tokens([0])  # nobody needs the old files
        with MapWriter.edit(path) as writer:
            writer.remove(["p1.png"])
            writer.compact()
        assert recognizer.refresh()
        again, left = recognizer.recognize(query), [match for match in answer.matches if match.name != "p1.png"]
        assert again.compared == 3
        assert [match.name for match in again.matches] == [match.name for match in left]
        for one, other in zip(again.matches, left, strict=True):  # a batch of three rounds otherwise than one of four
            assert (one.score, one.similarity) == pytest.approx((other.score, other.similarity), abs=1e-4)
    with PlaceRecognizer.open(path) as opened:
        assert comparable(opened.recognize(query)).compared == 3


def test_nothing_is_read_where_nothing_changed(own_map: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = own_map(1)
    file = path / "map.sqlite"
    os.utime(file, (file.stat().st_atime, file.stat().st_mtime - 10))  # its last commit is long past
    with PlaceRecognizer.open(path) as recognizer:
        with monkeypatch.context() as patched:
            patched.setattr(catalog, "load", None)
            assert not recognizer.refresh()
        os.utime(file, (file.stat().st_atime, file.stat().st_mtime + 5))
        assert not recognizer.refresh()  # other date, same content


def test_a_map_that_cannot_be_taken_in(own_map: Callable[..., Path], query: np.ndarray) -> None:
    path = own_map(2)
    with PlaceRecognizer.open(path) as recognizer:
        answer = comparable(recognizer.recognize(query))
        remove(path, "p0.png", "p1.png")
        with pytest.raises(MapError, match="holds no pictures any more"):
            recognizer.refresh()
        content = (path / "map.sqlite").read_bytes()
        (path / "map.sqlite").write_bytes(content[:100])
        with pytest.raises(MapError, match="damaged"):
            recognizer.refresh()
        (path / "map.sqlite").unlink()
        with pytest.raises(MapError, match="missing"):
            recognizer.refresh()
        assert comparable(recognizer.recognize(query)) == answer


def test_many_threads_may_ask_at_once(vpr: PlaceRecognizer, pictures: Path) -> None:
    asked = [path for path in sorted(pictures.glob("*.png")) for _ in range(4)]
    expected = [comparable(vpr.recognize(path)) for path in asked]
    with ThreadPoolExecutor(8) as pool:
        found = [comparable(answer) for answer in pool.map(vpr.recognize, asked)]
    assert found == expected


class Alone:
    """An engine of which two threads may not make use at once."""

    def __init__(self, engine: Engine, using: threading.Lock) -> None:
        self.engine, self.using = engine, using

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        assert self.using.acquire(blocking=False)
        try:
            return self.engine.run(inputs)
        finally:
            self.using.release()


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_threads_take_turns_on_a_gpu(vpr: PlaceRecognizer, pictures: Path, device: str) -> None:
    using, cpu = threading.Lock(), vpr.model.engines
    alone = {graph: Alone(getattr(cpu, graph), using) for graph in GRAPHS}
    model = Model(vpr.model.bundle, dataclasses.replace(cpu, device=device, **alone), 3)
    recognizer = recognizer_of(vpr.map, model, COUNT)
    asked = sorted(pictures.glob("*.png"))
    with ThreadPoolExecutor(8) as pool:
        found = [comparable(answer).best.name for answer in pool.map(recognizer.recognize, asked)]
    assert found == [vpr.recognize(path).best.name for path in asked]


def test_an_answer_under_way_ends_with_the_map_it_began_with(
    own_map: Callable[..., Path], query: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = own_map(3)
    with PlaceRecognizer.open(path) as recognizer:
        expected = comparable(recognizer.recognize(query))
        first, read, refreshed = recognizer.map, Map.read_intact_tokens, []

        def read_after_a_refresh(map_: Map, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            if not refreshed:
                remove(path, "p0.png", "p1.png")
                thread = threading.Thread(target=lambda: refreshed.append(recognizer.refresh()))
                thread.start()
                thread.join()
            return read(map_, rows)

        monkeypatch.setattr(Map, "read_intact_tokens", read_after_a_refresh)
        assert comparable(recognizer.recognize(query)) == expected
        assert refreshed == [True]
        assert names_of(recognizer.recognize(query)) == {"p2.png"}
        with pytest.raises(ValueError, match="closed"):
            read(first, [0])


def test_a_top_k_larger_than_the_map_has_become(own_map: Callable[..., Path], query: np.ndarray) -> None:
    path = own_map(3)
    with PlaceRecognizer.open(path, top_k=2) as recognizer:
        remove(path, "p0.png", "p1.png")
        assert recognizer.refresh()
        assert (recognizer.top_k, recognizer.recognize(query).compared) == (1, 1)
