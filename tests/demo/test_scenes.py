"""Made-up places: the same on every machine, and the same place recognisable again."""

from __future__ import annotations

import subprocess
import sys
import zlib

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pairvpr.demo.dice import Dice
from pairvpr.demo.light import Light
from pairvpr.demo.scenes import draw_scene
from pairvpr.demo.street import Street

PLACES = 12


@pytest.mark.parametrize(
    ("place", "visit", "size", "crc"),
    [
        (0, 0, (240, 320), 0x702076B5),
        (7, 2, (240, 320), 0x833C27DD),
        (31, 1, (140, 140), 0x45DF923A),
    ],
)
def test_scene_is_the_same_everywhere(place: int, visit: int, size: tuple[int, int], crc: int) -> None:
    assert zlib.crc32(draw_scene(place, visit, size).tobytes()) == crc


def test_scene_depends_on_nothing_else() -> None:
    np.random.seed(1)
    first = draw_scene(3, 1)
    draw_scene(4, 0)
    assert np.array_equal(first, draw_scene(3, 1))
    assert not np.array_equal(first, draw_scene(3, 2))
    assert not np.array_equal(first, draw_scene(4, 1))


@pytest.mark.parametrize("size", [(240, 320), (16, 16), (17, 31), (40, 300), (300, 40)])
def test_scene_has_the_size_asked_for(size: tuple[int, int]) -> None:
    for place in range(8):
        for visit in range(3):
            picture = draw_scene(place, visit, size)
            assert picture.shape == (*size, 3)
            assert picture.dtype == np.uint8


@pytest.mark.parametrize(("place", "visit", "size"), [(-1, 0, (240, 320)), (0, -1, (240, 320)), (0, 0, (8, 320))])
def test_scene_that_cannot_be(place: int, visit: int, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="no scene for place"):
        draw_scene(place, visit, size)


def test_any_place_can_be_drawn() -> None:
    for place in [*range(300), 2**40, 2**63]:
        street = Street.draw(place)
        assert street.left < -3
        assert street.right > 3


def test_visits_resemble_their_place_more_than_other_places() -> None:
    """Nearest by colour and gradients over all shifts: a plain stand-in for a person's look."""
    references = [_look(draw_scene(place, 0)) for place in range(PLACES)]
    right = total = 0
    for place in range(PLACES):
        for visit in (1, 2):
            query = _look(draw_scene(place, visit))
            nearest = max(range(PLACES), key=lambda other: _likeness(query, references[other]))
            right, total = right + (nearest == place), total + 1
    assert right / total > 0.8, f"{right} of {total}"


def test_places_differ_much_more_than_noise() -> None:
    pictures = [draw_scene(place, 0).astype(np.int16) for place in range(PLACES)]
    differences = [np.abs(a - b).mean() for i, a in enumerate(pictures) for b in pictures[:i]]
    assert min(differences) > 15


def test_scenes_need_no_model_and_no_torch() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'faiss', 'onnxruntime', 'PIL')));"
        "from pairvpr.demo.scenes import draw_scene; draw_scene(0, 1)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_dice_keep_their_numbers() -> None:
    dice = Dice(5, 1)
    numbers = [dice.integer(0, 999) for _ in range(6)]
    assert numbers == [789, 423, 708, 184, 881, 325]
    assert Dice(5, 1).integer(0, 999) == numbers[0]
    assert Dice(1, 5).integer(0, 999) != numbers[0]


def test_dice_stay_in_their_bounds() -> None:
    dice = Dice(0, 0)
    uniform = np.array([dice.uniform(-2, 3) for _ in range(4000)])
    assert uniform.min() >= -2
    assert uniform.max() <= 3
    assert abs(uniform.mean() - 0.5) < 0.1
    assert {dice.integer(1, 3) for _ in range(100)} == {1, 2, 3}
    noise = dice.noise((5, 7, 3))
    assert noise.shape == (5, 7, 3)
    assert np.abs(noise).max() <= 1


def test_neutral_light_changes_nothing() -> None:
    image = Dice(2, 0).noise((9, 8, 3)) * 100 + 120
    lit = Light(noise=0).shine(image, Dice(0, 0))
    assert np.array_equal(lit, np.rint(image).astype(np.uint8))


def test_light_is_brighter_warmer_and_flatter_as_told() -> None:
    grey = np.full((16, 16, 3), 90, np.float32)

    def shine(light: Light) -> npt.NDArray[np.float64]:
        return light.shine(grey, Dice(0, 0)).astype(np.float64)

    assert shine(Light(brightness=1.3, noise=0)).mean() > 110
    red, _, blue = shine(Light(warmth=0.2, noise=0)).mean(axis=(0, 1))
    assert red > 100 > 80 > blue
    assert shine(Light(contrast=0.5, noise=0)).mean() == pytest.approx(104)
    slope = shine(Light(slope=0.4, noise=0))
    assert slope[:, -1].mean() > slope[:, 0].mean() + 25
    tilt = shine(Light(tilt=0.4, noise=0))
    assert tilt[0].mean() > tilt[-1].mean() + 25


def _look(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Colour and gradient strength of a 24 x 32 picture, each channel with mean 0 and deviation 1."""
    small = np.asarray(Image.fromarray(picture).resize((32, 24), Image.Resampling.BOX), np.float32)
    grey = small.mean(axis=2)
    colour = small - grey[..., None]
    across, down = np.gradient(grey)
    channels = np.dstack([colour, np.abs(across), np.abs(down)])
    return (channels - channels.mean(axis=(0, 1))) / (channels.std(axis=(0, 1)) + 1e-3)


def _likeness(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    """The best correlation over shifts of up to 6 of 32 columns."""
    best = -1.0
    for shift in range(-6, 7):
        left, right = max(0, shift), min(32, 32 + shift)
        best = max(best, float((a[:, left:right] * b[:, left - shift : right - shift]).mean()))
    return best
