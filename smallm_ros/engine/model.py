"""What a model is to us, and llama.cpp behind it.

A model turns text into tokens and batches of tokens into logits; nothing here knows of prompts or
of decisions. One thread owns it. Sequences always share one KV buffer (`kv_unified`), because a
partial copy between split buffers aborts the process. This is the only file that imports
llama_cpp, and it talks to the low-level functions: the high-level class masks all 131,072 tokens
of Tekken at every step. llama.cpp's own log stays silent; its last complaints go into the error
that we raise.

A batch in flight on the CPU or on Metal can be ended from another thread. ggml asks a callback
between two operations of the graph; ours is libc's `strlen` over a string of one flag, so that no
Python runs in there: with the GIL it would wait for whoever has it, 5 ms a time.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from smallm_ros.core.errors import (
    ModelFileError,
    OperatorError,
    PackageMissingError,
    WorkerError,
)
from smallm_ros.engine.gguf import check_head
from smallm_ros.engine.markers import Markers

try:
    from llama_cpp import llama_cpp as llama
except (ImportError, OSError, RuntimeError) as err:
    # llama_cpp raises RuntimeError when its shared library, or CUDA's, cannot be loaded
    raise PackageMissingError(
        f'llama_cpp cannot be imported ({err}): pip install llama-cpp-python==0.3.36'
    ) from err

# On an assert llama.cpp would start gdb for a backtrace: a second in which nobody respawns us.
os.environ.setdefault('GGML_NO_BACKTRACE', '1')

KvType = Literal['f16', 'q8_0', 'q4_0']

_KV_TYPES = {
    'f16': llama.GGML_TYPE_F16,
    'q8_0': llama.GGML_TYPE_Q8_0,
    'q4_0': llama.GGML_TYPE_Q4_0,
}

_MAX_SEQUENCES = 256
"""LLAMA_MAX_SEQ in llama.cpp's sources."""

ABORTED = 2
"""llama_decode's code when the abort callback ended it."""

_DECODE_CODES = {
    1: 'no room in the KV cache for the batch',
    ABORTED: 'aborted',
    -1: 'the batch is not valid',
    -2: 'memory could not be allocated',
    -3: 'the computation failed',
}


class DecodeError(WorkerError):
    """llama_decode did not return 0; `code` is what it returned."""

    def __init__(self, code: int) -> None:
        said = _DECODE_CODES.get(code, 'a code that llama.h does not name')
        super().__init__(f'llama_decode returned {code}: {said}')
        self.code = code


@dataclass(frozen=True, slots=True)
class Batch:
    """One llama_decode, submitted whole."""

    tokens: Sequence[int]
    positions: Sequence[int]
    sequences: Sequence[tuple[int, ...]]
    """Each token's sequence ids: one, or several that share it."""
    outputs: Sequence[int]
    """Indices of the tokens whose logits are wanted, ascending."""


class Tokenizer(Protocol):
    """The part of a model that templates need."""

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of plain text: no control token comes out, whatever the text says."""
        ...

    def control_token(self, text: str) -> int:
        """Return the id of the control token spelled exactly so.

        Raises ModelFileError, by name, when the vocabulary lacks it.
        """
        ...


class Model(Tokenizer, Protocol):
    """A loaded model with its KV cache; `LlamaModel` in the product, smaller ones in tests."""

    name: str
    sha256: str
    n_vocab: int
    n_ctx: int
    n_batch: int
    n_seq_max: int
    threads: int
    gpu_layers: int
    abortable: bool
    """Whether `abort` can end a batch in flight: no layer on CUDA, which asks no callback."""

    def piece(self, token: int) -> bytes:
        """Return the text of a token; not always whole UTF-8."""
        ...

    def evaluate(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Return logits of shape (len(batch.outputs), n_vocab), valid until the next call.

        Raises DecodeError with llama_decode's code: after 1, 2 (aborted) and -1 nothing of the
        batch is in the KV cache, after any other an unknown part of it.
        """
        ...

    def abort(self) -> None:
        """End the `evaluate` in flight or else the next one, from any thread.

        It raises DecodeError(ABORTED), or returns all the same when it was nearly done. Does
        nothing where not `abortable`.
        """
        ...

    def clear_abort(self) -> None:
        """Take back an `abort` that has ended nothing yet; called by who evaluates."""
        ...

    def copy_sequence(self, source: int, target: int, start: int, end: int) -> None:
        """Let `target` share the cells of `source` at positions [start, end); end -1 is all."""
        ...

    def remove(self, sequence: int, start: int, end: int) -> None:
        """Forget positions [start, end) of `sequence`; sequence -1 is every one, end -1 is all."""
        ...

    def llguidance_tokenizer(self) -> object:
        """Return the vocabulary as an `llguidance.LLTokenizer`, good until the model is closed.

        Raises PackageMissingError without llguidance.
        """
        ...

    def close(self) -> None:
        """Free the memory; closing twice does nothing."""
        ...


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """How a model is loaded: the deployment's choice, not the model's."""

    context_tokens: int = 4096
    n_gpu_layers: int = -1
    """Layers on the accelerator; -1 is all, 0 is none."""
    use_mlock: bool = False
    kv_type: KvType = 'f16'
    threads: int | None = None
    """None: physical cores - 1, at least 1: a spinning thread beside a busy one is slow."""
    batch_tokens: int = 512
    """Largest batch, evaluated as one pass; a smaller context makes it smaller."""
    sequences: int = 256
    """Branches of a tree and what is pinned; all that llama.cpp has.

    64 tokens took as long with 64 (187 to 203 ms) as with 256 (197 to 200 ms, embedded model, one
    of two cores), `copy_sequence` 8.5 us in both. It costs memory of the host, n_vocab x 4 bytes
    each for logits: 36 MiB more here, 96 MiB with Tekken's vocabulary.
    """

    def __post_init__(self) -> None:
        """Refuse what llama.cpp would take silently, or assert on."""
        whole_batch = min(self.batch_tokens, self.context_tokens)
        for name, value, low, high in (
            ('context_tokens', self.context_tokens, 1, 1 << 24),
            ('batch_tokens', self.batch_tokens, 1, 1 << 16),
            ('sequences', self.sequences, 1, min(_MAX_SEQUENCES, max(1, whole_batch))),
            ('threads', 1 if self.threads is None else self.threads, 1, 512),
            ('n_gpu_layers', self.n_gpu_layers, -1, 100_000),
        ):
            if not low <= value <= high:
                raise OperatorError(f'{name} is {value}, allowed are {low} to {high}')
        if self.kv_type not in _KV_TYPES:
            raise OperatorError(f'kv_type is {self.kv_type!r}, allowed are {", ".join(_KV_TYPES)}')


_flag_is_set = ctypes.cast(ctypes.CDLL(None).strlen, llama.ggml_abort_callback)
"""Whether the string that it is given is not empty; C, so that nobody waits for the GIL."""


class _Log:
    """Where llama.cpp's log goes: its last complaints are kept, nothing is printed."""

    _WARNING, _ERROR = 3, 4
    """GGML_LOG_LEVEL_WARN and _ERROR of ggml.h."""

    def __init__(self) -> None:
        self.complaints: deque[str] = deque(maxlen=8)
        self.offloaded = 0
        self.not_locked = ''
        # llama.cpp keeps the bare pointer for the life of the process, so the object must live
        self.callback = llama.llama_log_callback(self._take)

    def install(self) -> None:
        """Take llama.cpp's log over and forget what was said before."""
        self.complaints.clear()
        self.offloaded = 0
        self.not_locked = ''
        llama.llama_log_set(self.callback, ctypes.c_void_p(0))

    def said(self) -> str:
        """Return the last complaints as part of one line."""
        return '; '.join(self.complaints) or 'llama.cpp did not say why'

    def _take(self, level: int, text: bytes | None, _data: object) -> None:
        # a continued line (the dots of a load) has a level of its own and is no complaint
        line = ' '.join((text or b'').decode('utf-8', 'replace').split())[:300]
        if level in (self._WARNING, self._ERROR) and line:
            self.complaints.append(line)
            if 'mlock' in line:
                self.not_locked = line
        elif found := re.search(r'offloaded (\d+)/\d+ layers', line):
            self.offloaded = int(found.group(1))


_log = _Log()


class LlamaModel:
    """A GGUF in memory, with one context; use `LlamaModel.load`."""

    def __init__(
        self,
        model: llama.llama_model_p,
        context: llama.llama_context_p,
        *,
        name: str,
        sha256: str,
        threads: int,
        gpu_layers: int,
    ) -> None:
        """Take a loaded model and its context over; both are freed by `close`."""
        vocab, memory = llama.llama_model_get_vocab(model), llama.llama_get_memory(context)
        assert vocab is not None, 'every model has a vocabulary, if an empty one'
        assert memory is not None, 'load() lets only models with a KV cache through'
        self._model: llama.llama_model_p | None = model
        self._context: llama.llama_context_p | None = context
        self._vocab, self._memory = vocab, memory
        self.name, self.sha256 = name, sha256
        self.threads, self.gpu_layers = threads, gpu_layers
        self.n_vocab = llama.llama_vocab_n_tokens(vocab)
        self._markers = Markers(user_defined(vocab))
        self.n_ctx = llama.llama_n_ctx(context)
        self.n_batch = llama.llama_n_batch(context)
        self.n_seq_max = llama.llama_n_seq_max(context)
        self._arrays = _BatchArrays(self.n_batch, self.n_seq_max)
        self.abortable = gpu_layers == 0 or b'Metal' in llama.llama_print_system_info()
        self._abort_flag = (ctypes.c_uint8 * 2)()
        if self.abortable:
            llama.llama_set_abort_callback(
                context, _flag_is_set, ctypes.cast(self._abort_flag, ctypes.c_void_p)
            )
        self._guidance: object | None = None
        self._text_tokens = (llama.llama_token * self.n_ctx)()
        self._piece = ctypes.create_string_buffer(512)

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        name: str,
        sha256: str,
        settings: ModelSettings,
        progress: Callable[[float], None] | None = None,
    ) -> LlamaModel:
        """Load a GGUF; `progress` is told shares from 0 to 1.

        Raises ModelFileError, one line that names the file, when it cannot be used so.
        """
        check_head(path)
        _log.install()
        llama.llama_backend_init()
        params = llama.llama_model_default_params()
        params.n_gpu_layers = settings.n_gpu_layers
        if settings.use_mlock:
            params.load_mode = llama.LLAMA_LOAD_MODE_MMAP_MLOCK
        if progress is not None:
            params.progress_callback = _progress_callback(progress)
        model = llama.llama_model_load_from_file(os.fsencode(path), params)
        if model is None:
            raise ModelFileError(f'{path}: cannot be loaded: {_log.said()}')
        gpu_layers = _log.offloaded
        threads = settings.threads or default_threads()
        try:
            context = new_context(path, model, settings, threads)
        except ModelFileError:
            llama.llama_model_free(model)
            raise
        return cls(
            model, context, name=name, sha256=sha256, threads=threads, gpu_layers=gpu_layers
        )

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of plain text: no control token comes out, whatever the text says."""
        return self._markers.plain(text, self._plain)

    def control_token(self, text: str) -> int:
        """Return the id of the control token spelled exactly so, or raise ModelFileError."""
        ids = self._tokenize(text, parse_special=True)
        if (
            len(ids) == 1
            and llama.llama_vocab_is_control(self._vocab, ids[0])
            and llama.llama_vocab_get_text(self._vocab, ids[0]) == text.encode()
        ):
            return ids[0]
        raise ModelFileError(f'model {self.name}: its vocabulary has no control token {text!r}')

    def piece(self, token: int) -> bytes:
        """Return the text of a token; not always whole UTF-8. Control tokens are spelled out."""
        self._open_context()
        if not 0 <= token < self.n_vocab:
            raise ValueError(f'token {token} is outside a vocabulary of {self.n_vocab}')
        size = len(self._piece)
        length = llama.llama_token_to_piece(self._vocab, token, self._piece, size, 0, True)
        if length < 0:
            self._piece = ctypes.create_string_buffer(-length)
            return self.piece(token)
        return self._piece.raw[:length]

    def evaluate(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Return logits of shape (len(batch.outputs), n_vocab), valid until the next call.

        Raises DecodeError with llama_decode's code: after 1, 2 (aborted) and -1 nothing of the
        batch is in the KV cache, after any other an unknown part of it.
        """
        context = self._open_context()
        code = llama.llama_decode(context, self._arrays.fill(batch))
        if code == ABORTED:
            self.clear_abort()
            self._undo(batch)
        if code != 0:
            raise DecodeError(code)
        count = len(batch.outputs)
        if count == 0:
            llama.llama_synchronize(context)
            return np.empty((0, self.n_vocab), np.float32)
        # not np.ctypeslib.as_array: its cast leaves a reference cycle behind on every call
        address = ctypes.addressof(llama.llama_get_logits(context).contents)
        raw = (ctypes.c_float * (count * self.n_vocab)).from_address(address)
        return np.frombuffer(raw, np.float32).reshape(count, self.n_vocab)

    def abort(self) -> None:
        """End the `evaluate` in flight, from any thread: it raises DecodeError(2).

        A single store, so there is no lock and nothing to wait for. Without one in flight it ends
        the next, until `clear_abort`: what is called while a batch is made ready must not be lost.
        Who must not hit the batch after the one that is meant clears before that one.

        It takes what is left of one operation of the graph, less than 1 % of the batch. From here
        to the return of `evaluate`, embedded model at Q8_0, one thread of two EPYC cores: batches
        of 64 tokens (255 ms) 0.7 ms at the median, 1.9 ms at most of 38 when nobody else computed;
        0.6 ms, 8.6 ms at the 99th percentile, 20 ms at most of 250 at a load of 4. 512 tokens
        (1.6 s) 4.5 ms, 14 ms at most of 40, when nobody else computed.
        """
        self._abort_flag[0] = 1

    def clear_abort(self) -> None:
        """Take back an `abort` that has ended nothing yet; called by who evaluates."""
        self._abort_flag[0] = 0

    def _undo(self, batch: Batch) -> None:
        """Make the KV cache what it was before an aborted batch.

        llama_context::decode (llama.cpp of llama-cpp-python 0.3.36) takes the cells before it
        computes. When that is aborted it removes all from the batch's first position on, but of
        one sequence of each token only (seen: the last of those given). A token of several
        sequences stays in the others: cells without contents that the next batch would attend to.
        A batch continues each of its sequences, so all from its first position on is the batch,
        and nothing else.
        """
        starts: dict[int, int] = {}
        for position, ids in zip(batch.positions, batch.sequences, strict=True):
            for sequence in ids:
                starts[sequence] = min(position, starts.get(sequence, position))
        for sequence, start in starts.items():
            self.remove(sequence, start, -1)

    def copy_sequence(self, source: int, target: int, start: int, end: int) -> None:
        """Let `target` share the cells of `source` at positions [start, end); end -1 is all."""
        self._open_context()
        for sequence in (source, target):
            self._check_sequence(sequence)
        llama.llama_memory_seq_cp(self._memory, source, target, start, end)

    def remove(self, sequence: int, start: int, end: int) -> None:
        """Forget positions [start, end) of `sequence`; sequence -1 is every one, end -1 is all."""
        self._open_context()
        if sequence != -1:
            self._check_sequence(sequence)
        if not llama.llama_memory_seq_rm(self._memory, sequence, start, end):
            raise WorkerError(f'the KV cache cannot forget [{start}, {end}) of {sequence}')

    def llguidance_tokenizer(self) -> object:
        """Return the vocabulary as an `llguidance.LLTokenizer`, good until the model is closed.

        Made once: it takes about a second for 131,072 tokens. Raises PackageMissingError.
        """
        self._open_context()
        if self._guidance is None:
            try:
                from llguidance.llamacpp import lltokenizer_from_vocab
            except ImportError as err:
                raise PackageMissingError(
                    f'llguidance cannot be imported ({err}): pip install llguidance, or a policy '
                    'without free_text'
                ) from err
            self._guidance = lltokenizer_from_vocab(self._vocab)
        return self._guidance

    def close(self) -> None:
        """Free the memory; closing twice does nothing."""
        self._guidance = None
        if self._context is not None:
            llama.llama_free(self._context)
            self._context = None
        if self._model is not None:
            llama.llama_model_free(self._model)
            self._model = None

    def _plain(self, text: str) -> list[int]:
        return self._tokenize(text, parse_special=False)

    def _tokenize(self, text: str, *, parse_special: bool) -> list[int]:
        self._open_context()
        raw = text.encode('utf-8', 'replace')
        buffer = self._text_tokens
        while True:
            count = llama.llama_tokenize(
                self._vocab, raw, len(raw), buffer, len(buffer), False, parse_special
            )
            if count >= 0:
                return list(buffer[:count])
            # longer than the context: the caller will say so, it needs the count for that
            buffer = (llama.llama_token * -count)()

    def _open_context(self) -> llama.llama_context_p:
        if self._context is None:
            raise ValueError(f'model {self.name} is closed')
        return self._context

    def _check_sequence(self, sequence: int) -> None:
        # llama.cpp asserts on this, which would end the process
        if not 0 <= sequence < self.n_seq_max:
            raise ValueError(f'sequence {sequence} is outside 0 to {self.n_seq_max - 1}')


class _BatchArrays:
    """The arrays behind a llama_batch, allocated once and filled for every pass."""

    def __init__(self, n_batch: int, n_seq_max: int) -> None:
        self._tokens = np.zeros(n_batch, np.int32)
        self._positions = np.zeros(n_batch, np.int32)
        self._counts = np.zeros(n_batch, np.int32)
        self._sequences = np.zeros((n_batch, n_seq_max), np.int32)
        self._wanted = np.zeros(n_batch, np.int8)
        int32_p = ctypes.POINTER(ctypes.c_int32)
        row_bytes = self._sequences.strides[0]
        first = self._sequences.ctypes.data
        self._rows = (int32_p * n_batch)(
            *(ctypes.cast(first + i * row_bytes, int32_p) for i in range(n_batch))
        )
        self._batch = llama.llama_batch(
            n_tokens=0,
            token=self._tokens.ctypes.data_as(int32_p),
            embd=None,
            pos=self._positions.ctypes.data_as(int32_p),
            n_seq_id=self._counts.ctypes.data_as(int32_p),
            seq_id=ctypes.cast(self._rows, ctypes.POINTER(int32_p)),
            logits=self._wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def fill(self, batch: Batch) -> llama.llama_batch:
        """Copy `batch` in; the returned struct is good until the next call."""
        count = len(batch.tokens)
        if not count == len(batch.positions) == len(batch.sequences):
            raise ValueError(
                f'a batch of {count} tokens, {len(batch.positions)} positions, '
                f'{len(batch.sequences)} sequences'
            )
        if not 1 <= count <= len(self._tokens):
            raise ValueError(f'a batch of {count} tokens, allowed 1 to {len(self._tokens)}')
        self._tokens[:count] = batch.tokens
        self._positions[:count] = batch.positions
        last = self._sequences.shape[1] - 1
        begin = 0
        for ids, run in itertools.groupby(batch.sequences):
            if not ids or min(ids) < 0 or max(ids) > last:
                raise ValueError(f'sequence {ids} is outside 0 to {last}')
            end = begin + sum(1 for _ in run)
            self._counts[begin:end] = len(ids)
            self._sequences[begin:end, : len(ids)] = ids
            begin = end
        self._wanted[:count] = 0
        self._wanted[list(batch.outputs)] = 1
        self._batch.n_tokens = count
        return self._batch


def requantise(source: Path, target: Path, *, threads: int | None = None) -> None:
    """Write `source` to `target` as Q8_0, also from a quantised file.

    Raises ModelFileError, one line, and leaves no half-written target.
    """
    check_head(source)
    _log.install()
    llama.llama_backend_init()
    params = llama.llama_model_quantize_default_params()
    params.ftype = llama.LLAMA_FTYPE_MOSTLY_Q8_0
    params.allow_requantize = True
    params.nthread = threads or max(1, physical_cores() - 1)
    code = llama.llama_model_quantize(
        os.fsencode(source), os.fsencode(target), ctypes.byref(params)
    )
    if code != 0:
        target.unlink(missing_ok=True)
        raise ModelFileError(f'{source}: cannot be requantised to Q8_0: {_log.said()}')


def user_defined(vocab: llama.llama_vocab_p) -> dict[int, str]:
    """Return a vocabulary's user-defined tokens, spelling by id: 0.1 s for 131,072 tokens."""
    return {
        token: llama.llama_vocab_get_text(vocab, token).decode('utf-8', 'replace')
        for token in range(llama.llama_vocab_n_tokens(vocab))
        if llama.llama_vocab_get_attr(vocab, token) & llama.LLAMA_TOKEN_ATTR_USER_DEFINED
    }


def default_threads() -> int:
    """Return how many threads a batch gets where nobody says.

    One core is left to the others: a spinning thread beside a busy one is slow.
    """
    return max(1, physical_cores() - 1)


def physical_cores() -> int:
    """Return how many physical cores this process may run on; at least 1."""
    return len({_siblings(cpu) for cpu in os.sched_getaffinity(0)})


def _siblings(cpu: int) -> str:
    path = Path(f'/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list')
    try:
        return path.read_text(encoding='ascii').strip()
    except OSError:
        return str(cpu)  # no topology in this kernel or container: every CPU is a core


def new_context(
    path: Path, model: llama.llama_model_p, settings: ModelSettings, threads: int
) -> llama.llama_context_p:
    """Return a context of `settings` on a loaded model; ModelFileError when there can be none."""
    if settings.use_mlock and _log.not_locked:
        raise ModelFileError(
            f'{path}: use_mlock: {_log.not_locked}; raise `ulimit -l` (LimitMEMLOCK in systemd) '
            'or leave use_mlock off'
        )
    trained = llama.llama_model_n_ctx_train(model)
    if settings.context_tokens > trained:
        raise ModelFileError(
            f'{path}: a context of {settings.context_tokens} tokens was asked for, the model was '
            f'trained on {trained}'
        )
    context: llama.llama_context_p | None = llama.llama_init_from_model(
        model, _context_params(settings, threads)
    )
    if context is None:
        raise ModelFileError(
            f'{path}: cannot make a context of {settings.context_tokens} tokens, '
            f'{settings.sequences} sequences, {settings.kv_type} KV: {_log.said()}'
        )
    if llama.llama_get_memory(context) is None:
        llama.llama_free(context)
        raise ModelFileError(f'{path}: is not a language model with a KV cache')
    # in split mode each sequence would have its own share, and a partial copy would abort us
    assert llama.llama_n_ctx_seq(context) == llama.llama_n_ctx(context), 'kv_unified was not kept'
    return context


def _context_params(settings: ModelSettings, threads: int) -> llama.llama_context_params:
    params: llama.llama_context_params = llama.llama_context_default_params()
    params.n_ctx = settings.context_tokens
    params.n_batch = params.n_ubatch = settings.batch_tokens
    params.n_seq_max = settings.sequences
    params.n_threads = params.n_threads_batch = threads
    params.kv_unified = True
    params.type_k = params.type_v = _KV_TYPES[settings.kv_type]
    params.flash_attn_type = _flash_attention(settings)
    return params


def offloads(n_gpu_layers: int) -> bool:
    """Return whether layers go to a GPU: asked for, and there is one that llama.cpp can use."""
    return n_gpu_layers != 0 and bool(llama.llama_supports_gpu_offload())


def _flash_attention(settings: ModelSettings) -> int:
    """Return whether attention is fused: on a GPU as llama.cpp sees fit, on a CPU not.

    On a CPU the fused kernel computes batches of 64 and more in another way than smaller ones:
    with SmolLM2 in Q8_0 (llama.cpp of 0.3.36, AVX2) the logits of one prompt differ by 0.36 at the
    median and 0.57 at the most. Without it they are equal to the bit for every batch of two tokens
    and more that fills the same cells, and 60 to 80 new tokens after 240 take 5 to 20 % less.
    """
    if settings.kv_type != 'f16':
        # llama.cpp refuses a quantised V cache without flash attention
        return int(llama.LLAMA_FLASH_ATTN_TYPE_ENABLED)
    if offloads(settings.n_gpu_layers):
        return int(llama.LLAMA_FLASH_ATTN_TYPE_AUTO)
    return int(llama.LLAMA_FLASH_ATTN_TYPE_DISABLED)


def _progress_callback(progress: Callable[[float], None]) -> object:
    def told(share: float, _data: object) -> bool:
        progress(share)
        return True

    return llama.llama_progress_callback(told)
