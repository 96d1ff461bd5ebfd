"""The families of messages that a policy file can name: one module each.

A family's module has the sensor's declaration, the fields that a message becomes, and `say`, a
pure function from fields to words. What has no family is read by its paths: `fields`.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, Discriminator, Field, Tag

from smallm_ros.core.summary.battery import BatterySensor
from smallm_ros.core.summary.cloud import CloudSensor
from smallm_ros.core.summary.detections import Detections2DSensor, Detections3DSensor
from smallm_ros.core.summary.diagnostics import DiagnosticsSensor
from smallm_ros.core.summary.fields import FieldsSensor
from smallm_ros.core.summary.fix import FixSensor
from smallm_ros.core.summary.goal import GoalSensor
from smallm_ros.core.summary.grid import GridSensor
from smallm_ros.core.summary.imu import ImuSensor
from smallm_ros.core.summary.joints import JointsSensor
from smallm_ros.core.summary.odometry import OdometrySensor
from smallm_ros.core.summary.path import PathSensor
from smallm_ros.core.summary.picture import CompressedPictureSensor, PictureSensor
from smallm_ros.core.summary.place import PlaceSensor
from smallm_ros.core.summary.proximity import RangeSensor
from smallm_ros.core.summary.scan import ScanSensor
from smallm_ros.core.summary.temperature import TemperatureSensor
from smallm_ros.core.summary.twist import TwistSensor
from smallm_ros.core.summary.value import NumberSensor, TextSensor, TruthSensor

_Families = (
    BatterySensor
    | CloudSensor
    | CompressedPictureSensor
    | Detections2DSensor
    | Detections3DSensor
    | DiagnosticsSensor
    | FixSensor
    | GoalSensor
    | GridSensor
    | ImuSensor
    | JointsSensor
    | NumberSensor
    | OdometrySensor
    | PathSensor
    | PictureSensor
    | PlaceSensor
    | RangeSensor
    | ScanSensor
    | TemperatureSensor
    | TextSensor
    | TruthSensor
    | TwistSensor
)
"""A new family is one more line here and one import."""

TYPES: frozenset[str] = frozenset(
    name for family in get_args(_Families)
    for name in get_args(family.model_fields['type'].annotation)
)
"""The message types that have a family."""

_BY_TYPE, _BY_FIELDS = 'by type', 'by fields'  # no key of a policy file has a space


def _way(declared: Any) -> str:
    given = isinstance(declared, dict) and 'fields' in declared
    return _BY_FIELDS if given or isinstance(declared, FieldsSensor) else _BY_TYPE


def _has_words(declared: Any) -> Any:
    """Refuse a type without a family and without `fields`, and say the way out."""
    if not isinstance(declared, dict) or _way(declared) == _BY_FIELDS:
        return declared
    name = declared.get('type')
    if isinstance(name, str) and name not in TYPES:
        near = {each.rpartition('/')[2]: each for each in sorted(TYPES)}
        close = difflib.get_close_matches(name.rpartition('/')[2], near, n=1, cutoff=0.8)
        guess = f'did you mean {near[close[0]]!r}? Else ' if close else ''
        way = f'{guess}give `fields:`, paths into the message'
        raise ValueError(f'type {name!r:.80} has no summary of its own; {way}')
    return declared


Sensor = Annotated[
    Annotated[_Families, Field(discriminator='type'), Tag(_BY_TYPE)]
    | Annotated[FieldsSensor, Tag(_BY_FIELDS)],
    Discriminator(_way),
    BeforeValidator(_has_words),
]
"""Any sensor that a policy file can declare; with `fields` of any type, without by its family."""
