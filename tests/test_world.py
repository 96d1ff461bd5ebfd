"""World files: what is read, what is refused and where, and the maps that the package carries."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from smallm_ros.core.errors import WorldError
from smallm_ros.sim import sdf
from smallm_ros.sim.world import (
    Shape,
    World,
    _quaternion,
    find_world,
    load_world,
    outline,
    parse_world,
    rotation,
)

mujoco = pytest.importorskip('mujoco')

WORLDS = Path(__file__).parents[1] / 'config' / 'worlds'
CORRIDOR = (WORLDS / 'corridor.sdf').read_text(encoding='utf-8')
ROBOT_RADIUS_M = 0.2

# Element names of the SDF 1.9 specification (sdformat, sdf/1.9/*.sdf) that the worlds may use.
SDF_1_9 = set("""
    ambient always_on axis background box cast_shadows child collision cylinder diffuse direction
    dynamics effort friction geometry gravity horizontal inertia inertial ixx ixy ixz iyy iyz izz
    joint length lidar light limit link lower mass material max max_angle max_step_size mean min
    min_angle model mu mu2 name noise normal ode parent physics plane plugin pose radius range
    real_time_factor resolution samples scan scene sdf sensor size specular sphere static stddev
    surface topic type update_rate upper visual visualize world xyz
""".split())
# Custom elements that Gazebo Harmonic reads: the frame of a sensor's messages, and plugins' own.
GAZEBO = {'gz_frame_id'}


def world_of(text: str) -> World:
    return parse_world(text.encode(), 'w.sdf')


def static(name: str, pose: str, geometry: str) -> str:
    return (f'<model name="{name}"><static>true</static><pose>{pose}</pose><link name="l">'
            f'<collision name="c"><geometry>{geometry}</geometry></collision></link></model>')


def with_models(*models: str) -> World:
    return world_of(CORRIDOR.replace('<model name="wall_east">',
                                     ''.join(models) + '<model name="wall_east">', 1))


# --- the files of the package ---------------------------------------------------------------


@pytest.mark.parametrize('path', sorted(WORLDS.glob('*.sdf')), ids=lambda p: p.stem)
def test_a_shipped_world_uses_words_of_sdf_1_9_and_gazebo_alone(path: Path) -> None:
    root = ET.parse(path).getroot()
    assert root.get('version') == '1.9'
    for plugin in root.iter('plugin'):
        plugin[:] = []
        assert re.fullmatch(r'gz-sim-[a-z-]+-system', plugin.get('filename', ''))
        assert plugin.get('name', '').startswith('gz::sim::systems::')
    assert {element.tag for element in root.iter()} - SDF_1_9 - GAZEBO == set()


@pytest.mark.parametrize('path', sorted(WORLDS.glob('*.sdf')), ids=lambda p: p.stem)
def test_a_shipped_world_compiles_and_its_visuals_are_where_its_collisions_are(
    path: Path,
) -> None:
    world = load_world(path)
    assert world.name == path.stem
    mujoco.MjModel.from_xml_string(world.mjcf)
    for model in ET.parse(path).getroot().iter('model'):
        if model.findtext('static') != 'true':
            continue
        for link in model.iter('link'):
            solid, seen = link.find('collision/geometry'), link.find('visual/geometry')
            assert solid is not None and seen is not None
            assert ET.tostring(solid).split() == ET.tostring(seen).split()


def test_the_robot_of_every_world_is_the_same() -> None:
    robots = {re.sub(r'<pose>.*?</pose>', '', text.split('<model name="explorer">')[1], count=1)
              for text in (p.read_text(encoding='utf-8') for p in WORLDS.glob('*.sdf'))}
    assert len(robots) == 1


def test_the_explorer_is_what_the_policies_are_told() -> None:
    world = load_world(WORLDS / 'room.sdf')
    assert (world.robot, world.base) == ('explorer', 'explorer::base_link')
    assert (world.lidar.beams, world.lidar.rate_hz) == (360, 10)
    assert (world.lidar.range_min_m, world.lidar.range_max_m) == (0.12, 8.0)
    assert math.isclose(world.lidar.angle_increment_rad, math.radians(1), rel_tol=1e-9)
    assert world.lidar.mount == (0, 0, 0.18, 0, 0, 0, 1)
    assert (world.drive.odometry_frame, world.drive.base_frame) == ('odom', 'base_link')
    model = mujoco.MjModel.from_xml_string(world.mjcf)
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    centre = data.body(world.base).xpos
    for geom in np.flatnonzero(model.geom_group == 1):
        away = np.hypot(*(data.geom_xpos[geom] - centre)[:2])
        assert away + (model.geom_size[geom][0]) <= ROBOT_RADIUS_M + 1e-9


def test_the_robot_can_reach_every_free_place_of_the_room() -> None:
    """No two obstacles pinch: with 10 cm to spare on each side, free space is one piece."""
    shapes = outline(load_world(WORLDS / 'room.sdf'))
    step = 0.1
    xs, ys = np.arange(-4.95, 5, step), np.arange(-3.95, 4, step)
    grid = np.stack(np.meshgrid(xs, ys, indexing='ij'), axis=-1)
    free = np.ones(grid.shape[:2], dtype=bool)
    for shape in shapes:
        free &= distance(shape, grid) > ROBOT_RADIUS_M + 0.1
    todo = [tuple(np.argwhere(free)[0])]
    seen = np.zeros_like(free)
    seen[todo[0]] = True
    while todo:
        i, j = todo.pop()
        for a, b in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
            if 0 <= a < len(xs) and 0 <= b < len(ys) and free[a, b] and not seen[a, b]:
                seen[a, b] = True
                todo.append((a, b))
    assert free.mean() > 0.4
    assert (seen == free).all()


def distance(shape: Shape, points: np.ndarray) -> np.ndarray:
    away = points - (shape.x_m, shape.y_m)
    if shape.kind == 'circle':
        return np.linalg.norm(away, axis=-1) - shape.length_m / 2
    c, s = math.cos(shape.yaw_rad), math.sin(shape.yaw_rad)
    local = np.abs(away @ np.array([[c, -s], [s, c]])) - (shape.length_m / 2, shape.width_m / 2)
    return np.linalg.norm(np.maximum(local, 0), axis=-1)


# --- what is read ---------------------------------------------------------------------------


def test_the_outline_is_the_floor_plan_as_json() -> None:
    world = with_models(
        static('crate', '1 2 0.5 0 0 0.3', '<box><size>1 0.5 1</size></box>'),
        static('post', '0 1 0.5 0 0 0', '<cylinder><radius>0.2</radius><length>1</length>'
                                        '</cylinder>'),
        static('log', '0 0 0.1 1.5707963267948966 0 0',
               '<cylinder><radius>0.1</radius><length>2</length></cylinder>'),
        static('ball', '3 0 0.3 0 0 0', '<sphere><radius>0.3</radius></sphere>'),
        static('ramp', '2 0 0 0 0.5235987755982988 0', '<box><size>1 0.4 0.2</size></box>'),
    )
    found = {shape.name: shape for shape in outline(world)}
    assert set(found) == {'crate', 'post', 'log', 'ball', 'ramp', 'wall_east', 'wall_west',
                          'wall_north', 'wall_south'}
    assert found['post'] == Shape('post', 'circle', 0, 1, 0, 0.4, 0.4)
    assert found['ball'] == Shape('ball', 'circle', 3, 0, 0, 0.6, 0.6)
    crate = found['crate']
    assert (crate.kind, crate.x_m, crate.y_m) == ('rectangle', 1, 2)
    assert extent(crate, 0.3) == pytest.approx((1, 0.5))
    assert extent(found['log'], math.pi / 2) == pytest.approx((2, 0.2))
    assert extent(found['ramp'], 0) == pytest.approx(
        (math.cos(math.pi / 6) + 0.2 * math.sin(math.pi / 6), 0.4))
    json.dumps([dataclasses.asdict(shape) for shape in outline(world)])


def extent(shape: Shape, yaw: float) -> tuple[float, float]:
    """Length and width of a rectangle along a direction that must be one of its axes."""
    quarter = (shape.yaw_rad - yaw) / (math.pi / 2)
    assert abs(quarter - round(quarter)) < 1e-6
    return ((shape.length_m, shape.width_m) if round(quarter) % 2 == 0
            else (shape.width_m, shape.length_m))


def test_poses_of_model_link_and_collision_add_up() -> None:
    text = """<model name="m"><static>1</static><pose degrees="true">1 0 0 0 0 90</pose>
      <model name="inner"><pose>1 0 0 0 0 0</pose>
      <link name="l"><pose>0 0 1 0 0 1.5707963267948966</pose><collision name="c">
      <pose>0.5 0 0 0 0 0</pose>
      <geometry><box><size>1 2 3</size></box></geometry></collision></link></model></model>"""
    world = with_models(text)
    model = mujoco.MjModel.from_xml_string(world.mjcf)
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    geom = model.geom('m::inner::l::c').id
    assert data.geom_xpos[geom] == pytest.approx((0.5, 1, 1), abs=1e-9)
    assert data.geom_xmat[geom].reshape(3, 3) @ (1, 0, 0) == pytest.approx((-1, 0, 0), abs=1e-9)


def test_roll_pitch_yaw_turn_about_fixed_axes_in_that_order() -> None:
    assert rotation(0.3, 0, 0) @ (0, 1, 0) == pytest.approx((0, math.cos(0.3), math.sin(0.3)))
    assert rotation(0, 0.3, 0) @ (1, 0, 0) == pytest.approx((math.cos(0.3), 0, -math.sin(0.3)))
    both = rotation(0.1, 0.2, 0.3)
    assert both == pytest.approx(rotation(0, 0, 0.3) @ rotation(0, 0.2, 0) @ rotation(0.1, 0, 0))


@pytest.mark.parametrize('angles', [
    (0, 0, 0), (math.pi, 0, 0), (0, math.pi, 0), (0, 0, math.pi), (1, -2, 3), (0.1, 0.2, -0.3)])
def test_a_quaternion_turns_as_its_matrix_does(angles: tuple[float, float, float]) -> None:
    matrix = rotation(*angles)
    x, y, z, w = _quaternion(matrix)
    back = np.zeros(9)
    mujoco.mju_quat2Mat(back, np.array([w, x, y, z]))
    assert back.reshape(3, 3) == pytest.approx(matrix, abs=1e-9)


def test_two_surfaces_rub_with_the_smaller_of_their_frictions() -> None:
    model = mujoco.MjModel.from_xml_string(load_world(WORLDS / 'corridor.sdf').mjcf)
    caster = model.geom('explorer::base_link::caster_front')
    ground = model.geom('ground::link::collision')
    assert caster.friction[0] < ground.friction[0]
    assert caster.priority > ground.priority


def test_a_loose_model_falls_and_a_door_hangs_on_the_world() -> None:
    inertial = ('<inertial><mass>1</mass><inertia><ixx>0.1</ixx><iyy>0.1</iyy><izz>0.1</izz>'
                '</inertia></inertial>')
    box = '<geometry><box><size>0.2 0.2 0.2</size></box></geometry>'
    world = with_models(
        f'<model name="loose"><pose>2 0 1 0 0 0</pose><link name="l">{inertial}'
        f'<collision name="c">{box}</collision></link></model>',
        f'<model name="door"><pose>0 0 1 0 0 0</pose><link name="l">{inertial}</link>'
        '<joint name="hinge" type="revolute"><parent>world</parent><child>l</child><axis>'
        '<xyz>0 0 1</xyz><limit><lower>-1</lower><upper>1</upper></limit><dynamics><damping>1'
        '</damping><spring_stiffness>2</spring_stiffness><spring_reference>0.5</spring_reference>'
        '</dynamics></axis></joint></model>')
    model = mujoco.MjModel.from_xml_string(world.mjcf)
    data = mujoco.MjData(model)
    for _ in range(1000):
        mujoco.mj_step(model, data)
    assert data.body('loose::l').xpos == pytest.approx((2, 0, 0.1), abs=0.01)
    assert data.body('door::l').xpos == pytest.approx((0, 0, 1), abs=1e-6)
    assert tuple(model.joint('door::hinge').range) == (-1, 1)
    assert data.joint('door::hinge').qpos[0] == pytest.approx(0.5, abs=0.01)


def test_what_is_only_seen_or_heard_is_left_out() -> None:
    mesh = '<visual name="v"><geometry><mesh><uri>x.dae</uri></mesh></geometry></visual>'
    text = CORRIDOR.replace('<link name="lidar_link">', f'<link name="lidar_link">{mesh}'
                            '<gz:thing/><sensor name="cam" type="camera"><camera/></sensor>', 1)
    text = text.replace('<sdf version="1.9">',
                        '<sdf version="1.9" xmlns:gz="http://gazebosim.org/schema">')
    text = text.replace('<gravity>', '<gui><plugin filename="MinimalScene" name="3D"/></gui>'
                                     '<plugin filename="x" name="y"><a/></plugin><gravity>', 1)
    assert world_of(text).mjcf == world_of(CORRIDOR).mjcf


# --- what is refused ------------------------------------------------------------------------

REFUSED = [
    ('an unknown shape', ('<box><size>0.2 2.4 0.5</size></box>', '<mesh><uri>a</uri></mesh>'),
     r'<mesh>: not simulated in <geometry>.*Known: box, cylinder, plane, sphere'),
    ('a mistyped word', ('<wheel_radius>', '<wheel_radios>', '</wheel_radius>',
                         '</wheel_radios>'), r'<wheel_radios>: DiffDrive has no such parameter'),
    ('a near miss', ('<update_rate>10</update_rate>', '<updaterate>10</updaterate>'),
     r'<updaterate>: not simulated in <sensor>; did you mean <update_rate>\?'),
    ('NaN', ('<radius>0.2</radius>', '<radius>nan</radius>'), r"<radius>: 'nan' is not a finite"),
    ('infinity', ('<mass>4.5</mass>', '<mass>1e999</mass>'), r"<mass>: '1e999' is not a finite"),
    ('a word for a number', ('<mass>4.5</mass>', '<mass>heavy</mass>'), "'heavy' is no number"),
    ('too few numbers', ('<size>0.2 2.4 0.5</size>', '<size>0.2 2.4</size>'),
     r"<size>: 3 numbers are needed, not '0.2 2.4'"),
    ('a flat box', ('<size>0.2 2.4 0.5</size>', '<size>0.2 0 0.5</size>'),
     'each side must be more than 0'),
    ('a pose of five', ('<pose>0 0 0.18 0 0 0</pose>', '<pose>0 0 0.18 0 0</pose>'),
     '6 numbers are needed'),
    ('a pose from elsewhere', ('<pose>0 0 0.18 0 0 0</pose>',
                               '<pose relative_to="x">0 0 0.18 0 0 0</pose>'),
     "relative_to='x' is not read here"),
    ('no robot', ('name="gz::sim::systems::DiffDrive"', 'name="gz::sim::systems::Other"'),
     'no robot: no <model> has the plugin'),
    ('no lidar', ('type="gpu_lidar"', 'type="camera"'), 'no lidar'),
    ('a static robot', ('<model name="explorer">', '<model name="explorer"><static>true</static>'),
     'the robot is static'),
    ('a wheel that is not there', ('<left_joint>left_', '<left_joint>lift_'),
     "'lift_wheel_joint' is no turning joint.*left_wheel_joint, right_wheel_joint"),
    ('a joint to nowhere', ('<child>left_wheel</child>', '<child>left_weel</child>'),
     r"<child>: 'left_weel' is no link of <model> 'explorer'; there are: base_link"),
    ('a loose link', ('<joint name="lidar_joint" type="fixed">\n        <parent>base_link</parent>'
                      '\n        <child>lidar_link</child>\n      </joint>', ''),
     'the robot must be one piece.*loose: base_link, lidar_link'),
    ('a circle of joints', ('<parent>base_link</parent>\n        <child>lidar_link</child>',
                            '<parent>lidar_link</parent>\n        <child>lidar_link</child>'),
     'go round in a circle'),
    ('an unknown joint', ('name="lidar_joint" type="fixed"', 'name="lidar_joint" type="screw"'),
     "joint type 'screw' is not simulated; known: continuous, fixed, revolute"),
    ('a link without mass', ('<inertial>', '<visual name="v">', '</inertial>', '</visual>'),
     'needs its mass and inertia'),
    ('an impossible inertia', ('<izz>0.090</izz>', '<izz>0.2</izz>'), 'no solid has these'),
    ('a moving plane', ('<model name="ground">\n      <static>true</static>',
                        '<model name="ground">'), '<inertial> is missing'),
    ('twice the same name', ('name="wall_west"', 'name="wall_east"'),
     r"<model> 'wall_east': the name stands twice, first on line \d+"),
    ('a pose twice', ('<pose>0 0 0.18 0 0 0</pose>', '<pose/><pose/>'), 'stands twice'),
    ('ranges inside out', ('<max>8.0</max>', '<max>0.1</max>'), 'must be more than 0.12'),
    ('one beam', ('<samples>360</samples>', '<samples>1</samples>'), 'must be at least 2'),
    ('a million beams', ('<samples>360</samples>', '<samples>1000000</samples>'), 'at most 20000'),
    ('many layers', ('</horizontal>', '</horizontal><vertical><samples>16</samples></vertical>'),
     'only a planar lidar'),
    ('strange noise', ('<type>gaussian</type>', '<type>pink</type>'), "'pink' is not simulated"),
    ('a fixed part of a moving model', ('<joint name="lidar_joint"',
                                        '<model name="m"><static>1</static></model>'
                                        '<joint name="lidar_joint"'),
     r"<model> 'm': is static inside <model> 'explorer', which is not"),
    ('a huge time step', ('<max_step_size>0.005', '<max_step_size>0.5'), 'must be at most 0.02'),
    ('an include', ('<gravity>', '<include><uri>model://x</uri></include><gravity>'),
     r'<include>: not simulated in <world>'),
    ('an old version', ('version="1.9"', 'version="1.4"'), "version '1.4' is not one of: 1.7"),
    ('another root', ('<sdf version="1.9">', '<robot>', '</sdf>', '</robot>'),
     r'<robot>: the outermost element of a world file is <sdf>'),
    ('XML that ends early', ('</sdf>', ''), 'not XML: no element found'),
    ('XML that crosses', ('</world>', '</model>'), 'not XML: mismatched tag'),
    ('an entity', ('<sdf version', '<!DOCTYPE x [<!ENTITY a "b">]><sdf version'),
     'a DOCTYPE is not read'),
    ('an unnamed model', ('<model name="wall_east">', '<model>'), 'a name of 1 to 100'),
    ('a sideways jerk', ('<topic>cmd_vel</topic>', '<max_jerk>1</max_jerk>'),
     'jerk limits are not simulated'),
]


@pytest.mark.parametrize(('changes', 'message'), [r[1:] for r in REFUSED],
                         ids=[r[0].replace(' ', '-') for r in REFUSED])
def test_a_file_that_cannot_be_used_is_refused_by_line(
    changes: tuple[str, ...], message: str,
) -> None:
    text = CORRIDOR
    for old, new in zip(changes[::2], changes[1::2], strict=True):
        assert old in text
        text = text.replace(old, new)
    with pytest.raises(WorldError, match=message) as caught:
        world_of(text)
    assert re.match(r'w\.sdf:\d+: ', str(caught.value))
    assert '\n' not in str(caught.value)


def test_the_line_is_the_line() -> None:
    line = CORRIDOR[:CORRIDOR.index('<mass>4.5')].count('\n') + 1
    with pytest.raises(WorldError, match=rf'^w\.sdf:{line}: <mass>: -1 must be more than 0$'):
        world_of(CORRIDOR.replace('<mass>4.5', '<mass>-1'))


def test_two_robots_are_one_too_many() -> None:
    start = CORRIDOR.index('    <model name="explorer">')
    robot = CORRIDOR[start:CORRIDOR.index('</world>')]
    second = robot.replace('"explorer"', '"rival"')
    with pytest.raises(WorldError, match=r"a second robot: <model> 'explorer' on line \d+"):
        world_of(CORRIDOR.replace(robot, robot + second))
    with pytest.raises(WorldError, match='must be a model of the world, not inside another'):
        world_of(CORRIDOR.replace(robot, f'<model name="box">{robot}</model>'))


def test_a_file_is_bounded(tmp_path: Path) -> None:
    big = tmp_path / 'big.sdf'
    big.write_bytes(b' ' * (sdf.MAX_FILE_BYTES + 1))
    with pytest.raises(WorldError, match='at most 1048576'):
        load_world(big)
    with pytest.raises(WorldError, match='at most 1048576'):
        parse_world(big.read_bytes(), 'w.sdf')
    with pytest.raises(WorldError, match='nested more than 32 deep'):
        world_of('<sdf>' + '<model>' * 40 + '</model>' * 40 + '</sdf>')
    with pytest.raises(WorldError, match='more than 20000 elements'):
        world_of('<sdf>' + '<a/>' * 20_001 + '</sdf>')


def test_any_bytes_are_read_or_refused() -> None:
    data = CORRIDOR.encode()
    for cut in range(0, len(data), 997):
        with pytest.raises(WorldError, match=r'^w\.sdf:\d+: '):
            parse_world(data[:cut], 'w.sdf')
    random = np.random.default_rng(1)
    for _ in range(60):
        broken = bytearray(data)
        for place in random.integers(0, len(data), 3):
            broken[place] ^= 1 << int(random.integers(8))
        with contextlib.suppress(WorldError):
            parse_world(bytes(broken), 'w.sdf')


def test_a_world_is_found_by_path_or_name(tmp_path: Path) -> None:
    assert find_world('room') == find_world('room.sdf') == WORLDS / 'room.sdf'
    assert find_world(str(WORLDS / 'room.sdf')) == WORLDS / 'room.sdf'
    with pytest.raises(WorldError, match=r"world 'moon': no such file.*there are: corridor, room"):
        find_world('moon')
    with pytest.raises(WorldError, match='no such file'):
        find_world('../worlds/room')
    with pytest.raises(WorldError, match='cannot be read: Is a directory'):
        load_world(tmp_path)
