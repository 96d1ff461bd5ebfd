"""Picture -> how bright and how blurred; never what it shows.

The language model is blind, and the words say so. Of raw pictures some whole rows are measured, of
compressed ones nothing but their size and kind: no decoder is among our packages.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from smallm_ros.core.sensor import Phrase, Scene, SensorBase, Word
from smallm_ros.core.summary.words import Level, Levels, spread, worded

UNSEEN = 'contents not seen'
REACH_PX = 8
"""Differences over so many pixels are what those of neighbours are compared with."""
NORMAL_MEDIAN = 0.6745
"""Median of the absolute value of a normal distribution with a deviation of 1."""
NOISY = 0.1
"""Noise that is more than this of all differences hides whether edges are sharp."""
FLAT = 0.01
"""A deviation of the brightness below this is a wall, a lens cap, a night: no edges to judge."""

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Picture:
    """What was measured of a sensor_msgs/Image."""

    stamp_ns: int
    brightness: float
    """Mean, from 0 (black) to 1 (white)."""
    contrast: float
    """Standard deviation of the same."""
    sharpness: float
    """1 where brightness steps from one pixel to the next, 1/8 where it takes eight or more. NaN
    where there is nothing to judge by."""


class PictureSensor(SensorBase):
    """A camera, of which the model is told how bright and blurred the picture is."""

    type: Literal['sensor_msgs/msg/Image']
    white: Annotated[int, Field(ge=1, le=65535)] | None = None
    """The brightest value of 16-bit pictures: 4095 of a 12-bit camera. mono16 has 65535 without
    it; 16UC1, which is mostly depth and then has no brightness, is refused without it."""
    bins: Levels = (
        Level(word='dark', below=10), Level(word='dim', below=25), Level(word='lit', below=80),
    )
    """Words for the brightness, `below` in percent of white."""
    top_word: Word = 'glaring'
    blurred_below: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Sharpness that counts as blurred: 0.2 is an edge smeared by a Gaussian of 2 pixels."""

    def say(self, fields: Picture, scene: Scene) -> tuple[Phrase, ...]:
        """Return `contents not seen`, `lit`, `blurred`; or `sharp`, `noisy`, `featureless`."""
        if fields.contrast < FLAT:
            edges = 'featureless'
        elif math.isnan(fields.sharpness):
            edges = 'noisy'
        else:
            edges = 'blurred' if fields.sharpness < self.blurred_below else 'sharp'
        light = worded(100 * fields.brightness, self.bins, self.top_word, 0, '% bright')
        return Phrase(UNSEEN), Phrase(light, 1), Phrase(edges, 2)

    def draw(self, random: np.random.Generator) -> Picture:
        """Return one as often of one brightness as of another; one in four is blurred."""
        sharpness = self.blurred_below * (0.5 if random.random() < 0.25 else 2.0)
        return Picture(0, spread(random, self.bins, 0.0, 100.0) / 100, 0.2, sharpness)


def measure(luma: FloatArray) -> tuple[float, float, float]:
    """Return (brightness, contrast, sharpness) of whole rows, shape (rows, columns), 0 to 1.

    Sharpness is the mean square of neighbours' differences over that of pixels 8 apart, times 8,
    both without what the sensor's noise adds: free of brightness, contrast and noise, which a
    variance of the Laplacian is not. The noise is taken from the median second difference, where
    edges, being few, do not count (Immerkaer, 1996, doi:10.1006/cviu.1996.0060, with a median).
    """
    brightness, contrast = float(luma.mean()), float(luma.std())
    if luma.shape[1] <= REACH_PX:
        return brightness, contrast, math.nan
    coarse = float(np.square(luma[:, REACH_PX:] - luma[:, :-REACH_PX]).mean())
    fine = float(np.square(np.diff(luma, axis=1)).mean())
    second = luma[:, 2::4] - 2 * luma[:, 1:-1:4] + luma[:, :-2:4]  # a quarter: the median is dear
    noise = 2 * (float(np.median(np.abs(second))) / NORMAL_MEDIAN) ** 2 / 6
    if noise >= NOISY * coarse:
        return brightness, contrast, math.nan
    return brightness, contrast, REACH_PX * (fine - noise) / (coarse - noise)


@dataclass(frozen=True, slots=True)
class CompressedPicture:
    """What can be told of a sensor_msgs/CompressedImage without decoding it."""

    stamp_ns: int
    kind: str
    """By its first bytes: `jpeg`, `png`, `webp`, or `unknown format`."""
    size_bytes: int
    whole: bool
    """Whether its end is there; True where its kind has none."""


class CompressedPictureSensor(SensorBase):
    """A camera behind a compression, of which nothing but kind and size is looked at."""

    type: Literal['sensor_msgs/msg/CompressedImage']

    def say(self, fields: CompressedPicture, scene: Scene) -> tuple[Phrase, ...]:
        """Return `contents and brightness not seen`, `jpeg`, `40 kB`, `cut short`."""
        said = [Phrase('contents and brightness not seen')]
        if not fields.size_bytes:
            return (*said, Phrase('empty'))
        if not fields.whole:
            said.append(Phrase('cut short'))
        said.append(Phrase(fields.kind, 1))
        size_kb = max(fields.size_bytes / 1000, 1.0)
        step = 10 ** math.floor(math.log10(size_kb))
        return (*said, Phrase(f'{int(size_kb / step) * step} kB', 2))

    def draw(self, random: np.random.Generator) -> CompressedPicture:
        """Return a whole JPEG of some size."""
        return CompressedPicture(0, 'jpeg', int(10 ** random.uniform(4.0, 5.5)), True)
