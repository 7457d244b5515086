"""Write descriptors as hloc reads them. The only module that imports h5py."""

from __future__ import annotations

from pathlib import Path

from pairvpr.errors import MapError, one_line
from pairvpr.files import write_atomically
from pairvpr.runtime.map import Map

try:
    import h5py
except ImportError as error:
    raise MapError(f'a file of descriptors needs h5py ({error}); run pip install "pairvpr[hloc]"') from error

KEY = "global_descriptor"
"""Name of the data set in the group of a picture, as in hloc's `pairs_from_retrieval`."""


def write_descriptors(map_: Map, out: Path) -> None:
    """Write the descriptors of a map into an HDF5 file, which replaces an earlier one when it is complete.

    The file has a group for each picture, named after it, with the data set `global_descriptor` (G,) float32. Folders
    in a name are groups as well.
    Raises MapError for a name that HDF5 cannot hold, and if the file cannot be written.
    """
    try:
        with write_atomically(out) as partial, h5py.File(partial, "w") as file:
            for record, descriptor in zip(map_.records, map_.descriptors, strict=True):
                try:
                    file.create_dataset(f"{record.name}/{KEY}", data=descriptor)
                except (ValueError, TypeError) as error:
                    raise MapError(
                        f"{map_.path}: the name {record.name!r} cannot stand in an HDF5 file ({one_line(error)}); "
                        "remove the picture or add it under another name"
                    ) from error
    except OSError as error:
        raise MapError(f"{out}: cannot be written ({one_line(error)}); choose another --out") from error
