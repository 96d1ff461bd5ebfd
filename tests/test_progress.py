"""The progress page: what the writer said last is what a reader sees, torn or not."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smallm_ros.core.clock import MS, ManualClock
from smallm_ros.core.exchange import EngineState, Progress
from smallm_ros.engine.progress import ProgressPage, ProgressWriter


@pytest.fixture
def page() -> Iterator[ProgressPage]:
    page = ProgressPage.create(77)
    yield page
    page.close()


def test_a_new_page_says_since_when_it_loads(page: ProgressPage) -> None:
    assert page.read() == Progress(EngineState.LOADING, 0, 77, 0, 0, 0)


def test_a_story_of_batches(page: ProgressPage) -> None:
    clock = ManualClock(0)
    theirs = ProgressPage(os.dup(page.fd))
    writer = ProgressWriter(theirs, clock)
    clock.advance_ms(1)
    writer.loading(0.5)
    assert page.read() == Progress(EngineState.LOADING, 1, 1 * MS, 0, 0, 0)
    clock.advance_ms(1)
    writer.loading(0.5)
    assert page.read().beat_ns == 1 * MS, 'a load that does not get further is no progress'
    writer.ready()
    assert page.read() == Progress(EngineState.READY, 2, 2 * MS, 0, 0, 0)
    clock.advance_ms(1)
    writer.begin(9 * MS)
    assert page.read() == Progress(EngineState.READY, 3, 3 * MS, 1, 3 * MS, 9 * MS)
    clock.advance_ms(5)
    writer.end()
    assert page.read() == Progress(EngineState.READY, 4, 8 * MS, 0, 0, 0)
    writer.idle()
    writer.begin(1)
    assert page.read().in_flight == 2
    theirs.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(counts=st.lists(st.integers(0, 2**40), min_size=2, max_size=5), torn=st.integers(0, 59))
def test_a_torn_write_leaves_the_record_before_it(
    page: ProgressPage, counts: list[int], torn: int
) -> None:
    records = [Progress(EngineState.READY, n, n, 0, 0, 0) for n in counts]
    for record in records:
        page.write(record)
    newest = page._sequence % 2 * 128
    page._map[newest + torn] ^= 0xFF
    assert ProgressPage(os.dup(page.fd)).read() == records[-2]
    assert page.read() == records[-2]


def test_when_both_are_torn_the_reader_keeps_what_it_saw(page: ProgressPage) -> None:
    page.write(Progress(EngineState.READY, 5, 5, 0, 0, 0))
    seen = page.read()
    page._map[:256] = os.urandom(256)
    assert page.read() == seen
