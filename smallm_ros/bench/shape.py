"""A GGUF with a model's true shape and random weights: its latency before 14 GB are downloaded.

Latency depends on how many bytes of which type are read, not on their values. Tensors, types and
vocabulary are those of the real file; quantised blocks are random bytes, with scales that keep the
activations near 1, so that logits are finite and differ. The same shape and seed give the same
bytes. A file has its name only when it is whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from smallm_ros.core.errors import ModelFileError, OperatorError, PackageMissingError
from smallm_ros.engine.options import KvType
from smallm_ros.engine.registry import Progress, cache_directory, silent

SEED = 2501
RECIPE = 1
"""Part of a cached file's name; to be raised with every change of the bytes that are written."""
SCALES = (1, 2, 4, 8)
VOCABULARY = 131_072
"""Tokens of Tekken in Mistral Small 3."""
HEAD_BYTES = 8 << 20
"""Room for the metadata: the vocabulary and its merges take 7.9 MB."""
SPARE_BYTES = 256 << 20
"""Left free on the disk after a file has been written."""

_TEKKEN = 'tekken_240911.json'
_PYTHON_3_11 = 0x030B00F0
_ALIGNMENT = 32
"""GGUF's default: each tensor begins at a multiple of it."""
_CHUNK_BLOCKS = 65_536
_ROW_BLOCK = 256
"""Weights in a block of a K-quant: a row must be a multiple of it."""

Kind = Literal['F32', 'Q8_0', 'Q4_K', 'Q6_K']
Mix = Literal['Q4_K_M', 'Q8_0']


@dataclass(frozen=True, slots=True)
class _Block:
    """How ggml stores a run of weights, see ggml-common.h; `scales` are half floats."""

    weights: int
    bytes: int
    scales: slice
    """Where the half floats stand."""
    ratios: tuple[float, ...]
    """Each half float in units of the first."""
    spread: float
    """Standard deviation of a weight when the first is 1 and every other byte is random."""


# Q4_K: weight = d * scale * quant - dmin * min, scale and min 6 bits, quant 4 bits; dmin = 7.5 d
# centres it. Q6_K: weight = d * scale * (quant - 32), scale 8 bits signed, quant 6 bits.
# Q8_0: weight = d * quant, 8 bits signed.
_BLOCKS: Mapping[Kind, _Block] = {
    'Q4_K': _Block(256, 144, slice(0, 4), (1.0, 7.5), 258.3),
    'Q6_K': _Block(256, 210, slice(208, 210), (1.0,), 1365.8),
    'Q8_0': _Block(32, 34, slice(0, 2), (1.0,), 73.9),
}
_KV_BYTES: Mapping[KvType, float] = {'f16': 2, 'q8_0': 34 / 32, 'q4_0': 18 / 32}
"""Bytes of one value in the KV cache."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of the file."""

    name: str
    shape: tuple[int, ...]
    """Rows, then columns; a norm has columns only."""
    kind: Kind

    @property
    def bytes(self) -> int:
        """How many bytes its data take."""
        if self.kind == 'F32':
            return 4 * prod(self.shape)
        block = _BLOCKS[self.kind]
        return prod(self.shape) // block.weights * block.bytes


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides a llama-architecture model's latency."""

    name: str
    layers: int
    width: int
    feed_forward: int
    heads: int
    kv_heads: int
    head: int
    """Length of one head's vector."""
    mix: Mix
    """Which quantisation each tensor gets."""
    tied: bool = False
    """The embedding is the output matrix too."""
    context: int = 32_768
    rope_base: float = 1e8

    def tensors(self) -> tuple[Tensor, ...]:
        """Return every tensor, in the file's order."""
        return tuple(_tensors(self))

    @property
    def weights_bytes(self) -> int:
        """How many bytes all tensors take."""
        return sum(tensor.bytes for tensor in self.tensors())

    @property
    def kv_bytes_per_token(self) -> int:
        """How many bytes of f16 KV one token takes."""
        return 2 * self.layers * self.kv_heads * self.head * 2


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that a loaded model takes."""

    weights: int
    kv: int
    compute: int
    """llama.cpp's buffers for one batch, and the logits."""

    @property
    def total(self) -> int:
        """All of it together."""
        return self.weights + self.kv + self.compute


MISTRAL_SMALL_24B = Shape(
    name='mistral-small-24b', layers=40, width=5120, feed_forward=32_768, heads=32, kv_heads=8,
    head=128, mix='Q4_K_M',
)
"""Mistral Small 3 (2501, 2503, 2506), Q4_K_M: the 14.33 GB file of models/."""

TINY = Shape(
    name='tiny', layers=2, width=64, feed_forward=96, heads=2, kv_heads=1, head=32, mix='Q8_0',
    tied=True,
)
"""The vocabulary with next to nothing behind it: 17 MB that load at once, for tests."""


def _divisible(shape: Shape, divisor: int) -> bool:
    return shape.layers % divisor == shape.heads % divisor == shape.kv_heads % divisor == 0


def _scale_name(divisor: int) -> str:
    return 'full' if divisor == 1 else f'1/{divisor}'


def divided(shape: Shape, divisor: int) -> Shape:
    """Return `shape` with 1/divisor of its layers, heads and widths, named `NAME-s<divisor>`.

    Heads keep their length and the vocabulary its size. Widths are rounded up to what a K-quant's
    row must be a multiple of, 256. Raises OperatorError when there is nothing to divide.
    """
    if not _divisible(shape, divisor):
        raise OperatorError(
            f'shape {shape.name} cannot be had at scale 1/{divisor}: it has {shape.layers} layers '
            f'and {shape.kv_heads} KV heads'
        )
    if divisor == 1:
        return shape
    return replace(
        shape, name=f'{shape.name}-s{divisor}', layers=shape.layers // divisor,
        width=-(-shape.width // divisor // _ROW_BLOCK) * _ROW_BLOCK,
        feed_forward=-(-shape.feed_forward // divisor // _ROW_BLOCK) * _ROW_BLOCK,
        heads=shape.heads // divisor, kv_heads=shape.kv_heads // divisor,
    )


SHAPES: Mapping[str, Shape] = {
    shape.name: shape
    for shape in (*(divided(MISTRAL_SMALL_24B, scale) for scale in SCALES), TINY)
}
"""By name: mistral-small-24b, its halves, quarters and eighths -s2, -s4, -s8, and tiny."""


def shape_named(name: str, scale: str = 'full') -> Shape:
    """Return a shape by its name and a scale: 'full', '1/2', '1/4' or '1/8'.

    Raises OperatorError, with what there is, for another; 'auto' is `scaled`'s work.
    """
    if name not in SHAPES:
        raise OperatorError(f'shape {name!r} is unknown: one of {", ".join(SHAPES)}')
    divisors = {_scale_name(divisor): divisor for divisor in SCALES}
    if scale not in divisors:
        raise OperatorError(f'scale {scale!r} is unknown: one of auto, {", ".join(divisors)}')
    return divided(SHAPES[name], divisors[scale])


def scaled(
    shape: Shape, memory_bytes: int, *, context_tokens: int = 4096, kv_type: KvType = 'f16'
) -> Shape:
    """Return the largest scale of `shape` that `memory_bytes` hold, loaded, with its context.

    Raises OperatorError, with the bytes that are missing, when not even the smallest fits.
    """
    for divisor in SCALES:
        if not _divisible(shape, divisor):
            break
        smallest = divided(shape, divisor)
        needed = needs(smallest, context_tokens, kv_type).total
        if needed <= memory_bytes:
            return smallest
    raise OperatorError(
        f'shape {smallest.name}: {needed - memory_bytes} bytes of memory are missing: {needed} '
        f'are needed, {memory_bytes} are available, and it is the smallest scale'
    )


def needs(
    shape: Shape,
    context_tokens: int = 4096,
    kv_type: KvType = 'f16',
    *,
    batch_tokens: int = 512,
    sequences: int = 256,
) -> Memory:
    """Return what `shape` takes in memory, loaded by `LlamaModel` with these settings.

    `compute` is what llama.cpp reserves on a CPU: the logits of a whole batch with two rows of
    activations beside them, and the output buffer, a row of logits for each sequence. There it
    also repacks most weights into memory of its own; the kernel may drop the pages they came from,
    so that `weights` counts once what is used.
    """
    values = 2 * shape.layers * shape.kv_heads * shape.head * context_tokens
    logits = batch_tokens * (VOCABULARY + 2 * shape.width) + sequences * VOCABULARY
    return Memory(
        weights=shape.weights_bytes, kv=round(values * _KV_BYTES[kv_type]), compute=4 * logits
    )


def fits_here(shape: Shape, needed: Memory, path: Path) -> str:
    """Return '' when this machine can hold the loaded model, and the file unless it is there.

    Otherwise one sentence: how many bytes of memory, of disk space, or of both are missing.
    """
    said = []
    available = available_memory_bytes()
    if needed.total > available:
        said.append(
            f'{needed.total - available} bytes of memory are missing: {needed.total} are needed '
            f'(weights {needed.weights}, KV {needed.kv}, compute {needed.compute}), {available} '
            'are available'
        )
    if not path.exists() and (missing := _missing_on_disk(shape, path.parent)):
        said.append(missing)
    return '; '.join(said)


def available_memory_bytes() -> int:
    """Return how much memory this process may still take: what the kernel and a container grant.

    Raises OperatorError where Linux's /proc/meminfo is not to be read.
    """
    try:
        found = re.search(r'^MemAvailable:\s+(\d+) kB$', _text('/proc/meminfo'), re.MULTILINE)
    except OSError as err:
        raise OperatorError(f'/proc/meminfo: cannot be read: {err.strerror}') from err
    if found is None:
        raise OperatorError('/proc/meminfo: has no line MemAvailable')
    available = int(found.group(1)) * 1024
    # inside a container; outside there is no such file, or it says `max`
    with contextlib.suppress(OSError, ValueError):
        available = min(available, int(_text('/sys/fs/cgroup/memory.max')))
    return available


def cache_path(shape: Shape, *, seed: int = SEED) -> Path:
    """Return where `cached` keeps the file of `shape`, there or not."""
    recipe = f'{RECIPE} {shape} {seed} {_tekken_version()}'
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:16]
    return cache_directory() / 'shapes' / f'{shape.name}-{digest}.gguf'


def cached(shape: Shape, *, seed: int = SEED, progress: Progress = silent) -> Path:
    """Return the file of `shape` in the user's cache, written now if it is not there yet.

    Raises what `write` raises. Waits for another process that is writing it.
    """
    path = cache_path(shape, seed=seed)
    if not path.exists():
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with path.with_suffix('.lock').open('w') as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not path.exists():  # whoever held the lock may have written it
                    for orphan in path.parent.glob(f'{path.name}.*.part'):
                        orphan.unlink()  # of a writer that was killed
                    write(shape, path, seed=seed, progress=progress)
        except OSError as err:
            raise _disk_error(path, err) from err
    return path


def write(shape: Shape, path: Path, *, seed: int = SEED, progress: Progress = silent) -> None:
    """Write the GGUF of `shape` to `path`, streamed; `progress` is told bytes of tensors.

    Raises PackageMissingError without the vocabulary's packages, ModelFileError when the disk has
    no room, with the bytes that are missing, or fails. Whatever ends it early, Ctrl-C too, leaves
    nothing behind.
    """
    part = path.with_name(f'{path.name}.{os.getpid()}.part')
    if missing := _missing_on_disk(shape, path.parent):
        raise ModelFileError(f'{path}: {missing}')
    try:
        _write_head(shape, part, seed)
        with part.open('ab') as file:
            _pad(file)
            _write_tensors(shape, file, seed, progress)
            file.flush()
            # what is still to be written to the disk would slow down what is measured next
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as err:
        raise _disk_error(path, err) from err
    finally:
        part.unlink(missing_ok=True)


def tekken_folder(folder: Path) -> Path:
    """Write the vocabulary as `tekken.json`, version v7, into `folder`; return the folder.

    mistral-common has the file of the same vocabulary as v3; the models of 2501 state v7.
    Raises PackageMissingError.
    """
    definition = json.loads(_tekken_definition().read_text(encoding='utf-8'))
    definition['config']['version'] = 'v7'
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'tekken.json').write_text(json.dumps(definition), encoding='utf-8')
    return folder


def _more_bits(layer: int, layers: int) -> bool:
    """Whether Q4_K_M gives a layer's ffn_down and attn_v 6 bits: half of them.

    `use_more_bits` of llama.cpp's llama-quant.cpp: the first and last eighth, a third between.
    """
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _tensors(shape: Shape) -> Iterator[Tensor]:
    queries, keys = shape.heads * shape.head, shape.kv_heads * shape.head
    usual: Kind = 'Q4_K' if shape.mix == 'Q4_K_M' else 'Q8_0'
    better: Kind = 'Q6_K' if shape.mix == 'Q4_K_M' else 'Q8_0'
    yield Tensor('token_embd.weight', (VOCABULARY, shape.width), usual)
    for layer in range(shape.layers):
        block = f'blk.{layer}'
        careful = better if _more_bits(layer, shape.layers) else usual
        yield Tensor(f'{block}.attn_norm.weight', (shape.width,), 'F32')
        yield Tensor(f'{block}.attn_q.weight', (queries, shape.width), usual)
        yield Tensor(f'{block}.attn_k.weight', (keys, shape.width), usual)
        yield Tensor(f'{block}.attn_v.weight', (keys, shape.width), careful)
        yield Tensor(f'{block}.attn_output.weight', (shape.width, queries), usual)
        yield Tensor(f'{block}.ffn_norm.weight', (shape.width,), 'F32')
        yield Tensor(f'{block}.ffn_gate.weight', (shape.feed_forward, shape.width), usual)
        yield Tensor(f'{block}.ffn_up.weight', (shape.feed_forward, shape.width), usual)
        yield Tensor(f'{block}.ffn_down.weight', (shape.width, shape.feed_forward), careful)
    yield Tensor('output_norm.weight', (shape.width,), 'F32')
    if not shape.tied:
        yield Tensor('output.weight', (VOCABULARY, shape.width), better)


def _write_head(shape: Shape, path: Path, seed: int) -> None:
    """Write everything before the tensors' data; about 7 s, most of them the merges."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        tekken = tekken_folder(Path(folder))
        import gguf
        from gguf.vocab import MistralVocab

        vocabulary = MistralVocab(tekken)
    writer = gguf.GGUFWriter(path, 'llama')
    writer.add_name(f'{shape.name}, random weights, seed {seed}')
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head)
    writer.add_value_length(shape.head)
    writer.add_rope_dimension_count(shape.head)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(gguf.LlamaFileType[f'MOSTLY_{shape.mix}'])
    _add_vocabulary(writer, vocabulary)
    for tensor in shape.tensors():
        # the type tells the reader how to read; NumPy's is asked for and not used
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype(np.float32), tensor.bytes,
            raw_dtype=gguf.GGMLQuantizationType[tensor.kind],
        )
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()


def _add_vocabulary(writer: Any, vocabulary: Any) -> None:
    tokens, _scores, kinds = zip(*vocabulary.all_tokens(), strict=True)
    writer.add_tokenizer_model(vocabulary.gguf_tokenizer_model)
    writer.add_tokenizer_pre('tekken')
    writer.add_token_list(list(tokens))
    writer.add_token_types(list(kinds))
    writer.add_token_merges(vocabulary.extract_vocab_merges_from_model())
    writer.add_bos_token_id(vocabulary.bos_id)
    writer.add_eos_token_id(vocabulary.eos_id)
    writer.add_unk_token_id(vocabulary.unk_id)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)


def _write_tensors(shape: Shape, file: BinaryIO, seed: int, progress: Progress) -> None:
    what, done, total = f'writing {shape.name}', 0, shape.weights_bytes
    progress(what, done, total)
    for index, tensor in enumerate(shape.tensors()):
        for chunk in _data(tensor, seed, index):
            file.write(chunk.data)
            done += chunk.nbytes
            progress(what, done, total)
        _pad(file)


def _data(tensor: Tensor, seed: int, index: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield a tensor's bytes in chunks: norms are 1, weights random about 0.

    A row's weights together have a standard deviation of 1: what goes in at 1 comes out at 1.
    Raw words of a bit generator, because NumPy promises the same ones in every version.
    """
    if tensor.kind == 'F32':
        yield np.ones(prod(tensor.shape), '<f4').view(np.uint8)
        return
    block = _BLOCKS[tensor.kind]
    size = 1 / (block.spread * np.sqrt(tensor.shape[-1]))
    scales = np.array([size * ratio for ratio in block.ratios], '<f2').view(np.uint8)
    random = np.random.SFC64([seed, index])
    left = prod(tensor.shape) // block.weights
    while left > 0:
        count = min(left, _CHUNK_BLOCKS)
        words = random.random_raw(-(-count * block.bytes // 8)).astype('<u8', copy=False)
        blocks = words.view(np.uint8)[: count * block.bytes].reshape(count, block.bytes)
        blocks[:, block.scales] = scales
        yield blocks
        left -= count


def _pad(file: BinaryIO) -> None:
    """Write zeros up to where the next tensor may begin."""
    file.seek(0, os.SEEK_END)
    file.write(bytes(-file.tell() % _ALIGNMENT))


def _missing_on_disk(shape: Shape, folder: Path) -> str:
    """Return '' when `folder`'s disk has room for the file; else what is missing."""
    existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    needed = shape.weights_bytes + HEAD_BYTES + SPARE_BYTES
    free = shutil.disk_usage(existing).free
    if needed <= free:
        return ''
    return (
        f'{needed - free} bytes of disk space are missing in {folder}: {needed} are needed, '
        f'{free} are free'
    )


def _disk_error(path: Path, err: OSError) -> ModelFileError:
    return ModelFileError(f'{err.filename or path}: cannot be written: {err.strerror or err}')


def _text(path: str) -> str:
    return Path(path).read_text(encoding='ascii')


def _tekken_definition() -> Path:
    """Return mistral-common's own file of the vocabulary. Raises PackageMissingError."""
    origins = {}
    for package in ('mistral_common', 'gguf'):
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            way_out = "pip install 'smallm_ros[bench]'"
            if sys.hexversion < _PYTHON_3_11:
                way_out = f'it needs Python 3.11 or later, this is {platform.python_version()}'
            raise PackageMissingError(
                f'a shape takes the Tekken vocabulary from {package}, which is missing: {way_out}'
            )
        origins[package] = Path(spec.origin)
    definition = origins['mistral_common'].with_name('data') / _TEKKEN
    if not definition.exists():
        raise PackageMissingError(
            f'{definition}: mistral-common {_tekken_version()} does not have it any more: '
            "pip install 'smallm_ros[bench]'"
        )
    return definition


def _tekken_version() -> str:
    """Return mistral-common's version; '' without it, and then `write` says so."""
    try:
        return importlib.metadata.version('mistral-common')
    except importlib.metadata.PackageNotFoundError:
        return ''
