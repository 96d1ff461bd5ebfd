"""Hostile commands through the parser into a driving gate, and through the real node."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from smallm_ros.core.facts import CommandArrival
from tests.proofs import hostile


def test_no_text_raises_leaves_the_envelope_or_moves_what_it_must_not() -> None:
    seen = hostile.assault(2_000, seed=5)
    assert sum(seen.texts.values()) == 2_000
    assert set(seen.texts) == {make.__name__ for make in hostile.MAKERS}
    assert sum(seen.dropped.values()) > 800
    assert seen.refused > 300
    assert seen.applied > 20, 'honest ones among them are taken'


class Ear:
    """A subscription whose messages are put there by hand; `take` asks no more of one."""

    def __init__(self) -> None:
        self.waiting: list[Any] = []
        self.msg_type = None
        self.handle = self

    def __enter__(self) -> Ear:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def take_message(self, kind: object, raw: bool) -> tuple[Any, None] | None:
        return (self.waiting.pop(0), None) if self.waiting else None


@pytest.mark.ros
def test_no_text_gets_through_the_real_node_that_should_not() -> None:
    rclpy = pytest.importorskip('rclpy')

    from smallm_ros.ros.watchdog_node import WatchdogNode

    file = Path(__file__).parent.parent / 'fakes' / 'round_robot.yaml'
    rclpy.init(args=['--ros-args', '-p', f'policy:={file}'])
    node = WatchdogNode()
    try:
        ear = Ear()
        node._commands = ear

        def take(text: str, now_ns: int) -> CommandArrival | None:
            ear.waiting.append(SimpleNamespace(data=text))
            before = node._heard.command
            node._take([])
            assert not ear.waiting, 'not taken'
            taken = node._heard.command
            if taken is None or taken is before:
                return None
            return CommandArrival(taken.command, now_ns)  # the trace's time, not the machine's

        seen = hostile.assault(2_000, seed=6, take=take)
        assert seen.applied > 20
        assert sum(seen.dropped.values()) > 800
    finally:
        node.close()
        node.destroy_node()
        rclpy.shutdown()
