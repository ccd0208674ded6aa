"""The dashboard and the alerts ask for nothing that a living daemon does not tell."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sigd.daemon.admin.metrics.families import FAMILIES
from sigd.daemon.admin.metrics.tables import shown_name
from sigd.daemon.serving import native_lane
from sigd.wire.errors import Rejected
from sigd.wire.ring import why_not_here

if TYPE_CHECKING:
    from tests.conftest import ModelMaker
    from tests.e2e.conftest import StartDaemon

DOCS = Path(__file__).resolve().parents[2] / "docs"
RULES = DOCS / "prometheus" / "sigd.rules.yml"
RULES_TEST = DOCS / "prometheus" / "sigd.rules.test.yml"
BOARD = DOCS / "grafana" / "sigd.json"
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool (Debian: apt install prometheus)"
)

_SELECTOR = re.compile(r"\b((?:sigd|process)_\w+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)(=~|=)"([^"]*)"')
OF_THE_SCRAPE = ("job", "instance")
"""Labels that Prometheus adds."""
NEEDS_A_GPU = "sigd_gpu_memory_bytes"
HAS_LANES = native_lane.is_built() and not why_not_here()
IN_NO_PANEL = {"process_start_time_seconds": "each start is marked in all panels"}


def board_queries(node: Any) -> Iterator[str]:
    """Every query of the dashboard, also those of its variables."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("expr", "query") and isinstance(value, str) and value != "prometheus":
                yield value
            yield from board_queries(value)
    elif isinstance(node, list):
        for item in node:
            yield from board_queries(item)


def rule_expressions() -> list[tuple[str, str]]:
    text = RULES.read_text()
    return re.findall(r"^        expr: >\n((?:          .*\n)+)|^        expr: (.*)$", text, re.MULTILINE)


def selectors(expression: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Names and the patterns of their labels, but those of the scrape; what is a variable matches all."""
    for name, matchers in _SELECTOR.findall(expression):
        patterns = {}
        for label, how, pattern in _MATCHER.findall(matchers):
            if label not in OF_THE_SCRAPE:
                patterns[label] = ".*" if "$" in pattern else pattern if how == "=~" else re.escape(pattern)
        yield name, patterns


@pytest.fixture(scope="module")
def expressions() -> dict[str, list[str]]:
    """Of both files."""
    board = list(board_queries(json.loads(BOARD.read_text())))
    rules = ["".join(found) for found in rule_expressions()]
    assert len(board) > 20
    assert len(rules) == RULES.read_text().count("expr:") > 12
    return {"the dashboard": board, "the rules": rules}


def test_every_series_that_is_asked_for_is_told(
    start_daemon: StartDaemon, models: ModelMaker, expressions: dict[str, list[str]], tmp_path: Path
) -> None:
    model = str(models.copied(4))
    lane = ("--lane-cpu", str(max(os.sched_getaffinity(0))), "--lane-idle", "block") if HAS_LANES else ()
    daemon = start_daemon(
        "--model", model, "--shadow", model, "--idle", "spin", "--record", str(tmp_path / "kept"), *lane
    )
    with daemon.connect() as client:
        client.request([1.0, 2.0, 3.0, 4.0])
        with pytest.raises(Rejected):
            daemon.connect(model_name="another")
        # It is counted by user once its connection has ended.
        while "sigd_user_rejects_total{" not in (text := daemon.metrics()):
            time.sleep(0.005)
    told = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    asked = 0
    for where, queries in expressions.items():
        for query in queries:
            for name, patterns in selectors(query):
                asked += 1
                if name == NEEDS_A_GPU or (name.startswith("sigd_lane_") and not HAS_LANES):
                    continue
                assert any(
                    sample.name == name
                    and all(
                        label in sample.labels and re.fullmatch(pattern, sample.labels[label])
                        for label, pattern in patterns.items()
                    )
                    for sample in told
                ), f"{where}: nothing is told that {name}{patterns} asks for, in: {query}"
    assert asked > 40


def test_every_label_that_is_grouped_by_or_shown_is_there(expressions: dict[str, list[str]]) -> None:
    """A misspelt label groups all into one and shows an empty name, unnoticed."""
    known = {label for family in FAMILIES for label in family.labels} | {"le", *OF_THE_SCRAPE}
    used = set()
    for query in (query for queries in expressions.values() for query in queries):
        for labels in re.findall(r"\b(?:by|on) \(([^)]*)\)", query):
            used |= {label.strip() for label in labels.split(",")}
    shown = BOARD.read_text() + RULES.read_text()
    used |= set(re.findall(r"\{\{ *\$labels\.(\w+) *\}\}", shown))
    used |= set(re.findall(r'"legendFormat": "[^"]*?\{\{(\w+)\}\}', shown))
    assert used <= known
    assert {"model", "instance", "code"} <= used


def test_every_metric_has_its_panel() -> None:
    board = json.loads(BOARD.read_text())
    shown = {
        re.sub(r"_(bucket|sum|count)$", "", name)
        for query in board_queries(board["panels"])
        for name, _ in _SELECTOR.findall(query)
    }
    assert {shown_name(family) for family in FAMILIES} - shown == set(IN_NO_PANEL)
    marks = list(board_queries(board["annotations"]))
    for name in IN_NO_PANEL:
        assert any(name in query for query in marks), name


def test_legends_tell_daemons_apart() -> None:
    checked = 0
    for panel in json.loads(BOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            if panel["type"] in ("heatmap", "table"):
                continue
            checked += 1
            assert "{{instance}}" in target["legendFormat"], panel["title"]
            for labels in re.findall(r"\bby \(([^)]*)\)", target["expr"]):
                assert "instance" in labels, panel["title"]
    assert checked > 30


def test_counter_that_begins_with_its_first_event_is_not_read_by_increase_alone() -> None:
    """increase() needs two samples of a series, and this one has its first when it is 1 already."""
    born_late = "sigd_user_rejects_total"
    queries = [query for query in board_queries(json.loads(BOARD.read_text())) if born_late in query]
    assert queries
    for query in queries:
        assert re.search(rf"{born_late}\{{[^}}]*\}} unless {born_late}\{{[^}}]*\}} offset", query)
    for expression in rule_expressions():
        assert born_late not in "".join(expression)


def test_the_dashboard_can_be_imported() -> None:
    board = json.loads(BOARD.read_text())
    assert board["uid"] == "sigd"
    panels = board["panels"]
    numbers = [panel["id"] for panel in panels]
    assert len(numbers) == len(set(numbers))
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (column, line)
            for column in range(place["x"], place["x"] + place["w"])
            for line in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, f"{panel['title']} lies over another"
        taken |= cells
        if panel["type"] != "row":
            assert panel["targets"], panel["title"]
            assert panel["datasource"]["uid"] == "${datasource}", "it must not name one Prometheus of ours"


def test_every_alert_is_shown_to_fire_and_to_keep_silent() -> None:
    alerts = re.findall(r"- alert: (\w+)", RULES.read_text())
    tested = RULES_TEST.read_text()
    assert len(alerts) == len(set(alerts)) > 10
    for alert in alerts:
        fires = rf"alertname: {alert}\n        exp_alerts:\n          - exp_labels"
        assert re.search(fires, tested), f"no test shows {alert} fire"
    silent = set(re.findall(r"alertname: (\w+)\n        exp_alerts: \[\]", tested))
    # What these need to fire is all that there is to them, in series that the other tests have and that do
    # not fire.
    assert set(alerts) - silent == {"SigdCoreIsShared"}
    for alert in alerts:
        entry = RULES.read_text().split(f"- alert: {alert}\n")[1].split("- alert:")[0]
        assert "severity:" in entry
        assert "summary:" in entry
        assert "action:" in entry


@needs_promtool
@pytest.mark.parametrize("command", [["check", "rules", RULES.name], ["test", "rules", RULES_TEST.name]])
def test_promtool_agrees(command: list[str]) -> None:
    done = subprocess.run(
        ["promtool", *command], cwd=RULES.parent, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


@needs_promtool
def test_promtool_understands_every_query(expressions: dict[str, list[str]], tmp_path: Path) -> None:
    """Those of the dashboard as recording rules, with numbers for Grafana's variables."""
    rules = ["groups:", "- name: dashboard", "  rules:"]
    for number, query in enumerate(expressions["the dashboard"]):
        if not query.startswith("label_values("):
            query = query.replace("$__rate_interval", "1m").replace("'", "''")
            rules += [f"  - record: query:{number}", f"    expr: '{query}'"]
    (tmp_path / "rules.yml").write_text("\n".join(rules))
    done = subprocess.run(
        ["promtool", "check", "rules", str(tmp_path / "rules.yml")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_first_reject_of_a_user_is_shown(tmp_path: Path) -> None:
    """A series that is born with 1 counts in full; one that was there before counts what is new."""
    (query,) = (
        query for query in board_queries(json.loads(BOARD.read_text())) if "sigd_user_rejects_total" in query
    )
    expression = query.replace("$__rate_interval", "4m").replace("$instance", ".*")
    (tmp_path / "rules.yml").write_text(
        "groups: [{name: g, rules: [{record: turned_away, expr: " + json.dumps(expression) + "}]}]"
    )
    (tmp_path / "test.yml").write_text("""
rule_files: [rules.yml]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {series: 'sigd_build_info{instance="a"}', values: '1x30'}
      - {series: 'sigd_user_rejects_total{instance="a",uid="7",code="NOT_AUTHORISED"}', values: '_x10 1x20'}
      - {series: 'sigd_build_info{instance="new"}', values: '_x12 1x20'}
      - {series: 'sigd_user_rejects_total{instance="new",uid="7",code="NOT_AUTHORISED"}', values: '_x12 90x20'}
    promql_expr_test:
      - expr: turned_away
        eval_time: 12m
        exp_samples:
          - {labels: 'turned_away{instance="a",uid="7",code="NOT_AUTHORISED"}', value: 1}
      - {expr: turned_away, eval_time: 25m, exp_samples: []}
""")
    done = subprocess.run(
        ["promtool", "test", "rules", "test.yml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
