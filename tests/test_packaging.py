"""What is installed is what is here: the wheel, the executables, package.xml and the versions."""

from __future__ import annotations

import configparser
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

import smallm_ros

ROOT = Path(__file__).resolve().parent.parent
EXECUTABLES = {'smallm', 'smallm_engine', 'policy_node', 'watchdog_node', 'sim_node'}
SHARED = ('launch', 'config', 'models')


@pytest.fixture(scope='module')
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Build the wheel from a copy, so that no build folder is left here."""
    copy = tmp_path_factory.mktemp('source')
    for name in ('smallm_ros', 'resource', *SHARED):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('setup.py', 'package.xml', 'pyproject.toml', 'LICENSE'):
        shutil.copy(ROOT / name, copy)
    built = subprocess.run(
        [sys.executable, 'setup.py', '-q', 'bdist_wheel', '--dist-dir', 'dist'],
        cwd=copy, capture_output=True, text=True, check=False,
        env={**os.environ, 'PYTHONWARNINGS': 'ignore'},
    )
    assert built.returncode == 0, built.stderr
    return zipfile.ZipFile(next((copy / 'dist').glob('*.whl')))


def files_under(folder: Path) -> set[str]:
    """Return the files of `folder` that belong to the project, relative to the root."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in folder.rglob('*')
        if path.is_file() and '__pycache__' not in path.parts
    }


def metadata(wheel: zipfile.ZipFile, name: str) -> str:
    """Return the text of a file of the wheel's dist-info."""
    return wheel.read(next(each for each in wheel.namelist() if each.endswith(name))).decode()


def test_the_wheel_holds_the_whole_package(wheel: zipfile.ZipFile) -> None:
    assert files_under(ROOT / 'smallm_ros') <= set(wheel.namelist())
    assert not [name for name in wheel.namelist() if name.startswith('tests/')]


def test_the_wheel_holds_what_goes_to_share(wheel: zipfile.ZipFile) -> None:
    data = {name.partition('.data/data/')[2] for name in wheel.namelist()}
    for folder in SHARED:
        wanted = {f'share/smallm_ros/{name}' for name in files_under(ROOT / folder)}
        assert wanted
        assert wanted <= data
    assert 'share/smallm_ros/package.xml' in data
    assert 'share/ament_index/resource_index/packages/smallm_ros' in data


def test_every_executable_has_its_module(wheel: zipfile.ZipFile) -> None:
    entries = configparser.ConfigParser(delimiters='=')
    entries.read_string(metadata(wheel, 'entry_points.txt'))
    scripts = dict(entries['console_scripts'])
    assert set(scripts) == EXECUTABLES
    for place in scripts.values():
        module, _, function = place.partition(':')
        spec = importlib.util.find_spec(module)
        assert spec is not None, place
        assert spec.origin is not None
        source = Path(spec.origin).read_text(encoding='utf-8')
        assert re.search(rf'^def {function}\(', source, re.MULTILINE), place


def test_every_extra_is_pinned_for_every_python(wheel: zipfile.ZipFile) -> None:
    pinned = {
        re.split('[=; ]', line)[0].replace('_', '-').lower()
        for line in (ROOT / 'constraints.txt').read_text(encoding='utf-8').splitlines()
        if line and not line.startswith('#')
    }
    needed = re.findall(r'^Requires-Dist: ([\w-]+)', metadata(wheel, 'METADATA'), re.MULTILINE)
    assert needed
    assert {name.replace('_', '-').lower() for name in needed} <= pinned


def test_make_installs_every_extra_but_the_build_tools(wheel: zipfile.ZipFile) -> None:
    extras = re.findall(r'^Provides-Extra: (\w+)', metadata(wheel, 'METADATA'), re.MULTILINE)
    bootstrap = (ROOT / 'tools' / 'bootstrap.py').read_text(encoding='utf-8')
    named = re.search(r"^EXTRAS = '(.*)'", bootstrap, re.MULTILINE)
    assert named is not None
    assert sorted([*named[1].split(','), 'build']) == sorted(extras)


def test_one_version_everywhere(wheel: zipfile.ZipFile) -> None:
    package = ET.parse(ROOT / 'package.xml').getroot()
    version = smallm_ros.__version__
    assert package.attrib['format'] == '3'
    assert package.findtext('name') == 'smallm_ros'
    assert package.findtext('version') == version
    assert package.findtext('export/build_type') == 'ament_python'
    assert f'\nVersion: {version}\n' in metadata(wheel, 'METADATA')
    changes = (ROOT / 'CHANGELOG.md').read_text(encoding='utf-8')
    assert re.search(rf'^## \[?{re.escape(version)}\b', changes, re.MULTILINE)


def test_package_xml_names_every_ros_package_that_the_code_imports() -> None:
    package = ET.parse(ROOT / 'package.xml').getroot()
    named = {each.text for each in package.iter('exec_depend')}
    imported = set()
    for path in [*(ROOT / 'smallm_ros').rglob('*.py'), *(ROOT / 'launch').glob('*.py')]:
        imported |= set(re.findall(
            r'^\s*(?:from|import) (\w+_msgs|\w+_srvs|\w+_interfaces|rclpy|launch|launch_ros)\b',
            path.read_text(encoding='utf-8'), re.MULTILINE,
        ))
    assert imported <= named
