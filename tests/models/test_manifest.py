"""The manifest as JSON, and what of it is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sigd.models.build.pipeline import build_engine
from sigd.models.build.request import BuildRequest
from sigd.models.errors import ModelRefused
from sigd.models.manifest import Manifest, decode_manifest, encode_manifest, manifest_path

if TYPE_CHECKING:
    from tests.conftest import ModelMaker

PATH = Path("m.engine.json")


@pytest.fixture(scope="module")
def manifest(models: ModelMaker) -> Manifest:
    return build_engine(
        BuildRequest(model=models.mlp(), engine=models.folder / "manifest.engine", runtime="onnxruntime")
    )


@pytest.fixture
def edited(manifest: Manifest) -> Callable[[Callable[[Any], None]], bytes]:
    """The manifest's JSON after an edit."""

    def edited(edit: Callable[[Any], None]) -> bytes:
        fields = json.loads(encode_manifest(manifest))
        edit(fields)
        return json.dumps(fields).encode()

    return edited


def test_it_lies_beside_the_engine() -> None:
    assert manifest_path(Path("a/m.engine")) == Path("a/m.engine.json")


def test_it_survives_json(manifest: Manifest) -> None:
    assert decode_manifest(encode_manifest(manifest), PATH) == manifest


def test_golden_rows_survive_to_the_bit(manifest: Manifest) -> None:
    golden = decode_manifest(encode_manifest(manifest), PATH).golden
    rows = golden.feature_rows()
    assert rows.dtype == np.float32
    assert rows.shape == (golden.rows, 8)
    assert golden.output_rows().shape == (golden.rows, 3)
    assert rows.tobytes() == golden.features


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"schema": "1"}', b"\xff"])
def test_what_is_no_manifest_is_refused(content: bytes) -> None:
    with pytest.raises(ModelRefused, match="not the manifest of an engine"):
        decode_manifest(content, PATH)


def test_another_schema_is_refused_whatever_else_it_holds() -> None:
    with pytest.raises(ModelRefused, match="a manifest of schema 2, this sigd reads schema 1"):
        decode_manifest(b'{"schema": 2, "anything": []}', PATH)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda fields: fields.update(extra=1), "unknown field `extra`"),
        (lambda fields: fields.pop("plan"), "missing required field `plan`"),
        (lambda fields: fields.update(runtime="torch"), "not the manifest"),
        (lambda fields: fields["input"].update(dtype="float16"), "not the manifest"),
        (lambda fields: fields.update(accuracy="good"), "not the manifest"),
        (lambda fields: fields.update(profiles=[]), "names no batch"),
        (
            lambda fields: fields["profiles"][0].update(rows_min=2),
            "a profile that is not 1 <= min <= opt <= max",
        ),
        (lambda fields: fields["tools"].pop("onnxruntime"), "does not give the version of onnxruntime"),
        (lambda fields: fields["golden"].update(rows=3), "its golden features take 128 bytes, expected 96"),
        (
            lambda fields: fields["golden"].update(outputs="AAAA"),
            "its golden outputs take 3 bytes, expected 48",
        ),
        (lambda fields: fields["golden"].update(rows=0, features="", outputs=""), "golden features"),
    ],
)
def test_a_manifest_that_was_tampered_with_is_refused(
    edited: Callable[[Callable[[Any], None]], bytes], edit: Callable[[Any], None], message: str
) -> None:
    with pytest.raises(ModelRefused, match=message):
        decode_manifest(edited(edit), PATH)
