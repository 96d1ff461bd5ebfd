"""The table alone, every combination of it, explored to the end: no robot, no time."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator

import pytest

from smallm_ros.core.cause import RESPONSES, Cause, Dwells, Response
from smallm_ros.core.clock import SECOND
from smallm_ros.core.gate import TABLE, Emit, State, WayBack
from smallm_ros.core.invariants import CAREFUL
from tests.proofs.oracle import CAREFUL as SAID_CAREFUL
from tests.proofs.oracle import LEGAL, STANDING_STATES

DWELLS = Dwells()
NAMES = ('armed', 'reset', 'standing')
Edge = tuple[State, Response, WayBack, bool, State]


def ways() -> Iterator[WayBack]:
    """Every combination of what a way back may depend on."""
    answers = sorted({0, 1, DWELLS.shadow_answers - 1, DWELLS.shadow_answers,
                      DWELLS.degraded_answers - 1, DWELLS.degraded_answers})
    for *flags, good in itertools.product(*[(False, True)] * len(NAMES), answers):
        yield WayBack(**dict(zip(NAMES, flags, strict=True)), good_answers=good, dwells=DWELLS)


def after(state: State, response: Response, way: WayBack, dwelt: bool) -> State:
    """What one step does to a state: the table as its docstring says it is read."""
    row = TABLE[state]
    if row.on[response] is not state:
        return row.on[response]
    if row.back is None or response >= row.clear_of or not dwelt or not row.when(way):
        return state
    return row.back


EDGES: list[Edge] = [
    (state, response, way, dwelt, after(state, response, way, dwelt))
    for state, response, way, dwelt in itertools.product(
        State, Response, list(ways()), (False, True))
]


def test_the_exploration_holds_every_combination() -> None:
    # 8 states, 7 responses, 8 sets of flags, 6 counts of answers, dwelt or not
    assert len(EDGES) == 8 * 7 * 8 * 6 * 2


def test_no_step_leads_where_the_design_has_no_way() -> None:
    for state, *_, to in EDGES:
        assert to in LEGAL[state]
    taken = {(state, to) for state, *_, to in EDGES}
    assert taken == {(state, to) for state in State for to in LEGAL[state]}, 'a way is closed'


def test_every_state_is_reached_from_standby() -> None:
    reached, waiting = {State.STANDBY}, deque([State.STANDBY])
    while waiting:
        here = waiting.popleft()
        for state, *_, to in EDGES:
            if state is here and to not in reached:
                reached.add(to)
                waiting.append(to)
    assert reached == set(State)


def test_active_is_entered_from_hold_when_armed_and_from_degraded_with_answers() -> None:
    entered = [edge for edge in EDGES if edge[4] is State.ACTIVE and edge[0] is not State.ACTIVE]
    assert entered
    for state, response, way, dwelt, _ in entered:
        assert state in (State.HOLD, State.DEGRADED)
        assert dwelt
        if state is State.HOLD:
            assert way.armed
            assert response is Response.NONE
        else:
            assert way.good_answers >= DWELLS.degraded_answers
            assert response <= Response.WAIT


def test_each_way_back_asks_for_what_the_design_says_and_no_less() -> None:
    asks = {
        State.STANDBY: (Response.FALLBACK, lambda way: True),
        State.HOLD: (Response.WAIT, lambda way: way.armed),
        State.DEGRADED: (Response.DEGRADE, lambda way: way.good_answers >= 5),
        State.FALLBACK: (Response.FALLBACK, lambda way: way.good_answers >= 3),
        State.SAFE_STOP: (Response.SAFE_STOP, lambda way: way.standing),
        State.ESTOP_LATCHED: (Response.ESTOP, lambda way: way.reset),
    }
    for state, (clear_of, when) in asks.items():
        for began, response, way, dwelt, to in EDGES:
            if began is state and TABLE[state].on[response] is state:
                goes = dwelt and response < clear_of and when(way)
                assert (to is TABLE[state].back) == goes, (state, response, way)
    least_s = {
        State.STANDBY: 1.0, State.HOLD: 0.0, State.DEGRADED: 2.0, State.FALLBACK: 5.0,
        State.SAFE_STOP: 2.0, State.ESTOP_LATCHED: 0.5,
    }
    assert {s: TABLE[s].dwell_ns(DWELLS) / SECOND for s in asks} == least_s


def test_a_safe_stop_is_left_standing_an_emergency_stop_by_a_reset() -> None:
    for state, response, way, dwelt, to in EDGES:
        if state is State.SAFE_STOP and to is State.HOLD:
            assert way.standing and dwelt and response < Response.SAFE_STOP
        if state is State.ESTOP_LATCHED and to is State.HOLD:
            assert way.reset and dwelt and response < Response.ESTOP


def test_a_latched_fault_is_for_good() -> None:
    assert {to for state, *_, to in EDGES if state is State.FAULT_LATCHED} == {
        State.FAULT_LATCHED}


@pytest.mark.parametrize('state', [s for s in State if s is not State.FAULT_LATCHED])
def test_when_all_is_well_every_other_state_comes_to_hold_or_drives(state: State) -> None:
    best = WayBack(**dict.fromkeys(NAMES, True), good_answers=99, dwells=DWELLS)
    path = [state]
    while path[-1] not in (State.HOLD, State.ACTIVE):
        path.append(after(path[-1], Response.NONE, best, True))
        assert len(path) < len(State), path
    assert after(State.HOLD, Response.NONE, best, True) is State.ACTIVE


@pytest.mark.parametrize('state', [s for s in State if s is not State.FAULT_LATCHED])
def test_every_state_finds_a_way_to_hold(state: State) -> None:
    reached, waiting = {state}, deque([state])
    while waiting:
        here = waiting.popleft()
        for began, *_, to in EDGES:
            if began is here and to not in reached:
                reached.add(to)
                waiting.append(to)
    assert State.HOLD in reached


def test_one_level_back_at_a_time_and_never_past_hold() -> None:
    backs = {state: row.back for state, row in TABLE.items()}
    assert backs == {
        State.STANDBY: State.HOLD, State.HOLD: State.ACTIVE, State.ACTIVE: None,
        State.DEGRADED: State.ACTIVE, State.FALLBACK: State.DEGRADED,
        State.SAFE_STOP: State.HOLD, State.ESTOP_LATCHED: State.HOLD, State.FAULT_LATCHED: None,
    }


def test_a_worse_finding_never_leads_to_a_bolder_state() -> None:
    boldness = [State.ACTIVE, State.DEGRADED, State.FALLBACK, State.SAFE_STOP, State.STANDBY,
                State.HOLD, State.ESTOP_LATCHED, State.FAULT_LATCHED]
    for state, way, dwelt in itertools.product(State, list(ways()), (False, True)):
        ranks = [
            boldness.index(after(state, response, way, dwelt)) for response in Response
            if response >= Response.DEGRADE  # below it, the way back is the table's own
        ]
        if TABLE[state].back is None or not dwelt:
            assert ranks == sorted(ranks), (state, ranks)


def test_what_a_state_emits_and_how_careful_it_is() -> None:
    assert {state for state, row in TABLE.items() if row.emits is Emit.STOP} == STANDING_STATES
    assert [s for s, row in TABLE.items() if row.emits is Emit.MODEL] == [State.ACTIVE]
    assert [s for s, row in TABLE.items() if row.emits is Emit.LAST] == [State.DEGRADED]
    assert [s for s, row in TABLE.items() if row.emits is Emit.BASELINE] == [State.FALLBACK]
    assert [s for s, row in TABLE.items() if row.emits is Emit.BRAKE] == [State.SAFE_STOP]
    assert CAREFUL == SAID_CAREFUL


def test_no_cause_demands_less_than_the_design_says() -> None:
    least = {
        Response.FAULT: 'invariant exceptions second_publisher engine_deaths',
        Response.ESTOP: 'estop estop_silent',
        Response.SAFE_STOP: 'exception own_gap estop_never clock_absent clock_jump sensor_never '
                            'sensor_stale sensor_stamp publisher_standing node_inactive '
                            'session_new',
        Response.FALLBACK: 'worker_dead node_dead engine_stalled host_foreign status_never '
                           'status_silent engine_failed engine_absent engine_loading '
                           'answers_missed command_never command_silent',
        Response.DEGRADE: 'command_foreign command_repeated command_late command_ttl '
                          'command_action command_velocity command_unsure observation_old '
                          'answer_missed command_expired session_foreign optional_sensor_lost',
        Response.WAIT: 'clock_paused',
    }
    for response, names in least.items():
        for name in names.split():
            assert RESPONSES[Cause(name)] >= response, name
