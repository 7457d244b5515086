"""The properties of a whole map, as the catalog stores them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pairvpr.errors import MapError
from pairvpr.runtime.map.list_file import ListEntry
from pairvpr.runtime.map.records import checksum
from pairvpr.runtime.map.tokens import NO_TOKENS, TokenFormat
from pairvpr.validation import check_int, check_keys, check_list, check_mapping, check_text, parse_json

FORMAT = 3
"""Format number of a map with its records in blocks."""
ROW_FORMATS = {"float16": 1, "int8": 2}
"""Format numbers by token type of maps with a row for each record. The first commit to one makes it FORMAT."""

DIGEST = "model_digest"
"""Key in a map's settings: the digest that its bundle must have."""
INDEX = "index_precision"
"""Key in a map's settings: the precision of the search, one of PRECISIONS. Without it, float32."""
PRECISIONS = ("float32", "float16")
LISTS = "lists"
"""Key in a map's settings: the entry of its inverted lists. Without it, all descriptors are compared."""
HALF_PRECISION_FROM = 50_000
"""Pictures from which maps of the formats before FORMAT are searched in float16. They have no setting for it."""

COLUMNS: dict[str, str] = {"key": "TEXT PRIMARY KEY", "value": "TEXT NOT NULL"}
"""The columns of the `meta` table, in order, with their types."""
LONGEST_VALUE = 1 << 20  # characters of a value of the meta table
_LARGEST = 1 << 16  # of the sizes of descriptors and tokens


@dataclass(frozen=True)
class Meta:
    """Properties of the whole map.

    identity: identity of the bundle that made the features.
    settings: the map's JSON values.
    descriptor_dim: G.
    token_shape: (M, D), as stored.
    created_by: version of pairvpr.
    segments, records: number of segments and of records, including deleted ones, so that a lost row is noticed.
    format: FORMAT, or one of ROW_FORMATS for a map as an older version wrote it.
    """

    identity: str
    settings: dict[str, Any]
    descriptor_dim: int
    token_shape: tuple[int, int]
    created_by: str
    segments: int = 0
    records: int = 0
    format: int = FORMAT

    @property
    def token_format(self) -> TokenFormat:
        """The format of stored tokens."""
        return TokenFormat.from_settings(self.settings)

    @property
    def lists(self) -> ListEntry | None:
        """The entry of the inverted lists, None if all descriptors are compared."""
        return ListEntry.from_json(self.settings[LISTS]) if LISTS in self.settings else None

    def searched(self, precision: str, lists: ListEntry | None = None) -> Meta:
        """Return the properties of this map, which is searched in a precision and by lists, if there are some."""
        settings = {key: value for key, value in self.settings.items() if key != LISTS}
        by_lists = {} if lists is None else {LISTS: lists.to_json()}
        return dataclasses.replace(self, settings={**settings, INDEX: precision, **by_lists})

    @property
    def in_blocks(self) -> bool:
        """Whether the map has its records in blocks, not in rows."""
        return self.format == FORMAT

    def upgraded(self, pictures: int) -> Meta:
        """Return the properties of this map in FORMAT. It holds `pictures`, and is searched as it was before."""
        if self.in_blocks:
            return self
        halved = {INDEX: "float16"} if pictures >= HALF_PRECISION_FROM else {}
        return dataclasses.replace(self, format=FORMAT, settings={**self.settings, **halved})

    def encode(self) -> list[tuple[str, str]]:
        """Encode as rows of the `meta` table: JSON values and a checksum over all of them."""
        rows = sorted((key, json.dumps(value, sort_keys=True, allow_nan=False)) for key, value in asdict(self).items())
        return [*rows, ("crc", str(checksum(rows)))]

    @staticmethod
    def decode(rows: Sequence[tuple[str, str]], file: Path) -> Meta:
        """Decode the rows. Raises ValueError if they are damaged, MapError for a newer format."""
        for key, value in rows:
            check_text(key, "a key of its settings")
            check_text(value, f"its {key!r:.50}", LONGEST_VALUE)
        values = sorted((key, value) for key, value in rows if key != "crc")
        if [value for key, value in rows if key == "crc"] != [str(checksum(values))]:
            raise ValueError("its settings fail their checksum")
        fields = {key: parse_json(value) for key, value in values}
        made = check_int(fields.get("format"), "its format", 1, 2**31)
        if made > FORMAT:
            raise MapError(f"{file} was made by a newer pairvpr (format {made}, this one reads {FORMAT}): upgrade")
        check_keys(fields, "its list of settings", {field.name for field in dataclasses.fields(Meta)})
        settings = dict(check_mapping(fields["settings"], "its settings", 1000))
        if DIGEST in settings:
            check_text(settings[DIGEST], "its digest of the model", 64)
        if settings.get(INDEX, PRECISIONS[0]) not in PRECISIONS:
            raise ValueError(f"its {INDEX} is none of {', '.join(PRECISIONS)}")
        if LISTS in settings:
            ListEntry.from_json(settings[LISTS])
        tokens, width = check_list(fields["token_shape"], "the shape of tokens", 2, 2)
        least, most = (0, 0) if TokenFormat.from_settings(settings).type == NO_TOKENS else (1, _LARGEST)
        meta = Meta(
            identity=check_text(fields["identity"], "its model", 200),
            settings=settings,
            descriptor_dim=check_int(fields["descriptor_dim"], "the size of descriptors", 1, _LARGEST),
            token_shape=(
                check_int(tokens, "the number of tokens", least, most),
                check_int(width, "the size of tokens", least, most),
            ),
            created_by=check_text(fields["created_by"], "its version", 200),
            segments=check_int(fields["segments"], "its number of segments", 0, 2**40),
            records=check_int(fields["records"], "its number of records", 0, 2**40),
            format=made,
        )
        if made not in (FORMAT, ROW_FORMATS.get(meta.token_format.type)):
            raise ValueError(f"{meta.token_format.type} tokens in format {made}")
        return meta
