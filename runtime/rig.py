"""Make one answer of a robot from the answers of its cameras at one moment."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pairvpr.runtime.answer import Recognition
from pairvpr.runtime.calibrated.acceptance import METRES
from pairvpr.runtime.geometry.geodesy import distance_between
from pairvpr.runtime.geometry.poses import Pose
from pairvpr.runtime.geometry.transforms import Transform, move_base
from pairvpr.runtime.image import load_picture
from pairvpr.runtime.model import Picture
from pairvpr.runtime.prior import Prior
from pairvpr.runtime.sources.base import Frame
from pairvpr.runtime.stopwatch import Stopwatch


def fuse(answers: Sequence[Recognition]) -> Recognition:
    """Return the answer that speaks for the robot, with `camera` and `cameras` filled in.

    This is the accepted answer of highest confidence, unless accepted answers contradict each other. Two accepted
    answers do if their places lie further apart than the sum of their calibrated radii. Then no answer of the moment is
    accepted. Without an accepted answer, the answer of the highest score is taken, or of the highest similarity if the
    model has no pair classifier. Timings are sums over the cameras.

    answers: of the cameras, at least one, with poses of the robot's base.
    """
    accepted = [answer for answer in answers if answer.accepted]
    for first, second in itertools.combinations(accepted, 2):
        if _contradict(first, second):
            reason = f"cameras contradict each other: {first.query} and {second.query}"
            answers = [replace(each, accepted=False, reason=reason) if each.accepted else each for each in answers]
            break

    def rank(index: int) -> tuple[bool, float, float]:
        answer = answers[index]
        value = answer.matches[0].value(answer.measure) if answer.matches else None
        return bool(answer.accepted), answer.confidence or 0.0, float("-inf") if value is None else value

    chosen = max(range(len(answers)), key=rank)
    steps = dict.fromkeys(step for answer in answers for step in answer.timings)
    timings = {step: sum(answer.timings.get(step, 0.0) for answer in answers) for step in steps}
    return replace(answers[chosen], camera=chosen, cameras=tuple(answers), timings=timings)


def make_frame(pictures: Sequence[Picture | None], mounts: Sequence[Transform] = ()) -> Frame:
    """Make the frame of a moment from the pictures of its cameras; see `PlaceRecognizer.recognize_rig`.

    Raises ValueError for no pictures and for another number of mounts, and SourceError for an unreadable picture.
    """
    if not pictures or len(mounts) not in (0, len(pictures)):
        raise ValueError(f"{len(pictures)} pictures with {len(mounts)} mounts: give one of each for each camera")
    names = _name_cameras(pictures)
    first, *others = itertools.starmap(_read, itertools.zip_longest(names, pictures, mounts))
    return replace(first, beside=tuple(others))


def _name_cameras(pictures: Sequence[Picture | None]) -> list[str]:
    """Return the names of files, or their paths if two files have the same name, and of cameras without a file."""
    files = [Path(each) if isinstance(each, str | Path) else None for each in pictures]
    named = [file.name for file in files if file is not None]
    alike = len(set(named)) < len(named)
    return [
        f"camera {number}" if file is None else file.as_posix() if alike else file.name
        for number, file in enumerate(files)
    ]


def _read(name: str, picture: Picture | None, mount: Transform | None) -> Frame:
    clock = Stopwatch()
    if picture is None:
        return Frame(name, None, None, f"{name} has no picture at this moment", 0.0, mount=mount)
    decoded = load_picture(picture)
    return Frame(name, None, decoded, None, clock.elapsed(), mount=mount)


def answer_cameras(
    frame: Frame,
    prior: Prior | None,
    budget_ms: float | None,
    answer: Callable[[Frame, Prior | None, float | None], Recognition],
) -> Recognition:
    """Answer the cameras of a frame one after the other, and fuse their answers.

    prior: of the robot's base. A camera whose mount is known gets the pose of a base whose first camera sees its view.
    budget_ms: milliseconds for all of them. A camera gets an equal share of the rest. None for no limit.
    answer: answers one camera's frame with a prior, within milliseconds.
    """
    left, answers = budget_ms, []
    for number, each in enumerate(frame.cameras):
        share = None if left is None else max(left, 0.0) / (len(frame.cameras) - number)
        mounts = None if each.mount is None or frame.mount is None else (each.mount, frame.mount)
        found = answer(each, prior if mounts is None else _from_base(prior, *mounts), share)
        left = None if left is None else left - found.timings.get("total", 0.0)
        if mounts is not None:
            found = to_base(found, *mounts)
        answers.append(found)
    return fuse(answers)


def to_base(answer: Recognition, camera: Transform, map_camera: Transform) -> Recognition:
    """Return a camera's answer with poses of the robot's base.

    camera: pose of this camera in the base. map_camera: pose of the camera that took the map's pictures.
    """
    matches = tuple(
        replace(match, pose=move_base(match.pose, camera, map_camera)) if isinstance(match.pose, Pose) else match
        for match in answer.matches
    )
    return replace(answer, matches=matches)


def _from_base(prior: Prior | None, camera: Transform, map_camera: Transform) -> Prior | None:
    """Return the prior of a camera's view from the one of the robot's base: the reverse of `to_base`."""
    if prior is None or not isinstance(prior.near, Pose):
        return prior
    return replace(prior, near=move_base(prior.near, map_camera, camera))


def _contradict(first: Recognition, second: Recognition) -> bool:
    one, other = first.best.pose, second.best.pose
    limits = first.acceptance, second.acceptance
    if one is None or other is None or any(each is None or each.unit != METRES for each in limits):
        return False
    return distance_between(one, other) > sum(each.radius for each in limits if each is not None)
