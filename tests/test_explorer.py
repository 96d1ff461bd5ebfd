"""What the embedded model makes of explorer.yaml: every case of its world, judged by hand."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from smallm_ros.core.action import ActionSpace
from smallm_ros.core.clock import SECOND
from smallm_ros.core.exchange import Decided, Declared, Question, Segment
from smallm_ros.core.policy import Policy, load_policy
from smallm_ros.core.prompt import declaration
from smallm_ros.core.summary.scan import ScanSensor
from smallm_ros.engine.decode import Decider
from smallm_ros.engine.load import load_decider
from smallm_ros.engine.options import LoadRequest
from smallm_ros.engine.progress import ProgressPage, ProgressWriter
from smallm_ros.steady import SteadyClock

pytestmark = pytest.mark.model
POLICY = load_policy(
    Path(__file__).resolve().parent.parent / 'config' / 'policies' / 'explorer.yaml'
)
CLOCK = SteadyClock()


@pytest.fixture(scope='module')
def decider() -> Iterator[Decider]:
    page = ProgressPage.create(CLOCK.now_ns())
    loaded = load_decider(LoadRequest(), ProgressWriter(page, CLOCK), CLOCK)
    yield loaded
    loaded.close()
    page.close()


def judge(decider: Decider, policy: Policy) -> tuple[int, int, set[str]]:
    """Return (good choices, choices that drive into what blocks, distinct answers) of 27 cases."""
    told = declaration(policy)
    assert isinstance(decider.declare(told), Declared)
    scan = policy.sensors['scan']
    assert isinstance(scan, ScanSensor)
    words = [*(b.word for b in scan.bins), scan.far_word]
    rank = {word: n for n, word in enumerate(words)}
    assert [s.name for s in scan.sectors] == ['ahead', 'left', 'right']
    good = unsafe = 0
    answers = set()
    for request, case in enumerate(itertools.product(words, repeat=3), start=1):
        text = 'scan: ' + ', '.join(
            f'{s.name} {word}' for s, word in zip(scan.sectors, case, strict=True)
        )
        question = Question(
            request, told.space, CLOCK.now_ns() + 60 * SECOND, (Segment('scan', text, 0),)
        )
        answer = decider.decide(question, CLOCK.now_ns(), lambda: False)
        assert isinstance(answer, Decided)
        action = ActionSpace.of(policy).actions[answer.decision.leaf]
        answers.add(action.answer)
        ahead, left, right = (rank[word] for word in case)
        turned_to = {'left': left, 'right': right}.get(action.name)
        unsafe += ahead == 0 and turned_to is None
        if ahead == 2:
            good += turned_to is None
        elif ahead == 1:
            good += turned_to is None or turned_to >= 1
        else:
            good += turned_to == max(left, right)
    return good, unsafe, answers


def test_it_drives_where_it_is_free_and_turns_where_it_is_not(
    decider: Decider, capsys: pytest.CaptureFixture[str]
) -> None:
    good, unsafe, answers = judge(decider, POLICY)
    without = POLICY.model_copy(update={'examples': ()})
    good_without, unsafe_without, _ = judge(decider, without)
    biased = without.model_copy(update={
        'prior': POLICY.prior.model_copy(update={'correction': 'none'})
    })
    good_biased, _, answers_biased = judge(decider, biased)
    with capsys.disabled():
        print(f'\nexplorer.yaml, of 27 cases: {good} good, {unsafe} unsafe; without its examples '
              f'{good_without} and {unsafe_without}; and without prior correction {good_biased}, '
              f'with {len(answers_biased)} distinct answers of 6')
    assert unsafe == 0
    assert good >= 18
    assert good > good_without
    assert len(answers) >= 5
    assert len(answers_biased) < len(answers)


def test_the_declared_correction_is_the_best_of_the_three(
    decider: Decider, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {
        correction: judge(decider, POLICY.model_copy(update={
            'prior': POLICY.prior.model_copy(update={'correction': correction})
        }))[0]
        for correction in ('reference', 'content_free', 'none')
    }
    with capsys.disabled():
        print('\nexplorer.yaml by prior correction, good of 27 cases: '
              + ', '.join(f'{correction} {count}' for correction, count in good.items()))
    assert max(good, key=lambda correction: good[correction]) == POLICY.prior.correction
