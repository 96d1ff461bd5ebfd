"""Whatever comes, a message becomes fields with words, or is dropped by name; nothing else."""

from __future__ import annotations

import unicodedata
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smallm_ros.core.errors import DroppedError
from smallm_ros.core.prompt import plain
from smallm_ros.core.sensor import Scene
from smallm_ros.core.summary import TYPES
from smallm_ros.core.summary.odometry import Odometry
from smallm_ros.core.summary.place import Place
from smallm_ros.ros.convert import fields_of
from tests.fuzz.families import FAMILIES, NUMBERS

EXAMPLES = 200
MOST_CHARACTERS = 300
SCENES = (Scene(), Scene({
    'odom': Odometry(0, 'odom', 0.0, 0.0, 0.0, 0.0, 0.0), 'place': Place(0, 'map', 0, 0, 0, 0)}),
    Scene({'odom': Odometry(0, 'odom', 1e7, -1e7, 3.0, 1e3, -1e3)}))


def try_one(declared: Any, msg: Any) -> bool:
    """Convert and word one message; return whether it was taken. Fails for what may not happen."""
    why = ''
    try:
        fields = fields_of(declared, msg)
    except DroppedError as err:
        why = str(err) or 'for no reason'
    assert len(why) < 400, f'a reason of {len(why)} characters: {why}'
    assert why != 'for no reason'
    if why:
        return False
    assert isinstance(fields.stamp_ns, int)
    for scene in SCENES:
        text = declared.text(fields, scene)
        assert 0 < len(text) <= MOST_CHARACTERS
        assert text.splitlines() == [text]
        assert all(unicodedata.category(letter)[0] != 'C' for letter in plain(text)), repr(text)
        assert text == declared.text(fields, scene), 'the same fields, other words'
    return True


def fuzz(kind: str, examples: int) -> tuple[int, int]:
    """Try so many messages of a family; return (tried, taken)."""
    declared, messages = FAMILIES[kind]
    counts = [0, 0]

    @settings(max_examples=examples, deadline=None, database=None,
              suppress_health_check=list(HealthCheck))
    @given(which=st.sampled_from(declared), msg=messages)
    def attack(which: Any, msg: Any) -> None:
        counts[0] += 1
        counts[1] += try_one(which, msg)

    attack()
    return counts[0], counts[1]


def test_every_family_is_tried() -> None:
    assert set(FAMILIES) - {'fields'} | NUMBERS == TYPES


@pytest.mark.parametrize('kind', FAMILIES)
def test_no_message_does_harm(kind: str) -> None:
    tried, taken = fuzz(kind, EXAMPLES)
    assert tried >= EXAMPLES
    assert taken, 'none of them was a message: this showed little'
    assert not any(try_one(declared, SimpleNamespace()) for declared in FAMILIES[kind][0])
