"""Where the files that are not code are found: `models/`, `config/`, `launch/`.

They lie beside the package in a checkout, and under `share/smallm_ros` of the prefix that pip or
colcon installed into. The checkout comes first: its files belong to the code that runs.
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from smallm_ros.core.errors import OperatorError

_PACKAGE = Path(__file__).resolve().parent


def find_share(kind: str) -> Path:
    """Return the directory of `kind`: 'models', 'config' or 'launch'.

    Raises OperatorError, with the places looked at, when there is none.
    """
    places = [root / kind for root in _roots()]
    for place in places:
        if place.is_dir():
            return place
    raise OperatorError(
        f'no {kind}/ directory is installed; looked at {", ".join(map(str, places))}'
    )


def _roots() -> Iterator[Path]:
    if (_PACKAGE.parent / 'setup.py').is_file():
        yield _PACKAGE.parent
    ament = os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep)
    for prefix in (*ament, sysconfig.get_path('data'), sys.prefix, site.getuserbase()):
        if prefix:
            yield Path(prefix) / 'share' / _PACKAGE.name
