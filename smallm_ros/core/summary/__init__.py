"""The families of messages that a policy file can name: one module each.

A family's module has the sensor's declaration, the fields that a message becomes, and `say`, a
pure function from fields to words.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from smallm_ros.core.summary.goal import GoalSensor
from smallm_ros.core.summary.odometry import OdometrySensor
from smallm_ros.core.summary.scan import ScanSensor

Sensor = Annotated[ScanSensor | OdometrySensor | GoalSensor, Field(discriminator='type')]
