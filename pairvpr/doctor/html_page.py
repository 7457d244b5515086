"""Build the page of `pairvpr doctor`: one HTML file that needs no other file."""

from __future__ import annotations

from collections.abc import Sequence

from pairvpr.doctor.check import Check
from pairvpr.doctor.report import verdict
from pairvpr.html.document import document, table


def render(checks: Sequence[Check]) -> str:
    """Return all checks as HTML."""
    rows = [("Part", "state", "found, and the remedy")]
    for check in checks:
        remedy = "" if check.remedy is None else f" -> {check.remedy}"
        rows.append((check.name, check.state, check.detail + remedy))
    body = f"<h1>Installation of this computer</h1>\n<p>{verdict(checks)}</p>\n" + table(
        "Parts", rows, "", wide=True, text=True
    )
    return document("Pair-VPR doctor", body)
