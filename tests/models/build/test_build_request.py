"""What may be asked of a build, and the command that asks for it again."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigd.models.build.request import Batches, BuildRequest, check_runtime_options, rebuild_words
from sigd.models.errors import ModelRefused
from sigd.models.manifest import RuntimeName
from sigd.models.spec import read_spec

if TYPE_CHECKING:
    from tests.conftest import ModelMaker


def sizes(batches: Batches) -> list[tuple[int, int, int]]:
    return [(p.rows_min, p.rows_opt, p.rows_max) for p in batches.profiles()]


def request(**changes: Any) -> BuildRequest:
    return BuildRequest(**{"model": Path("m.onnx"), "engine": Path("m.engine"), **changes})


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        (Batches(), [(n, n, n) for n in (1, 2, 4, 8, 16, 32, 64)]),
        (Batches(rows_max=12), [(n, n, n) for n in (1, 2, 4, 8, 12)]),
        (Batches(buckets=(8, 1, 8)), [(1, 1, 1), (8, 8, 8)]),
        (Batches(rows_min=1), [(1, 64, 64)]),
        (Batches(rows_opt=8, rows_max=32), [(1, 8, 32)]),
        (Batches(rows_min=2, rows_opt=4, rows_max=8), [(2, 4, 8)]),
    ],
)
def test_profiles_follow_from_what_is_given(batches: Batches, expected: list[tuple[int, int, int]]) -> None:
    assert sizes(batches) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows_min": 9, "rows_opt": 8}, "min 9, opt 8, max 64; expected min <= opt <= max"),
        ({"rows_opt": 65}, "opt 65, max 64"),
        ({"buckets": (1, 2), "rows_max": 2}, "--batch-buckets names every size"),
        ({"buckets": (0,)}, "less than 1 row"),
        ({"rows_max": 0}, "less than 1 row"),
    ],
)
def test_batches_that_contradict_each_other_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Batches(**options)


def test_a_fixed_batch_is_its_own_only_profile(models: ModelMaker) -> None:
    spec = read_spec(models.mlp(batch=5))
    assert [p.rows_max for p in Batches().profiles_for(spec)] == [5]
    assert [p.rows_max for p in Batches(buckets=(5,)).profiles_for(spec)] == [5]
    with pytest.raises(ModelRefused, match="its batch is fixed to 5 rows"):
        Batches(rows_max=8).profiles_for(spec)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "int8"}, "give some with --calibration"),
        ({"engine": Path("m.plan")}, "expected a name that ends in .engine"),
        ({"compute_capability": "sm_86"}, "compute capability 'sm_86', expected a number such as 8.6"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        request(**changes)


@pytest.mark.parametrize(
    ("runtime", "changes", "message"),
    [
        ("onnxruntime", {"compute_capability": "8.6"}, "--compute-capability: for a GPU only"),
        (
            "onnxruntime",
            {"timing_cache": Path("t"), "workspace_bytes_max": 1},
            "--max-workspace, --timing-cache",
        ),
        ("onnxruntime", {"precision": "tf32"}, "tensor cores"),
        ("tensorrt-rtx", {"timing_cache": Path("t"), "compute_capability": "8.6"}, "has no such cache"),
        ("tensorrt-rtx", {}, "must be told for which"),
    ],
)
def test_options_that_a_runtime_does_not_have_are_refused(
    runtime: RuntimeName, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_runtime_options(request(**changes), runtime)


def test_the_rebuild_command_names_files_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = request(
        precision="int8", calibration=Path("rows.npy"), agreement_min=0.99, compute_capability="8.6"
    )
    words = rebuild_words(asked, "tensorrt-rtx", fixed_batch=False)
    assert shlex.join(words) == (
        f"sigd build-engine {tmp_path}/m.onnx --output {tmp_path}/m.engine --runtime tensorrt-rtx --precision"
        " int8 --seed 0"
        f" --batch-max 64 --compute-capability 8.6 --calibration {tmp_path}/rows.npy --calibration-method"
        " minmax"
        " --agreement-min 0.99"
    )
    assert "--batch-max" not in rebuild_words(asked, "tensorrt-rtx", fixed_batch=True)


maybe_rows = st.none() | st.integers(1, 100)


@given(st.tuples(maybe_rows, maybe_rows, maybe_rows) | st.lists(st.integers(1, 100), min_size=1))
def test_the_words_of_batches_ask_for_the_same_profiles(asked: Any) -> None:
    try:
        batches = (
            Batches(rows_min=asked[0], rows_opt=asked[1], rows_max=asked[2])
            if isinstance(asked, tuple)
            else Batches(buckets=tuple(asked))
        )
    except ValueError:
        return
    names = {"--batch-min": "rows_min", "--batch-opt": "rows_opt", "--batch-max": "rows_max"}
    words = batches.words()
    again: dict[str, Any] = {}
    for option, value in zip(words[::2], words[1::2], strict=True):
        if option == "--batch-buckets":
            again["buckets"] = tuple(int(size) for size in value.split(","))
        else:
            again[names[option]] = int(value)
    assert Batches(**again).profiles() == batches.profiles()
