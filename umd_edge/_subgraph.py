"""Cuts a part out of an ONNX file, without a library for ONNX.

An ONNX file is one protobuf message. Only its outline is read here: the names that each node takes
and gives, and the names of weights. What is kept is copied byte by byte, so a part computes what
the whole computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from .errors import BundleIntegrityError

__all__ = ["extract"]

# Field numbers of onnx.proto, which never change.
_MODEL_GRAPH = 7
_NODE, _INITIALIZER, _INPUT, _OUTPUT = 1, 5, 11, 12
# The outputs of the whole; value_info and quantization_annotation, of tensors that may be gone.
_DROPPED = (_OUTPUT, 13, 14)
_NODE_INPUT, _NODE_OUTPUT = 1, 2
_TENSOR_NAME, _VALUE_NAME = 8, 1
_FLOAT = 1


def extract(
    graph: bytes, inputs: Mapping[str, int], outputs: Sequence[str]
) -> tuple[bytes, tuple[str, ...]]:
    """The part of a graph between some of its tensors.

    Args:
        graph: Bytes of an ONNX file without control flow.
        inputs: Inner float tensors that are fed instead of computed, with their ranks.
        outputs: Float tensors that the part gives.

    Returns:
        The part as an ONNX file, and the names of all its inputs: those of `inputs`, and those of
        the whole graph that it still needs.

    Raises:
        BundleIntegrityError: The bytes are no ONNX file, or have no tensor of such a name.
    """
    try:
        return _cut(graph, inputs, outputs)
    # IndexError where a number goes on behind the end; a name that is no UTF-8 is a ValueError.
    except (IndexError, ValueError, StopIteration) as error:
        raise BundleIntegrityError("the file is no ONNX graph; export the bundle again") from error


def _cut(
    graph: bytes, inputs: Mapping[str, int], outputs: Sequence[str]
) -> tuple[bytes, tuple[str, ...]]:
    model = list(_fields(memoryview(graph)))
    body = next(payload for number, payload, _ in model if number == _MODEL_GRAPH)
    fields = list(_fields(body))
    nodes = [
        (set(_names(payload, _NODE_INPUT)), set(_names(payload, _NODE_OUTPUT)))
        for number, payload, _ in fields
        if number == _NODE
    ]
    missing = sorted({*inputs, *outputs} - {name for _, given in nodes for name in given})
    if missing:
        raise BundleIntegrityError(f"the graph has no tensor {missing}; export the bundle again")
    kept, needed = _needed(nodes, set(inputs), set(outputs))
    wanted = {_INITIALIZER: _TENSOR_NAME, _INPUT: _VALUE_NAME}
    parts: list[bytes | memoryview] = []
    fed, place = list(inputs), 0
    for number, payload, whole in fields:
        if number == _NODE:
            place += 1
            keep = place - 1 in kept
        elif number in wanted:
            name = _name(payload, wanted[number])
            keep = name in needed
            fed += [name] if keep and number == _INPUT else []
        else:
            keep = number not in _DROPPED
        if keep:
            parts.append(whole)
    parts += [_field(_INPUT, _value_info(name, rank)) for name, rank in inputs.items()]
    parts += [_field(_OUTPUT, _value_info(name, None)) for name in outputs]
    rest = b"".join(whole for number, _, whole in model if number != _MODEL_GRAPH)
    return rest + _field(_MODEL_GRAPH, b"".join(parts)), tuple(fed)


def _needed(
    nodes: Sequence[tuple[set[str], set[str]]], inputs: set[str], outputs: set[str]
) -> tuple[set[int], set[str]]:
    """Indices of the nodes behind `outputs`, back to `inputs`; and all names that they take."""
    kept: set[int] = set()
    needed = set(outputs)
    for index in range(len(nodes) - 1, -1, -1):  # a graph's nodes stand in the order of their work
        taken, given = nodes[index]
        if given & needed - inputs:
            kept.add(index)
            needed |= taken
    return kept, needed


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Number, payload and whole bytes of each field of a protobuf message."""
    place = 0
    while place < len(message):
        start = place
        tag, place = _varint(message, place)
        kind = tag & 7
        if kind == 0:
            _, end = _varint(message, place)
        elif kind == 2:
            length, place = _varint(message, place)
            end = place + length
        elif kind in (1, 5):
            end = place + (8 if kind == 1 else 4)
        else:
            raise ValueError("a kind of field that protobuf no longer has")
        if end > len(message):
            raise ValueError("a field ends behind its message")
        yield tag >> 3, message[place:end], message[start:end]
        place = end


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _names(message: memoryview, number: int) -> Iterator[str]:
    for found, payload, _ in _fields(message):
        if found == number and len(payload):
            yield bytes(payload).decode("utf-8")


def _name(message: memoryview, number: int) -> str:
    return next(_names(message, number), "")


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, payload: bytes) -> bytes:
    return _encode_varint(number << 3 | 2) + _encode_varint(len(payload)) + payload


def _value_info(name: str, rank: int | None) -> bytes:
    """ValueInfoProto of a float tensor with dimensions of unknown size."""
    tensor = _encode_varint(1 << 3) + _encode_varint(_FLOAT)
    if rank is not None:
        tensor += _field(2, _field(1, b"") * rank)
    return _field(1, name.encode()) + _field(2, _field(1, tensor))
