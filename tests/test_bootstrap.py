"""The first minute of a stranger: what `make` says where it cannot work, in one line."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def bootstrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module that believes to be in an empty checkout."""
    spec = importlib.util.spec_from_file_location('bootstrap', ROOT / 'tools' / 'bootstrap.py')
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ('setup.py', 'constraints.txt', 'tools/bootstrap.py'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    venv = tmp_path / '.venv'
    for name, path in {
        'ROOT': tmp_path, 'VENV': venv, 'PYTHON': venv / 'bin' / 'python',
        'LOG': venv / 'setup.log', 'IDENTITY': venv / '.identity', 'STAMP': venv / '.ready',
    }.items():
        monkeypatch.setattr(module, name, path)
    monkeypatch.delenv('CXX', raising=False)
    monkeypatch.delenv('CMAKE_ARGS', raising=False)
    return module


def refusal(bootstrap: ModuleType) -> str:
    """Set up, and return the line that refuses it."""
    with pytest.raises(bootstrap.SetupError) as caught:
        bootstrap.set_up([])
    text = str(caught.value)
    assert '\n' not in text
    return text


def test_an_old_python_is_told_what_to_say_instead(
        bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap.sys, 'version_info', (3, 9, 2, 'final', 0))
    assert 'Python 3.10 to 3.13 is needed' in refusal(bootstrap)


def test_no_compiler(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('PATH', '/nowhere')
    assert refusal(bootstrap).endswith('sudo apt install g++')


def test_no_room(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    room = shutil.disk_usage('/')._replace(free=3 * 10**8)
    monkeypatch.setattr(bootstrap.shutil, 'disk_usage', lambda _: room)
    assert refusal(bootstrap).startswith('0.3 GB free at ')


def test_another_machine(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap.platform, 'machine', lambda: 'aarch64')
    assert 'docs/install.md' in refusal(bootstrap)


@pytest.mark.parametrize(('log', 'sentence'), [
    ('ERROR: Could not install packages due to an OSError: [Errno 28] No space', 'disk is full'),
    ("NewConnectionError('<...>: Failed to establish a new connection')", 'no network'),
    ('  ninja: build stopped: subcommand failed.', 'did not build'),
    ('g++: fatal error: Killed signal terminated program cc1plus\nninja: build stopped', 'memory'),
    ('ERROR: one\n  ERROR: No matching distribution found for foo==9', 'found for foo==9'),
    ('', 'pip failed'),
])
def test_pips_log_becomes_one_line(bootstrap: ModuleType, log: str, sentence: str) -> None:
    assert sentence in bootstrap.diagnosis(log)


def test_pip_keeps_only_the_settings_that_say_where_packages_are(
        bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ('PIP_TARGET', 'PIP_NO_DEPS', 'PIP_CONSTRAINT', 'PYTHONPATH', 'PIP_INDEX_URL'):
        monkeypatch.setenv(name, 'x')
    bootstrap.VENV.mkdir()
    environment = bootstrap.pip_environment()
    assert environment['PIP_INDEX_URL'] == 'x'
    assert not {'PIP_TARGET', 'PIP_NO_DEPS', 'PIP_CONSTRAINT', 'PYTHONPATH'} & set(environment)


def test_nothing_is_done_twice(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def make_venv(identity: str) -> None:
        done.append('venv')
        bootstrap.PYTHON.parent.mkdir(parents=True)
        bootstrap.PYTHON.touch()
        bootstrap.IDENTITY.write_text(identity, encoding='utf-8')

    monkeypatch.setattr(bootstrap, 'make_venv', make_venv)
    monkeypatch.setattr(bootstrap, 'install', lambda *_: done.append('install'))
    monkeypatch.setattr(bootstrap, 'check_machine', lambda _: None)

    bootstrap.set_up([])
    bootstrap.set_up([])
    assert done == ['venv', 'install']

    monkeypatch.setenv('CMAKE_ARGS', '-DGGML_CUDA=on')
    bootstrap.set_up([])
    assert done == ['venv', 'install', 'install']

    monkeypatch.delenv('CMAKE_ARGS')  # what it was built with stays
    bootstrap.set_up([])
    assert done == ['venv', 'install', 'install']

    (bootstrap.ROOT / 'constraints.txt').write_text('numpy==1\n', encoding='utf-8')
    bootstrap.set_up([])
    assert done == ['venv', 'install', 'install', 'install']

    monkeypatch.setattr(bootstrap.platform, 'python_version', lambda: '3.12.99')
    bootstrap.set_up([])  # another python3 than then: not asked for, so the venv stays
    assert done == ['venv', 'install', 'install', 'install']


@pytest.mark.skipif(shutil.which('make') is None, reason='make is not installed')
def test_make_without_python_says_so_in_one_line() -> None:
    made = subprocess.run(
        ['make', '--no-print-directory', '-C', str(ROOT), 'setup', 'PYTHON=python-nowhere'],
        capture_output=True, text=True, check=False, env={**os.environ, 'LC_ALL': 'C'},
    )
    assert made.returncode != 0
    assert "setup: no 'python-nowhere' here" in made.stderr
