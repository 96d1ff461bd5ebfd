"""Makes a model resident: find and verify the file, load it, warm it up, measure what it costs.

The cost model is cached by model, device and settings, so that a respawned worker is ready as soon
as its weights are; what it measures while running corrects a cache that no longer holds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Protocol

from smallm_ros.core.budget import CostModel
from smallm_ros.core.clock import MS, SECOND, Clock
from smallm_ros.engine import registry
from smallm_ros.engine.alarm import SteadyAlarm
from smallm_ros.engine.decode import TreeDecider
from smallm_ros.engine.forward import Beats
from smallm_ros.engine.kv import WORKING
from smallm_ros.engine.model import Batch, LlamaModel, Model, ModelSettings
from smallm_ros.engine.options import LoadRequest
from smallm_ros.engine.templates import fitting

SIZES = (1, 8, 16, 32, 96, 192)
ROUNDS = 3
SLOW_NS = SECOND
"""A batch that takes so long is measured once: its noise is small beside it."""
BATCH_BOUND_NS = 60 * SECOND
"""How long one batch may take before its cost is known: 96 tokens of 24B on two cores."""
_SHARE_OF_FILE = 0.5
"""Hashing and requantising count as the first half of the load, reading the file as the second."""


class LoadBeats(Beats, Protocol):
    """Who is told how the load gets on, besides its batches."""

    def loading(self, fraction: float) -> None:
        """Say that `fraction` of the load, 0 to 1, is done."""
        ...


def load_decider(request: LoadRequest, beats: LoadBeats, clock: Clock) -> TreeDecider:
    """Return a decider whose model is loaded, warm and measured.

    Raises ModelFileError or PackageMissingError, one line that names the file.
    """
    steps = _Steps(beats)
    file = registry.resolve(request.model, template=request.template, progress=steps.file)
    model = LlamaModel.load(
        file.path, name=file.name, sha256=file.sha256,
        settings=ModelSettings(
            context_tokens=request.context_tokens, n_gpu_layers=request.n_gpu_layers,
            use_mlock=request.use_mlock, kv_type=request.kv_type, threads=request.threads,
        ),
        progress=steps.weights,
    )
    template = fitting(file.template, model)
    return TreeDecider(
        model, template, cost_model(model, request, beats, clock), beats, clock,
        alarm=SteadyAlarm(), check_ns=round(request.check_ms * MS),
        cache=prior_folder(request),
    )


def prior_folder(request: LoadRequest) -> Path:
    """Return where biases are kept that were measured so: other arithmetic, other logits."""
    build = metadata.version('llama-cpp-python')
    return registry.cache_directory() / 'priors' / f'{build}-{request.kv_type}'


class _Steps:
    """Turns the steps of a load into one fraction that only grows."""

    def __init__(self, beats: LoadBeats) -> None:
        self._beats = beats
        self._what = ''
        self._base = self._span = 0.0

    def file(self, what: str, done: int, total: int) -> None:
        # How many steps a file takes is not known beforehand: each has half of what is left.
        if what != self._what:
            self._what, self._base = what, self._base + self._span
            self._span = (_SHARE_OF_FILE - self._base) / 2
        self._beats.loading(self._base + self._span * done / max(total, 1))

    def weights(self, fraction: float) -> None:
        self._beats.loading(_SHARE_OF_FILE + (1 - _SHARE_OF_FILE) * fraction)


def cost_model(
    model: Model, request: LoadRequest, beats: Beats, clock: Clock
) -> CostModel:
    """Return what a batch costs here: from the cache, or measured and then cached."""
    key = hashlib.sha256(repr((
        model.sha256, model.threads, model.gpu_layers, request.kv_type, request.context_tokens,
        platform.processor() or platform.machine(), _cpu_model(), SIZES,
    )).encode()).hexdigest()[:16]
    path = registry.cache_directory() / 'costs' / f'{key}.json'
    points = _cached(path)
    if points is None:
        points = calibrate(model, beats, clock)
        # A cache that cannot be written only costs time at the next start.
        with contextlib.suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            registry.write_json(path, {str(size): str(cost) for size, cost in points})
    else:
        _evaluate(model, beats, SIZES[-1])
    return CostModel(points)


def _cached(path: Path) -> Sequence[tuple[int, int]] | None:
    """Return the points of a cached cost model; None where there is none that can be used."""
    try:
        content = json.loads(path.read_bytes())
        points = [(int(size), int(cost)) for size, cost in content.items()]
        CostModel(points)
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return points


def calibrate(model: Model, beats: Beats, clock: Clock) -> list[tuple[int, int]]:
    """Measure t(n): (tokens, least nanoseconds of a few rounds) for each batch size.

    The least, because whatever else ran meanwhile only adds; the running model learns of it.

    Made strictly rising: noise must not make a larger batch the cheaper one.
    """
    _evaluate(model, beats, SIZES[-1])
    points: list[tuple[int, int]] = []
    for size in (s for s in SIZES if s <= model.n_batch):
        took = []
        for _ in range(ROUNDS):
            began_ns = clock.now_ns()
            _evaluate(model, beats, size)
            took.append(clock.now_ns() - began_ns)
            if took[-1] > SLOW_NS:
                break
        floor = points[-1][1] + 1 if points else 1
        points.append((size, max(floor, min(took))))
    return points


def _evaluate(model: Model, beats: Beats, size: int) -> None:
    token = model.tokenize(' a')[0]
    beats.begin(BATCH_BOUND_NS)
    try:
        model.evaluate(Batch(
            tokens=[token] * size, positions=range(size), sequences=((WORKING,),) * size,
            outputs=(size - 1,),
        ))
    finally:
        beats.end()
    model.remove(WORKING, 0, -1)


def _cpu_model() -> str:
    """Return the CPU's name: a cache in a shared home directory may be another machine's."""
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8', errors='replace').splitlines()
    except OSError:
        return ''
    return next((line for line in lines if line.startswith(('model name', 'Model'))), '')
