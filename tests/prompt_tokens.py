"""What a prompt costs on a drive: tokens of Tekken, in each order of its segments.

    python -m tests.prompt_tokens BAG [POLICY]

Replays the scans and the odometry of a bag beside a goal and a battery that it does not have, at
the policy's rate of decisions. Each tick's dynamic part is tokenised as the engine does, and
compared with the last one's: what stands before the first other token is kept in KV, all else is
evaluated.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from smallm_ros.core.clock import SECOND
from smallm_ros.core.exchange import Segment
from smallm_ros.core.observation import Received
from smallm_ros.core.observe import observe
from smallm_ros.core.policy import Policy, load_policy
from smallm_ros.core.prompt import segments
from smallm_ros.core.summary.battery import Battery
from smallm_ros.core.summary.goal import Goal
from smallm_ros.engine.kv import LEAST_BATCH
from smallm_ros.replay.bag import Bag
from tests.fakes.resident import model

BASE = Path(__file__).parent / 'policies' / 'base.yaml'
GOAL_M = (-3.0, 2.0)
"""From where the robot began to where it is to go, in its odometry's frame."""
VOLTAGE_V = 14.4
LOSES_PERCENT_A_MINUTE = 1.0


@dataclass(frozen=True)
class Cost:
    """What one order of the segments costs over a drive."""

    order: tuple[str, ...]
    dynamic: tuple[int, ...]
    """Tokens of each tick's dynamic part, the template's tail among them."""
    evaluated: tuple[int, ...]

    @property
    def reused_share(self) -> float:
        """Share of the dynamic tokens that KV held."""
        return 1 - sum(self.evaluated) / sum(self.dynamic)


def ticks(policy: Policy, path: Path) -> list[tuple[Segment, ...]]:
    """Return the segments of each fit tick of a bag."""
    newest: dict[str, Received] = {}
    found = []
    # The bag is asked for what it has; the rest is made up here.
    there = {n: s for n, s in policy.sensors.items() if n not in ('goal', 'battery')}
    with Bag(path, policy.model_copy(update={'sensors': there})) as bag:
        next_ns = bag.begin_ns
        for recorded in bag.readings():
            while recorded.bag_ns >= next_ns:
                ros_ns = bag.ros_time.at(next_ns)
                percent = 80 - LOSES_PERCENT_A_MINUTE * (next_ns - bag.begin_ns) / (60 * SECOND)
                for name, fields in (
                    ('goal', Goal(0, 'odom', *GOAL_M, 0.0)),
                    ('battery', Battery(0, percent / 100, VOLTAGE_V, 2, 1, True)),
                ):
                    newest[name] = Received(name, fields, next_ns, ros_ns)
                observation = observe(policy, newest, next_ns, ros_ns)
                if observation.fit:
                    found.append(segments(policy, observation))
                next_ns += policy.decision_period_ns
            newest[recorded.sensor] = Received(
                recorded.sensor, recorded.fields, recorded.bag_ns,
                bag.ros_time.at(recorded.bag_ns))
    return found


class Tekken:
    """The vocabulary of Mistral Small 3."""

    def __init__(self) -> None:
        self._model, _ = model('tiny')
        self._known: dict[str, tuple[int, ...]] = {}
        self.tail = [self._model.control_token('[/INST]')]

    def line(self, text: str) -> tuple[int, ...]:
        """Return a line's tokens."""
        if text not in self._known:
            self._known[text] = tuple(self._model.tokenize(text))
        return self._known[text]


def cost(words: Tekken, said: Sequence[tuple[Segment, ...]], order: tuple[str, ...]) -> Cost:
    """Return what the ticks cost when their segments stand in this order."""
    dynamic, evaluated = [], []
    before: list[int] = []
    for tick in said:
        texts = {s.name: s.text.removesuffix('\n') for s in tick}
        tokens = [
            t for name in order
            for t in words.line(texts[name] + ('\n' if name != order[-1] else ''))
        ] + words.tail
        kept = next((i for i, (a, b) in enumerate(zip(tokens, before, strict=False)) if a != b),
                    min(len(tokens), len(before)))
        dynamic.append(len(tokens))
        evaluated.append(len(tokens) - min(kept, len(tokens) - LEAST_BATCH))
        before = tokens
    return Cost(order, tuple(dynamic[1:]), tuple(evaluated[1:]))


def main(path: Path, policy: Policy) -> None:
    """Print the cost of each order, the best first."""
    words, said = Tekken(), ticks(policy, path)
    declared = tuple(s.name for s in said[0])
    costs = [cost(words, said, order) for order in itertools.permutations(declared)]
    print(f'{path.name}, {policy.name}: {len(said)} ticks at {policy.decision.rate_hz:g} Hz')
    for name in declared:
        texts = [next(s.text for s in tick if s.name == name) for tick in said]
        changed = sum(a != b for a, b in itertools.pairwise(texts)) / (len(texts) - 1)
        sizes = [len(words.line(text)) for text in texts]
        print(f'  {name:8} {max(sizes):3} tokens at most, changes in {changed:4.0%} of the ticks: '
              f'{texts[0].strip()!r}')
    print(f'  {"order":32} evaluated/tick p50  p90  max    all  dynamic   reused')
    for each in sorted(costs, key=lambda c: sum(c.evaluated)):
        p50, p90, most = np.percentile(each.evaluated, (50, 90, 100), method='higher')
        note = '  <- as declared' if each.order == declared else ''
        print(f'  {" ".join(each.order):32} {p50:18.0f} {p90:4.0f} {most:4.0f} '
              f'{sum(each.evaluated):6} {sum(each.dynamic):8} {each.reused_share:8.0%}{note}')


if __name__ == '__main__':
    main(Path(sys.argv[1]), load_policy(Path(sys.argv[2]) if len(sys.argv) > 2 else BASE))
