"""What can be chosen of a source."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SourceOptions:
    """What to read of a source.

    topic, pose_topic: of a bag; None where there is one to choose from.
    """

    topic: str | None = None
    pose_topic: str | None = None


DEFAULT = SourceOptions()
