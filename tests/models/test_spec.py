"""The spec as read from ONNX files, and every reason for which a file is refused."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, ValueInfoProto, helper

from sigd.models.errors import ModelRefused
from sigd.models.spec import FEATURES_MAX, NAME_BYTES_MAX, OUTPUTS_MAX, model_name, read_spec
from sigd.wire import fields, layout

if TYPE_CHECKING:
    from tests.conftest import ModelMaker

RELU = helper.make_node("Relu", ["features"], ["logits"])


def value(name: str, dims: list[int | str | None] | None, dtype: int = TensorProto.FLOAT) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, dims)


def test_reads_names_shapes_digest_and_opset(models: ModelMaker) -> None:
    path = models.mlp(features=8, outputs=3)
    spec = read_spec(path)
    assert spec.name == path.stem
    assert spec.path == path
    assert spec.sha256 == hashlib.sha256(path.read_bytes()).digest()
    assert (spec.input_name, spec.output_name) == ("features", "logits")
    assert (spec.features, spec.outputs) == (8, 3)
    assert (spec.input_dims, spec.output_dims) == ((8,), (3,))
    assert spec.batch_rows is None
    assert spec.opset == 17


def test_takes_a_path_as_text_and_a_name(models: ModelMaker) -> None:
    assert read_spec(str(models.mlp()), name="lob").name == "lob"


def test_more_than_two_axes_are_served_flattened(models: ModelMaker) -> None:
    spec = read_spec(models.conv(channels=2, length=16))
    assert (spec.features, spec.input_dims) == (32, (2, 16))


def test_an_output_of_one_axis_is_one_output(models: ModelMaker) -> None:
    spec = read_spec(models.summed())
    assert (spec.outputs, spec.output_dims) == (1, ())


def test_an_input_of_one_axis_is_one_feature(models: ModelMaker) -> None:
    spec = read_spec(models.graph([RELU], ["N"], ["N"]))
    assert (spec.features, spec.input_dims) == (1, ())


@pytest.mark.parametrize("batch", [1, 16])
def test_a_fixed_batch_is_kept(models: ModelMaker, batch: int) -> None:
    assert read_spec(models.mlp(batch=batch)).batch_rows == batch


def test_a_batch_axis_without_a_name_is_free(models: ModelMaker) -> None:
    assert read_spec(models.graph([RELU], [None, 4], [None, 4])).batch_rows is None


def test_input_and_output_may_name_the_batch_differently(models: ModelMaker) -> None:
    assert read_spec(models.graph([RELU], ["N", 4], ["unk__7", 4])).batch_rows is None


@pytest.mark.parametrize("output_dims", [None, ["N", None], ["N", "width"]])
def test_an_unstated_output_shape_is_inferred(
    models: ModelMaker, output_dims: list[int | str | None] | None
) -> None:
    spec = read_spec(models.graph([RELU], ["N", 4], output_dims))
    assert (spec.outputs, spec.output_dims) == (4, (4,))


def test_weights_listed_among_the_inputs_are_no_inputs(models: ModelMaker) -> None:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4], [1.0, 2.0, 3.0, 4.0])
    nodes = [helper.make_node("Mul", ["features", "w"], ["logits"])]
    graph = helper.make_graph(
        nodes, "g", [value("features", ["N", 4]), value("w", [4])], [value("logits", ["N", 4])], [weight]
    )
    assert read_spec(models.save(graph)).input_name == "features"


def test_limits_are_those_of_the_wire() -> None:
    assert (FEATURES_MAX, OUTPUTS_MAX) == (fields.FEATURES_MAX, layout.OUTPUTS_MAX)


def test_the_largest_row_is_served(models: ModelMaker) -> None:
    assert read_spec(models.graph([RELU], ["N", OUTPUTS_MAX], ["N", OUTPUTS_MAX])).features == OUTPUTS_MAX


@pytest.mark.parametrize(
    ("input_dims", "output_dims", "reason"),
    [
        (["N", "M"], ["N", "M"], r"\[N, M\], expected a size on every axis but the batch.*--dim M=SIZE"),
        (
            ["N", None, 4],
            ["N", None, 4],
            r"\[N, \?, 4\], expected a size on every axis.*--dim features.1=SIZE",
        ),
        ([5, "N", "M"], [5, "N", "M"], r"\[5, N, M\], expected a size on every axis"),
        (["N", 0], ["N", 0], "sizes of at least 1"),
        ([0, 4], [0, 4], "sizes of at least 1"),
        (
            ["N", FEATURES_MAX + 1],
            ["N", FEATURES_MAX + 1],
            "16,374 features per row, expected at most 16,373",
        ),
        (["N", 2, FEATURES_MAX], ["N", 2, FEATURES_MAX], "32,746 features per row"),
        (["N", FEATURES_MAX], ["N", FEATURES_MAX], "16,373 outputs per row, expected at most 16,370"),
    ],
)
def test_shapes_that_are_refused(
    models: ModelMaker, input_dims: list[int | str | None], output_dims: list[int | str | None], reason: str
) -> None:
    path = models.graph([RELU], input_dims, output_dims)
    with pytest.raises(ModelRefused, match=reason) as refusal:
        read_spec(path)
    assert str(refusal.value).startswith(f"{path}: ")


def test_an_output_size_that_nothing_tells_is_refused(models: ModelMaker) -> None:
    nodes = [
        helper.make_node("NonZero", ["features"], ["found"]),
        helper.make_node("Cast", ["found"], ["logits"], to=TensorProto.FLOAT),
    ]
    with pytest.raises(ModelRefused, match="output 'logits' has"):
        read_spec(models.graph(nodes, ["N", 4], None))


@pytest.mark.parametrize(
    ("declared", "answered", "features", "batch_rows"),
    [
        (["N", 4], [1, 4], 4, None),
        ([2, 4], [1, 4], 4, 2),
        ([-1, 4], [-1, 4], 4, None),
        ([64], [64], 64, 1),
        ([5, "N", 4], [5, "N", 4], 20, None),
        ([], [], 1, 1),
    ],
    ids=["wrong-output", "wrong-fixed-output", "minus-one", "no-batch", "batch-on-axis-1", "scalar"],
)
def test_a_run_finds_the_shape_that_the_declaration_does_not_give(
    models: ModelMaker,
    declared: list[int | str | None],
    answered: list[int | str | None],
    features: int,
    batch_rows: int | None,
) -> None:
    spec = read_spec(models.graph([RELU], declared, answered))
    assert (spec.features, spec.outputs, spec.batch_rows) == (features, features, batch_rows)


def test_a_model_without_input_is_refused(models: ModelMaker) -> None:
    constant = helper.make_tensor("c", TensorProto.FLOAT, [1, 2], [1.0, 2.0])
    nodes = [helper.make_node("Constant", [], ["logits"], value=constant)]
    with pytest.raises(ModelRefused, match=r"has no input, expected at least one"):
        read_spec(models.save(helper.make_graph(nodes, "g", [], [value("logits", [1, 2])])))


def test_an_input_of_strings_is_refused_with_the_way_out(models: ModelMaker) -> None:
    nodes = [helper.make_node("Cast", ["features"], ["logits"], to=TensorProto.FLOAT)]
    graph = helper.make_graph(
        nodes, "g", [value("features", ["N", 4], TensorProto.STRING)], [value("logits", ["N", 4])]
    )
    with pytest.raises(ModelRefused, match=r"'features' holds strings.*Int64TensorType\(\[None, 1\]\)"):
        read_spec(models.save(graph))


def test_an_output_of_any_text_is_refused(models: ModelMaker) -> None:
    nodes = [helper.make_node("Cast", ["features"], ["logits"], to=TensorProto.STRING)]
    graph = helper.make_graph(
        nodes, "g", [value("features", ["N", 4])], [value("logits", ["N", 4], TensorProto.STRING)]
    )
    with pytest.raises(ModelRefused, match="holds strings, and the graph does not say which"):
        read_spec(models.save(graph))


def test_an_output_that_is_no_tensor_is_refused(models: ModelMaker) -> None:
    nodes = [helper.make_node("SequenceConstruct", ["features"], ["logits"])]
    sequence = helper.make_tensor_sequence_value_info("logits", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [value("features", ["N", 4])], [sequence])
    with pytest.raises(ModelRefused, match=r"'logits' is seq\(tensor\(float\)\), expected floats"):
        read_spec(models.save(graph))


@pytest.mark.parametrize("name", ["", "x" * (NAME_BYTES_MAX + 1), "é" * 17, "two\nlines", "nul\0"])
def test_a_name_that_the_wire_cannot_carry_is_refused(name: str) -> None:
    with pytest.raises(ModelRefused, match="expected 1 to 32 printable UTF-8 bytes"):
        model_name(Path("m.onnx"), name)


def test_a_name_of_32_bytes_is_taken() -> None:
    assert model_name(Path("m.onnx"), "é" * 16) == "é" * 16


def test_a_long_file_name_needs_another_name(models: ModelMaker) -> None:
    path = models.mlp().rename(models.folder / f"{'long' * 10}.onnx")
    with pytest.raises(ModelRefused, match="takes 40 bytes"):
        read_spec(path)
    assert read_spec(path, name="short").name == "short"


def test_an_unknown_operator_is_refused(models: ModelMaker) -> None:
    path = models.graph([helper.make_node("Guess", ["features"], ["logits"])], ["N", 4], ["N", 4])
    with pytest.raises(ModelRefused, match="not a valid ONNX model: No Op registered for Guess"):
        read_spec(path)


@given(cut=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_short_anywhere_is_refused(models: ModelMaker, cut: float) -> None:
    content = models.mlp().read_bytes()
    path = models.folder / "cut.onnx"
    path.write_bytes(content[: int(len(content) * cut)])
    with pytest.raises(ModelRefused):
        read_spec(path)


@given(changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_corrupted_file_is_served_or_refused(models: ModelMaker, changes: list[tuple[int, int]]) -> None:
    content = bytearray(models.summed().read_bytes())
    for place, byte in changes:
        content[place % len(content)] = byte
    path = models.folder / "corrupted.onnx"
    path.write_bytes(content)
    with suppress(ModelRefused):
        assert read_spec(path).features > 0


def test_a_newer_ir_version_is_told_with_the_ways_out(models: ModelMaker) -> None:
    model = onnx.load(models.mlp())
    model.ir_version = 99
    path = models.new_path()
    onnx.save(model, path)
    with pytest.raises(ModelRefused, match=r"IR version 99, .*pip install --upgrade onnx.* before onnx.save"):
        read_spec(path)
