"""Sources drawn from the kinds of odd files that people have: no traceback, and no picture is lost without a word."""

from __future__ import annotations

import io
import json
import os
import random
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image, PngImagePlugin

from pairvpr.cli.main import main
from pairvpr.cli.run import main as run_main
from pairvpr.runtime import Map
from tests.scenes import draw_scene

pytest.importorskip("rosbags", reason="needs rosbags")
pytest.importorskip("av", reason="needs PyAV")

from tests.runtime.sources.bag_writer import KINDS, START, BagWriter
from tests.runtime.sources.test_sources import write_clip

SIZE = (40, 56)
FORMATS = {
    ".jpg": "JPEG",
    ".JPEG": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".bmp": "BMP",
    ".gif": "GIF",
}
NAMES = (
    "{}",
    "frame {}",
    "Übung{}",
    "図{}",
    "{}.{}",
    "a'b\"{}",
    "@{}@5@",
    "@0@0@{}",
    "@x@y@{}",
    "-{}",
    "%0{}d",
    "{};{}",
)
BAD_NAMES = ("line\n{}", "bell\a{}", "\x1b[31m{}", "tab\t{}", "u\u2028{}")
ENCODINGS = ("rgb8", "bgr8", "mono8", "8UC3", "mono16", "bayer_rggb8", "32FC1", "made-up")
READ = {"rgb8": 3, "bgr8": 3, "mono8": 1, "8UC3": 3, "mono16": 2, "bayer_rggb8": 1, "32FC1": 4}
"""Encodings that are read, and the bytes of a pixel, of those that are drawn."""


class Told(NamedTuple):
    """What has to come of a source: pictures that are taken, skipped by name, and counted by kind."""

    taken: set[str]
    skipped: set[str]
    counted: dict[str, int]


def encoded(chance: random.Random, kind: str) -> bytes:
    """A whole picture with odd parts that do not matter."""
    picture, stream = Image.fromarray(draw_scene(chance.randrange(30), chance.randrange(3), SIZE)), io.BytesIO()
    more = {}
    if kind == "JPEG" and chance.random() < 0.5:
        exif = Image.Exif()
        exif[0x0112] = chance.choice([0, 1, 3, 6, 8, 99])  # orientation
        position = chance.choice([(47.0, 22.0, 30.0), (47.5, 0.0, 0.0), (0.0, 0.0, 0.0), (99.0, 0.0, 0.0)])
        exif.get_ifd(0x8825).update({1: chance.choice("NSx"), 2: position, 3: "E", 4: (8.0, 30.0, 0.0)})
        more["exif"] = exif
    if kind == "PNG" and chance.random() < 0.3:
        text = PngImagePlugin.PngInfo()
        text.add_text("Comment", "x" * chance.choice([10, 2_000_000]))
        more["pnginfo"] = text
    if kind == "PNG" and chance.random() < 0.3:
        wide = np.asarray(picture.convert("L"), np.uint16) * chance.choice([1, 16, 257])
        picture = Image.fromarray(wide)
    picture.save(stream, kind, **more)
    whole = stream.getvalue()
    return whole[:-2] if kind == "JPEG" and chance.random() < 0.2 else whole  # without the end marker


def draw_folder(chance: random.Random, home: Path) -> Told:
    """Fill a folder with pictures and other things."""
    told = Told(set(), set(), {})
    for number in range(chance.randint(1, 7)):
        folder = home / chance.choice(["", "", "sub", "sub/deep er"])
        folder.mkdir(parents=True, exist_ok=True)
        ending = chance.choice(list(FORMATS))
        name = chance.choice(NAMES).format(number, number) + ending
        kind = chance.choice(["whole"] * 4 + ["cut", "empty", "text", "pipe", "link", "heic", "named", "hidden", "nas"])
        if kind == "named":
            name = chance.choice(BAD_NAMES).format(number) + ending
        elif kind == "heic":
            name = f"{number}.heic"
        elif kind == "hidden":
            name = f".{number}{ending}"
        elif kind == "nas":
            folder = folder / "@eaDir"
            folder.mkdir(exist_ok=True)
        file = folder / name
        content = encoded(chance, FORMATS[ending])
        if kind == "pipe":
            os.mkfifo(file)
        elif kind == "link":
            file.symlink_to("nowhere")
        else:
            cut = {"cut": content[: len(content) // 3], "empty": b"", "text": b"no picture", "heic": b"\0" * 99}
            file.write_bytes(cut.get(kind, content))
        relative = file.relative_to(home).as_posix()
        if kind == "whole":
            told.taken.add(relative)
        elif kind in ("cut", "empty", "text", "pipe"):
            told.skipped.add(relative)
        elif kind in ("link", "heic", "named"):
            noun = {"link": "links", "heic": ".heic pictures", "named": "names"}[kind]
            told.counted[noun] = told.counted.get(noun, 0) + 1
    return told


def draw_bag(chance: random.Random, home: Path) -> tuple[Path, Told]:
    """Write a bag whose images, stamps and poses are odd."""
    told, now = Told(set(), set(), {}), START
    with BagWriter(home, chance.choice(KINDS)) as bag:
        for number in range(chance.randint(1, 6)):
            now += chance.choice([100_000_000, 100_000_000, 0, -5_000_000_000, 3_600_000_000_000])
            encoding, stamp = chance.choice(ENCODINGS), chance.choice([now, now, now, 0, None])
            pixels = draw_scene(number, 0, SIZE)[:, :, [0] * READ.get(encoding, 1)]
            bag.image("/cam", stamp, pixels, encoding, logged=max(now, START))
            (told.taken if encoding in READ else told.skipped).add(f"#{number:06d}")
            if chance.random() < 0.5:
                kind = chance.choice(["PoseStamped", "PoseWithCovarianceStamped", "Odometry"])
                q = chance.choice([(0, 0, 0, 1), (0, 0, 0, 0), (0, 0, 0, float("nan"))])
                bag.pose(kind, "/pose", max(now, START), chance.choice([1.0, float("nan"), 1e30]), q)
            if chance.random() < 0.3:
                bag.fix("/fix", max(now, START), chance.choice([47.0, 0.0, 91.0]), chance.choice([0, -1]))
    return bag.path, told


def draw_video(chance: random.Random, home: Path) -> tuple[Path, Told | None]:
    """Write a clip, whole or cut. A cut one may be refused, or give the frames before the cut."""
    file = write_clip(home / chance.choice(["clip.mp4", "a b.avi", "@1@2@.mkv"]), chance.randint(2, 6), 32)
    content = file.read_bytes()
    if chance.random() < 0.4:
        file.write_bytes(content[: chance.randrange(len(content))])
        return file, None
    return file, Told(set(), set(), {})


def draw_poses(chance: random.Random, file: Path, names: list[str]) -> None:
    """Write poses of some of the names, in one of many layouts, right and wrong ones."""
    value = chance.choice(["{}", "{}.5", "{}e400", "nan", "", "zwölf"])
    header = chance.choice(["name,x,y,z", "x,y,name", '"name","x","y"', "name,latitude,longitude", "name", "a,b,c", ""])
    lines = [header] if header else []
    for number, name in enumerate(names or ["a.jpg"]):
        row = [f'"{name}"' if chance.random() < 0.5 else name, *([value.format(number)] * chance.choice([2, 3, 3, 4]))]
        lines.append(chance.choice([",", ",", ",", " ", ";"]).join(row))
    text = chance.choice(["\n", "\r\n"]).join(chance.choice([lines, lines * 2, lines[:1], []]))
    file.write_bytes(text.encode(chance.choice(["utf-8", "utf-8-sig", "utf-16", "latin-1"]), "replace"))


def invoke(program: object, *arguments: object) -> Result:
    """Run a command. Check that it ended as a command should, and that all lines can be printed."""
    done = CliRunner().invoke(program, [str(each) for each in arguments])  # type: ignore[arg-type]
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    assert done.exit_code in (0, 2), done.output
    if done.exit_code == 2:
        assert len([line for line in done.stderr.splitlines() if line.startswith("Error: ")]) == 1, done.stderr
    for line in done.output.split("\n"):
        assert line.isprintable(), repr(line)
    return done


def check_words(done: Result, told: Told) -> None:
    """Check that each picture that is not taken is named, or counted by its kind."""
    for name in told.skipped:
        assert any(name in line for line in done.stderr.splitlines() if line.startswith("skipped: ")), (
            name,
            done.stderr,
        )
    for noun, count in told.counted.items():
        assert re.search(rf"(^|[ ;]){count} {re.escape(noun)} ", done.stderr, re.MULTILINE), (noun, count, done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("draws", [40, pytest.param(1000, marks=pytest.mark.soak)])
def test_no_picture_is_lost_without_a_word(tmp_path: Path, draws: int) -> None:
    for seed in range(draws):
        chance, home = random.Random(seed), tmp_path / str(seed)
        (home / "source").mkdir(parents=True)
        kind, source, told = chance.choice(["folder", "folder", "bag", "video"]), home / "source", None
        options: list[object] = []
        if kind == "folder":
            told = draw_folder(chance, source)
            if chance.random() < 0.4:
                draw_poses(chance, home / "poses.csv", sorted(told.taken))
                options = ["--poses", home / "poses.csv"]
        elif kind == "bag":
            source, told = draw_bag(chance, source)
        else:
            source, told = draw_video(chance, source)
        built = invoke(main, "map", "build", source, "--db", home / "map", *options)
        if built.exit_code == 2:
            # Refused as a whole: a folder or bag without a picture, a cut clip, poses that cannot be used.
            assert not (told is not None and told.taken) or options or "cannot be used" in built.stderr, built.stderr
            if told is not None and not told.taken and not told.skipped and not options:
                check_words(built, told)
            continue
        with Map.open(home / "map") as map_:
            names = set(map_.records.names())
        if told is not None and kind != "video":
            if kind == "folder":
                assert names == told.taken, (seed, built.stderr)
                check_words(built, told)
            else:  # a bag's images are read in the order of their log times
                assert len(names) == len(told.taken), (seed, built.stderr)
                assert built.stderr.count("\nskipped: ") == len(told.skipped), (seed, built.stderr)
        if not names:
            continue
        answered = invoke(run_main, "--db", home / "map", "--query", source, "--format", "jsonl", "--top-k", 1)
        lines = [json.loads(line) for line in answered.stdout.splitlines()]
        assert answered.exit_code == 0, (seed, answered.stderr)
        assert {line["query"] for line in lines if line["best"] is not None} == names, (seed, answered.stderr)
        if told is not None:
            without = [line for line in lines if line["best"] is None]
            assert len(without) == len(told.skipped), (seed, answered.stderr)
            assert all(line["error"] for line in without)
