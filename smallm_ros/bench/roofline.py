"""What a decision should cost on a device that is not here, and what would make it fit.

A pass reads every weight once and multiplies each token with them. The roofline is the greater of
the two at the data sheet's rates: no program is faster. The estimate is their sum at the rates
that llama.cpp is published to reach, because it hardly overlaps them: on the RTX 4090 its batches
of 16 to 512 tokens lie at 0.94 to 1.01 of the sum, at up to 1.85 of the greater. Where such
batches are published, they are interpolated instead. Everything here is arithmetic over
values; a prediction is marked as one wherever it is shown.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from smallm_ros.bench.shape import MISTRAL_SMALL_24B, VOCABULARY, Shape
from smallm_ros.core.budget import SPREAD, CostModel
from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.passes import Passes, Planner
from smallm_ros.core.tree import Tree
from smallm_ros.engine.options import KV_SHARES, KvType

GIB, MIB = 1 << 30, 1 << 20
QUANTISATIONS: Mapping[str, float] = {
    'Q8_0': 8.50, 'Q6_K': 6.56, 'Q5_K_M': 5.68, 'Q4_K_M': 4.84, 'Q4_K_S': 4.58, 'Q3_K_M': 3.91,
    'Q2_K': 3.35,
}
"""Bits a weight, largest first: llama.cpp, tools/quantize/README.md, table for a 7B."""
BATCH_TOKENS = 512
LANES = 246
"""Sequences for branches: 256 less the working one, 8 pinned static parts and the spare one."""
LEAST_BATCH_NS = 1_300_000
"""No batch is shorter, however small the model: TinyLlama 1.1B takes 1.3 ms a token on an RTX 4090
(github.com/geerlingguy/ai-benchmarks/issues/43, 762 tokens/s), kernel launches and the host."""
TOKENISE_NS = (100_000, 5_000)
"""Fixed and for each token: llama.cpp's tokeniser and our cache of lines, as measured here."""
TRANSPORT_NS = (1 * MS, 5 * MS)
"""Question and answer over the socket: as it mostly is here, and what is kept free for it."""
JSON_TOKENS = 25
"""Of an answer like {"action": "arc-left", "amount": "gentle"}, generated one by one."""
PASS = 'pass'
_SIZES = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 1024, 4096)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What decides a model's memory and speed; `facts_of_shape` and `workload` fill it."""

    name: str
    weights_bytes: int
    read_bytes: int
    """Of those, read in every pass: all but an embedding that is not the output matrix too."""
    parameters: int
    """Multiplied with each token: those of the layers."""
    vocabulary: int
    width: int
    feed_forward: int
    kv_bytes_per_token: int
    """At f16."""
    context: int
    """Tokens that it was trained for."""
    origin: str
    """Where these figures are from."""


def facts_of_shape(shape: Shape, weights_bytes: int, name: str, origin: str) -> ModelFacts:
    """Return the facts of a llama-architecture shape whose file has `weights_bytes`."""
    tensors = shape.tensors()
    layers = sum(math.prod(t.shape) for t in tensors if t.name.startswith('blk.'))
    embedding = 0 if shape.tied else tensors[0].bytes
    return ModelFacts(
        name=name, weights_bytes=weights_bytes, read_bytes=weights_bytes - embedding,
        parameters=layers, vocabulary=VOCABULARY, width=shape.width,
        feed_forward=shape.feed_forward, kv_bytes_per_token=shape.kv_bytes_per_token,
        context=shape.context, origin=origin,
    )


MISTRAL_SMALL = facts_of_shape(
    MISTRAL_SMALL_24B, 14_333_908_672, 'mistral-small-24b-instruct-2501-q4_k_m',
    'registry entry (bytes), published shape of Mistral Small 3 (40 layers, 8 KV heads)',
)
"""The model that the published points are for: 24B Q4_K_M."""


def requantised(model: ModelFacts, name: str) -> ModelFacts:
    """Return `model` as it would be in another of QUANTISATIONS, by bits a weight.

    What it has now is taken for Q4_K_M or whatever of the table is nearest in bits.
    """
    share = QUANTISATIONS[name] / QUANTISATIONS[quantisation_of(model)]
    return dataclasses.replace(
        model, name=f'{model.name} as {name}', weights_bytes=round(model.weights_bytes * share),
        read_bytes=round(model.read_bytes * share),
    )


def quantisation_of(model: ModelFacts) -> str:
    """Return the quantisation of the table whose bits a weight are nearest."""
    head = model.vocabulary * model.width * (1 if model.read_bytes == model.weights_bytes else 2)
    bits = 8 * model.weights_bytes / (model.parameters + head)
    return min(QUANTISATIONS, key=lambda name: abs(QUANTISATIONS[name] - bits))


# --- devices ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Source:
    """Who published a figure."""

    what: str
    where: str


@dataclass(frozen=True, slots=True)
class Device:
    """A computer to run on: what its data sheet says and what llama.cpp is known to reach."""

    name: str
    title: str
    memory_bytes: int
    bandwidth_bytes_s: float
    compute_ops_s: float
    """Dense int8 operations a second, the format of llama.cpp's batched kernels; one
    multiplication with its addition is two."""
    bandwidth_share: float
    """Of the bandwidth, reached when one token is evaluated."""
    compute_share: float
    """Of the operations, reached in large batches."""
    system_bytes: int
    """Taken by the system, the desktop and CUDA's own context."""
    sources: tuple[Source, ...]
    points: tuple[tuple[int, int], ...] = ()
    """(tokens, ns) of batches of `reference`, ascending, the first of one token; or none."""
    reference: ModelFacts = MISTRAL_SMALL
    least_batch_ns: int = LEAST_BATCH_NS

    @property
    def method(self) -> str:
        """How `batch_ns` comes by its figure, in words."""
        if self.points:
            return (f'known batches of {self.reference.name}, interpolated; for another model '
                    'the part of one token scaled by bytes, the rest by parameters')
        return (f'bytes at {self.bandwidth_share:.0%} of the bandwidth plus operations at '
                f'{self.compute_share:.1%} of the rate that its sources state')

    def batch_ns(
        self, tokens: int, model: ModelFacts = MISTRAL_SMALL, context_tokens: int = 0,
        kv_type: KvType = 'f16',
    ) -> int:
        """Return the expected time of one pass over `tokens` new tokens, in nanoseconds.

        `context_tokens` are those already in KV, which the pass reads too.
        """
        a_byte_ns = SECOND / (self.bandwidth_bytes_s * self.bandwidth_share)
        kv_ns = context_tokens * model.kv_bytes_per_token * KV_SHARES[kv_type] * a_byte_ns
        if self.points:
            one_ns = self.points[0][1]
            more_ns = _between(self.points, tokens) - one_ns
            one_ns_here = one_ns * model.read_bytes / self.reference.read_bytes
            more_ns_here = more_ns * model.parameters / self.reference.parameters
        else:
            an_operation_ns = SECOND / (self.compute_ops_s * self.compute_share)
            one_ns_here = model.read_bytes * a_byte_ns
            more_ns_here = 2 * model.parameters * tokens * an_operation_ns
        return max(self.least_batch_ns, round(one_ns_here + more_ns_here + kv_ns))

    def roofline_ns(self, tokens: int, model: ModelFacts = MISTRAL_SMALL) -> int:
        """Return the time that no program can beat: the data sheet's rates, fully overlapped."""
        return round(SECOND * max(
            model.read_bytes / self.bandwidth_bytes_s,
            2 * model.parameters * tokens / self.compute_ops_s,
        ))

    def costs(self, model: ModelFacts, context_tokens: int, kv_type: KvType) -> CostModel:
        """Return t(n) as the engine's planner takes it."""
        points: list[tuple[int, int]] = []
        for size in _SIZES:
            floor_ns = points[-1][1] + 1 if points else 1
            cost_ns = self.batch_ns(size, model, context_tokens, kv_type)
            points.append((size, max(floor_ns, cost_ns)))
        return CostModel(points)


def _between(points: tuple[tuple[int, int], ...], tokens: int) -> float:
    """Return the points' value at `tokens`: linear between them and beyond the last."""
    right = next((i for i, (n, _) in enumerate(points) if n >= tokens and i), len(points) - 1)
    (n0, t0), (n1, t1) = points[right - 1], points[right]
    return t0 + (t1 - t0) * (tokens - n0) / (n1 - n0)


_ORIN_OPS_S = 0.226 * 85.5e12
"""The share of its int8 operations that the RTX 4090 reaches, applied to the Orin's GPU."""

DEVICES: Mapping[str, Device] = {device.name: device for device in (
    Device(
        name='rtx4090', title='NVIDIA GeForce RTX 4090', memory_bytes=24 * GIB,
        bandwidth_bytes_s=1008e9, compute_ops_s=660.6e12, bandwidth_share=0.692,
        compute_share=0.226, system_bytes=1 * GIB,
        points=((1, 20 * MS), (16, 25 * MS), (32, 29 * MS), (64, 37 * MS), (128, 57 * MS),
                (256, 91 * MS), (512, 168 * MS)),
        sources=(
            Source('24 GB GDDR6X, 1008 GB/s, 660.6 TOPS dense int8',
                   'https://www.nvidia.com/en-us/geforce/graphics-cards/40-series/rtx-4090/ and '
                   'https://waredb.com/processor/nvidia-geforce-rtx-4090'),
            Source('batches of 16, 32, 64, 128, 256, 512 tokens: llama 8B Q4_K_S at 1946, 3358, '
                   '5349, 6901, 8555, 9279 tokens/s; times here are those x 3.05, the ratio of '
                   'the files (14.33 and 4.69 GB)',
                   'https://github.com/ggml-org/llama.cpp/pull/7860'),
            Source("system: assumed, CUDA's own context and a desktop", 'this module'),
            Source('one token: llama 8B Q4_K_M at 130.6 tokens/s in 2024 (22 ms when scaled), '
                   '8B Q4_0 at 82 % of the bandwidth of an RTX 6000 Ada in 2026 (18 ms): 20 ms',
                   'https://github.com/XiongjieDai/GPU-Benchmarks-on-LLM-Inference and '
                   'https://github.com/ggml-org/llama.cpp/pull/19053'),
        ),
    ),
    Device(
        name='agx-orin', title='NVIDIA Jetson AGX Orin 64 GB', memory_bytes=64 * GIB,
        bandwidth_bytes_s=204.8e9, compute_ops_s=85.5e12, bandwidth_share=0.57,
        compute_share=_ORIN_OPS_S / 85.5e12, system_bytes=8 * GIB,
        sources=(
            Source('64 GB LPDDR5 shared with the CPU, 204.8 GB/s',
                   'https://www.nvidia.com/en-us/autonomous-machines/embedded-systems/'
                   'jetson-orin/'),
            Source('GPU int8, sparse: 171 TOPS at MAXN; dense is half',
                   'https://github.com/NVIDIA/Deep-Learning-Accelerator-SW'),
            Source('one token: Llama 2 70B, 4 bits (38.9 GB), at 3.0 tokens/s: 57 % of the '
                   'bandwidth; 13B at 13.3',
                   'https://github.com/nvidia-holoscan/holohub/issues/170'),
            Source('system: assumed, the desktop and what the boot loader sets aside',
                   'this module'),
            Source('large batches: assumed, the share of int8 that the RTX 4090 reaches, 22.6 %; '
                   'agrees with 200 to 300 ms for 64 tokens', 'this module'),
        ),
    ),
    Device(
        name='agx-thor', title='NVIDIA Jetson AGX Thor (T5000)', memory_bytes=128 * GIB,
        bandwidth_bytes_s=273e9, compute_ops_s=517e12, bandwidth_share=0.705,
        compute_share=_ORIN_OPS_S / 517e12, system_bytes=128 * GIB - 109_671 * MIB,
        sources=(
            Source('128 GB LPDDR5X shared with the CPU, 273 GB/s, 517 TOPS dense int8',
                   'https://developer.nvidia.com/blog/introducing-nvidia-jetson-thor-the-'
                   'ultimate-platform-for-physical-ai/ and '
                   'https://github.com/huggingface/huggingface.js/pull/1710'),
            Source('one token: assumed, 70 to 75 ms for 24B Q4_K_M, 70 % of the bandwidth; '
                   'published is that it generates at 0.67 to 0.72 of a GB10 with the same memory',
                   'https://github.com/antirez/ds4/pull/788 and .../pull/716'),
            Source('system: llama.cpp found 109,671 MiB free at its start',
                   'https://github.com/ggml-org/llama.cpp/issues/15969'),
            Source("large batches: assumed no faster than AGX Orin's, a careful guess: no prefill "
                   'of a dense model by llama.cpp is published; 0.47 of the GB10, whose gpt-oss '
                   '20B at 3611 tokens/s would give 12 TOPS against the 19 taken here',
                   'https://github.com/antirez/ds4/pull/788 and https://jetsonhacks.com/'
                   'wp-content/uploads/2025/10/spark-llamacpp-bench.html'),
        ),
    ),
)}


# --- what a policy asks of it -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure as it mostly is, and at its largest."""

    typical: int
    most: int

    def at_most(self, limit: int) -> Spread:
        """Return both, cut to `limit`."""
        return Spread(min(self.typical, limit), min(self.most, limit))


@dataclass(frozen=True, slots=True)
class PolicyTokens:
    """A policy in tokens, and the times that it sets; `workload.count` makes it."""

    policy: str
    vocabulary: str
    """Whose tokens these are."""
    drawn: str
    """How the observations came about over which the spreads are taken."""
    static: int
    """Evaluated once and kept in KV."""
    tail: int
    """The template's, after each observation."""
    dynamic: Spread
    """Tokens of an observation."""
    changed: Spread
    """Tokens to evaluate for it: all from the first that differs from the one before, and the
    tail."""
    history: int
    """Tokens of the earlier turns that are in KV, at most."""
    references: int
    tree: Tree
    budget_ns: int
    period_ns: int
    """Of the decisions."""
    arrival_ns: int
    """Period of the fastest required sensor: so old its reading is at most when it is asked."""

    @property
    def context(self) -> int:
        """Tokens in KV when a decision is at its largest."""
        return self.static + self.history + self.dynamic.most + self.tail + len(self.tree.nodes)


@dataclass(frozen=True, slots=True)
class Case:
    """What is predicted: a model on a device under a policy, with the engine's settings."""

    model: ModelFacts
    device: Device
    tokens: PolicyTokens
    context_tokens: int = 4096
    kv_type: KvType = 'f16'
    passes: Passes = Passes.AUTO


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on the device."""

    weights: int
    kv: int
    compute: int
    """llama.cpp's buffers for one batch: its logits and activations in f32."""
    system: int
    available: int
    """All that the device has."""

    @property
    def total(self) -> int:
        """All that is taken."""
        return self.weights + self.kv + self.compute + self.system


@dataclass(frozen=True, slots=True)
class Part:
    """One stretch of a decision's way from the sensor to the command."""

    name: str
    tokens: Spread | None
    typical_ns: int
    most_ns: int


@dataclass(frozen=True, slots=True)
class Prediction:
    """What `predict` found; nothing of it is measured."""

    case: Case
    memory: Memory
    layout: str
    """Levels of choice that each pass decides: `2` is one pass, `1+1` are two."""
    parts: tuple[Part, ...]
    layouts: tuple[tuple[str, int], ...]
    """Each way to spread the tree over passes and its typical nanoseconds, the cheapest first."""
    start_ns: int
    """Static part and reference observations, once, when the engine starts."""

    @property
    def typical_ns(self) -> int:
        """From the reading's arrival to the command, mostly."""
        return sum(part.typical_ns for part in self.parts)

    @property
    def most_ns(self) -> int:
        """The same with the largest observation, the oldest reading and the engine's margin."""
        return sum(part.most_ns for part in self.parts)

    @property
    def passes_ns(self) -> int:
        """What the forward passes take together, mostly."""
        return sum(part.typical_ns for part in self.parts if part.name.startswith(PASS))

    @property
    def generated_ns(self) -> int:
        """The same observation answered in JSON of JSON_TOKENS tokens, one pass for each."""
        case = self.case
        used = min(case.tokens.context, case.context_tokens)
        prompt_ns, token_ns = (case.device.batch_ns(n, case.model, used, case.kv_type)
                               for n in (case.tokens.changed.typical, 1))
        return prompt_ns + (JSON_TOKENS - 1) * token_ns

    @property
    def memory_fits(self) -> bool:
        """Whether the device holds it all."""
        return self.memory.total <= self.memory.available

    @property
    def context_fits(self) -> bool:
        """Whether the context holds the largest prompt, and the model was trained for it."""
        return self.case.tokens.context <= self.case.context_tokens <= self.case.model.context

    @property
    def time_fits(self) -> bool:
        """Whether the engine would admit even the largest observation at the latest moment."""
        return self.most_ns <= self.case.tokens.budget_ns

    @property
    def fits(self) -> bool:
        """Whether all three hold."""
        return self.memory_fits and self.context_fits and self.time_fits


def predict(case: Case) -> Prediction:
    """Return what a decision takes in memory and in time."""
    model, device, tokens = case.model, case.device, case.tokens
    costs = device.costs(model, min(tokens.context, case.context_tokens), case.kv_type)
    planner = Planner(tokens.tree, LANES, BATCH_TOKENS)
    typical, most = tokens.changed.typical, tokens.changed.most
    layout, *_ = choices = planner.choices(typical, costs, case.passes)
    passes = [
        Part(f'{PASS} {number}', Spread(typical * first + size, most * first + size),
             costs.idle_ns(typical * first + size), costs.idle_ns(most * first + size))
        for number, size, first in (
            (n, s, n == 1) for n, s in enumerate(layout.sizes, 1) if s or n == 1
        )
    ]
    tokenise_ns = [TOKENISE_NS[0] + TOKENISE_NS[1] * n
                   for n in (tokens.dynamic.typical, tokens.dynamic.most)]
    reference_ns = costs.idle_ns(most + len(tokens.tree.nodes))
    chunks, rest = divmod(tokens.static, 64)
    return Prediction(
        case=case,
        memory=Memory(
            weights=model.weights_bytes,
            kv=round(case.context_tokens * model.kv_bytes_per_token * KV_SHARES[case.kv_type]),
            compute=4 * BATCH_TOKENS * (model.vocabulary + model.width + 3 * model.feed_forward),
            system=device.system_bytes, available=device.memory_bytes,
        ),
        layout=layout.name,
        parts=(
            Part('wait for the tick', None, tokens.arrival_ns // 2, tokens.arrival_ns),
            Part('tokenise', tokens.dynamic, *tokenise_ns),
            *passes,
            Part("engine's margin", None, 0,
                 round(sum(part.most_ns for part in passes) * (SPREAD - 1))),
            Part('transport', None, *TRANSPORT_NS),
        ),
        layouts=tuple(
            (each.name, costs.idle_ns(typical + each.sizes[0])
             + sum(costs.idle_ns(size) for size in each.sizes[1:] if size))
            for each in choices
        ),
        start_ns=(chunks * costs.idle_ns(64) + (costs.idle_ns(rest) if rest else 0)
                  + tokens.references * reference_ns),
    )


# --- what would make it fit ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Knob:
    """A change after which it fits, and what is predicted then."""

    change: str
    prediction: Prediction


def knobs(case: Case) -> tuple[Knob, ...]:
    """Return the changes that make `case` fit, each predicted anew; none when it fits as it is.

    Each alone where one is enough, else in pairs. Empty too when not even two are.
    """
    if predict(case).fits:
        return ()
    singles = [Knob(change, predict(changed)) for change, changed in _changes(case)]
    found = [knob for knob in singles if knob.prediction.fits]
    if found:
        return tuple(found)
    pairs: dict[Case, Knob] = {}
    for first in singles:
        for change, changed in _changes(first.prediction.case):
            if (second := predict(changed)).fits:
                pairs.setdefault(changed, Knob(f'{first.change}, and {change}', second))
    return tuple(pairs.values())


def _changes(case: Case) -> Iterator[tuple[str, Case]]:
    now = predict(case)
    if not (now.memory_fits and now.context_fits):
        yield from _contexts(case, now)
    if not now.memory_fits:
        for kv_type in ('q8_0', 'q4_0'):
            if KV_SHARES[kv_type] < KV_SHARES[case.kv_type]:
                yield f'--kv-type {kv_type}', dataclasses.replace(case, kv_type=kv_type)
    if not now.time_fits:
        yield from _cheaper_passes(case, now)
        yield from _shorter_observations(case)
        yield from _longer_budgets(case, now)
    if not (now.memory_fits and now.time_fits):
        present = QUANTISATIONS[quantisation_of(case.model)]
        for name, bits in QUANTISATIONS.items():
            if bits < present:
                yield (f'the model as {name} ({bits:g} instead of {present:g} bits a weight)',
                       dataclasses.replace(case, model=requantised(case.model, name)))
        for name, device in DEVICES.items():
            if name != case.device.name:
                yield f'--device {name}', dataclasses.replace(case, device=device)


def _contexts(case: Case, now: Prediction) -> Iterator[tuple[str, Case]]:
    """Yield the largest context that memory holds, or the least that holds the prompt."""
    a_token = case.model.kv_bytes_per_token * KV_SHARES[case.kv_type]
    room = now.memory.available - (now.memory.total - now.memory.kv)
    most = min(int(room / a_token), case.model.context) // 256 * 256
    least = -(-case.tokens.context // 256) * 256
    if not least <= most:
        return
    context = most if case.context_tokens > most else max(least, case.context_tokens)
    if context != case.context_tokens:
        yield (f'--context {context} instead of {case.context_tokens}',
               dataclasses.replace(case, context_tokens=context))


def _cheaper_passes(case: Case, now: Prediction) -> Iterator[tuple[str, Case]]:
    free = dataclasses.replace(case, passes=Passes.AUTO)
    if case.passes is not Passes.AUTO and (found := predict(free)).layout != now.layout:
        yield f'passes {found.layout} instead of {now.layout}', free


def _shorter_observations(case: Case) -> Iterator[tuple[str, Case]]:
    """Yield the longest observation that fits the time, if one of 16 tokens does."""
    def limited(tokens: int) -> Case:
        ours = case.tokens
        return dataclasses.replace(case, tokens=dataclasses.replace(
            ours, dynamic=ours.dynamic.at_most(tokens),
            changed=ours.changed.at_most(tokens + ours.tail),
        ))

    least, most = 16, case.tokens.dynamic.most
    if most <= least or not predict(limited(least)).time_fits:
        return
    while least < most - 1:
        middle = (least + most) // 2
        least, most = (middle, most) if predict(limited(middle)).time_fits else (least, middle)
    yield (f'an observation of at most {least} tokens instead of {case.tokens.dynamic.most} '
           f'(fewer sectors, bins instead of metres, or decision.prompt_tokens: {least})',
           limited(least))


def _longer_budgets(case: Case, now: Prediction) -> Iterator[tuple[str, Case]]:
    budget_ms = math.ceil(now.most_ns / MS)
    period_ns = max(case.tokens.period_ns, budget_ms * MS)
    rate = math.floor(100 * SECOND / period_ns) / 100
    slower = '' if period_ns == case.tokens.period_ns else f' and decision.rate_hz: {rate:g}'
    if rate > 0:
        yield f'decision.budget_ms: {budget_ms}{slower}', dataclasses.replace(
            case, tokens=dataclasses.replace(
                case.tokens, budget_ns=budget_ms * MS, period_ns=period_ns,
            ))
