"""Tokens as int8 and merged: what comes back, what it costs, and that damage is seen there too."""

import json
import re

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pairvpr.cli.main import main
from pairvpr.errors import MapError
from pairvpr.runtime import PlaceRecognizer, load_model
from pairvpr.runtime.features import Features
from pairvpr.runtime.map import Map, MapWriter, catalog, verify_map
from pairvpr.runtime.map.tokens import TokenFormat, merge, quantize
from pairvpr.runtime.mapping import token_storage
from pairvpr.runtime.mapping.builder import BuildOptions, add_pictures
from pairvpr.runtime.reference import Reference, Tolerance
from tests.runtime.map.forging import edit_meta, to_rows
from tests.scenes import draw_scene

SHAPE = {"identity": "a" * 64, "descriptor_dim": 8, "token_shape": (7, 4)}
COUNT = 6


def install_model(folder):
    (folder / "bundle.json").write_text("{}")


def tokens_of(number):
    return np.random.default_rng(number).standard_normal((1, 7, 4), np.float32)


def build(path, how, numbers=range(COUNT)):
    settings = {"tokens": {"type": how.type, "keep": how.keep}}
    with MapWriter.open(path, **SHAPE, settings=settings, install_model=install_model) as store:
        for number in numbers:
            features = Features(np.eye(1, 8, dtype=np.float32), tokens_of(number))
            store.add(name=f"{number}.jpg", source="/pictures", features=features)


@pytest.mark.parametrize("size", [1e-42, 1e-20, 1.0, 1e4, 1e30])
def test_int8_is_within_half_a_step_of_each_token(size):
    tokens = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32) * np.float32(size)
    stored = quantize(tokens)
    assert (stored.values.dtype, stored.scales.dtype) == (np.int8, np.float32)
    assert np.abs(stored.values.astype(int)).max() == 127
    if size > 1e-30:  # below, scales have too few digits
        assert (np.abs(stored.values.astype(int)).max(axis=1) == 127).all()
        errors = np.abs(stored.load() - tokens)
        assert (errors <= 0.5001 * np.abs(tokens).max(axis=1, keepdims=True) / 127).all()


def test_ties_zeros_and_nan():
    stored = quantize(np.array([[127, 0.5, -1.5, 2.5], [0, 0, 0, 0], [-254, 2, -3, 5.5]], np.float16))
    assert stored.values.tolist() == [[127, 0, -2, 2], [0, 0, 0, 0], [-127, 1, -2, 3]]
    assert stored.scales.tolist() == [1, 0, 2]
    assert stored.load().tolist() == [[127, 0, -2, 2], [0, 0, 0, 0], [-254, 2, -4, 6]]
    assert stored.is_finite()
    for bad in (np.nan, np.inf):
        assert not quantize(np.array([[1, bad]], np.float32)).is_finite()


def slow_merge(tokens, count):
    """Plain lists: one round of bipartite soft matching after the other."""
    groups = [[token] for token in tokens.astype(np.float64)]
    while len(groups) > count:
        means = [np.mean(group, axis=0) for group in groups]
        unit = [mean / np.linalg.norm(mean) for mean in means]
        edges = []
        for a in range(0, len(groups), 2):
            similarity, b = max((unit[a] @ unit[b], b) for b in range(1, len(groups), 2))
            edges.append((similarity, a, b))
        edges.sort(reverse=True)
        edges = edges[: min(len(groups) - count, len(groups) // 2)]
        for _, a, b in edges:
            groups[b] = groups[b] + groups[a]
        gone = {a for _, a, _ in edges}
        groups = [group for i, group in enumerate(groups) if i not in gone]
    return np.stack([np.mean(group, axis=0) for group in groups])


@pytest.mark.parametrize("total", [7, 8, 49])
def test_merging_equals_a_plain_implementation(total):
    tokens = np.random.default_rng(total).standard_normal((total, 6)).astype(np.float32)
    for count in {1, 2, total // 4 + 1, (total + 1) // 2, total - 1, total}:
        merged = merge(tokens, count)
        assert merged.shape == (count, 6)
        np.testing.assert_allclose(merged, slow_merge(tokens, count), atol=1e-5)
    np.testing.assert_array_equal(merge(tokens, total), tokens)


def test_the_most_similar_ones_are_merged():
    tokens = np.array([[1, 0], [0, 1], [0, 3], [-1, 0]], np.float32)
    np.testing.assert_array_equal(merge(tokens, 3), [[1, 0], [0, 2], [-1, 0]])
    np.testing.assert_allclose(merge(tokens, 1), tokens.mean(axis=0, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("how", [TokenFormat("int8"), TokenFormat("int8", 0.5), TokenFormat("float16", 0.3)])
def test_stored_tokens_are_read_back(tmp_path, how):
    build(tmp_path / "map", how)
    build(tmp_path / "map", how, range(COUNT, 2 * COUNT))
    with Map.open(tmp_path / "map") as opened:
        assert opened.token_format == how
        assert opened.token_shape == how.stored_shape((7, 4)) == ({1.0: 7, 0.5: 4, 0.3: 3}[how.keep], 4)
        read = opened.read_tokens([7, 0, 3])
        assert read.dtype == {"int8": np.float32, "float16": np.float16}[how.type]
        for tokens, number in zip(read, (7, 0, 3), strict=True):
            np.testing.assert_array_equal(tokens, how.store(tokens_of(number)[0]).load())
            merged = slow_merge(tokens_of(number)[0], how.stored_shape((7, 4))[0])
            # int8 rounds to half a step of 1/127 of a token's largest magnitude, float16 to 11 bits.
            steps = np.abs(merged).max(axis=1, keepdims=True) * {"int8": 0.501 / 127, "float16": 2.0**-11}[how.type]
            assert (np.abs(tokens - merged) <= steps + 1e-6).all()
        assert opened.info().tokens == {"type": how.type, "keep": how.keep}
        assert opened.read_tokens([]).shape == (0, *opened.token_shape)
    assert verify_map(tmp_path / "map") == []


def test_every_flipped_byte_of_int8_tokens_and_scales_is_detected(tmp_path):
    build(tmp_path / "map", TokenFormat("int8"))
    file = tmp_path / "map" / "segments" / "000001.safetensors"
    original = file.read_bytes()
    header = 8 + int.from_bytes(original[:8], "little")
    tensors = json.loads(original[8:header])
    for name, size in (("tokens", 7 * 4), ("token_scales", 7 * 4)):
        start, end = (header + offset for offset in tensors[name]["data_offsets"])
        assert end - start == COUNT * size
        for place in (*range(start, start + size), end - 1):
            flipped = bytearray(original)
            flipped[place] ^= 1
            file.write_bytes(flipped)
            row = (place - start) // size
            with Map.open(tmp_path / "map") as opened:
                with pytest.raises(MapError, match=rf"damaged \(the tokens of '{row}\.jpg' fail"):
                    opened.read_tokens([row])
                opened.read_tokens([1])
            assert len(verify_map(tmp_path / "map")) == 1
    file.write_bytes(original)
    assert verify_map(tmp_path / "map") == []


def test_older_versions_refuse_new_maps_and_maps_of_rows_have_a_format_for_each_type(tmp_path, monkeypatch):
    for kind, number in (("float16", 1), ("int8", 2)):
        path = tmp_path / kind
        build(path, TokenFormat(kind))
        with monkeypatch.context() as patched:
            patched.setattr("pairvpr.runtime.map.meta.FORMAT", 2)
            with pytest.raises(MapError, match=r"newer pairvpr \(format 3, this one reads 2\): upgrade"):
                Map.open(path)
        to_rows(path)
        assert catalog.load(path).meta.format == number
        edit_meta(path, lambda meta, number=number: {**meta, "format": 3 - number})
        with pytest.raises(MapError, match="is damaged"):
            Map.open(path)


def test_a_map_without_the_setting_holds_float16(tmp_path):
    with MapWriter.open(tmp_path, **SHAPE, install_model=install_model) as store:
        store.add(name="0.jpg", source="/", features=Features(np.eye(1, 8, dtype=np.float32), tokens_of(0)))
    with Map.open(tmp_path) as opened:
        assert (opened.settings, opened.token_format) == ({}, TokenFormat())
        np.testing.assert_array_equal(opened.read_tokens([0]), tokens_of(0).astype(np.float16))


@pytest.mark.parametrize("bad", [("int4", 1.0), ("int8", 0.0), ("int8", 1.5)])
def test_an_unknown_format_is_refused(bad):
    with pytest.raises(ValueError, match="invalid token format"):
        TokenFormat(*bad)


@pytest.mark.parametrize(("how", "share"), [(TokenFormat("int8"), 0.26), (TokenFormat("int8", 0.5), 0.135)])
def test_a_picture_of_the_published_model_is_small(how, share):
    tokens = how.store(np.random.default_rng(0).standard_normal((529, 768), np.float32))
    assert tokens.nbytes + 4 * 512 <= share * 4 * (529 * 768 + 512)  # of what it takes in float32


@pytest.fixture(scope="module")
def model():
    return load_model(threads=1)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for place in range(3):
        Image.fromarray(draw_scene(place, 0, (96, 128))).save(folder / f"p{place}.png")
    return folder


def score_tokens(model, query, database):
    return model.suffix(model.prefix(query, database), np.arange(len(database)))


def test_the_effect_is_the_change_of_scores(model):
    truth = Reference.from_bundle(model.bundle).features
    how = TokenFormat("int8", 0.5)
    effect = token_storage.measure_effect(model, how)
    changes = [
        abs(
            score_tokens(model, truth.tokens[[i]], how.store(truth.tokens[j]).load()[None])[0]
            - score_tokens(model, truth.tokens[[i]], truth.tokens[[j]])[0]
        )
        for i in range(len(truth))
        for j in range(i, len(truth))
    ]
    assert effect.pairs == len(changes)
    assert effect.largest == pytest.approx(max(changes), abs=2e-5)
    assert effect.mean == pytest.approx(np.mean(changes), abs=2e-5)


@pytest.mark.parametrize("tolerable", [True, False])
def test_int8_is_the_default_where_scores_stay(model, pictures, tmp_path, monkeypatch, tolerable):
    limit = 1e3 if tolerable else 1e-9
    monkeypatch.setattr(token_storage, "TOLERANCE", Tolerance(np.inf, np.inf, limit, 0.0, np.inf))
    add_pictures(pictures, tmp_path / "map", model, create=True)
    with Map.open(tmp_path / "map") as map_:
        assert map_.token_format == TokenFormat("int8" if tolerable else "float16")
        effect = map_.settings["tokens"]["effect"]
    assert effect["tolerable"] is tolerable
    assert 0 < effect["largest"] < 0.1


def test_a_map_of_merged_int8_tokens_answers_and_reports_its_format(model, pictures, tmp_path):
    db = tmp_path / "map"
    arguments = ["map", "build", str(pictures), "--db", str(db), "--tokens", "int8", "--keep-tokens", "0.5"]
    run = CliRunner().invoke
    assert run(main, arguments).exit_code == 0
    assert "3 already there" in run(main, arguments).output  # the same again goes on
    with PlaceRecognizer.open(db, threads=1) as vpr:
        answer = vpr.recognize(pictures / "p1.png")
        query = model.encode([pictures / "p1.png"])
        stored = vpr.map.token_format.store(query.tokens[0]).load()
        score = next(match.score for match in answer.matches if match.name == "p1.png")
        assert answer.complete
        assert score == pytest.approx(score_tokens(model, query.tokens, stored[None])[0], abs=1e-3)
    said = run(main, ["map", "info", "--db", str(db)]).output
    assert "int8, merged to 50% of them; changes the scores of 10 reference pairs" in said
    assert re.search(r"^bytes per picture +\d+$", said, re.MULTILINE)
    listed = json.loads(run(main, ["map", "info", "--db", str(db), "--format", "jsonl"]).output)["tokens"]
    assert (listed["type"], listed["keep"], listed["effect"]["pairs"]) == ("int8", 0.5, 10)


@pytest.mark.parametrize("other", [["--tokens", "float16"], ["--keep-tokens", "0.5"]])
def test_a_map_keeps_its_format(model, pictures, tmp_path, other):
    add_pictures(pictures, tmp_path / "map", model, BuildOptions(token_type="int8"), create=True)
    result = CliRunner().invoke(main, ["map", "build", str(pictures), "--db", str(tmp_path / "map"), *other])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert "stores 100% of the tokens as int8; leave --tokens and --keep-tokens out" in result.stderr
