"""The texts of a prompt: static once, dynamic in order of change, plain text only."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from smallm_ros.core.action import ActionSpace
from smallm_ros.core.observation import Observation, Quality, Reading
from smallm_ros.core.policy import Bin, Policy, load_policy
from smallm_ros.core.prompt import MAX_SEGMENT_CHARACTERS, declaration, plain, segments
from smallm_ros.core.reference import draw

EXPLORER = load_policy(
    Path(__file__).resolve().parent.parent / 'config' / 'policies' / 'explorer.yaml'
)
WANDERER = load_policy(Path(__file__).parent / 'policies' / 'wanderer.yaml')


def reading(sensor: str, text: str, priority: int = 0) -> Reading:
    return Reading(sensor, text, priority, True, Quality.FRESH, 0, 0, 0, 0)


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
    none = changed(EXPLORER, prior=EXPLORER.prior.model_copy(update={'correction': 'none'}))
    assert declaration(none).references == ()
    assert draw(EXPLORER, 1, 3) != draw(EXPLORER, 2, 3)


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
