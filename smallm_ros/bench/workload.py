"""What a policy asks of a model, counted: tokens of its texts, bytes and weights of its file.

Counted with the model's own vocabulary where that is here: its file, or for Mistral's models the
package mistral-common. Else with the embedded model's, and what is printed says so. A model whose
file is not here is known by its registry entry and its published shape.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import itertools
import math
import os
import struct
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import BinaryIO

from smallm_ros.bench.roofline import MISTRAL_SMALL, ModelFacts, PolicyTokens, Spread
from smallm_ros.bench.shape import tekken_folder
from smallm_ros.core.clock import SECOND
from smallm_ros.core.errors import ModelFileError, PackageMissingError
from smallm_ros.core.exchange import Declaration
from smallm_ros.core.policy import Policy
from smallm_ros.core.prompt import declaration, segments
from smallm_ros.core.reference import draw
from smallm_ros.core.tree import Tree
from smallm_ros.engine import registry
from smallm_ros.engine.gguf import check_head, open_regular
from smallm_ros.engine.history import History
from smallm_ros.engine.markers import Markers
from smallm_ros.engine.options import DEFAULT_MODEL
from smallm_ros.engine.templates import conversation, fitting

OBSERVATIONS = 200
TEKKEN = 'mistral-v7-tekken'
SHAPES: Mapping[str, ModelFacts] = {MISTRAL_SMALL.name: MISTRAL_SMALL}
"""Registered models that are known without their file."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model that is asked for: its facts, and its file if that is here."""

    facts: ModelFacts
    template: str | None
    """None: its vocabulary tells."""
    path: Path | None


def subject(model: str) -> Subject:
    """Return what is known of a registered name or of the path of a GGUF.

    Raises ModelFileError, one line with the choices, for an unknown name, and for a model that is
    neither here nor known by its shape.
    """
    if '/' in model or model.endswith('.gguf'):
        path = Path(model).expanduser().absolute()
        return Subject(facts_of_file(path, path.stem), None, path)
    entry = registry.entry_named(model)
    try:
        here = registry.resolve(model).path if entry.derived else registry.locate(entry)
    except ModelFileError:
        if model not in SHAPES:
            raise
        return Subject(SHAPES[model], entry.template, None)
    return Subject(facts_of_file(here, model), entry.template, here)


# --- a file's head ------------------------------------------------------------------------------


def facts_of_file(path: Path, name: str) -> ModelFacts:
    """Return a GGUF's facts from its head; raises ModelFileError when it is none.

    Format: ggml's docs/gguf.md. `check_head` has refused what is broken up to the vocabulary.
    """
    check_head(path)
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            keys, tensors = _Head(file, size).read()
            return _facts(name, path, size, keys, tensors)
        except (struct.error, KeyError, ValueError) as err:
            raise ModelFileError(f'{path}: its head cannot be understood: {err}') from err


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    weights: int
    offset: int


def _facts(
    name: str, path: Path, size: int, keys: Mapping[str, float | str], tensors: list[_Tensor]
) -> ModelFacts:
    family = keys['general.architecture']

    def number(key: str, default: float | None = None) -> int:
        value = keys.get(f'{family}.{key}', default)
        if not isinstance(value, (int, float)):
            raise ValueError(f'{family}.{key} is {value!r}')
        return int(value)

    width, heads = number('embedding_length'), number('attention.head_count')
    kv_heads = number('attention.head_count_kv', heads)
    head = width // heads
    values = number('attention.key_length', head) + number('attention.value_length', head)
    tied = not any(t.name == 'output.weight' for t in tensors)
    embedding = next((t for t in tensors if t.name == 'token_embd.weight'), None)
    if embedding is None:
        raise ValueError('it has no token_embd.weight')
    after = min((t.offset for t in tensors if t.offset > embedding.offset),
                default=embedding.offset)
    return ModelFacts(
        name=name, weights_bytes=size,
        read_bytes=size if tied else size - (after - embedding.offset),
        parameters=sum(t.weights for t in tensors if t.name.startswith('blk.')),
        vocabulary=embedding.weights // width, width=width,
        feed_forward=number('feed_forward_length'),
        kv_bytes_per_token=number('block_count') * kv_heads * values * 2,
        context=number('context_length'), origin=f'head of {path.name}',
    )


_SCALARS: Mapping[int, str] = {
    0: 'B', 1: 'b', 2: 'H', 3: 'h', 4: 'I', 5: 'i', 6: 'f', 7: '?', 10: 'Q', 11: 'q', 12: 'd',
}
_STRING, _ARRAY = 8, 9


class _Head:
    """Walks a GGUF's metadata and its list of tensors; little-endian, versions 2 and 3."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size

    def read(self) -> tuple[dict[str, float | str], list[_Tensor]]:
        """Return the metadata, arrays left out, and the tensors."""
        self._take(8)
        tensors, pairs = self._number('Q'), self._number('Q')
        keys: dict[str, float | str] = {}
        for _ in range(pairs):
            key, kind = self._string(), self._number('I')
            if kind == _ARRAY:
                self._skip_array()
            elif kind == _STRING:
                keys[key] = self._string()
            else:
                keys[key] = self._number(_SCALARS[kind])
        return keys, [self._tensor() for _ in range(tensors)]

    def _tensor(self) -> _Tensor:
        name = self._string()
        weights = math.prod(self._number('Q') for _ in range(self._number('I')))
        self._number('I')
        return _Tensor(name, weights, self._number('Q'))

    def _skip_array(self) -> None:
        kind, count = self._number('I'), self._number('Q')
        if kind == _STRING:
            for _ in range(count):
                self._skip(self._number('Q'))
        else:
            self._skip(struct.calcsize(_SCALARS[kind]) * count)

    def _number(self, form: str) -> int:
        value: int = struct.unpack(f'<{form}', self._take(struct.calcsize(form)))[0]
        return value

    def _string(self) -> str:
        return self._take(self._number('Q')).decode('utf-8', 'replace')

    def _take(self, count: int) -> bytes:
        if count > self._size - self._file.tell():
            raise ValueError('it runs past the end of the file')
        return self._file.read(count)

    def _skip(self, count: int) -> None:
        if count > self._size - self._file.tell():
            raise ValueError('it runs past the end of the file')
        self._file.seek(count, os.SEEK_CUR)


# --- a policy's texts ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Turns text into tokens, for counting: the `Tokenizer` that templates need."""

    said: str
    template: str
    size: int
    tokenize: Callable[[str], list[int]]
    control_token: Callable[[str], int]
    piece: Callable[[int], bytes]
    """The text of a token; not always whole UTF-8."""


def vocabulary(of: Subject) -> Vocabulary:
    """Return the vocabulary of a model, or the embedded model's, and whose it is.

    Raises ModelFileError or PackageMissingError when not even that is here.
    """
    if of.path is not None:
        return _of_file(of.path, of.template, f'of {of.path.name}')
    if of.template == TEKKEN:
        with contextlib.suppress(PackageMissingError):
            return _tekken()
    embedded = registry.resolve(DEFAULT_MODEL)
    return _of_file(
        embedded.path, embedded.template,
        f'of {DEFAULT_MODEL}, NOT of {of.facts.name}: for its own, pip install '
        "'smallm_ros[bench]'",
    )


def _tekken() -> Vocabulary:
    with tempfile.TemporaryDirectory() as folder:
        definition = tekken_folder(Path(folder)) / 'tekken.json'
        from mistral_common.tokens.tokenizers.tekken import Tekkenizer

        tekken = Tekkenizer.from_file(definition)
    return Vocabulary(
        said="Tekken, from mistral-common: the model's own", template=TEKKEN,
        size=tekken.n_words,
        tokenize=lambda text: tekken.encode(text, bos=False, eos=False),
        control_token=tekken.get_special_token, piece=tekken.id_to_byte_piece,
    )


def _of_file(path: Path, template: str | None, said: str) -> Vocabulary:
    words = _FileWords(path)
    return Vocabulary(said, fitting(template, words), words.size, words.tokenize,
                      words.control_token, words.piece)


class _FileWords:
    """A GGUF's vocabulary without its weights: 14 GB need not be read to count tokens."""

    def __init__(self, path: Path) -> None:
        check_head(path)
        # Imported so late because it says what to install, where it is not.
        engine = importlib.import_module('smallm_ros.engine.model')
        from llama_cpp import llama_cpp as llama

        self._llama, self._path = llama, path
        # llama.cpp keeps the bare pointer, so the callback must live; `LlamaModel` sets its own
        if not _quiet:
            _quiet.append(llama.llama_log_callback(lambda _level, _text, _data: None))
        llama.llama_log_set(_quiet[0], ctypes.c_void_p(0))
        params = llama.llama_model_default_params()
        params.vocab_only = True
        model = llama.llama_model_load_from_file(os.fsencode(path), params)
        if model is None:
            raise ModelFileError(f'{path}: its vocabulary cannot be loaded')
        self._vocab = llama.llama_model_get_vocab(model)
        self.size: int = llama.llama_vocab_n_tokens(self._vocab)
        self._markers = Markers(engine.user_defined(self._vocab))

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of plain text."""
        return self._markers.plain(text, lambda part: self._tokenize(part, special=False))

    def control_token(self, text: str) -> int:
        """Return the id of a control token, or raise ModelFileError."""
        ids = self._tokenize(text, special=True)
        if len(ids) != 1 or not self._llama.llama_vocab_is_control(self._vocab, ids[0]):
            raise ModelFileError(f'{self._path}: its vocabulary has no control token {text!r}')
        return ids[0]

    def piece(self, token: int) -> bytes:
        """Return the text of a token; not always whole UTF-8."""
        buffer = ctypes.create_string_buffer(1024)
        length = self._llama.llama_token_to_piece(self._vocab, token, buffer, 1024, 0, True)
        return buffer.raw[:max(0, length)]

    def _tokenize(self, text: str, *, special: bool) -> list[int]:
        raw = text.encode('utf-8', 'replace')
        buffer = (self._llama.llama_token * (len(raw) + 8))()  # a token is a byte at the least
        count = self._llama.llama_tokenize(
            self._vocab, raw, len(raw), buffer, len(buffer), False, special
        )
        return list(buffer[:count])


_quiet: list[object] = []


def count(policy: Policy, words: Vocabulary, observations: int = OBSERVATIONS) -> PolicyTokens:
    """Return a policy in tokens, over observations drawn by the seed of its prior.

    Each is drawn afresh, not a step on from the one before: more changes from one to the next than
    a robot sees, so what is evaluated is rather too much than too little.
    """
    told = declaration(policy)
    prompt = conversation(words.template, words, told.system, told.examples)
    tail = len(prompt.suffix)
    texts = [
        [token for segment in segments(policy, observation)
         for token in words.tokenize(segment.text)]
        for observation in draw(policy, policy.prior.seed, observations)
    ]
    dynamic = [len(tokens) for tokens in texts]
    turn = _turn(words, told, prompt.prefix) if policy.decision.history else 0
    changed = [
        turn + len(new) + tail if turn else len(new) - _common(old, new) + tail
        for old, new in itertools.pairwise(texts)
    ]
    required = [policy.sensors[name] for name in policy.required_sensors]
    return PolicyTokens(
        policy=policy.name, vocabulary=words.said,
        drawn=(f'{observations} observations drawn by seed {policy.prior.seed}, each afresh: more '
               'changes than from one tick to the next'),
        static=len(prompt.prefix), tail=tail,
        dynamic=Spread(round(median(dynamic)), max(dynamic)),
        changed=Spread(round(median(changed)), max(changed)),
        history=History.most(policy.decision.history) * (turn + max(dynamic) + tail),
        references=len(told.references),
        tree=Tree.of([words.tokenize(answer) for answer in told.answers], prompt.end),
        budget_ns=policy.budget_ns, period_ns=policy.decision_period_ns,
        arrival_ns=round(SECOND / max(sensor.rate_hz for sensor in required)),
    )


def _turn(words: Vocabulary, told: Declaration, prefix: list[int]) -> int:
    """Return the tokens that a turn adds besides its observation and the template's tail.

    The answer, its end and the next turn's opening, which are evaluated with the next observation.
    """
    longest = max(told.answers, key=len)
    observed, answered = 'a', (*told.examples, ('a', longest))
    longer = conversation(words.template, words, told.system, answered)
    return len(longer.prefix) - len(prefix) - len(words.tokenize(observed)) - len(longer.suffix)


def _common(old: list[int], new: list[int]) -> int:
    """Return how many leading tokens are the same."""
    return next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b),
                min(len(old), len(new)))
