"""The ONNX project's own tests of operations: each that the lowering takes gives the expected numbers.

The package `onnx` generates them. A test's first input becomes the rows, whose first axis is the batch, and
its other inputs constants; where several inputs have as many rows, another model reads all of them. What the
lowering refuses is listed, with its reason, in `refused_node_tests.txt`. To write that file anew:

    python -m tests.models.native.test_node_tests
"""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import helper, numpy_helper
from tests.models.native.conftest import Array, run_plan

from sigd.models.errors import ModelRefused
from sigd.models.native.backend import kernels
from sigd.models.native.lowering import lower
from sigd.models.native.lowering.graph import RULES, NotCovered
from sigd.models.onnx.file import OnnxFile
from sigd.models.spec import as_served, spec_of

REFUSED: Final = Path(__file__).parent / "refused_node_tests.txt"
OPERATIONS: Final = frozenset(operation for domain, operation in RULES)
ELEMENTWISE: Final = frozenset(
    operation for (_, operation), rule in RULES.items() if rule.__module__.endswith("elementwise")
)
WITHOUT_A_TEST: Final = frozenset({"Cast", "Shape", "Tile"})
"""No test of these has float32 rows."""
_STEPS_FIRST: Final = frozenset({"LSTM", "GRU"})
"""Their rows are the second axis, unless the attribute `layout` is 1."""


@dataclass(frozen=True, slots=True)
class Case:
    """A test of the ONNX project as a model of rows.

    Attributes:
        name: of the test, the inputs that are rows, and the output.
        operation: what it tests.
        model: from rows to the one output.
        rows: float32, (n, features).
        expected: float32, (n, outputs).
    """

    name: str
    operation: str
    model: onnx.ModelProto
    rows: Array
    expected: Array


def cases() -> list[Case]:
    """Every test of a claimed operation that reads and gives float32."""
    package = importlib.import_module("onnx.backend.test.case.node")
    assert package.__file__ is not None
    for path in sorted(Path(package.__file__).parent.rglob("[a-z]*.py")):
        if OPERATIONS & set(re.findall(r'make_node\(\s*"(\w+)"', path.read_text())):
            name = ".".join(path.relative_to(Path(package.__file__).parent).with_suffix("").parts)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(f"{package.__name__}.{name}")
    return [case for test in package._NodeTestCases for case in _cases_of(test)]


def _cases_of(test: Any) -> Iterator[Case]:
    nodes = [node for node in test.model.graph.node if node.op_type != "Constant"]
    if not nodes or not all(node.op_type in OPERATIONS for node in nodes):
        return
    inputs, outputs = (list(map(_array, part)) for part in test.data_sets[0])
    if all(node.op_type in ELEMENTWISE for node in nodes):
        # One axis is a row of its own, for the functions of single values.
        inputs, outputs = ([v[np.newaxis] if v.ndim == 1 else v for v in part] for part in (inputs, outputs))
    steps_first = any(
        node.op_type in _STEPS_FIRST and not any(a.name == "layout" and a.i for a in node.attribute)
        for node in nodes
    )
    operation = nodes[0].op_type if len(nodes) == 1 else test.name
    for number, expected in enumerate(outputs):
        for chosen in _chosen(inputs):
            values = [inputs[place] for place in chosen]
            axis = 1 if steps_first else 0
            out_axis = expected.ndim - 2 if steps_first else 0
            if not _are_rows([(value, axis) for value in values] + [(expected, out_axis)]):
                continue
            rows = [np.moveaxis(value, axis, 0) for value in values]
            yield Case(
                f"{test.name}({','.join(map(str, chosen))})[{number}]",
                operation,
                _model(test.model, inputs, chosen, number, expected, (axis, out_axis)),
                np.concatenate([row.reshape(len(row), -1) for row in rows], axis=1),
                np.moveaxis(expected, out_axis, 0).reshape(len(rows[0]), -1),
            )


def _are_rows(tensors: Sequence[tuple[Array, int]]) -> bool:
    """Whether they are float32, with as many rows along their axes."""
    return (
        all(value.size and value.dtype == np.float32 and 0 <= axis < value.ndim for value, axis in tensors)
        and len({value.shape[axis] for value, axis in tensors}) == 1
    )


def _array(given: Any) -> Array:
    return numpy_helper.to_array(given) if isinstance(given, onnx.TensorProto) else np.asarray(given)


def _chosen(inputs: Sequence[Array]) -> Iterator[tuple[int, ...]]:
    """Which inputs are rows: the first, the second, and all of as many rows."""
    yield (0,)
    alike = [
        n for n, value in enumerate(inputs) if value.ndim == inputs[0].ndim and value.dtype == np.float32
    ]
    if len(inputs) == 2 and len(alike) == 2:
        yield (1,)
    if len(alike) == len(inputs) > 1 and len({value.shape[:1] for value in inputs}) == 1:
        yield tuple(alike)


def _model(
    whole: onnx.ModelProto,
    inputs: Sequence[Array],
    chosen: Sequence[int],
    number: int,
    expected: Array,
    axes: tuple[int, int],
) -> onnx.ModelProto:
    """The test with all but the chosen inputs constant, the batch moved to the front on both sides."""
    model = onnx.ModelProto()
    model.CopyFrom(whole)
    graph = model.graph
    declared, answers = list(graph.input), list(graph.output)
    del graph.input[:], graph.output[:]
    for place, (info, value) in enumerate(zip(declared, inputs, strict=True)):
        if place not in chosen:
            graph.initializer.append(numpy_helper.from_array(value, info.name))
            continue
        shape = list(np.moveaxis(value, axes[0], 0).shape)
        name = f"{info.name}_rows" if axes[0] else info.name
        graph.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
        if axes[0]:
            order = _order(value.ndim, 0, axes[0])
            graph.node.insert(0, helper.make_node("Transpose", [name], [info.name], perm=order))
    name = answers[number].name
    if axes[1]:
        order = _order(expected.ndim, axes[1], 0)
        graph.node.append(helper.make_node("Transpose", [name], ["answer_rows"], perm=order))
        name = "answer_rows"
    shape = list(np.moveaxis(expected, axes[1], 0).shape)
    graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    return model


def _order(rank: int, source: int, target: int) -> list[int]:
    order = [axis for axis in range(rank) if axis != source]
    order.insert(target, source)
    return order


def plan_or_why(case: Case) -> bytes | str:
    """The plan, or why there is none."""
    file = OnnxFile(Path("model.onnx"), case.model.SerializeToString(), case.model, bytes(32))
    try:
        spec = spec_of(file, "model")
        return lower(as_served(file, spec).model, spec)
    except NotCovered as error:
        return str(error)
    except ModelRefused:
        return "is no model of rows"


@cache
def lowered() -> list[tuple[Case, bytes | str]]:
    """Each case with its plan, or with why there is none."""
    return [(case, plan_or_why(case)) for case in cases()]


def refused() -> list[str]:
    """A line for each case that is refused."""
    return [f"{case.name}: {why}" for case, why in lowered() if isinstance(why, str)]


def test_node_tests_that_are_taken_give_the_expected_numbers() -> None:
    wrong = []
    for case, plan in lowered():
        if isinstance(plan, str):
            continue
        answers = [run_plan(plan, case.rows, name, 1) for name in kernels().instruction_sets()]
        if any(answer.tobytes() != answers[0].tobytes() for answer in answers):
            wrong.append(f"{case.name}: other bits on another instruction set")
        elif not np.allclose(answers[0], case.expected, rtol=1e-3, atol=1e-7, equal_nan=True):
            wrong.append(f"{case.name}: {answers[0]}, expected {case.expected}")
    assert wrong == []


def test_node_tests_that_are_refused_are_listed_with_their_reason() -> None:
    assert refused() == REFUSED.read_text().splitlines(), "python -m tests.models.native.test_node_tests"


def test_every_claimed_operation_has_a_node_test_that_is_taken() -> None:
    taken = {case.operation for case, plan in lowered() if isinstance(plan, bytes)}
    claimed = {operation for domain, operation in RULES if not domain}
    assert claimed - taken == WITHOUT_A_TEST


if __name__ == "__main__":
    REFUSED.write_text("\n".join(refused()) + "\n")
