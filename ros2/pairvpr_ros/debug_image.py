"""A picture of the image that was answered beside its best match."""

from __future__ import annotations

import array
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageOps

from pairvpr.errors import SourceError
from pairvpr.runtime.answer import Recognition
from pairvpr.runtime.image import load_picture
from pairvpr.runtime.map import Record
from pairvpr.runtime.outputs.ros_messages import Message, compose_header
from pairvpr.runtime.sources.base import Header
from pairvpr.viewing.thumbnails import picture_file

SIZE = (320, 240)  # pixels of either picture
LINE = 16  # pixels of a line of text
COLOURS = {True: "green", False: "red", None: "grey"}


def draw(query: Image.Image, answer: Recognition, records: Sequence[Record]) -> Image.Image:
    """Return the query left and the best match's picture right, with names, score and reason above them.

    The right side stays empty if the match's picture is not at hand as a file. The frame is green for accepted answers,
    red for others and grey for those that cannot be judged.
    """
    match = answer.matches[0] if answer.matches else None
    sheet = Image.new("RGB", (2 * SIZE[0], SIZE[1] + 2 * LINE), "black")
    colour = COLOURS[answer.accepted]
    found = None if match is None else _match_picture(match.name, records)
    for x, picture in ((0, query), (SIZE[0], found)):
        if picture is not None:
            fitted = ImageOps.contain(picture, (SIZE[0] - 4, SIZE[1] - 4))
            sheet.paste(ImageOps.expand(fitted, 2, colour), (x, 2 * LINE))
    text = ImageDraw.Draw(sheet)
    text.text((2, 2), _printable(f"{answer.query}: {answer.reason}"), "white")
    if match is not None:
        score = "" if match.score is None else f", score {match.score:.2f}"
        text.text((2, LINE), _printable(f"{match.name}{score}, similarity {match.similarity:.3f}"), "white")
    return sheet


def message(header: Header, picture: Image.Image) -> Message:
    """Return an RGB picture as a sensor_msgs/Image."""
    fields = {
        "header": compose_header(header),
        "height": picture.height,
        "width": picture.width,
        "encoding": "rgb8",
        "is_bigendian": 0,
        "step": 3 * picture.width,
        "data": array.array("B", picture.tobytes()),
    }
    return Message("sensor_msgs/msg/Image", fields)


def _match_picture(name: str, records: Sequence[Record]) -> Image.Image | None:
    record = next((each for each in records if each.name == name), None)
    file = None if record is None else picture_file(record)
    if file is None:
        return None
    try:
        return load_picture(file)
    except SourceError:  # changed or removed since the map was made
        return None


def _printable(text: str) -> str:
    """Return the text in characters that the built-in font has."""
    return text.encode("ascii", "replace").decode()
