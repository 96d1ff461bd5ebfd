"""The same decisions on other hardware: this run's token counts, that device's published costs.

A prediction, never a measurement: the batches are those that were counted here, with this model's
tokenizer, and a batch of n new tokens costs what the device takes for n tokens of the 24B model.
The column of this machine does the same with its own measured costs, so that the arms can also be
compared as if all of them ran on the one build of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from smallm_ros.bench.result import Run
from smallm_ros.bench.roofline import DEVICES
from smallm_ros.core.budget import CostModel
from smallm_ros.core.clock import MS

THIS = 'this'


@dataclass(frozen=True, slots=True)
class Predicted:
    """One device."""

    device: str
    method: str
    """Where its costs are from."""
    p50_ms: Mapping[str, float]
    """For each arm."""


def predict(run: Run) -> tuple[Predicted, ...]:
    """Return what each arm's counted passes would take, device by device; this one first."""
    here = _predicted(run, THIS, 'the engine\'s cost model of this machine and model, measured '
                                 'when it was loaded', CostModel(run.costs).idle_ns)
    return (here, *(
        _predicted(run, name, device.method, device.batch_ns)
        for name, device in DEVICES.items()
    ))


def _predicted(
    run: Run, device: str, method: str, batch_ns: Callable[[int], int]
) -> Predicted:
    return Predicted(device, method, {
        arm: float(np.median([sum(map(batch_ns, s.batches)) for s in run.shots(arm)])) / MS
        for arm in run.arms
    } if run.kept else {})
