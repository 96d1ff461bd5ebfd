"""The layers of docs/architecture.md, held by parsing every import of the package.

An import that is only for types counts too: what a module names it knows.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = 'smallm_ros'
ROOT = Path(__file__).resolve().parent.parent

# What each part may name of ours. Nothing names what stands to its right in the picture.
LAYERS = {
    'steady': (),
    'process': (),
    'core': ('core',),
    'share': ('core',),
    'engine': ('core', 'steady', 'process', 'share', 'engine'),
    'record': ('core', 'steady', 'record'),
    'ros': ('core', 'steady', 'process', 'share', 'record', 'ros',
            'engine.client', 'engine.wire.default_socket'),
    'sim': ('core', 'steady', 'share', 'sim'),
    'replay': ('core', 'steady', 'share', 'engine', 'record', 'replay', 'ros.convert'),
    'bench': ('core', 'steady', 'process', 'share', 'engine', 'record', 'ros', 'sim', 'bench',
              'replay.report'),
    'cli': ('core', 'steady', 'process', 'share', 'engine', 'record', 'ros', 'sim', 'replay',
            'bench', 'cli'),
}

LIVE_ROS = ('ros', 'sim.sim_node', 'replay.live', 'cli.demo')
ROS_PACKAGES = (
    'action_msgs', 'ament_index_python', 'builtin_interfaces', 'diagnostic_msgs', 'geometry_msgs',
    'lifecycle_msgs', 'nav_msgs', 'rcl_interfaces', 'rclpy', 'rosgraph_msgs', 'sensor_msgs',
    'std_msgs', 'std_srvs', 'tf2_msgs', 'tf2_ros',
)

# What of the world is named where. The machine's clock is `time`, wholly.
HOMES = {
    'time': ('steady',),
    'datetime.datetime': (),
    'llama_cpp': ('engine.model', 'bench'),
    'llguidance': ('engine',),
    'xllamacpp': ('bench',),
    'msgpack': ('engine.wire',),
    'mcap': ('record',),
    'pynvml': ('engine.gpu',),
    'mujoco': ('sim',),
    'rosbags': ('replay',),
    'plotly': ('replay', 'bench'),
    'huggingface_hub': ('engine.registry', 'cli.models'),
    **dict.fromkeys(ROS_PACKAGES, LIVE_ROS),
}
CORE_MAY_NAME = ('numpy', 'pydantic', 'yaml')
WITHOUT_ROS = ('ros.convert',)  # inside ros/, but a bag reader uses it where no ROS is
WITHOUT_ENGINE = 'ros.watchdog_node'  # it holds when every other process is stopped


@dataclass(frozen=True, slots=True)
class Import:
    """One name that a module imports, both dotted; ours without the package's name in front."""

    importer: str
    line: int
    target: str
    ours: bool

    def __str__(self) -> str:
        return f'{self.importer}:{self.line} imports {self.target}'


def within(name: str, places: tuple[str, ...]) -> bool:
    """Whether the dotted `name` is one of `places` or lies inside one."""
    return any(name == place or name.startswith(place + '.') for place in places)


def sources() -> dict[str, str]:
    """Return the text of every module of the package, by its name without the package's."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob('*.py')):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix('').parts
        name = '.'.join(part for part in parts if part != '__init__')
        found[name] = path.read_text(encoding='utf-8')
    return found


def imports(module: str, source: str) -> Iterator[Import]:
    """Yield what `module` imports, at the top, in a function or by import_module('name')."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{module}:{node.lineno}: imports are absolute'
            names = [f'{node.module}.{alias.name}' for alias in node.names]
        elif isinstance(node, ast.Call) and called(node) == 'import_module' \
                and isinstance(node.args[0], ast.Constant):
            names = [str(node.args[0].value)]
        else:
            continue
        for name in names:
            ours = within(name, (PACKAGE,))
            target = name.removeprefix(PACKAGE).removeprefix('.') if ours else name
            yield Import(module, node.lineno, target, ours)


def called(node: ast.Call) -> str:
    """Return the last part of the name of what is called."""
    return getattr(node.func, 'attr', '') or getattr(node.func, 'id', '')


def layer_violations(found: Import) -> Iterator[str]:
    """Say where a module of ours names one to its right."""
    layer = found.importer.split('.')[0]
    if found.ours and found.importer and found.target not in ('', '__version__'):
        if layer not in LAYERS:
            yield f'{found.importer}: in no layer of LAYERS'
        elif not within(found.target, LAYERS[layer]):
            yield f'{found}: {layer} may name {", ".join(LAYERS[layer]) or "nothing of ours"}'


def home_violations(found: Import) -> Iterator[str]:
    """Say where a package of the world is named outside its home."""
    if found.ours:
        return
    for package, homes in HOMES.items():
        if within(found.target, (package,)) and not within(found.importer, homes):
            yield f'{found}: {package} belongs to {", ".join(homes) or "nobody"}'
        elif within(found.target, (package,)) and homes == LIVE_ROS \
                and within(found.importer, WITHOUT_ROS):
            yield f'{found}: it must load where no ROS is'
    top = found.target.split('.')[0]
    if within(found.importer, ('core',)) and top not in CORE_MAY_NAME \
            and top not in sys.stdlib_module_names:
        yield f'{found}: core names the standard library and {", ".join(CORE_MAY_NAME)}'


def reached(start: str, modules: Mapping[str, str]) -> dict[str, str]:
    """Return every module of ours that importing `start` loads, each with who asked for it."""
    found: dict[str, str] = {}
    queue = [(start, start)]
    while queue:
        module, asked_by = queue.pop()
        if module in found or module not in modules:
            continue
        found[module] = asked_by
        parent = module.rpartition('.')[0]
        queue.append((parent, module))
        for each in imports(module, modules[module]):
            if each.ours:
                queue += [(each.target, module), (each.target.rpartition('.')[0], module)]
    return found


def violations(modules: Mapping[str, str]) -> list[str]:
    """Return a sentence for everything in `modules` that breaks a rule."""
    said = []
    for module, source in modules.items():
        for found in imports(module, source):
            said += [*layer_violations(found), *home_violations(found)]
    for module, asked_by in reached(WITHOUT_ENGINE, modules).items():
        if within(module, ('engine',)):
            said.append(f'{WITHOUT_ENGINE} loads {module}, through {asked_by}')
    return said


def test_the_package_keeps_its_layers() -> None:
    assert violations(sources()) == []


def test_every_part_is_in_the_table() -> None:
    parts = {name.split('.')[0] for name in sources() if name}
    assert parts <= set(LAYERS)
    assert WITHOUT_ENGINE in sources()
    assert {'ros.convert', 'engine.model', 'engine.wire', 'steady'} <= set(sources())


PLANTED = [
    ('core.gate', 'import time', 'time belongs to steady'),
    ('core.gate', 'from datetime import datetime', 'datetime.datetime belongs to nobody'),
    ('core.gate', 'def f():\n    from time import sleep', 'core.gate:2 imports time.sleep'),
    ('core.gate', 'from smallm_ros import steady', 'core may name core'),
    ('core.gate', 'from smallm_ros.engine.wire import frame', 'core may name core'),
    ('core.gate', 'import requests', 'core names the standard library'),
    ('engine.worker', 'import llama_cpp', 'llama_cpp belongs to engine.model'),
    ('engine.client', 'from msgpack import packb', 'msgpack belongs to engine.wire'),
    ('engine.worker', 'import rclpy.node', 'rclpy belongs to'),
    ('engine.worker', 'from smallm_ros.record.writer import RecordWriter', 'engine may name'),
    ('ros.convert', 'from sensor_msgs.msg import LaserScan', 'must load where no ROS is'),
    ('ros.policy_node', 'from smallm_ros.engine.worker import main', 'ros may name'),
    ('ros.policy_node', 'import mcap.writer', 'mcap belongs to record'),
    ('sim.world', 'import rclpy', 'rclpy belongs to'),
    ('sim.world', 'from smallm_ros.ros import convert', 'sim may name'),
    ('replay.runner', 'from smallm_ros.ros import policy_node', 'replay may name'),
    ('replay.runner', 'import mujoco', 'mujoco belongs to sim'),
    ('replay.runner', "importlib.import_module('tf2_msgs.msg')", 'tf2_msgs belongs to'),
    ('novel.thing', 'import smallm_ros.core.gate', 'in no layer'),
    ('ros.watchdog_node', 'from smallm_ros.ros import params\n', None),
]


@pytest.mark.parametrize(('module', 'source', 'sentence'), PLANTED)
def test_a_planted_violation_is_caught(module: str, source: str, sentence: str | None) -> None:
    said = violations({module: source})
    if sentence is None:
        assert said == []
    else:
        assert any(sentence in each for each in said), said


def test_the_watchdogs_way_to_the_engine_is_found_through_others() -> None:
    modules = {
        'ros': '',
        'ros.watchdog_node': 'from smallm_ros.ros.params import declare',
        'ros.params': 'from smallm_ros.engine.client import EngineClient',
        'engine': '',
        'engine.client': '',
    }
    assert 'ros.watchdog_node loads engine.client, through ros.params' in violations(modules)
