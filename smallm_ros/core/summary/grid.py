"""OccupancyGrid -> how far it is free in each named sector around the robot.

Where the robot is on the map must come from a sensor of the map's frame; a rolling costmap has it
in its middle. A sector whose cells are mostly unknown, or off the map, is `unknown`: an unmapped
room is no free one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from smallm_ros.core.sensor import Phrase, Scene, SensorBase, Word
from smallm_ros.core.summary.place import MAX_FRAME, pose_in
from smallm_ros.core.summary.scan import SECTORS, Bins, Sector, distance
from smallm_ros.core.summary.words import quoted

MAX_CELLS = 4000 * 4000
MAX_REACH = 500
"""Cells to `within_m`: a finer map would hold up the tick, 0.7 s for 16 million cells."""
MOSTLY = 0.5
"""The share of a sector's cells that must be known."""


@dataclass(frozen=True, slots=True)
class Grid:
    """A nav_msgs/OccupancyGrid as it came; its cells are the message's own, not a copy."""

    stamp_ns: int
    frame_id: str
    cell_m: float
    x_m: float
    y_m: float
    yaw_rad: float
    """Pose of the corner of cell (0, 0) in the frame."""
    cells: npt.NDArray[np.int8]
    """Shape (rows along y, columns along x); 0 free to 100 occupied, -1 unknown."""


class GridSensor(SensorBase):
    """A map or costmap, summarised as the free distance in named sectors around the robot."""

    type: Literal['nav_msgs/msg/OccupancyGrid']
    robot_in_middle: bool = False
    """Of a rolling costmap, whose axes the robot's heading must then be known in all the same."""
    occupied_from: Annotated[int, Field(ge=1, le=100)] = 65
    """A cell of this value is an obstacle: nav2_map_server's default threshold."""
    within_m: Annotated[float, Field(gt=0, le=20)] = 5.0
    """How far is looked; beyond it is `far_word`."""
    sectors: tuple[Sector, ...] = Field(default=SECTORS, min_length=1, max_length=16)
    far_word: Word = 'far'
    bins: Bins = ()
    """Words instead of numbers, nearest first; beyond the last it is `far_word`."""

    def say(self, fields: Grid, scene: Scene) -> tuple[Phrase, ...]:
        """Return `left 0.8`, `ahead far`, `right unknown`, or why nothing is known."""
        pose = pose_in(fields.frame_id, scene.fields.values())
        if pose is None:
            where = quoted(fields.frame_id, MAX_FRAME)
            return (Phrase(f'free ways unknown, no pose in frame {where}'),)
        rows, columns = fields.cells.shape
        if self.robot_in_middle:
            row, column = rows / 2, columns / 2
        else:
            ahead, left = pose.x_m - fields.x_m, pose.y_m - fields.y_m
            cos, sin = math.cos(fields.yaw_rad), math.sin(fields.yaw_rad)
            column = (ahead * cos + left * sin) / fields.cell_m
            row = (left * cos - ahead * sin) / fields.cell_m
            if not (0 <= row < rows and 0 <= column < columns):
                return (Phrase('robot off the map'),)
        return tuple(
            Phrase(f'{sector.name} ' + distance(
                metres, self.bins, self.within_m, self.far_word, self.within_m))
            for sector, metres in zip(
                self.sectors, self._free(fields, row, column, pose.yaw_rad), strict=True)
        )

    def draw(self, random: np.random.Generator) -> Grid:
        """Return an empty map around the origin with a wall at some distance."""
        cell_m = self.within_m / 20
        cells = np.zeros((60, 60), np.int8)
        cells[:, int(random.integers(31, 60))] = 100
        return Grid(0, 'odom', cell_m, -30 * cell_m, -30 * cell_m, 0.0, cells)

    def _free(self, grid: Grid, row: float, column: float, yaw_rad: float) -> list[float]:
        """Return by sector the nearest occupied cell, inf without one, NaN if mostly unknown."""
        reach = math.ceil(self.within_m / grid.cell_m) + 1
        low = int(row) - reach, int(column) - reach
        begin = max(0, low[0]), max(0, low[1])
        there = grid.cells[begin[0]:int(row) + reach + 1, begin[1]:int(column) + reach + 1]
        window = np.full((2 * reach + 1, 2 * reach + 1), -1, np.int8)
        window[begin[0] - low[0]:, begin[1] - low[1]:][:there.shape[0], :there.shape[1]] = there
        up = (np.arange(window.shape[0], dtype=np.float32) + (low[0] + 0.5 - row)) * grid.cell_m
        along = (np.arange(window.shape[1], dtype=np.float32) + (low[1] + 0.5 - column)) * (
            grid.cell_m)
        metres = np.hypot(up[:, None], along[None, :])
        inside = metres <= self.within_m
        bearing = np.arctan2(*np.broadcast_arrays(up[:, None], along[None, :]))[inside]
        bearing += np.float32(grid.yaw_rad - yaw_rad)
        degrees = (np.degrees(bearing) + 180) % 360 - 180
        metres, values = metres[inside], window[inside]
        taken, unknown = values >= self.occupied_from, values < 0
        out = []
        for sector in self.sectors:
            nearest = sector.nearest(degrees[taken], metres[taken])
            cells = unknown[sector.holds(degrees)]
            dark = cells.mean() > MOSTLY if cells.size else True
            out.append(math.nan if nearest == math.inf and dark else nearest)
        return out
