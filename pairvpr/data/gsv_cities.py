"""GSV-Cities (Ali-bey et al., Neurocomputing 2022) as published: a CSV file and a folder of pictures for each city.

    Dataframes/<city>.csv      place_id,year,month,northdeg,city_id,lat,lon,panoid
    Images/<city_id>/<city_id>_<place_id>_<year>_<month>_<northdeg>_<lat>_<lon>_<panoid>.jpg

Numbers in names have 7, 4, 2 and 3 digits, latitude and longitude stand as in the CSV file, as in
`dataloaders/train/GSVCitiesDataset.py` of github.com/amaralibey/gsv-cities.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import cos, radians
from pathlib import Path

from pairvpr.data.index import IndexedPlaces, Row, open_index
from pairvpr.data.tables import read_table, start_of_month
from pairvpr.errors import SourceError
from pairvpr.runtime.geometry.geodesy import EARTH_RADIUS

COLUMNS = ("place_id", "year", "month", "northdeg", "city_id", "lat", "lon", "panoid")
REMEDY = "unpack GSV-Cities' Dataframes again"


class GsvCities(IndexedPlaces):
    """The places of GSV-Cities, in groups by city; a place's name is `<city>/<place_id>`, as ids recur between cities.

    Positions are metres on a plane of the city's own: equirectangular, true to scale at the latitude of its first
    picture, good to about 1 % across a city. Headings are `northdeg`, of which some exceed 360, brought to 0 to 360.
    Times are the starts of months.
    """

    def __init__(self, root: str, cities: Sequence[str] = (), min_pictures: int = 4, index: str = "") -> None:
        """`root`: the folder that holds Dataframes and Images. `cities`: those to take, none for all.

        Places of fewer than `min_pictures` pictures are left out (4 is the recipe's). `index`: where to keep the index.
        Raises SourceError for another layout, an unknown city or a CSV file that is not as published.
        """
        folder = Path(root) / "Dataframes"
        known = sorted(file.stem for file in folder.glob("*.csv"))
        if not known:
            raise SourceError(f"{folder}: holds no <city>.csv; give the folder that holds Dataframes and Images")
        for city in cities:
            if city not in known:
                raise SourceError(f"{folder}/{city}.csv: is missing; give cities as a list out of {', '.join(known)}")
        files = [folder / f"{city}.csv" for city in sorted(set(cities) or known)]
        rows = (row for file in files for row in _rows(file))
        super().__init__(
            Path(root),
            open_index("gsv-cities", Path(root), sources=files, rows=rows, min_pictures=min_pictures, file=index),
        )


def _rows(file: Path) -> Iterator[Row]:
    scale = None
    for where, values in read_table(file, COLUMNS, REMEDY):
        try:
            row, latitude, longitude = _row(file.stem, values)
        except (ValueError, OverflowError) as error:
            raise SourceError(f"{where}: no row of GSV-Cities ({error}); {REMEDY}") from error
        scale = cos(radians(latitude)) if scale is None else scale
        yield row._replace(east=EARTH_RADIUS * scale * radians(longitude), north=EARTH_RADIUS * radians(latitude))


def _row(area: str, values: Sequence[str]) -> tuple[Row, float, float]:
    """A picture without its position, its latitude and longitude; raises ValueError or OverflowError."""
    place, year, month, northdeg = (int(text) for text in values[:4])
    city, lat, lon, panoid = values[4:]
    latitude, longitude = float(lat), float(lon)
    if not (0 <= place < 10**7 and abs(latitude) <= 90 and abs(longitude) <= 180):
        raise ValueError(f"place_id {place} at {lat}, {lon}")
    if not city or not panoid or "/" in city + panoid:
        raise ValueError(f"city_id {city!r} with panoid {panoid!r}")
    name = f"{city}_{place:07d}_{year:04d}_{month:02d}_{northdeg:03d}_{lat}_{lon}_{panoid}.jpg"
    row = Row(area, place, f"Images/{city}/{name}", heading=float(northdeg % 360), time=start_of_month(year, month))
    return row, latitude, longitude
