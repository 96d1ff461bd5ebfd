"""What shows the space around: scans, clouds, rangers, maps."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import numpy.typing as npt

from smallm_ros.core.errors import DroppedError
from smallm_ros.core.summary.cloud import Cloud, CloudSensor, reduced
from smallm_ros.core.summary.grid import MAX_CELLS, MAX_REACH, Grid, GridSensor
from smallm_ros.core.summary.proximity import Range
from smallm_ros.core.summary.scan import Scan
from smallm_ros.ros.convert.common import Converter, finite, frame, stamp_ns, yaw

MAX_BEAMS = 20_000
"""More than any planar lidar has; a longer list is a mistake or an attack."""
MAX_ANGLE_RAD = 100.0
"""Some drivers count on over a turn; none begins here."""
MAX_POINTS = 1_000_000
MAX_CLOUD_BYTES = 64 * 2**20
MAX_FIELDS = 64
MAX_CELL_M = 100.0
FLOATS = {7: 'f4', 8: 'f8'}
"""sensor_msgs/PointField: FLOAT32 and FLOAT64."""


def scan(msg: Any, sensor: object) -> Scan:
    """Turn a sensor_msgs/LaserScan into its fields.

    `inf` and NaN beams pass: they mean something. Raises DroppedError for no beams at all, more
    than MAX_BEAMS, or angles and limits that are not finite.
    """
    beams = len(msg.ranges)
    if not 0 < beams <= MAX_BEAMS:
        raise DroppedError(f'LaserScan: {beams} beams, must be 1 to {MAX_BEAMS}')
    increment = finite('LaserScan: angle_increment', msg.angle_increment)
    if increment == 0.0 and beams > 1:
        raise DroppedError(f'LaserScan: angle_increment is 0 for {beams} beams')
    begin = finite('LaserScan: angle_min', msg.angle_min)
    if abs(increment) > 2 * math.pi or abs(begin) > MAX_ANGLE_RAD:
        raise DroppedError(f'LaserScan: angle_min {begin:g}, angle_increment {increment:g}')
    range_min = finite('LaserScan: range_min', msg.range_min)
    range_max = float(msg.range_max)
    if not 0.0 <= range_min < range_max:
        raise DroppedError(f'LaserScan: range_min {range_min:g}, range_max {range_max:g}')
    with np.errstate(over='ignore'):  # of a reader that has doubles
        ranges = np.array(msg.ranges, dtype=np.float32)
    if ranges.ndim != 1:
        raise DroppedError(f'LaserScan: ranges have shape {ranges.shape}, must be one list')
    ranges.flags.writeable = False
    return Scan(
        stamp_ns=stamp_ns(msg.header.stamp),
        frame_id=frame(msg.header.frame_id),
        angle_min_rad=begin,
        angle_increment_rad=increment,
        range_min_m=range_min,
        range_max_m=range_max,
        ranges_m=ranges,
    )


def cloud(msg: Any, sensor: CloudSensor) -> Cloud:
    """Reduce a sensor_msgs/PointCloud2 to the nearest point of each sector.

    Raises DroppedError where x, y and z are no floats within a point, more than MAX_POINTS, and
    for sizes that do not fit the data.
    """
    data = memoryview(msg.data).cast('B')
    width, height, step, row = (
        operator.index(n) for n in (msg.width, msg.height, msg.point_step, msg.row_step))
    if min(width, height, step, row) < 0 or width * height > MAX_POINTS:
        raise DroppedError(f'PointCloud2: {width} x {height} points, at most {MAX_POINTS}')
    head = stamp_ns(msg.header.stamp), frame(msg.header.frame_id)
    if not width * height:
        return Cloud(*head, (math.nan,) * len(sensor.sectors), 0)
    kind = _point(msg, step)
    if data.nbytes > MAX_CLOUD_BYTES or row < width * step or data.nbytes < row * height:
        raise DroppedError(f'PointCloud2: {data.nbytes} bytes in rows of {row} are no {width} x '
                           f'{height} points of {step}')
    rows = np.frombuffer(data, np.uint8, row * height).reshape(height, row)[:, :width * step]
    points = np.ascontiguousarray(rows).reshape(-1).view(kind)
    with np.errstate(over='ignore'):  # a double beyond float32 is no point
        x, y, z = (np.ascontiguousarray(points[axis], np.float32) for axis in 'xyz')
    return Cloud(*head, *reduced(sensor, x, y, z))


def _point(msg: Any, step: int) -> np.dtype[np.void]:
    """Return the layout of a point, of which x, y and z are read."""
    if len(msg.fields) > MAX_FIELDS:
        raise DroppedError(f'PointCloud2: {len(msg.fields)} fields, at most {MAX_FIELDS}')
    order = '>' if msg.is_bigendian else '<'
    formats, offsets = {}, {}
    for field in msg.fields:
        if field.name in ('x', 'y', 'z'):
            kind, offset = FLOATS.get(operator.index(field.datatype)), operator.index(field.offset)
            alone = operator.index(field.count) <= 1 and field.name not in formats
            if kind is None or not alone or not 0 <= offset <= step - int(kind[1]):
                raise DroppedError(f'PointCloud2: {field.name} of datatype {field.datatype}, '
                                   f'{field.count} at {field.offset}, is no float within {step} '
                                   'bytes, or stands twice')
            formats[field.name], offsets[field.name] = order + kind, offset
    if len(formats) < 3:
        names = ', '.join(repr(str(field.name)[:16]) for field in msg.fields)
        raise DroppedError(f'PointCloud2: no x, y and z among the fields {names[:100]}')
    return np.dtype({'names': list(formats), 'formats': list(formats.values()),
                     'offsets': list(offsets.values()), 'itemsize': step})


def ranger(msg: Any, sensor: object) -> Range:
    """Turn a sensor_msgs/Range into its fields; NaN and infinite ranges pass, they mean something.

    Raises DroppedError for limits that are not finite or the wrong way round.
    """
    least = finite('Range: min_range', msg.min_range)
    most = finite('Range: max_range', msg.max_range)
    if not 0.0 <= least <= most:
        raise DroppedError(f'Range: min_range {least:g}, max_range {most:g}')
    return Range(stamp_ns(msg.header.stamp), least, most, float(msg.range))


def grid(msg: Any, sensor: GridSensor) -> Grid:
    """Turn a nav_msgs/OccupancyGrid into its fields; the cells are looked at where they lie.

    Raises DroppedError for sizes that do not fit the data, more than MAX_CELLS, or MAX_REACH to
    `within_m`, and a resolution or origin that is none.
    """
    info = msg.info
    width, height = operator.index(info.width), operator.index(info.height)
    if width < 1 or height < 1 or width * height > MAX_CELLS or len(msg.data) != width * height:
        raise DroppedError(f'OccupancyGrid: {len(msg.data)} cells are no {width} x {height}, at '
                           f'most {MAX_CELLS}')
    cell_m = finite('OccupancyGrid: resolution', info.resolution)
    if not 1e-3 <= cell_m <= MAX_CELL_M:
        raise DroppedError(f'OccupancyGrid: resolution {cell_m:g} m')
    if sensor.within_m > MAX_REACH * cell_m:
        raise DroppedError(f'OccupancyGrid: cells of {cell_m:g} m, at most {MAX_REACH} to '
                           f'within_m {sensor.within_m:g}: declare {MAX_REACH * cell_m:g} or less')
    origin = info.origin
    cells = _cells(msg.data).reshape(height, width)
    cells.flags.writeable = False
    return Grid(
        stamp_ns(msg.header.stamp), frame(msg.header.frame_id), cell_m,
        finite('OccupancyGrid: origin.x', origin.position.x),
        finite('OccupancyGrid: origin.y', origin.position.y),
        yaw('OccupancyGrid', origin.orientation), cells,
    )


def _cells(data: Any) -> npt.NDArray[np.int8]:
    """Return a view of int8 data, as a bag reader or rclpy has it; a copy of a list."""
    try:
        view = memoryview(data)
    except TypeError:
        return np.array(data, np.int8)
    if view.itemsize != 1:
        raise DroppedError(f'OccupancyGrid: cells of {view.itemsize} bytes, must be 1')
    cells: npt.NDArray[np.int8] = np.frombuffer(view.cast('B'), np.int8)
    out: npt.NDArray[np.int8] = cells.view()
    return out


CONVERTERS: dict[str, Converter] = {
    'nav_msgs/msg/OccupancyGrid': grid,
    'sensor_msgs/msg/LaserScan': scan,
    'sensor_msgs/msg/PointCloud2': cloud,
    'sensor_msgs/msg/Range': ranger,
}
