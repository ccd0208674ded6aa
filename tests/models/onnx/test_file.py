"""Reading an ONNX file whole: what is no model, what has changed, weights in files of their own."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import pytest

from sigd.models.errors import ModelRefused
from sigd.models.onnx import file as onnx_file
from sigd.models.onnx.file import read_onnx

if TYPE_CHECKING:
    from tests.conftest import ModelMaker


def split(models: ModelMaker, weights_name: str) -> Path:
    """A model whose weights lie in a file of their own."""
    path = models.new_path()
    onnx.save(
        onnx.load(models.mlp()), path, save_as_external_data=True, location=weights_name, size_threshold=0
    )
    return path


def test_content_is_the_file(models: ModelMaker) -> None:
    path = models.mlp()
    file = read_onnx(path)
    assert file.content == path.read_bytes()
    assert file.sha256 == hashlib.sha256(file.content).digest()
    assert file.model == onnx.load(path)


def test_a_file_that_has_changed_is_refused(models: ModelMaker) -> None:
    path = models.mlp(seed=1)
    sha256 = read_onnx(path).sha256
    assert read_onnx(path, sha256).sha256 == sha256
    path.write_bytes(models.mlp(seed=2).read_bytes())
    with pytest.raises(ModelRefused, match=f"has changed since its spec was read.*{sha256.hex()}"):
        read_onnx(path, sha256)


def test_weights_beside_the_model_are_taken_in_and_hashed(models: ModelMaker) -> None:
    path = split(models, "weights.bin")
    file = read_onnx(path)
    assert onnx.load_model_from_string(file.content) == onnx.load(path)
    both = path.read_bytes() + (models.folder / "weights.bin").read_bytes()
    assert file.sha256 == hashlib.sha256(both).digest()


def test_several_files_of_weights_are_hashed_in_the_order_of_their_names(
    models: ModelMaker, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(
        onnx.load(models.mlp(hidden=[4, 4, 4])),
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=False,
        size_threshold=0,
    )
    weights = sorted(tmp_path.glob("[!m]*"))
    assert len(weights) == 8
    together = b"".join(file.read_bytes() for file in (path, *weights))
    assert read_onnx(path).sha256 == hashlib.sha256(together).digest()


def test_other_weights_are_another_model(models: ModelMaker) -> None:
    path = split(models, "changed.bin")
    sha256 = read_onnx(path).sha256
    weights = models.folder / "changed.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(ModelRefused, match="has changed"):
        read_onnx(path, sha256)


def test_missing_weights_are_refused_by_name(models: ModelMaker) -> None:
    path = split(models, "lost.bin")
    (models.folder / "lost.bin").unlink()
    with pytest.raises(ModelRefused, match=r"'lost\.bin', which cannot be read.*external_data=False"):
        read_onnx(path)


def test_weights_cut_short_are_refused(models: ModelMaker) -> None:
    path = split(models, "short.bin")
    (models.folder / "short.bin").write_bytes(b"\0\0\0")
    with pytest.raises(ModelRefused, match="files of weights do not fit it"):
        read_onnx(path)


@pytest.mark.parametrize(
    "entries",
    [{"offset": "-8"}, {"offset": "x"}, {"offset": "1000000"}, {"length": "1000000"}, {"length": "-1"}],
    ids=str,
)
def test_places_of_weights_outside_their_file_are_refused(
    models: ModelMaker, entries: dict[str, str]
) -> None:
    model = onnx.load(split(models, "placed.bin"), load_external_data=False)
    tensor = model.graph.initializer[0]
    kept = [entry for entry in tensor.external_data if entry.key not in entries]
    del tensor.external_data[:]
    tensor.external_data.extend(kept)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    path = models.new_path()
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelRefused, match="files of weights do not fit it"):
        read_onnx(path)


def test_the_weights_that_are_served_are_those_that_were_hashed(
    models: ModelMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file is read once: what is in it a moment later is neither."""
    path = split(models, "swapped.bin")
    weights = models.folder / "swapped.bin"
    both = path.read_bytes() + weights.read_bytes()
    expected = onnx.load(path)

    def read_then_replace(file: Path) -> bytes:
        content = file.read_bytes()
        file.write_bytes(bytes(len(content)))
        return content

    monkeypatch.setattr(onnx_file, "read_file", read_then_replace)
    read = read_onnx(path)
    assert read.sha256 == hashlib.sha256(both).digest()
    assert onnx.load_model_from_string(read.content) == expected


@pytest.mark.parametrize("location", ["../elsewhere.bin", "/etc/hostname"])
def test_weights_elsewhere_are_refused(models: ModelMaker, location: str) -> None:
    model = onnx.load(split(models, "here.bin"), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path = models.new_path()
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelRefused, match="expected a file beside the model"):
        read_onnx(path)


@pytest.mark.parametrize("where", ["a graph", "a function"])
def test_weights_inside_attributes_are_found(models: ModelMaker, where: str) -> None:
    """A tensor may also lie in a node's attribute, in a graph in a node's attribute, and in a function of the
    model."""
    model = onnx.load(models.doubled())
    tensor = onnx.TensorProto(name="t", data_type=onnx.TensorProto.FLOAT, dims=[1])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="inner.bin")
    constant = onnx.helper.make_node("Constant", [], ["c"], value=tensor)
    if where == "a function":
        model.functions.append(onnx.helper.make_function("here", "f", [], ["c"], [constant], []))
    else:
        output = onnx.helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, [1])
        inner = onnx.helper.make_graph([constant], "inner", [], [output])
        model.graph.initializer.append(onnx.helper.make_tensor("yes", onnx.TensorProto.BOOL, [], [True]))
        branches = onnx.helper.make_node("If", ["yes"], ["d"], then_branch=inner, else_branch=inner)
        model.graph.node.append(branches)
    path = models.new_path()
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelRefused, match=r"inner\.bin"):
        read_onnx(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match=r"m\.onnx: no such file, expected an ONNX model"):
        read_onnx(tmp_path / "m.onnx")


def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="a directory, expected an ONNX file"):
        read_onnx(tmp_path)


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(onnx_file, "read_file", denied)
    with pytest.raises(ModelRefused, match="cannot be read: Permission denied"):
        read_onnx(tmp_path / "m.onnx")


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").touch()
    with pytest.raises(ModelRefused, match="empty, expected an ONNX model"):
        read_onnx(tmp_path / "m.onnx")


@pytest.mark.parametrize("content", [b"{}", b"hello, world\n", bytes(1000), b"\x7fELF" * 100])
def test_something_else(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelRefused, match="not an ONNX model"):
        read_onnx(tmp_path / "m.onnx")
