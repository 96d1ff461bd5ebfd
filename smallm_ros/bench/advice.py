"""What of a policy costs more than it need, and what each sensor costs: warnings, never errors.

Each warning says what is so and what it costs; a policy that means it can leave it so. Those about
tokens need a vocabulary, those about times a cost model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median

from smallm_ros.bench.roofline import Spread
from smallm_ros.bench.workload import OBSERVATIONS, Vocabulary
from smallm_ros.core.action import ActionSpace
from smallm_ros.core.budget import CostModel
from smallm_ros.core.clock import MS
from smallm_ros.core.policy import Policy
from smallm_ros.core.prompt import declaration, segments
from smallm_ros.core.reference import draw
from smallm_ros.core.tree import ROOT, Tree
from smallm_ros.engine.templates import conversation

MOST_NAME_TOKENS = 3
"""Of an action's name: each is one token more in the batch that decides."""
MISSED_REQUIRED, MISSED_OPTIONAL = 10, 60
"""Messages that may fail to come before a sensor counts as lost, without a word about it."""
_PLACEHOLDER = re.compile(r'\{\{?\s*[A-Za-z_][\w. ]*\}\}?|\$\{?[A-Za-z_]\w*\}?|%[YmdHMS]\b')
_TIME = re.compile(r'\b\d{4}-\d\d-\d\d\b|\b\d\d?:\d\d(?::\d\d)?\b|\b1[5-9]\d{8}\b')


def warnings(policy: Policy, words: Vocabulary | None = None) -> Iterator[str]:
    """Yield a sentence for each thing that is worth another thought."""
    yield from _of_static(policy)
    yield from _of_staleness(policy)
    if words is not None:
        yield from _of_names(policy, words)


def _of_static(policy: Policy) -> Iterator[str]:
    """Yield what changes in the static part, where nothing is ever filled in.

    It is evaluated once. No file can make it depend on a topic; what looks so, will not.
    """
    texts = {'mission': policy.mission}
    texts |= {f'actions.{n}.description': a.description for n, a in policy.actions.items()}
    for index, example in enumerate(policy.examples):
        texts[f'examples.{index}.observation'] = example.observation
    for place, text in texts.items():
        if found := _PLACEHOLDER.search(text):
            yield (f'{place}: nothing is put in the place of {found[0]!r}; what changes is said '
                   'by a sensor or on the mission_topic')
        if found := _TIME.search(text):
            yield (f'{place}: {found[0]!r} looks like a time: with another one all of the static '
                   'part is evaluated anew, and the bias measured anew')


def _of_staleness(policy: Policy) -> Iterator[str]:
    for name, sensor in policy.sensors.items():
        missed = round(sensor.stale_after_ms * sensor.rate_hz / 1e3)
        most = MISSED_REQUIRED if sensor.required else MISSED_OPTIONAL
        if missed > most and sensor.stale_after_ms > policy.decision.max_observation_age_ms:
            yield (f'sensors.{name}: lost only after {sensor.stale_after_ms / 1e3:g} s, '
                   f'{missed} messages at {sensor.rate_hz:g} Hz: a smaller stale_after_ms, or the '
                   'rate at which it is really sent')


def _of_names(policy: Policy, words: Vocabulary) -> Iterator[str]:
    for name in policy.actions:
        tokens = words.tokenize(name)
        if len(tokens) > MOST_NAME_TOKENS:
            parts = '|'.join(words.piece(t).decode('utf-8', 'replace') for t in tokens)
            yield (f'actions.{name}: {len(tokens)} tokens ({parts}), a common word is one or two')
    space = ActionSpace.of(policy).actions
    tree = tree_of(policy, words)
    for node, sharing in _late_choices(tree, tuple(action.name for action in space)):
        shared = b''.join(words.piece(tree.nodes[n].token) for n in tree.path(node))
        yield (f'actions {", ".join(sharing)}: all begin with '
               f"{shared.decode('utf-8', 'replace')!r}, so that telling them apart is a choice "
               'more, which can cost a pass: names whose first words differ')


def tree_of(policy: Policy, words: Vocabulary) -> Tree:
    """Return the trie of a policy's answers."""
    told = declaration(policy)
    end = conversation(words.template, words, '', ()).end
    return Tree.of([words.tokenize(answer) for answer in told.answers], end)


def _late_choices(tree: Tree, action: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield (node, actions) for each choice between actions below another such choice."""
    def actions(node: int) -> tuple[str, ...]:
        return tuple(dict.fromkeys(action[leaf] for leaf in sorted(tree.leaves(node))))

    between = [index for index, node in enumerate(tree.nodes)
               if node.is_choice and len(actions(index)) > 1]
    for node in between:
        if node != ROOT and any(a in between for a in (ROOT, *tree.path(tree.nodes[node].parent))):
            yield node, actions(node)


# --- what a sensor costs ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Costs:
    """A policy's prompt in tokens, and in time where that is known."""

    vocabulary: str
    static: int
    tail: int
    """The template's, after each observation."""
    dynamic: Spread
    sensors: Mapping[str, Spread]
    """Tokens of those that the model reads."""
    levels: int
    """Most choices on the way to an answer."""
    longest: int
    """Tokens of the longest answer."""
    ns: Mapping[str, int]
    """What the most tokens of each sensor add to a pass in which all is new; empty: not known."""
    whole_ns: int = 0
    """Such a pass, without the tree."""


def costs(policy: Policy, words: Vocabulary, model: CostModel | None = None) -> Costs:
    """Count a policy over observations drawn by the seed of its prior."""
    told = declaration(policy)
    prompt = conversation(words.template, words, told.system, told.examples)
    counted: dict[str, list[int]] = {}
    whole = []
    for observation in draw(policy, policy.prior.seed, OBSERVATIONS):
        said = {s.name: len(words.tokenize(s.text)) for s in segments(policy, observation)}
        whole.append(sum(said.values()))
        for name, tokens in said.items():
            counted.setdefault(name, []).append(tokens)
    sensors = {name: Spread(round(median(n)), max(n)) for name, n in counted.items()}
    dynamic = Spread(round(median(whole)), max(whole))
    tail, tree = len(prompt.suffix), tree_of(policy, words)
    batch = dynamic.most + tail
    return Costs(
        vocabulary=words.said, static=len(prompt.prefix), tail=tail, dynamic=dynamic,
        sensors=sensors, levels=tree.levels,
        longest=max(tree.nodes[end].depth - 1 for end in tree.ends),
        ns={} if model is None else {
            name: model.idle_ns(batch) - model.idle_ns(max(1, batch - spread.most))
            for name, spread in sensors.items()
        },
        whole_ns=0 if model is None else model.idle_ns(batch),
    )


def said(found: Costs) -> Iterator[str]:
    """Yield what `costs` found, a line each."""
    spread = _spread(found.dynamic)
    yield (f'  tokens    {found.vocabulary}: static {found.static}, once; observation {spread}, '
           f'tail {found.tail}; answers of at most {found.longest} in {found.levels} '
           f'choice{"s" * (found.levels != 1)}')
    for name, tokens in found.sensors.items():
        ms = f', at most {found.ns[name] / MS:.1f} ms when all is new' if found.ns else ''
        yield f'  cost      {name}: {_spread(tokens)} tokens{ms}'
    if found.ns:
        yield (f'  cost      a pass over all of it, without the answers: '
               f'{found.whole_ns / MS:.1f} ms')


def _spread(tokens: Spread) -> str:
    same = tokens.typical == tokens.most
    return f'{tokens.typical}' if same else f'{tokens.typical} to {tokens.most}'
