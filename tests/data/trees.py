"""Make small data sets with the names and layout of the published ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

# Rows of London.csv and Boston.csv as they are published, and their like.
LONDON = """place_id,year,month,northdeg,city_id,lat,lon,panoid
130,2018,4,15,London,51.4861,-0.0895151,6jFjb3wGyCkcBfq4k559ag
6793,2016,7,2,London,51.5187,-0.160767,Ff3OtsS4ihGSPdPjtlpEUA
130,2008,10,406,London,51.486,-0.0895,R2vU9sk2livh_YbhySFfA-g
6793,2015,6,97,London,51.51870,-0.16080,zFbmpj8jt8natu7IPYrh_w
130,2012,12,289,London,51.48605,-0.08955,0t-xcCsazIGAjdNC96IF0w
6793,2008,9,348,London,51.5187,-0.1607,W3KMPec54NBqLMzmZmGv-Q
9292,2018,1,289,London,51.531,-0.12702,9t-xcCsazIGAjdNC96IF0w
130,2019,5,0,London,51.4862,-0.0896,2MyXGeslIiua6cMcDQx9Vg
6793,2011,3,5,London,51.5188,-0.1608,NWx_VsRKGwOQnvV8Gllyog
"""
BOSTON = """place_id,year,month,northdeg,city_id,lat,lon,panoid
130,2015,6,121,Boston,42.37599246498178,-71.06902130162344,2MyXGeslIiua6cMcDQx9Vg
130,2018,9,117,Boston,42.37602467319898,-71.0689666533628,NWx_VsRKGwOQnvV8Gllyog
130,2017,9,117,Boston,42.37602467319898,-71.0689666533628,AWx_VsRKGwOQnvV8Gllyog
130,2016,9,117,Boston,42.37602467319898,-71.0689666533628,BWx_VsRKGwOQnvV8Gllyog
"""
LONDON_130 = [
    "London_0000130_2008_10_406_51.486_-0.0895_R2vU9sk2livh_YbhySFfA-g.jpg",
    "London_0000130_2012_12_289_51.48605_-0.08955_0t-xcCsazIGAjdNC96IF0w.jpg",
    "London_0000130_2018_04_015_51.4861_-0.0895151_6jFjb3wGyCkcBfq4k559ag.jpg",
    "London_0000130_2019_05_000_51.4862_-0.0896_2MyXGeslIiua6cMcDQx9Vg.jpg",
]

LANDMARKS = """landmark_id,images
1,17660ef415d37059 92b6290d571448f6 cd41bf948edc0340 fb09f1e98c6d2f70
7,25c9dfc7ea69838d 28b13f94a6f1f3c1
9,0a1b2c3d4e5f6071 1a1b2c3d4e5f6071 2a1b2c3d4e5f6071 3a1b2c3d4e5f6071 4a1b2c3d4e5f6071
"""

CORNER = (551850.0, 4176495.0)  # of a cell of 15 m in San Francisco


def gsv_cities(root: Path, pictures: bool = True) -> Path:
    """London with places 130 and 6793 of four pictures and 9292 of one, Boston with place 130 of four."""
    for city, text in (("London", LONDON), ("Boston", BOSTON)):
        (root / "Dataframes").mkdir(parents=True, exist_ok=True)
        (root / f"Dataframes/{city}.csv").write_text(text)
    if pictures:
        for name in LONDON_130:
            plain(root / "Images/London" / name, len(name))
    return root


def google_landmarks(root: Path) -> Path:
    """Landmarks 1 and 9, and 7 of two pictures only."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "train_clean.csv").write_text(LANDMARKS)
    for name in LANDMARKS.splitlines()[1].split(",")[1].split():
        plain(root / f"train/{name[0]}/{name[1]}/{name[2]}/{name}.jpg", int(name[:2], 16))
    return root


def panorama_name(east: float, north: float, heading: int, stamp: str = "201409", pano: str = "x") -> str:
    return f"@{east:010.2f}@{north:.2f}@10@S@037.73439@-122.41152@{pano:_<22}@@{heading}@@@@{stamp}@@.jpg"


def sf_xl(root: Path, spots: list[tuple[float, float, int]], shape: tuple[int, int] = (64, 416)) -> Path:
    """Panoramas at (metres east, north of CORNER, heading) whose colours tell directions: see `direction`."""
    for number, (east, north, heading) in enumerate(spots):
        east, north = CORNER[0] + east, CORNER[1] + north
        file = root / f"37.7{number % 2}" / panorama_name(east, north, heading, pano=f"pano-{number}_")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(painted(shape, heading)).save(file, quality=98, subsampling=0)
    return root


def painted(shape: tuple[int, int], heading: float) -> np.ndarray:
    """A panorama in which red and green are sine and cosine of the azimuth, and blue is the elevation."""
    height, width = shape
    above = height / 2 if height * 2 == width else height * 5 / 8
    azimuth = np.radians(heading + ((np.arange(width) + 0.5) / width - 0.5) * 360)
    elevation = (above - np.arange(height) - 0.5) / width * 360
    colours = np.empty((height, width, 3))
    colours[..., 0] = 127.5 + 127.5 * np.sin(azimuth)
    colours[..., 1] = 127.5 + 127.5 * np.cos(azimuth)
    colours[..., 2] = (127.5 + elevation * 127.5 / 90)[:, None]
    return np.rint(colours).astype(np.uint8)


def direction(colour: np.ndarray) -> tuple[float, float]:
    """Azimuth from north, clockwise, and elevation, in degrees, of a colour of `painted`."""
    red, green, blue = (float(value) - 127.5 for value in colour)
    return float(np.degrees(np.arctan2(red, green))) % 360, blue * 90 / 127.5


def plain(file: Path, grey: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), (grey % 256,) * 3).save(file)
