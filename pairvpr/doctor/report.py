"""Judge all checks together, and print them."""

from __future__ import annotations

from collections.abc import Sequence

from pairvpr.doctor.check import Check
from pairvpr.doctor.engines import ENGINE
from pairvpr.doctor.models import MODEL
from pairvpr.doctor.parts import REQUIRED


def healthy(checks: Sequence[Check]) -> bool:
    """Tell whether recognition works here: nothing is broken, and no part that it needs is missing."""
    needed = {ENGINE, MODEL, *REQUIRED}
    return not any(check.state == "broken" or (check.state == "missing" and check.name in needed) for check in checks)


def format_report(checks: Sequence[Check]) -> str:
    """Return the checks as aligned text: state, name and detail, with the remedy below."""
    width = max((len(check.name) for check in checks), default=0)
    lines = []
    for check in checks:
        lines.append(f"{check.state:<8} {check.name:<{width}}  {check.detail}")
        if check.remedy is not None:
            lines.append(f"{'':<8} {'':<{width}}  -> {check.remedy}")
    return "\n".join([*lines, "", verdict(checks)])


def verdict(checks: Sequence[Check]) -> str:
    """Return one sentence on all checks."""
    if not healthy(checks):
        return "Recognition does not work here, or only in part: see the lines that are broken or missing."
    if any(check.state == "missing" for check in checks):
        return "Recognition works here. The missing parts are optional."
    return "Everything works here."
