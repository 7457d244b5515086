"""Read GSV-Cities (Ali-bey et al., Neurocomputing 2022) in its published layout.

    Dataframes/<city>.csv      place_id,year,month,northdeg,city_id,lat,lon,panoid
    Images/<city_id>/<city_id>_<place_id>_<year>_<month>_<northdeg>_<lat>_<lon>_<panoid>.jpg

In file names, place_id, year, month and northdeg have 7, 4, 2 and 3 digits. Latitude and longitude are written as in
the CSV file. Source: `dataloaders/train/GSVCitiesDataset.py` of github.com/amaralibey/gsv-cities.
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
    """The places of GSV-Cities, grouped by city.

    A place's name is `<city>/<place_id>`, because ids recur between cities.
    Positions are metres on an equirectangular plane of each city. It is true to scale at the latitude of the city's
    first picture, and accurate to about 1 % across a city.
    Headings are `northdeg`, reduced to 0 to 360 degrees because some exceed 360. Times are the starts of months.
    """

    def __init__(self, root: str, cities: Sequence[str] = (), min_pictures: int = 4, index: str = "") -> None:
        """Open the data set, and index it if no index fits.

        root: the folder that holds Dataframes and Images.
        cities: names of the cities to take, () for all.
        min_pictures: places with fewer pictures are left out (recipe: 4).
        index: file of the index, "" for the user's cache folder.
        Raises SourceError for another layout, an unknown city, or a CSV file that differs from the published format.
        """
        folder = Path(root) / "Dataframes"
        known = sorted(file.stem for file in folder.glob("*.csv"))
        if not known:
            raise SourceError(
                f"{folder}: holds no <city>.csv; give as root the folder that holds Dataframes and Images"
            )
        for city in cities:
            if city not in known:
                raise SourceError(f"{folder}/{city}.csv: missing; give cities as a list out of {', '.join(known)}")
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
            raise SourceError(f"{where}: not a row of GSV-Cities ({error}); {REMEDY}") from error
        scale = cos(radians(latitude)) if scale is None else scale
        yield row._replace(east=EARTH_RADIUS * scale * radians(longitude), north=EARTH_RADIUS * radians(latitude))


def _row(area: str, values: Sequence[str]) -> tuple[Row, float, float]:
    """Return a picture without its position, and its latitude and longitude.

    Raises ValueError or OverflowError for invalid values.
    """
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
