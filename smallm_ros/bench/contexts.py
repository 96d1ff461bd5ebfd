"""One model in memory, and a context of its own for each of our arms.

Each arm keeps its KV as a robot's engine would, and none is disturbed by another's; the weights
are there once. Every change of the KV cache is noted, so that a floor can do the same again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from llama_cpp import llama_cpp as llama

from smallm_ros.engine.model import Batch, LlamaModel, ModelSettings, new_context


@dataclass(frozen=True, slots=True)
class Copy:
    """A sequence was given the cells of another."""

    source: int
    target: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Remove:
    """A sequence forgot some of its cells."""

    sequence: int
    start: int
    end: int


Step = Batch | Copy | Remove
"""One change of the KV cache."""


class NotedModel(LlamaModel):
    """A model that notes what is done to its KV cache."""

    def __init__(
        self, model: llama.llama_model_p, context: llama.llama_context_p, **facts: Any
    ) -> None:
        """Take the model and its context over."""
        super().__init__(model, context, **facts)
        self._handle, self._facts = model, facts
        self.steps: list[Step] = []
        """Since the list was last emptied."""

    @property
    def has_chat_template(self) -> bool:
        """Whether the file carries a template that a chat completion can render.

        Some carry the mere name of one, which would be rendered as the whole prompt.
        """
        text: bytes | None = llama.llama_model_chat_template(self._handle, None)
        return text is not None and b'{' in text

    @classmethod
    def open(cls, path: Path, *, name: str, sha256: str, settings: ModelSettings) -> NotedModel:
        """Load a GGUF, as `load` does."""
        model = cls.load(path, name=name, sha256=sha256, settings=settings)
        assert isinstance(model, cls)
        return model

    def beside(self, path: Path, settings: ModelSettings) -> NotedModel:
        """Return the same weights with another context; to be closed before this one."""
        context = new_context(path, self._handle, settings, self.threads)
        return _Beside(self._handle, context, **self._facts)

    def evaluate(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Evaluate and note it."""
        self.steps.append(batch)
        return super().evaluate(batch)

    def copy_sequence(self, source: int, target: int, start: int, end: int) -> None:
        """Copy and note it."""
        self.steps.append(Copy(source, target, start, end))
        super().copy_sequence(source, target, start, end)

    def remove(self, sequence: int, start: int, end: int) -> None:
        """Remove and note it."""
        self.steps.append(Remove(sequence, start, end))
        super().remove(sequence, start, end)


class _Beside(NotedModel):
    def close(self) -> None:
        """Free the context; the weights belong to another."""
        self._model = None
        super().close()
