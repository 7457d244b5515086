"""A thousand malformed pictures, bags, maps and bundles each: every one is read correctly or refused in one line."""

from __future__ import annotations

import io
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from pairvpr.runtime.bundle import Bundle
from pairvpr.runtime.bundle_info import FILE
from pairvpr.runtime.features import Features
from pairvpr.runtime.geometry.poses import Gps, Pose
from pairvpr.runtime.map import MapWriter, catalog
from pairvpr.runtime.model import default_bundle
from tests.runtime.map.damages import Damaged, damaged
from tests.runtime.map.forging import has_rows, to_rows
from tests.runtime.map.fuzz_reader import Reader
from tests.scenes import draw_scene

EXAMPLES = pytest.mark.parametrize("examples", [40, pytest.param(1000, marks=pytest.mark.soak)])
CELLS = st.one_of(
    st.integers(-(1 << 63), (1 << 63) - 1), st.floats(), st.text(max_size=9), st.binary(max_size=9), st.none()
)


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    reader = Reader()
    yield reader
    reader.close()


def of(examples: int) -> settings:
    """Use the same examples in every short run, and new ones in every long run."""
    return settings(
        max_examples=examples,
        deadline=None,  # the reader has one
        derandomize=examples < 1000,
        phases=[Phase.generate],  # what was read is still there, in the test's folder
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


def assert_said(message: str, path: Path) -> None:
    """Check that a message is one line with the file, the fault and a remedy."""
    assert message.isprintable()
    assert str(path) in message
    assert re.search(r"[:;,] \S", message.partition(str(path))[2])


def encoded(**how: Any) -> bytes:
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    picture = Image.fromarray(draw_scene(0, 0, (32, 24)))
    mode = how.pop("mode", "RGB")
    picture = Image.fromarray(np.asarray(picture.convert("L"), np.uint16) * 257) if mode == "I;16" else picture
    (picture if mode == "I;16" else picture.convert(mode)).save(stream, exif=exif, **how)
    return stream.getvalue()


PICTURES = [
    encoded(format="JPEG"),
    encoded(format="JPEG", progressive=True, mode="L"),
    encoded(format="JPEG", mode="CMYK"),
    encoded(format="PNG"),
    encoded(format="PNG", mode="P"),
    encoded(format="PNG", mode="I;16"),
    encoded(format="TIFF"),
    encoded(format="TIFF", compression="tiff_lzw"),
    encoded(format="TIFF", compression="jpeg"),
    encoded(format="TIFF", compression="packbits", mode="1"),
    encoded(format="WEBP"),
    encoded(format="WEBP", lossless=True, mode="RGBA"),
    encoded(format="GIF"),
    encoded(format="JPEG2000"),
    encoded(format="BMP"),
    encoded(format="BMP", mode="P"),
    encoded(format="PPM"),
    encoded(format="PPM", mode="1"),
]


@EXAMPLES
def test_malformed_pictures(reader: Reader, tmp_path: Path, examples: int) -> None:
    path = tmp_path / "picture.jpg"

    @of(examples)
    @given(damaged(PICTURES))
    def read(change: Damaged) -> None:
        path.write_bytes(change.content)
        outcome = reader.read("source", path)
        if "refused" in outcome:
            assert_said(outcome["refused"], path)
        else:
            assert outcome == {"promised": 1, "frames": 1, "errors": [], "warnings": []}

    read()


def write_bag(folder: Path, kind: str) -> Path:
    """A bag with tiny images, one of them compressed, and poses, so that most bytes belong to its format."""
    from tests.runtime.sources.bag_writer import BagWriter, scene, stamp

    folder.mkdir()
    with BagWriter(folder, kind) as bag:
        for i in range(3):
            bag.pose("Odometry", "/odom", stamp(i), float(i))
            if kind == "mcap":
                bag.compressed("/image", stamp(i), encoded(format="JPEG"))
            else:
                bag.image("/image", stamp(i), np.ascontiguousarray(scene(i)[:16, :16]))
    return bag.path


@pytest.mark.parametrize("kind", ["drive.bag", "lz4.bag", "sqlite", "mcap", "lone.mcap"])
@EXAMPLES
def test_malformed_bags(reader: Reader, tmp_path: Path, kind: str, examples: int) -> None:
    pytest.importorskip("rosbags", reason="bags need the extra pairvpr[bags]")
    whole = write_bag(tmp_path / "whole", kind)
    path = tmp_path / whole.name
    files = [whole] if whole.is_file() else sorted(whole.iterdir())
    assert reader.read("source", whole) == {"promised": 3, "frames": 3, "errors": [], "warnings": []}

    @of(examples // 5)
    @given(st.integers(0, len(files) - 1).flatmap(lambda i: st.tuples(st.just(i), damaged([files[i].read_bytes()]))))
    def read(change: tuple[int, Damaged]) -> None:
        if whole.is_dir():
            shutil.copytree(whole, path, dirs_exist_ok=True)
        (path / files[change[0]].name if whole.is_dir() else path).write_bytes(change[1].content)
        outcome = reader.read("source", path)
        if "refused" in outcome:
            assert_said(outcome["refused"], path)
        else:
            assert all(error.isprintable() and error.startswith(f"{path.name}/") for error in outcome["errors"])
            said = f"{outcome['frames']} of {outcome['promised']} messages on"
            assert outcome["frames"] == outcome["promised"] or any(said in each for each in outcome["warnings"])
            assert all(each.isprintable() for each in outcome["warnings"])

    read()


def write_map(path: Path, tokens: str) -> Path:
    """A map of 12 pictures in 4 segments, one of them removed."""
    shape: dict[str, Any] = {"identity": "a" * 64, "descriptor_dim": 8, "token_shape": (5, 4)}
    own = {"size": 224, "tokens": {"type": tokens, "keep": 0.8}}

    def install(folder: Path) -> None:
        (folder / FILE).write_text("{}")

    with MapWriter.open(path, **shape, settings=own, install_model=install) as store:
        for number in range(12):
            draw = np.random.default_rng(number)
            descriptors = draw.standard_normal((1, 8), np.float32)
            store.add(
                name=f"{number}.jpg",
                source="/pictures",
                timestamp=number / 10,
                pose=Pose(number, 2, 3, (0, 0, 0, 1)) if number % 2 else None,
                gps=Gps(number, 1) if number % 3 else None,
                features=Features(
                    descriptors / np.linalg.norm(descriptors), draw.standard_normal((1, 5, 4), np.float32)
                ),
            )
            if number % 3 == 2:
                store.commit()
        store.remove(["4.jpg"])
    return path


def interrupt_commit(path: Path) -> None:
    """Leave the journal of a commit that a power cut interrupted."""
    with closing(sqlite3.connect(path / catalog.FILE, isolation_level=None)) as connection:
        connection.execute("PRAGMA cache_size=1")
        connection.execute("BEGIN IMMEDIATE")
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        rows = "UPDATE records SET name = name || name"
        connection.execute("UPDATE blocks SET content = content || content" if "blocks" in tables else rows)
        files = [path / catalog.FILE, path / f"{catalog.FILE}-journal"]
        contents = [file.read_bytes() for file in files]
        connection.execute("ROLLBACK")
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)


def update_cell(path: Path, table: str, row: int, column: int, value: Any) -> None:
    """Put a value into the catalog, if SQLite accepts it."""
    with closing(sqlite3.connect(path / catalog.FILE)) as connection:
        names = [each[1] for each in connection.execute(f"PRAGMA table_info({table})")]
        rows = [each[0] for each in connection.execute(f"SELECT rowid FROM {table}")]
        column_name = names[column % len(names)]
        try:
            with connection:
                statement = f'UPDATE {table} SET "{column_name}" = ? WHERE rowid = ?'
                connection.execute(statement, (value, rows[row % len(rows)]))
        except (sqlite3.IntegrityError, UnicodeEncodeError):
            pass  # not even damage: SQLite keeps it out


def changes(whole: Path) -> st.SearchStrategy[tuple[Any, ...]]:
    """Draw a damage of the map: a file damaged, missing or replaced, or a cell of its tables changed."""
    files = sorted(
        file.relative_to(whole) for file in whole.rglob("*") if file.is_file() and file.parent.name != "model"
    )
    contents = {file: (whole / file).read_bytes() for file in files}
    name = st.sampled_from(files)
    return st.one_of(
        name.flatmap(lambda file: st.tuples(st.just("write"), st.just(file), damaged([contents[file]]))),
        st.tuples(st.just("write"), name, name.map(lambda other: Damaged(contents[other], f"that of {other}"))),
        st.tuples(st.just("remove"), name),
        st.tuples(
            st.just("update"),
            st.sampled_from(["records" if has_rows(whole) else "blocks", "segments", "meta"]),
            st.integers(0, 20),
            st.integers(0, 20),
            CELLS,
        ),
    )


def apply(change: tuple[Any, ...], path: Path) -> None:
    kind, *how = change
    if kind == "write":
        (path / how[0]).write_bytes(how[1].content)
    elif kind == "remove":
        (path / how[0]).unlink()
    else:
        update_cell(path, *how)


@pytest.mark.parametrize(("tokens", "rows"), [("float16", True), ("int8", True), ("float16", False), ("int8", False)])
@pytest.mark.parametrize("interrupted", [False, True])
@EXAMPLES
def test_malformed_maps(
    reader: Reader, tmp_path: Path, tokens: str, rows: bool, interrupted: bool, examples: int
) -> None:
    whole, path = write_map(tmp_path / "whole", tokens), tmp_path / "map"
    if rows:
        to_rows(whole)
    shutil.copytree(whole, path)
    sound = reader.read("map", path)
    assert (len(sound["pictures"]), sound["damages"]) == (11, [])
    if interrupted:
        interrupt_commit(whole)

    @of(examples // 4)
    @given(changes(whole))
    def read(change: tuple[Any, ...]) -> None:
        shutil.rmtree(path)
        shutil.copytree(whole, path)
        apply(change, path)
        outcome = reader.read("map", path)
        for message in outcome["damages"]:
            assert_said(message, path)
        if "refused" not in outcome:  # verifying may have seen more than reading needs
            assert outcome["pictures"] == sound["pictures"]
            return
        assert outcome["damages"]
        assert_said(outcome["refused"], path)
        assert_said(outcome.get("not repaired", outcome["refused"]), path)
        kept = outcome.get("kept", {})
        assert kept.items() <= sound["pictures"].items()
        if "kept" in outcome:
            assert len(kept) + len(outcome["lost"]) >= len(sound["pictures"])

    read()


@EXAMPLES
def test_malformed_bundles(reader: Reader, tmp_path: Path, examples: int) -> None:
    whole, path = Bundle.open(default_bundle()), tmp_path / "bundle"
    whole.install(path)
    sound = {"info": whole.info.to_json()}
    contents = {name: (path / name).read_bytes() for name in (FILE, *whole.info.files)}
    name = st.sampled_from([FILE] * 20 + sorted(whole.info.files))

    @of(examples)
    @given(name.flatmap(lambda name: st.tuples(st.just(name), damaged([contents[name]]))))
    def read(change: tuple[str, Damaged]) -> None:
        file = path / change[0]
        file.unlink()  # it is a link to the bundle that was installed
        file.write_bytes(change[1].content)
        outcome = reader.read("bundle", path)
        file.write_bytes(contents[change[0]])
        if "refused" in outcome:
            assert_said(outcome["refused"], path)
        else:
            assert outcome == sound

    read()
