"""Text from files is printed as one line without control characters, and JSON holds no NaN or infinity."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from pairvpr.printing import json_document, json_line, print_line, print_lines, printable

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = ("calibration", "export", "pairvpr", "ros2", "runtime")
HOSTILE = "a\x1b[2Jb\nc\u202ed\x85e\udc80"


def calls(folders: tuple[str, ...], owner: str, *names: str) -> Iterator[tuple[str, ast.Call]]:
    """Each call of `owner.name` in the modules of the folders, with its file and line."""
    for folder in folders:
        for path in (ROOT / folder).rglob("*.py"):
            if any(parent.is_symlink() for parent in path.parents):
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Attribute)
                    and isinstance(node.func.value, ast.Name)
                    and (node.func.value.id, node.func.attr) in {(owner, name) for name in names}
                ):
                    yield f"{path.relative_to(ROOT).as_posix()}:{node.lineno}", node


def test_every_writer_of_json_refuses_nan_and_infinity():
    found = list(calls((*PRODUCT, "benchmarks", "examples"), "json", "dump", "dumps"))
    assert len(found) > 10
    strict = "allow_nan=False"
    lax = {where.partition(":")[0] for where, call in found if strict not in map(ast.unparse, call.keywords)}
    # Checksums are taken of any value, and are not JSON.
    assert lax == {"runtime/bundle_info.py", "runtime/map/records.py"}


def test_commands_print_with_the_functions_that_escape():
    found = [where.partition(":")[0] for where, _ in calls(PRODUCT, "click", "echo", "secho")]
    # A meter on a terminal moves the cursor itself, and holds no text from files.
    assert sorted(found) == ["pairvpr/cli/progress.py", "pairvpr/printing.py"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, [1, {"a": math.nan}]])
def test_values_that_are_not_json_are_refused(value):
    for write in (json_line, json_document):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write(value)


def test_a_record_is_one_printable_line_of_the_same_value():
    line = json_line({"name": HOSTILE})
    assert line.isprintable()
    assert json.loads(line) == {"name": HOSTILE}
    assert printable(HOSTILE).isprintable()


def test_lines_of_a_text_are_escaped_one_by_one(capsys):
    print_line(HOSTILE)
    print_lines(f"first\n  {HOSTILE.replace(chr(10), '')}\nlast", err=True)
    told = capsys.readouterr()
    assert told.out == "a\\x1b[2Jb\\nc\\u202ed\\x85e\\udc80\n"
    assert told.err.splitlines() == ["first", "  a\\x1b[2Jbc\\u202ed\\x85e\\udc80", "last"]
