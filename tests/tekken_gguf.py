"""The smallest model with the true Tekken vocabulary of Mistral Small 3, and random weights.

It loads, tokenises and decodes like the 24B's file, in 17 MB, so that templates, trees and the
whole engine are tried on the vocabulary that matters without 14 GB. The same bytes each time.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from smallm_ros.bench import shape
from smallm_ros.core.errors import PackageMissingError


def v7_folder(folder: Path) -> Path:
    """Write the vocabulary as `tekken.json`, version v7, into `folder`; return the folder."""
    try:
        return shape.tekken_folder(folder)
    except PackageMissingError as err:
        pytest.skip(str(err))


def cached() -> Path:
    """Return the GGUF, written once for all runs; skip the test where its packages are missing."""
    try:
        return shape.cached(shape.TINY)
    except PackageMissingError as err:
        pytest.skip(str(err))
