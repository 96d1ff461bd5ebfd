"""No text from a topic becomes a control token, ends its line or its quotation, or another action.

The way is the true one: a message becomes fields, fields words, words a prompt's segments, and
these the ids that the model gets.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from smallm_ros.core.action import ActionSpace
from smallm_ros.core.errors import DroppedError
from smallm_ros.core.exchange import Decided, Question, Segment
from smallm_ros.core.mission import Mission
from smallm_ros.core.observation import Received
from smallm_ros.core.observe import observe
from smallm_ros.core.policy import MissionTopic, Policy, parse_policy
from smallm_ros.core.prompt import MAX_SEGMENT_CHARACTERS, declaration, segments
from smallm_ros.engine.templates import TEMPLATES, Rendered, conversation
from smallm_ros.ros.convert import fields_of
from tests.fakes.recordings import POLICY
from tests.fakes.summaries import header
from tests.hostile.corpus import CONTROLS, CORPUS, SPLIT

NOW_NS, ROS_NS = 10**12, 12 * 10**9
MORE = b"""\
  said: {type: std_msgs/msg/String, topic: /chatter, rate_hz: 1, stale_after_ms: 5000}
  more: {type: std_msgs/msg/String, topic: /more, rate_hz: 1, stale_after_ms: 5000}
  health: {type: diagnostic_msgs/msg/DiagnosticArray, topic: /diagnostics, rate_hz: 1,
           stale_after_ms: 5000}
  seen: {type: vision_msgs/msg/Detection2DArray, topic: /seen, rate_hz: 1, stale_after_ms: 5000}
  goal: {type: geometry_msgs/msg/PoseStamped, topic: /goal, rate_hz: 1, stale_after_ms: 5000}
  any: {type: my_msgs/msg/Any, topic: /any, rate_hz: 1, stale_after_ms: 5000,
        priority: 1, fields: [{name: text, path: text}]}
  odom: {"""


@functools.cache
def policy() -> Policy:
    """Return one that reads text in every way there is."""
    text = POLICY.replace(b'  odom: {', MORE).replace(
        b'actions:', b'mission_topic: {min_period_s: 0.1}\nactions:')
    return parse_policy(text, 'hostile.yaml')


def messages(text: str) -> dict[str, Any]:
    """Return messages that carry a text wherever one can stand."""
    status = SimpleNamespace(level=b'\x02', name=text, message=text, hardware_id=text, values=[])
    seen = SimpleNamespace(
        results=[SimpleNamespace(hypothesis=SimpleNamespace(class_id=text, score=0.9))],
        bbox=SimpleNamespace(center=SimpleNamespace(position=SimpleNamespace(x=1.0, y=1.0)),
                             size_x=2.0, size_y=2.0))
    pose = SimpleNamespace(position=SimpleNamespace(x=1.0, y=1.0, z=0.0),
                           orientation=SimpleNamespace(x=0.0, y=0.0, z=0.0, w=1.0))
    return {
        'said': SimpleNamespace(data=text), 'more': SimpleNamespace(data=text),
        'health': SimpleNamespace(header=header(), status=[status]),
        'seen': SimpleNamespace(header=header(), detections=[seen]),
        'goal': SimpleNamespace(header=header(text), pose=pose),
        'any': SimpleNamespace(text=text),
    }


def prompt_of(text: str, **others: str) -> tuple[Segment, ...]:
    """Return the segments of a tick at which every topic says a text."""
    heard = messages(text) | {name: SimpleNamespace(data=said) for name, said in others.items()}
    newest = {}
    for name, msg in heard.items():
        try:
            fields = fields_of(policy().sensors[name], msg)
        except DroppedError:
            continue  # too long for a frame
        newest[name] = Received(name, fields, NOW_NS)
    mission = Mission(MissionTopic(min_period_s=0.1))
    mission.hear(text, NOW_NS)
    return segments(policy(), observe(policy(), newest, NOW_NS, ROS_NS), mission.text)


def test_the_corpus_is_large_and_its_texts_differ() -> None:
    assert len(CORPUS) >= 300
    assert {text for template in TEMPLATES.values() for text in template.controls()} <= set(CORPUS)


@pytest.mark.parametrize('part', range(8))
def test_a_text_stays_on_its_line_in_its_quotation(part: int) -> None:
    names = {*policy().sensors, 'mission'}
    for text in CORPUS[part::8]:
        said = prompt_of(text)
        assert {segment.name for segment in said} >= {'said', 'more', 'health', 'seen', 'any'}
        for segment in said:
            line = segment.text.removesuffix('\n')
            assert line.splitlines() == [line], (text, line)
            assert line.split(':')[0] == segment.name in names
            assert len(line) <= MAX_SEGMENT_CHARACTERS
            assert not [c for c in line if unicodedata.category(c)[0] == 'C'], (text, line)
        line = next(s.text for s in said if s.name == 'said').removesuffix('\n')
        found = re.fullmatch(r'said: topic /chatter has "([^"]*)"(, cut)?', line)
        assert found, (text, line)
        assert len(found[1]) <= 60
        mission = [s.text for s in said if s.name == 'mission']
        assert all(re.fullmatch(r'mission: "[^"]*"\n', line) for line in mission), mission


@pytest.fixture(scope='module', params=['every template', 'tiny', 'embedded'])
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Any, Callable[[int], bool], int]]:
    """A vocabulary of llama.cpp's, which of its ids are control tokens, and how many we know.

    That of every template is of bytes and all the control tokens of the corpus.
    """
    pytest.importorskip('llama_cpp')
    from smallm_ros.engine.model import LlamaModel, ModelSettings
    from tests.fakes import resident, tiny_gguf

    if request.param == 'every template':
        path = tiny_gguf.write(
            tmp_path_factory.mktemp('controls') / 'all.gguf', controls=CONTROLS)
        loaded = LlamaModel.load(path, name='all', sha256='0' * 64, settings=ModelSettings())
        # One of them, <|channel|>, llama.cpp makes a user-defined token of its own accord.
        yield loaded, lambda token: token >= tiny_gguf.PLAIN, len(CONTROLS) - 1
    else:
        loaded, _ = resident.model(request.param)
        front, known = {'tiny': (1000, 20), 'embedded': (17, 5)}[request.param]
        yield loaded, lambda token: token < front, known
    loaded.close()


@pytest.mark.model
def test_no_text_gives_a_control_token(
    model: tuple[Any, Callable[[int], bool], int],
) -> None:
    words, control, least = model
    known = [text for text in CONTROLS if _has(words, text)]
    assert len(known) >= least, 'spellings that could become one'
    for text in CORPUS:
        for segment in prompt_of(text):
            ids = words.tokenize(segment.text)
            assert not any(map(control, ids)), (text, segment.text)
            assert len(ids) <= len(segment.text.encode())
    for first, second in SPLIT:
        said = ''.join(s.text for s in prompt_of('', said=first, more=second))
        assert not any(map(control, words.tokenize(said))), (first, second)


@pytest.mark.model
@pytest.mark.parametrize('name', TEMPLATES)
def test_in_every_template_the_control_tokens_are_its_own(name: str, tmp_path: Path) -> None:
    pytest.importorskip('llama_cpp')
    from smallm_ros.engine.model import LlamaModel, ModelSettings
    from tests.fakes import tiny_gguf

    path = tiny_gguf.write(tmp_path / 'all.gguf', controls=CONTROLS)
    words = LlamaModel.load(path, name='all', sha256='0' * 64, settings=ModelSettings())
    try:
        calm = _controls(conversation(name, words, 'x', [('x', 'x')]))
        for text in CORPUS:  # as a mission of the file, an example and its answer
            hostile = conversation(name, words, text, [(text, text)])
            assert _controls(hostile) == calm, text
    finally:
        words.close()


def _controls(rendered: Rendered) -> list[int]:
    from tests.fakes import tiny_gguf

    return [token for token in [*rendered.prefix, *rendered.suffix] if token >= tiny_gguf.PLAIN]


def _has(words: Any, text: str) -> bool:
    from smallm_ros.core.errors import ModelFileError

    try:
        return int(words.control_token(text)) >= 0
    except ModelFileError:
        return False


@pytest.mark.model
@pytest.mark.slow
def test_whatever_is_said_the_decision_is_a_member_of_the_action_space() -> None:
    pytest.importorskip('llama_cpp')
    from tests.fakes import resident

    told, space = declaration(policy()), ActionSpace.of(policy())
    outcomes = {'decided': 0, 'refused': 0}
    with resident.decider('tiny') as ours:
        resident.Case(told, ()).declare(ours)
        for number, text in enumerate(CORPUS):
            said = prompt_of(text)
            now_ns = resident.CLOCK.now_ns()
            answer = ours.decide(
                Question(number + 1, told.space, now_ns + 60 * 10**9, said), now_ns,
                lambda: False)
            if not isinstance(answer, Decided):
                outcomes['refused'] += 1  # too long for its tokens, with all that may leave gone
                continue
            outcomes['decided'] += 1
            assert 0 <= answer.decision.leaf < len(space.actions)
    assert outcomes['refused'] == 0, outcomes
