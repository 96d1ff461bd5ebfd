"""Files of a true shape: the real one's size to some kilobytes, loadable, whole or not there."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import resource
import shutil
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from smallm_ros.bench import shape as shapes
from smallm_ros.bench.shape import MISTRAL_SMALL_24B, SHAPES, TINY, Memory
from smallm_ros.core.errors import ModelFileError, OperatorError, PackageMissingError
from smallm_ros.engine.registry import entry_named

EIGHTH = SHAPES['mistral-small-24b-s8']
METADATA_BYTES = 7_880_960
"""Everything before the data of the full shape's tensors, written once and counted."""
BITS = {'F32': 32, 'Q8_0': 8.5, 'Q4_K': 4.5, 'Q6_K': 6.5625}

GOLDEN = 'fdf58dcd6f193844'
"""How the sha256 of the eighth's tensors begins, by seed SEED."""

# What llama.cpp's Q4_K_M does, by layer of 40: the first and last five, and each third between.
SIX_BITS = {0, 1, 2, 3, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31, 34, 35, 36, 37, 38, 39}


class TestTheFullShape:
    """Mistral Small 3 24B, Q4_K_M, without writing it."""

    def test_has_the_tensors_and_types_of_the_real_file(self) -> None:
        table = {'token_embd.weight': ((131_072, 5120), 'Q4_K')}
        for layer in range(40):
            better = 'Q6_K' if layer in SIX_BITS else 'Q4_K'
            table |= {f'blk.{layer}.{name}.weight': row for name, row in {
                'attn_norm': ((5120,), 'F32'),
                'attn_q': ((4096, 5120), 'Q4_K'),
                'attn_k': ((1024, 5120), 'Q4_K'),
                'attn_v': ((1024, 5120), better),
                'attn_output': ((5120, 4096), 'Q4_K'),
                'ffn_norm': ((5120,), 'F32'),
                'ffn_gate': ((32_768, 5120), 'Q4_K'),
                'ffn_up': ((32_768, 5120), 'Q4_K'),
                'ffn_down': ((5120, 32_768), better),
            }.items()}
        table |= {
            'output_norm.weight': ((5120,), 'F32'), 'output.weight': ((131_072, 5120), 'Q6_K'),
        }
        tensors = MISTRAL_SMALL_24B.tensors()
        assert {each.name: (each.shape, each.kind) for each in tensors} == table
        assert Counter(each.kind for each in tensors) == {'F32': 81, 'Q4_K': 241, 'Q6_K': 41}

    def test_has_the_real_files_size_to_within_two_kilobytes(self) -> None:
        real = entry_named('mistral-small-24b-instruct-2501-q4_k_m')
        counted = sum(
            int(np.prod(each.shape) * BITS[each.kind] / 8) for each in MISTRAL_SMALL_24B.tensors()
        )
        assert MISTRAL_SMALL_24B.weights_bytes == counted == 14_326_026_240
        # ours lacks the chat template and the names of its makers
        assert 0 < real.bytes - (counted + METADATA_BYTES) < 2048
        assert MISTRAL_SMALL_24B.kv_bytes_per_token == real.kv_bytes_per_token
        assert MISTRAL_SMALL_24B.context == real.context

    def test_needs_the_memory_that_llama_cpp_states(self) -> None:
        needed = shapes.needs(MISTRAL_SMALL_24B, 4096, 'f16')
        assert needed.kv == 4096 * 163_840
        assert shapes.needs(MISTRAL_SMALL_24B, 4096, 'q8_0').kv == needed.kv * 34 // 64
        assert needed.total == needed.weights + needed.kv + needed.compute
        # as in llama.cpp's log of the loaded files: output buffer, then compute buffer, in MiB
        assert shapes.needs(MISTRAL_SMALL_24B, sequences=64).compute == (32 + 276) << 20
        assert shapes.needs(EIGHTH).compute == (128 + 259) << 20


class TestScales:
    @pytest.mark.parametrize('shape', SHAPES.values(), ids=lambda shape: shape.name)
    def test_each_is_one_that_the_quantisations_can_hold(self, shape: shapes.Shape) -> None:
        for tensor in shape.tensors():
            if tensor.kind != 'F32':
                assert tensor.shape[-1] % (32 if tensor.kind == 'Q8_0' else 256) == 0, tensor
        assert shape.heads % shape.kv_heads == 0

    def test_an_eighth_has_an_eighth_of_the_layers_and_heads_and_the_whole_vocabulary(
        self,
    ) -> None:
        assert shapes.shape_named('mistral-small-24b', '1/8') == EIGHTH
        assert (EIGHTH.layers, EIGHTH.heads, EIGHTH.kv_heads, EIGHTH.head) == (5, 4, 1, 128)
        assert (EIGHTH.width, EIGHTH.feed_forward) == (768, 4096)
        assert EIGHTH.tensors()[0].shape == (131_072, 768)

    @pytest.mark.parametrize(('name', 'scale', 'said'), [
        ('mistral', 'full', "shape 'mistral' is unknown: one of mistral-small-24b, "),
        ('mistral-small-24b', '1/3', "scale '1/3' is unknown: one of auto, full, 1/2, 1/4, 1/8"),
        ('tiny', '1/2', 'shape tiny cannot be had at scale 1/2'),
    ])
    def test_another_name_or_scale_is_answered_with_those_there_are(
        self, name: str, scale: str, said: str
    ) -> None:
        with pytest.raises(OperatorError, match=re.escape(said)):
            shapes.shape_named(name, scale)

    def test_the_largest_that_fits_is_taken(self) -> None:
        full = shapes.needs(MISTRAL_SMALL_24B).total
        assert shapes.scaled(MISTRAL_SMALL_24B, full) is MISTRAL_SMALL_24B
        assert shapes.scaled(MISTRAL_SMALL_24B, full - 1).name == 'mistral-small-24b-s2'
        longer = shapes.scaled(MISTRAL_SMALL_24B, full, context_tokens=8192)
        assert longer.name == 'mistral-small-24b-s2'
        assert shapes.scaled(MISTRAL_SMALL_24B, shapes.needs(EIGHTH).total) == EIGHTH

    @pytest.mark.parametrize(('shape', 'smallest'), [(MISTRAL_SMALL_24B, EIGHTH), (TINY, TINY)])
    def test_where_none_fits_the_missing_bytes_are_said(
        self, shape: shapes.Shape, smallest: shapes.Shape
    ) -> None:
        needed = shapes.needs(smallest).total
        with pytest.raises(OperatorError, match=f'{smallest.name}: 7 bytes of memory are missing'):
            shapes.scaled(shape, needed - 7)

    def test_this_machine_has_some_memory(self) -> None:
        assert 1 << 20 < shapes.available_memory_bytes() < 1 << 50


class TestWhatIsMissingHere:
    @pytest.fixture
    def full_disk(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            shutil, 'disk_usage', lambda _path: SimpleNamespace(free=10_000_000)
        )

    def test_nothing(self, tmp_path: Path) -> None:
        assert shapes.fits_here(TINY, Memory(1, 1, 1), tmp_path / 'tiny.gguf') == ''

    def test_memory_and_disk_by_the_byte(self, full_disk: None, tmp_path: Path) -> None:
        said = shapes.fits_here(TINY, Memory(1 << 60, 2, 3), tmp_path / 'far' / 'tiny.gguf')
        assert re.search(r'^\d+ bytes of memory are missing: \d+ are needed \(weights \d+, ', said)
        room = TINY.weights_bytes + shapes.HEAD_BYTES + shapes.SPARE_BYTES
        assert f'; {room - 10_000_000} bytes of disk space are missing in {tmp_path}/far' in said

    def test_a_file_that_is_there_needs_no_room(self, full_disk: None, tmp_path: Path) -> None:
        there = tmp_path / 'tiny.gguf'
        there.touch()
        assert shapes.fits_here(TINY, Memory(1, 1, 1), there) == ''

    def test_writing_is_refused_before_a_byte_is_written(
        self, full_disk: None, tmp_path: Path
    ) -> None:
        with pytest.raises(ModelFileError, match=r'\d+ bytes of disk space are missing'):
            shapes.write(TINY, tmp_path / 'tiny.gguf')
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize('package', ['mistral_common', 'gguf'])
    def test_a_package(
        self, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        find_spec = shapes.importlib.util.find_spec
        monkeypatch.setattr(
            shapes.importlib.util, 'find_spec',
            lambda name: find_spec(name if name != package else 'no_such_package'),
        )
        if package == 'gguf':
            pytest.importorskip('mistral_common')
        with pytest.raises(PackageMissingError, match=package) as raised:
            shapes.write(TINY, tmp_path / 'tiny.gguf')
        way_out = 'needs Python 3.11' if sys.version_info < (3, 11) else 'smallm_ros[bench]'
        assert way_out in str(raised.value)
        assert list(tmp_path.iterdir()) == []

    def test_python_3_11(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shapes.importlib.util, 'find_spec', lambda _name: None)
        monkeypatch.setattr(sys, 'hexversion', 0x030A0CF0)
        with pytest.raises(PackageMissingError, match='needs Python 3.11 or later, this is 3'):
            shapes.write(TINY, tmp_path / 'tiny.gguf')


@pytest.fixture(scope='module')
def eighth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Mistral shape at an eighth: 178 MB, written for this run."""
    pytest.importorskip('mistral_common')
    pytest.importorskip('gguf')
    path = tmp_path_factory.mktemp('eighth') / 'eighth.gguf'
    told: list[tuple[str, int, int]] = []
    shapes.write(EIGHTH, path, progress=lambda *step: told.append(step))
    assert [path.name] == [each.name for each in path.parent.iterdir()]
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert told[-1] == ('writing mistral-small-24b-s8', *[EIGHTH.weights_bytes] * 2)
    return path


def head_of(path: Path) -> tuple[dict[str, Any], list[tuple[str, tuple[int, ...], str]]]:
    """Read a GGUF's single values, and each tensor's name, shape (rows first) and type.

    gguf.GGUFReader takes ten seconds for the vocabulary.
    """
    import gguf

    scalars = {0: 'B', 4: 'I', 5: 'i', 6: 'f', 7: '?', 10: 'Q'}
    with path.open('rb') as file:
        def number(form: str) -> Any:
            return struct.unpack(f'<{form}', file.read(struct.calcsize(form)))[0]

        def string() -> str:
            return file.read(number('Q')).decode()

        def value(kind: int) -> Any:
            if kind == 9:
                element, count = number('I'), number('Q')
                return [value(element) for _ in range(count)]
            return string() if kind == 8 else number(scalars[kind])

        assert file.read(4) == b'GGUF'
        assert number('I') == 3
        count, pairs = number('Q'), number('Q')
        fields = {string(): value(number('I')) for _ in range(pairs)}
        tensors = []
        for _ in range(count):
            name, dimensions = string(), number('I')
            shape = tuple(number('Q') for _ in range(dimensions))[::-1]
            tensors.append((name, shape, gguf.GGMLQuantizationType(number('I')).name))
            number('Q')  # its offset: llama.cpp refuses a wrong one
        return fields, tensors


@pytest.mark.slow
@pytest.mark.model
class TestAWrittenShape:
    def test_holds_what_the_table_says(self, eighth: Path) -> None:
        import gguf

        fields, tensors = head_of(eighth)
        assert tensors == [(each.name, each.shape, each.kind) for each in EIGHTH.tensors()]
        assert fields['llama.attention.key_length'] == 128
        assert fields['llama.rope.freq_base'] == 1e8
        assert fields['llama.context_length'] == 32_768
        assert fields['general.file_type'] == gguf.LlamaFileType.MOSTLY_Q4_K_M
        # each takes a multiple of GGUF's alignment, so that none needs padding
        assert all(each.bytes % 32 == 0 for each in EIGHTH.tensors())
        data = np.memmap(eighth, np.uint8, 'r')[-EIGHTH.weights_bytes:]
        for tensor in EIGHTH.tensors():
            own, data = data[:tensor.bytes], data[tensor.bytes:]
            rows = own.reshape(*tensor.shape[:-1], -1)[:64]
            weights = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[tensor.kind])
            if tensor.kind == 'F32':
                assert (weights == 1).all()
            else:
                spread = weights.std() * np.sqrt(tensor.shape[-1])
                assert 0.97 < spread < 1.03, tensor.name
                assert abs(weights.mean()) < 0.1 * weights.std()

    def test_loads_and_gives_finite_logits_that_differ(self, eighth: Path) -> None:
        pytest.importorskip('llama_cpp')
        from smallm_ros.engine.model import Batch, LlamaModel, ModelSettings

        model = LlamaModel.load(
            eighth, name='eighth', sha256='', settings=ModelSettings(context_tokens=512)
        )
        try:
            assert model.n_vocab == shapes.VOCABULARY
            assert model.control_token('[INST]') == 3
            ids = model.tokenize('The wall is 0.4 m ahead, the door is open.' * 4)
            logits = model.evaluate(Batch(
                tokens=ids, positions=range(len(ids)), sequences=((0,),) * len(ids),
                outputs=range(len(ids)),
            ))
            assert np.isfinite(logits).all()
            assert 0.5 < logits.std() < 2
            assert len(set(logits.argmax(axis=1).tolist())) > len(set(ids)) // 2
        finally:
            model.close()

    def test_has_the_same_bytes_for_the_same_seed(self, eighth: Path) -> None:
        # of the tensors alone: the metadata's bytes are gguf's and mistral-common's too
        with eighth.open('rb') as file:
            file.seek(-EIGHTH.weights_bytes, os.SEEK_END)
            digest = hashlib.file_digest(file, 'sha256').hexdigest()
        # another digest: raise RECIPE, so that no cached file is taken for the new one
        assert digest[:16] == GOLDEN, f'{digest[:16]} under RECIPE {shapes.RECIPE}'
        tensor = EIGHTH.tensors()[1 + 8]
        first, again, other, next_one = (
            b''.join(chunk.tobytes() for chunk in shapes._data(tensor, seed, index))
            for seed, index in ((1, 9), (1, 9), (2, 9), (1, 10))
        )
        assert first == again
        assert first != other
        assert first != next_one


@pytest.mark.slow
@pytest.mark.model
class TestAWriteThatEndsEarly:
    @pytest.fixture(autouse=True)
    def packages(self) -> None:
        pytest.importorskip('mistral_common')
        pytest.importorskip('gguf')

    def test_ctrl_c_leaves_nothing(self, tmp_path: Path) -> None:
        def interrupt(_what: str, done: int, total: int) -> None:
            if done > total // 2:
                assert len(list(tmp_path.iterdir())) == 1  # the part file
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            shapes.write(TINY, tmp_path / 'tiny.gguf', progress=interrupt)
        assert list(tmp_path.iterdir()) == []

    @pytest.fixture
    def small_files(self) -> Iterator[int]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000_000, before[1]))
        yield errno.EFBIG
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    def test_a_disk_that_fails_is_said_and_leaves_nothing(
        self, small_files: int, tmp_path: Path
    ) -> None:
        path, told = tmp_path / 'eighth.gguf', []
        with pytest.raises(ModelFileError, match='cannot be written: File too large') as raised:
            shapes.write(EIGHTH, path, progress=lambda *step: told.append(step))
        assert told[-1][1] > 20_000_000
        cause: Any = raised.value.__cause__
        assert cause.errno == small_files
        assert str(path) in str(raised.value)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.model
def test_the_cache_keeps_one_file_for_each_shape_and_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    written = []

    def write(shape: shapes.Shape, path: Path, *, seed: int, progress: object) -> None:
        written.append((shape, path, seed))
        path.touch()

    monkeypatch.setattr(shapes, 'write', write)
    orphan = shapes.cache_path(TINY).with_name(f'{shapes.cache_path(TINY).name}.1.part')
    orphan.parent.mkdir(parents=True)
    orphan.touch()
    first = shapes.cached(TINY)
    assert shapes.cached(TINY) == first == shapes.cache_path(TINY)
    assert shapes.cached(TINY, seed=7) not in (first, shapes.cached(EIGHTH))
    assert [(shape, seed) for shape, _, seed in written] == \
        [(TINY, shapes.SEED), (TINY, 7), (EIGHTH, shapes.SEED)]
    assert not orphan.exists()
