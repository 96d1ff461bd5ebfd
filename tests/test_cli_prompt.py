"""`smallm prompt`: what it shows is what the engine would evaluate, token for token."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from smallm_ros.bench import workload
from smallm_ros.bench.dry import DryRun, DryTick
from smallm_ros.cli import main
from smallm_ros.cli.prompt import BEGIN_NS, Paint, View, lines_of, of_bag
from smallm_ros.core.clock import SECOND
from smallm_ros.core.errors import PolicyError
from smallm_ros.core.exchange import Decided, Declared, Question
from smallm_ros.core.policy import Policy, load_policy
from smallm_ros.core.prompt import declaration
from smallm_ros.engine.kv import LEAST_BATCH
from smallm_ros.engine.templates import conversation
from tests.fakes.letters import letters
from tests.fakes.recordings import POLICY, SHARED_BAGS, policy_with, small_policy, write_bag

ROOT = Path(__file__).resolve().parent.parent
NEATO = ROOT / 'config' / 'policies' / 'neato.yaml'
PLAIN = Paint(on=False)


@pytest.fixture(scope='module')
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Free space; the odometry never changes, the scan is silent from 2.0 to 3.5 s."""
    return write_bag(tmp_path_factory.mktemp('bags') / 'bag', silent=[(2.0, 3.5)])


def ticks(policy: Policy, bag: Path, mission: str = '') -> list[DryTick]:
    run = DryRun(policy, letters(), BEGIN_NS)
    if mission:
        assert run.pilot.mission is not None
        run.pilot.mission.hear(mission, 0)
    return [tick for _, tick in of_bag(run, policy, bag)]


def seen(policy: Policy, found: list[DryTick], *, diff: bool = False, paint: Paint = PLAIN) -> str:
    view = View(policy, letters(), declaration(policy), paint, diff=diff)

    def lines() -> Iterator[str]:
        yield from view.static()
        for number, tick in enumerate(found):
            yield from view.tick(number / 2, tick)
            view.count(tick)
        yield from view.summary()

    return '\n'.join(lines())


def test_every_tick_is_shown_and_the_ids_are_those_of_its_lines(bag: Path) -> None:
    policy = small_policy()
    told = declaration(policy)
    rendered = conversation(letters().template, letters(), told.system, told.examples)
    found = ticks(policy, bag)
    asked = [tick for tick in found if tick.decided]
    assert len(asked) >= 4
    for tick in asked:
        decided = tick.decided
        assert decided is not None
        lines = lines_of(letters(), tick, rendered)
        assert sum((line.ids for line in lines), ()) + tuple(rendered.suffix) == decided.ids
        held = sum(line.reused for line in lines)
        assert len(rendered.prefix) + held <= decided.decision.tokens.reused
    same = asked[1].decided
    assert same is not None
    # Nothing changed since the tick before: only what is always evaluated is.
    assert same.decision.tokens.prompt - same.decision.tokens.reused == LEAST_BATCH


def test_a_tick_that_asks_nothing_says_why(bag: Path) -> None:
    said = seen(small_policy(), ticks(small_policy(), bag))
    assert 'tick at 2.50 s  idle: no new reading' in said
    assert 'unfit: scan stale' in said
    assert re.search(r'^ticks     8: asked \d, .*unfit', said, re.MULTILINE)


def test_the_static_part_is_shown_once_and_whole(bag: Path) -> None:
    policy = small_policy()
    said = seen(policy, ticks(policy, bag))
    for line in declaration(policy).system.splitlines():
        assert said.count(f'    {line}') == 1
    assert 'static    ' in said and 'evaluated once and then kept in KV' in said


def test_what_kv_holds_is_told_apart_from_what_is_new(bag: Path) -> None:
    policy = policy_with('  odom: {', '  odom: {changes: rarely, ')
    said = seen(policy, ticks(policy, bag))
    first, _, rest = said.partition('tick at 0.50 s')
    assert '▸odom: ahead 0.1' in first  # nothing of it was known
    assert 'odom: ahead 0.1' in rest and '▸odom' not in rest
    assert '  slow    odom  15 tokens, 0 reused' in first or 'odom  16 tokens, 0 reused' in first


def test_with_colours_there_are_no_marks_and_without_a_terminal_no_colours(
    bag: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = small_policy()
    coloured = seen(policy, ticks(policy, bag), paint=Paint(on=True))
    assert '\x1b[' in coloured and '▸' not in coloured
    assert '\x1b[' not in seen(policy, ticks(policy, bag))
    assert not Paint.of_terminal().on  # pytest's capture is no terminal
    monkeypatch.setattr('sys.stdout.isatty', lambda: True)
    monkeypatch.delenv('NO_COLOR', raising=False)
    assert Paint.of_terminal().on
    monkeypatch.setenv('NO_COLOR', '1')
    assert not Paint.of_terminal().on


def test_a_prompt_that_is_too_long_says_what_was_left_out(bag: Path) -> None:
    policy = policy_with('max_observation_age_ms: 2000}',
                         'max_observation_age_ms: 2000, prompt_tokens: 100}')
    policy = policy.model_copy(update={'sensors': {
        **policy.sensors, 'odom': policy.sensors['odom'].model_copy(update={'priority': 3}),
    }})
    found = ticks(policy, bag)
    trimmed = [t for t in found if t.decided and t.decided.dropped]
    assert trimmed and all(t.decided and t.decided.dropped == ('odom',) for t in trimmed)
    said = seen(policy, found)
    assert re.search(r'trimmed to 100 tokens: odom \(\d+ tokens\)', said)
    assert 'left out: odom' in said  # the model is told too
    assert f'trimmed   odom in {len(trimmed)} ticks' in said


def test_a_prompt_that_cannot_be_made_short_enough_is_shown_as_refused(bag: Path) -> None:
    policy = policy_with('max_observation_age_ms: 2000}',
                         'max_observation_age_ms: 2000, prompt_tokens: 16}')
    assert 'refused: prompt_too_long' in seen(policy, ticks(policy, bag)).replace(
        'prompt_too_long: ', 'refused: prompt_too_long: ')


def test_the_difference_is_what_changed_since_the_tick_before(bag: Path) -> None:
    policy = policy_with('version: 1\n', 'version: 1\nmission_topic: {}\n')
    run = DryRun(policy, letters(), BEGIN_NS)
    found = []
    for elapsed_s, tick in of_bag(run, policy, bag):
        found.append(tick)
        assert run.pilot.mission is not None
        if elapsed_s == 0.5:
            run.pilot.mission.hear('go back', BEGIN_NS)
        if elapsed_s == 1.0:
            run.pilot.mission.hear('', BEGIN_NS)
    said = seen(policy, found, diff=True).split('tick at ')
    assert '+ ▸mission: "go back"' in said[3] and 'odom:' not in said[3]
    assert '- mission: "go back"' in said[4]
    assert 'no change' in said[2]
    assert 'Answer with exactly' not in said[0]


def test_the_operators_words_stand_first_and_are_kept(bag: Path) -> None:
    policy = policy_with('version: 1\n', 'version: 1\nmission_topic: {}\n')
    found = ticks(policy, bag, mission='go back')
    assert found[1].segments[0].text == 'mission: "go back"\n'
    assert 'mission mission  19 tokens, 19 reused' in seen(policy, found)


def test_the_operators_words_of_a_bag_are_heard(tmp_path: Path) -> None:
    policy = policy_with('actions:', 'mission_topic: {}\nactions:')
    path = write_bag(tmp_path / 'bag', missions={1.0: 'to the dock'})
    found = [tick.record.mission for tick in ticks(policy, path)]
    assert (found[0], found[-1]) == ('', 'to the dock')


def test_a_segment_that_changes_more_than_one_behind_it_is_named() -> None:
    """Odometry stands behind the scan by its rate; here the scan comes and goes."""
    policy = small_policy()
    view = View(policy, letters(), declaration(policy), PLAIN)
    view._pairs, view._before = 30, {'scan': '', 'odom': ''}
    view._changed.update({'scan': 20, 'odom': 3})
    (line,) = view._out_of_order()
    assert 'scan changes more often than odom behind it' in line
    view._changed.update({'odom': 17})
    assert list(view._out_of_order()) == []


def test_a_policy_that_the_engine_would_reject_is_rejected_here() -> None:
    long = ' '.join(['word'] * 790)
    policy = small_policy().model_copy(update={'mission': ' '.join([long] * 10)})
    with pytest.raises(PolicyError, match='static part'):
        DryRun(policy, letters())


# --- the command --------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / 'small.yaml'
    path.write_bytes(POLICY)
    return str(path)


@pytest.mark.model
def test_the_command_shows_a_bag(
    bag: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip('llama_cpp')
    assert main.main(['prompt', str(bag), '--policy', file, '--ticks', '2']) == 0
    said = capsys.readouterr().out
    assert 'template chatml' in said
    assert len(re.findall(r'^tick at', said, re.MULTILINE)) == 2
    assert main.main(['prompt', str(bag), '--policy', file, '--at', '3', '--ticks', '0']) == 0
    said = capsys.readouterr().out
    assert re.findall(r'^tick at (\S+)', said, re.MULTILINE) == ['3.00', '3.50']
    assert 'ticks     8: ' in said


@pytest.mark.model
def test_what_cannot_be_shown_is_one_line(
    bag: Path, file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip('llama_cpp')
    assert main.main(['prompt', str(bag), '--policy', file, '--mission', 'x']) == 2
    assert "--mission: policy 'small' has no mission_topic" in capsys.readouterr().err
    assert main.main(['prompt', str(tmp_path / 'none'), '--policy', file]) > 2
    assert 'no such file' in capsys.readouterr().err


@pytest.mark.model
@pytest.mark.skipif(not SHARED_BAGS.is_dir(), reason='the recorded bags are not there')
def test_the_real_engine_evaluates_what_is_shown() -> None:
    """The same questions to a model with weights: the same ids, the same left out, and reused."""
    pytest.importorskip('llama_cpp')
    from tests import tekken_gguf
    from tests.fakes.resident import CLOCK, decider

    policy = load_policy(NEATO)
    words = workload.vocabulary(workload.subject(str(tekken_gguf.cached())))
    run = DryRun(policy, words, BEGIN_NS)
    compared = 0
    with decider('tiny') as real:
        told = run.pilot.declaration
        assert isinstance(real.declare(told), Declared)
        for _, tick in of_bag(run, policy, SHARED_BAGS / 'neato_test_drive'):
            if tick.decided is None:
                continue
            now_ns = CLOCK.now_ns()
            answer = real.decide(
                Question(tick.record.request, told.space, now_ns + 60 * SECOND, tick.segments),
                now_ns, lambda: False,
            )
            assert isinstance(answer, Decided)
            ours, theirs = tick.decided, answer
            assert (ours.ids, ours.dropped) == (theirs.ids, theirs.dropped)
            assert ours.decision.tokens.prompt == theirs.decision.tokens.prompt
            if compared:  # the first comes after the references, which only the real one reads
                assert ours.decision.tokens.reused == theirs.decision.tokens.reused
            compared += 1
    assert compared > 50
