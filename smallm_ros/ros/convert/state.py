"""What tells the state of the robot and of things, in numbers and words."""

from __future__ import annotations

import heapq
import math
import operator
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from smallm_ros.core.errors import DroppedError
from smallm_ros.core.summary import diagnostics as diagnosed
from smallm_ros.core.summary.battery import Battery
from smallm_ros.core.summary.detections import (
    MAX_CLASS_ID,
    MAX_CLASSES,
    Chief,
    Detections,
    Detections2DSensor,
    Detections3DSensor,
)
from smallm_ros.core.summary.diagnostics import Diagnostics, Trouble
from smallm_ros.core.summary.fields import MAX_CHARACTERS as MAX_FIELD_CHARACTERS
from smallm_ros.core.summary.fields import FieldsSensor, Value, Values, steps
from smallm_ros.core.summary.picture import (
    CompressedPicture,
    FloatArray,
    Picture,
    PictureSensor,
    measure,
)
from smallm_ros.core.summary.temperature import ABSOLUTE_ZERO_C, Temperature
from smallm_ros.core.summary.value import MAX_CHARACTERS, Number, Text, Truth
from smallm_ros.ros.convert.common import Converter, finite, frame, stamp_ns

MAX_SIDE_PX = 16_384
MAX_COMPRESSED_BYTES = 64 * 2**20
MAX_STATUSES = 1024
MAX_DETECTIONS = 1000
MAX_RESULTS = 100
"""Longer lists are a mistake or an attack."""
ROWS = 32
"""Of a picture, whole and evenly spaced: what is copied and measured."""
MAX_WHOLE = 2**64


def battery(msg: Any, sensor: object) -> Battery:
    """Turn a sensor_msgs/BatteryState into its fields; NaN passes, it means `not measured`."""
    return Battery(
        stamp_ns=stamp_ns(msg.header.stamp),
        percentage=float(msg.percentage),
        voltage_v=float(msg.voltage),
        status=operator.index(msg.power_supply_status),
        health=operator.index(msg.power_supply_health),
        present=bool(msg.present),
    )


def temperature(msg: Any, sensor: object) -> Temperature:
    """Turn a sensor_msgs/Temperature into its fields.

    Raises DroppedError for what is not finite or below absolute zero.
    """
    degrees_c = finite('Temperature: temperature', msg.temperature)
    if degrees_c < ABSOLUTE_ZERO_C:
        raise DroppedError(f'Temperature: {degrees_c:g} C is below absolute zero')
    return Temperature(stamp_ns(msg.header.stamp), degrees_c, float(msg.variance))


# --- pictures -----------------------------------------------------------------------------------

_WEIGHTS = (0.299, 0.587, 0.114)
"""Of red, green and blue in the brightness: ITU-R BT.601."""
LAYOUTS: dict[str, tuple[int, tuple[int, ...]]] = {
    'mono8': (1, (0,)), '8UC1': (1, (0,)),
    'rgb8': (3, (0, 1, 2)), 'bgr8': (3, (2, 1, 0)),
    'rgba8': (4, (0, 1, 2)), 'bgra8': (4, (2, 1, 0)),
    'yuv422': (2, (1,)), 'uyvy': (2, (1,)), 'yuv422_yuy2': (2, (0,)), 'yuyv': (2, (0,)),
    'mono16': (2, ()), '16UC1': (2, ()),
}
"""sensor_msgs/image_encodings: bytes of a pixel, and which are red, green and blue, or the
brightness alone; of the last two it is both."""


def picture(msg: Any, sensor: PictureSensor) -> Picture:
    """Measure a sensor_msgs/Image on some of its rows.

    Raises DroppedError for an encoding that is not in LAYOUTS and sizes that do not fit.
    """
    encoding = str(msg.encoding)[:24]
    width, height, step = (operator.index(n) for n in (msg.width, msg.height, msg.step))
    if encoding not in LAYOUTS:
        raise DroppedError(f'Image: encoding {encoding!r} is not one of {", ".join(LAYOUTS)}')
    if encoding == '16UC1' and sensor.white is None:
        raise DroppedError('Image: encoding 16UC1 may be depth, which has no brightness: give '
                           '`white` if it is none')
    if not (0 < width <= MAX_SIDE_PX and 0 < height <= MAX_SIDE_PX):
        raise DroppedError(f'Image: {width} x {height} pixels, each 1 to {MAX_SIDE_PX}')
    pixel_bytes, channels = LAYOUTS[encoding]
    data = memoryview(msg.data).cast('B')
    if step < width * pixel_bytes or data.nbytes < step * height:
        raise DroppedError(f'Image: {data.nbytes} bytes in steps of {step} are no {width} x '
                           f'{height} {encoding}')
    at = np.linspace(0, height - 1, min(height, ROWS)).astype(np.intp)
    rows = np.frombuffer(data, np.uint8, step * height).reshape(height, step)[at]
    rows = rows[:, :width * pixel_bytes].reshape(at.size, width, pixel_bytes)
    if channels:
        luma = _luma(rows, channels)
    else:
        high = 0 if msg.is_bigendian else 1
        values = rows[..., high].astype(np.float32) * 256 + rows[..., 1 - high]
        luma = np.minimum(values / np.float32(sensor.white or 65535), np.float32(1))
    return Picture(stamp_ns(msg.header.stamp), *measure(luma))


def _luma(rows: npt.NDArray[np.uint8], channels: tuple[int, ...]) -> FloatArray:
    """Return the brightness, 0 to 1, of shape (rows, columns)."""
    weights = _WEIGHTS if len(channels) == 3 else (1.0,)
    luma: FloatArray = np.zeros(rows.shape[:2], np.float32)
    for channel, weight in zip(channels, weights, strict=True):
        luma += rows[..., channel] * np.float32(weight / 255)
    return luma


def compressed_picture(msg: Any, sensor: object) -> CompressedPicture:
    """Look at a sensor_msgs/CompressedImage from outside; its `format` is not asked."""
    data = memoryview(msg.data).cast('B')
    if data.nbytes > MAX_COMPRESSED_BYTES:
        raise DroppedError(f'CompressedImage: {data.nbytes} bytes, at most {MAX_COMPRESSED_BYTES}')
    begin, end = bytes(data[:12]), bytes(data[-64:])
    kind, whole = 'unknown format', True
    if begin.startswith(b'\xff\xd8\xff'):
        kind, whole = 'jpeg', b'\xff\xd9' in end
    elif begin.startswith(b'\x89PNG\r\n\x1a\n'):
        kind, whole = 'png', b'IEND' in end
    elif begin.startswith(b'RIFF') and begin.endswith(b'WEBP'):
        kind, whole = 'webp', int.from_bytes(begin[4:8], 'little') + 8 <= data.nbytes
    return CompressedPicture(stamp_ns(msg.header.stamp), kind, data.nbytes, whole)


# --- diagnostics --------------------------------------------------------------------------------


def diagnostics(msg: Any, sensor: object) -> Diagnostics:
    """Turn a diagnostic_msgs/DiagnosticArray into how many are not OK and the worst of them."""
    total = len(msg.status)
    if total > MAX_STATUSES:
        raise DroppedError(f'DiagnosticArray: {total} statuses, at most {MAX_STATUSES}')
    troubled = [
        Trouble(level, _text(status.name, diagnosed.MAX_CHARACTERS),
                _text(status.message, diagnosed.MAX_CHARACTERS))
        for status in msg.status if (level := _byte(status.level)) != diagnosed.OK
    ]
    worst = heapq.nsmallest(
        diagnosed.MAX_WORST, troubled, key=lambda t: (t.rank, t.level, t.name, t.message))
    return Diagnostics(stamp_ns(msg.header.stamp), total, len(troubled), tuple(worst))


def _byte(value: Any) -> int:
    """Return a `byte`: rclpy has one as bytes of length 1, a bag reader as a number."""
    if isinstance(value, bytes):
        if len(value) != 1:
            raise DroppedError(f'a byte of {len(value)} bytes')
        return value[0]
    return operator.index(value)


def _text(value: Any, most: int) -> str:
    if not isinstance(value, str):
        raise DroppedError(f'{value!r:.40} is no text')
    return value[:most]


# --- one value ----------------------------------------------------------------------------------


def whole(msg: Any, sensor: object) -> Number:
    """Turn a std_msgs integer into a number."""
    return Number(0, _bounded(operator.index(msg.data)))


def real(msg: Any, sensor: object) -> Number:
    """Turn a std_msgs float into a number, which must be finite."""
    return Number(0, finite('data', msg.data))


def truth(msg: Any, sensor: object) -> Truth:
    """Turn a std_msgs/Bool into a truth."""
    if not isinstance(msg.data, (bool, np.bool_)):
        raise DroppedError(f'Bool: {msg.data!r:.40} is neither true nor false')
    return Truth(0, bool(msg.data))


def text(msg: Any, sensor: object) -> Text:
    """Turn the beginning of a std_msgs/String into a text; nothing in it is believed."""
    return Text(0, _text(msg.data, MAX_CHARACTERS), len(msg.data))


def _bounded(number: int) -> int:
    if abs(number) > MAX_WHOLE:
        raise DroppedError(f'a whole number of {number.bit_length()} bits')
    return number


# --- any message, by paths ----------------------------------------------------------------------


def fields(msg: Any, sensor: FieldsSensor) -> Values:
    """Take the values at the declared paths out of any message.

    An array that is too short gives None for that value. Raises DroppedError for a path that the
    message does not have and for what is no number, truth or text.
    """
    stamp = getattr(getattr(msg, 'header', None), 'stamp', None)
    return Values(
        0 if stamp is None else stamp_ns(stamp),
        tuple(_value(msg, field.path) for field in sensor.fields),
    )


def _value(msg: Any, path: str) -> Value:
    value = msg
    for step in steps(path):
        if isinstance(step, str):
            value = getattr(value, step)
        elif isinstance(value, (str, bytes, dict)):
            raise DroppedError(f'{path}: a {type(value).__name__} is no array')
        elif step >= len(value):
            return None
        else:
            value = value[step]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        value = _byte(value)
    match value:
        case bool() | float():
            return value
        case int():
            return _bounded(value)
        case str():
            return value[:MAX_FIELD_CHARACTERS]
    raise DroppedError(f'{path}: a {type(value).__name__} is no number, truth or text')


# --- detections ---------------------------------------------------------------------------------


def detections_3d(msg: Any, sensor: Detections3DSensor) -> Detections:
    """Turn a vision_msgs/Detection3DArray (4.x) into counts and the nearest."""
    frame_id = frame(msg.header.frame_id)

    def chief(class_id: str, box: Any) -> tuple[float, Chief]:
        at = box.center.position
        x, y, z = float(at.x), float(at.y), float(at.z)
        # REP-103: x ahead and y left; of a camera's optical frame z ahead and x right.
        ahead, left = (z, -x) if frame_id.endswith('_optical_frame') else (x, y)
        distance_m = math.hypot(x, y, z)
        return distance_m, Chief(class_id, distance_m, math.atan2(left, ahead))

    return _detections(msg, sensor.min_score, chief)


def detections_2d(msg: Any, sensor: Detections2DSensor) -> Detections:
    """Turn a vision_msgs/Detection2DArray (4.x) into counts and the largest."""

    def chief(class_id: str, box: Any) -> tuple[float, Chief]:
        area_px2 = float(box.size_x) * float(box.size_y)
        return -area_px2, Chief(class_id, x_px=float(box.center.position.x))

    return _detections(msg, sensor.min_score, chief)


def _detections(msg: Any, min_score: float, chief: Any) -> Detections:
    """Count what is sure enough; the chief one has the least of what `chief` returns first."""
    if len(msg.detections) > MAX_DETECTIONS:
        raise DroppedError(f'{len(msg.detections)} detections, at most {MAX_DETECTIONS}')
    counts: Counter[str] = Counter()
    first: tuple[float, Chief | None] = (math.inf, None)
    for found in msg.detections:
        if len(found.results) > MAX_RESULTS:
            raise DroppedError(f'a detection of {len(found.results)} results')
        sure = [h for r in found.results if float((h := r.hypothesis).score) >= min_score]
        if not sure:
            continue
        class_id = _text(max(sure, key=lambda h: float(h.score)).class_id, MAX_CLASS_ID)
        counts[class_id] += 1
        place = chief(class_id, found.bbox)
        if place[0] < first[0]:  # NaN is not
            first = place
    listed = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return Detections(
        stamp_ns(msg.header.stamp), tuple(listed[:MAX_CLASSES]),
        sum(count for _, count in listed[MAX_CLASSES:]), first[1],
    )


CONVERTERS: dict[str, Converter] = {
    'diagnostic_msgs/msg/DiagnosticArray': diagnostics,
    'sensor_msgs/msg/BatteryState': battery,
    'sensor_msgs/msg/CompressedImage': compressed_picture,
    'sensor_msgs/msg/Image': picture,
    'sensor_msgs/msg/Temperature': temperature,
    'std_msgs/msg/Bool': truth,
    'std_msgs/msg/String': text,
    'vision_msgs/msg/Detection2DArray': detections_2d,
    'vision_msgs/msg/Detection3DArray': detections_3d,
    **{f'std_msgs/msg/{sign}Int{bits}': whole for sign in ('', 'U') for bits in (8, 16, 32, 64)},
    **{f'std_msgs/msg/Float{bits}': real for bits in (32, 64)},
}
