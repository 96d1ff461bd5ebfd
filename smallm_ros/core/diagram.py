"""The gate in words and as a picture, drawn from its table: what docs/safety.md shows.

    python -m smallm_ros.core.diagram docs/safety.md

writes the part between two marks anew; a test fails while the file says something else. Nothing
here decides anything: what a condition is, is asked of the table by trying it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from smallm_ros.core.cause import CLEARS, RESPONSES, Cause, Dwells, Response
from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.gate import TABLE, Row, State, WayBack

BEGIN = '<!-- drawn by python -m smallm_ros.core.diagram -->'
END = '<!-- end of what is drawn -->'
DWELLS = Dwells()


def _s(ns: int) -> str:
    return f'{ns / SECOND:g} s'


# What is not well, and what ends it.
_WORDS: Mapping[Cause, tuple[str, str]] = MappingProxyType({
    Cause.INVARIANT: ('an output would have broken an invariant', 'never'),
    Cause.EXCEPTIONS: (
        f'{DWELLS.exceptions} exceptions in {_s(DWELLS.exception_window_ns)}', 'never'),
    Cause.SECOND_PUBLISHER: ('somebody else publishes on the output topic', 'never'),
    Cause.ENGINE_DEATHS: (
        f'{DWELLS.engine_deaths} deaths of the engine in {_s(DWELLS.engine_death_window_ns)}',
        'never'),
    Cause.ESTOP: ('the emergency stop is asserted', 'released'),
    Cause.ESTOP_SILENT: (
        'its source is silent for 1 s, where `estop_required`', 'heard again, released'),
    Cause.EXCEPTION: ('a step raised', 'the next step does not'),
    Cause.OWN_GAP: ('the watchdog itself was away for more than 3 periods', 'the next step'),
    Cause.ESTOP_NEVER: (
        'its source has not spoken since the start, where `estop_required`', 'it speaks'),
    Cause.CLOCK_ABSENT: ('no ROS time yet', 'the first `/clock`'),
    Cause.CLOCK_JUMP: (
        f'ROS time went back, or ahead by more than {_s(DWELLS.clock_jump_ns)}',
        'the next step; what arrived before counts no more'),
    Cause.SENSOR_NEVER: ('a required sensor has not spoken', 'it speaks'),
    Cause.SENSOR_STALE: ('a required sensor is silent for `stale_after_ms`', 'it speaks'),
    Cause.SENSOR_STAMP: (
        'a stamp is that far off ROS time, past or future', 'a message with a good stamp'),
    Cause.SENSOR_FROZEN: (
        'messages of a required sensor come, but repeat one stamp for `stale_after_ms`',
        'a stamp that goes on'),
    Cause.PUBLISHER_STANDING: (
        'somebody published there before the watchdog began', 'it is gone'),
    Cause.NODE_INACTIVE: ('the policy node is not active', 'it is activated'),
    Cause.SESSION_NEW: ('another policy node took over', 'at once, but it must be armed again'),
    Cause.WORKER_DEAD: ('the process with the model has ended', 'a new one is ready'),
    Cause.NODE_DEAD: ('the policy node has ended', 'a new one speaks'),
    Cause.ENGINE_STALLED: (
        'no progress for `progress_limit_ms`, or 1.5 times the bound of the batch in flight',
        'progress'),
    Cause.HOST_FOREIGN: ('a status from another host or boot', 'one from here'),
    Cause.CLOCK_FAST: (
        f'simulated time ran more than {DWELLS.fastest:g} times as fast as steady time over '
        f'{_s(DWELLS.clock_window_ns)}', 'it runs slower'),
    Cause.STATUS_NEVER: ('no policy node yet', 'it speaks'),
    Cause.STATUS_SILENT: ('the policy node is silent for `status_limit_ms`', 'it speaks'),
    Cause.ENGINE_FAILED: ('the engine gave up', 'it is started again'),
    Cause.ENGINE_ABSENT: ('there is no engine', 'it is ready'),
    Cause.ENGINE_LOADING: ('the model is being loaded', 'it is ready'),
    Cause.ANSWERS_MISSED: (
        f'{DWELLS.misses} answers missed or refused in {_s(DWELLS.miss_window_ns)}, or of the '
        f'last {DWELLS.of_last}', 'fewer'),
    Cause.COMMAND_NEVER: ('no answer of this session was accepted yet', 'the first'),
    Cause.COMMAND_SILENT: (
        'the last accepted command ended longer ago than commands live', 'an accepted one'),
    Cause.COMMAND_FOREIGN: ('a command of another host or session, refused', 'the next step'),
    Cause.COMMAND_REPEATED: ('a sequence or request number not new, refused', 'the next step'),
    Cause.COMMAND_LATE: ('a command after its deadline, refused', 'the next step'),
    Cause.COMMAND_TTL: ('a command that would live too long, refused', 'the next step'),
    Cause.COMMAND_ACTION: ('not a member of the action space, refused', 'the next step'),
    Cause.COMMAND_VELOCITY: ('a velocity that is not its action\'s, refused', 'the next step'),
    Cause.COMMAND_UNSURE: ('less sure than `min_confidence`, refused', 'the next step'),
    Cause.OBSERVATION_OLD: (
        'the observation behind it is older than `max_observation_age_ms`', 'a newer command'),
    Cause.ANSWER_MISSED: ('the policy node says that a tick had no answer', 'the next step'),
    Cause.COMMAND_EXPIRED: ('the last accepted command is past its time', 'a newer command'),
    Cause.SESSION_FOREIGN: ('a second policy node speaks beside the live one', 'it is silent'),
    Cause.ENGINE_THROTTLED: (
        f'{DWELLS.misses} of the last {DWELLS.of_last} batches took over 1.25 of their bounds',
        'quicker batches'),
    Cause.OPTIONAL_SENSOR_LOST: ('an optional sensor fell silent', 'it speaks'),
    Cause.CLOCK_PAUSED: (
        f'ROS time stands still for {DWELLS.clock_still_ns / MS:g} ms', 'it goes on'),
    Cause.NONE: ('', ''),
})


def drawn() -> str:
    """Return the picture and the tables, as Markdown."""
    return '\n'.join([
        '```mermaid', *_picture(), '```', '', *_states(), '',
        f'A dwell doubles when its state is returned to within {_s(DWELLS.return_window_ns)}, up '
        f'to {DWELLS.longest} times what', 'stands here; time spent well in bolder states takes '
        'that back, at a quarter of the speed.', '',
        *_responses(), '', *_causes(),
    ])


def redrawn(text: str) -> str:
    """Return a document with what lies between the marks drawn anew."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f'one line {BEGIN!r} and after it one {END!r} are needed')
    before, _, rest = text.partition(BEGIN)
    return f'{before}{BEGIN}\n\n{drawn()}\n\n{END}{rest.partition(END)[2]}'


def _picture() -> Iterator[str]:
    yield 'stateDiagram-v2'
    yield f'    [*] --> {State.STANDBY.value}'
    for state, row in TABLE.items():
        targets: dict[State, list[str]] = {}
        for response, target in row.on.items():
            if target is not state and _from_anywhere(response) is not target:
                targets.setdefault(target, []).append(response.name)
        for target, names in targets.items():
            yield f'    {state.value} --> {target.value} : {", ".join(names)}'
        if row.back is not None:
            yield f'    {state.value} --> {row.back.value} : {", ".join(_way_back(row))}'
    yield '    state "any other" as any'
    for response in Response:
        anywhere = _from_anywhere(response)
        if anywhere is not None:
            yield f'    any --> {anywhere.value} : {response.name}'


def _from_anywhere(response: Response) -> State | None:
    """Return where a response leads from every state that can be left, if that is one state."""
    left = {row.on[response] for row in TABLE.values() if len(set(row.on.values())) > 1}
    return left.pop() if len(left) == 1 else None


def _way_back(row: Row) -> Iterator[str]:
    """Say what the way back of a state takes, found by trying its condition."""
    dwell_ns = row.dwell_ns(DWELLS)
    clean = f'nothing of {row.clear_of.name} or worse'
    yield f'{clean} for {_s(dwell_ns)}' if dwell_ns else clean
    best = WayBack(armed=True, reset=True, standing=True, good_answers=1000, dwells=DWELLS)
    fewest = next(n for n in range(1001) if row.when(replace(best, good_answers=n)))
    if fewest:
        yield f'{fewest} good answers'
    for without, words in (
        (replace(best, armed=False), 'armed'), (replace(best, reset=False), 'reset'),
        (replace(best, standing=False), 'standing still'),
    ):
        if not row.when(without):
            yield words


def _states() -> Iterator[str]:
    yield '| state | what leaves | towards safety | back |'
    yield '|---|---|---|---|'
    for state, row in TABLE.items():
        led = ', '.join(
            f'{response.name} to {target.value}' for response, target in row.on.items()
            if target is not state
        )
        back = 'a new start of the process' if row.back is None and not led else '-'
        if row.back is not None:
            back = f'to {row.back.value}: {", ".join(_way_back(row))}'
        yield f'| `{state.value}` | {row.emits.value} | {led or "-"} | {back} |'


def _responses() -> Iterator[str]:
    yield '| response | from ACTIVE to | when what demanded it has ended, it takes |'
    yield '|---|---|---|'
    for response, target in TABLE[State.ACTIVE].on.items():
        if response is not Response.NONE:
            yield f'| {response.name} | {target.value} | {CLEARS[response].value} |'


def _causes() -> Iterator[str]:
    yield '| cause | demands | what is not well | what ends it |'
    yield '|---|---|---|---|'
    for cause in sorted(Cause, key=lambda each: -RESPONSES[each]):
        if cause is not Cause.NONE:
            what, end = _WORDS[cause]
            yield f'| `{cause.value}` | {RESPONSES[cause].name} | {what} | {end} |'


if __name__ == '__main__':
    document = Path(sys.argv[1])
    document.write_text(redrawn(document.read_text(encoding='utf-8')), encoding='utf-8')
