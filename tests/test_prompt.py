"""The texts of a prompt: static once, dynamic in order of change, plain text only."""

from __future__ import annotations

import dataclasses
import unicodedata
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from smallm_ros.core.action import ActionSpace
from smallm_ros.core.exchange import Correction, Decide, Declaration, FreeText
from smallm_ros.core.observation import Observation, Quality, Reading
from smallm_ros.core.policy import FreeTextRules, Policy, load_policy
from smallm_ros.core.prompt import MAX_SEGMENT_CHARACTERS, declaration, plain, segments
from smallm_ros.core.reference import draw
from smallm_ros.core.summary.scan import Bin

EXPLORER = load_policy(
    Path(__file__).resolve().parent.parent / 'config' / 'policies' / 'explorer.yaml'
)
WANDERER = load_policy(Path(__file__).parent / 'policies' / 'wanderer.yaml')


def reading(sensor: str, text: str, priority: int = 0) -> Reading:
    return Reading(sensor, text, priority, True, Quality.FRESH, 0, 0, 0, 0)


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
    observation = Observation(0, 0, tuple(reading(n, f'{n}: x') for n in WANDERER.sensors))
    found = segments(WANDERER, observation)
    shown = [n for n in slow_first if WANDERER.sensors[n].in_prompt]
    assert [s.name for s in found] == shown
    assert ''.join(s.text for s in found) == '\n'.join(f'{n}: x' for n in shown)


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
