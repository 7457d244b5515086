"""Hypothesis strategies for damaged files: flipped bits, and parts that are lost, repeated or exchanged."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

ENDS = 1500  # bytes: where formats keep what matters most

# What lengths, counts and offsets of formats are when they are wrong.
NUMBERS = [
    number.to_bytes(size, order)
    for size in (1, 2, 4, 8)
    for number in (0, 1, (1 << (8 * size - 1)) - 1, 1 << (8 * size - 1), (1 << 8 * size) - 1, (1 << 6 * size) + 1)
    for order in ("little", "big")
]


class Damaged:
    """A file's content, and a description of its damage."""

    def __init__(self, content: bytes, what: str) -> None:
        self.content = bytearray(content)
        self.done = [what]

    def __repr__(self) -> str:
        return f"<{len(self.content)} bytes, {', '.join(self.done)}>"


def _places(size: int) -> st.SearchStrategy[int]:
    """Draw an offset into `size` bytes, more often near an end."""
    return st.one_of(
        st.integers(0, size - 1),
        st.integers(0, min(size, ENDS) - 1),
        st.integers(max(0, size - ENDS), size - 1),
    )


@st.composite
def damaged(draw: st.DrawFn, whole: Sequence[bytes]) -> Damaged:
    """Draw one of the files with damage in one to four places."""
    which = draw(st.integers(0, len(whole) - 1))
    result = Damaged(whole[which], f"file {which}")
    for _ in range(draw(st.integers(1, 4))):
        if result.content:
            result.done.append(_change(draw, result.content, whole))
    return result


def _change(draw: st.DrawFn, content: bytearray, whole: Sequence[bytes]) -> str:
    """Change the content in one place and describe the change."""
    kind = draw(st.sampled_from(["flip", "number", "cut", "drop", "blank", "noise", "again", "foreign"]))
    place, length = draw(_places(len(content))), 1
    if kind in ("drop", "blank", "again", "foreign"):
        length = draw(st.one_of(st.integers(1, 16), st.integers(1, len(content))))
    elif kind == "cut":
        length = len(content) - place
    there = content[place : place + length]
    if kind == "flip":
        content[place] ^= draw(st.integers(1, 255))
    elif kind == "number":
        number = draw(st.sampled_from(NUMBERS))
        content[place : place + len(number)] = number
    elif kind == "noise":
        content[place:place] = draw(st.binary(min_size=1, max_size=64))
    elif kind == "blank":
        content[place : place + length] = bytes(len(there))
    elif kind in ("cut", "drop"):
        del content[place : place + length]
    else:
        source = content if kind == "again" else draw(st.sampled_from(whole))
        start = draw(_places(len(source)))
        content[place : place + length] = source[start : start + length]
    return f"{kind} at {place}, {length}"
