"""`smallm check FILE`: a policy file's mistakes with their lines, or what it declares."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from smallm_ros.core.action import ActionSpace
from smallm_ros.core.clock import MS
from smallm_ros.core.errors import PolicyError
from smallm_ros.core.policy import Policy, json_schema, load_policy


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
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; return 0, or PolicyError's exit code when a file has mistakes."""
    if args.schema:
        print(json.dumps(json_schema(), indent=2))
        return 0
    code = 0
    for path in args.files:
        try:
            print(account(load_policy(path), str(path)))
        except PolicyError as err:
            print(err, file=sys.stderr)
            code = err.exit_code
    return code


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
        f'  decision  {decision.rate_hz:g} Hz, budget {decision.budget_ms:g} ms, time-to-live of '
        f'a command {policy.ttl_ns / MS:.0f} ms, observation at most '
        f'{decision.max_observation_age_ms:g} ms old',
        f'  choice    {_choosing(policy)}',
        f'  control   {control.rate_hz:g} Hz, reaction to a fault within '
        f'{control.reaction_time_ms:g} ms',
        f'  fallback  {", then ".join(policy.fallback.ladder)}',
    ]
    return '\n'.join(lines)


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
