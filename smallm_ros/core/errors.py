"""The tree of errors, by who must act.

The operator: a program does not start, or a command ends, with one line and its own exit code.
Nobody: one answer or message is dropped and counted; the fallback stands in.
The supervisor: the worker dies and is started again.
"""

from __future__ import annotations


class SmallmError(Exception):
    """Every error that this package raises on purpose."""


class OperatorError(SmallmError):
    """The operator must act. Its text is one line: the value, the place, the way out."""

    exit_code = 2


class PolicyError(OperatorError):
    """A policy file that cannot be used; one line for each mistake, `file:line: what`."""

    exit_code = 3


class ModelFileError(OperatorError):
    """A GGUF that is missing, truncated, corrupt, of the wrong hash or of an unknown kind."""

    exit_code = 4


class EngineRunningError(OperatorError):
    """Another engine holds the socket."""

    exit_code = 5


class BagError(OperatorError):
    """A recording that cannot be read, or lacks what the policy needs."""

    exit_code = 6


class WorldError(OperatorError):
    """A world file that cannot be turned into a simulation."""

    exit_code = 7


class PackageMissingError(OperatorError):
    """An optional package is not installed; the text says how to install it."""

    exit_code = 8


class EngineLatchedError(OperatorError):
    """The engine's worker died too often in a short time; trying on would not help."""

    exit_code = 9


class DroppedError(SmallmError):
    """Nobody acts: what arrived does not fit, is counted and named, and life goes on."""


class FrameError(DroppedError):
    """Bytes on the engine's socket that are not a frame of this version."""


class CommandError(DroppedError):
    """A command, status or answer that does not parse; `args[0]` says why."""


class WorkerError(SmallmError):
    """The supervisor acts: the worker cannot go on and is started again."""
