"""How the tests of the families declare a sensor, make a header, and keep what is said."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pydantic import TypeAdapter

from smallm_ros.core.observation import Fields
from smallm_ros.core.sensor import Scene, SensorBase
from smallm_ros.core.summary import Sensor
from smallm_ros.ros.convert import fields_of

GOLDEN = Path(__file__).resolve().parent.parent / 'golden'
SENSOR: TypeAdapter[Any] = TypeAdapter(Sensor)


def sensor(kind: str, **options: Any) -> Any:
    """Declare a sensor as shortly as can be."""
    return SENSOR.validate_python(
        {'type': kind, 'topic': '/any', 'rate_hz': 1, 'stale_after_ms': 5000, **options})


def said(declared: SensorBase, msg: Any, **others: Fields) -> str:
    """Return what the model reads of a message, beside others' fields."""
    return declared.text(fields_of(declared, msg), Scene(others))


def golden(family: str, cases: Mapping[str, str]) -> None:
    """Hold what was said against the family's file; the failure shows what it would be."""
    path = GOLDEN / f'{family}.txt'
    got = ''.join(f'{name}: {text}\n' for name, text in cases.items())
    kept = path.read_text(encoding='utf-8') if path.exists() else ''
    assert kept == got, f'{path} would be:\n{got}'


def header(frame_id: str = '', sec: int = 12) -> SimpleNamespace:
    """Return a std_msgs/Header."""
    return SimpleNamespace(stamp=SimpleNamespace(sec=sec, nanosec=5), frame_id=frame_id)
