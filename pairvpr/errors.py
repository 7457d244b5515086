"""Errors that a user can cause. Each message names the file, the fault and the remedy.

Commands print the message on one line and exit with 2. Any other exception is a bug.
"""


class PairVPRError(Exception):
    """Base of every error a user can cause."""


class CheckpointError(PairVPRError):
    """A checkpoint is missing, damaged, unsafe, or not one of a Pair-VPR network."""


class ExportError(PairVPRError):
    """An exported graph differs from the network by more than the tolerance, or cannot be written."""


class BundleError(PairVPRError):
    """A model bundle is missing, damaged, of a newer format, or of another model than required."""


class MapError(PairVPRError):
    """A map is missing, damaged, locked, of a newer format, or made with another model."""


class SourceError(PairVPRError):
    """A picture, folder, video, camera, stream or pose file cannot be read."""


class EngineError(PairVPRError):
    """An inference engine or device is not available, or its options are invalid."""


class ServiceError(PairVPRError):
    """The service cannot listen at its address, or its library is missing."""


class TrainingError(PairVPRError):
    """A training run cannot start, go on or be resumed."""


def one_line(message: object, limit: int = 300) -> str:
    """Return the message of an exception from other code on one line of at most `limit` printable characters.

    Such messages quote files. The bytes of a damaged file must not reach a terminal.
    """
    text = " ".join(str(message).split()) or type(message).__name__
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
