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
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Protocol

from smallm_ros.core.budget import CostModel
from smallm_ros.core.clock import MS, SECOND, Clock
from smallm_ros.core.errors import OperatorError, WorkerError
from smallm_ros.engine import registry
from smallm_ros.engine.alarm import SteadyAlarm
from smallm_ros.engine.decode import TreeDecider
from smallm_ros.engine.forward import Beats
from smallm_ros.engine.gguf import check_head
from smallm_ros.engine.kv import WORKING
from smallm_ros.engine.model import (
    Batch,
    LlamaModel,
    Model,
    ModelSettings,
    default_threads,
    offloads,
)
from smallm_ros.engine.options import KV_SHARES, LoadRequest
from smallm_ros.engine.templates import fitting

SIZES = (1, 8, 16, 32, 96, 192)
ROUNDS = 3
SLOW_NS = SECOND
"""A batch that takes so long is measured once: its noise is small beside it."""
BATCH_BOUND_NS = 60 * SECOND
"""How long one batch may take before its cost is known: 96 tokens of 24B on two cores."""
PROCESS_BYTES = 128 << 20
"""Python, llama.cpp and the buffers of a batch: 110 MiB with the embedded model, CPU alone."""
_SHARE_OF_FILE = 0.5
"""Hashing and requantising count as the first half of the load, reading the file as the second."""


class LoadBeats(Beats, Protocol):
    """Who is told how the load gets on, besides its batches."""

    def loading(self, fraction: float) -> None:
        """Say that `fraction` of the load, 0 to 1, is done."""
        ...


def load_decider(request: LoadRequest, beats: LoadBeats, clock: Clock) -> TreeDecider:
    """Return a decider whose model is loaded, warm and measured.

    Raises ModelFileError or PackageMissingError, one line that names the file; OperatorError when
    the model cannot fit in --memory-limit, WorkerError when it does not fit in memory now.
    """
    steps = _Steps(beats)
    file = registry.resolve(request.model, template=request.template, progress=steps.file)
    Needs.of(file.path, request).check(request, available_bytes())
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


@dataclass(frozen=True, slots=True)
class Needs:
    """The host's memory that a model will take, about: what is known before it is loaded."""

    path: Path
    weights_bytes: int
    kv_bytes: int
    process_bytes: int

    @classmethod
    def of(cls, path: Path, request: LoadRequest) -> Needs:
        """Read it off a file's head and size. Raises ModelFileError.

        Mapped weights count: a model of which a part is on the disk at any time takes seconds a
        token. What goes to a GPU does not count here, on shared memory neither.
        """
        head = check_head(path)
        on_host = not offloads(request.n_gpu_layers)
        settings = ModelSettings()
        kv_bytes = (head.kv_bytes_per_token or 0) * request.context_tokens
        return cls(
            path, path.stat().st_size * on_host,
            round(kv_bytes * KV_SHARES[request.kv_type]) * on_host,
            # llama.cpp keeps the logits of as many outputs as there are sequences, in floats.
            PROCESS_BYTES + head.vocabulary * settings.sequences * 4,
        )

    @property
    def all_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.kv_bytes + self.process_bytes

    def check(self, request: LoadRequest, available: int | None) -> None:
        """Return when it fits.

        Raises OperatorError above the limit, where another try cannot help; WorkerError above what
        is available now: the last worker may just have died of that, and memory may come back.
        """
        limit = request.memory_limit_bytes
        if limit is not None and self.all_bytes > limit:
            raise OperatorError(f'{self}, --memory-limit is {_mib(limit)}: a higher limit, a '
                                'smaller --context or a smaller model')
        if available is not None and self.all_bytes > available:
            raise WorkerError(f'{self}, {_mib(available)} are available: end what else runs, or '
                              'a smaller --context or model')

    def __str__(self) -> str:
        return (f'{self.path}: needs about {_mib(self.all_bytes)} of memory (weights '
                f'{_mib(self.weights_bytes)}, KV {_mib(self.kv_bytes)}, the process '
                f'{_mib(self.process_bytes)})')


def _mib(count: int) -> str:
    return f'{count / (1 << 20):.0f} MiB'


def available_bytes() -> int | None:
    """Return the kernel's estimate of what new work can have without swapping; None: unknown.

    MemAvailable of proc(5), in which mapped files count as free. Limits of a cgroup are not in it.
    """
    try:
        lines = Path('/proc/meminfo').read_text(encoding='ascii').splitlines()
        return next(int(each.split()[1]) << 10 for each in lines
                    if each.startswith('MemAvailable:'))
    except (OSError, StopIteration):
        return None


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
    path = _costs_file(model.sha256, model.threads, model.gpu_layers, request)
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


def known_costs(sha256: str, gpu_layers: int, request: LoadRequest) -> CostModel | None:
    """Return what an engine has measured here before, without loading a model; None: none has."""
    threads = request.threads or default_threads()
    points = _cached(_costs_file(sha256, threads, gpu_layers, request))
    return None if points is None else CostModel(points)


def _costs_file(sha256: str, threads: int, gpu_layers: int, request: LoadRequest) -> Path:
    key = hashlib.sha256(repr((
        sha256, threads, gpu_layers, request.kv_type, request.context_tokens,
        platform.processor() or platform.machine(), _cpu_model(), SIZES,
    )).encode()).hexdigest()[:16]
    return registry.cache_directory() / 'costs' / f'{key}.json'


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
