"""What is around the robot in words: scans with gaps, clouds of any layout, rangers, maps."""

from __future__ import annotations

import array
import math
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from smallm_ros.core.errors import DroppedError
from smallm_ros.core.sensor import Scene
from smallm_ros.core.summary.odometry import Odometry
from smallm_ros.core.summary.place import Place
from smallm_ros.ros.convert import fields_of
from smallm_ros.ros.convert.space import MAX_POINTS
from tests.fakes.summaries import golden, header, said, sensor

SCAN, CLOUD = 'sensor_msgs/msg/LaserScan', 'sensor_msgs/msg/PointCloud2'
RANGE, GRID = 'sensor_msgs/msg/Range', 'nav_msgs/msg/OccupancyGrid'
NAN, INF = math.nan, math.inf
BINS = [{'word': 'touch', 'below_m': 0.5}, {'word': 'near', 'below_m': 1.5}]


# --- scans ---------------------------------------------------------------------------------------


def scan(beams: Any, **changes: Any) -> SimpleNamespace:
    """Return a scan of beams around, the first one behind, counter-clockwise."""
    ranges = np.asarray(beams, np.float32)
    return SimpleNamespace(**{
        'header': header('laser'), 'angle_min': -math.pi, 'angle_increment': 2 * math.pi
        / max(ranges.size, 1), 'range_min': 0.1, 'range_max': 10.0, 'ranges': ranges, **changes,
    })


def around(metres: float, **degrees: float) -> Any:
    """Return 360 beams of one distance but for some: `at_40=2.0`, `to_60=2.0` from there on."""
    out = np.full(360, metres, np.float32)
    begin = 0
    for name, value in degrees.items():
        way, at = name.split('_')
        index = int(at.replace('m', '-')) + 180
        if way == 'at':
            begin = index
            out[index] = value
        else:
            out[begin:index] = value
    return out


def test_a_scan_as_the_message_defines_it() -> None:
    plain, bins = sensor(SCAN), sensor(SCAN, bins=BINS)
    half = around(3.0)
    half[200:] = NAN
    golden('scan', {
        'room': said(plain, scan(around(3.0))),
        'words': said(bins, scan(around(1.0, at_0=0.3))),
        'open field': said(plain, scan(around(INF))),
        'all NaN': said(plain, scan(around(NAN))),
        'below range_min is no hit': said(plain, scan(around(3.0, at_0=0.05))),
        'below range_min alone is unknown': said(plain, scan(around(0.05))),
        'beyond range_max is free': said(plain, scan(around(12.0))),
        'free as far as it sees, which is not far': said(plain, scan(around(INF), range_max=3.5)),
        'of words the last one begins nearer': said(bins, scan(around(INF), range_max=3.5)),
        'negative infinity is unknown': said(plain, scan(around(-INF))),
        'half of it unknown': said(plain, scan(half)),
        'clockwise': said(plain, scan(
            around(3.0, at_90=0.5), angle_min=math.pi, angle_increment=-math.pi / 180)),
        'more than once around': said(plain, scan(
            np.concatenate([around(3.0), around(1.0)]), angle_increment=math.pi / 180)),
        'one beam': said(plain, scan([2.0], angle_min=0.0, angle_increment=0.0)),
    })


@pytest.mark.parametrize(('beams', 'gaps'), [
    (around(0.5, at_m40=4.0, to_40=4.0), 'gap ahead'),
    (around(0.5, at_m40=INF, to_40=INF), 'gap ahead'),
    (around(0.5, at_m40=NAN, to_40=NAN), 'no gap'),  # what nobody sees is no way
    (around(0.5, at_m20=4.0, to_20=4.0), 'no gap'),  # 0.34 m between posts, however deep behind
    (around(0.5, at_m5=4.0, to_5=4.0), 'no gap'),  # 2 sin 5 deg = 0.35 m
    (around(0.5, at_25=4.0, to_105=4.0), 'gap 60 deg left'),
    (around(0.5, at_m105=4.0, to_m25=4.0), 'gap 70 deg right'),
    (around(4.0, at_m140=0.5, to_140=0.5), 'gap behind'),  # across the scan's seam
    (around(0.5), 'no gap'),
    (around(NAN), 'gap unknown'),
])
def test_a_gap_is_wide_enough_or_none(beams: Any, gaps: str) -> None:
    asked = sensor(SCAN, gaps={'width_m': 0.6, 'beyond_m': 2.0}, sectors=[
        {'name': 'ahead', 'from_deg': -20, 'to_deg': 20}])
    assert said(asked, scan(beams)).split(', ', 1)[1] == gaps


def test_free_all_around_is_a_gap_ahead_wherever_the_driver_begins() -> None:
    asked = sensor(SCAN, gaps={'width_m': 0.6, 'beyond_m': 2.0}, mount_yaw_deg=90.0)
    for begin in (-math.pi, 0.0, 1.0):
        assert said(asked, scan(around(INF), angle_min=begin)).endswith(', gap ahead')


def test_a_gap_in_a_scan_of_two_turns_is_one_and_free_in_both() -> None:
    asked = sensor(SCAN, gaps={'width_m': 0.6, 'beyond_m': 2.0})
    door, shut = around(0.5, at_25=4.0, to_105=4.0), around(0.5)
    step = math.pi / 180
    both = said(asked, scan(np.concatenate([door, door]), angle_increment=step))
    assert both.count('gap') == 1 and both.endswith(', gap 60 deg left')
    closed = said(asked, scan(np.concatenate([door, shut]), angle_increment=step))
    assert closed.endswith(', no gap')


def test_beyond_its_range_a_laser_knows_of_no_gap() -> None:
    asked = sensor(SCAN, gaps={'width_m': 0.6, 'beyond_m': 2.0}, open_beyond_m=2.0)
    assert said(asked, scan(around(INF), range_max=1.5)).endswith(', no gap, open 0%')


def test_the_widest_gaps_are_said_first_and_no_more_than_asked_for() -> None:
    beams = around(0.5, at_m100=4.0, to_m60=4.0)
    beams[200:220], beams[260:330] = 4.0, 4.0
    asked = sensor(SCAN, gaps={'width_m': 0.15, 'beyond_m': 2.0, 'most': 2}, sectors=[
        {'name': 'ahead', 'from_deg': -20, 'to_deg': 20}])
    assert said(asked, scan(beams)).split(', ')[1:] == ['gap 110 deg left', 'gap 80 deg right']


@pytest.mark.parametrize(('beams', 'words'), [
    (around(INF), 'open 100%'), (around(0.5), 'open 0%'), (around(NAN), 'open unknown'),
    (around(0.5, at_m180=4.0, to_0=4.0), 'open 50%'),
])
def test_how_open_it_is(beams: Any, words: str) -> None:
    assert said(sensor(SCAN, open_beyond_m=2.0), scan(beams)).split(', ')[-1] == words


def test_gaps_and_openness_leave_before_the_sectors() -> None:
    asked = sensor(SCAN, gaps={'width_m': 0.6, 'beyond_m': 2.0}, open_beyond_m=2.0)
    phrases = asked.say(fields_of(asked, scan(around(4.0))), Scene())
    assert [phrase.less for phrase in phrases] == [0, 0, 0, 0, 0, 1, 2]


# --- clouds --------------------------------------------------------------------------------------


def cloud(points: Any, *, kind: str = '<f4', offsets: tuple[int, int, int] = (0, 4, 8),
          step: int = 16, rows: int = 1, pad: int = 0, **changes: Any) -> SimpleNamespace:
    """Return a PointCloud2 of points (n, 3) in any layout."""
    points = np.asarray(points, np.float64).reshape(-1, 3)
    out = np.zeros(len(points), np.dtype({
        'names': ['x', 'y', 'z'], 'formats': [kind] * 3, 'offsets': list(offsets),
        'itemsize': step}))
    for axis, name in enumerate('xyz'):
        out[name] = points[:, axis]
    width = len(points) // rows
    raw = out.tobytes()
    data = b''.join(raw[r * width * step:(r + 1) * width * step] + bytes(pad) for r in range(rows))
    datatype = 7 if kind.endswith('4') else 8
    return SimpleNamespace(**{
        'header': header('lidar'), 'height': rows, 'width': width, 'point_step': step,
        'row_step': width * step + pad, 'is_bigendian': kind[0] == '>', 'is_dense': True,
        'data': array.array('B', data), 'fields': [
            SimpleNamespace(name=name, offset=offset, datatype=datatype, count=1)
            for name, offset in zip('xyz', offsets, strict=True)], **changes,
    })


WALL = [(2.0, y / 10, z / 10) for y in range(-20, 21) for z in range(1, 15)]


def test_a_cloud_in_words() -> None:
    plain = sensor(CLOUD)
    tilted = sensor(CLOUD, mount_z_m=1.0, mount_pitch_deg=30.0)
    optical = sensor(CLOUD, mount_roll_deg=-90.0, mount_yaw_deg=-90.0, mount_z_m=0.5)
    golden('cloud', {
        'wall ahead': said(plain, cloud(WALL)),
        'words': said(sensor(CLOUD, bins=BINS), cloud([*WALL, (0.4, 0.0, 0.5)])),
        'floor and ceiling do not count': said(plain, cloud([(1, 0, 0.0), (1, 0, 2.5)])),
        'a point within the body': said(sensor(CLOUD, beyond_m=0.3), cloud([(0.2, 0, 0.5)])),
        'not finite': said(plain, cloud([(NAN, 0, 0.5), (INF, 0, 0.5), (0, -INF, 0.5)])),
        'none': said(plain, cloud([])),
        'none, and no fields': said(plain, cloud([], fields=[])),
        'zeros for what did not come back': said(
            sensor(CLOUD, mount_z_m=0.5), cloud([(0, 0, 0), (0, 0, 0)])),
        'doubles beyond any float': said(
            plain, cloud([(1e300, 0, 0.5)], kind='<f8', offsets=(0, 8, 16), step=24)),
        'the lidar looks down, at the floor': said(tilted, cloud([(2.0, 0, 0)])),
        'the lidar looks down, at a wall': said(tilted, cloud([(1.0, 0, 0)])),
        'a camera: z is ahead': said(optical, cloud([(0.0, 0.0, 1.5), (-2.0, 0.0, 0.0)])),
        'far': said(plain, cloud([(9.0, 0, 0.5)])),
    })


@pytest.mark.parametrize('layout', [
    {}, {'kind': '<f8', 'offsets': (0, 8, 16), 'step': 32}, {'kind': '>f4'},
    {'offsets': (4, 8, 16), 'step': 22}, {'offsets': (8, 4, 0)}, {'rows': 7}, {'step': 12},
    {'rows': 2, 'pad': 5},
], ids=str)
def test_a_cloud_says_the_same_in_every_layout(layout: dict[str, Any]) -> None:
    assert said(sensor(CLOUD), cloud(WALL, **layout)) == said(sensor(CLOUD), cloud(WALL))


def test_a_bag_readers_cloud_is_the_same() -> None:
    msg = cloud(WALL)
    msg.data = np.frombuffer(bytes(msg.data), np.uint8)
    assert said(sensor(CLOUD), msg) == said(sensor(CLOUD), cloud(WALL))


@pytest.mark.parametrize(('changes', 'why'), [
    ({'width': 10**6, 'height': 10}, f'at most {MAX_POINTS}'), ({'width': -1}, 'points'),
    ({'point_step': 8}, 'no float within 8 bytes'), ({'row_step': 15}, 'bytes in rows of 15'),
    ({'data': array.array('B', b'1234')}, '4 bytes in rows of'), ({'fields': []}, 'no x, y and z'),
    ({'fields': [SimpleNamespace(name='x', offset=0, datatype=7, count=1)] * 2}, 'stands twice'),
    ({'fields': [SimpleNamespace(name='x', offset=0, datatype=7, count=3)]}, '3 at 0, is no'),
    ({'fields': [SimpleNamespace(name='\x1b\u202e', offset=0, datatype=7, count=1)]},
     re.escape(r"'\x1b\u202e'")),
    ({'fields': [SimpleNamespace(name=n, offset=0, datatype=2, count=1) for n in 'xyz']},
     'x of datatype 2, 1 at 0, is no float'),
    ({'fields': [SimpleNamespace(name='q', offset=0, datatype=7, count=1)] * 65}, 'at most 64'),
])
def test_a_cloud_that_does_not_fit_its_data_is_dropped(changes: Any, why: str) -> None:
    with pytest.raises(DroppedError, match=why):
        fields_of(sensor(CLOUD), cloud(WALL, **changes))


def test_a_band_of_heights_the_wrong_way_round_is_refused() -> None:
    with pytest.raises(ValidationError, match='from_z_m 2 is not less than to_z_m 1'):
        sensor(CLOUD, from_z_m=2.0, to_z_m=1.0)


# --- rangers -------------------------------------------------------------------------------------


def ranger(metres: float, **changes: Any) -> SimpleNamespace:
    return SimpleNamespace(**{
        'header': header('sonar'), 'radiation_type': 0, 'field_of_view': 0.3, 'min_range': 0.2,
        'max_range': 4.0, 'range': metres, **changes,
    })


def test_a_ranger_in_words() -> None:
    plain, fixed = sensor(RANGE, far_m=3.0), {'min_range': 0.3, 'max_range': 0.3}
    golden('range', {
        'usual': said(plain, ranger(1.24)),
        'word': said(sensor(RANGE, bins=BINS), ranger(1.24)),
        'far': said(plain, ranger(3.5)),
        'nothing within range': said(plain, ranger(INF)),
        'too near to measure': said(plain, ranger(-INF)),
        'error': said(plain, ranger(NAN)),
        'nothing, and it sees not far': said(plain, ranger(INF, max_range=0.35)),
        'nothing, and that is far in words': said(
            sensor(RANGE, bins=BINS), ranger(INF, max_range=1.5)),
        'limits unset': said(plain, ranger(0.4, min_range=0.0, max_range=0.0)),
        'limits unset, nothing': said(plain, ranger(INF, min_range=0.0, max_range=0.0)),
        'limits unset, too near': said(plain, ranger(-INF, min_range=0.0, max_range=0.0)),
        'outside its limits': said(plain, ranger(0.1)),
        'a switch, something': said(plain, ranger(-INF, **fixed)),
        'a switch, nothing': said(plain, ranger(INF, **fixed)),
        'a switch that says a number': said(plain, ranger(0.3, **fixed)),
    })


@pytest.mark.parametrize('limits', [(NAN, 1.0), (1.0, 0.5), (-1.0, 1.0), (0.0, INF)])
def test_a_ranger_of_absurd_limits_is_dropped(limits: tuple[float, float]) -> None:
    with pytest.raises(DroppedError, match='Range: m'):
        fields_of(sensor(RANGE), ranger(1.0, min_range=limits[0], max_range=limits[1]))


# --- maps ----------------------------------------------------------------------------------------


def grid(cells: Any, x: float = 0.0, y: float = 0.0, yaw: float = 0.0, cell_m: float = 0.1,
         **changes: Any) -> SimpleNamespace:
    cells = np.asarray(cells, np.int8)
    height, width = cells.shape
    info = SimpleNamespace(
        resolution=cell_m, width=width, height=height, origin=SimpleNamespace(
            position=SimpleNamespace(x=x, y=y, z=0.0), orientation=SimpleNamespace(
                x=0.0, y=0.0, z=math.sin(yaw / 2), w=math.cos(yaw / 2))))
    return SimpleNamespace(**{
        'header': header('map'), 'info': info, 'data': array.array('b', cells.tobytes()),
        **changes,
    })


def wall(column: int, size: int = 200) -> Any:
    """Return a free map of 20 m with a wall along y."""
    cells = np.zeros((size, size), np.int8)
    cells[:, column] = 100
    return cells


AT = Place(0, 'map', 10.0, 10.0, 0.0, 0.0)


def test_a_map_in_words() -> None:
    plain = sensor(GRID)
    unmapped = np.full((200, 200), -1, np.int8)
    half = wall(130)
    half[:, :100] = -1
    golden('grid', {
        'wall ahead': said(plain, grid(wall(130)), place=AT),
        'the robot looks to its left': said(
            plain, grid(wall(130)), place=Place(0, 'map', 10.0, 10.0, math.pi / 2, 0.0)),
        'the map is turned': said(
            plain, grid(wall(130), x=20.0, yaw=math.pi / 2), place=AT),
        'words': said(sensor(GRID, bins=BINS), grid(wall(110)), place=AT),
        'not mapped': said(plain, grid(unmapped), place=AT),
        'behind is not mapped': said(sensor(GRID, sectors=[
            {'name': 'ahead', 'from_deg': -20, 'to_deg': 20},
            {'name': 'behind', 'from_deg': -180, 'to_deg': -120}]), grid(half), place=AT),
        'odometry of another frame': said(
            plain, grid(wall(130)), odom=Odometry(0, 'odom', 0, 0, 0, 0, 0)),
        'off the map': said(plain, grid(wall(130)), place=Place(0, 'map', -1, 0, 0, 0)),
        'costmap, the robot in its middle': said(
            sensor(GRID, robot_in_middle=True), grid(wall(130), x=70.0),
            place=Place(0, 'map', 80.0, 10.0, 0.0, 0.0)),
        'inflated cells are no obstacle': said(plain, grid(np.where(wall(130), 60, 0)), place=AT),
    })


def test_where_the_map_ends_is_not_free() -> None:
    edge = Place(0, 'map', 19.7, 10.0, 0.0, 0.0)
    assert said(sensor(GRID), grid(np.zeros((200, 200))), place=edge) == (
        'left far, ahead-left unknown, ahead unknown, ahead-right unknown, right far')


def test_a_map_is_not_copied() -> None:
    msg = grid(wall(130))
    fields = fields_of(sensor(GRID), msg)
    assert np.shares_memory(fields.cells, np.frombuffer(msg.data, np.int8))
    assert not fields.cells.flags.writeable


def test_a_map_as_a_list_or_of_a_bag_reader_is_the_same() -> None:
    plain, cells = sensor(GRID), wall(130)
    usual = said(plain, grid(cells), place=AT)
    assert usual == said(plain, grid(cells, data=cells.reshape(-1)), place=AT)
    assert usual == said(plain, grid(cells, data=cells.reshape(-1).tolist()), place=AT)


@pytest.mark.parametrize(('changes', 'why'), [
    ({'data': array.array('b', b'123')}, '3 cells are no 200 x 200'),
    ({'cell_m': 0.0}, 'resolution 0 m'), ({'cell_m': NAN}, 'resolution is nan'),
    ({'x': INF}, 'origin.x is inf'), ({'cell_m': 0.001}, 'declare 0.5 or less'),
])
def test_a_map_that_does_not_fit_is_dropped(changes: Any, why: str) -> None:
    with pytest.raises(DroppedError, match=why):
        fields_of(sensor(GRID), grid(wall(130), **changes))


@pytest.mark.parametrize('kind', [SCAN, CLOUD, RANGE, GRID])
def test_what_is_drawn_is_worded_in_every_way(kind: str) -> None:
    options = {} if kind == GRID else {'bins': BINS}
    declared, random = sensor(kind, **options), np.random.default_rng(1)
    scene = Scene({'odom': Odometry(0, 'odom', 0, 0, 0, 0, 0)})
    texts = [declared.text(declared.draw(random), scene) for _ in range(100)]
    words = {word for text in texts for word in text.replace(',', '').split()}
    assert {'far'} <= words
    assert kind == GRID or {'touch', 'near'} <= words
