"""Replay: the same bag, engine and clock give the same run; every failure ends in one line."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from smallm_ros.core.clock import MS, SECOND, ManualClock
from smallm_ros.core.decision_record import DecisionRecord, summarise
from smallm_ros.core.errors import ModelFileError, OperatorError, PolicyError
from smallm_ros.core.exchange import DeclarationRejected, ModelLimits
from smallm_ros.core.pilot import Identity, Say
from smallm_ros.core.policy import Policy, load_policy
from smallm_ros.core.prompt import declaration
from smallm_ros.engine.scripted import Act, Line
from smallm_ros.record.reader import read_declarations, read_models, read_records
from smallm_ros.record.writer import Entry
from smallm_ros.replay.bag import Bag
from smallm_ros.replay.report import fallbacks, spans
from smallm_ros.replay.runner import Replayed, replay
from tests.fakes.engine_process import wait_for
from tests.fakes.recordings import POLICY, SHARED_BAGS, policy_with, small_policy, write_bag
from tests.fakes.virtual_engine import VirtualEngine, VirtualPace

IDENTITY = Identity('0123456789abcdef', 'host', 'boot', 4000, 1)
FORWARD = Line(leaf=1, delay_ns=80 * MS)


@dataclass
class Story:
    """A replay in virtual time."""

    result: Replayed
    engine: VirtualEngine
    entries: list[Entry] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    @property
    def recorded(self) -> list[DecisionRecord]:
        return [entry for entry in self.entries if isinstance(entry, DecisionRecord)]


def tell(
    path: Path, script: Sequence[Line] = (FORWARD,), *, policy: Policy | None = None,
    limit_ns: int | None = None, loading_s: float = 2.0,
    away: Sequence[tuple[float, float]] = (),
) -> Story:
    clock = ManualClock()
    engine = VirtualEngine(clock, script, loading_s=loading_s, away=away)
    chosen = policy or small_policy()
    entries: list[Entry] = []
    said: list[str] = []
    with Bag(path, chosen) as bag:
        result = replay(
            bag, chosen, engine, VirtualPace(clock, engine), IDENTITY, record=entries.append,
            say=said.append, check_engine=lambda: None, limit_ns=limit_ns,
        )
    engine.close()
    return Story(result, engine, entries, said)


@pytest.fixture(scope='module')
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten seconds without a fault."""
    return write_bag(tmp_path_factory.mktemp('bags') / 'bag', seconds=10)


def test_the_bag_begins_when_the_engine_is_ready(bag: Path) -> None:
    story = tell(bag, loading_s=5.0)
    assert story.result.begin_ns >= 1_000 * SECOND + 5 * SECOND
    assert any('loading' in line for line in story.said)
    assert story.result.model is not None
    assert story.result.model.name == 'scripted'
    assert story.recorded[0].outcome == 'decided'


def test_every_tick_is_served_on_time_by_a_quick_engine(bag: Path) -> None:
    story = tell(bag)
    found = summarise(story.recorded)
    assert found.ticks == found.served == 20
    # A scan each 200 ms is 0 or 100 ms old at a tick each 500, and the script takes 80.
    assert {record.latency_ns // MS for record in story.recorded} == {80, 180}
    assert tuple(story.recorded) == story.result.records
    assert {record.linear_x_m_s for record in story.recorded} == {0.1}


def test_the_gate_lets_the_model_drive_after_its_good_second(bag: Path) -> None:
    story = tell(bag)
    states = [s.state for s in spans(story.result.applied, story.result.end_ns)]
    assert list(dict.fromkeys(states)) == ['STANDBY', 'HOLD', 'ACTIVE']
    applied = story.result.applied
    assert applied[-1].source == 'model'
    assert applied[-1].linear_x_m_s == pytest.approx(0.1)
    steps = {b.steady_ns - a.steady_ns for a, b in itertools.pairwise(applied)}
    assert steps == {50 * MS}
    assert all(frame.late_ns == 0 for frame in applied)


def test_the_same_replay_twice_is_the_same(bag: Path) -> None:
    script = [FORWARD, Line(leaf=0, delay_ns=250 * MS), Line(leaf=1, delay_ns=400 * MS)]
    first, second = tell(bag, script), tell(bag, script)
    assert first.result == second.result
    assert first.said == second.said


def test_a_slow_answer_is_missed_and_the_fallback_has_a_cause(bag: Path) -> None:
    story = tell(bag, [FORWARD] * 8 + [Line(leaf=1, delay_ns=400 * MS)] * 4)
    found = summarise(story.recorded)
    assert found.outcomes['missed'] > 0
    assert found.late == 0
    assert all(r.ended_ns <= r.deadline_ns + 50 * MS for r in story.recorded)
    taken = fallbacks(spans(story.result.applied, story.result.end_ns))
    assert any(cause.startswith('answer') for _, cause in taken)


def test_an_engine_that_goes_away_and_comes_back(bag: Path) -> None:
    story = tell(bag, loading_s=0.1, away=[(4.0, 6.0)])
    outcomes = [record.outcome for record in story.recorded]
    assert 'no_engine' in outcomes
    assert outcomes[-1] == 'decided'
    taken = fallbacks(spans(story.result.applied, story.result.end_ns))
    assert any(state == 'FALLBACK' for state, _ in taken)


def test_a_gap_in_the_scans_is_unfit_and_stops_the_robot(tmp_path: Path) -> None:
    path = write_bag(tmp_path / 'bag', seconds=8, silent=[(3.0, 5.0)])
    story = tell(path)
    found = summarise(story.recorded)
    assert found.outcomes['unfit'] >= 2
    taken = fallbacks(spans(story.result.applied, story.result.end_ns))
    assert ('SAFE_STOP', 'sensor_stale') in taken


def test_a_recorded_robot_that_drives_on_does_not_hold_the_gate(tmp_path: Path) -> None:
    # The recorded speed is 0.1 m/s throughout: after a stop the gate must still see its own.
    path = write_bag(tmp_path / 'bag', seconds=10, silent=[(2.0, 3.6)])
    story = tell(path)
    states = list(dict.fromkeys(
        s.state for s in spans(story.result.applied, story.result.end_ns)
    ))
    assert 'SAFE_STOP' in states
    assert story.result.applied[-1].state == 'ACTIVE'


def test_simulated_stamps_age_on_the_recorded_clock(tmp_path: Path) -> None:
    story = tell(write_bag(tmp_path / 'bag', simulated=True, seconds=4))
    assert all(record.ages_ms['scan'] < 300 for record in story.recorded)
    assert story.recorded[-1].ros_now_ns < 5 * SECOND


def test_nonsense_is_data(bag: Path) -> None:
    story = tell(bag, [FORWARD, Line(Act.NOT_FINITE), Line(Act.OTHER_REQUEST)])
    found = summarise(story.recorded)
    assert found.outcomes['decided'] > 0
    assert found.outcomes['missed'] > 0
    assert found.ticks == 20


def test_partial_answers_and_texts_are_replayed_too(bag: Path) -> None:
    policy = policy_with(
        'decision: {', 'free_text: {name: reason}\ndecision: {anytime: true, ')
    quick = Line(leaf=1, delay_ns=60 * MS, text='it is free')
    story = tell(bag, [quick, Line(leaf=1, delay_ns=60 * MS, partial=True)], policy=policy)
    found = summarise(story.recorded)
    assert (found.served, found.partial) == (20, 10)
    assert [record.partial for record in story.recorded[:4]] == [False, True, False, True]
    assert {record.space for record in story.recorded} == {declaration(policy).space}
    assert isinstance(story.entries[0], ModelLimits)
    texts = [entry for entry in story.entries if isinstance(entry, Say)]
    assert texts[:2] == [Say(1, 'it is free', False), Say(2, '', False)]
    assert [text.request for text in texts] == list(range(1, 21))
    # each text stands behind its decision
    assert [type(entry).__name__ for entry in story.entries[1:5]] == [
        'DecisionRecord', 'Say', 'DecisionRecord', 'Say']


def test_what_the_operator_said_is_heard_when_it_was_said(tmp_path: Path) -> None:
    path = write_bag(tmp_path / 'bag', seconds=6, missions={
        2.0: 'to the dock', 2.3: 'too soon after it', 5.0: ''})
    story = tell(path, policy=policy_with('actions:', 'mission_topic: {}\nactions:'))
    said = [record.mission for record in story.recorded]
    assert list(dict.fromkeys(said)) == ['', 'to the dock']
    assert said[-1] == ''
    told = next(record for record in story.recorded if record.mission)
    assert told.segments[0].text == 'mission: "to the dock"\n'


def test_the_first_seconds_only(bag: Path) -> None:
    story = tell(bag, limit_ns=3 * SECOND)
    assert story.result.end_ns - story.result.begin_ns == 3 * SECOND
    assert len(story.recorded) == 6


def test_the_last_question_gets_its_answer(tmp_path: Path) -> None:
    path = write_bag(tmp_path / 'bag', seconds=4.2)
    story = tell(path, [Line(leaf=1, delay_ns=200 * MS)])
    assert story.recorded[-1].outcome == 'decided'
    assert story.recorded[-1].ended_ns > story.result.end_ns
    assert story.engine.cancelled == []


def test_an_engine_that_rejects_the_policy_is_one_line(
    bag: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from smallm_ros.engine.scripted import ScriptedDecider

    monkeypatch.setattr(
        ScriptedDecider, 'declare', lambda self, d: DeclarationRejected(d.space, 'too long')
    )
    with pytest.raises(PolicyError, match=r"policy 'small': the engine rejects it: too long"):
        tell(bag)


def test_an_engine_that_never_is_ready_is_given_up(bag: Path) -> None:
    with pytest.raises(OperatorError, match='the engine was not ready after'):
        tell(bag, loading_s=1e5)


# --- the command ------------------------------------------------------------------------------

SCRIPTED_WORKER = Path(__file__).parent / 'fakes' / 'scripted_engine.py'
ROOT = Path(__file__).resolve().parents[1]


def smallm(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, '-m', 'smallm_ros.cli.main', 'replay', *words], cwd=cwd, text=True,
        capture_output=True, timeout=60, check=False, env={**os.environ, 'PYTHONPATH': str(ROOT)},
    )


@contextmanager
def scripted_engine(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / 'engine.sock'
    with subprocess.Popen(
        [sys.executable, str(SCRIPTED_WORKER), str(path), '{}'],
        env={**os.environ, 'PYTHONPATH': str(ROOT)}, stderr=subprocess.DEVNULL,
    ) as child:
        try:
            yield path
        finally:
            child.send_signal(signal.SIGTERM)


@pytest.fixture
def policy_file(tmp_path: Path) -> Path:
    path = tmp_path / 'small.yaml'
    path.write_bytes(POLICY)
    return path


def test_the_command_on_a_running_engine(tmp_path: Path, policy_file: Path) -> None:
    bag = write_bag(tmp_path / 'bag', seconds=3)
    with scripted_engine(tmp_path) as path:
        done = smallm(str(bag), '--policy', str(policy_file), '--socket', str(path), '--out',
                      'out', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for words in ('p50', 'p99', 'budget 300 ms', 'ticks served', 'fallbacks', 'age scan'):
        assert words in done.stdout
    records = list(read_records(tmp_path / 'out' / 'decisions.mcap', lambda line: None))
    named = read_declarations(tmp_path / 'out' / 'decisions.mcap')
    assert named == {(told := declaration(small_policy())).space: told}
    assert {record.space for record in records if record.request} == set(named)
    (model,) = read_models(tmp_path / 'out' / 'decisions.mcap')
    assert model.name == 'scripted'
    content = json.loads((tmp_path / 'out' / 'report.json').read_text())
    assert content['kind'] == 'replay'
    assert content['decisions']['ticks'] == len(records) > 0
    assert (tmp_path / 'out' / 'report.html').stat().st_size > 1_000_000


def bad_cases(tmp_path: Path) -> dict[str, tuple[Path, int, str]]:
    """Name to (bag, exit code, words that its one line holds)."""
    (tmp_path / 'empty').mkdir()
    cut = write_bag(tmp_path / 'cut', seconds=2)
    file = next(cut.glob('*.mcap'))
    file.write_bytes(file.read_bytes()[:-100])
    other = write_bag(tmp_path / 'other', seconds=1, scan_topic='/laser')
    return {
        'no such bag': (tmp_path / 'absent', 6, 'no such file or directory'),
        'an empty directory': (tmp_path / 'empty', 6, 'an empty directory, not a bag'),
        'a truncated file': (cut, 6, 'not a bag, or truncated'),
        'another topic': (other, 6, "topic /scan of sensor 'scan' is not in the bag"),
    }


def test_each_failure_is_one_line_with_its_exit_code(
    tmp_path: Path, policy_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from smallm_ros.cli.main import main

    for name, (bag, code, words) in bad_cases(tmp_path).items():
        assert main(['replay', str(bag), '--policy', str(policy_file),
                     '--out', str(tmp_path / 'out')]) == code, name
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, name
        assert lines[0].startswith(f'smallm replay: {bag}: '), name
        assert words in lines[0], name
    assert not (tmp_path / 'out').exists()


def test_an_unknown_type_is_a_line_and_the_wrong_model_another(
    tmp_path: Path, policy_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from smallm_ros.cli.main import main

    bag = write_bag(tmp_path / 'bag', seconds=1, unknown_type=True, storage='sqlite3')
    missing = tmp_path / 'no.gguf'
    assert main(['replay', str(bag), '--policy', str(policy_file), '--model', str(missing),
                 '--out', str(tmp_path / 'out')]) == ModelFileError.exit_code
    said = capsys.readouterr()
    assert f'{bag}: /bump: skipped, unknown message type odd_interfaces/msg/Bump' in said.out
    assert len(said.err.splitlines()) == 1
    assert said.err.startswith(f'smallm replay: the engine ended with 4: {missing}: ')


def test_our_own_recording_in_virtual_time() -> None:
    policy = load_policy(ROOT / 'config' / 'policies' / 'explorer.yaml')
    story = tell(ROOT / 'tests' / 'bags' / 'room', policy=policy)
    found = summarise(story.recorded)
    assert found.ticks == round(11.9 * policy.decision.rate_hz)
    assert found.served == found.ticks
    assert story.result.applied[-1].state == 'ACTIVE'


@pytest.mark.skipif(not SHARED_BAGS.is_dir(), reason=f'no recorded bags: {SHARED_BAGS}')
def test_a_real_recording_in_virtual_time() -> None:
    policy = policy_with('rate_hz: 5', 'rate_hz: 4')
    story = tell(SHARED_BAGS / 'neato_test_drive', policy=policy)
    found = summarise(story.recorded)
    assert found.ticks == 114
    assert found.served > 0.7 * found.ticks
    assert found.outcomes['unfit'] > 0  # the gap of 1.25 s in the scans


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_engine_that_was_started(
    tmp_path: Path, policy_file: Path, number: signal.Signals
) -> None:
    private = tmp_path / 'private'
    private.mkdir()
    bag = write_bag(tmp_path / 'bag', seconds=5)
    model = tmp_path / 'model.gguf'
    with model.open('wb') as file:  # nothing but a hole: the engine hashes it for half an hour
        file.truncate(1 << 42)
    with subprocess.Popen(
        [sys.executable, '-m', 'smallm_ros.cli.main', 'replay', str(bag), '--policy',
         str(policy_file), '--out', str(tmp_path / 'out'), '--model', str(model)],
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'TMPDIR': str(private)},
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    ) as child:
        try:
            wait_for(lambda: readers(model))
            child.send_signal(number)
            _, error = child.communicate(timeout=20)
        finally:
            child.kill()
    code = child.returncode
    assert code == 128 + number, error
    assert 'Traceback' not in error
    assert not readers(model)
    assert not children_naming(str(model))
    assert not list(private.iterdir())


def readers(path: Path) -> list[str]:
    """Return the processes that have this file open."""
    found = []
    for process in Path('/proc').glob('[0-9]*'):
        with suppress(OSError):  # it has ended, or is not ours
            if any(os.readlink(link) == str(path) for link in (process / 'fd').iterdir()):
                found.append(process.name)
    return found


def children_naming(word: str) -> list[str]:
    found = []
    for entry in Path('/proc').iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / 'cmdline').read_bytes().decode(errors='replace')
            except OSError:
                continue
            if word in line:
                found.append(line)
    return found
