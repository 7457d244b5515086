"""Test the export: graphs equal the network, wrong graphs are refused, and a failure leaves no files."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from click.testing import CliRunner  # noqa: E402

from pairvpr.cli.main import main  # noqa: E402
from pairvpr.errors import BundleError, CheckpointError, ExportError  # noqa: E402
from pairvpr.export import bundle_writer  # noqa: E402
from pairvpr.export.bundle_writer import export_bundle  # noqa: E402
from pairvpr.export.graphs import EncoderGraph, PairPrefix, PairSuffix, check_positions  # noqa: E402
from pairvpr.export.verification import network_truth, same_ranking, verify_export  # noqa: E402
from pairvpr.model import NetworkConfig, load_checkpoint, seeded_checkpoint  # noqa: E402
from pairvpr.model.presets import PRESETS  # noqa: E402
from pairvpr.runtime import Features, load_model, reference  # noqa: E402
from pairvpr.runtime.bundle import Bundle  # noqa: E402
from tests.conftest import PARITY, seeded  # noqa: E402

QUIET = lambda step: None  # noqa: E731


@pytest.fixture(scope="module")
def tiny(checkpoint_of):
    return load_checkpoint(checkpoint_of("tiny-decoder"))


def contents(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_shared_graphs_equal_the_plain_network(tiny):
    """The split decoder with its savings against the plain one, in torch, also with fewer database tokens."""
    network = tiny.network
    torch.manual_seed(0)
    with torch.no_grad():
        query, database = torch.randn(1, 256, 192), torch.randn(5, 256, 192)
        query_state, database_state, class_tokens, token_means = PairPrefix(network)(query, database)
        keep = torch.tensor([3, 0, 4])
        scores = PairSuffix(network)(query, database, query_state, database_state, keep)
        plain = network.score(query, database)
        assert class_tokens.shape == token_means.shape == (5, 2, 192)
        torch.testing.assert_close(token_means[:, 1], database_state[:, 1:].mean(dim=1))
        torch.testing.assert_close(scores, plain[keep], atol=2e-5, rtol=0)

        merged = database[:, :100]
        states = PairPrefix(network)(query, merged)
        fewer = PairSuffix(network)(query, merged, *states[:2], torch.arange(5))
        expand = query.expand(5, -1, -1)
        torch.testing.assert_close(
            fewer, network.pair_logits(expand, merged) + network.pair_logits(merged, expand), atol=2e-5, rtol=0
        )

        images = torch.randint(0, 255, (2, 224, 224, 3), dtype=torch.uint8)
        for ours, expected in zip(EncoderGraph(network)(images), network.encode(images), strict=True):
            # The graph's attention is written out, and rounds otherwise.
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_network_with_a_stem_is_exported(tmp_path, monkeypatch, precision):
    """Convolutions in place of the patch embedding: the export compares with the network, and so does the runtime."""
    config = NetworkConfig(
        preset="stem",
        encoder="vit_tiny_patch16_224",
        encoder_args={"depth": 2, "num_heads": 6},
        stem=(8, 16, 16, 24),
        image_size=64,
        position_grid=4,
        descriptor_dim=16,
        decoder_dim=64,
        decoder_depth=2,
    )
    monkeypatch.setattr("pairvpr.model.checkpoint.PRESETS", {"stem": config})
    bundle = export_bundle(seeded_checkpoint("stem"), precision, tmp_path / "stem", QUIET)
    assert bundle.info.dims.tokens == 16
    nodes = onnx.load(bundle.graph(precision, "encoder", True), load_external_data=False).graph.node
    heads = [node.attribute[0].i for node in nodes if node.op_type == "MultiHeadAttention"]
    assert heads == [6, 6]  # narrower than the decoder's
    assert reference.check_reference(load_model(tmp_path / "stem", "cpu", precision)).ok


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_bundle_agrees_with_the_published_outputs(tiny_bundle, precision):
    """Golden pictures through the whole runtime: preprocessing, engine, both orders."""
    golden = np.load(PARITY / "golden" / "tiny-decoder.npz")
    model = load_model(tiny_bundle, device="cpu", precision=precision)
    features = model.encode([seeded.seeded_image(i) for i in range(4)])
    scores = model.score(features[0], features)
    expected = golden["score_query_first"] + golden["score_database_first"]
    atol = {"fp32": (1e-4, 1e-3), "fp16": (5e-3, 2e-2)}[precision]
    np.testing.assert_allclose(features.descriptors, golden["descriptors"], atol=atol[0], rtol=0)
    np.testing.assert_allclose(scores, expected, atol=atol[1], rtol=0)


def test_bundle_holds_the_measured_errors(tiny_bundle):
    bundle = Bundle.open(tiny_bundle)
    bundle.verify()
    assert set(bundle.info.precisions) == {"fp32", "fp16"}
    errors = bundle.info.precisions["fp32"].errors
    assert 0 < errors["descriptors"] <= 1e-4
    assert 0 < errors["scores"] <= 1e-3
    assert bundle.info.precisions["fp16"].errors["descriptor_cosine"] <= 0.01
    assert bundle.info.dims.tokens == 256
    assert "non-commercial" in bundle.info.weights.licence


def test_weights_are_stored_once_and_in_their_precision(tiny_bundle, tiny):
    """Prefix and suffix share no weights, both float16 forms read one file, half the size of float32."""
    bundle = Bundle.open(tiny_bundle)
    parameters = sum(p.numel() for p in tiny.network.parameters())
    for precision, size in (("fp32", 4), ("fp16", 2)):
        graphs = bundle.info.precisions[precision].graphs
        stored = sum(bundle.info.files[g.weights].bytes for g in graphs.values())
        # Less than all parameters: mask tokens and the reconstruction head stay behind; padding is added.
        assert 0.9 * size * parameters < stored < 1.05 * size * parameters
        model = onnx.load(str(tiny_bundle / graphs["pair_suffix"].file), load_external_data=False)
        types = {i.data_type for i in model.graph.initializer if i.data_location == onnx.TensorProto.EXTERNAL}
        wanted = {"fp32": {onnx.TensorProto.FLOAT}, "fp16": {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}}
        assert types <= wanted[precision]
        assert model.ir_version <= 10
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]


def test_float16_graph_keeps_layernorms_in_float32_and_attention_in_half(tiny_bundle):
    model = onnx.load(str(tiny_bundle / "pair_suffix.fp16.onnx"), load_external_data=False)
    inferred = onnx.shape_inference.infer_shapes(model)
    known = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    types = {value.name: value.type.tensor_type.elem_type for value in known}
    found = {"LayerNormalization": set(), "Softmax": set(), "MatMul": set()}
    for node in model.graph.node:
        if node.op_type in found:
            found[node.op_type].add(types[node.output[0]])
    assert found["LayerNormalization"] == {onnx.TensorProto.FLOAT}
    assert found["Softmax"] == found["MatMul"] == {onnx.TensorProto.FLOAT16}


def test_graphs_hold_no_source_paths(tiny_bundle):
    for file in tiny_bundle.glob("*.onnx"):
        assert b".py" not in file.read_bytes()


def test_both_precisions_have_one_identity_and_re_export_replaces(tiny, tiny_bundle, tmp_path):
    out = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, out)
    (out / "pair_prefix.fp32.onnx").write_bytes(b"damaged")
    export_bundle(tiny, "fp32", out, QUIET)
    Bundle.open(out).verify()
    assert set(Bundle.open(out).info.precisions) == {"fp32", "fp16"}
    assert not list(tmp_path.glob(".*"))


def test_another_identity_or_a_foreign_folder_is_refused_untouched(tiny, tiny_bundle, tmp_path):
    other = tmp_path / "other"
    export_bundle(tiny, "fp32", other, QUIET)
    before = contents(other)
    changed = load_checkpoint_with_a_change(tiny)
    with pytest.raises(BundleError, match="another model"):
        export_bundle(changed, "fp32", other, QUIET)
    assert contents(other) == before

    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter1.txt").write_text("do not lose")
    with pytest.raises(BundleError, match="is not a bundle"):
        export_bundle(tiny, "fp32", foreign, QUIET)
    assert contents(foreign) == {"chapter1.txt": b"do not lose"}
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="not a folder"):
        export_bundle(tiny, "fp32", tmp_path / "file", QUIET)


def load_checkpoint_with_a_change(checkpoint):
    network = copy.deepcopy(checkpoint.network)
    with torch.no_grad():
        network.descriptor.bias += 0.1
    return dataclasses.replace(checkpoint, network=network)


def test_a_graph_that_differs_fails_and_leaves_nothing(tiny, tmp_path, monkeypatch):
    """The traced graphs are those of slightly other weights than the network they are compared with."""
    changed = load_checkpoint_with_a_change(tiny)
    specs = bundle_writer.graph_specs
    monkeypatch.setattr(bundle_writer, "graph_specs", lambda network, precision: specs(changed.network, precision))
    with pytest.raises(ExportError, match="descriptors"):
        export_bundle(tiny, "fp32", tmp_path / "out", QUIET)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def truth(tiny):
    return network_truth(tiny.network, QUIET)


def altered(truth, what):
    """The network's word changed a little more than the tolerance, in one of the things that are compared."""
    if what == "descriptors":
        features = Features(truth.features.descriptors + np.float32(2e-4), truth.features.tokens)
        return dataclasses.replace(truth, features=features)
    if what == "looks":
        return dataclasses.replace(truth, looks=truth.looks * np.float32(1 + 2e-4))
    scores = truth.scores.copy()
    if what == "scores":
        scores[3] += 2e-3
    if what == "rank":  # all alike but for what float16 may do, and then ordered otherwise
        best, worst = 1 + np.argmax(scores[1:]), 1 + np.argmin(scores[1:])
        scores[[best, worst]] = scores[[worst, best]]
    return dataclasses.replace(truth, scores=scores)


def test_verification_passes_a_correct_bundle_and_returns_its_errors(tiny_bundle, truth):
    errors = verify_export(Bundle.open(tiny_bundle), "fp32", truth, QUIET)
    assert set(errors) == {
        *("descriptors", "descriptor_cosine", "tokens", "scores", "look", "prefix_summaries", "suffix_scores")
    }
    assert all(0 < value < 1e-3 for value in errors.values())


@pytest.mark.parametrize("what", ["descriptors", "scores", "looks"])
def test_verification_fails_on_a_difference(tiny_bundle, truth, what):
    with pytest.raises(ExportError, match="differ"):
        verify_export(Bundle.open(tiny_bundle), "fp32", altered(truth, what), QUIET)


def test_verification_fails_on_another_ranking(tiny_bundle, truth, monkeypatch):
    limit = dataclasses.replace(reference.TOLERANCES["fp16"], scores=np.inf)
    monkeypatch.setitem(reference.TOLERANCES, "fp16", limit)
    with pytest.raises(ExportError, match="rank"):
        verify_export(Bundle.open(tiny_bundle), "fp16", altered(truth, "rank"), QUIET)


def test_same_ranking_allows_near_ties_only():
    truth = np.array([3.0, 2.0, 1.99, 0.0], np.float32)
    assert same_ranking(truth, truth)
    assert same_ranking(np.array([3, 1.9, 2.1, 0], np.float32), truth)
    assert not same_ranking(np.array([1, 2, 1.99, 0], np.float32), truth)
    assert not same_ranking(np.array([3, 2, 0, 1.99], np.float32), truth)


def test_interrupt_leaves_nothing(tiny, tmp_path):
    def interrupt(step: str) -> None:
        if "suffix" in step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_bundle(tiny, "fp32", tmp_path / "out", interrupt)
    assert list(tmp_path.iterdir()) == []


def test_two_position_tables_are_refused(tiny):
    changed = load_checkpoint_with_a_change(tiny)
    changed.network.decoder.class_positions[5] += 1
    with pytest.raises(ExportError, match="dec_pos_embed"):
        check_positions(changed.network.decoder)


def test_stage_one_is_refused(checkpoint_of, tmp_path):
    stage_one = load_checkpoint(checkpoint_of("tiny-decoder-stage-one"))
    with pytest.raises(CheckpointError, match="stage-one"):
        export_bundle(stage_one, "fp32", tmp_path / "out", QUIET)


def test_a_decoder_of_one_block_is_refused(tmp_path, monkeypatch):
    config = dataclasses.replace(PRESETS["nano"], preset="shallow", decoder_depth=1)
    monkeypatch.setattr("pairvpr.model.checkpoint.PRESETS", {"shallow": config})
    with pytest.raises(CheckpointError, match=r"has one block .* network\.decoder_depth = 2 or more"):
        export_bundle(seeded_checkpoint("shallow"), "fp32", tmp_path / "out", QUIET)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_command_line_from_checkpoint_to_bundle(checkpoint_of, tmp_path):
    result = CliRunner().invoke(
        main, ["export", "--checkpoint", str(checkpoint_of("tiny-decoder")), "--fp16", "--out", str(tmp_path / "b")]
    )
    assert result.exit_code == 0, result.output
    assert "tracing pair_suffix" in result.stderr
    assert "non-commercial" in result.stderr
    assert json.loads((tmp_path / "b" / "bundle.json").read_text())["weights"]["origin"] == "tiny-decoder.pth"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--checkpoint", "absent.pth"], "absent.pth: no such file"),
        (["--preset", "huge"], "preset huge: unknown"),
        (["--checkpoint", "a", "--preset", "nano"], "exclude"),
    ],
)
def test_command_line_errors_are_one_line(arguments, told):
    result = CliRunner().invoke(main, ["export", *arguments])
    assert result.exit_code == 2
    assert told in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_pictures_are_cast_before_anything_else(tiny_bundle):
    """TensorRT takes uint8 inputs, but computes with nothing but their cast."""
    model = onnx.load(str(tiny_bundle / "encoder.fp16.onnx"), load_external_data=False)
    assert {node.op_type for node in model.graph.node if "images" in node.input} - {"Shape"} == {"Cast"}
