"""Planted defects: each a small change to what keeps the robot safe, each to be caught.

    python -m tests.proofs.mutants            all of them; prints who caught which, and how soon
    python -m tests.proofs.mutants latch      those with this in their name

Each mutant is one replacement in a copy of the tree; the quick tests then run until one fails. A
mutant that lives is a test that lacks. The old text must stand in its file exactly once, so that
the list stays true while the code changes: `test_mutants` looks at that in every run.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

ROOT = Path(__file__).parents[2]
CORE = 'smallm_ros/core'
TREE = ('smallm_ros', 'tests', 'config', 'docs', 'pyproject.toml', 'setup.py', 'package.xml')
TESTS: dict[str, tuple[str, ...]] = {
    'envelope': ('tests/test_envelope.py', 'tests/test_gate.py'),
    'shape': ('tests/test_envelope.py', 'tests/test_gate.py'),
    'driven': ('tests/test_gate.py', 'tests/test_envelope.py'),
    'baseline': ('tests/test_baseline.py', 'tests/test_gate.py'),
    'action': ('tests/test_action.py',),
}
FIRST = ('tests/proofs/test_gaps.py', 'tests/proofs/test_machine.py')
LAST = ('tests/proofs/test_traces.py', 'tests/proofs/test_hostile.py')
LIMIT_S = 240


@dataclass(frozen=True, slots=True)
class Mutant:
    """One defect."""

    name: str
    file: str
    old: str
    new: str


def _core(module: str, *defects: tuple[str, str, str]) -> list[Mutant]:
    return [Mutant(name, f'{CORE}/{module}.py', old, new) for name, old, new in defects]


MUTANTS: list[Mutant] = [
    *_core(
        'gate',
        ('a reset restarts motion', 'self._must_arm = True  #', 'self._must_arm = False  #'),
        ('the armed flag is never given back', """            self._must_arm = False
        return self._output""", """            pass
        return self._output"""),
        ('arming is a level under auto_arm alone',
         'armed=inputs.arm or (self._auto_arm and not self._must_arm)',
         'armed=self._auto_arm and not self._must_arm'),
        ('arming needs nobody', 'armed=inputs.arm or (self._auto_arm and not self._must_arm)',
         'armed=True'),
        ('a reset needs nobody', 'reset=inputs.reset,', 'reset=True,'),
        ('standing is taken for granted', 'standing=self._driven.standing(now_ns, inputs),',
         'standing=True,'),
        ('the latch of faults is forgotten',
         'MappingProxyType(dict.fromkeys(Response, State.FAULT_LATCHED)),',
         'MappingProxyType(dict.fromkeys(Response, State.FAULT_LATCHED)), back=State.HOLD,'),
        ('an emergency stop is left without a reset', 'when=lambda way: way.reset,',
         'when=lambda way: True,'),
        ('a safe stop is left while driving', 'when=lambda way: way.standing,',
         'when=lambda way: True,'),
        ('the model drives without an arm', 'when=lambda way: way.armed,',
         'when=lambda way: True,'),
        ('fallback needs no shadow answers',
         'when=lambda way: way.good_answers >= way.dwells.shadow_answers,',
         'when=lambda way: True,'),
        ('degraded needs no good answers',
         'when=lambda way: way.good_answers >= way.dwells.degraded_answers,',
         'when=lambda way: True,'),
        ('one good answer too few', 'way.good_answers >= way.dwells.degraded_answers',
         'way.good_answers > way.dwells.degraded_answers - 2'),
        ('fallback goes straight to the model', 'back=State.DEGRADED, clear_of=Response.FALLBACK,',
         'back=State.ACTIVE, clear_of=Response.FALLBACK,'),
        ('the dwell is skipped', 'dwelt = now_ns - self._clear_since_ns >= dwell_ns',
         'dwelt = True'),
        ('the dwell is a step shorter', 'dwelt = now_ns - self._clear_since_ns >= dwell_ns',
         'dwelt = now_ns + self._policy.control_period_ns - self._clear_since_ns >= dwell_ns'),
        ('the dwell is not begun anew', """row.clear_of or row.back is None:
            self._clear_since_ns = None""", """row.clear_of or row.back is None:
            pass"""),
        ('a safe stop clears under its own cause',
         'back=State.HOLD, clear_of=Response.SAFE_STOP,',
         'back=State.HOLD, clear_of=Response.ESTOP,'),
        ('the mildest finding wins', 'key=severity, reverse=True,', 'key=severity,'),
        ('towards safety only after a dwell', """            self._go(now_ns, target, worst)
        elif""", """            if self._clear_since_ns is None:
                self._go(now_ns, target, worst)
            self._clear_since_ns = None
        elif"""),
        ('the state\'s old answers count', 'self._answers.good = 0', 'pass'),
        ('a paused world goes on driving', 'if emits in (Emit.STOP, Emit.BRAKE) or wait:',
         'if emits in (Emit.STOP, Emit.BRAKE):'),
        ('valid_until is ignored',
         'if command is not None and self._answers.live(now_ns, inputs.ros_now_ns):',
         'if command is not None:'),
        ('shadow answers are applied', 'if emits is not Emit.BASELINE:', 'if True:'),
        ('what is held is called the model\'s',
         "'model' if emits is Emit.MODEL else 'hold'", "'model'"),
        ('the sequence does not increase', 'self._sequence += 1', 'pass'),
        ('an exception stops nothing',
         'self._driven.tell(now_ns, STOP, self._driven.halted_m_s())',
         'self._driven.tell(now_ns, self._driven.velocity, 0.0)'),
        ('a stop without a ramp is thought to be at once',
         """            coasting_m_s = driven.halted_m_s()
        else:""", """            coasting_m_s = 0.0
        else:"""),
        ('a broken invariant is only noted',
         'self._go(now_ns, State.FAULT_LATCHED, finding)', 'pass'),
        ('limits may loosen on the way',
         'if change.looser and self._state not in (State.STANDBY, State.HOLD):', 'if False:'),
    ),
    *_core(
        'guards',
        ('an own gap of a step more', 'most_ns = 3 *', 'most_ns = 4 *'),
        ('an own gap at its limit', 'or now_ns - last_ns <= most_ns:',
         'or now_ns - last_ns < most_ns:'),
        ('the emergency stop is not heard', 'if inputs.estop:', 'if False:'),
        ('a silent source of the emergency stop', 'if inputs.estop_silent:', 'if False:'),
        ('an emergency stop that never was', 'if inputs.estop_never:', 'if False:'),
        ('a third publisher', 'inputs.publishers > 1:', 'inputs.publishers > 2:'),
        ('a second publisher is waited for', 'cause = Cause.PUBLISHER_STANDING if standby else',
         'cause = Cause.PUBLISHER_STANDING if True else'),
        ('an exception more', 'if count >= self._dwells.exceptions else',
         'if count > self._dwells.exceptions else'),
        ('ROS time may go back', 'if step_ns < 0 or', 'if'),
        ('ROS time may leap', 'or step_ns - quiet_ns > self._dwells.clock_jump_ns:', ':'),
        ('a pause is never seen', 'if quiet_ns <= self._dwells.clock_still_ns:', 'if True:'),
        ('a fast world is driven in', 'if self.factor > self._dwells.fastest:', 'if False:'),
        ('a death is counted again and again', 'self._counted.add(worker)', 'pass'),
        ('a death more', 'if len(self._died_ns) < self._dwells.engine_deaths:',
         'if len(self._died_ns) <= self._dwells.engine_deaths:'),
        ('a death that only the next worker shows',
         'if self._worker is not None and self._worker != worker:', 'if False:'),
        ('what is in flight survives a jump', 'self._answers.flush(now_ns)', 'pass'),
        ('scans survive a jump', 'self.stamps.flush(now_ns)', 'pass'),
    ),
    *_core(
        'answers',
        ('a foreign session is accepted', 'if command.session != self.status.session:',
         'if False:'),
        ('a foreign host is accepted', 'if (command.host, command.boot) != self._home:',
         'if False:'),
        ('a foreign host\'s status', 'if (status.host, status.boot) != self._home:', 'if False:'),
        ('a second session takes over',
         'if old is not None and self._gone(now_ns, inputs) is None:',
         'if False:'),
        ('a session\'s command outlives it', """        self.accepted = None
        self.good = 0""", """        self.good = 0"""),
        ('a new session is not said', 'if old is None or self._auto_arm:', 'if True:'),
        ('a sequence twice', 'if command.sequence <= self._last_sequence or',
         'if command.sequence < self._last_sequence or'),
        ('a request twice', 'or command.request <= self._last_request:', ':'),
        ('an answer after its deadline', 'if arrival_ns > last_ns:', 'if False:'),
        ('a command that lives for ever', 'if ttl_ns > policy.ttl_ns:', 'if False:'),
        ('an observation of the future', 'if command.arrival_ns > arrival_ns:', 'if False:'),
        ('any action', """        if action is None:
            return""", """        if False:
            return"""),
        ('any velocity', 'if not _same(asked, action.velocity):', 'if False:'),
        ('NaN is swallowed', 'if not _same(asked, action.velocity):',
         """if abs(asked.linear_x_m_s - action.velocity.linear_x_m_s) > 1e-9 or (
            abs(asked.angular_z_rad_s - action.velocity.angular_z_rad_s) > 1e-9
        ):"""),
        ('confidence may be NaN', 'if not command.confidence >= least:',
         'if command.confidence < least:'),
        ('an unsure answer', 'if not command.confidence >= least:', 'if False:'),
        ('a command a step past its end', 'if now_ns >= command.valid_until_ns:',
         'if now_ns > command.valid_until_ns:'),
        ('an observation too new by its stamp', 'if stamp_age_ns < -limit_ns:', 'if False:'),
        ('an observation old by its stamp', 'age_ns = max(age_ns, stamp_age_ns)', 'pass'),
        ('an observation old by its arrival', 'age_ns = max(age_ns, stamp_age_ns)',
         'age_ns = stamp_age_ns'),
        ('a stall is never seen', """        if age_ns <= limit_ns:
            return None
        return Finding(
            Cause.ENGINE_STALLED""", """        if True:
            return None
        return Finding(
            Cause.ENGINE_STALLED"""),
        ('a batch may take twice as long', 'status.in_flight_bound_ns * 3 // 2',
         'status.in_flight_bound_ns * 3'),
        ('a dead worker', 'if self.worker in inputs.dead:', 'if False:'),
        ('a dead node', 'if (status.pid, status.start_ticks) in inputs.dead:', 'if False:'),
        ('a reused pid', 'if (status.pid, status.start_ticks) in inputs.dead:',
         'if status.pid in {pid for pid, _ in inputs.dead}:'),
        ('a node that is not active', 'if not status.active:', 'if False:'),
        ('a silent node', 'if silent_ns > limit_ns:', 'if False:'),
        ('an old status is a new one', 'if status.sequence <= old.sequence:', 'if False:'),
        ('misses are forgotten', 'self._misses.extend([now_ns]', 'self._misses.extend([]'),
        ('a miss breaks no row of good ones', """        self.good = 0
        self._misses""", """        self._misses"""),
        ('silence of commands is nothing', 'if silent_ns > self._policy.ttl_ns:', 'if False:'),
    ),
    *_core(
        'stamps',
        ('a stamp of the future', 'if abs(off_ns) > limit_ns:', 'if off_ns > limit_ns:'),
        ('a stamp of the past', 'if abs(off_ns) > limit_ns:', 'if -off_ns > limit_ns:'),
        ('a sensor that fell silent', 'if age_ns > limit_ns:', 'if False:'),
        ('a sensor at its limit', 'if age_ns > limit_ns:', 'if age_ns >= limit_ns:'),
        ('a sensor that never was', """                if sensor.required:
                    findings""", """                if False:
                    findings"""),
        ('a lost optional sensor', 'if unfit is not None and not sensor.required:',
         'if unfit is not None and not sensor.required and not findings.append(unfit):'),
        ('out of order is taken', 'if told and 0 < stamp_ns < before.fields.stamp_ns:',
         'if False:'),
    ),
    *_core(
        'facts',
        ('age is by ROS time alone', 'age_ns = now_ns - received.arrival_ns\n',
         'age_ns = (ros_now_ns or now_ns) - (received.ros_arrival_ns or received.arrival_ns)\n'),
        ('ROS time that went back makes young',
         'return min(age_ns, ros_age_ns) if ros_age_ns >= 0 else age_ns',
         'return min(age_ns, ros_age_ns)'),
        ('a paused world ages', 'return min(age_ns, ros_age_ns) if ros_age_ns >= 0 else age_ns',
         'return age_ns'),
    ),
    *_core(
        'driven',
        ('a scan is as young as it came', 'elif by_stamp_ns > age_ns:', 'elif False:'),
        ('the base acts at once', '- round(self._policy.robot.base_delay_ms * MS)', ''),
        ('turns since the scan are forgotten', 'left += max(turn, 0.0) * lasted_s', 'pass'),
        ('metres since the scan are forgotten', 'distance += speed * lasted_s', 'pass'),
        ('what lies further back is forgotten', 'if self._told and end_ns > since_ns:',
         'if False:'),
        ('a base that coasts stands', 'if self.velocity != STOP or self.coasting_m_s != 0.0:',
         'if self.velocity != STOP:'),
        ('odometry is not asked', 'abs(measured.linear_x_m_s) > STANDING_M_S', 'False'),
    ),
    *_core(
        'envelope',
        ('NaN is a speed', 'if not (math.isfinite(asked.linear_x_m_s) and', 'if False and not ('),
        ('reverse is as quick as forward', 'max(asked.linear_x_m_s, -rules.max_reverse_m_s)',
         'max(asked.linear_x_m_s, -rules.max_forward_m_s)'),
        ('any turn', 'turn = min(max(asked.angular_z_rad_s, -rules.max_turn_rad_s), '
         'rules.max_turn_rad_s)', 'turn = asked.angular_z_rad_s'),
        ('no limit of acceleration', 'min(faster * dt_s, change), min(slower * dt_s, change)',
         'math.inf, min(slower * dt_s, change)'),
        ('no limit of deceleration', 'min(faster * dt_s, change), min(slower * dt_s, change)',
         'min(faster * dt_s, change), math.inf'),
        ('no lateness in the latency',
         'delay_ns = policy.control_period_ns + policy.allowed_lateness_ns',
         'delay_ns = policy.control_period_ns'),
        ('no delay of the base in the latency', ' + policy.robot.base_delay_ms * 1e-3', ''),
        ('what was driven since is not widened',
         'reach_m + b.since.distance_m)\n            for b',
         'reach_m)\n            for b'),
        ('the unknown is free',
         'if policy.envelope.unknown_is_blocked and not around.known(low + about',
         'if False and not around.known(low + about'),
        ('without a scan all is free', """    if around is None:
        return 0.0
    low""", """    if around is None:
        return math.inf
    low"""),
        ('the stopping distance is without the latency',
         'return a * (math.sqrt(delay_s * delay_s + 2.0 * max(free_m, 0.0) / a) - delay_s)',
         'return math.sqrt(2.0 * max(free_m, 0.0) * a)'),
        ('-inf is nothing there', 'near = np.isneginf(ranges)', 'near = np.isposinf(ranges)'),
        ('beams under range_min are free',
         'unknown = np.isnan(ranges) | ((ranges < scan.range_min_m) & ~near)',
         'unknown = np.isnan(ranges)'),
        ('NaN beams are free', 'unknown = np.isnan(ranges) |', 'unknown ='),
        ('every gap is a drop-out', 'dropped = (width <= gap_rad + _SAME_BEAM * step_rad) &',
         'dropped = (width >= 0.0) &'),
        ('backwards looks ahead', 'backwards=lead_m_s < 0.0)', 'backwards=False)'),
    ),
    *_core(
        'baseline',
        ('creeping blind', """    if senses.around is None:
        return None
    return Velocity(policy.fallback.speed_m_s, 0.0)""",
         '    return Velocity(policy.fallback.speed_m_s, 0.0)'),
        ('hold goes on for ever', "'hold': lambda policy, senses: senses.held,",
         "'hold': lambda policy, senses: senses.held or senses.previous,"),
        ('decelerate speeds up', 'rest = max(0.0, 1.0 - slower / speed)',
         'rest = max(0.0, 1.0 + slower / speed)'),
        ('turning away from the gap', 'return min(max(_GAIN * heading_rad, -most), most)',
         'return min(max(-_GAIN * heading_rad, -most), most)'),
    ),
    *_core(
        'dwell',
        ('patience shortens', 'return base_ns + self._extra_ns.get(state, 0)',
         'return base_ns - self._extra_ns.get(state, 0)'),
        ('patience never grows', 'self._extra_ns[state] = doubled_ns - base_ns', 'pass'),
        ('credit at full speed', '- passed_ns // 4)', '- passed_ns)'),
    ),
    *_core(
        'cause',
        ('an own gap only degrades', 'Cause.OWN_GAP: Response.SAFE_STOP',
         'Cause.OWN_GAP: Response.DEGRADE'),
        ('an emergency stop is a safe stop', 'Cause.ESTOP: Response.ESTOP',
         'Cause.ESTOP: Response.SAFE_STOP'),
        ('a stale sensor only falls back', 'Cause.SENSOR_STALE: Response.SAFE_STOP',
         'Cause.SENSOR_STALE: Response.FALLBACK'),
        ('a dead worker only degrades', 'Cause.WORKER_DEAD: Response.FALLBACK',
         'Cause.WORKER_DEAD: Response.DEGRADE'),
    ),
    *_core(
        'invariants',
        ('speed may grow in careful states', "CAREFUL = frozenset({'SAFE_STOP', ",
         'CAREFUL = frozenset({'),
        ('motion that nobody armed', 'if velocity != STOP and not self._armed:', 'if False:'),
    ),
    *_core(
        'retune',
        ('a higher speed is careful', "'envelope.max_forward_m_s': LESS,",
         "'envelope.max_forward_m_s': MORE,"),
    ),
    *_core(
        'action',
        ('a key may stand twice', 'if len(out) != len(pairs):', 'if False:'),
        ('NaN is JSON', ', parse_constant=_no_constant)', ')'),
    ),
]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a mutant."""

    mutant: Mutant
    killer: str
    """The test that failed; empty: it lives."""
    took_s: float


def untrue() -> list[str]:
    """Return which mutants no longer fit the code."""
    out = []
    for mutant in MUTANTS:
        times = (ROOT / mutant.file).read_text().count(mutant.old)
        if times != 1:
            out.append(f'{mutant.file}: {mutant.name!r}: the old text stands there {times} times: '
                       f'{mutant.old!r}')
    return out


def judge(mutant: Mutant, tree: Path) -> Verdict:
    """Plant a mutant in a tree, run the tests until one fails, take it out again."""
    file = tree / mutant.file
    text = file.read_text()
    file.write_text(text.replace(mutant.old, mutant.new))
    began_s = time.monotonic()
    try:
        for tests in _stages(mutant):
            killer = _run(tests, tree)
            if killer:
                return Verdict(mutant, killer, time.monotonic() - began_s)
        return Verdict(mutant, '', time.monotonic() - began_s)
    finally:
        file.write_text(text)


def _stages(mutant: Mutant) -> list[tuple[str, ...]]:
    """Return the tests in the order in which they are likely to tell, a run of pytest each."""
    near = TESTS.get(Path(mutant.file).stem, ())
    own = f'tests/test_{Path(mutant.file).stem}.py'
    if not near and (ROOT / own).exists():
        near = (own,)
    return [tuple(dict.fromkeys((*FIRST, *near, 'tests/test_gate.py'))), LAST]


def _run(tests: tuple[str, ...], tree: Path) -> str:
    try:
        done = subprocess.run(
            [sys.executable, '-m', 'pytest', '-x', '-q', '-p', 'no:cacheprovider',
             '--hypothesis-seed=1', '-m', 'not ros and not model and not slow', *tests],
            check=False, cwd=tree, capture_output=True, text=True, timeout=LIMIT_S,
            env={**os.environ, 'PYTHONDONTWRITEBYTECODE': '1'},
        )
    except subprocess.TimeoutExpired:
        return f'no end within {LIMIT_S} s'
    if done.returncode == 0:
        return ''
    failed = re.search(r'^(?:FAILED|ERROR) (\S+)', done.stdout, re.MULTILINE)
    return failed[1] if failed else f'pytest ended with {done.returncode}: {done.stdout[-300:]}'


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='python -m tests.proofs.mutants', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('only', nargs='?', default='', help='part of a name or a file')
    parser.add_argument('--jobs', type=int, default=2)
    args = parser.parse_args(argv)
    for line in (lies := untrue()):
        print('UNTRUE', line)
    if lies:
        return 2
    chosen = [m for m in MUTANTS if args.only in m.name or args.only in m.file]
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix='mutants') as place:
        trees: Queue[Path] = Queue()
        for n in range(args.jobs):
            tree = Path(place) / str(n)
            for part in TREE:
                source = ROOT / part
                if source.is_dir():
                    shutil.copytree(source, tree / part,
                                    ignore=shutil.ignore_patterns('__pycache__', '*.gguf'))
                else:
                    shutil.copy(source, tree / part)
            trees.put(tree)
        for tests in (*{_stages(m)[0] for m in chosen}, LAST):
            failed = _run(tests, tree)
            if failed:
                print(f'without a mutant {failed} fails: nothing can be told')
                return 2

        def one(mutant: Mutant) -> Verdict:
            tree = trees.get()
            try:
                return judge(mutant, tree)
            finally:
                trees.put(tree)

        alive = []
        with ThreadPoolExecutor(args.jobs) as pool:
            for verdict in pool.map(one, chosen):
                name = f'{Path(verdict.mutant.file).stem}: {verdict.mutant.name}'
                print(f'{"killed" if verdict.killer else "ALIVE ":7} {verdict.took_s:5.1f} s  '
                      f'{name:60} {verdict.killer}', flush=True)
                if not verdict.killer:
                    alive.append(name)
    print(f'{len(chosen) - len(alive)} of {len(chosen)} mutants killed in '
          f'{time.monotonic() - began_s:.0f} s, {args.jobs} at a time')
    return 1 if alive else 0


if __name__ == '__main__':
    sys.exit(main())
