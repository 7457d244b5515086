"""Build the page of `pairvpr doctor`: one HTML file that needs no other file."""

from __future__ import annotations

from collections.abc import Sequence

from pairvpr.doctor.check import Check
from pairvpr.doctor.report import verdict
from pairvpr.html.document import document, table


def render(checks: Sequence[Check]) -> str:
    """Return all checks as HTML."""
    rows = [("Part", "state", "found", "remedy")]
    rows += [(check.name, check.state, check.detail, check.remedy or "") for check in checks]
    body = f"<h1>Installation of this computer</h1>\n<p>{verdict(checks)}</p>\n" + table(
        "Parts", rows, "", wide=True, text=True
    )
    return document("Pair-VPR doctor", body)
