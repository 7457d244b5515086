"""Read Google Landmarks v2 (Weyand et al., CVPR 2020), the clean training set, in its published layout.

    train_clean.csv            landmark_id,images
    train/a/b/c/<id>.jpg

`images` holds ids of 16 hexadecimal digits, separated by spaces. a, b and c are the first three digits of an id
(github.com/cvdfoundation/google-landmark).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pairvpr.data.index import IndexedPlaces, Row, open_index
from pairvpr.data.tables import read_table
from pairvpr.errors import SourceError

COLUMNS = ("landmark_id", "images")
REMEDY = "download train_clean.csv again"


class GoogleLandmarks(IndexedPlaces):
    """The landmarks of Google Landmarks v2 clean, all in one group.

    Positions, headings and times of the pictures are unknown.
    """

    def __init__(self, root: str, min_pictures: int = 4, index: str = "") -> None:
        """Open the data set, and index it if no index fits.

        root: the folder that holds train_clean.csv and train.
        min_pictures: landmarks with fewer pictures are left out (recipe: 4).
        index: file of the index, "" for the user's cache folder.
        Raises SourceError for another layout, or for a CSV file that differs from the published format.
        """
        file = Path(root) / "train_clean.csv"
        if not file.is_file():
            raise SourceError(f"{file}: missing; give as root the folder that holds train_clean.csv and train")
        opened = open_index(
            "google-landmarks",
            Path(root),
            sources=[file],
            rows=_rows(file),
            min_pictures=min_pictures,
            file=index,
        )
        super().__init__(Path(root), opened)


def _rows(file: Path) -> Iterator[Row]:
    for where, (landmark, images) in read_table(file, COLUMNS, REMEDY):
        if not re.fullmatch("[0-9]{1,18}", landmark):
            raise SourceError(f"{where}: {landmark!r} is not a landmark_id; {REMEDY}")
        for name in images.split():
            if not re.fullmatch("[0-9a-f]{16}", name):
                raise SourceError(f"{where}: {name!r} is not a picture id of 16 hexadecimal digits; {REMEDY}")
            yield Row("", int(landmark), f"train/{name[0]}/{name[1]}/{name[2]}/{name}.jpg")
