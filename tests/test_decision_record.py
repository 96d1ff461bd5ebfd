"""Statistics of records: ranks that were seen, shares of all ticks, causes without numbers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.decision_record import OUTCOMES, DecisionRecord, Percentiles, summarise
from tests.fakes.recordings import a_record


def test_no_record_is_no_figure() -> None:
    found = summarise([])
    assert found.ticks == found.served == found.passes_max == 0
    assert found.share_served == 0.0
    assert found.latency_ms is None
    assert set(found.outcomes) == set(OUTCOMES)
    assert (found.partial, found.plans, found.margin, found.margin_least) == (0, {}, None, None)


def test_a_hundred_samples_have_a_p99_of_their_own() -> None:
    found = Percentiles.of(float(v) for v in range(1, 101))
    assert found == Percentiles(n=100, p50=50, p90=90, p99=99, max=100)
    assert not found.thin


def test_the_p99_of_few_samples_is_flagged() -> None:
    found = Percentiles.of([3.0, 1.0, 2.0])
    assert found == Percentiles(n=3, p50=2, p90=3, p99=3, max=3)
    assert found.thin


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=300))
def test_percentiles_are_values_in_order(values: list[float]) -> None:
    found = Percentiles.of(values)
    assert found is not None
    ranks = [found.p50, found.p90, found.p99, found.max]
    assert ranks == sorted(ranks)
    assert set(ranks) <= set(values)
    assert found.max == max(values)
    assert sum(v <= found.p99 for v in values) >= 0.99 * len(values)


def test_a_story_of_ten_ticks() -> None:
    start = 1_000 * SECOND
    records = [a_record(start + k * SECOND, latency_ms=100 + k) for k in range(6)]
    records += [
        a_record(start + 6 * SECOND, 'missed', why='the answer came 5 ms late'),
        a_record(start + 7 * SECOND, 'missed', why='the answer came 12.5 ms late'),
        a_record(start + 8 * SECOND, 'no_engine', why='engine lost'),
        a_record(start + 9 * SECOND, latency_ms=301, passes=2),
    ]
    found = summarise(records)
    assert found.ticks == 10
    assert found.served == 7
    assert found.share_served == 0.7
    assert found.outcomes['missed'] == 2
    assert found.outcomes['refused'] == 0
    assert found.late == 1
    assert found.latency_ms is not None
    assert found.latency_ms.n == 7
    assert (found.latency_ms.p50, found.latency_ms.max) == (103, 301)
    assert found.passes == {1: 6, 2: 1}
    assert found.passes_max == 2
    assert [(c.outcome, c.why, c.n) for c in found.causes] == [
        ('missed', 'the answer came # ms late', 2), ('no_engine', 'engine lost', 1),
    ]
    assert found.ages_ms['scan'].n == 10


def test_an_unsure_answer_counts_its_tokens_but_not_its_latency() -> None:
    sure = a_record()
    unsure = sure.model_copy(update={'outcome': 'unsure', 'why': 'confidence 0.20 is below 0.50'})
    found = summarise([sure, unsure])
    assert found.latency_ms is not None
    assert found.latency_ms.n == 1
    assert found.evaluated_tokens is not None
    assert found.evaluated_tokens.n == 2
    assert found.served == 1


def test_how_the_answers_came_about_is_counted() -> None:
    records = [
        a_record(plan='1+1', guess=(4, 3), margin=0.5),
        a_record(plan='1', partial=True, margin=-0.1),
        a_record(plan='1+1', guess=(4, 0), margin=0.9),
        a_record(outcome='missed', why='late', partial=True),
    ]
    found = summarise(records)
    assert found.partial == 1
    assert list(found.plans.items()) == [('1+1', 2), ('1', 1)]
    assert (found.guessed_tokens, found.accepted_tokens) == (8, 3)
    assert found.margin is not None
    assert (found.margin.n, found.margin.p50, found.margin_least) == (3, 0.5, -0.1)


def test_a_record_survives_its_own_json() -> None:
    record = a_record(latency_ms=123)
    assert DecisionRecord.model_validate_json(record.model_dump_json()) == record
    assert record.latency_ns == 123 * MS
