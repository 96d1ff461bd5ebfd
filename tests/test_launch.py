"""Both launch files under the real launch service, with fakes in place of the four programs.

`launch` and `launch_ros` are not on PyPI: without a ROS installation all but the first test are
skipped, and say so. docs/install.md has the real `ros2 launch`.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from smallm_ros.core.clock import SECOND
from tests.fakes.engine_process import wait_for

ROOT = Path(__file__).resolve().parent.parent
ROBOT = 'robot.launch.py'
SIMULATION = 'simulation.launch.py'
NOT_INSTALLED = 'launch and launch_ros come with a ROS installation, not from PyPI'

# What `ros2 launch FILE name:=value` does, less the search for the package.
LAUNCH = """
import sys
from launch import LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
file, *words = sys.argv[1:]
service = LaunchService(noninteractive=True)
service.include_launch_description(IncludeLaunchDescription(
    PythonLaunchDescriptionSource(file),
    launch_arguments=[tuple(word.split(':=', 1)) for word in words],
))
sys.exit(service.run())
"""

# A program that writes down how it was started, each start on a line, and ends.
FAKE = f"""#!{sys.executable}
import json, pathlib, sys
import yaml
parameters = {{}}
for flag, value in zip(sys.argv, sys.argv[1:]):
    if flag == '--params-file':
        content = yaml.safe_load(pathlib.Path(value).read_text())
        for named in content.values():
            parameters.update(named['ros__parameters'])
    elif flag == '-p':
        name, _, text = value.partition(':=')
        parameters[name] = yaml.safe_load(text)
here = pathlib.Path(__file__)
with open(here.parent / (here.name + '.starts'), 'a') as out:
    out.write(json.dumps({{'words': sys.argv[1:], 'parameters': parameters}}) + chr(10))
sys.exit(4 if here.name == 'smallm_engine' else 0)
"""


@pytest.mark.parametrize('name', ['robot.yaml', 'simulation.yaml'])
def test_parameters_reach_a_namespaced_node_and_do_not_repeat_arguments(name: str) -> None:
    content = yaml.safe_load((ROOT / 'config' / name).read_text(encoding='utf-8'))
    assert set(content) == {'/**'}
    parameters = content['/**']['ros__parameters']
    assert parameters
    assert not {'policy', 'socket', 'use_sim_time', 'auto_arm', 'record_dir'} & set(parameters)


@dataclass(frozen=True, slots=True)
class Start:
    """How a program was started."""

    words: list[str]
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Launcher:
    """Runs a launch file with fakes on the PATH; `bin` is where these are and write."""

    bin: Path

    def launch(self, name: str, **arguments: str) -> subprocess.Popen[str]:
        """Start launching `name`."""
        words = [f'{key}:={value}' for key, value in arguments.items()]
        return subprocess.Popen(
            [sys.executable, '-c', LAUNCH, str(ROOT / 'launch' / name), *words],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )

    def once(self, name: str, **arguments: str) -> dict[str, Start]:
        """Launch `name` and wait until its programs have ended; return how each was started."""
        with self.launch(name, respawn='false', **arguments) as process:
            output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
        assert all(len(starts) == 1 for starts in self.starts().values())
        return {program: starts[0] for program, starts in self.starts().items()}

    def starts(self) -> dict[str, list[Start]]:
        """Return the starts of each program so far."""
        return {
            file.stem: [
                Start(**json.loads(line))
                for line in file.read_text(encoding='utf-8').splitlines()
            ]
            for file in self.bin.glob('*.starts')
        }


@pytest.fixture
def launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launcher:
    """A launcher; skips where there is no launch."""
    pytest.importorskip('launch.actions', reason=NOT_INSTALLED)  # `launch` alone is our folder
    pytest.importorskip('launch_ros.actions', reason=NOT_INSTALLED)
    for name in ('smallm_engine', 'policy_node', 'watchdog_node', 'sim_node'):
        (tmp_path / name).write_text(FAKE, encoding='utf-8')
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=':')
    monkeypatch.setenv('ROS_LOG_DIR', str(tmp_path / 'log'))
    return Launcher(tmp_path)


def test_a_robot_is_an_engine_and_two_nodes(launcher: Launcher) -> None:
    started = launcher.once(ROBOT, policy='/etc/p.yaml', record_dir='/var/r', socket='/run/e.sock')
    assert set(started) == {'smallm_engine', 'watchdog_node', 'policy_node'}
    policy = started['policy_node'].parameters
    assert policy['policy'] == '/etc/p.yaml'
    assert policy['socket'] == '/run/e.sock'
    assert policy['record_dir'] == '/var/r'
    assert policy['autostart'] is True
    assert policy['use_sim_time'] is False
    watchdog = started['watchdog_node'].parameters
    assert watchdog['policy'] == '/etc/p.yaml'
    assert watchdog['twist_stamped'] is True
    assert 'auto_arm' not in watchdog


def test_the_arguments_become_the_engines_command_line(launcher: Launcher) -> None:
    started = launcher.once(
        ROBOT, policy='p', model='/m.gguf', socket='/s', n_gpu_layers='12', use_mlock='true',
        context='2048', kv_type='q8_0', template='chatml', threads='3',
        check_ms='20',
    )
    assert started['smallm_engine'].words == [
        '--model', '/m.gguf', '--template', 'chatml', '--socket', '/s', '--n-gpu-layers', '12',
        '--context', '2048', '--kv-type', 'q8_0', '--threads', '3', '--check-ms', '20',
        '--use-mlock',
    ]


def test_arguments_that_are_not_given_are_left_to_the_engine(launcher: Launcher) -> None:
    words = launcher.once(ROBOT, policy='p')['smallm_engine'].words
    assert not {'--model', '--template', '--threads', '--socket'} & set(words)


def test_an_engine_that_already_runs_is_used(launcher: Launcher) -> None:
    assert 'smallm_engine' not in launcher.once(ROBOT, policy='p', engine='false')


def test_a_robot_needs_a_policy(launcher: Launcher) -> None:
    with launcher.launch(ROBOT) as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "missing required argument 'policy'" in output
    assert launcher.starts() == {}


@pytest.mark.parametrize('auto_arm', ['true', 'false'])
def test_a_simulation_is_a_robot_with_a_world(launcher: Launcher, auto_arm: str) -> None:
    started = launcher.once(
        SIMULATION, seed='7', auto_arm=auto_arm, namespace='blue', template='chatml', threads='3')
    assert set(started) == {'smallm_engine', 'watchdog_node', 'policy_node', 'sim_node'}
    assert started['sim_node'].parameters['seed'] == 7
    words = started['smallm_engine'].words
    assert words[words.index('--template') + 1] == 'chatml'
    assert words[words.index('--threads') + 1] == '3'
    assert started['watchdog_node'].parameters['auto_arm'] is (auto_arm == 'true')
    assert started['watchdog_node'].parameters['use_sim_time'] is True
    assert started['policy_node'].parameters['policy'].endswith('policies/explorer.yaml')
    assert '__ns:=/blue' in started['policy_node'].words
    assert '__node:=policy_node' in started['policy_node'].words


def test_a_dead_node_comes_back_and_a_dead_engine_takes_nobody_along(launcher: Launcher) -> None:
    nodes = ('policy_node', 'watchdog_node')
    with launcher.launch(ROBOT, policy='p') as process:
        wait_for(
            lambda: all(len(launcher.starts().get(node, [])) >= 2 for node in nodes), 60 * SECOND)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert len(launcher.starts()['smallm_engine']) == 1
