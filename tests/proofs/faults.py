"""Every class of fault, as facts: how it is drawn, what it does, what must be seen and by when.

`faults.md` lists them. A class that must be seen says which causes may name it and the limit; one
that must not be seen is a thing that a robot has to bear; of others nothing is asked but that the
invariants hold. Limits are virtual milliseconds from the fault to the first step that names it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from smallm_ros.core.cause import Cause, Dwells
from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.errors import PolicyError
from smallm_ros.core.gate import State
from tests.proofs.robot import (
    BOUND_NS,
    DECISION_NS,
    PERIOD_NS,
    POLICY,
    Broken,
    Edges,
    Robot,
)

Params = dict[str, Any]
Draw = Callable[[Random], Params]
Begin = Callable[..., None]

T_MS = PERIOD_NS / MS
SECONDS = 1e9
YEARS = 365.25 * 86400 * SECONDS
STALL_MS = max(POLICY.control.progress_limit_ms, 1.5 * BOUND_NS / MS)
"""H of faults.md."""
STALE_MS = POLICY.sensors['scan'].stale_after_ms
MISS_MS = (DECISION_NS + POLICY.budget_ns) / MS
TTL_MS = POLICY.ttl_ns / MS


@dataclass(frozen=True, slots=True)
class Fault:
    """One class."""

    name: str
    draw: Draw
    begin: Begin
    causes: frozenset[Cause] = frozenset()
    """What may name it; empty: nothing is asked."""
    limit_ms: Callable[[Params], float] = lambda _: T_MS
    must: Callable[[Params], bool] = lambda _: True
    borne: Callable[[Params], bool] = lambda _: False
    """Whether the robot must go on as if nothing were."""
    fresh: bool = False
    """Whether it is there from the start."""
    latches: bool = False


def _nothing(rng: Random) -> Params:
    return {}


def _phase(rng: Random) -> int:
    """When in the period it happens: the facts of the next step hold it."""
    return rng.randrange(PERIOD_NS)


def _phased(draw: Draw) -> Draw:
    return lambda rng: {**draw(rng), 'phase_ns': _phase(rng)}


def _log_uniform(rng: Random, low: float, high: float) -> float:
    return float(low * (high / low) ** rng.random())


# --- engine ---------------------------------------------------------------------------------


def _death(robot: Robot, phase: str, told: bool) -> None:
    robot.kill_when = (phase, told)


def _freeze(robot: Robot, ns: int, forwards_late: bool) -> None:
    robot.frozen_until_ns = robot.now_ns + PERIOD_NS + ns
    robot.forwards_late = forwards_late


def _slow(robot: Robot, factor: float, forwards_late: bool) -> None:
    robot.slow, robot.forwards_late = factor, forwards_late


def _stall(robot: Robot) -> None:
    robot.stalled = True


def _bad(robot: Robot, outcome: str) -> None:
    robot.bad = outcome


def _status(robot: Robot, **changed: Any) -> None:
    robot.status_with = changed


def _deaths(robot: Robot, times: int) -> None:
    robot.deaths_left = times


# --- policy node ----------------------------------------------------------------------------


def _node_death(robot: Robot) -> None:
    robot.dead.add(robot.node)


def _node_freeze(robot: Robot, ns: int) -> None:
    robot.node_frozen_until_ns = robot.now_ns + PERIOD_NS + ns


def _flags(**flags: Any) -> Begin:
    def begin(robot: Robot) -> None:
        for name, value in flags.items():
            setattr(robot, name, value)
    return begin


def _respawn(robot: Robot, seen: bool) -> None:
    if seen:
        robot.dead.add(robot.node)
    robot.new_session()
    robot.works = []


# --- sensors --------------------------------------------------------------------------------


def _sensor(mode: str) -> Begin:
    def begin(robot: Robot, sensor: str, number: float = 0.0) -> None:
        robot.sensor_faults[sensor] = (mode, number)
    return begin


def _which(rng: Random) -> Params:
    return {'sensor': rng.choice(['scan', 'odom'])}


def _off(low: float, high: float, sign: int) -> Draw:
    return lambda rng: {**_which(rng), 'number': sign * _log_uniform(rng, low, high)}


def _beyond(params: Params) -> bool:
    """Whether a stamp is off by more than the limit, and by more than two scans beside."""
    return bool(abs(params['number']) > (STALE_MS + 2 * T_MS) * MS)


def _within(params: Params) -> bool:
    return bool(abs(params['number']) < (STALE_MS - 3 * T_MS) * MS)


# --- clock ----------------------------------------------------------------------------------


def _rate(robot: Robot, rate: float) -> None:
    robot.clock_rate = rate


def _jump(robot: Robot, number: float) -> None:
    robot.ros_ns = max(1.0, robot.ros_ns + number)


# --- commands, operator, the watchdog itself -----------------------------------------------


def _hostile(kind: str) -> Begin:
    def begin(robot: Robot, number: float) -> None:
        robot.hostile = (kind, number)
    return begin


def _hostile_number(low: float, high: float, signs: tuple[int, ...] = (1,)) -> Draw:
    return lambda rng: {'number': rng.choice(signs) * _log_uniform(rng, low, high)}


def _estop(robot: Robot) -> None:
    robot.estop = True


def _edges(robot: Robot, arm: bool, reset: bool) -> None:
    robot.edges = Edges(arm, reset)


def _flap(robot: Robot, every: int) -> None:
    robot.flapping = every


def _gap(robot: Robot, ns: int) -> None:
    robot.next_period_ns, robot.phase_ns = ns, 0


def _raise(robot: Robot, times: int) -> None:
    robot.raises = times


def _retune(robot: Robot, **limits: Any) -> None:
    moving = robot.gate.state not in (State.STANDBY, State.HOLD)
    before = robot.policy.envelope
    try:
        refused = robot.retune(**limits)
    except PolicyError:
        return  # not even a policy
    if any(isinstance(value, str) for value in limits.values()):
        raise Broken(f'no number and yet taken: {limits}')
    if moving and not refused and limits['max_forward_m_s'] > before.max_forward_m_s:
        raise Broken(f'loosened while it moves: {limits}')


C = Cause
ANSWER = frozenset({C.ANSWER_MISSED, C.ANSWERS_MISSED})
ENGINE_GONE = frozenset({C.WORKER_DEAD, C.ENGINE_ABSENT})
SAID_NOTHING = frozenset({C.STATUS_SILENT})
REFUSED = frozenset({
    C.COMMAND_FOREIGN, C.COMMAND_REPEATED, C.COMMAND_LATE, C.COMMAND_TTL, C.COMMAND_ACTION,
    C.COMMAND_VELOCITY, C.COMMAND_UNSURE, C.OBSERVATION_OLD, C.COMMAND_EXPIRED,
})


def _command(name: str, draw: Draw) -> Fault:
    # One command waits for an idle moment of the engine; its limit runs from its arrival.
    return Fault(f'command {name}', draw, _hostile(name), REFUSED)


FAULTS: dict[str, Fault] = {fault.name: fault for fault in [
    *(Fault(
        f'engine death {phase}', lambda rng: {'told': rng.random() < 0.5},
        lambda robot, told, phase=phase: _death(robot, phase, told), ENGINE_GONE,
    ) for phase in ('idle', 'prefill', 'writing')),
    *(Fault(
        f'engine freeze {ns / SECOND:g} s',
        _phased(lambda rng, ns=ns: {'ns': ns, 'forwards_late': rng.random() < 0.5}),
        _freeze, frozenset({C.ENGINE_STALLED}), lambda _: STALL_MS + T_MS,
        must=lambda _, ns=ns: ns / MS > STALL_MS + 2 * T_MS,
    ) for ns in (SECOND // 10, SECOND, 10 * SECOND)),
    *(Fault(
        f'engine slow x{factor:g}',
        _phased(lambda rng, factor=factor: {
            'factor': factor, 'forwards_late': rng.random() < 0.5}),
        _slow, ANSWER | {C.ENGINE_STALLED}, lambda _: MISS_MS + 3 * T_MS,
        must=lambda _, factor=factor: factor >= 3,
        borne=lambda _, factor=factor: factor < 2,
    ) for factor in (1.5, 3.0, 10.0)),
    Fault('engine stall', _phased(_nothing), _stall, frozenset({C.ENGINE_STALLED}),
          lambda _: STALL_MS + T_MS),
    *(Fault(
        f'engine {name}', _phased(lambda _, outcome=outcome: {'outcome': outcome}), _bad,
        ANSWER, lambda _: MISS_MS + 3 * T_MS,
    ) for name, outcome in (
        ('not finite', 'missed: not finite'), ('refused', 'refused: no time'),
        ('garbage', 'missed: garbage'),
    )),
    *(Fault(
        f'engine {engine}', _phased(lambda _, e=engine: {'engine': e}), _status,
        frozenset({cause}),
    ) for engine, cause in (
        ('absent', C.ENGINE_ABSENT), ('loading', C.ENGINE_LOADING), ('failed', C.ENGINE_FAILED),
    )),
    Fault('engine deaths in a row', lambda rng: {'times': 5, 'phase_ns': _phase(rng)}, _deaths,
          frozenset({C.ENGINE_DEATHS}), lambda _: 10 * T_MS, latches=True),

    Fault('node death', _phased(_nothing), _node_death, frozenset({C.NODE_DEAD})),
    Fault('node freeze', _phased(lambda rng: {'ns': rng.choice(
        [SECOND // 10, SECOND, 10 * SECOND])}), _node_freeze,
        SAID_NOTHING | {C.ENGINE_STALLED, C.COMMAND_EXPIRED},
        lambda _: POLICY.control.status_limit_ms + T_MS,
        must=lambda params: params['ns'] >= SECOND),
    Fault('node status silent', _phased(_nothing), _flags(status_silent=True), SAID_NOTHING,
          lambda _: POLICY.control.status_limit_ms + T_MS),
    Fault('node commands silent', _phased(_nothing), _flags(commands_silent=True),
          frozenset({C.COMMAND_EXPIRED, C.COMMAND_SILENT, C.OBSERVATION_OLD}),
          lambda _: TTL_MS + T_MS),
    Fault('node second session', _phased(_nothing), _flags(two_nodes=True),
          frozenset({C.SESSION_FOREIGN})),
    Fault('node respawn', lambda rng: {'seen': rng.random() < 0.5, 'phase_ns': _phase(rng)},
          _respawn, frozenset({C.SESSION_FOREIGN, C.SESSION_NEW, C.COMMAND_NEVER, C.NODE_DEAD})),
    Fault('node inactive', lambda rng: {'active': False, 'phase_ns': _phase(rng)}, _status,
          frozenset({C.NODE_INACTIVE})),
    Fault('node on another host', lambda rng: {
        rng.choice(['host', 'boot']): 'elsewhere', 'phase_ns': _phase(rng)}, _status,
        frozenset({C.HOST_FOREIGN})),
    Fault('node repeats itself', lambda rng: {'sequence': 1, 'phase_ns': _phase(rng)}, _status,
          SAID_NOTHING | {C.ENGINE_STALLED},
          lambda _: POLICY.control.status_limit_ms + T_MS),

    Fault('sensor never', _which, _sensor('silent'), frozenset({C.SENSOR_NEVER}), fresh=True),
    Fault('sensor silent', _phased(_which), _sensor('silent'), frozenset({C.SENSOR_STALE}),
          lambda _: STALE_MS + T_MS),
    *(Fault(
        f'sensor {mode.replace("_", " ")}', _phased(_which), _sensor(mode),
        frozenset({C.SENSOR_STALE, C.SENSOR_STAMP}), lambda _: STALE_MS + T_MS,
        # A scan of such beams is a scan: it says where nothing is known, or is very near.
        must=lambda params, whole=mode == 'empty': whole or params['sensor'] == 'odom',
    ) for mode in ('nan', 'inf', 'minus_inf', 'empty', 'length')),
    Fault('sensor stamp zero', _phased(_which), _sensor('stamp_zero')),
    *(Fault(
        f'sensor stamp {name}', _phased(_off(10 * MS, 10 * YEARS, sign)), _sensor('stamp'),
        frozenset({C.SENSOR_STAMP}), lambda _: 2 * T_MS, must=_beyond, borne=_within,
    ) for name, sign in (('past', -1), ('future', 1))),
    Fault('sensor stamp frozen', _phased(_which), _sensor('frozen_stamp'),
          frozenset({C.SENSOR_STAMP, C.SENSOR_STALE, C.SENSOR_FROZEN}),
          lambda _: STALE_MS + 3 * T_MS),
    Fault('sensor out of order', _phased(_which), _sensor('order')),
    Fault('sensor duplicate', _phased(_which), _sensor('duplicate')),

    Fault('clock paused', _phased(lambda _: {'rate': 0.0}), _rate, frozenset({C.CLOCK_PAUSED}),
          lambda _: 200 + 2 * T_MS),
    Fault('clock x0.1', _phased(lambda _: {'rate': 0.1}), _rate),
    Fault('clock x10', _phased(lambda _: {'rate': 10.0}), _rate, frozenset({C.CLOCK_FAST}),
          lambda _: Dwells().clock_window_ns / MS + T_MS),
    Fault('clock jump ahead', _phased(lambda rng: {
        'number': _log_uniform(rng, 1.1 * SECONDS, 10 * YEARS)}), _jump,
        frozenset({C.CLOCK_JUMP})),
    Fault('clock jump back', _phased(lambda rng: {
        'number': -_log_uniform(rng, 0.06 * SECONDS, 3600 * SECONDS)}), _jump,
        frozenset({C.CLOCK_JUMP})),
    Fault('clock never', _nothing, _flags(clock_absent=True), frozenset({C.CLOCK_ABSENT}),
          fresh=True),

    _command('out_of_range', _hostile_number(0.31, 1e12, (-1, 1))),
    _command('nan', _hostile_number(1, 2, (-1, 1))),
    _command('stale', _hostile_number(1, 900 * SECONDS)),
    _command('expired', _hostile_number(1, 900 * SECONDS)),
    _command('old', _hostile_number(1, 900 * SECONDS)),
    _command('future', _hostile_number(1, 10 * YEARS)),
    _command('future_stamp', _hostile_number(1, 1 * YEARS)),
    _command('immortal', _hostile_number(1, 10 * YEARS)),
    _command('duplicate', lambda rng: {'number': rng.choice([0, 1, 2, 5])}),
    _command('wrong_request', lambda rng: {'number': rng.choice([0, 1, 2, 5])}),
    _command('unknown_source', lambda _: {'number': 0}),
    _command('foreign_host', _hostile_number(1, 2, (-1, 1))),
    _command('no_action', _hostile_number(1, 2, (-1, 1))),
    _command('unsure', _hostile_number(1, 2, (-1, 1))),

    Fault('estop', _phased(_nothing), _estop, frozenset({C.ESTOP})),
    Fault('estop flapping', lambda rng: {'every': rng.choice([2, 3, 5]),
                                         'phase_ns': _phase(rng)}, _flap,
          frozenset({C.ESTOP}), lambda params: params['every'] * T_MS),
    Fault('estop source silent', _phased(_nothing), _flags(estop_silent=True),
          frozenset({C.ESTOP_SILENT})),
    Fault('estop source never', _nothing, _flags(estop_never=True), frozenset({C.ESTOP_NEVER}),
          fresh=True),
    Fault('own gap', lambda rng: {'ns': 3 * PERIOD_NS + 1 + rng.randrange(5 * SECOND)}, _gap,
          frozenset({C.OWN_GAP})),
    Fault('own gap borne', lambda rng: {'ns': PERIOD_NS + rng.randrange(2 * PERIOD_NS)}, _gap,
          borne=lambda _: True),
    Fault('own exception', lambda rng: {'times': rng.choice([1, 2]), 'phase_ns': _phase(rng)},
          _raise, frozenset({C.EXCEPTION, C.EXCEPTIONS})),
    Fault('own exceptions', lambda rng: {'times': 3, 'phase_ns': _phase(rng)}, _raise,
          frozenset({C.EXCEPTIONS}), lambda _: 3 * T_MS, latches=True),
    Fault('second publisher', _phased(_nothing), _flags(publishers=2),
          frozenset({C.SECOND_PUBLISHER}), latches=True),
    Fault('limits tightened', _phased(lambda rng: {
        'max_forward_m_s': rng.choice([0.1, 0.2, 0.25]),
        'max_acceleration_m_s2': rng.choice([0.2, 0.4])}), _retune, borne=lambda _: True),
    Fault('limits loosened', _phased(lambda rng: {
        'max_forward_m_s': rng.choice([1.5, 10.0]),
        'max_turn_rad_s': rng.choice([0.1, 1.5, 2.0])}), _retune, borne=lambda _: True),
    Fault('limits not numbers', _phased(lambda rng: {
        rng.choice(['max_forward_m_s', 'max_deceleration_m_s2', 'margin_m']): rng.choice(
            ['NaN', 'inf', '-1', 'fast'])}), _retune, borne=lambda _: True),
]}
"""Floods and 64 MB strings end before the gate: depth 1, one take a tick, sizes before parsing."""


OTHERS: dict[str, Begin] = {
    'heal': lambda robot: robot.heal(),
    'operate': _flags(operating=True),
    'edges': _edges,
}
"""What may happen beside faults."""


def apply(robot: Robot, name: str, params: Params) -> None:
    """Let one event happen now, before the next tick, and note it."""
    robot.events.append((robot.ticks, name, dict(params)))
    rest = dict(params)
    robot.phase_ns = rest.pop('phase_ns', robot.phase_ns)
    begin = FAULTS[name].begin if name in FAULTS else OTHERS[name]
    begin(robot, **rest)
