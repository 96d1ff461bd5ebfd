"""A model's bias at each choice: its mean logits over the reference texts, measured once.

What is subtracted is a property of the model, the policy and the template, so it is kept on disk
under their names; a worker that is started again reads it instead of evaluating the references.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from smallm_ros.core.tree import Tree
from smallm_ros.engine.registry import write_json

Scores = npt.NDArray[np.float64]
Bias = Mapping[int, Scores]
"""For each choice node, its children's mean logits."""


def digest(bias: Bias) -> str:
    """Return what names this bias in a record."""
    content = repr([(node, scores.tolist()) for node, scores in sorted(bias.items())])
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def cache_file(folder: Path, *what: object) -> Path:
    """Return where the bias of a model, a space and a template is kept."""
    return folder / f'{hashlib.sha256(repr(what).encode()).hexdigest()[:16]}.json'


def load(path: Path, tree: Tree, choices: Collection[int]) -> Bias | None:
    """Return the bias that is kept in `path`; None where there is none of just these choices."""
    try:
        content = json.loads(path.read_bytes())
        bias = {
            int(node): np.array(json.loads(scores), np.float64)
            for node, scores in content.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    if bias.keys() != set(choices):
        return None
    for node, scores in bias.items():
        if scores.shape != (len(tree.nodes[node].children),) or not np.isfinite(scores).all():
            return None
    return bias


def save(path: Path, bias: Bias) -> None:
    """Keep a bias. A cache that cannot be written only costs time at the next start."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_json(path, {str(node): json.dumps(scores.tolist()) for node, scores in bias.items()})
