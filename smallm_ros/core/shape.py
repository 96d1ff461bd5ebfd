"""The robot's outline with its margin, and how far it gets or turns before it touches a point.

A disc needs its radius only. A polygon counts as its convex hull. Driving, its support function
(how far it reaches in a direction) is taken over every orientation that it can have, so the region
that it sweeps is bounded by half planes: fewer of them make the region larger, never smaller.
Turning on the spot, a table by degree and distance says how far the next contact is. Whatever is
rounded is rounded towards touching. Made once for each footprint; metres, radians, base_link.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

_SUPPORTS = 1440
_DIRECTIONS = np.radians(np.arange(0.0, 360.0, 10.0))
_ORIENTATION_RAD = math.radians(5.0)
"""Orientations are looked at no further apart than this."""
_RINGS = 64
_FIRST = 32
"""So many points are looked at before the others are sorted out."""
_SAME = 1e-9


def aside(bearings: Floats, low_rad: float, high_rad: float) -> Floats:
    """Angle from each bearing to the nearest heading in the range; 0 inside, at most pi."""
    half = (high_rad - low_rad) / 2
    away = np.mod(bearings - (low_rad + high_rad) / 2 + math.pi, 2 * math.pi) - math.pi
    return np.maximum(np.abs(away) - half, 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """A footprint and the margin around it; one object for each, `of` makes it once."""

    round: bool
    radius_m: float
    """Of the farthest corner."""
    margin_m: float
    corners: Floats
    """Shape (n, 2): the hull, counter-clockwise; of a disc none."""
    normals: Floats
    """Shape (n, 2): outwards, of the side after each corner."""
    offsets_m: Floats
    """Of the sides from base_link."""
    supports_m: Floats
    """Upper bounds of how far it reaches in the directions of each quarter of a degree."""
    turns_rad: Floats
    """Shape (2, rings, 360): free turn, left and right, by a point's distance and bearing."""

    @classmethod
    def of(
        cls, footprint: tuple[tuple[float, float], ...] | None, radius_m: float, margin_m: float,
    ) -> Shape:
        """Return the shape of a polygon, or of a disc where there is none."""
        return _made(footprint, radius_m, margin_m)

    @property
    def reach_m(self) -> float:
        """Radius of the disc around base_link that contains it all."""
        return self.radius_m + self.margin_m

    def way_m(
        self, points: Floats, low_rad: float, high_rad: float, about_rad: float, grown_m: float,
    ) -> float:
        """Return how far it gets towards the orientations of a range plus `about_rad` (0 or pi).

        The way's end is s * (a direction of the cone), so the region swept up to s has the support
        s * sigma + support of the body + margin, where sigma is the cosine to the nearest of the
        cone's directions, at least 0. A point is touched at the least s for which it is inside in
        every direction. One that is inside already blocks the headings that bring nearer the side
        of the body that it is outside of, or the least inside of.
        """
        first, last = low_rad + about_rad, high_rad + about_rad
        grow = self.margin_m + grown_m
        reach = self.radius_m + grow
        middle, half = (first + last) / 2, (last - first) / 2
        along = points[0] * math.cos(middle) + points[1] * math.sin(middle)
        across = np.abs(points[1] * math.cos(middle) - points[0] * math.sin(middle))
        beside = across * math.cos(half) - along * math.sin(half)  # of the cone's nearer edge
        near = np.flatnonzero((beside < reach) & (along > -reach))
        points, along, across, beside = points[:, near], along[near], across[near], beside[near]
        planes = self._planes(low_rad, high_rad, first, last, grow)
        # The disc around it touches earlier: what that touches later than this does, can wait.
        ahead = np.where(beside > 0.0, along * math.cos(half) + across * math.sin(half),
                         np.hypot(along, across))
        earlier = ahead - np.sqrt(reach * reach - np.maximum(beside, 0.0) ** 2)
        if near.size <= 2 * _FIRST:
            return self._touch_m(points, earlier, planes, first, last)
        begin = np.argpartition(earlier, _FIRST)[:_FIRST]
        free = self._touch_m(points[:, begin], earlier[begin], planes, first, last)
        rest = earlier < free
        return min(free, self._touch_m(points[:, rest], earlier[rest], planes, first, last))

    def _planes(
        self, low_rad: float, high_rad: float, first: float, last: float, grow_m: float,
    ) -> tuple[Floats, Floats, Floats]:
        """Return directions as rows, how far the body reaches in each, and sigma."""
        across = math.pi / 2
        normals = np.concatenate((_DIRECTIONS, (first, last, first - across, last + across)))
        return (
            np.stack((np.cos(normals), np.sin(normals)), axis=1),
            self._support_m(normals, low_rad, high_rad) + grow_m,
            np.cos(aside(normals, first, last)),
        )

    def _touch_m(
        self, points: Floats, earlier: Floats, planes: tuple[Floats, Floats, Floats],
        first: float, last: float,
    ) -> float:
        """Return the least way after which one of the points is inside; never `earlier`."""
        directions, limits, sigma = planes
        ahead = sigma > _SAME
        out = _dot(directions, points) - limits[:, None]
        way = (out[ahead] / sigma[ahead, None]).max(axis=0, initial=-np.inf)
        way[(out[~ahead] > 0.0).any(axis=0)] = np.inf
        inside = np.flatnonzero(way <= 0.0)
        way = np.maximum(way, earlier)
        if inside.size:
            depth = _dot(self.normals, points[:, inside]) - self.offsets_m[:, None]
            side = depth.argmax(axis=0)
            facing = np.arctan2(self.normals[side, 1], self.normals[side, 0])
            nearer = np.cos(aside(facing, first, last)) > _SAME
            way[inside] = np.where(nearer, 0.0, np.inf)
        return float(way.min(initial=np.inf))

    def _support_m(self, directions: Floats, low_rad: float, high_rad: float) -> Floats:
        """Return how far it reaches in each direction, over every orientation of the range."""
        count = math.ceil((high_rad - low_rad) / _ORIENTATION_RAD) + 1
        turned = directions[:, None] - np.linspace(low_rad, high_rad, count)
        place = np.floor(np.mod(turned, 2 * math.pi) * (_SUPPORTS / (2 * math.pi)))
        reach = self.supports_m[place.astype(np.int64) % _SUPPORTS].max(axis=1)
        # Between two samples a corner can reach further, by its arc's height.
        arc = (high_rad - low_rad) / max(count - 1, 1)
        reach += self.radius_m * (1.0 - math.cos(arc / 2))
        out: Floats = np.minimum(reach, self.radius_m)
        return out

    def turn_rad(
        self, ranges_m: Floats, bearings_rad: Floats, grown_m: float, *, left: bool,
    ) -> float:
        """Return how far it turns on the spot until one is nearer than the margin and than now.

        Each point may be anywhere within `grown_m`.
        """
        near = ranges_m - grown_m < self.reach_m
        if not bool(near.any()):
            return math.inf
        ranges = ranges_m[near]
        if grown_m > 0.0 and grown_m >= float(ranges.min()):
            return 0.0
        ring = ((ranges - grown_m) * (_RINGS / self.reach_m)).astype(np.int64)
        off = np.arcsin(grown_m / ranges) if grown_m > 0.0 else np.zeros(ranges.size)
        free = np.full(ranges.size, np.inf)
        for bearing in (bearings_rad[near] + way * off for way in (-1, 0, 1)):
            degree = np.floor(np.degrees(bearing)).astype(np.int64) % 360
            free = np.minimum(free, self.turns_rad[0 if left else 1, ring, degree])
        return float((free - 2.0 * off).min())


def _dot(directions: Floats, points: Floats) -> Floats:
    """Return the scalar products, without BLAS: its threads would wait for busy cores."""
    out: Floats = directions[:, :1] * points[0] + directions[:, 1:] * points[1]
    return out


_ZERO = np.zeros(360)
_NONE = np.zeros((0, 2))


@functools.lru_cache(maxsize=16)
def _made(
    footprint: tuple[tuple[float, float], ...] | None, radius_m: float, margin_m: float,
) -> Shape:
    if footprint is None:
        return Shape(True, radius_m, margin_m, _NONE, _NONE, _ZERO, _ZERO, _ZERO)
    corners = _hull(footprint)
    sides = np.roll(corners, -1, axis=0) - corners
    normals = np.stack((sides[:, 1], -sides[:, 0]), axis=1) / np.hypot(*sides.T)[:, None]
    offsets = (corners * normals).sum(axis=1)
    radius = float(np.hypot(*corners.T).max())
    angles = np.arange(_SUPPORTS + 1) * (2 * math.pi / _SUPPORTS)
    reach = (np.stack((np.cos(angles), np.sin(angles)), axis=1) @ corners.T).max(axis=1)
    supports = np.maximum(reach[:-1], reach[1:]) + (
        radius * (1.0 - math.cos(math.pi / _SUPPORTS)))
    turns = _turns_rad(corners, normals, margin_m, radius + margin_m)
    return Shape(False, radius, margin_m, corners, normals, offsets, supports, turns)


def _hull(points: tuple[tuple[float, float], ...]) -> Floats:
    """Return the convex hull, counter-clockwise, without corners that turn nowhere."""
    def chain(ordered: list[tuple[float, float]]) -> list[tuple[float, float]]:
        out: list[tuple[float, float]] = []
        for x, y in ordered:
            while len(out) > 1 and (
                (out[-1][0] - out[-2][0]) * (y - out[-2][1])
                - (out[-1][1] - out[-2][1]) * (x - out[-2][0])
            ) <= 0:
                out.pop()
            out.append((x, y))
        return out[:-1]
    ordered = sorted(set(points))
    return np.array(chain(ordered) + chain(ordered[::-1]), dtype=np.float64)


def _turns_rad(corners: Floats, normals: Floats, margin_m: float, reach_m: float) -> Floats:
    """Return, by side, ring and degree, how far a turn stays as clear as the margin and as now."""
    fine = np.radians(np.arange(0.0, 361.0, 0.125))
    edge = _rim_m(fine, corners, normals, margin_m)
    by_degree = np.stack([edge[k:k + 2880:1] for k in range(9)])[:, ::8]
    most, least = by_degree.max(axis=0), by_degree.min(axis=0)
    peaks = np.floor(np.degrees(np.arctan2(corners[:, 1], corners[:, 0]))).astype(np.int64) % 360
    np.maximum.at(most, peaks, np.hypot(*corners.T) + margin_m)
    begin, end = edge[0:2880:8], edge[8:2888:8]
    degrees = np.arange(360)
    out = np.empty((2, _RINGS, 360))
    for side, step in ((0, -1), (1, 1)):
        met = most[(degrees[:, None] + step * degrees) % 360]  # by degree, then degrees turned
        away = (end if step < 0 else begin) >= most - _SAME
        for ring in range(_RINGS):
            nearest = np.maximum(ring * reach_m / _RINGS, least)
            hit = met > nearest[:, None] + 1e-6
            hit[:, 0] &= ~away
            turned = np.maximum(hit.argmax(axis=1) - 1, 0) * (math.pi / 180)
            out[side, ring] = np.where(hit.any(axis=1), turned, np.inf)
    return out


def _rim_m(directions: Floats, corners: Floats, normals: Floats, margin_m: float) -> Floats:
    """Return how far the footprint with its rounded margin reaches along each ray."""
    ray = np.stack((np.cos(directions), np.sin(directions)), axis=1)
    past = ray[:, :1] * corners[:, 1] - ray[:, 1:] * corners[:, 0]
    with np.errstate(invalid='ignore', divide='ignore'):
        arcs = np.where(
            np.abs(past) <= margin_m,
            ray @ corners.T + np.sqrt(np.maximum(margin_m ** 2 - past ** 2, 0.0)), 0.0)
        starts = corners + margin_m * normals
        sides = np.roll(corners, -1, axis=0) - corners
        length = np.hypot(*sides.T)
        along = ray @ normals.T
        far = np.where(along > _SAME, (starts * normals).sum(axis=1) / along, 0.0)
        where = ((ray[:, None] * far[..., None] - starts) * sides).sum(axis=2) / length
        lines = np.where((where >= -1e-9) & (where <= length + 1e-9), far, 0.0)
    out: Floats = np.maximum(arcs, lines).max(axis=1)
    return out


def edge_m(shape: Shape, directions: Floats) -> Floats:
    """Return how far it is from base_link to the footprint's edge in each direction."""
    if shape.round:
        return np.full(directions.shape, shape.radius_m)
    along = _dot(np.stack((np.cos(directions), np.sin(directions)), axis=1), shape.normals.T)
    with np.errstate(divide='ignore'):
        out: Floats = np.where(along > _SAME, shape.offsets_m / along, np.inf).min(axis=1)
    return out
