"""Show the parameters of docstrings as lists in the reference of the Python API.

The project's docstrings explain a parameter on a line of its own, `name: text`. Markdown would join these lines.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

PARAMETER = re.compile(r"(\w+(?:, \w+)*): (.*)")
SENTENCE = re.compile(r"(Raises?|Returns?) ")


class Parameters(griffe.Extension):
    """Rewrite each docstring after griffe has read it."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Replace the docstring of a module, class or function."""
        if obj.docstring is not None:
            obj.docstring.value = listed(obj.docstring.value)


def listed(docstring: str) -> str:
    """Turn lines like `name: text`, with their continuation lines, into the items of a list."""
    lines: list[str] = []
    inside = False
    for line in docstring.splitlines():
        parameter = PARAMETER.fullmatch(line)
        if parameter is not None:
            lines += [] if inside else [""]
            lines.append(f"- `{parameter[1]}`: {parameter[2]}")
            inside = True
        elif inside and line.strip() and not SENTENCE.match(line):
            lines.append(f"  {line.strip()}")
        else:
            lines += [""] if inside and line.strip() else []
            lines.append(line)
            inside = False
    return "\n".join(lines)
