"""What can be not well, and what each of those demands.

Each is a Finding: a Cause, with its numbers in words. A cause demands a Response, responses are
ordered and the most careful wins, so that adding a check can only make the robot more careful.
What shows itself by how long or how often it happens counts by the Dwells.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from smallm_ros.core.clock import SECOND


class Response(enum.IntEnum):
    """What a finding demands; the greatest wins."""

    NONE = 0
    WAIT = 1
    """Stand while it lasts, in the same state."""
    DEGRADE = 2
    FALLBACK = 3
    SAFE_STOP = 4
    ESTOP = 5
    FAULT = 6


class Cause(str, enum.Enum):
    """Why; of causes with the same response, the first named here is reported."""

    INVARIANT = 'invariant'
    EXCEPTIONS = 'exceptions'
    SECOND_PUBLISHER = 'second_publisher'
    ENGINE_DEATHS = 'engine_deaths'
    ESTOP = 'estop'
    ESTOP_SILENT = 'estop_silent'
    EXCEPTION = 'exception'
    OWN_GAP = 'own_gap'
    ESTOP_NEVER = 'estop_never'
    CLOCK_ABSENT = 'clock_absent'
    CLOCK_JUMP = 'clock_jump'
    SENSOR_NEVER = 'sensor_never'
    SENSOR_STALE = 'sensor_stale'
    SENSOR_STAMP = 'sensor_stamp'
    SENSOR_FROZEN = 'sensor_frozen'
    PUBLISHER_STANDING = 'publisher_standing'
    NODE_INACTIVE = 'node_inactive'
    SESSION_NEW = 'session_new'
    WORKER_DEAD = 'worker_dead'
    NODE_DEAD = 'node_dead'
    ENGINE_STALLED = 'engine_stalled'
    HOST_FOREIGN = 'host_foreign'
    CLOCK_FAST = 'clock_fast'
    STATUS_NEVER = 'status_never'
    STATUS_SILENT = 'status_silent'
    ENGINE_FAILED = 'engine_failed'
    ENGINE_ABSENT = 'engine_absent'
    ENGINE_LOADING = 'engine_loading'
    ANSWERS_MISSED = 'answers_missed'
    COMMAND_NEVER = 'command_never'
    COMMAND_SILENT = 'command_silent'
    COMMAND_FOREIGN = 'command_foreign'
    COMMAND_REPEATED = 'command_repeated'
    COMMAND_LATE = 'command_late'
    COMMAND_TTL = 'command_ttl'
    COMMAND_ACTION = 'command_action'
    COMMAND_VELOCITY = 'command_velocity'
    COMMAND_UNSURE = 'command_unsure'
    OBSERVATION_OLD = 'observation_old'
    ANSWER_MISSED = 'answer_missed'
    COMMAND_EXPIRED = 'command_expired'
    SESSION_FOREIGN = 'session_foreign'
    ENGINE_THROTTLED = 'engine_throttled'
    OPTIONAL_SENSOR_LOST = 'optional_sensor_lost'
    CLOCK_PAUSED = 'clock_paused'
    NONE = 'none'


RESPONSES: Mapping[Cause, Response] = MappingProxyType({
    Cause.INVARIANT: Response.FAULT,
    Cause.EXCEPTIONS: Response.FAULT,
    Cause.SECOND_PUBLISHER: Response.FAULT,
    Cause.ENGINE_DEATHS: Response.FAULT,
    Cause.ESTOP: Response.ESTOP,
    Cause.ESTOP_SILENT: Response.ESTOP,
    Cause.EXCEPTION: Response.SAFE_STOP,
    Cause.OWN_GAP: Response.SAFE_STOP,
    Cause.ESTOP_NEVER: Response.SAFE_STOP,
    Cause.CLOCK_ABSENT: Response.SAFE_STOP,
    Cause.CLOCK_JUMP: Response.SAFE_STOP,
    Cause.SENSOR_NEVER: Response.SAFE_STOP,
    Cause.SENSOR_STALE: Response.SAFE_STOP,
    Cause.SENSOR_STAMP: Response.SAFE_STOP,
    Cause.SENSOR_FROZEN: Response.SAFE_STOP,
    Cause.PUBLISHER_STANDING: Response.SAFE_STOP,
    Cause.NODE_INACTIVE: Response.SAFE_STOP,
    Cause.SESSION_NEW: Response.SAFE_STOP,
    Cause.WORKER_DEAD: Response.FALLBACK,
    Cause.NODE_DEAD: Response.FALLBACK,
    Cause.ENGINE_STALLED: Response.FALLBACK,
    Cause.HOST_FOREIGN: Response.FALLBACK,
    Cause.CLOCK_FAST: Response.FALLBACK,
    Cause.STATUS_NEVER: Response.FALLBACK,
    Cause.STATUS_SILENT: Response.FALLBACK,
    Cause.ENGINE_FAILED: Response.FALLBACK,
    Cause.ENGINE_ABSENT: Response.FALLBACK,
    Cause.ENGINE_LOADING: Response.FALLBACK,
    Cause.ANSWERS_MISSED: Response.FALLBACK,
    Cause.COMMAND_NEVER: Response.FALLBACK,
    Cause.COMMAND_SILENT: Response.FALLBACK,
    Cause.COMMAND_FOREIGN: Response.DEGRADE,
    Cause.COMMAND_REPEATED: Response.DEGRADE,
    Cause.COMMAND_LATE: Response.DEGRADE,
    Cause.COMMAND_TTL: Response.DEGRADE,
    Cause.COMMAND_ACTION: Response.DEGRADE,
    Cause.COMMAND_VELOCITY: Response.DEGRADE,
    Cause.COMMAND_UNSURE: Response.DEGRADE,
    Cause.OBSERVATION_OLD: Response.DEGRADE,
    Cause.ANSWER_MISSED: Response.DEGRADE,
    Cause.COMMAND_EXPIRED: Response.DEGRADE,
    Cause.SESSION_FOREIGN: Response.DEGRADE,
    Cause.ENGINE_THROTTLED: Response.DEGRADE,
    Cause.OPTIONAL_SENSOR_LOST: Response.DEGRADE,
    Cause.CLOCK_PAUSED: Response.WAIT,
    Cause.NONE: Response.NONE,
})


class Clears(enum.Enum):
    """What ends the state that a cause demanded, once its condition has ended."""

    ITSELF = 'nothing more'
    DWELL = 'a time in which nothing demanded that state'
    OPERATOR = 'a reset by the operator'
    NEVER = 'a new start of the process'


CLEARS: Mapping[Response, Clears] = MappingProxyType({
    Response.NONE: Clears.ITSELF,
    Response.WAIT: Clears.ITSELF,
    Response.DEGRADE: Clears.DWELL,
    Response.FALLBACK: Clears.DWELL,
    Response.SAFE_STOP: Clears.DWELL,
    Response.ESTOP: Clears.OPERATOR,
    Response.FAULT: Clears.NEVER,
})


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not well, with its numbers in words."""

    cause: Cause
    detail: str

    @property
    def response(self) -> Response:
        """What it demands."""
        return RESPONSES[self.cause]

    @property
    def clears(self) -> Clears:
        """What ends the state that it demands."""
        return CLEARS[self.response]


WELL = Finding(Cause.NONE, '')

_RANK = {cause: i for i, cause in enumerate(Cause)}


def severity(finding: Finding) -> tuple[int, int]:
    """Return what orders findings: the worst is the greatest."""
    return finding.response, -_RANK[finding.cause]


@dataclass(frozen=True, slots=True)
class Dwells:
    """How long and how often, steady time; the defaults are for robots."""

    standby_good_ns: int = 1 * SECOND
    degraded_clean_ns: int = 2 * SECOND
    degraded_answers: int = 5
    """Good answers in a row before the model drives again."""
    misses: int = 3
    miss_window_ns: int = 5 * SECOND
    of_last: int = 5
    """`misses` of so many answers are too many however long they take; slow batches likewise."""
    fallback_clean_ns: int = 5 * SECOND
    shadow_answers: int = 3
    safe_stop_clear_ns: int = 2 * SECOND
    estop_released_ns: int = SECOND // 2
    engine_deaths: int = 5
    engine_death_window_ns: int = 60 * SECOND
    exceptions: int = 3
    exception_window_ns: int = 1 * SECOND
    clock_still_ns: int = SECOND // 5
    """ROS time that stood still this long is paused; shorter is a slow /clock."""
    clock_window_ns: int = 2 * SECOND
    """Over which a simulation's real-time factor is measured."""
    fastest: float = 1.2
    """Real-time factor above which the model does not drive."""
    return_window_ns: int = 60 * SECOND
    """A state that is returned to sooner has twice its dwell."""
    longest: int = 8
    """Times the dwell that doubling ends at."""
    clock_jump_ns: int = 1 * SECOND
