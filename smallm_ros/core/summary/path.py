"""Path -> which way it begins, where it turns next, how long it is yet.

A planner's path has hundreds of poses; `sampled` of them say all that is told. Where the robot is
on it must come from a sensor of the same frame, an odometry or a localisation: what is given in
another frame is said to be, and never mixed. Where two stretches of a path come near each other
the nearer one counts: a planner says only the rest of the way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from smallm_ros.core.sensor import Phrase, Positive, Scene, SensorBase
from smallm_ros.core.summary.goal import REACHED_M, direction
from smallm_ros.core.summary.place import MAX_FRAME, pose_in
from smallm_ros.core.summary.words import quoted

Points = npt.NDArray[np.float64]
MAX_POSES = 100_000
"""A longer path is a mistake or an attack."""
SAMPLES = 256
"""Poses that are kept of a path, evenly, its first and last among them."""
STEP_M = 0.25
"""Between two points of the path as it is looked at."""
BEND_RAD = math.radians(40)
"""A path that heads further aside than this has turned."""
LOOK_M = 20.0
NOW_M = 0.6


@dataclass(frozen=True, slots=True)
class Path:
    """Some of the positions of a nav_msgs/Path, in its frame."""

    stamp_ns: int
    frame_id: str
    points_m: Points
    """Shape (n, 2), at most SAMPLES; the first and the last pose are among them."""


class PathSensor(SensorBase):
    """A planned path, summarised as the next turn and the rest of the way."""

    type: Literal['nav_msgs/msg/Path']
    off_path_m: Positive = 1.0
    """Further from the path the robot has left it."""

    def say(self, fields: Path, scene: Scene) -> tuple[Phrase, ...]:
        """Return `ahead, turn left in 2 m, 12 m to go`, or why that is not known."""
        points = fields.points_m
        if not len(points):
            return (Phrase('empty'),)
        pose = pose_in(fields.frame_id, scene.fields.values())
        if pose is None:
            where = quoted(fields.frame_id, MAX_FRAME)
            return (Phrase(f'bearing unknown, no pose in frame {where}'),)
        here = np.array([pose.x_m, pose.y_m])
        rest, off_m = _ahead(points, here)
        length_m = float(np.hypot(*np.diff(rest, axis=0).T).sum())
        if off_m > self.off_path_m:
            dx, dy = rest[0] - here
            bearing = math.remainder(math.atan2(dy, dx) - pose.yaw_rad, 2 * math.pi)
            return (Phrase(f'{off_m:.1f} m off, path {direction(math.degrees(bearing))}'),
                    Phrase(f'{length_m:.0f} m to go', 1))
        if length_m < REACHED_M:
            return (Phrase('reached'),)
        headings = _headings(rest, min(length_m, LOOK_M))
        begins = math.remainder(float(headings[0]) - pose.yaw_rad, 2 * math.pi)
        said = [Phrase(direction(math.degrees(begins)))]
        turn = _turn(headings)
        if turn is not None:
            at_m, left = turn
            when = 'now' if at_m < NOW_M else f'in {at_m:.0f} m'
            said.append(Phrase(f'turn {"left" if left else "right"} {when}'))
        return (*said, Phrase(f'{length_m:.0f} m to go', 1))

    def draw(self, random: np.random.Generator) -> Path:
        """Return one from the origin, straight on or with one turn, in odometry's frame."""
        straight, side = random.uniform(1.0, 5.0), random.choice([-3.0, 0.0, 3.0])
        corner = (straight, 0.0)
        return Path(0, 'odom', np.array([(0.0, 0.0), corner, (straight, side)]))


def _ahead(points: Points, here: Points) -> tuple[Points, float]:
    """Return the path from where the robot is nearest to it, and how far that is."""
    if len(points) == 1:
        return np.vstack([points, points]), float(np.hypot(*(points[0] - here)))
    begins, legs = points[:-1], np.diff(points, axis=0)
    squared = np.maximum((legs ** 2).sum(axis=1), 1e-12)
    along = np.clip(((here - begins) * legs).sum(axis=1) / squared, 0.0, 1.0)
    feet = begins + along[:, None] * legs
    away = np.hypot(*(feet - here).T)
    at = int(away.argmin())
    return np.vstack([feet[at], points[at + 1:]]), float(away[at])


def _headings(rest: Points, length_m: float) -> Points:
    """Return the headings of even steps along the rest of a path, radians."""
    gone = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(rest, axis=0).T))])
    at = np.linspace(0.0, length_m, max(2, round(length_m / STEP_M) + 1))
    steps = np.diff(np.stack([np.interp(at, gone, rest[:, axis]) for axis in (0, 1)]))
    headings: Points = np.arctan2(steps[1], steps[0])
    return headings


def _turn(headings: Points) -> tuple[float, bool] | None:
    """Return how far the next turn is in metres, and whether it goes left; None: there is none."""
    bend = headings - headings[0]
    bend = np.arctan2(np.sin(bend), np.cos(bend))
    turned = np.flatnonzero(np.abs(bend) > BEND_RAD)
    if not turned.size:
        return None
    first = int(turned[0])
    return first * STEP_M, bool(bend[first] > 0)
