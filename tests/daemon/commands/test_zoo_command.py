"""`sigd zoo`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from sigd.models.zoo.catalogue import ZOO, zoo_file

Run = Callable[..., Any]


def test_models_are_listed_with_shapes_and_parameters(run_command: Run) -> None:
    ran = run_command("zoo")
    assert ran.code == 0
    assert "lstm_a       50x100        1     160,901  2 LSTM layers of 100\n" in ran.out
    assert len(ran.out.splitlines()) == 1 + len(ZOO)
    listed = json.loads(run_command("zoo", "--json").out)
    assert {one["name"]: one["input_dims"] for one in listed} == {
        name: list(model.row_dims) for name, model in ZOO.items()
    }


def test_file_is_written(run_command: Run, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    ran = run_command("zoo", "mlp_295k", "-o", path)
    assert (ran.code, ran.out) == (0, f"written: {path}; show it with sigd inspect {path}\n")
    assert path.read_bytes() == zoo_file("mlp_295k")
    assert run_command("zoo", "MLP_295K", "--seed", "2", "-o", path).code == 0
    assert path.read_bytes() == zoo_file("mlp_295k", 2)
    onnx.checker.check_model(onnx.load(path))


def test_folder_that_is_not_there_ends_with_3(run_command: Run, tmp_path: Path) -> None:
    ran = run_command("zoo", "gbt_a", "-o", str(tmp_path / "none" / "m.onnx"))
    assert (ran.code, "cannot be written (No such file or directory)" in ran.err) == (3, True)


def test_wrong_use_is_told_with_what_was_expected(run_command: Run) -> None:
    for arguments, words in {
        ("lstm",): "no model is called 'lstm', expected one of lstm_a, ",
        ("gbt_a",): "where to write gbt_a? Give the file: sigd zoo gbt_a -o gbt_a.onnx",
        ("-o", "m.onnx"): "without a NAME, expected one of lstm_a, ",
        ("gbt_a", "--json"): "--json is for the list",
    }.items():
        ran = run_command("zoo", *arguments)
        assert ran.code == 2
        assert words in ran.err
