"""Draw docs/images/overview.jpg: a query at night, its match, and the map from above, of the demo's town.

python docs/images/overview.py
"""

from __future__ import annotations

import importlib.resources
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import pairvpr
from pairvpr.runtime import Recognition, Record

TOWN = Path(str(importlib.resources.files("pairvpr.demo"))) / "town"
QUERY = TOWN / "queries" / "night" / "@2.90@17.06@86@night@4@.jpg"
OUT = Path(__file__).with_suffix(".jpg")
PANEL, GAP, TITLE = (384, 288), 24, 44
INK, GREY, RIGHT = (30, 41, 59), (148, 163, 184), (13, 148, 136)
STREET, UP = 36, 3.0  # pixels between two streets, which are a kilometre apart, and for a metre along them


def main() -> None:
    """Build the map, ask it, draw the three panels side by side."""
    with tempfile.TemporaryDirectory() as folder:
        pairvpr.build_map(TOWN / "database", Path(folder) / "map")
        with pairvpr.PlaceRecognizer.open(Path(folder) / "map") as recognizer:
            answer, records = recognizer.recognize(QUERY), recognizer.map.records
    best = answer.best
    panels = {
        "query: a picture taken at night": Image.open(QUERY).resize(PANEL, Image.Resampling.LANCZOS),
        f"match: pair score {best.score:.1f}": Image.open(TOWN / "database" / best.name).resize(
            PANEL, Image.Resampling.LANCZOS
        ),
        f"map: {len(records)} pictures from above": plot(records, answer),
    }
    sheet = Image.new("RGB", (3 * PANEL[0] + 4 * GAP, PANEL[1] + TITLE + GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=20)
    for i, (title, panel) in enumerate(panels.items()):
        left = GAP + i * (PANEL[0] + GAP)
        pen.text((left, 12), title, fill=INK, font=font)
        sheet.paste(panel, (left, TITLE))
        pen.rectangle((left - 1, TITLE - 1, left + PANEL[0], TITLE + PANEL[1]), outline=GREY)
    sheet.save(OUT, quality=85)


def plot(records: Sequence[Record], answer: Recognition) -> Image.Image:
    """Draw the places of the map as dots, and the best match larger."""
    image = Image.new("RGB", PANEL, "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(size=16)
    for street in range(10):
        x = 30 + street * STREET
        pen.line((x, 20, x, PANEL[1] - 20), fill=(226, 232, 240), width=10)
    for record in records:
        east, north = record.pose.x, record.pose.y
        x, y = 30 + round(east / 1000) * STREET, PANEL[1] - 10 - north * UP
        if record.name == answer.best.name:
            pen.ellipse((x - 10, y - 10, x + 10, y + 10), fill=RIGHT)
            pen.text((x - 20, y + 14), "you are here", fill=RIGHT, font=font)
        else:
            pen.ellipse((x - 5, y - 5, x + 5, y + 5), fill=GREY)
    return image


if __name__ == "__main__":
    main()
