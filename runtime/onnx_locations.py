"""Find the files that an ONNX graph reads besides itself, without the onnx package.

Field numbers are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto. A graph's tensors lie in the graph
itself, in attributes of nodes, in functions and in sub-graphs.
"""

from __future__ import annotations

from collections.abc import Iterator

_MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "tensor": {13: "entry"},
}
"""The fields of each message that lead to external data."""
_HARMLESS = {b"offset", b"length", b"checksum"}
_DEEPEST = 100  # protobuf itself reads no deeper


def find_locations(content: bytes) -> set[str]:
    """Return every location of external data in an ONNX file. Raises ValueError if it cannot be parsed."""
    locations: set[str] = set()
    waiting = [(memoryview(content), "model", 0)]
    while waiting:
        message, kind, depth = waiting.pop()
        if depth > _DEEPEST:
            raise ValueError("its graphs are nested too deeply")
        if kind == "entry":
            locations |= _read_entry(message)
            continue
        inner = _MESSAGES[kind]
        waiting += [(value, inner[field], depth + 1) for field, value in _fields(message) if field in inner]
    return locations


def _read_entry(message: memoryview) -> set[str]:
    """Return the values of a key-value pair, unless its key is one that names no file."""
    pairs = [(field, bytes(value)) for field, value in _fields(message)]
    if {value for field, value in pairs if field == 1} <= _HARMLESS:
        return set()
    return {value.decode("utf-8", "surrogateescape") for field, value in pairs if field == 2}


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield number and content of a message's fields that have a length."""
    position, end = 0, len(message)
    while position < end:
        tag, position = _varint(message, position)
        field, wire = tag >> 3, tag & 7
        if wire == 0:
            _, position = _varint(message, position)
        elif wire in (1, 5):
            position += 8 if wire == 1 else 4
        elif wire == 2:
            length, position = _varint(message, position)
            if length > end - position:
                raise ValueError("it is cut short")
            yield field, message[position : position + length]
            position += length
        else:
            raise ValueError("it is not an ONNX file")
    if position > end:
        raise ValueError("it is cut short")


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return a number of variable length, and the position after it."""
    number = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise ValueError("it is cut short")
        byte = message[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
    raise ValueError("it is not an ONNX file")
