"""Odometry -> how the base moves now, in one or two words and one or two numbers."""

from __future__ import annotations

from smallm_ros.core.observation import Odometry

STANDING_M_S = 0.02
STANDING_RAD_S = 0.05
"""Below these a base stands: wheel encoders are no better."""


def text(moved: Odometry) -> str:
    """Return `standing`, `ahead 0.2`, `back 0.1 turning left`: metres a second to one decimal."""
    words = []
    if abs(moved.linear_x_m_s) >= STANDING_M_S:
        words.append(f'{"ahead" if moved.linear_x_m_s > 0 else "back"} '
                     f'{abs(moved.linear_x_m_s):.1f}')
    if abs(moved.angular_z_rad_s) >= STANDING_RAD_S:
        words.append(f'turning {"left" if moved.angular_z_rad_s > 0 else "right"}')
    return ' '.join(words) or 'standing'
