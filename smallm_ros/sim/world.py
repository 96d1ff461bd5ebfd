"""One SDF world file, the one that Gazebo loads, as everything that the simulation needs.

Collisions, inertials and joints become a MuJoCo model (as MJCF text); the robot is the model with
the DiffDrive plugin, its lidar and drive are read from the same file. What bears on the motion
and is not known here is refused by file and line (see `sdf`); what is only seen is left out.

SDF 1.7 and later: a pose is relative to its parent element, a joint's to its child link.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from smallm_ros.core.clock import SECOND
from smallm_ros.core.errors import WorldError
from smallm_ros.share import find_share
from smallm_ros.sim import sdf
from smallm_ros.sim.sdf import Element

Matrix = npt.NDArray[np.float64]

VERSIONS = ('1.7', '1.8', '1.9', '1.10', '1.11', '1.12')
"""What a pose means has not changed between these."""
LIDAR_TYPES = ('gpu_lidar', 'lidar', 'gpu_ray', 'ray')
DRIVE_PLUGIN = 'DiffDrive'
ROBOT_GROUP = 1
"""MuJoCo's geom group of the robot's own geoms: the lidar does not see it."""
SERVO_S = 0.02
"""Time constant with which a free robot's wheels reach the speed asked of them."""
UPRIGHT = 0.7
"""A plane whose normal's z is above this is a floor: touching it is no collision."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What an obstacle covers of the floor plan: a rectangle or a circle."""

    name: str
    kind: Literal['rectangle', 'circle']
    x_m: float
    y_m: float
    yaw_rad: float
    length_m: float
    """Along its own x axis; a circle's diameter."""
    width_m: float


@dataclass(frozen=True, slots=True)
class LidarSensor:
    """The robot's planar lidar, as the file describes it."""

    site: str
    """Name of the MuJoCo site that is its frame: x ahead, beams in its xy plane."""
    frame_id: str
    beams: int
    angle_min_rad: float
    angle_increment_rad: float
    range_min_m: float
    range_max_m: float
    rate_hz: float
    noise_mean_m: float
    noise_stddev_m: float
    mount: tuple[float, float, float, float, float, float, float]
    """Its place in the base's frame: x y z in metres, quaternion x y z w."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one axis of the drive; units of the axis, per second and per second squared."""

    min_velocity: float
    max_velocity: float
    min_acceleration: float
    max_acceleration: float


@dataclass(frozen=True, slots=True)
class Drive:
    """The differential drive, as the DiffDrive plugin describes it."""

    left_joint: str
    right_joint: str
    wheel_separation_m: float
    wheel_radius_m: float
    odometry_rate_hz: float
    odometry_frame: str
    base_frame: str
    linear: Limits
    angular: Limits


@dataclass(frozen=True, slots=True)
class World:
    """A world file, read."""

    name: str
    source: str
    step_ns: int
    robot: str
    """Name of the robot's model."""
    base: str
    """Name of the robot's base body in the MuJoCo model."""
    drive: Drive
    lidar: LidarSensor
    shapes: tuple[Shape, ...]
    floors: tuple[str, ...]
    """Names of the geoms that a wheel may touch."""
    mjcf: str
    """The MuJoCo model; geoms are named `model::link::collision`."""


def outline(world: World) -> list[Shape]:
    """Return the floor plan: a shape for each collision but planes and the robot's own."""
    return list(world.shapes)


def find_world(name: str) -> Path:
    """Return the world file with this path, or the one of this name in `config/worlds`."""
    path = Path(name)
    if path.is_file():
        return path
    folder = find_share('config') / 'worlds'
    if path.name == name:
        found = folder / (name if name.endswith('.sdf') else f'{name}.sdf')
        if found.is_file():
            return found
    known = sorted(file.stem for file in folder.glob('*.sdf'))
    raise WorldError(f'world {name!r}: no such file, and no world of that name in {folder}; '
                     f'there are: {", ".join(known) or "none"}')


def load_world(path: Path) -> World:
    """Read a world file; WorldError, one line `file:line: place: what`, when it cannot be used."""
    try:
        if path.stat().st_size > sdf.MAX_FILE_BYTES:
            raise WorldError(f'{path}:1: {path.stat().st_size} bytes, a world file has at most '
                             f'{sdf.MAX_FILE_BYTES}')
        data = path.read_bytes()
    except OSError as err:
        raise WorldError(f'{path}: cannot be read: {err.strerror}') from err
    return parse_world(data, str(path))


def parse_world(data: bytes, source: str) -> World:
    """Turn the bytes of a world file into a `World`; `source` is what the errors call it."""
    root = sdf.parse(data, source)
    if root.tag != 'sdf':
        raise root.error('the outermost element of a world file is <sdf>')
    if root.attributes.get('version') not in VERSIONS:
        raise root.error(f'version {root.attributes.get("version")!r} is not one of: '
                         f'{", ".join(VERSIONS)}')
    root.check_words()
    return _WorldReader(root.need('world')).read()


# --- poses ----------------------------------------------------------------------------------


def rotation(roll: float, pitch: float, yaw: float) -> Matrix:
    """Return the 3x3 rotation of SDF's fixed-axis roll, pitch, yaw: Rz(yaw) Ry(pitch) Rx(roll)."""
    cr, sr = math.cos(roll), math.sin(roll)
    cp, sp = math.cos(pitch), math.sin(pitch)
    cy, sy = math.cos(yaw), math.sin(yaw)
    return np.array([
        [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
        [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
        [-sp, cp * sr, cp * cr],
    ])


def _pose(element: Element) -> Matrix:
    """Return the 4x4 transform of an element's <pose>; the identity when it has none."""
    out = np.eye(4)
    pose = element.find('pose')
    if pose is None or not pose.text.strip():
        return out
    for attribute in ('relative_to', 'rotation_format'):
        if pose.attributes.get(attribute, '') not in ('', 'euler_rpy'):
            raise pose.error(f'{attribute}={pose.attributes[attribute]!r} is not read here: '
                             'give x y z roll pitch yaw relative to the parent element')
    x, y, z, roll, pitch, yaw = pose.numbers(6)
    if pose.attributes.get('degrees', 'false') in ('true', '1'):
        roll, pitch, yaw = math.radians(roll), math.radians(pitch), math.radians(yaw)
    out[:3, :3] = rotation(roll, pitch, yaw)
    out[:3, 3] = (x, y, z)
    return out


def _place(transform: Matrix) -> dict[str, str]:
    """Return a transform as MJCF attributes."""
    return {
        'pos': _numbers(transform[:3, 3]),
        'xyaxes': _numbers(transform[:3, :2].T.ravel()),
    }


def _numbers(values: npt.ArrayLike) -> str:
    return ' '.join(f'{value:.12g}' for value in np.asarray(values, dtype=float).ravel())


def _quaternion(matrix: Matrix) -> tuple[float, float, float, float]:
    """Return x, y, z, w of a rotation, w >= 0, by the largest of the four for precision."""
    m = matrix
    squares = np.array([
        1 + m[0, 0] - m[1, 1] - m[2, 2], 1 - m[0, 0] + m[1, 1] - m[2, 2],
        1 - m[0, 0] - m[1, 1] + m[2, 2], 1 + m[0, 0] + m[1, 1] + m[2, 2],
    ])
    rows = np.array([
        [squares[0], m[1, 0] + m[0, 1], m[0, 2] + m[2, 0], m[2, 1] - m[1, 2]],
        [m[1, 0] + m[0, 1], squares[1], m[2, 1] + m[1, 2], m[0, 2] - m[2, 0]],
        [m[0, 2] + m[2, 0], m[2, 1] + m[1, 2], squares[2], m[1, 0] - m[0, 1]],
        [m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1], squares[3]],
    ])
    row = rows[int(np.argmax(squares))]
    x, y, z, w = (float(v) for v in row / np.linalg.norm(row) * (-1 if row[3] < 0 else 1))
    return x, y, z, w


# --- models ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Link:
    name: str
    """Scoped within the top-level model: `arm::hand`."""
    element: Element
    pose: Matrix
    """In the top-level model's frame."""


@dataclass(frozen=True, slots=True)
class _Joint:
    name: str
    element: Element
    kind: str
    parent: str
    child: str


class _WorldReader:
    """Reads one <world> and writes its MJCF on the way."""

    def __init__(self, world: Element) -> None:
        self._world = world
        self._mjcf = ET.Element('mujoco')
        ET.SubElement(self._mjcf, 'compiler', angle='radian', autolimits='true',
                      inertiafromgeom='false')
        self._option = ET.SubElement(self._mjcf, 'option', integrator='Euler',
                                     cone='elliptic', impratio='10')
        self._bodies = ET.SubElement(self._mjcf, 'worldbody')
        self._actuators = ET.SubElement(self._mjcf, 'actuator')
        self._hinges: dict[str, ET.Element] = {}
        self._frictions: list[tuple[float, ET.Element]] = []
        self._shapes: list[Shape] = []
        self._floors: list[str] = []
        self._robot: tuple[Element, Element] | None = None
        self._lidars: list[tuple[Element, LidarSensor]] = []

    def read(self) -> World:
        world = self._world
        world.check_words()
        name = world.name()
        step_ns = self._read_physics()
        self._mjcf.set('model', name)
        models = list(world.all('model'))
        _check_unique(models)
        for model in models:
            for plugin in self._drive_plugins(model):
                if self._robot is not None:
                    raise plugin.error(
                        f'a second robot: {self._robot[0].label} on line {self._robot[0].line} '
                        f'has the {DRIVE_PLUGIN} plugin already; this simulates one')
                self._robot = (model, plugin)
        if self._robot is None:
            raise world.error(f'no robot: no <model> has the plugin gz::sim::systems::'
                              f'{DRIVE_PLUGIN}')
        drive, base = None, ''
        for model in models:
            if model is self._robot[0]:
                drive, base = self._read_robot(model, self._robot[1])
            else:
                self._read_model(model)
        assert drive is not None
        if not self._lidars:
            raise self._robot[0].error(f'no lidar: no <sensor> of type {LIDAR_TYPES[0]} on it')
        if len(self._lidars) > 1:
            raise self._lidars[1][0].error('a second lidar: this simulates one')
        self._rank_frictions()
        return World(
            name=name, source=world.source, step_ns=step_ns, robot=self._robot[0].name(),
            base=base, drive=drive, lidar=self._lidars[0][1], shapes=tuple(self._shapes),
            floors=tuple(self._floors), mjcf=ET.tostring(self._mjcf, encoding='unicode'),
        )

    def _read_physics(self) -> int:
        physics = self._world.find('physics')
        step_s = 0.001
        if physics is not None:
            physics.check_words()
            step_s = physics.number('max_step_size', step_s, least=0.0001, most=0.02)
        gravity = self._world.find('gravity')
        self._option.set('timestep', f'{step_s:.12g}')
        self._option.set('gravity', _numbers(gravity.numbers(3) if gravity else (0, 0, -9.8)))
        return round(step_s * SECOND)

    def _drive_plugins(self, model: Element) -> list[Element]:
        for inner in model.all('model'):
            for plugin in self._drive_plugins(inner):
                raise plugin.error('the robot must be a model of the world, not inside another')
        return [plugin for plugin in model.all('plugin')
                if plugin.attributes.get('name', '').endswith(f'::{DRIVE_PLUGIN}')]

    def _flatten(
        self, model: Element, pose: Matrix, prefix: str
    ) -> tuple[list[_Link], list[_Joint]]:
        """Return all links and joints of a model and of those inside it."""
        model.check_words()
        links: list[_Link] = []
        joints: list[_Joint] = []
        _check_unique([c for c in model.children if c.tag in ('link', 'joint', 'model')])
        for element in model.all('link'):
            element.check_words()
            _check_unique(list(element.all('collision')))
            links.append(_Link(prefix + element.name(), element, pose @ _pose(element)))
        for element in model.all('joint'):
            element.check_words()
            kind = element.attributes.get('type', '')
            if kind not in ('revolute', 'continuous', 'fixed'):
                raise element.error(f'joint type {kind!r} is not simulated; known: continuous, '
                                    'fixed, revolute')
            parent, child = element.need('parent').word(), element.need('child').word()
            joints.append(_Joint(prefix + element.name(), element, kind,
                                 parent if parent == 'world' else prefix + parent, prefix + child))
        for inner in model.all('model'):
            if prefix.count('::') > 8:
                raise inner.error('models inside models more than 8 deep')
            if inner.flag('static') and not model.flag('static'):
                raise inner.error(f'is static inside {model.label}, which is not')
            below = self._flatten(inner, pose @ _pose(inner), f'{prefix}{inner.name()}::')
            links += below[0]
            joints += below[1]
        return links, joints

    def _read_model(self, model: Element) -> None:
        name = model.name()
        links, joints = self._flatten(model, np.eye(4), '')
        pose = _pose(model)
        if model.flag('static'):
            for link in links:
                self._geoms(self._bodies, link, pose @ link.pose, f'{name}::', pose @ link.pose)
        else:
            self._tree(model, name, pose, links, joints)

    def _read_robot(self, model: Element, plugin: Element) -> tuple[Drive, str]:
        name = model.name()
        if model.flag('static'):
            raise model.error('the robot is static: it could not move')
        links, joints = self._flatten(model, np.eye(4), '')
        roots = self._tree(model, name, _pose(model), links, joints, robot=True)
        if len(roots) != 1:
            raise model.error('the robot must be one piece, joined link to link; loose: '
                              f'{", ".join(root.name for root in roots) or "none"}')
        drive = _read_drive(plugin, name, roots[0].name)
        # Half of the robot's inertia as a wheel feels it stands for the rotor behind the gear. It
        # keeps a wheel that has lost its grip stable under an explicit integrator; the implicit
        # ones leave the servo's damping out of the friction forces, and the wheels skid.
        mass_kg = sum(link.element.need('inertial').number('mass') for link in links)
        by_name = {joint.name: joint for joint in joints}
        for word in (drive.left_joint, drive.right_joint):
            joint = by_name.get(word)
            if joint is None or joint.kind == 'fixed':
                wheels = [j.name for j in joints if j.kind != 'fixed']
                raise plugin.error(f'{word!r} is no turning joint of {model.label}; there are: '
                                   f'{", ".join(wheels) or "none"}')
            inertia = mass_kg * drive.wheel_radius_m ** 2 / 2
            self._hinges[f'{name}::{word}'].set('armature', f'{inertia:.12g}')
            servo = ET.SubElement(
                self._actuators, 'velocity', name=word, joint=f'{name}::{word}',
                kv=f'{2 * inertia / SERVO_S:.12g}')
            limit = joint.element.need('axis').find('limit')
            effort = -1.0 if limit is None else limit.number('effort', -1.0)
            if effort >= 0:
                servo.set('forcerange', _numbers((-effort, effort)))
        return drive, f'{name}::{roots[0].name}'

    def _tree(
        self, model: Element, name: str, pose: Matrix, links: list[_Link],
        joints: list[_Joint], *, robot: bool = False,
    ) -> list[_Link]:
        """Write a moving model's links as bodies within bodies; return its free roots."""
        by_name = {link.name: link for link in links}
        above: dict[str, _Joint] = {}
        for joint in joints:
            for end, word in (('parent', joint.parent), ('child', joint.child)):
                if word not in by_name and not (end == 'parent' and word == 'world'):
                    raise joint.element.need(end).error(
                        f'{word!r} is no link of {model.label}; there are: {", ".join(by_name)}')
            if joint.child in above:
                raise joint.element.error(f'link {joint.child!r} hangs on joint '
                                          f'{above[joint.child].name!r} already')
            above[joint.child] = joint
        below: dict[str, list[_Joint]] = {}
        for joint in joints:
            below.setdefault(joint.parent, []).append(joint)
        written = 0

        def write(parent: ET.Element, link: _Link, relative: Matrix, base: Matrix) -> None:
            nonlocal written
            written += 1
            body = ET.SubElement(parent, 'body', _place(relative), name=f'{name}::{link.name}')
            hung = above.get(link.name)
            if hung is None:
                ET.SubElement(body, 'freejoint', name=f'{name}::{link.name}')
            elif hung.kind != 'fixed':
                self._hinge(body, hung, name)
            _inertial(body, link.element)
            self._geoms(body, link, np.eye(4), f'{name}::', pose @ link.pose, robot=robot)
            if robot:
                self._sensors(body, link, name, np.linalg.inv(base) @ link.pose)
            for joint in below.get(link.name, ()):
                child = by_name[joint.child]
                write(body, child, np.linalg.inv(link.pose) @ child.pose, base)

        roots = [link for link in links if link.name not in above]
        for link in roots:
            write(self._bodies, link, pose @ link.pose, link.pose)
        for joint in below.get('world', ()):
            link = by_name[joint.child]
            write(self._bodies, link, pose @ link.pose, link.pose)
        if written != len(links):
            raise model.error('its joints go round in a circle')
        return roots

    def _hinge(self, body: ET.Element, joint: _Joint, name: str) -> None:
        place = _pose(joint.element)
        axis = joint.element.need('axis')
        axis.check_words()
        xyz = axis.need('xyz')
        if xyz.attributes.get('expressed_in', ''):
            raise xyz.error('expressed_in is not read here: give the axis in the joint\'s frame')
        direction = np.array(xyz.numbers(3))
        if not np.linalg.norm(direction) > 1e-6:
            raise xyz.error('the axis has no direction')
        hinge = ET.SubElement(
            body, 'joint', type='hinge', name=f'{name}::{joint.name}',
            pos=_numbers(place[:3, 3]), axis=_numbers(place[:3, :3] @ direction))
        self._hinges[f'{name}::{joint.name}'] = hinge
        dynamics = axis.find('dynamics')
        if dynamics is not None:
            dynamics.check_words()
            hinge.set('damping', f'{dynamics.number("damping", 0.0, least=0):.12g}')
            hinge.set('frictionloss', f'{dynamics.number("friction", 0.0, least=0):.12g}')
            hinge.set('stiffness', f'{dynamics.number("spring_stiffness", 0.0, least=0):.12g}')
            hinge.set('springref', f'{dynamics.number("spring_reference", 0.0):.12g}')
        limit = axis.find('limit')
        if limit is None:
            return
        limit.check_words()
        lower, upper = limit.number('lower', -1e16), limit.number('upper', 1e16)
        if lower > upper:
            raise limit.error(f'lower {lower:g} is more than upper {upper:g}')
        if joint.kind == 'revolute' and (lower > -1e9 or upper < 1e9):
            hinge.set('range', _numbers((max(lower, -1e9), min(upper, 1e9))))

    def _geoms(
        self, parent: ET.Element, link: _Link, place: Matrix, prefix: str, in_world: Matrix,
        *, robot: bool = False,
    ) -> None:
        moving = parent is not self._bodies
        for collision in link.element.all('collision'):
            collision.check_words()
            full = f'{prefix}{link.name}::{collision.name()}'
            geometry = collision.need('geometry')
            geometry.check_words()
            if len(geometry.children) != 1:
                raise geometry.error(f'one shape is needed, not {len(geometry.children)}')
            shape = geometry.children[0]
            shape.check_words()
            local = _pose(collision)
            if shape.tag == 'plane':
                if moving:
                    raise shape.error('a plane cannot move: make its model static')
                local = local @ _plane_frame(shape)
            kind, size = _size(shape)
            # MuJoCo pairs two geoms when the type of one meets the affinity of the other: the
            # robot's (1, 2) never meet each other, all others (2, 3) meet it and themselves.
            geom = ET.SubElement(
                parent, 'geom', _place(place @ local), name=full, type=kind, size=_numbers(size),
                contype='1' if robot else '2', conaffinity='2' if robot else '3',
                group=str(ROBOT_GROUP if robot else 0))
            self._frictions.append((_friction(collision), geom))
            if robot:
                continue
            if shape.tag == 'plane':
                if (in_world @ local)[2, 2] > UPRIGHT:
                    self._floors.append(full)
            else:
                self._shapes.append(_plan(full.split('::', 1)[0], kind, size, in_world @ local))

    def _sensors(self, body: ET.Element, link: _Link, name: str, in_base: Matrix) -> None:
        for sensor in link.element.all('sensor'):
            if sensor.attributes.get('type') not in LIDAR_TYPES:
                continue
            sensor.check_words()
            place = _pose(sensor)
            site = f'{name}::{link.name}::{sensor.name()}'
            ET.SubElement(body, 'site', _place(place), name=site)
            self._lidars.append((sensor, _read_lidar(sensor, site, in_base @ place)))

    def _rank_frictions(self) -> None:
        """Give slippery geoms a higher priority.

        SDF's engines take the smaller friction of two touching surfaces; MuJoCo takes the larger,
        unless one has the higher priority, which then decides.
        """
        ranks = sorted({mu for mu, _ in self._frictions}, reverse=True)
        for mu, geom in self._frictions:
            geom.set('friction', f'{max(mu, 1e-5):.12g} 0.005 0.0001')
            geom.set('priority', str(ranks.index(mu)))


def _check_unique(elements: list[Element]) -> None:
    seen: dict[str, Element] = {}
    for element in elements:
        name = element.name()
        if name in seen:
            raise element.error(f'the name stands twice, first on line {seen[name].line}')
        seen[name] = element


def _size(shape: Element) -> tuple[str, tuple[float, ...]]:
    """Return MuJoCo's type and half sizes of a checked <box>, <cylinder>, <sphere> or <plane>."""
    if shape.tag == 'box':
        size = shape.need('size')
        sides = size.numbers(3)
        if min(sides) <= 0:
            raise size.error(f'{size.text.strip()!r}: each side must be more than 0')
        return 'box', tuple(side / 2 for side in sides)
    if shape.tag == 'plane':
        return 'plane', (0, 0, 1)
    radius_m = shape.number('radius', above=0)
    if shape.tag == 'sphere':
        return 'sphere', (radius_m,)
    return 'cylinder', (radius_m, shape.number('length', above=0) / 2)


def _plane_frame(shape: Element) -> Matrix:
    """Return a frame whose z axis is the plane's normal."""
    normal = shape.find('normal')
    z = np.array(normal.numbers(3) if normal else (0.0, 0.0, 1.0))
    length = float(np.linalg.norm(z))
    if not length > 1e-6:
        raise shape.error('the normal has no direction')
    z = z / length
    x = np.cross((0.0, 1.0, 0.0) if abs(z[1]) < 0.9 else (0.0, 0.0, 1.0), z)
    x /= np.linalg.norm(x)
    out = np.eye(4)
    out[:3, :3] = np.column_stack([x, np.cross(z, x), z])
    return out


def _friction(collision: Element) -> float:
    """Return the Coulomb coefficient; SDF's default is 1."""
    element = collision
    for tag in ('surface', 'friction', 'ode'):
        inner = element.find(tag)
        if inner is None:
            return 1.0
        inner.check_words()
        element = inner
    return element.number('mu', 1.0, least=0)


def _plan(name: str, kind: str, size: tuple[float, ...], pose: Matrix) -> Shape:
    """Return the shadow that a solid throws straight down on the floor."""
    x, y = float(pose[0, 3]), float(pose[1, 3])
    turn = pose[:3, :3]
    if kind == 'sphere' or (kind == 'cylinder' and abs(turn[2, 2]) > 0.999):
        return Shape(name, 'circle', x, y, 0.0, 2 * size[0], 2 * size[0])
    # The yaw of the axis that lies flattest, then the extent along it and across it.
    axis = turn[:, 2] if kind == 'cylinder' else turn[:, int(np.argmin(np.abs(turn[2, :])))]
    yaw = math.atan2(axis[1], axis[0])
    extents = []
    for direction in ((math.cos(yaw), math.sin(yaw), 0), (-math.sin(yaw), math.cos(yaw), 0)):
        along = np.abs(np.array(direction) @ turn)
        if kind == 'box':
            extents.append(2 * float(along @ np.array(size)))
        else:
            across = math.sqrt(max(0.0, 1 - along[2] ** 2))
            extents.append(2 * float(size[0] * across + size[1] * along[2]))
    return Shape(name, 'rectangle', x, y, yaw, *extents)


def _inertial(body: ET.Element, link: Element) -> None:
    inertial = link.find('inertial')
    if inertial is None:
        raise link.error('<inertial> is missing: a link that moves needs its mass and inertia')
    inertial.check_words()
    inertia = inertial.need('inertia')
    inertia.check_words()
    ixx, iyy, izz = (inertia.number(tag, above=0) for tag in ('ixx', 'iyy', 'izz'))
    ixy, ixz, iyz = (inertia.number(tag, 0.0) for tag in ('ixy', 'ixz', 'iyz'))
    about_mass = np.array([[ixx, ixy, ixz], [ixy, iyy, iyz], [ixz, iyz, izz]])
    principal = np.linalg.eigvalsh(about_mass)
    if principal[0] <= 0 or principal[2] > (principal[0] + principal[1]) * (1 + 1e-6):
        raise inertia.error('no solid has these moments of inertia: each must be positive and '
                            'less than the sum of the other two')
    place = _pose(inertial)
    turn = place[:3, :3]
    i = turn @ about_mass @ turn.T
    ET.SubElement(
        body, 'inertial', pos=_numbers(place[:3, 3]),
        mass=f'{inertial.number("mass", above=0):.12g}',
        fullinertia=_numbers((i[0, 0], i[1, 1], i[2, 2], i[0, 1], i[0, 2], i[1, 2])))


def _read_lidar(sensor: Element, site: str, in_base: Matrix) -> LidarSensor:
    lidar = sensor.need('lidar')
    lidar.check_words()
    scan = lidar.need('scan')
    scan.check_words()
    horizontal = scan.need('horizontal')
    horizontal.check_words()
    beams = horizontal.number('samples', least=2, most=20_000)
    angle_min = horizontal.number('min_angle', least=-2 * math.pi, most=2 * math.pi)
    angle_max = horizontal.number('max_angle', least=-2 * math.pi, most=2 * math.pi)
    if not angle_max > angle_min:
        raise horizontal.error(f'max_angle {angle_max:g} must be more than min_angle '
                               f'{angle_min:g}')
    if beams != int(beams):
        raise horizontal.error(f'samples {beams:g} is no whole number')
    vertical = scan.find('vertical')
    if vertical is not None:
        vertical.check_words()
        if vertical.number('samples', 1.0) != 1:
            raise vertical.error('only a planar lidar is simulated: samples must be 1')
    limits = lidar.need('range')
    limits.check_words()
    range_min = limits.number('min', least=0)
    range_max = limits.number('max', above=range_min, most=1000)
    mean = stddev = 0.0
    noise = lidar.find('noise')
    if noise is not None:
        noise.check_words()
        kind = (noise.find('type') or noise).text.strip()
        if kind not in ('gaussian', 'none'):
            raise noise.error(f'type {kind!r} is not simulated; known: gaussian, none')
        if kind == 'gaussian':
            mean = noise.number('mean', 0.0)
            stddev = noise.number('stddev', 0.0, least=0)
    frame = sensor.find('gz_frame_id')
    return LidarSensor(
        site=site, frame_id=frame.word() if frame else site.replace('::', '/'),
        beams=int(beams), angle_min_rad=angle_min,
        # Gazebo's beams include both ends.
        angle_increment_rad=(angle_max - angle_min) / (int(beams) - 1),
        range_min_m=range_min, range_max_m=range_max,
        rate_hz=sensor.number('update_rate', 10.0, above=0, most=1000),
        noise_mean_m=mean, noise_stddev_m=stddev,
        mount=(float(in_base[0, 3]), float(in_base[1, 3]), float(in_base[2, 3]),
               *_quaternion(in_base[:3, :3])),
    )


_DRIVE_WORDS = frozenset((
    'left_joint right_joint wheel_separation wheel_radius odom_publish_frequency topic odom_topic '
    'tf_topic frame_id child_frame_id '
    'min_linear_velocity max_linear_velocity min_linear_acceleration max_linear_acceleration '
    'min_angular_velocity max_angular_velocity min_angular_acceleration max_angular_acceleration '
    'min_velocity max_velocity min_acceleration max_acceleration '
    'min_jerk max_jerk min_linear_jerk max_linear_jerk min_angular_jerk max_angular_jerk'
).split())
_UNREAD_DRIVE_WORDS: Mapping[str, str] = {
    **{word: f'use {word.split("_")[0]}_linear_{word.split("_")[1]} and its angular twin'
       for word in ('min_velocity', 'max_velocity', 'min_acceleration', 'max_acceleration')},
    **{word: 'jerk limits are not simulated' for word in sorted(_DRIVE_WORDS) if 'jerk' in word},
}


def _read_drive(plugin: Element, robot: str, base: str) -> Drive:
    for child in plugin.children:
        if child.tag in _UNREAD_DRIVE_WORDS:
            raise child.error(_UNREAD_DRIVE_WORDS[child.tag])
        if child.tag not in _DRIVE_WORDS:
            raise child.error(f'{DRIVE_PLUGIN} has no such parameter; it has: '
                              f'{", ".join(sorted(_DRIVE_WORDS - set(_UNREAD_DRIVE_WORDS)))}')

    def limits(axis: str) -> Limits:
        return Limits(
            min_velocity=plugin.number(f'min_{axis}_velocity', -math.inf, most=0),
            max_velocity=plugin.number(f'max_{axis}_velocity', math.inf, least=0),
            min_acceleration=plugin.number(f'min_{axis}_acceleration', -math.inf, most=0),
            max_acceleration=plugin.number(f'max_{axis}_acceleration', math.inf, least=0),
        )

    frame, base_frame = plugin.find('frame_id'), plugin.find('child_frame_id')
    return Drive(
        left_joint=plugin.need('left_joint').word(),
        right_joint=plugin.need('right_joint').word(),
        wheel_separation_m=plugin.number('wheel_separation', above=0),
        wheel_radius_m=plugin.number('wheel_radius', above=0),
        odometry_rate_hz=plugin.number('odom_publish_frequency', 50.0, above=0, most=1000),
        odometry_frame=frame.word() if frame else f'{robot}/odom',
        base_frame=base_frame.word() if base_frame else f'{robot}/{base}',
        linear=limits('linear'), angular=limits('angular'),
    )
