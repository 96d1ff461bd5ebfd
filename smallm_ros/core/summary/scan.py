"""LaserScan -> the nearest distance in each named sector, as a number or a word of one token.

As sensor_msgs/LaserScan defines: values outside [range_min, range_max] are to be discarded,
except that `+inf` says that nothing was there; NaN says nothing. A sector with no usable beam is
`unknown`. By option also the gaps that are wide enough to drive through, and how open it is.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, Field, model_validator

from smallm_ros.core.sensor import Part, Phrase, Positive, Scene, SensorBase, Word

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float32]
_NEAREST_M = 0.15
"""The nearest obstacle that `draw` puts somewhere."""


@dataclass(frozen=True, slots=True)
class Scan:
    """The fields of a sensor_msgs/LaserScan that decide anything."""

    stamp_ns: int
    """ROS time of the header; 0 when the driver set none."""
    frame_id: str
    angle_min_rad: float
    angle_increment_rad: float
    range_min_m: float
    range_max_m: float
    ranges_m: FloatArray
    """Shape (beams,). `inf` is nothing within range, NaN is unknown: as the message defines."""


class Sector(Part):
    """A named range of bearings in degrees, counter-clockwise from ahead, without its end."""

    name: Word
    from_deg: Annotated[float, Field(ge=-180, le=180)]
    to_deg: Annotated[float, Field(ge=-180, le=180)]
    width_m: Positive | None = None
    """Makes it a lane: only what lies within this width of the sector's middle line counts, and
    its distance is taken along that line. None: a wedge, distances from the laser."""

    @model_validator(mode='after')
    def _ordered(self) -> Sector:
        if not self.from_deg < self.to_deg:
            raise ValueError(f'from_deg {self.from_deg:g} is not less than to_deg {self.to_deg:g}')
        return self

    @property
    def middle_deg(self) -> float:
        """The bearing of its middle line."""
        return (self.from_deg + self.to_deg) / 2

    def holds(self, degrees: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        """Return which bearings lie inside; a bearing of 180 degrees is one of -180 too."""
        inside = (degrees >= self.from_deg) & (degrees < self.to_deg)
        return inside | (degrees == 180) if self.to_deg == 180 else inside

    def nearest(
        self, degrees: npt.NDArray[np.float32], metres: npt.NDArray[np.float32]
    ) -> float:
        """Return the nearest of the points at these bearings and distances; inf without one."""
        inside = self.holds(degrees)
        hits = metres[inside]
        if self.width_m is not None:
            off_rad = np.radians(degrees[inside] - self.middle_deg)
            in_lane = np.abs(hits * np.sin(off_rad)) <= self.width_m / 2
            hits = (hits * np.cos(off_rad))[in_lane]
        return float(hits.min(initial=math.inf))


class Bin(Part):
    """A word for all distances below a limit: one token instead of three."""

    word: Word
    below_m: Positive


def _ascend(bins: tuple[Bin, ...]) -> tuple[Bin, ...]:
    limits = [b.below_m for b in bins]
    if any(a >= b for a, b in itertools.pairwise(limits)):
        raise ValueError(f'bins: below_m must ascend, not {limits}')
    return bins


Bins = Annotated[tuple[Bin, ...], Field(max_length=8), AfterValidator(_ascend)]


class Gaps(Part):
    """What counts as a gap between obstacles."""

    width_m: Positive
    """As wide as the robot and what it needs to its sides."""
    beyond_m: Positive
    """Free at least to this distance."""
    most: Annotated[int, Field(ge=1, le=4)] = 2
    """How many are said, the widest first."""


SECTORS = (
    Sector(name='left', from_deg=60, to_deg=120),
    Sector(name='ahead-left', from_deg=20, to_deg=60),
    Sector(name='ahead', from_deg=-20, to_deg=20),
    Sector(name='ahead-right', from_deg=-60, to_deg=-20),
    Sector(name='right', from_deg=-120, to_deg=-60),
)


class ScanSensor(SensorBase):
    """A planar lidar, summarised as the nearest distance in named sectors."""

    type: Literal['sensor_msgs/msg/LaserScan']
    mount_x_m: Annotated[float, Field(ge=-10, le=10)] = 0.0
    mount_y_m: Annotated[float, Field(ge=-10, le=10)] = 0.0
    """Where the laser is in base_link. The summary for the model takes no account of it."""
    mount_yaw_deg: Annotated[float, Field(ge=-180, le=180)] = 0.0
    """Yaw of the laser's frame in the base frame."""
    sectors: tuple[Sector, ...] = Field(default=SECTORS, min_length=1, max_length=16)
    far_m: Positive = 5.0
    """Beyond this, distances are worded as `far_word`: every digit is a token."""
    far_word: Word = 'far'
    bins: Bins = ()
    """Words instead of numbers, nearest first; beyond the last it is `far_word`."""
    gaps: Gaps | None = None
    """Gaps that the robot fits through are said by bearing."""
    open_beyond_m: Positive | None = None
    """The share of all bearings that are free to this distance is said, in tens of percent."""

    def say(self, fields: Scan, scene: Scene) -> tuple[Phrase, ...]:
        """Return `left 0.8`, `ahead far`, `right unknown` in the order of the sectors.

        Then, where they are asked for, `gap 20 deg right` and `open 60%`.
        """
        said = [
            Phrase(f'{sector.name} ' + distance(
                metres, self.bins, self.far_m, self.far_word, fields.range_max_m))
            for sector, metres in zip(self.sectors, nearest(self, fields), strict=True)
        ]
        if self.gaps is not None:
            said += [Phrase(text, 1) for text in _gaps(self, self.gaps, fields)]
        if self.open_beyond_m is not None:
            said.append(Phrase(f'open {_openness(fields, self.open_beyond_m)}', 2))
        return tuple(said)

    def draw(self, random: np.random.Generator) -> Scan:
        """Return a scan with one obstacle a sector, as often in one bin as in another."""
        # In the middle of each degree, so that no rounding moves a beam to the next sector.
        bearing = np.arange(-179.5, 180.0, dtype=np.float32)
        farthest_m = limits_m(self.bins, self.far_m)[-1]
        ranges = np.full(bearing.size, farthest_m, np.float32)
        for sector in self.sectors:
            at = np.abs(bearing - sector.middle_deg).argmin()
            ranges[at] = drawn_m(random, self.bins, self.far_m)
        return Scan(
            stamp_ns=0, frame_id='', angle_min_rad=math.radians(-179.5 - self.mount_yaw_deg),
            angle_increment_rad=math.radians(1.0), range_min_m=0.0,
            range_max_m=farthest_m * 2, ranges_m=ranges,
        )


def distance(
    metres: float, bins: tuple[Bin, ...], far_m: float, far_word: str, seen_m: float = math.inf
) -> str:
    """Return a distance as the word of its bin, as a number, as far, or unknown where NaN.

    Infinite is nothing as far as was seen, `seen_m`: `over 3.5` where that is not yet far.
    """
    if math.isnan(metres):
        return 'unknown'
    if metres == math.inf and seen_m < (bins[-1].below_m if bins else far_m):
        return f'over {math.floor(10 * seen_m) / 10:.1f}'
    for part in bins:
        if metres < part.below_m:
            return part.word
    return far_word if bins or metres > far_m else f'{metres:.1f}'


def limits_m(bins: tuple[Bin, ...], far_m: float) -> list[float]:
    """Return the limits between which distances are drawn, ascending."""
    limits = [b.below_m for b in bins]
    limits.append(max(far_m, *limits) * 1.5 if limits else far_m * 1.5)
    return [min(_NEAREST_M, limits[0] / 2), *limits]


def drawn_m(random: np.random.Generator, bins: tuple[Bin, ...], far_m: float) -> float:
    """Return a distance, as often in one bin as in another."""
    limits = limits_m(bins, far_m)
    band = int(random.integers(len(limits) - 1))
    return float(random.uniform(limits[band], limits[band + 1]))


def nearest(sensor: ScanSensor, scan: Scan) -> tuple[float, ...]:
    """Return the nearest obstacle of each sector in metres; inf when free, NaN when unknown."""
    usable, free = classify(scan)
    known, degrees = usable | free, _degrees(sensor, scan)
    at, metres = degrees[usable], scan.ranges_m[usable]
    return tuple(
        sector.nearest(at, metres) if (sector.holds(degrees) & known).any() else math.nan
        for sector in sensor.sectors
    )


def _degrees(sensor: ScanSensor, scan: Scan) -> FloatArray:
    bearing = bearings(scan) + math.radians(sensor.mount_yaw_deg)
    out: FloatArray = np.degrees(np.arctan2(np.sin(bearing), np.cos(bearing)))
    return out


def _open(scan: Scan, beyond_m: float) -> BoolArray:
    """Return at which beams it is free to a distance; unknown is not, nor what is out of range."""
    usable, free = classify(scan)
    return (free & (scan.range_max_m >= beyond_m)) | (usable & (scan.ranges_m > beyond_m))


def _openness(scan: Scan, beyond_m: float) -> str:
    usable, free = classify(scan)
    if not (usable | free).any():
        return 'unknown'
    return f'{10 * round(10 * float(_open(scan, beyond_m).mean()))}%'


def _gaps(sensor: ScanSensor, wanted: Gaps, scan: Scan) -> list[str]:
    """Return the widest gaps in words: `gap ahead`, `gap 40 deg left`, or `no gap`.

    A gap is a stretch of neighbouring beams that are all free to `beyond_m` and as wide there;
    and on the way there along its middle nothing stands within the robot's width.
    """
    usable, free = classify(scan)
    if not (usable | free).any():
        return ['gap unknown']
    way = _once_around(_open(scan, wanted.beyond_m), abs(scan.angle_increment_rad))
    at_rad, hits_m = bearings(scan)[usable], scan.ranges_m[usable]
    edges = np.flatnonzero(np.diff(np.concatenate([[0], way.astype(np.int8), [0]])))
    step = abs(scan.angle_increment_rad)
    stretches = [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    around = step * way.size > 2 * math.pi - 1.5 * step
    if around and len(stretches) > 1 and stretches[0][0] == 0 and stretches[-1][1] == way.size:
        first, last = stretches.pop(0), stretches.pop()
        stretches.append((last[0], last[1] + first[1]))
    found = []
    for begin, end in stretches:
        spread = min(step * (end - begin), math.pi)
        across_m = 2 * wanted.beyond_m * math.sin(spread / 2)
        middle = scan.angle_min_rad + scan.angle_increment_rad * (begin + end - 1) / 2
        if around and end - begin == way.size:  # free all around: no bearing is its middle
            middle = -math.radians(sensor.mount_yaw_deg)
        along_m, aside_m = hits_m * np.cos(at_rad - middle), hits_m * np.sin(at_rad - middle)
        blocked = (
            (along_m > 0) & (along_m < wanted.beyond_m) & (np.abs(aside_m) < wanted.width_m / 2))
        if across_m >= wanted.width_m and not blocked.any():
            degrees = math.degrees(middle) + sensor.mount_yaw_deg
            found.append((step * (end - begin), math.remainder(degrees, 360)))
    found.sort(key=lambda gap: (-gap[0], abs(gap[1]), gap[1]))
    return [_gap(degrees) for _, degrees in found[:wanted.most]] or ['no gap']


def _once_around(way: BoolArray, step_rad: float) -> BoolArray:
    """Return one turn of a scan that goes on over it: free where it is in every turn."""
    if step_rad * way.size <= 2 * math.pi:
        return way
    turn = round(2 * math.pi / step_rad)
    rest = np.ones(-way.size % turn, np.bool_)
    out: BoolArray = np.concatenate([way, rest]).reshape(-1, turn).all(axis=0)
    return out


def _gap(degrees: float) -> str:
    tens = round(abs(degrees) / 10) * 10
    if tens in (0, 180):
        return 'gap behind' if tens else 'gap ahead'
    return f'gap {tens} deg {"left" if degrees > 0 else "right"}'


def classify(scan: Scan) -> tuple[BoolArray, BoolArray]:
    """Return masks of shape (beams,): a hit at a usable distance; nothing within range."""
    ranges = scan.ranges_m
    usable = np.isfinite(ranges) & (ranges >= scan.range_min_m) & (ranges <= scan.range_max_m)
    free = np.isposinf(ranges) | (np.isfinite(ranges) & (ranges > scan.range_max_m))
    return usable, free


def bearings(scan: Scan) -> FloatArray:
    """Return the bearing of each beam in the laser's frame, radians, shape (beams,)."""
    index: FloatArray = np.arange(scan.ranges_m.size, dtype=np.float32)
    index *= np.float32(scan.angle_increment_rad)
    index += np.float32(scan.angle_min_rad)
    return index
