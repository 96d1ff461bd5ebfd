"""The texts of a prompt: static once, dynamic in order of change, plain text only."""

from __future__ import annotations

import dataclasses
import math
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallm_ros.core.action import ActionSpace
from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.exchange import Correction, Decide, Declaration, FreeText, Segment
from smallm_ros.core.observation import Observation, Phrase, Quality, Reading, Received
from smallm_ros.core.observe import observe
from smallm_ros.core.policy import FreeTextRules, Policy, load_policy
from smallm_ros.core.prompt import (
    MAX_SEGMENT_CHARACTERS,
    declaration,
    leaving,
    plain,
    segments,
    without,
)
from smallm_ros.core.reference import draw
from smallm_ros.core.summary.battery import Battery
from smallm_ros.core.summary.goal import Goal
from smallm_ros.core.summary.odometry import Odometry
from smallm_ros.core.summary.scan import Bin, Scan

EXPLORER = load_policy(
    Path(__file__).resolve().parent.parent / 'config' / 'policies' / 'explorer.yaml'
)
WANDERER = load_policy(Path(__file__).parent / 'policies' / 'wanderer.yaml')


def reading(sensor: str, text: str, priority: int = 0) -> Reading:
    """Return a reading whose phrases are what stands between the commas, `+` for each `less`."""
    phrases = tuple(Phrase(p.rstrip('+'), len(p) - len(p.rstrip('+'))) for p in text.split(', '))
    return Reading(sensor, phrases, priority, True, Quality.FRESH, 0, 0, 0, 0)


def policy_of(name: str) -> Policy:
    return load_policy(Path(__file__).parent / 'policies' / f'{name}.yaml')


def corrected(correction: str) -> Policy:
    return changed(EXPLORER, prior=EXPLORER.prior.model_copy(update={'correction': correction}))


def changed(policy: Policy, **update: object) -> Policy:
    return policy.model_copy(update=update)


def test_the_static_part_says_mission_actions_and_examples() -> None:
    told = declaration(EXPLORER)
    assert told.system.startswith(EXPLORER.mission.strip())
    for name, action in EXPLORER.actions.items():
        assert f'\n{name} ' in told.system
        assert action.description in told.system
    assert told.answers == ActionSpace.of(EXPLORER).answers
    assert len(told.examples) == len(EXPLORER.examples)
    assert {answer for _, answer in told.examples} <= set(told.answers)


def test_examples_look_like_what_the_model_will_read() -> None:
    """An example in other words than the summaries would teach another language."""
    drawn = {
        ''.join(s.text for s in segments(EXPLORER, o)) for o in draw(EXPLORER, 1, 2000)
    }
    assert {observation for observation, _ in declaration(EXPLORER).examples} <= drawn


def test_the_same_policy_is_the_same_space_and_any_change_is_another() -> None:
    assert declaration(EXPLORER) == declaration(EXPLORER)
    other = changed(EXPLORER, mission='Stand still.')
    assert declaration(other).space != declaration(EXPLORER).space
    fewer = changed(EXPLORER, prior=EXPLORER.prior.model_copy(update={'references': 5}))
    assert declaration(fewer).space != declaration(EXPLORER).space


def test_references_are_drawn_by_the_seed_and_only_when_they_are_used() -> None:
    assert 4 < len(declaration(EXPLORER).references) <= EXPLORER.prior.references
    none = declaration(corrected('none'))
    assert none.references == ()
    assert none.correction is Correction.NONE
    assert declaration(EXPLORER).correction is Correction.REFERENCE
    assert draw(EXPLORER, 1, 3) != draw(EXPLORER, 2, 3)


def test_content_free_references_have_the_form_and_say_nothing() -> None:
    told = declaration(corrected('content_free'))
    assert told.correction is Correction.CONTENT_FREE
    assert told.references == ('scan: N/A', 'scan: [MASK]', 'scan:')
    wanderer = changed(WANDERER, prior=corrected('content_free').prior)
    assert declaration(wanderer).references == (
        'goal: N/A\nscan: N/A\nodom: N/A', 'goal: [MASK]\nscan: [MASK]\nodom: [MASK]',
        'goal:\nscan:\nodom:',
    )


def test_a_policy_without_wishes_declares_the_least() -> None:
    told = declaration(WANDERER)
    assert told.decide is Decide.GREEDY
    assert (told.actions, told.departures, told.history) == ((), (), 0)
    assert told.text == FreeText()


def test_what_the_decision_is_told_reaches_the_engine() -> None:
    told = declaration(policy_of('deep'))
    assert told.decide is Decide.BEST
    assert len(told.actions) == len(told.departures) == len(told.answers) == 177
    assert [answer.split()[0] for answer in told.answers] == [
        ('move', 'look', 'stay')[index] for index in told.actions
    ]
    assert {told.answers[i] for i, far in enumerate(told.departures) if far == 0} == {
        'move ahead slow straight 0.1 true', 'look left', 'stay',
    }
    past = changed(EXPLORER, decision=EXPLORER.decision.model_copy(update={'history': 3}))
    assert declaration(past).history == 3


def test_a_free_text_is_asked_for_and_bounded() -> None:
    rules = FreeTextRules(name='reason', lead=' because', max_tokens=9, max_characters=50)
    told = declaration(changed(EXPLORER, free_text=rules))
    assert told.text == FreeText(' because', 9, 50)
    assert told.system == (
        declaration(EXPLORER).system + "\nAfter the action add 'because' and a short reason."
    )
    assert told.answers == declaration(EXPLORER).answers


def test_the_form_of_an_action_shows_what_can_be_written() -> None:
    assert declaration(policy_of('deep')).system.splitlines()[2:] == [
        'move ahead|back slow|medium|fast left|right|straight 0.1|0.2|0.3|0.4 true|false: move',
        'look left|right [30|60|120, else 90] [fast, else slow] [twice, else once]: look around',
        'stay: stay where you are',
    ]
    wide = declaration(policy_of('wide')).system.splitlines()
    assert wide[2] == 'forward 0.01|0.02|...|0.64: drive ahead'


SAID = FreeTextRules(name='reason')
WISHES: list[dict[str, object]] = [
    {'prior': EXPLORER.prior.model_copy(update={'correction': 'none'})},
    {'prior': EXPLORER.prior.model_copy(update={'correction': 'content_free'})},
    {'prior': EXPLORER.prior.model_copy(update={'seed': 1})},
    {'examples': ()},
    {'free_text': SAID},
    {'free_text': SAID.model_copy(update={'lead': ', for'})},
    {'free_text': SAID.model_copy(update={'max_tokens': 3})},
    {'free_text': SAID.model_copy(update={'max_characters': 3})},
    *({'decision': EXPLORER.decision.model_copy(update={key: value})} for key, value in (
        ('decide', 'best'), ('anytime', True), ('history', 1), ('prompt_tokens', 99))),
]


def test_a_space_has_its_name_from_every_field_of_its_declaration() -> None:
    """An engine keeps a declared space by its name: none may stand for two declarations."""
    policies = (EXPLORER, policy_of('deep'), *(changed(EXPLORER, **wish) for wish in WISHES))
    told = [declaration(policy) for policy in policies]
    assert len({t.space for t in told}) == len(told)
    for field in dataclasses.fields(Declaration):
        assert len({repr(getattr(t, field.name)) for t in told}) > 1, field.name


def test_a_default_alone_makes_another_space_once_it_can_go_out() -> None:
    """Not the texts, only the departures tell them apart."""
    anytime = EXPLORER.decision.model_copy(update={'anytime': True})
    forward = EXPLORER.actions['forward']
    speed = forward.parameters['speed'].model_copy(update={'default': 'fast'})
    other = changed(EXPLORER, decision=anytime, actions={
        **EXPLORER.actions, 'forward': forward.model_copy(update={'parameters': {'speed': speed}}),
    })
    first = changed(EXPLORER, decision=anytime)
    assert declaration(first).answers == declaration(other).answers
    assert declaration(first).space != declaration(other).space


def test_references_show_every_word_of_every_sector() -> None:
    text = '\n'.join(declaration(EXPLORER).references)
    for sector in ('ahead', 'left', 'right'):
        for word in ('blocked', 'near', 'free'):
            assert f'{sector} {word}' in text


def test_what_changes_least_stands_first_and_each_sensor_is_a_line() -> None:
    slow_first = sorted(WANDERER.sensors, key=lambda n: WANDERER.sensors[n].rate_hz)
    observation = Observation(0, 0, tuple(reading(n, 'x') for n in WANDERER.sensors))
    found = segments(WANDERER, observation)
    shown = [n for n in slow_first if WANDERER.sensors[n].in_prompt]
    assert [s.name for s in found] == shown
    assert ''.join(s.text for s in found) == '\n'.join(f'{n}: x' for n in shown)


def test_what_is_declared_to_change_rarely_stands_before_what_is_slow_and_often_last() -> None:
    observation = Observation(0, 0, tuple(reading(n, 'x') for n in WANDERER.sensors))

    def order(**changes: str) -> list[str]:
        sensors = {n: s.model_copy(update={'changes': changes.get(n)})
                   for n, s in WANDERER.sensors.items()}
        return [s.name for s in segments(changed(WANDERER, sensors=sensors), observation)]

    assert order() == ['goal', 'scan', 'odom']
    assert order(odom='rarely') == ['odom', 'goal', 'scan']
    assert order(scan='often') == ['goal', 'odom', 'scan']
    assert order(goal='often', odom='rarely', scan='rarely') == ['scan', 'odom', 'goal']


# --- what leaves a prompt that is too long ------------------------------------------------------


def sent(*readings: Reading) -> tuple[Segment, ...]:
    policy = changed(WANDERER, sensors={
        r.sensor: WANDERER.sensors['scan'].model_copy(update={'rate_hz': float(i + 1)})
        for i, r in enumerate(readings)
    })
    return segments(policy, Observation(0, 0, readings))


FULL = sent(
    reading('goal', '2.5 m ahead', 2),
    reading('scan', 'ahead 0.8, left 1.2+, gap left 0.9 m++', 0),
    reading('odom', 'ahead 0.2, turning left+', 1),
)


def trimmed(segments: tuple[Segment, ...], tokens: int) -> tuple[str, tuple[str, ...]]:
    """Trim as an engine does, a word for a token."""
    lines = tuple(s.text for s in segments)
    left_out: tuple[str, ...] = ()
    for level in leaving(segments):
        if len(''.join(lines).split()) <= tokens:
            break
        lines, left_out = without(segments, level)
    return ''.join(lines), left_out


def test_phrases_go_by_priority_then_readings_and_the_prompt_says_what() -> None:
    assert leaving(FULL) == (2, 1)
    assert trimmed(FULL, 99) == (
        'goal: 2.5 m ahead\nscan: ahead 0.8, left 1.2, gap left 0.9 m\n'
        'odom: ahead 0.2, turning left', ())
    assert trimmed(FULL, 13) == (
        'scan: ahead 0.8\nleft out: goal, some of scan, odom', (
            'goal', 'some of scan', 'odom'))
    middle, left_out = without(FULL, 2)
    assert ''.join(middle) == (
        'scan: ahead 0.8, left 1.2\nodom: ahead 0.2\n'
        'left out: goal, some of scan, some of odom')
    assert left_out == ('goal', 'some of scan', 'some of odom')


def test_what_is_least_of_all_stays_whatever_its_number() -> None:
    found = sent(reading('goal', '2.5 m ahead', 9), reading('odom', 'standing, level+', 4))
    assert leaving(found) == (9, 5)
    assert ''.join(without(found, 5)[0]) == (
        'odom: standing\nleft out: goal, some of odom')


PHRASES = st.lists(st.builds(
    Phrase, st.sampled_from(['ahead 0.82', 'left far', '12.5 V', 'gap right 1.1 m']),
    st.integers(0, 3)), min_size=1, max_size=6).map(tuple)
READINGS = st.lists(st.tuples(PHRASES, st.integers(0, 9)), min_size=1, max_size=5)


@given(READINGS)
def test_no_value_is_ever_cut_and_each_level_says_less(
    drawn: list[tuple[tuple[Phrase, ...], int]]
) -> None:
    names = ('a', 'b', 'c', 'd', 'e')
    found = sent(*(dataclasses.replace(reading(n, ''), phrases=p, priority=k)
                   for n, (p, k) in zip(names, drawn, strict=False)))
    whole = {s.name: s.text.split(': ')[1].strip().split(', ') for s in found}
    before = sum(map(len, whole.values()))
    for level in leaving(found):
        lines, left_out = without(found, level)
        *kept, note = lines
        assert kept, 'nothing is left to decide on'
        assert note == 'left out: ' + ', '.join(left_out)
        said = 0
        for line in kept:
            name, _, rest = line.removesuffix('\n').partition(': ')
            phrases = rest.split(', ')
            rest_of = iter(whole[name])
            assert all(p in rest_of for p in phrases), 'cut or out of order'
            assert (f'some of {name}' in left_out) == (phrases != whole[name])
            said += len(phrases)
        assert said < before
        before = said


def test_a_line_that_is_too_long_loses_whole_phrases_and_says_so() -> None:
    words = [f'value{i} {i}.25' for i in range(400)]
    (segment,) = sent(reading('scan', ', '.join(w + '+' * (i % 2) for i, w in enumerate(words))))
    assert len(segment.text) <= MAX_SEGMENT_CHARACTERS
    said = segment.text.removeprefix('scan: ').split(', ')
    assert said.pop() == 'more left out'
    assert said == [w for w in words if w in said]
    assert all(w in said for w in words[:100:2])


def test_a_sensor_that_is_not_for_the_model_is_left_out() -> None:
    observation = Observation(0, 0, tuple(reading(n, n) for n in EXPLORER.sensors))
    assert [s.name for s in segments(EXPLORER, observation)] == ['scan']


def test_plain_text_has_no_control_or_format_characters() -> None:
    assert plain('a\nb\tc\u202ed\u200be\x00') == 'abcde'
    assert plain('x' * 10_000) == 'x' * MAX_SEGMENT_CHARACTERS


def test_full_width_spellings_are_normalised_before_they_are_cleaned() -> None:
    assert plain('＜｜ｉｍ＿ｓｔａｒｔ｜＞') == '<|im_start|>'


@given(st.text(max_size=200))
def test_plain_is_one_line_and_stays_itself(text: str) -> None:
    once = plain(text)
    assert plain(once) == once
    assert '\n' not in once
    assert not any(unicodedata.category(c).startswith(('Cc', 'Cf', 'Cs', 'Zl')) for c in once)


def test_bins_nearer_than_anything_is_drawn_still_draw() -> None:
    scan = EXPLORER.sensors['scan'].model_copy(update={
        'bins': (Bin(word='touching', below_m=0.05), Bin(word='near', below_m=1.0)),
    })
    near = changed(EXPLORER, sensors={**EXPLORER.sensors, 'scan': scan})
    assert 'touching' in '\n'.join(declaration(near).references)


# --- whole prompts ------------------------------------------------------------------------------

BASE = policy_of('base')
NOW_NS = 1_000 * SECOND
ROS_NS = 1_700_000_000 * SECOND


def around(metres: float, stamp_ago_ms: float = 0.0, **nearer: float) -> Received:
    """Return a scan of one distance everywhere but at `deg_N`."""
    ranges = np.full(360, metres, np.float32)
    for name, value in nearer.items():
        # The base's laser looks backwards, the explorer's ahead.
        ranges[(int(name.removeprefix('deg').replace('_', '-')) + 180) % 360] = value
    stamp_ns = ROS_NS - round(stamp_ago_ms * MS)
    fields = Scan(stamp_ns, 'laser', -math.pi, 2 * math.pi / 360, 0.1, 12.0, ranges)
    return Received('scan', fields, NOW_NS, ROS_NS)


def odometry(stamp_ns: int = ROS_NS, arrived_ago_ms: float = 0.0) -> Received:
    ago_ns = round(arrived_ago_ms * MS)
    fields = Odometry(stamp_ns, 'odom', 0.0, 0.0, 0.0, 0.21, 0.3)
    return Received('odom', fields, NOW_NS - ago_ns, ROS_NS - ago_ns)


def goal_at(x_m: float, y_m: float) -> Received:
    return Received('goal', Goal(ROS_NS - SECOND, 'odom', x_m, y_m, 0.0), NOW_NS, ROS_NS)


def battery(percent: float) -> Received:
    fields = Battery(ROS_NS, percent / 100, 12.1, 2, 1, present=True)
    return Received('battery', fields, NOW_NS, ROS_NS)


def page(policy: Policy, *heard: Received, tokens: int = 999) -> str:
    """Return a whole prompt for people to read: who speaks, and what."""
    told = declaration(policy)
    said = segments(policy, observe(policy, {r.sensor: r for r in heard}, NOW_NS, ROS_NS))
    turns = [('system', told.system)]
    for text, answer in told.examples:
        turns += [('user', text), ('assistant', answer)]
    turns.append(('user', trimmed(said, tokens)[0]))
    return '\n'.join(f'--- {who}\n{text}' for who, text in turns) + '\n'


PAGES = {
    'prompt_explorer': lambda: page(EXPLORER, around(8.0, deg0=0.5), odometry()),
    'prompt_base_old_and_missing': lambda: page(
        BASE, around(8.0, stamp_ago_ms=1100, deg180=0.84), odometry(0, arrived_ago_ms=700),
        goal_at(-3.0, 2.0)),
    'prompt_base_trimmed': lambda: page(
        BASE, around(8.0, deg180=0.84), odometry(), goal_at(4.0, 0.5), battery(13.0), tokens=20),
}


@pytest.mark.parametrize('name', PAGES)
def test_a_whole_prompt_reads_as_it_did(name: str) -> None:
    golden = Path(__file__).parent / 'golden' / f'{name}.txt'
    found = PAGES[name]()
    print(found)
    assert found == golden.read_text(encoding='utf-8')
    assert found == PAGES[name](), 'the same observation, another text'
