"""One ONNX file as bytes, message and digest: what the spec is read from is exactly what the backends run.

A backend is given the bytes that were hashed, never the path: a file that is replaced or written over while
the daemon runs can neither change the answers nor take the process down through a mapped page.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sigd.models.errors import ModelRefused
from sigd.models.native_files import no_onnx_model
from sigd.models.trusted_file import read_file

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

_ALLOCATION_FAILED: Final = "alloc failed"
"""How the parser says that there is no memory, with the error that it also has for bytes that are no
model."""


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """An ONNX model, whole. That it is a valid one is for `read_spec` to say.

    Attributes:
        path: where it was read.
        content: the serialised model with every weight inside it.
        model: the same, parsed.
        sha256: 32 bytes, as `sha256sum FILE` shows them. Where weights lie in files of their own it covers
            those
            too, in the order of their names: `cat MODEL WEIGHTS... | sha256sum`.
    """

    path: Path
    content: bytes
    model: ModelProto
    sha256: bytes


def read_onnx(path: Path, expected_sha256: bytes | None = None) -> OnnxFile:
    """Read an ONNX file, weights kept in files beside it included.

    Args:
        path: the file.
        expected_sha256: the digest that it had when its spec was read; None takes any.

    Raises:
        MemoryError: it does not fit.
        ModelRefused: it cannot be read, is no ONNX model, lacks a file of weights, or has another digest.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    content = _read_bytes(path)
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
        if _ALLOCATION_FAILED in str(error):
            raise MemoryError from error
        model = onnx.ModelProto()
    if not model.ir_version or not model.graph.node:
        raise ModelRefused(no_onnx_model(path, content))
    sha256 = hashlib.sha256(content)
    outside = [tensor for tensor in _tensors(model) if tensor.data_location == tensor.EXTERNAL]
    weights = {name: _read_weights(path, name) for name in sorted({_location(tensor) for tensor in outside})}
    for part in weights.values():
        sha256.update(part)
    for tensor in outside:
        _take_in(path, tensor, weights)
    if outside:
        content = model.SerializeToString()
    if expected_sha256 is not None and sha256.digest() != expected_sha256:
        raise ModelRefused(
            f"{path}: has changed since its spec was read (SHA-256 {sha256.hexdigest()}, expected"
            f" {expected_sha256.hex()}):"
            " read the spec again, and replace a model file by renaming a whole one over it"
        )
    return OnnxFile(path, content, model, sha256.digest())


def _read_bytes(path: Path) -> bytes:
    try:
        content = read_file(path)
    except FileNotFoundError:
        raise ModelRefused(f"{path}: no such file, expected an ONNX model") from None
    except IsADirectoryError:
        raise ModelRefused(f"{path}: a directory, expected an ONNX file") from None
    except OSError as error:
        raise ModelRefused(f"{path}: cannot be read: {error.strerror or error}") from error
    if not content:
        raise ModelRefused(f"{path}: empty, expected an ONNX model: was the export or the copy cut short?")
    return content


def _read_weights(path: Path, location: str) -> bytes:
    """The bytes of one file of weights. Only what lies beside or below the model belongs to it."""
    if Path(location).is_absolute() or ".." in Path(location).parts:
        raise ModelRefused(f"{path}: keeps weights in {location!r}, expected a file beside the model")
    try:
        return read_file(path.parent / location)
    except OSError as error:
        raise ModelRefused(
            f"{path}: keeps weights in {location!r}, which cannot be read beside it"
            f" ({error.strerror or error}): copy that"
            " file too, or save the model in one piece (torch.onnx.export(..., external_data=False))"
        ) from error


def _take_in(path: Path, tensor: TensorProto, weights: Mapping[str, bytes]) -> None:
    """Put the weights of a tensor where it is, out of the bytes that were hashed."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    content = weights[_location(tensor)]
    try:
        start = int(entries.get("offset", 0))
        end = start + int(entries.get("length", len(content) - start))
    except ValueError:
        start = end = -1
    if not 0 <= start <= end <= len(content):
        raise ModelRefused(
            f"{path}: its files of weights do not fit it: {tensor.name!r} is bytes {entries.get('offset', 0)}"
            " and on,"
            f" {entries.get('length', 'the rest')} of them, of a file of {len(content)}: copy the files"
            " again, all together"
        )
    tensor.raw_data = content[start:end]
    tensor.data_location = tensor.DEFAULT
    del tensor.external_data[:]


def _location(tensor: TensorProto) -> str:
    """The name of the file that holds it. Text that is no UTF-8 arrives as bytes; shown as such it names no
    file."""
    return next((str(entry.value) for entry in tensor.external_data if entry.key == "location"), "")


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor stored in a model: in its graph, in attributes, in the graphs inside those and in its
    functions."""
    yield from model.graph.initializer
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while nodes:
        for attribute in nodes.pop().attribute:
            yield from (*attribute.tensors, *((attribute.t,) if attribute.HasField("t") else ()))
            for inner in (*attribute.graphs, *((attribute.g,) if attribute.HasField("g") else ())):
                yield from inner.initializer
                nodes.extend(inner.node)
