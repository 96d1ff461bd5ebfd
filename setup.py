"""What the package is called, needs and installs; ament_python wants it here and not in TOML.

One list serves pip, colcon and the Makefile. The `ros` extra are the PyPI wheels of a machine
without ROS; on a robot the same modules come from apt and `package.xml` names them.
"""

from __future__ import annotations

from pathlib import Path

from setuptools import find_packages, setup

NAME = 'smallm_ros'
HERE = Path(__file__).resolve().parent

# What writes a GGUF with Mistral Small 3's own vocabulary. mistral-common has it from 3.11 on.
TEKKEN = [
    "gguf>=0.10; python_version >= '3.11'",
    "mistral-common>=1.5; python_version >= '3.11'",
]


def version() -> str:
    """Return `__version__` without importing the package, which may not be importable yet."""
    for line in (HERE / NAME / '__init__.py').read_text(encoding='utf-8').splitlines():
        if line.startswith('__version__'):
            return line.split("'")[1]
    raise SystemExit(f'{NAME}/__init__.py does not state __version__')


def shared() -> list[tuple[str, list[str]]]:
    """Return what goes to `share/`: the ament marker, package.xml, launch, config and models."""
    found = [
        ('share/ament_index/resource_index/packages', [f'resource/{NAME}']),
        (f'share/{NAME}', ['package.xml']),
    ]
    for top in ('launch', 'config', 'models'):
        for folder in sorted({file.parent for file in (HERE / top).rglob('*') if file.is_file()}):
            if folder.name == '__pycache__':
                continue
            inside = folder.relative_to(HERE).as_posix()
            files = sorted(file.name for file in folder.iterdir() if file.is_file())
            found.append((f'share/{NAME}/{inside}', [f'{inside}/{file}' for file in files]))
    return found


setup(
    name=NAME,
    version=version(),
    description='A large language model resident on the robot that decides on time, every time',
    license='Apache-2.0',
    maintainer='The smallm_ros authors',
    maintainer_email='smallm_ros@users.noreply.github.com',
    python_requires='>=3.10,<3.14',
    packages=find_packages(include=[NAME, f'{NAME}.*']),
    package_data={NAME: ['py.typed']},
    data_files=shared(),
    zip_safe=False,
    install_requires=[
        'llama-cpp-python>=0.3.36,<0.4',
        'llguidance>=1.9,<2',
        'mcap>=1.2,<2',
        'msgpack>=1.0.3,<2',
        'numpy>=1.21,<3',
        'pydantic>=2.6,<3',
        'PyYAML>=5.4,<7',
    ],
    extras_require={
        # xllamacpp has a llama-server built in, one of those that the benchmark compares with.
        'bench': [*TEKKEN, 'plotly>=5.20,<8', 'xllamacpp>=2026.10'],
        # What builds llama-cpp-python; the Makefile installs it first so that the system's own
        # cmake, whatever its age, plays no part.
        'build': ['cmake>=3.24', 'ninja', 'scikit-build-core>=0.9.2', 'setuptools', 'wheel'],
        'gpu': ['nvidia-ml-py>=12'],
        'models': ['huggingface_hub>=1,<3'],
        'replay': ['plotly>=5.20,<8', 'rosbags>=0.10,<0.12'],
        'ros': [
            'ros-diagnostic-msgs',
            'ros-geometry-msgs',
            'ros-lifecycle-msgs',
            'ros-nav-msgs',
            'ros-rclpy',
            'ros-rmw-fastrtps-cpp',
            'ros-rosgraph-msgs',
            'ros-sensor-msgs',
            'ros-std-msgs',
            'ros-std-srvs',
            'ros-trajectory-msgs',
        ],
        'sim': ['mujoco>=3.2,<5'],
        'test': [
            *TEKKEN,
            'coverage>=7.4',
            'hypothesis',
            'jsonschema',
            'msgpack-types',
            'mypy',
            'pytest',
            'pytest-timeout',
            'ruff',
            'types-PyYAML',
        ],
    },
    entry_points={
        'console_scripts': [
            'smallm = smallm_ros.cli.main:main',
            'smallm_engine = smallm_ros.engine.supervisor:main',
            'policy_node = smallm_ros.cli.node:policy_node',
            'watchdog_node = smallm_ros.cli.node:watchdog_node',
            'sim_node = smallm_ros.cli.node:sim_node',
        ],
    },
    # `ros2 run` and `ros2 launch` look in lib/<package> only. colcon honours these two; pip
    # ignores them and puts the executables on the PATH, where a machine without ROS wants them.
    # Their Python is the one of the shell that runs them: colcon runs under the system's, while
    # llama-cpp-python may be in a virtual environment.
    options={
        'build_scripts': {'executable': '/usr/bin/env python3'},
        'develop': {'script_dir': f'$base/lib/{NAME}'},
        'install': {'install_scripts': f'$base/lib/{NAME}'},
    },
)
