"""`smallm check FILE`: a policy file's mistakes with their lines, or what it declares and costs.

With `--model none` nothing heavy is imported: that is for editors and hooks.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallm_ros.core.action import ActionSpace
from smallm_ros.core.clock import MS
from smallm_ros.core.errors import (
    ModelFileError,
    OperatorError,
    PackageMissingError,
    PolicyError,
)
from smallm_ros.core.policy import Policy, json_schema, lines_of, load_policy
from smallm_ros.core.summary.fields import FieldsSensor, mistakes
from smallm_ros.engine.options import DEFAULT_MODEL, LoadRequest
from smallm_ros.ros import outputs
from smallm_ros.ros.messages import installed, types_of

if TYPE_CHECKING:
    from smallm_ros.bench.workload import Subject, Vocabulary
    from smallm_ros.core.budget import CostModel

NONE, THIS = 'none', 'this'


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command to `smallm`'s parser."""
    parser = subparsers.add_parser(
        'check', help='check a policy file and say what it declares',
        description='Explain each mistake of a policy file with its line, or what it declares.',
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument('files', nargs='*', type=Path, default=[], metavar='FILE',
                      help='policy file (YAML)')
    what.add_argument('--schema', action='store_true',
                      help='print the JSON Schema of policy files, for editors')
    parser.add_argument('--model', default=DEFAULT_MODEL, metavar='NAME|PATH|none',
                        help='whose vocabulary counts the tokens; none counts nothing (default: '
                             '%(default)s)')
    parser.add_argument('--device', metavar='DEVICE',
                        help='what a token costs: a device of `smallm plan`, predicted, or this: '
                             'the model is loaded and measured (default: what an engine has '
                             'measured on this machine)')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; return 0, or PolicyError's exit code when a file has mistakes."""
    if args.schema:
        print(json.dumps(json_schema(), indent=2))
        return 0
    code = 0
    counter = _Counter(args.model, args.device)
    for path in args.files:
        try:
            policy = load_policy(path)
            check_messages(policy, path)
            print(account(policy, str(path)))
            print('\n'.join(counter.said(policy)))
        except PolicyError as err:
            print(err, file=sys.stderr)
            code = err.exit_code
    return code


def check_messages(policy: Policy, path: Path) -> None:
    """Hold what actions say and what `fields` reads against the real class, where it is here."""
    found = list(outputs.problems(policy, leave_out=outputs.unchecked(policy)))
    found += [
        (('sensors', name), mistake) for name, sensor in policy.sensors.items()
        if isinstance(sensor, FieldsSensor) and installed(sensor.type)
        for mistake in mistakes(sensor, types_of)
    ]
    if found:
        lines = lines_of(path)
        raise PolicyError('\n'.join(
            f'{path}:{lines.get(place, 1)}: {".".join(place)}: {wrong}' for place, wrong in found
        ))


class _Counter:
    """Counts policies with one vocabulary and one cost model, both sought when first needed."""

    def __init__(self, model: str, device: str | None) -> None:
        self._model, self._device = model, device
        self._words: Vocabulary | None = None
        self._costs: CostModel | None = None
        self._why: list[str] = []
        self._sought = False

    def said(self, policy: Policy) -> Iterator[str]:
        """Yield the lines that `account` cannot know, and the warnings."""
        from smallm_ros.bench import advice

        if not self._sought:
            self._sought = True
            self._seek()
        if self._words is not None:
            yield from advice.said(advice.costs(policy, self._words, self._costs))
        yield from self._why
        for warning in advice.warnings(policy, self._words):
            yield f'  warning   {warning}'

    def _seek(self) -> None:
        if self._model == NONE:
            self._why.append('  tokens    not counted, nor what they cost: --model none')
            return
        from smallm_ros.bench import workload

        try:
            subject = workload.subject(self._model)
            self._words = workload.vocabulary(subject)
        except (ModelFileError, PackageMissingError) as err:
            self._why.append(f'  tokens    not counted, nor what they cost: {err}')
            return
        try:
            self._costs, of = self._cost_model(subject)
            self._why.append(f'  times     {of}')
        except (ModelFileError, PackageMissingError) as err:
            self._why.append(f'  times     not known: {err}')

    def _cost_model(self, subject: Subject) -> tuple[CostModel | None, str]:
        """Return t(n) and whose it is; None and the way to one."""
        from smallm_ros.bench.roofline import DEVICES

        if self._device is not None and self._device in DEVICES:
            device, context = DEVICES[self._device], LoadRequest().context_tokens
            return (device.costs(subject.facts, context, 'f16'),
                    f'of {subject.facts.name} on {device.title}: PREDICTED, as `smallm plan` does')
        if self._device not in (None, THIS):
            raise OperatorError(f'device {self._device!r} is unknown: one of '
                                f'{", ".join((*DEVICES, THIS))}')
        if subject.path is None:
            return None, (f'not known: {subject.facts.name} is not here; --device '
                          f'{"|".join(DEVICES)} predicts')
        from smallm_ros.bench import here
        from smallm_ros.engine import load, registry

        request = LoadRequest(model=self._model)
        layers = here.load(request).gpu_layers if self._device == THIS else 0
        found = load.known_costs(registry.resolve(self._model).sha256, layers, request)
        if found is None:
            return None, (f'not known: no engine has measured {subject.facts.name} here; --device '
                          f'{THIS} does, --device {"|".join(DEVICES)} predicts')
        return found, f'of {subject.facts.name} on this machine, as the engine measured them'


def account(policy: Policy, name: str) -> str:
    """Return what a policy declares, in some ten lines."""
    decision, control = policy.decision, policy.control
    lines = [f'{name}: {policy.name}: good']
    for sensor_name, sensor in policy.sensors.items():
        lines.append(
            f'  sensor    {sensor_name}: {sensor.topic} ({sensor.type}), '
            f'{"required" if sensor.required else "optional"}, {sensor.rate_hz:g} Hz, '
            f'lost after {sensor.stale_after_ms:g} ms'
        )
    lines += [
        f'  answers   {policy.leaves}: ' + _listed(ActionSpace.of(policy).answers),
        *_outputs(policy),
        f'  decision  {decision.rate_hz:g} Hz, budget {decision.budget_ms:g} ms, time-to-live of '
        f'a command {policy.ttl_ns / MS:.0f} ms, observation at most '
        f'{decision.max_observation_age_ms:g} ms old',
        f'  choice    {_choosing(policy)}',
        f'  control   {control.rate_hz:g} Hz, reaction to a fault within '
        f'{control.reaction_time_ms:g} ms',
        f'  fallback  {", then ".join(policy.fallback.ladder)}',
    ]
    return '\n'.join(lines)


def _outputs(policy: Policy) -> list[str]:
    unchecked = outputs.unchecked(policy)
    lines = [
        f'  output    {name}: {output.topic} ({output.type}), '
        + ('NOT checked: its package is not installed here' if name in unchecked
           else 'fits its class, no envelope bounds it')
        + (', has a message for a stop' if output.on_stop is not None else '')
        for name, output in policy.outputs.items()
    ]
    return lines + ['  base      none: cmd_vel is not published'] * (policy.base == 'none')


def _choosing(policy: Policy) -> str:
    decision, prior, text = policy.decision, policy.prior, policy.free_text
    parts = ['the likeliest answer' if decision.decide == 'best' else 'the likeliest word by word']
    if decision.anytime:
        parts.append('parameters may be the defaults at the deadline')
    if decision.history:
        parts.append(f'the last {decision.history} decisions are in the prompt')
    parts.append({
        'reference': f'bias measured over {prior.references} drawn observations',
        'content_free': 'bias measured over observations without content',
        'none': 'bias left as it is',
    }[prior.correction])
    if text:
        parts.append(f'then a {text.name} of at most {text.max_tokens} tokens')
    return ', '.join(parts)


def _listed(answers: tuple[str, ...], most: int = 12) -> str:
    more = f', and {len(answers) - most} more' if len(answers) > most else ''
    return ', '.join(answers[:most]) + more
