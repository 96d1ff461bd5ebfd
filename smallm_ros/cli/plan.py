"""`smallm plan`: does a model fit a device and a policy's budget, before either is bought.

Everything that it prints of a device that is not here is predicted, and says so; with
`--device this` the engine is loaded and measured, and stands beside the prediction with its error.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from smallm_ros.bench import roofline
from smallm_ros.bench.roofline import Case, Knob, Prediction, Spread
from smallm_ros.core.clock import MS
from smallm_ros.core.errors import OperatorError
from smallm_ros.core.policy import Policy, load_policy
from smallm_ros.engine.options import KvType, LoadRequest
from smallm_ros.share import find_share

if TYPE_CHECKING:
    from smallm_ros.bench.here import Measured
    from smallm_ros.bench.workload import Subject

THIS = 'this'
GB = 1e9
NOT_FITTING = 1
"""Exit code when memory, context or budget do not suffice."""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command to `smallm`'s parser."""
    parser = subparsers.add_parser(
        'plan', help='predict whether a model fits a device and a budget',
        description='Predict memory and decision latency from published figures, and say what '
                    'would make them fit. Exit code 1 when they do not.',
    )
    parser.add_argument('--model', required=True, metavar='NAME|PATH',
                        help='a name that `smallm models list` shows, or a GGUF file; Mistral '
                             'Small is known without its file')
    parser.add_argument('--device', required=True, metavar='DEVICE',
                        help=f'{", ".join(roofline.DEVICES)}, or {THIS}: this machine, measured')
    parser.add_argument('--policy', type=Path, metavar='FILE',
                        help='policy file whose decisions are planned (default: explorer.yaml)')
    parser.add_argument('--context', type=_tokens, default=4096, metavar='TOKENS',
                        help='context length (default: %(default)s)')
    parser.add_argument('--kv-type', choices=get_args(KvType), default='f16',
                        help='type of the KV cache (default: %(default)s)')
    parser.add_argument('--json', action='store_true', help='print JSON')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the plan; return 0 when all fits, else 1. OperatorError is left to the caller."""
    if args.device != THIS and args.device not in roofline.DEVICES:
        raise OperatorError(f'device {args.device!r} is unknown: one of '
                            f'{", ".join((*roofline.DEVICES, THIS))}')
    # mistral-common takes a second to import; `smallm --help` must not wait for it
    from smallm_ros.bench import workload

    policy = load_policy(args.policy or find_share('config') / 'policies' / 'explorer.yaml')
    subject = workload.subject(args.model)
    tokens = workload.count(policy, workload.vocabulary(subject))
    measured, own = None, None
    if args.device == THIS:
        from smallm_ros.bench import here
        from smallm_ros.engine.model import physical_cores

        device = here.this_machine(max(1, physical_cores() - 1))
    else:
        device = roofline.DEVICES[args.device]
    case = Case(subject.facts, device, tokens, args.context, args.kv_type)
    prediction = roofline.predict(case)
    if args.device == THIS:
        measured, own, why_not = _measured(case, prediction, subject, policy, args.model)
    else:
        why_not = ''
    knobs = roofline.knobs(case)
    if args.json:
        print(json.dumps(as_json(prediction, knobs, measured, own), indent=1))
    else:
        print('\n'.join(report(prediction, knobs, measured, own)))
        if why_not:
            print(f'measured  nothing: {why_not}')
    return 0 if prediction.fits else NOT_FITTING


def _measured(
    case: Case, prediction: Prediction, subject: Subject, policy: Policy, model: str
) -> tuple[Measured | None, Prediction | None, str]:
    """Return what the engine takes here, what its own t(n) predicts, or why there is neither."""
    from smallm_ros.bench import here

    if subject.path is None:
        return None, None, f'{case.model.name} is not here: smallm models pull {case.model.name}'
    if not (prediction.memory_fits and prediction.context_fits):
        return None, None, 'it does not fit'
    measured = here.measure(policy, LoadRequest(
        model=model, context_tokens=case.context_tokens, kv_type=case.kv_type,
    ))
    device = here.calibrated(case.device, case.model, measured)
    own = Case(case.model, device, case.tokens, case.context_tokens, case.kv_type)
    return measured, roofline.predict(own), ''


def _tokens(text: str) -> int:
    value = int(text)
    if value < 256:
        raise argparse.ArgumentTypeError(f'{value} is less than 256')
    return value


# --- for people ---------------------------------------------------------------------------------


def report(
    prediction: Prediction, knobs: tuple[Knob, ...], measured: Measured | None = None,
    own: Prediction | None = None,
) -> Iterator[str]:
    """Yield the plan's lines; `own` is what the measured t(n) predicts."""
    case, memory = prediction.case, prediction.memory
    tokens, model, device = case.tokens, case.model, case.device
    yield (f'{model.name} on {device.title}, policy {tokens.policy}: PREDICTED'
           + (', and measured below' if measured else ', not measured'))
    yield (f'model     {model.weights_bytes / GB:.2f} GB, {model.read_bytes / GB:.2f} read in a '
           f'pass; {model.parameters / GB:.2f}e9 weights in its layers; {model.origin}')
    yield f'tokens    {tokens.vocabulary}'
    yield (f'          static {tokens.static}, once; observation {_spread(tokens.dynamic)}; to '
           f'evaluate each time {_spread(tokens.changed)}, tail of {tokens.tail} included; '
           f'tree of {len(tokens.tree.nodes) - 1}, {len(tokens.tree.ends)} answers')
    yield f'          {tokens.drawn}'
    yield (f'memory    weights {memory.weights / GB:.2f} + KV {memory.kv / GB:.2f} '
           f'({case.context_tokens} tokens, {case.kv_type}) + compute {memory.compute / GB:.2f} + '
           f'system {memory.system / GB:.2f} = {memory.total / GB:.2f} of '
           f'{memory.available / GB:.2f} GB: {_verdict(prediction.memory_fits)}')
    yield (f'context   {tokens.context} of {case.context_tokens} tokens at the most: '
           f'{_verdict(prediction.context_fits)}')
    yield f'latency   {"":24}{"tokens":>12}{"typical":>12}{"at most":>12}'
    for part in prediction.parts:
        yield (f'          {part.name:24}{_spread(part.tokens):>12}'
               f'{_ms(part.typical_ns):>12}{_ms(part.most_ns):>12}')
    yield (f'          {"together":24}{"":12}{_ms(prediction.typical_ns):>12}'
           f'{_ms(prediction.most_ns):>12}  of {_ms(tokens.budget_ns)}: '
           f'{_verdict(prediction.time_fits)}')
    yield ('passes    levels of choice a pass, and the passes together: '
           + ', '.join(f'{name} in {_ms(cost)}' for name, cost in prediction.layouts))
    first = next(part for part in prediction.parts if part.name.startswith(roofline.PASS))
    assert first.tokens is not None
    yield (f'method    {device.method}; at the full rates, fully overlapped, pass 1 would take '
           f'{_ms(device.roofline_ns(first.tokens.typical, model))}')
    yield (f'compare   a JSON answer of {roofline.JSON_TOKENS} tokens, generated one by one: '
           f'{_ms(prediction.generated_ns)}; ours: {_ms(prediction.passes_ns)}')
    yield (f'start     {_ms(prediction.start_ns)} for the static part and {tokens.references} '
           'reference observations, once')
    if measured is not None and own is not None:
        yield from _beside(prediction, own, measured)
    if not prediction.fits:
        yield from _advice(knobs)
    for source in device.sources:
        yield f'source    {source.what}'
        yield f'          {source.where}'


def _advice(knobs: tuple[Knob, ...]) -> Iterator[str]:
    if not knobs:
        yield 'to fit    no change that is known here is enough, nor two together'
    for knob in knobs:
        after = knob.prediction
        yield (f'to fit    {knob.change}: {after.memory.total / GB:.2f} GB, at most '
               f'{_ms(after.most_ns)} of {_ms(after.case.tokens.budget_ns)}')


def _beside(prediction: Prediction, own: Prediction, measured: Measured) -> Iterator[str]:
    yield (f'measured  medians of {measured.decisions} decisions, {measured.threads} thread(s), '
           f'{measured.gpu_layers} layers on a GPU, sha256 {measured.sha256[:16]}, '
           f'{measured.evaluated} tokens in {measured.passes} pass(es)')
    yield f'          {"":20}{"roofline":>12}{"t(n)":>12}{"measured":>12}{"errors":>16}'
    for name, rates, ours, real in compared(prediction, own, measured):
        errors = f'{_error(rates, real)} {_error(ours, real)}'
        yield f'          {name:20}{_ms(rates):>12}{_ms(ours):>12}{_ms(real):>12}{errors:>16}'
    if measured.gpu_layers:
        yield '          the roofline is that of the CPU, the model is on a GPU: only t(n) counts'


def compared(
    prediction: Prediction, own: Prediction, measured: Measured
) -> Iterator[tuple[str, int, int, int]]:
    """Yield (part, predicted by rates, predicted by t(n), measured), in nanoseconds."""
    ours, theirs = (
        {part.name: part.typical_ns for part in each.parts} for each in (prediction, own)
    )
    yield 'tokenise', ours['tokenise'], theirs['tokenise'], measured.tokenise_ns
    yield 'passes', prediction.passes_ns, own.passes_ns, sum(measured.passes_ns)
    yield ('engine together', ours['tokenise'] + prediction.passes_ns,
           theirs['tokenise'] + own.passes_ns, measured.engine_ns)


def _error(predicted: int, real: int) -> str:
    return f'{(predicted - real) / real:+.0%}'


def _ms(ns: int) -> str:
    return f'{ns / MS:.1f} ms'


def _spread(tokens: Spread | None) -> str:
    if tokens is None:
        return ''
    same = tokens.typical == tokens.most
    return f'{tokens.typical}' if same else f'{tokens.typical} to {tokens.most}'


def _verdict(fits: bool) -> str:
    return 'fits' if fits else 'DOES NOT FIT'


# --- for machines -------------------------------------------------------------------------------


def as_json(
    prediction: Prediction, knobs: tuple[Knob, ...], measured: Measured | None = None,
    own: Prediction | None = None,
) -> Mapping[str, object]:
    """Return the plan as JSON values; times in nanoseconds, sizes in bytes."""
    case = prediction.case
    return {
        'predicted': True,
        'model': case.model.name,
        'device': case.device.name,
        'policy': case.tokens.policy,
        'vocabulary': case.tokens.vocabulary,
        'context_tokens': case.context_tokens,
        'kv_type': case.kv_type,
        **_outcome(prediction),
        'layouts': [{'levels': name, 'passes_ns': cost} for name, cost in prediction.layouts],
        'parts': [
            {
                'name': part.name, 'typical_ns': part.typical_ns, 'most_ns': part.most_ns,
                'tokens': None if part.tokens is None else part.tokens.typical,
                'most_tokens': None if part.tokens is None else part.tokens.most,
            }
            for part in prediction.parts
        ],
        'static_tokens': case.tokens.static,
        'tree_tokens': len(case.tokens.tree.nodes) - 1,
        'generated_ns': prediction.generated_ns,
        'start_ns': prediction.start_ns,
        'method': case.device.method,
        'knobs': [{'change': knob.change, **_outcome(knob.prediction)} for knob in knobs],
        'sources': [{'what': s.what, 'where': s.where} for s in case.device.sources],
        'measured': None if measured is None or own is None else {
            'decisions': measured.decisions, 'sha256': measured.sha256,
            'threads': measured.threads, 'gpu_layers': measured.gpu_layers,
            'evaluated_tokens': measured.evaluated, 'passes': measured.passes,
            'parts': [
                {'name': name, 'roofline_ns': rates, 't_n_ns': ours, 'measured_ns': real}
                for name, rates, ours, real in compared(prediction, own, measured)
            ],
        },
    }


def _outcome(prediction: Prediction) -> dict[str, object]:
    memory = prediction.memory
    return {
        'fits': prediction.fits, 'memory_fits': prediction.memory_fits,
        'context_fits': prediction.context_fits, 'time_fits': prediction.time_fits,
        'memory': {
            'weights': memory.weights, 'kv': memory.kv, 'compute': memory.compute,
            'system': memory.system, 'total': memory.total, 'available': memory.available,
        },
        'typical_ns': prediction.typical_ns, 'most_ns': prediction.most_ns,
        'budget_ns': prediction.case.tokens.budget_ns, 'levels': prediction.layout,
    }
