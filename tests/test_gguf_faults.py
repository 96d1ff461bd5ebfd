"""Model files that are broken, wrong, or change under a worker: one line or one counted death.

The file is tiny, so that each of its 300 flipped bits and 30 ends is loaded for real, in a process
of its own, as a worker loads it, up to a decoded batch.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

pytest.importorskip('llama_cpp')

from smallm_ros.core.errors import ModelFileError
from smallm_ros.core.exchange import (
    Declaration,
    EngineLost,
    ModelLimits,
)
from smallm_ros.engine import registry
from smallm_ros.engine.gguf import check_head
from smallm_ros.engine.registry import ModelEntry
from tests.fakes import tiny_gguf
from tests.fakes.engine_process import Listener, close_listeners, gone, real_engine

pytestmark = pytest.mark.model

LOADER = """
import json, os, signal, sys
from pathlib import Path
from smallm_ros.core.errors import OperatorError, WorkerError
from smallm_ros.engine import registry
from smallm_ros.engine.load import Needs, available_bytes
from smallm_ros.engine.model import Batch, LlamaModel, ModelSettings
from smallm_ros.engine.options import LoadRequest
SETTINGS = ModelSettings(context_tokens=256, batch_tokens=32, sequences=4, n_gpu_layers=0)

def load(path):
    try:
        request = LoadRequest(model=path, n_gpu_layers=0, context_tokens=256)
        file = registry.resolve(path)
        Needs.of(file.path, request).check(request, available_bytes())
        model = LlamaModel.load(
            file.path, name=file.name, sha256=file.sha256, settings=SETTINGS, progress=None
        )
        model.evaluate(Batch([65] * 8, range(8), ((0,),) * 8, (7,)))
        return 'decoded'
    except (OperatorError, WorkerError) as err:
        return f'{type(err).__name__}: {err}'

for line in sys.stdin:
    path = json.loads(line)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.write(write, load(path).encode())
        os._exit(0)
    os.close(write)
    said = os.fdopen(read, 'rb').read().decode()
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said]), flush=True)
"""


@pytest.fixture(scope='module')
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp('sound') / 'tiny.gguf')


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own: nothing is remembered of other files."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


def loads(paths: Sequence[Path]) -> list[tuple[int, str]]:
    """Load each file in a process of its own; return how that ended and what it said."""
    done = subprocess.run(
        [sys.executable, '-c', LOADER], text=True, capture_output=True, timeout=250, check=False,
        input=''.join(json.dumps(str(each)) + '\n' for each in paths),
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
    )
    ended = [(int(code), str(said)) for code, said in map(json.loads, done.stdout.splitlines())]
    assert len(ended) == len(paths), done.stderr
    for path, (code, said) in zip(paths, ended, strict=True):
        assert code != -14, f'{path} hung'
        assert '\n' not in said
        assert code <= 0, f'{path}: {code}, a traceback is no answer: {said}'
        assert code < 0 or said == 'decoded' or str(path) in said or 'WorkerError' in said, said
    return ended


def entry_of(path: Path) -> ModelEntry:
    """Return a registry entry whose file this is."""
    return ModelEntry.model_validate({
        'name': 'tiny', 'description': 'A tiny one', 'licence': 'Apache-2.0',
        'source': {'huggingface': 'someone/Tiny-GGUF', 'file': 'tiny.gguf'},
        'sha256': hashlib.sha256(path.read_bytes()).hexdigest(), 'bytes': path.stat().st_size,
        'template': 'chatml', 'context': 2048, 'kv_bytes_per_token': 128,
    })


def refused_by_its_hash(path: Path, entry: ModelEntry) -> bool:
    try:
        registry.verify(path, entry)
    except ModelFileError:
        return True
    return False


def test_the_sound_file_decodes_and_its_head_says_what_it_needs(sound: Path) -> None:
    assert loads([sound]) == [(0, 'decoded')]
    head = check_head(sound)
    assert (head.vocabulary, head.kv_bytes_per_token) == (260, tiny_gguf.KV_BYTES_PER_TOKEN)
    assert registry.verify(sound, entry_of(sound)) == entry_of(sound).sha256


def test_30_truncations_are_one_line_each_and_refused_by_the_hash(
    sound: Path, tmp_path: Path
) -> None:
    raw, entry = sound.read_bytes(), entry_of(sound)
    ends = [0, 1, 3, 4, 8, 23, 24, 25, 100, 1000,
            *(len(raw) * share // 20 for share in range(1, 20)), len(raw) - 1]
    assert len(set(ends)) == 30
    paths = [tmp_path / f'{end}.gguf' for end in ends]
    for path, end in zip(paths, ends, strict=True):
        path.write_bytes(raw[:end])
    for code, said in loads(paths):
        assert code == 0 and said.startswith('ModelFileError: '), said
    assert all(refused_by_its_hash(path, entry) for path in paths)


def test_300_flipped_bits_are_a_line_a_death_or_another_model_and_refused_by_the_hash(
    sound: Path, tmp_path: Path
) -> None:
    raw, entry = sound.read_bytes(), entry_of(sound)
    head = raw.index(b'output_norm.weight')
    choose = random.Random(300)
    # Half of them anywhere, half of them where the numbers are that say how to read the rest.
    places = [choose.randrange(len(raw)) for _ in range(150)]
    places += [choose.randrange(head) for _ in range(150)]
    paths = []
    for number, at in enumerate(places):
        broken = bytearray(raw)
        broken[at] ^= 1 << choose.randrange(8)
        paths.append(tmp_path / f'{number}.gguf')
        paths[-1].write_bytes(broken)
    ended = loads(paths)
    kinds = Counter(f'signal {-code}' if code else said.partition(':')[0] for code, said in ended)
    assert sum(kinds.values()) == 300
    assert kinds['ModelFileError'] > 10, 'no flip hit a number'
    assert kinds['decoded'] > 10, 'no flip hit a weight'
    assert all(refused_by_its_hash(path, entry) for path in paths)


def test_what_is_no_model_of_ours_is_one_line(sound: Path, tmp_path: Path) -> None:
    folder, fifo = tmp_path / 'folder.gguf', tmp_path / 'fifo.gguf'
    folder.mkdir()
    os.mkfifo(fifo)
    paths = [
        folder, fifo,
        tiny_gguf.write(tmp_path / 'unknown.gguf', architecture='perceptron'),
        tiny_gguf.write(tmp_path / 'other.gguf', architecture='bert'),
        tiny_gguf.write(tmp_path / 'cacheless.gguf', architecture='mamba'),
    ]
    wanted = ['is not a regular file', 'is not a regular file', 'perceptron', 'bert', 'mamba']
    for (code, said), part in zip(loads(paths), wanted, strict=True):
        assert code == 0 and said.startswith('ModelFileError: ') and part in said, said


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read everything')
def test_an_unreadable_file_is_one_line(sound: Path, tmp_path: Path) -> None:
    path = tmp_path / 'secret.gguf'
    shutil.copyfile(sound, path)
    path.chmod(0)
    assert 'Permission denied' in loads([path])[0][1]


def test_another_model_in_its_place_is_refused_by_the_hash(sound: Path, tmp_path: Path) -> None:
    other = tiny_gguf.write(tmp_path / 'other.gguf', seed=5)
    assert other.stat().st_size == sound.stat().st_size
    assert loads([other]) == [(0, 'decoded')], 'it is sound in itself'
    with pytest.raises(ModelFileError, match='sha256 wanted .*, got '):
        registry.verify(other, entry_of(sound))


# --- under a real worker ---------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / 'e.sock'


@pytest.fixture
def listener(path: Path) -> Iterator[Listener]:
    yield Listener(path)
    close_listeners()


def test_a_file_cut_short_under_its_worker_is_a_death_and_then_a_line(
    sound: Path, tmp_path: Path, path: Path, listener: Listener
) -> None:
    model = tmp_path / 'tiny.gguf'
    shutil.copyfile(sound, model)
    with real_engine(path, '--model', str(model), '--context', '512') as running:
        pid = listener.up()
        listener.until(ModelLimits)
        os.truncate(model, model.stat().st_size // 2)
        listener.client.send_nowait(Declaration('s', 'drive', (), ('go', 'stop'), 64))
        listener.until(EngineLost)
        assert running.wait() == ModelFileError.exit_code
        assert gone(pid)
        assert f'worker {pid} died of SIGBUS' in running.log
        assert f'{model}: cannot be loaded' in running.log
        assert 'not started again' in running.log


def test_a_file_that_changed_is_another_model_to_the_next_worker(
    sound: Path, tmp_path: Path, path: Path, listener: Listener
) -> None:
    model = tmp_path / 'tiny.gguf'
    shutil.copyfile(sound, model)
    with real_engine(path, '--model', str(model), '--context', '512'):
        pid = listener.up()
        first = listener.until(ModelLimits).sha256
        other = tiny_gguf.write(tmp_path / 'other.gguf', seed=5)
        times = model.stat()
        shutil.copyfile(other, model)
        os.utime(model, ns=(times.st_atime_ns, times.st_mtime_ns))
        os.kill(pid, 9)
        listener.until(EngineLost)
        second = listener.until(ModelLimits).sha256
        assert first == hashlib.sha256(sound.read_bytes()).hexdigest()
        assert second == hashlib.sha256(other.read_bytes()).hexdigest() != first


def test_a_registered_file_that_changed_is_refused_at_the_next_load(
    sound: Path, tmp_path: Path
) -> None:
    model, entry = tmp_path / 'tiny.gguf', entry_of(sound)
    shutil.copyfile(sound, model)
    assert registry.verify(model, entry) == entry.sha256
    with model.open('r+b') as file:
        file.seek(-1, os.SEEK_END)
        file.write(b'\x7f')
    with pytest.raises(ModelFileError, match='sha256 wanted'):
        registry.verify(model, entry)


def test_a_model_beyond_the_limit_is_refused_before_it_is_loaded(
    sound: Path, tmp_path: Path, path: Path
) -> None:
    with real_engine(path, '--model', str(sound), '--memory-limit', '100MiB') as running:
        assert running.wait() == 2
        (line,) = [each for each in running.log.splitlines() if 'needs about' in each]
        assert re.fullmatch(
            rf'{sound}: needs about \d+ MiB of memory \(weights 0 MiB, KV \d+ MiB, the process '
            r'\d+ MiB\), --memory-limit is 100 MiB: .*smaller model', line)
        assert running.log.count('worker ') == 2, 'started once, and not again'
