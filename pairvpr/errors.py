"""Errors a user can cause. Each message says what was wrong, with which file, and what to do.

The commands print the message on one line and exit with 2; anything else that is raised is a bug.
"""


class PairVPRError(Exception):
    """Base of every error a user can cause."""


class CheckpointError(PairVPRError):
    """A checkpoint file is missing, damaged, unsafe, or does not describe a Pair-VPR network."""


class ExportError(PairVPRError):
    """An exported graph differs from the network by more than the tolerance, or cannot be written."""


class BundleError(PairVPRError):
    """A model bundle is missing, damaged, of a newer format, or not the one that is needed."""


class MapError(PairVPRError):
    """A map is missing, damaged, locked, of a newer format, or made with another model."""


class SourceError(PairVPRError):
    """A picture, folder, video, camera, stream or pose file cannot be read."""


class EngineError(PairVPRError):
    """An inference engine or device was asked for and cannot be had."""


class ServiceError(PairVPRError):
    """The service cannot listen at the address that it was given."""


class TrainingError(PairVPRError):
    """A training run cannot start, go on, or be resumed: its configuration, its machine, or its numbers."""


def one_line(what: object, limit: int = 300) -> str:
    """What an exception of other code says, on one line of at most so many characters, all of them printable.

    Such messages quote files; what is in a damaged one must not reach a terminal as it is.
    """
    text = " ".join(str(what).split()) or type(what).__name__
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
