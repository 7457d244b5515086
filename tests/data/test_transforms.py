"""Test relighting: it depends on its seed alone, varies between seeds, and keeps the scene."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from PIL import Image  # noqa: E402

from pairvpr.data.transforms import (  # noqa: E402
    CropAndRelight,
    Revisit,
    lamplight,
    reversed_tones,
    seeded_torch,
    snowed,
)
from pairvpr.runtime.image import resize  # noqa: E402
from tests.scenes import draw_scene  # noqa: E402


def relit(seed, strength=1.0):
    with seeded_torch(seed):
        return CropAndRelight(48, strength)(Image.fromarray(draw_scene(0, 0, (60, 80))))


def test_a_seed_decides_everything():
    assert relit(1).shape == (48, 48, 3)
    assert relit(1).dtype == torch.uint8
    assert torch.equal(relit(1), relit(1))
    assert not torch.equal(relit(1), relit(2))


def test_light_changes_much_and_nothing_is_lost():
    pictures = torch.stack([relit(seed) for seed in range(40)]).float()
    brightness = pictures.mean(dim=(1, 2, 3))
    assert brightness.max() - brightness.min() > 50
    assert (pictures.std(dim=(1, 2)).mean(1) > 4).all()
    grey = (pictures[..., 0] == pictures[..., 2]).all(dim=(1, 2))
    assert 0 < int(grey.sum()) < 20  # some cameras see no colours at night


def test_without_strength_view_and_light_stay():
    pictures = torch.stack([relit(seed, 0.0) for seed in range(4)]).float()
    assert (pictures - pictures.mean(0)).abs().mean() < 3  # a good camera's noise
    squashed = torch.from_numpy(resize(Image.fromarray(draw_scene(0, 0, (60, 80))), (48, 48))).float()
    assert np.corrcoef(pictures[0].ravel(), squashed.ravel())[0, 1] > 0.97


def test_lamps_shine_where_they_stand():
    with seeded_torch(0):
        fields = np.stack([lamplight(32).numpy() for _ in range(20)])
    assert (fields > 0).all()
    assert (fields.max(axis=(1, 2)) > 3 * fields.min(axis=(1, 2))).mean() > 0.8


def test_tones_may_change_their_order_but_not_within_a_tone():
    light = torch.linspace(0.01, 0.9, 64).expand(1, 3, 1, 64) * torch.tensor([1.2, 1.0, 0.8]).view(1, 3, 1, 1)
    with seeded_torch(0):
        curves = [reversed_tones(light) for _ in range(20)]
    fell = [bool((curve.mean(1).diff() < -1e-3).any()) for curve in curves]
    assert 0 < sum(fell) < 20
    for curve in curves:
        assert (curve >= 0).all()
        assert curve.max() < 1.3
        assert torch.allclose(curve[:, 0] / curve[:, 1].clamp(min=1e-9), torch.tensor(1.2), atol=1e-3)  # colours stay


def revisited(seed, strength=1.0):
    with seeded_torch(seed):
        return Revisit(48, strength)(Image.fromarray(draw_scene(0, 0, (60, 80))))


def test_another_visit_changes_view_and_colours_and_its_seed_decides_it():
    assert torch.equal(revisited(1), revisited(1))
    pictures = torch.stack([revisited(seed) for seed in range(40)])
    assert pictures.shape == (40, 48, 48, 3)
    assert pictures.dtype == torch.uint8
    assert (pictures.float().std(dim=(1, 2)).mean(1) > 4).all()
    grey = (pictures[..., 0] == pictures[..., 2]).all(dim=(1, 2))
    assert 4 < int(grey.sum()) < 30


def test_a_visit_without_strength_is_the_picture_itself():
    squashed = torch.from_numpy(resize(Image.fromarray(draw_scene(0, 0, (60, 80))), (48, 48))).float()
    assert np.corrcoef(revisited(0, 0.0).float().ravel(), squashed.ravel())[0, 1] > 0.97


def test_snow_lies_on_the_ground_and_on_what_is_green():
    light = torch.full((1, 3, 32, 32), 0.2)
    light[:, 1, :8, 16:] = 0.5  # a tree, above on the right
    with seeded_torch(0):
        seen = torch.stack([snowed(light)[0] for _ in range(20)]).mean(dim=0)
    brightness = seen.mean(dim=0)
    assert brightness[24:].mean() > brightness[8:16].mean() + 0.1  # the ground
    assert brightness[:8, 16:].mean() > brightness[:8, :16].mean() + 0.1  # the tree
