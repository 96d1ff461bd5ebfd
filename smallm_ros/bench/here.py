"""This machine as a device of the roofline, and the engine on it, measured.

What it should reach is tried before the model is loaded, by a program that knows nothing of
llama.cpp: a matrix times a vector, which reads memory as a token does, and a matrix times a
matrix, with as many threads as the engine takes. It tries the CPU: a model on an accelerator is
predicted from its measured t(n) only.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from smallm_ros import steady
from smallm_ros.bench.roofline import Device, ModelFacts, Source
from smallm_ros.bench.shape import available_memory_bytes
from smallm_ros.core.action import Decision
from smallm_ros.core.clock import SECOND
from smallm_ros.core.errors import OperatorError
from smallm_ros.core.exchange import Decided, DeclarationRejected, ModelLimits, Question
from smallm_ros.core.policy import Policy
from smallm_ros.core.prompt import declaration, segments
from smallm_ros.core.reference import draw
from smallm_ros.engine.options import LoadRequest

DECISIONS = 20
PATIENCE_NS = 10 * SECOND
"""After so long no further decision is begun; three are taken in any case."""
_LEAST = 3
_DEADLINE_NS = 3600 * SECOND
_PROBE_SECONDS = 60
_MEMORY_ROWS, _COMPUTE_ROWS, _COLUMNS = 16_384, 1024, 4096
_ROUNDS = 12


# --- what the machine should reach --------------------------------------------------------------


def this_machine(threads: int) -> Device:
    """Return this machine's memory and the rates that its CPU reaches with so many threads."""
    read_bytes_s, operations_s = _tried(threads)
    available = available_memory_bytes()
    total = max(available, _total_memory_bytes())
    return Device(
        name='this', title=_cpu(), memory_bytes=total, bandwidth_bytes_s=read_bytes_s,
        compute_ops_s=operations_s, bandwidth_share=1.0, compute_share=1.0,
        system_bytes=total - available, least_batch_ns=1,
        sources=(
            Source(f'tried just now, {threads} thread(s): {read_bytes_s / 1e9:.1f} GB/s of a '
                   f'matrix times a vector, {operations_s / 1e9:.0f} GFLOP/s (f32) of a matrix '
                   'times a matrix', 'numpy, on this machine'),
            Source('memory: all, less what the kernel says is available', '/proc/meminfo'),
        ),
    )


def _tried(threads: int) -> tuple[float, float]:
    """Return (bytes read a second, f32 operations a second).

    In a process of its own: the number of a BLAS's threads is settled when numpy is loaded.
    """
    count = str(threads)
    environment = {**os.environ, 'OPENBLAS_NUM_THREADS': count, 'OMP_NUM_THREADS': count,
                   'MKL_NUM_THREADS': count}
    try:
        said = subprocess.run(
            [sys.executable, '-m', __name__], env=environment, capture_output=True, check=True,
            timeout=_PROBE_SECONDS, text=True,
        ).stdout
        rates = json.loads(said)
    except (OSError, subprocess.SubprocessError, ValueError) as err:
        raise OperatorError(f'this machine could not be tried: {err}') from err
    return float(rates['read_bytes_s']), float(rates['operations_s'])


def probe() -> dict[str, float]:
    """Return the rates that numpy reaches in this process, the best of a few rounds."""
    large = np.ones((_MEMORY_ROWS, _COLUMNS), np.float32)  # 256 MiB: no cache holds it
    vector = np.ones(_COLUMNS, np.float32)
    read_ns = _least_ns(lambda: large @ vector)
    a, b = large[:_COMPUTE_ROWS], large[:_COLUMNS, :_COMPUTE_ROWS].copy()
    multiply_ns = _least_ns(lambda: a @ b)
    return {
        'read_bytes_s': large.nbytes / read_ns * SECOND,
        'operations_s': 2 * _COMPUTE_ROWS * _COLUMNS * _COMPUTE_ROWS / multiply_ns * SECOND,
    }


def _least_ns(work: Callable[[], object]) -> int:
    took = []
    for _ in range(_ROUNDS):
        began_ns = steady.now_ns()
        work()
        took.append(max(1, steady.now_ns() - began_ns))
    return min(took)


def _total_memory_bytes() -> int:
    found = re.search(r'^MemTotal:\s+(\d+) kB$', Path('/proc/meminfo').read_text(), re.MULTILINE)
    return int(found.group(1)) * 1024 if found else 0


def _cpu() -> str:
    text = Path('/proc/cpuinfo').read_text(errors='replace')
    found = re.search(r'^(?:model name|Model)\s*:\s*(.+)$', text, re.MULTILINE)
    return f'{found.group(1) if found else "a CPU"}, {os.cpu_count()} logical cores'


# --- what the engine reaches --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Measured:
    """Decisions of the real engine in this process, and the cost model that it measured."""

    decisions: int
    evaluated: int
    """Tokens evaluated in a decision, over all its passes; like all that follow, the median."""
    passes: int
    tokenise_ns: int
    passes_ns: tuple[int, ...]
    """Of the decisions with so many passes."""
    engine_ns: int
    """From the question's arrival to the answer."""
    one_ns: int
    per_token_ns: int
    """t(n) as calibrated: one_ns + (n - 1) * per_token_ns."""
    threads: int
    gpu_layers: int
    sha256: str


def measure(policy: Policy, request: LoadRequest, decisions: int = DECISIONS) -> Measured:
    """Load the model as the engine does, declare the policy, and take some decisions.

    On the observations that `workload.count` counts, without a deadline. Raises OperatorError when
    the policy does not go with the model, and what loading raises.
    """
    from smallm_ros.engine.load import load_decider

    clock = steady.SteadyClock()
    decider = load_decider(request, _Unheard(), clock)
    try:
        told = declaration(policy)
        declared = decider.declare(told)
        if isinstance(declared, DeclarationRejected):
            raise OperatorError(f'policy {policy.name}: {declared.why}')
        limits, taken = decider.limits, list[Decision]()
        began_ns = clock.now_ns()
        for number, observation in enumerate(draw(policy, policy.prior.seed, decisions + 1)):
            now_ns = clock.now_ns()
            if len(taken) >= _LEAST and now_ns - began_ns > PATIENCE_NS:
                break
            question = Question(number + 1, told.space, now_ns + _DEADLINE_NS,
                                segments(policy, observation))
            answer = decider.decide(question, now_ns, lambda: False)
            if not isinstance(answer, Decided):
                raise OperatorError(f'policy {policy.name}: no decision: {answer}')
            if number:  # the first has no predecessor whose prompt it shares
                taken.append(answer.decision)
    finally:
        decider.close()
    passes = round(median(d.tokens.passes for d in taken))
    alike = [d.timings.passes_ns for d in taken if d.tokens.passes == passes]
    return Measured(
        decisions=len(taken), evaluated=round(median(d.tokens.evaluated for d in taken)),
        passes=passes, tokenise_ns=round(median(d.timings.tokenise_ns for d in taken)),
        passes_ns=tuple(round(median(each)) for each in zip(*alike, strict=True)),
        engine_ns=round(median(d.timings.finished_ns - d.timings.received_ns for d in taken)),
        one_ns=limits.cost_fixed_ns, per_token_ns=limits.cost_per_token_ns,
        threads=limits.threads, gpu_layers=limits.gpu_layers, sha256=limits.sha256,
    )


def load(request: LoadRequest) -> ModelLimits:
    """Load a model as the engine does, so that what a batch costs is measured and remembered."""
    from smallm_ros.engine.load import load_decider

    decider = load_decider(request, _Unheard(), steady.SteadyClock())
    try:
        return decider.limits
    finally:
        decider.close()


def calibrated(device: Device, model: ModelFacts, measured: Measured) -> Device:
    """Return `device` with the t(n) that the engine measured for `model` on it."""
    return dataclasses.replace(
        device, reference=model,
        points=((1, measured.one_ns), (65, measured.one_ns + 64 * max(1, measured.per_token_ns))),
    )


class _Unheard:
    """Takes the engine's progress: nobody watches here."""

    def begin(self, _bound_ns: int) -> None:
        pass

    def end(self) -> None:
        pass

    def loading(self, _fraction: float) -> None:
        pass


if __name__ == '__main__':
    print(json.dumps(probe()))
