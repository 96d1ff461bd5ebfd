"""Messages become our fields here, by attribute, whoever made the message: rclpy or a bag reader.

What does not fit is refused with a DroppedError that quotes the value: the caller counts it, and
the last good reading grows old by itself. Sizes are checked before anything is copied. A scan's
ranges are copied once, as float32, because the message's own buffer belongs to the middleware.
"""

from __future__ import annotations

from typing import Any

from smallm_ros.core.errors import DroppedError
from smallm_ros.core.observation import Fields
from smallm_ros.core.sensor import SensorBase
from smallm_ros.core.summary.fields import FieldsSensor
from smallm_ros.ros.convert import motion, space, state
from smallm_ros.ros.convert.common import Converter

CONVERTERS: dict[str, Converter] = {
    **space.CONVERTERS, **motion.CONVERTERS, **state.CONVERTERS,
}
"""Message type, as the policy file writes it, to its converter."""


def fields_of(sensor: SensorBase, msg: Any) -> Fields:
    """Turn a message of a sensor that a policy file declares into its fields.

    Raises DroppedError when this message cannot be used; the next one may be good.
    """
    try:
        if isinstance(sensor, FieldsSensor):
            return state.fields(msg, sensor)
        return CONVERTERS[sensor.type](msg, sensor)
    except (AttributeError, TypeError, ValueError, OverflowError) as err:
        raise DroppedError(f'{sensor.type}: not such a message: {err}'[:200]) from err
