"""The published schema of results: what is committed is what the documents are, and results keep to it."""

from __future__ import annotations

import json

import msgspec
import pytest
from click.testing import CliRunner

from sigd.bench import result_schema
from sigd.bench.alternatives.document import Comparison
from sigd.bench.growth import Growth
from sigd.daemon.cli import cli

jsonschema = pytest.importorskip("jsonschema")


def test_the_committed_schema_is_that_of_the_documents() -> None:
    assert result_schema.FILE.read_text("utf-8") == result_schema.text(), (
        "run python -m sigd.bench.result_schema"
    )


def test_the_command_prints_it() -> None:
    done = CliRunner().invoke(cli, ["schema", "--bench"])
    assert done.exit_code == 0
    assert done.output == result_schema.text()
    assert CliRunner().invoke(cli, ["schema", "--bench", "--features", "3"]).exit_code == 2


@pytest.mark.parametrize("name", ["comparison", "growth"])
def test_results_keep_to_it(name: str, request: pytest.FixtureRequest) -> None:
    result: Comparison | Growth = request.getfixturevalue(name)
    validator = jsonschema.Draft202012Validator(json.loads(result_schema.text()))
    data = json.loads(msgspec.json.encode(result))
    assert list(validator.iter_errors(data)) == []
    del data["version"]
    assert list(validator.iter_errors(data))
