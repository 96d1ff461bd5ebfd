"""What no way of deciding can go below: the model's own time for the same tokens.

Floor A does the llama_decode calls that a decision of ours has just done, once more, from the same
KV, and counts nothing but the time inside them. Floor B evaluates only the tokens that changed, in
one pass: the tree costs nothing there.
"""

from __future__ import annotations

from smallm_ros.bench.arms import WORKING, Ours
from smallm_ros.bench.contexts import Copy, NotedModel, Remove, Step
from smallm_ros.bench.shot import Shot
from smallm_ros.bench.tap import Tap
from smallm_ros.engine.model import Batch


def floor_a(arm: Ours, tap: Tap) -> Shot:
    """Return the bare cost of the passes of the arm's last decision.

    The KV ends as that decision left it: the working sequence holds the whole prompt.
    """
    model, steps = arm.model, tuple(arm.model.steps)
    _rewind(model, steps)
    tap.take()
    for step in steps:
        match step:
            case Batch():
                model.evaluate(step)
            case Copy():
                model.copy_sequence(step.source, step.target, step.start, step.end)
            case Remove():
                model.remove(step.sequence, step.start, step.end)
    shot = _taken(tap)
    model.steps[:] = steps
    return shot


def floor_b(arm: Ours, tap: Tap) -> Shot:
    """Return the bare cost of one pass over what changed in the prompt of the last decision."""
    model, steps = arm.model, tuple(arm.model.steps)
    first = _rewind(model, steps)
    changed = arm.changed
    tap.take()
    model.evaluate(Batch(
        tokens=first.tokens[:changed], positions=first.positions[:changed],
        sequences=((WORKING,),) * changed, outputs=(changed - 1,),
    ))
    shot = _taken(tap)
    model.steps[:] = steps
    return shot


def _rewind(model: NotedModel, steps: tuple[Step, ...]) -> Batch:
    """Take back what the decision appended; return its first pass."""
    first = next(step for step in steps if isinstance(step, Batch))
    model.remove(WORKING, first.positions[0], -1)
    return first


def _taken(tap: Tap) -> Shot:
    passes = tap.take()
    took_ns = sum(p.took_ns for p in passes)
    return Shot(took_ns, '', tuple(p.tokens for p in passes), took_ns)
