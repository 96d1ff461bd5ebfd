"""`bench.json`: the run for machines, versioned; and whether an older one may be compared with it.

Figures of two runs say something about the code only when everything else was the same, so what
differs is named and nothing is compared.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pydantic

from smallm_ros.bench.predict import predict
from smallm_ros.bench.result import Conditions, Figures, Run, checks, equality, figures
from smallm_ros.core.errors import OperatorError

VERSION = 1
MOST_BYTES = 64 << 20


def document(run: Run) -> dict[str, object]:
    """Return the run as JSON values; times are integers in nanoseconds, figures in ms."""
    return {
        'version': VERSION,
        'started': run.started,
        'command': run.command,
        'conditions': dataclasses.asdict(run.conditions),
        'machine': dataclasses.asdict(run.machine),
        'load': run.load,
        'notes': run.notes,
        'rounds': len(run.rounds),
        'left_out': [{'round': r.index, 'why': r.left_out} for r in run.rounds if r.left_out],
        'arms': {f.arm: _arm(f) for f in figures(run)},
        'equality': equality(run),
        'checks': [dataclasses.asdict(check) for check in checks(run)],
        'predicted': [dataclasses.asdict(p) for p in predict(run)],
        'costs': run.costs,
        'shots': [
            {'round': r.index, 'others_ms': r.others_ms, 'equal': r.equal,
             'arms': {arm: dataclasses.asdict(shot) for arm, shot in r.shots.items()}}
            for r in run.rounds
        ],
    }


def _arm(figure: Figures) -> dict[str, object]:
    host = figure.host
    return {
        'n': figure.n, 'p50_ms': figure.took.p50, 'p99_ms': figure.took.p99,
        'max_ms': figure.took.max, 'passes': figure.passes, 'evaluated': figure.evaluated,
        'reused': figure.reused, 'over_floor_a': figure.over_floor_a,
        'over_floor_b': figure.over_floor_b,
        'host_p50_ms': None if host is None else host.p50,
        'host_p99_ms': None if host is None else host.p99,
        'valid': figure.valid,
    }


class _Arm(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra='ignore')

    p50_ms: Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
    p99_ms: Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]


class _Older(pydantic.BaseModel):
    """What is needed of an older run."""

    model_config = pydantic.ConfigDict(frozen=True, extra='ignore')

    version: Literal[1]
    started: str
    conditions: dict[str, object]
    arms: dict[str, _Arm]


@dataclass(frozen=True, slots=True)
class Change:
    """One arm, then and now."""

    arm: str
    before_ms: float
    now_ms: float

    @property
    def ratio(self) -> float:
        """Now over then."""
        return self.now_ms / self.before_ms


@dataclass(frozen=True, slots=True)
class Older:
    """A run that was written down before."""

    path: Path
    started: str
    conditions: Mapping[str, object]
    p50_ms: Mapping[str, float]

    @classmethod
    def read(cls, path: Path) -> Older:
        """Read a `bench.json`; raises OperatorError for anything else."""
        try:
            if path.stat().st_size > MOST_BYTES:
                raise OperatorError(f'--against {path}: more than {MOST_BYTES} bytes')
            found = _Older.model_validate_json(path.read_bytes())
        except OSError as err:
            raise OperatorError(f'--against {path}: cannot be read: {err.strerror}') from err
        except pydantic.ValidationError as err:
            first = err.errors(include_url=False, include_input=False)[0]
            place = '.'.join(map(str, first['loc'])) or 'file'
            raise OperatorError(
                f'--against {path}: no bench.json of version {VERSION}: {place}: {first["msg"]}'
            ) from err
        return cls(path, found.started, found.conditions,
                   {name: arm.p50_ms for name, arm in found.arms.items()})

    def require_equal(self, conditions: Conditions) -> None:
        """Raise OperatorError, with every difference, unless the conditions were the same."""
        now = json.loads(json.dumps(dataclasses.asdict(conditions)))
        differing = [
            f'{key} {self.conditions.get(key)!r} then, {value!r} now'
            for key, value in now.items() if self.conditions.get(key) != value
        ]
        if differing:
            raise OperatorError(f'--against {self.path}: not comparable: {"; ".join(differing)}')

    def changes(self, run: Run) -> tuple[Change, ...]:
        """Return each arm that both runs have."""
        return tuple(
            Change(f.arm, self.p50_ms[f.arm], f.took.p50)
            for f in figures(run) if f.arm in self.p50_ms
        )
