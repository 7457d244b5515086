"""Messages of answers against the definitions of Humble and Jazzy: names, types, constants, and what they say."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="message definitions come with the extra pairvpr[bags]")

from pairvpr.errors import SourceError
from pairvpr.runtime import Gps, Match, Pose, Recognition
from pairvpr.runtime.outputs.covariance import Floor
from pairvpr.runtime.outputs.ros_messages import (
    CANDIDATES,
    DIAGNOSTICS,
    FIX,
    POSE,
    TOPICS,
    AnswerMessages,
    Message,
    build,
    header_of_frame,
)
from pairvpr.runtime.sources.base import Frame, Header
from tests.runtime.outputs.ros_contract import DISTRIBUTIONS, acceptance, check

STAMP = 1_700_000_000_123_456_789
HEADER = Header(STAMP, "camera")
PLACES = [Pose(1, 2, 3, (0, 0, 0, 1)), Pose(2, 2, 3, (0, 0, 1, 0)), Pose(7, 7, 7, None, "odom"), Gps(47, 8)]


def recognition(places: list[Any], accepted: bool | None = True, **more: Any) -> Recognition:
    matches = tuple(
        Match(f"m{i}", None if i == 2 else 9.0 - i, 0.5, "descriptor" if i == 2 else "full", place)
        for i, place in enumerate(places)
    )
    calibration = None if accepted is None else acceptance()
    confidence = None if accepted is None else 0.75
    timings = {"encode": 4.0, "total": 12.5}
    answer = {"matches": matches, "compared": 4, "complete": True, "timings": timings, "reason": "why"}
    return Recognition("q", accepted=accepted, confidence=confidence, acceptance=calibration, **{**answer, **more})


def said(answer: Recognition, header: Header = HEADER, matches: int = 10, **how: Any) -> dict[str, Message]:
    return dict(AnswerMessages("drive.mcap", matches, **how).compose(header, answer))


UNREAD = Recognition("bad\udcff.png", reason="no picture", error="bad\udcff.png is damaged")
ANSWERS = {
    "accepted": (recognition(PLACES), {DIAGNOSTICS, CANDIDATES, POSE}),
    "of unknown orientation": (recognition(PLACES[2:]), {DIAGNOSTICS, CANDIDATES, POSE}),
    "gps": (recognition(PLACES[3:]), {DIAGNOSTICS, FIX}),
    "gps with altitude": (recognition([Gps(47, 8, 400)]), {DIAGNOSTICS, FIX}),
    "rejected": (recognition(PLACES, False), {DIAGNOSTICS, CANDIDATES}),
    "not calibrated": (recognition(PLACES, None), {DIAGNOSTICS, CANDIDATES}),
    "without places": (recognition([None]), {DIAGNOSTICS}),
    "unread": (UNREAD, {DIAGNOSTICS}),
}


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize(("answer", "topics"), ANSWERS.values(), ids=ANSWERS)
def test_messages_match_the_definitions_of_each_distribution(
    distribution: str, answer: Recognition, topics: set[str]
) -> None:
    store = DISTRIBUTIONS[distribution]
    messages = said(answer)
    assert set(messages) == topics
    for topic, message in messages.items():
        assert message.type == TOPICS[topic]
        check(message, store)
        built = build(message, store.types.__getitem__)
        again = store.deserialize_cdr(store.serialize_cdr(built, message.type), message.type)
        stamp = again.header.stamp
        assert (stamp.sec * 10**9 + stamp.nanosec, again.__msgtype__) == (STAMP, TOPICS[topic])


def test_the_check_of_definitions_finds_faults() -> None:
    store, good = DISTRIBUTIONS["humble"], said(recognition(PLACES))[POSE]
    for wrong in ({**good.fields, "extra": 1}, {"header": good.fields["header"]}, {**good.fields, "pose": 1.0}):
        with pytest.raises((AssertionError, AttributeError)):
            check(Message(good.type, wrong), store)


def test_an_accepted_answer_has_a_pose() -> None:
    messages = said(recognition(PLACES), floor=Floor(0.5, 0.1))
    pose = messages[POSE].fields
    assert pose["header"].fields["frame_id"] == "map"
    assert pose["pose"].fields["pose"] == messages[CANDIDATES].fields["poses"][0]
    position = pose["pose"].fields["pose"].fields["position"].fields
    assert position == {"x": 1.0, "y": 2.0, "z": 3.0}
    covariance = pose["pose"].fields["covariance"].reshape(6, 6)
    assert covariance[0, 0] == pytest.approx(0.25 + 1 / 2)
    assert covariance[5, 5] == pytest.approx(0.01 + math.pi**2 / 2)
    assert len(messages[CANDIDATES].fields["poses"]) == 2  # in the best one's frame
    (status,) = messages[DIAGNOSTICS].fields["status"]
    assert (status.fields["level"], status.fields["hardware_id"]) == ("OK", "drive.mcap")
    assert messages[DIAGNOSTICS].fields["header"].fields["frame_id"] == "camera"
    values = {each.fields["key"]: each.fields["value"] for each in status.fields["values"]}
    assert (values["query"], values["accepted"], values["confidence"]) == ("q", "true", "0.750000")
    assert (values["candidate_1.name"], values["candidate_1.score"], values["candidate_1.stage"]) == (
        "m0", "9.000000", "full"
    )  # fmt: skip
    assert "candidate_3.score" not in values  # not compared
    assert values["candidate_4.place"] == "(47.000000, 8.000000) in wgs84"
    assert (values["localization_execution_time"], values["encode_ms"]) == ("0.012500", "4.00")


def test_diagnostics_have_level_and_reason() -> None:
    for answer, level, text in (
        (recognition(PLACES, False), "WARN", "why"),
        (recognition(PLACES, True, warning="other scores"), "WARN", "other scores"),
        (recognition(PLACES, False, warning="other scores"), "WARN", "why"),
        (recognition(PLACES, None), "WARN", "why"),
        (UNREAD, "ERROR", "bad\\udcff.png is damaged"),
    ):
        (status,) = said(answer)[DIAGNOSTICS].fields["status"]
        assert (status.fields["level"], status.fields["message"]) == (level, text)


def test_a_gps_position_becomes_a_fix() -> None:
    fix = said(recognition([Gps(47, 8)]), floor=Floor(3.0))[FIX].fields
    assert (fix["latitude"], fix["longitude"], math.isnan(fix["altitude"])) == (47.0, 8.0, True)
    assert np.array_equal(fix["position_covariance"], 9 * np.eye(3).ravel())
    assert fix["header"].fields["frame_id"] == "camera"


def test_matches_are_limited_and_frames_renamed() -> None:
    messages = said(recognition(PLACES), matches=1, frames={"map": "site", "odom": "never"})
    assert len(messages[CANDIDATES].fields["poses"]) == 1
    assert {messages[topic].fields["header"].fields["frame_id"] for topic in (POSE, CANDIDATES)} == {"site"}
    (status,) = messages[DIAGNOSTICS].fields["status"]
    assert not any("candidate_2" in each.fields["key"] for each in status.fields["values"])


@pytest.mark.parametrize("stamp", [-1, 2**31 * 10**9])
def test_stamps_out_of_range_are_refused(stamp: int) -> None:
    with pytest.raises(SourceError, match=r"^q: ROS messages cannot hold its time stamp, .* 1970 to 2038; correct"):
        said(recognition(PLACES), Header(stamp, ""))
    said(recognition(PLACES), Header(2**31 * 10**9 - 1, ""))


def test_headers_of_frames() -> None:
    assert header_of_frame(Frame("f", 1.7, None, "", 0.0, header=HEADER)) == HEADER
    assert header_of_frame(Frame("f", 1.5, None, "", 0.0)) == Header(1_500_000_000, "")
    assert header_of_frame(Frame("f", None, None, "", 0.0)) == Header(0, "")
