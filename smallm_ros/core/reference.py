"""Observations over which the engine measures the model's bias (`policy.Prior`).

Either drawn from the policy's own summary space, by seed: what the robot might see. They pass
through the real summarisers, so their texts are those that the model will read. Or free of
content: of the same form, and what stands for the values says nothing.
"""

from __future__ import annotations

import numpy as np

from smallm_ros.core.observation import Observation, Phrase, Quality, Reading, Received
from smallm_ros.core.observe import observe
from smallm_ros.core.policy import Policy

CONTENT_FREE = ('N/A', '[MASK]', '')
"""What stands for a value that says nothing: Zhao et al., 2021, arXiv:2102.09690, section 5."""


def draw(policy: Policy, seed: int, count: int) -> tuple[Observation, ...]:
    """Return `count` observations in which every sensor is fresh; equal for equal seeds."""
    random = np.random.default_rng(seed)
    return tuple(
        observe(
            policy,
            {name: Received(name, sensor.draw(random), 0, 0)
             for name, sensor in policy.sensors.items()},
            now_ns=0, ros_now_ns=0,
        )
        for _ in range(count)
    )


def content_free(policy: Policy) -> tuple[Observation, ...]:
    """Return the observations in which every sensor says `N/A`, `[MASK]`, nothing."""
    return tuple(
        Observation(0, 0, tuple(
            Reading(
                sensor=name, phrases=(Phrase(nothing),), priority=sensor.priority,
                required=sensor.required, quality=Quality.FRESH, arrival_ns=0, arrival_age_ns=0,
                stamp_ns=0, stamp_age_ns=0,
            )
            for name, sensor in policy.sensors.items()
        ))
        for nothing in CONTENT_FREE
    )
