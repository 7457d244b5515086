"""Test the encoder's position tables against a plain bicubic interpolation, in both published conventions."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

from pairvpr.errors import CheckpointError  # noqa: E402
from pairvpr.model.encoder import Encoder, resize_positions  # noqa: E402
from pairvpr.model.presets import NetworkConfig  # noqa: E402


def cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel with a = -0.75, the one of bicubic interpolation in torch."""
    a, x = -0.75, np.abs(distance)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def plain_offset_resize(table: np.ndarray, size: int) -> np.ndarray:
    """DINOv2 without registers: scale (size + 0.1) / grid, no antialiasing; table (grid, grid, C)."""
    grid = len(table)
    where = (np.arange(size) + 0.5) * grid / (size + 0.1) - 0.5
    weights = np.zeros((size, grid))
    for row, x in enumerate(where):
        for tap in range(int(np.floor(x)) - 1, int(np.floor(x)) + 3):
            weights[row, np.clip(tap, 0, grid - 1)] += cubic(np.array(x - tap))
    return np.einsum("yi,xj,ijc->yxc", weights, weights, table)


@pytest.mark.parametrize("size", [10, 16, 23])
def test_offset_resize_is_the_plain_one(size):
    table = np.random.default_rng(0).standard_normal((37, 37, 5))
    expected = plain_offset_resize(table, size).reshape(1, size * size, 5)
    flat = torch.from_numpy(table.reshape(1, -1, 5).astype(np.float32))
    np.testing.assert_allclose(resize_positions(flat, size, size, "offset"), expected, atol=2e-5)


def test_antialiased_resize_is_exact_size_bicubic():
    table = torch.randn(1, 37 * 37, 5)
    square = table.reshape(1, 37, 37, 5).permute(0, 3, 1, 2)
    expected = F.interpolate(square, (23, 23), mode="bicubic", antialias=True).permute(0, 2, 3, 1).reshape(1, 529, 5)
    assert torch.equal(resize_positions(table, 23, 23, "antialias"), expected)


def test_the_two_ways_differ_and_the_native_grid_is_untouched():
    table = torch.randn(1, 37 * 37, 5)
    assert not torch.allclose(
        resize_positions(table, 23, 23, "antialias"), resize_positions(table, 23, 23, "offset"), atol=0.05
    )
    for how in ("antialias", "offset"):
        assert resize_positions(table, 37, 37, how) is table


def config(**changes) -> NetworkConfig:
    values = {"preset": "test", "encoder": "vit_small_patch14_dinov2", "image_size": 56, "position_grid": 37}
    return NetworkConfig(**{**values, "descriptor_dim": 8, "decoder_dim": 64, "decoder_depth": 1, **changes})


def test_register_free_encoder_uses_its_own_resizing():
    """With the offset way the encoder is timm's own but for the position table; at the native size it is timm's."""
    torch.manual_seed(0)
    encoder = Encoder(config(position_resize="offset")).eval()
    images = torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        class_token, patches = encoder(images)
        timm_tokens = encoder.vit.forward_features(images)
        native = encoder.vit.pos_embed
        grid = plain_offset_resize(native[0, 1:].reshape(37, 37, -1).double().numpy(), 4).reshape(1, 16, -1)
        table = torch.cat([native[:, :1], torch.from_numpy(grid).float()], dim=1)
        by_hand = torch.cat([encoder.vit.cls_token, encoder.vit.patch_embed(images).flatten(1, 2)], dim=1) + table
        by_hand = encoder.vit.norm(encoder.vit.blocks(by_hand))
    torch.testing.assert_close(torch.cat([class_token[:, None], patches], dim=1), by_hand, atol=1e-5, rtol=0)
    assert (timm_tokens[:, 1:] - patches).abs().max() > 1e-5


def test_register_encoder_is_timms_to_the_bit():
    torch.manual_seed(0)
    encoder = Encoder(config(encoder="vit_small_patch14_reg4_dinov2")).eval()
    images = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        class_token, patches = encoder(images)
        expected = encoder.vit.forward_features(images)
    assert torch.equal(class_token, expected[:, 0])
    assert torch.equal(patches, expected[:, 5:])


def test_mask_replaces_patches_alone():
    torch.manual_seed(0)
    encoder = Encoder(config(encoder="vit_tiny_patch16_224", encoder_args={"patch_size": 14}, position_grid=4)).eval()
    with torch.no_grad():
        images, other = torch.randn(1, 3, 56, 56), torch.randn(1, 3, 56, 56)
        everything = torch.ones(1, 16, dtype=torch.bool)
        nothing = ~everything
        assert torch.equal(encoder(images, everything)[1], encoder(other, everything)[1])
        assert torch.equal(encoder(images, nothing)[1], encoder(images)[1])
        assert not torch.equal(encoder(images)[1], encoder(other)[1])


@pytest.mark.parametrize("name", ["resnet18", "vit_base_patch16_siglip_224", "no_such_model"])
def test_a_model_that_cannot_serve_is_refused(name):
    with pytest.raises(CheckpointError, match=name):
        Encoder(config(encoder=name, position_grid=14))


def test_a_stem_of_convolutions_makes_the_same_tokens():
    torch.manual_seed(0)
    encoder = Encoder(
        config(encoder="vit_tiny_patch16_224", stem=[8, 8, 16, 16], position_grid=4, image_size=64)
    ).eval()
    convolutions = [layer for layer in encoder.vit.patch_embed.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert [layer.stride[0] for layer in convolutions] == [2, 2, 2, 2, 1]
    assert encoder.patch_size == 16
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        class_token, patches = encoder(images)
        assert class_token.shape == (2, 192)
        assert patches.shape == (2, 16, 192)
        larger = encoder(torch.randn(1, 3, 96, 96))[1]
        torch.testing.assert_close(encoder(images[:1])[1], patches[:1])  # no norm over the batch
    assert larger.shape == (1, 36, 192)


def test_a_stem_that_does_not_fit_the_patches_is_refused():
    with pytest.raises(CheckpointError, match="8 pixels, not of 16"):
        Encoder(config(encoder="vit_tiny_patch16_224", stem=(8, 8, 16), position_grid=4, image_size=64))
