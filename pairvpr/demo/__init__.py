"""Show on one page how places are recognised, with pictures of a made-up town or the user's own."""

from __future__ import annotations

from pathlib import Path

TOWN = Path(__file__).parent / "town"
"""Written by `pairvpr town --streets 10 --seed 5 --evaluation`: 30 places, 120 queries, which no weights have seen."""
