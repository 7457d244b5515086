"""The sequence filter: it remembers, follows the evidence, and reports a robot that is off the map."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from pairvpr.runtime import Filtered, Pose, Recognition, SequenceFilter
from pairvpr.runtime.answer import Match
from pairvpr.runtime.map import Record
from pairvpr.runtime.sequence.filter import CHANGE, _kernel

RIGHT, WRONG = 4.0, -8.0


def drive(count: int, seconds: float | None = None, metres: float | None = None) -> list[Record]:
    """Pictures of one drive with a fixed distance in seconds and metres."""
    return [
        Record(
            row + 1,
            f"p{row}",
            "drive",
            None if seconds is None else row * seconds,
            None if metres is None else Pose(row * metres, 0, 0),
            None,
            segment=1,
            row=row,
            descriptor_crc=0,
            tokens_crc=0,
        )
        for row in range(count)
    ]


def answer(count: int, scores: dict[int, float], timestamp: float | None = None) -> Recognition:
    """An answer with all pictures compared. Those not in `scores` score like wrong ones, within 2 of WRONG."""
    wrong = {row: WRONG + 2 - 4 * (row * 37 % 100) / 99 for row in range(count)}
    every = sorted((wrong | scores).items(), key=lambda item: -item[1])
    return Recognition("q", timestamp, tuple(Match(f"p{row}", score, 0.5, "full") for row, score in every))


def place(sequence: SequenceFilter, given: Recognition, where: Pose | None = None) -> Filtered:
    filtered = sequence.update(given, where)
    assert filtered.sequence is not None
    assert filtered.matches == given.matches
    return filtered.sequence


def rows(sequence: SequenceFilter, path: Sequence[dict[int, float]], count: int = 200) -> list[int]:
    return [int(place(sequence, answer(count, scores)).name[1:]) for scores in path]


def test_one_wrong_answer_in_a_drive_is_outvoted() -> None:
    path = [{row: RIGHT} for row in range(50, 60)]
    path[6] = {56: 1.0, 150: RIGHT + 3}
    found = rows(SequenceFilter(drive(200)), path)
    assert found[1:] == list(range(51, 60))
    assert abs(found[0] - 50) == 0


def test_earlier_answers_resolve_ambiguous_ones() -> None:
    """Every place has a twin that scores a little better; only the first picture knows."""
    path = [{20: RIGHT}] + [{row: RIGHT, row + 100: RIGHT + 0.1} for row in range(21, 30)]
    assert rows(SequenceFilter(drive(200)), path) == list(range(20, 30))


def test_a_robot_that_is_carried_elsewhere_is_found_again() -> None:
    path = [{row: RIGHT} for row in range(20, 40)] + [{row: RIGHT} for row in range(150, 160)]
    found = rows(SequenceFilter(drive(200)), path)
    assert found[:20] == list(range(20, 40))
    assert found[24:] == list(range(154, 160))  # four pictures to be convinced


def test_off_the_map_and_back() -> None:
    sequence, count = SequenceFilter(drive(200)), 200
    for row in range(10):
        there = place(sequence, answer(count, {row: RIGHT}))
    assert there.off_map < 0.05
    assert there.probability > 0.9
    for _ in range(6):
        away = place(sequence, answer(count, {}))
    assert away.off_map > 0.95
    assert away.probability < 0.05
    for row in range(100, 108):
        back = place(sequence, answer(count, {row: RIGHT + 2}))
    assert back.name == "p107"
    assert back.off_map < 0.1


def small(
    count: int, top_k: int, scale: float = 1.0, similar: bool = False, where: int | None = None
) -> list[Filtered]:
    """Follow a map of `count` pictures in order, with `top_k` candidates. With `where`, stay there for 60 pictures.

    Neighbours of the right picture score like it, but less. The search ranks by about the same numbers.
    """
    random, sequence, found = np.random.default_rng(count), SequenceFilter(drive(count)), []
    for step in range(count if where is None else 60):
        apart = np.abs(np.arange(count) - (step if where is None else where))
        scores = random.normal(-8, 2, count) + 12 * np.maximum(0, 1 - apart / 4)
        order = np.argsort(-scores - random.normal(0, 1, count))[:top_k]
        order = order[np.argsort(-scores[order])]
        matches = [
            Match(f"p{row}", None, 0.5 + 0.02 * scores[row], "descriptor")
            if similar
            else Match(f"p{row}", scale * scores[row], 0.5, "full")
            for row in order
        ]
        found.append(place(sequence, Recognition("q", None, tuple(matches), complete=True)))
    return found


SMALL = [(10, 10), (12, 5), (12, 12), (40, 5), (40, 10), (40, 40)]


@pytest.mark.parametrize("similar", [False, True])
@pytest.mark.parametrize(("count", "top_k"), SMALL)
def test_a_small_map_that_is_followed_is_stayed_on(count: int, top_k: int, similar: bool) -> None:
    found = small(count, top_k, similar=similar)
    assert max(there.off_map for there in found[3:]) < 0.5
    assert sum(abs(int(there.name[1:]) - row) <= 1 for row, there in enumerate(found)) >= 0.9 * count


@pytest.mark.parametrize("similar", [False, True])
@pytest.mark.parametrize(("count", "top_k"), SMALL)
def test_other_places_are_off_a_small_map(count: int, top_k: int, similar: bool) -> None:
    found = small(count, top_k, similar=similar, where=-100)
    assert np.mean([away.off_map for away in found[20:]]) > 0.7


@pytest.mark.parametrize(("count", "top_k"), SMALL)
def test_the_scale_of_scores_changes_nothing(count: int, top_k: int) -> None:
    first, second = small(count, top_k), small(count, top_k, scale=50.0)
    assert [there.off_map for there in first] == pytest.approx([there.off_map for there in second])
    assert [there.name for there in first] == [there.name for there in second]


def test_a_map_whose_pictures_are_all_one_place_is_followed() -> None:
    found = rows(SequenceFilter(drive(4)), [{row: RIGHT} for row in range(4)], 4)
    assert found == [0, 1, 2, 3]


def test_odometry_sets_the_distance() -> None:
    for moved, expected in ((1.0, "p51"), (6.0, "p56")):
        sequence = SequenceFilter(drive(200, metres=1.0))
        for x in range(5):
            place(sequence, answer(200, {46 + x: RIGHT}), Pose(x, 0, 0, frame="odom"))
        both = answer(200, {51: RIGHT, 56: RIGHT})
        assert place(sequence, both, Pose(4 + moved, 0, 0, frame="odom")).name == expected


def test_time_bounds_the_distance() -> None:
    for passed, expected in ((0.01, "p50"), (6.0, "p58")):
        sequence = SequenceFilter(drive(200, seconds=1.0))
        for row in range(46, 51):
            place(sequence, answer(200, {row: RIGHT}, float(row)))
        assert place(sequence, answer(200, {50: 1.0, 58: RIGHT}, 50 + passed)).name == expected


@pytest.mark.parametrize("passed", [1e4, -1.0])
def test_a_long_time_or_another_clock_restarts_the_filter(passed: float) -> None:
    sequence = SequenceFilter(drive(200, seconds=1.0))
    for row in range(46, 51):
        place(sequence, answer(200, {row: RIGHT}, float(row)))
    assert place(sequence, answer(200, {50: 1.0, 190: 1.5}, 50 + passed)).name == "p190"


def test_odometry_can_lead_off_the_map() -> None:
    sequence = SequenceFilter(drive(50, metres=1.0))
    for x in range(45, 50):
        there = place(sequence, answer(50, {x: RIGHT}), Pose(x, 0, 0, frame="odom"))
    assert there.off_map < 0.1
    away = place(sequence, answer(50, {49: 0.0}), Pose(62, 0, 0, frame="odom"))  # the likeliest end is 12 m behind
    assert away.off_map > there.off_map


def test_updates_equal_the_formula_over_all_pairs() -> None:
    """Two steps over a short drive, by the formula with every pair of pictures."""
    count = 30
    sequence = SequenceFilter(drive(count))
    apart = np.abs(np.arange(count)[:, None] - np.arange(count))
    weights = _kernel(apart.astype(float), 0.0, 2.0, 1.0)
    matrix = weights / weights.sum(axis=1, keepdims=True)
    belief = np.full(count, 1 / count)
    random, others = np.random.default_rng(1), np.zeros(0)
    for step in range(3):
        if step:
            belief = (1 - CHANGE) * (belief @ matrix) + CHANGE / count
        scores = random.normal(0, 2, count)
        best = scores.argmax()
        others, last = scores[np.abs(np.arange(count) - best) > 4], others
        wrong = np.concatenate([others, last])  # one answer has fewer than 30
        logs = np.log(6) * ((scores - wrong.mean()) / wrong.std(ddof=1) - 2.5)
        ratios = 0.05 + 0.95 * np.exp(logs - max(0.0, logs.max() - np.log(100)))
        belief = belief * ratios / (belief @ ratios)
        found = place(sequence, answer(count, dict(enumerate(scores))))
        assert found.name == f"p{belief.argmax()}"
        assert np.allclose(sequence._belief, belief)


@pytest.mark.parametrize(("least", "most"), [(0.0, 0.3), (0.0, 2.0), (3.0, 5.0), (4.0, 4.0)])
def test_the_kernel_is_a_uniform_step_smoothed_by_a_triangle(least: float, most: float) -> None:
    distances = np.arange(8.0)
    steps = np.linspace(least, most, 2001)
    smeared = np.maximum(0, 1 - np.abs(distances[:, None] - steps)).mean(axis=1)
    kernel = _kernel(distances, least, most, 1.0)
    assert np.allclose(kernel / kernel.sum(), smeared / smeared.sum(), atol=1e-3)


def test_the_belief_survives_a_change_of_the_map() -> None:
    before = drive(200)
    sequence = SequenceFilter(before)
    rows(sequence, [{row: RIGHT} for row in range(50, 55)])
    after = [record for record in before if record.name not in ("p10", "p53")] + drive(201)[200:]
    changed = sequence.for_records(after)
    assert np.isclose(changed._belief.sum(), 1)
    assert after[int(changed._belief.argmax())].name == "p54"
    given = Recognition("q", None, tuple(Match(record.name, WRONG, 0.5, "full") for record in after))
    assert place(changed, given).name in ("p54", "p55", "p52", "p56")
    with pytest.raises(ValueError, match=r"'p200' is no picture of the filter's map"):
        sequence.update(given)


def test_answers_with_an_error_change_nothing() -> None:
    sequence = SequenceFilter(drive(10))
    before = sequence._belief.copy()
    broken = Recognition("q", error="not a picture")
    assert sequence.update(broken) is broken
    assert (sequence._belief == before).all()
    with pytest.raises(ValueError, match="needs a map with pictures"):
        SequenceFilter([])


def test_extreme_scores_leave_valid_probabilities() -> None:
    sequence = SequenceFilter(drive(50))
    for scores in [{3: 1e3}] * 30 + [dict.fromkeys(range(50), -1e3)] * 300 + [{40: 1e3}] * 30:
        found = place(sequence, answer(50, scores))
        assert 0 <= found.off_map <= 1
        assert 0 <= found.probability <= 1 - found.off_map + 1e-9
    assert (found.name, found.off_map < 0.01) == ("p40", True)


def test_calling_the_filter_is_the_old_spelling() -> None:
    old, new = SequenceFilter(drive(10)), SequenceFilter(drive(10))
    given = answer(10, {3: RIGHT})
    with pytest.warns(DeprecationWarning, match=r"SequenceFilter\.update"):
        assert old(given) == new.update(given)
