"""What tells the state of the robot and of things, in numbers and words."""

from __future__ import annotations

from smallm_ros.ros.convert.common import Converter

CONVERTERS: dict[str, Converter] = {
}
