"""What the documents say can be followed: links lead somewhere, and commands with their options exist."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import click
import pytest

from pairvpr.cli.main import main
from pairvpr.cli.run import main as run
from pairvpr.runtime.answer import Match, Recognition

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [
    README,
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "ARCHITECTURE.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "benchmarks/results/README.md",
    ROOT / "pairvpr/weights/README.md",
    ROOT / "ros2/README.md",
]
PROJECT = (ROOT / "pyproject.toml").read_text()
REPOSITORY = re.findall(r'^Source = "(.+)"$', PROJECT, re.MULTILINE)[0]
RAW = REPOSITORY.replace("github.com", "raw.githubusercontent.com")
PROGRAMS: dict[str, click.Command] = {"pairvpr": main, "pairvpr-run": run}
ROS_OPTIONS = {"--ros-args"}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`]+)`")
TOP_FOLDERS = "benchmarks|calibration|docs|examples|export|pairvpr|ros2|runtime|tests"

every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())


def blocks(document: Path, language: str) -> list[str]:
    """What stands between fences of this language."""
    return [content for kind, content in FENCE.findall(document.read_text()) if kind == language]


def spans(document: Path) -> list[str]:
    """Code within sentences, each on one line."""
    return [" ".join(code.split()) for code in CODE.findall(FENCE.sub("", document.read_text()))]


def links(document: Path) -> list[str]:
    """All links of a document; those to the project's own address as `/path` from its top."""
    prose = CODE.sub("", FENCE.sub("", document.read_text()))
    found = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose)
    own = [re.sub(rf"^({re.escape(REPOSITORY)}/(blob|tree)|{re.escape(RAW)})/main/", "/", link) for link in found]
    return [link for link in own if not re.match(r"https?://", link)]


def anchors(document: Path) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    found: list[str] = []
    for heading in re.findall(r"^#+ +(.+)$", FENCE.sub("", document.read_text()), re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        found.append(f"{name}-{found.count(name)}" if name in found else name)
    return set(found)


def typed(document: Path) -> Iterator[list[str]]:
    """The simple commands of all console blocks, as words."""
    for block in blocks(document, "console"):
        for line in re.sub(r"\\?\n> ", " ", block).splitlines():
            if line.startswith("$ "):
                words = shlex.shlex(line[2:], posix=True, punctuation_chars=True)
                words.whitespace_split = True
                yield from simple_commands(list(words))


def simple_commands(words: list[str]) -> Iterator[list[str]]:
    command: list[str] = []
    for word in [*words, ";"]:
        if set(word) <= set(";&|<>()"):
            if command:
                yield command
            command = []
        elif command or word not in ("{", "}", "do", "done"):
            command.append(word)


def ours(words: list[str]) -> list[str] | None:
    """Words from the name of one of our programs on, also where another program starts it."""
    if words[:2] == ["docker", "run"]:
        last = max(i for i, word in enumerate(words) if word in PROGRAMS)
        return words[last:]
    if "pairvpr.cli.main" in words:
        return ["pairvpr", *words[words.index("pairvpr.cli.main") + 1 :]]
    return words if words[0] in PROGRAMS else None


def find_command(words: list[str]) -> tuple[click.Context, list[str]]:
    """The context of the click command that the words name, and the rest of them."""
    program = PROGRAMS[words[0]]
    context, rest = click.Context(program, **program.context_settings), words[1:]
    while isinstance(context.command, click.Group) and rest and not rest[0].startswith("-"):
        below = context.command.commands
        assert rest[0] in below, f"there is no command {rest[0]!r} in `{shlex.join(words)}`"
        context, rest = click.Context(below[rest[0]], parent=context), rest[1:]
    return context, rest


def check(words: list[str]) -> None:
    """That the command could be started so: its options, their values and all that is required. Nothing is run."""
    context, rest = find_command(words)
    assert not isinstance(context.command, click.Group), f"`{shlex.join(words)}` lacks a command"
    given, left, _ = context.command.make_parser(context).parse_args(args=list(rest))
    assert not left, f"`{shlex.join(words)}`: {left} is too much"
    for parameter in context.command.params:
        value = given.get(parameter.name or "")
        if not isinstance(value, (str, list, tuple)):
            assert not parameter.required, f"`{shlex.join(words)}` lacks {parameter.name}"
        elif not isinstance(parameter.type, click.File):
            parameter.type_cast_value(context, value)


def options_of(command: click.Command) -> set[str]:
    own = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    below = command.commands.values() if isinstance(command, click.Group) else ()
    return own.union({"--help", "--version"}, *map(options_of, below))


@every_document
def test_links_lead_somewhere(document: Path) -> None:
    for link in links(document):
        path, _, anchor = link.partition("#")
        above = ROOT if path.startswith("/") else document.parent
        target = (above / path.lstrip("/")).resolve() if path else document
        assert target.is_relative_to(ROOT), f"{link} leads out of the project"
        assert target.exists(), f"{link} leads nowhere"
        assert not anchor or anchor in anchors(target), f"{link}: no heading of this name"


@every_document
def test_files_and_folders_that_are_named_exist(document: Path) -> None:
    for span in spans(document):
        if re.fullmatch(rf"(?:{TOP_FOLDERS})(?:/[\w.-]+)+/?", span):
            assert (ROOT / span).exists(), span


@every_document
def test_commands_can_be_typed(document: Path) -> None:
    for words in typed(document):
        if (command := ours(words)) is not None:
            check(command)
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words


def test_commands_are_found_in_the_documents() -> None:
    found = [ours(words) for document in DOCUMENTS for words in typed(document)]
    assert sum(each is not None for each in found) > 50
    assert any(each == ["pairvpr-run", "--db", "map/", "--query", "photo.jpg"] for each in found)


@every_document
def test_options_in_sentences_exist(document: Path) -> None:
    """Those of a command that is named with them; else of any command, or of a benchmark."""
    anywhere = set().union(*map(options_of, PROGRAMS.values()))
    benchmarks = "".join(path.read_text() for path in (ROOT / "benchmarks").glob("*.py"))
    for span in spans(document):
        words = span.split()
        for option in (word for word in words[1:] if word.startswith("--") and words[0] in PROGRAMS):
            assert option in options_of(find_command(words)[0].command), span
        for option in (word for word in words if word.startswith("--") and words[0].startswith("--")):
            assert option in anywhere | ROS_OPTIONS or f'"{option}"' in benchmarks, span


def test_whole_configurations_are_accepted(tmp_path: Path) -> None:
    pytest.importorskip("tomllib")
    pytest.importorskip("torch")
    from pairvpr.training import stage_one_config, stage_two_config

    whole = [block for block in blocks(ROOT / "docs/training.md", "toml") if block.startswith("out =")]
    readers = (stage_one_config, partial(stage_two_config, overrides=["teacher.checkpoint=x"]))
    for content, read in zip(whole, readers, strict=True):
        file = tmp_path / "run.toml"
        file.write_text(content)
        read(file)


@every_document
def test_benchmarks_that_are_named_exist(document: Path) -> None:
    for module in re.findall(r"(?<![\w/])benchmarks\.(\w+)", document.read_text()):
        assert (ROOT / "benchmarks" / f"{module}.py").is_file(), module


@every_document
def test_no_document_knows_somebodys_home(document: Path) -> None:
    assert not re.search(r"(?<![\w.])/(?:home|root|Users)/", document.read_text())


def test_the_readme_stays_short_and_leads_to_every_page() -> None:
    assert len(README.read_text().splitlines()) <= 220
    assert {f"/docs/{page.name}" for page in PAGES} - {"/docs/index.md"} <= {
        link.partition("#")[0] for link in links(README)
    }


def test_recall_in_the_readme_is_as_in_the_model_card() -> None:
    card = (ROOT / "pairvpr/weights/README.md").read_text()
    rows = re.findall(r"^\| by (?:day|night), .*$", README.read_text(), re.MULTILINE)
    assert len(rows) == 3
    for row in rows:
        assert " | ".join(row.split(" | ")[1:]) in card, row


def test_links_of_the_readme_are_absolute() -> None:
    """The page is shown on the package index, too."""
    assert all(link.startswith("/") for link in links(README))


def test_the_project_has_one_address() -> None:
    """Links to files of the project are under the address of pyproject.toml."""
    files = [*DOCUMENTS, *(ROOT / name for name in ("CITATION.cff", "mkdocs.yml", "pyproject.toml"))]
    files += sorted((ROOT / ".github").rglob("*.yml"))
    name = REPOSITORY.rpartition("/")[2]
    for file in files:
        for address in re.findall(r"https://[\w.]+/[\w.-]+/[\w.-]+", file.read_text()):
            assert name not in address or address in (REPOSITORY, RAW), f"{file}: {address}"


def test_every_page_is_in_the_sites_order() -> None:
    order = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        assert re.search(rf"[ :]{re.escape(page.relative_to(ROOT / 'docs').as_posix())}$", order, re.MULTILINE), page


def test_the_first_picture_is_small() -> None:
    assert (ROOT / "docs/images/overview.jpg").stat().st_size < 200_000


def test_the_json_line_shown_is_the_runtimes() -> None:
    shown = json.loads(blocks(ROOT / "docs/outputs.md", "json")[0])
    match = Match("a.jpg", 1.0, 0.5, "full")
    line = json.loads(Recognition(query="b.jpg", matches=(match,), compared=1, complete=True, timings={}).to_json())
    assert list(shown) == list(line)
    assert list(shown["best"]) == list(line["best"])


def test_the_reference_lists_parameters() -> None:
    pytest.importorskip("griffe")
    listed = runpy.run_path(str(ROOT / "docs/docstrings.py"))["listed"]
    docstring = "Read a map.\n\npath: the folder,\nor a file.\ntop_k, depth: candidates.\nRaises MapError: no map."
    assert listed(docstring).splitlines() == [
        "Read a map.",
        "",
        "",
        "- `path`: the folder,",
        "  or a file.",
        "- `top_k, depth`: candidates.",
        "",
        "Raises MapError: no map.",
    ]


@pytest.mark.parametrize("page", ["live", "service"])
def test_systemd_accepts_the_units(page: str, tmp_path: Path) -> None:
    """The unit has the program in the user's home, which is not here. Nothing else is replaced."""
    (unit,) = blocks(ROOT / f"docs/{page}.md", "ini")
    (command,) = re.findall(r"^ExecStart=(\S+)", unit, re.MULTILINE)
    assert command.startswith("%h/robot/.venv/bin/pairvpr")
    # A failed start is tried again later and without end: systemd gives up only after 5 starts within 10 s.
    (pause,) = re.findall(r"^RestartSec=(\d+)$", unit, re.MULTILINE)
    assert int(pause) * 5 > 10
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    file = tmp_path / "pairvpr.service"
    for text, accepted in ((unit, True), (unit.replace("[Service]", "[Service]\nRestart=sometimes"), False)):
        file.write_text(text.replace(command, "/bin/true"))
        done = subprocess.run(
            ["systemd-analyze", "verify", file],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
        told = [line for line in done.stderr.splitlines() if "pairvpr.service" in line]
        assert (told == []) == accepted, done.stderr
