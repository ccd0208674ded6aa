"""The text of a scrape, read by the parser of prometheus-client and held against the counters."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sigd.daemon.admin.metrics import exposition
from sigd.daemon.admin.metrics.exposition import Exposition
from sigd.daemon.admin.metrics.families import FAMILIES
from sigd.daemon.admin.metrics.family import Kind, Source
from sigd.daemon.admin.metrics.tables import shown_name
from sigd.daemon.serving.counters import USERS_MAX
from sigd.wire.status import RejectCode, Status

if TYPE_CHECKING:
    from tests.daemon.admin.metrics.conftest import MakeSource
    from tests.daemon.conftest import Rig

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scraped(rig: Rig, make_source: MakeSource) -> str:
    """One scrape."""

    async def main() -> str:
        return (await Exposition(make_source(rig)).scrape()).decode()

    return asyncio.run(main())


def samples(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(read: Samples, name: str, **labels: str) -> float:
    return read[name, frozenset(labels.items())]


def test_requests_batches_and_latencies(make_rig: type[Rig], make_source: MakeSource) -> None:
    rig = make_rig(batch_rows_max=8, in_flight_max=4)
    rig.backend.run_ns = 6_500
    client = rig.connect()
    client.write(rig.requests(range(5)))
    rig.run()
    assert [status for _, status in client.statuses()].count(Status.BUSY) == 1
    client.write(rig.request(9, float("nan")), rig.request(10, deadline_ns=1))
    rig.run()
    other = rig.connect()
    rig.batcher.close_fast_path()
    other.write(rig.request(1))
    assert other.deliver()
    read = samples(scraped(rig, make_source))
    for status, count in ((Status.OK, 4), (Status.BUSY, 1), (Status.BAD_INPUT, 1), (Status.EXPIRED, 1)):
        assert value(read, "sigd_requests_total", model="fake", status=status.name) == count
    assert value(read, "sigd_requests_total", model="fake", status="CONFLATED") == 0
    assert value(read, "sigd_requests_in_flight", model="fake") == 1
    assert value(read, "sigd_requests_waiting", model="fake") == 1
    assert value(read, "sigd_batch_rows_count", model="fake") == 1
    assert value(read, "sigd_batch_rows_sum", model="fake") == 4
    assert value(read, "sigd_batch_rows_bucket", model="fake", le="2") == 0
    assert value(read, "sigd_batch_rows_bucket", model="fake", le="4") == 1
    assert value(read, "sigd_total_latency_us_count", model="fake") == 7
    assert value(read, "sigd_model_latency_us_bucket", model="fake", le="5") == 0
    assert value(read, "sigd_model_latency_us_bucket", model="fake", le="7") == 1
    assert value(read, "sigd_model_latency_us_bucket", model="fake", le="+Inf") == 1
    assert value(read, "sigd_latency_max_us", model="fake", stage="model") == 6.5


def test_clients_and_the_daemon_itself(make_rig: type[Rig], make_source: MakeSource) -> None:
    rig = make_rig()
    rig.client().say(b"x" * 80)
    rig.client_counters.slow_readers = 3
    read = samples(scraped(rig, make_source))
    assert value(read, "sigd_rejects_total", code="UNSUPPORTED_VERSION") == 1
    assert {labels for name, labels in read if name == "sigd_rejects_total"} == {
        frozenset({("code", code.name)}) for code in RejectCode
    }
    assert not [labels for name, labels in read if name == "sigd_user_rejects_total"]
    assert value(read, "sigd_slow_readers_total") == 3
    assert value(read, "process_start_time_seconds") == 1_700_000_000.25
    assert value(read, "process_resident_memory_bytes") > 1 << 20
    assert value(read, "sigd_loop_page_faults_total", kind="minor") > 0
    assert value(read, "process_cpu_seconds_total") > 0


def test_rejects_by_user_are_bounded_however_many_users_there_are(
    make_rig: type[Rig], make_source: MakeSource
) -> None:
    rig = make_rig()
    for uid in range(1000, 1000 + USERS_MAX + 5):
        for _ in range(2):
            rig.client_counters.count_user_reject(RejectCode.NOT_AUTHORISED, uid)
    rig.client_counters.count_user_reject(RejectCode.UNKNOWN_MODEL, 1000)
    read = samples(scraped(rig, make_source))
    told = [labels for name, labels in read if name == "sigd_user_rejects_total"]
    assert len(told) == USERS_MAX + 2
    assert value(read, "sigd_user_rejects_total", code="NOT_AUTHORISED", uid="1000") == 2
    assert value(read, "sigd_user_rejects_total", code="UNKNOWN_MODEL", uid="1000") == 1
    assert value(read, "sigd_user_rejects_total", code="NOT_AUTHORISED", uid="others") == 10


def test_every_family_is_told_with_its_words(make_rig: type[Rig], make_source: MakeSource) -> None:
    families = list(text_string_to_metric_families(scraped(make_rig(), make_source)))
    assert [family.name for family in families] == [family.name for family in FAMILIES]
    for told, family in zip(families, FAMILIES, strict=True):
        assert (told.type, told.documentation) == (family.kind.value, family.words)
        for sample in told.samples:
            assert set(sample.labels) - {"le"} == set(family.labels)


def test_names_that_would_break_a_line(make_rig: type[Rig], make_source: MakeSource) -> None:
    rig = make_rig()
    rig.batcher.name = 'a "quoted\\" %s {50%}\nname NaN'
    read = samples(scraped(rig, make_source))
    assert value(read, "sigd_requests_in_flight", model=rig.batcher.name) == 0


def test_a_kernel_that_does_not_tell(
    make_rig: type[Rig], make_source: MakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sigd.daemon.runtime.loop_monitor.SCHEDULER", "/proc/none")
    text = scraped(make_rig(), make_source)
    assert not re.search(r"^sigd_loop_runnable_seconds_total ", text, re.MULTILINE)
    assert len(samples(text)) > 100


def test_after_it_is_prepared_the_library_is_left_alone(
    make_rig: type[Rig], make_source: MakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make_rig()

    async def main() -> tuple[str, str]:
        told = Exposition(make_source(rig))
        told.prepare()
        with monkeypatch.context() as patched:
            patched.setattr(exposition, "template_of", pytest.fail)
            first = await told.scrape()
        rig.batcher.name = "another"
        return first.decode(), (await told.scrape()).decode()

    first, second = asyncio.run(main())
    assert 'model="fake"' in first
    assert 'model="another"' in second
    assert 'model="fake"' not in second


def test_the_loop_turns_between_families(make_rig: type[Rig], make_source: MakeSource) -> None:
    rig = make_rig()

    async def main() -> int:
        told = Exposition(make_source(rig))
        scrape = asyncio.create_task(told.scrape())
        turns = 0
        while not scrape.done():
            turns += 1
            await asyncio.sleep(0)
        return turns

    assert asyncio.run(main()) >= len(FAMILIES)


def test_no_two_families_share_a_name() -> None:
    names = [shown_name(family) for family in FAMILIES]
    assert len(names) == len(set(names))


def test_a_histogram_has_a_value_for_each_line(make_rig: type[Rig], make_source: MakeSource) -> None:
    async def main() -> Source:
        return make_source(make_rig())

    source = asyncio.run(main())
    for family in FAMILIES:
        for labels, values in family.read(source):
            assert len(labels) == len(family.labels)
            assert len(values) == (len(family.bounds) + 3 if family.kind is Kind.HISTOGRAM else 1)
