"""`smallm models`: what it prints, its exit codes, and a pull from a stand-in of the hub."""

from __future__ import annotations

import argparse
import hashlib
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from smallm_ros.cli import models
from smallm_ros.core.errors import ModelFileError, OperatorError
from smallm_ros.engine import registry

ROOT = Path(registry.__file__).parents[2]
CONTENT = b'GGUF' + os.urandom(25_000_000)
BREAK_BYTES = 15_000_000
"""Where a try breaks off; huggingface_hub keeps what it wrote, 10 MB at a time."""
COMMIT = 'c0ffee' + '0' * 34


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'smallm_ros'


def tiny(content: bytes = CONTENT) -> dict[str, object]:
    return {
        'name': 'tiny',
        'description': 'A tiny one',
        'source': {'huggingface': 'someone/Tiny-GGUF', 'file': 'tiny.gguf'},
        'sha256': hashlib.sha256(content).hexdigest(),
        'bytes': len(content),
        'licence': 'Apache-2.0',
        'template': 'chatml',
        'context': 2048,
        'kv_bytes_per_token': 10240,
    }


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry of one tiny model, instead of the one that is shipped."""
    folder = tmp_path / 'models'
    folder.mkdir()
    (folder / 'tiny.yaml').write_text(yaml.safe_dump(tiny()))
    monkeypatch.setattr(registry, 'find_share', lambda kind: tmp_path / kind)
    return folder


def smallm(*words: str, download: registry.Download | None = None) -> int:
    parser = argparse.ArgumentParser()
    models.add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(['models', *words])
    assert args.run is models.run
    return models.run(args, download) if download else models.run(args)


def bring(source: registry.HuggingFaceSource, folder: Path) -> Path:
    (folder / source.file).write_bytes(CONTENT)
    return folder / source.file


def test_list_shows_each_model_and_whether_it_is_here(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert smallm('list') == 0
    assert capsys.readouterr().out == (
        'tiny  [not here]\n    A tiny one\n'
        '    0.03 GB, Apache-2.0, template chatml, context 2048, KV 10.0 KiB a token\n'
    )
    smallm('pull', 'tiny', download=bring)
    capsys.readouterr()
    smallm('list')
    assert capsys.readouterr().out.startswith('tiny  [here]\n')


def test_list_of_what_is_shipped(capsys: pytest.CaptureFixture[str]) -> None:
    assert smallm('list') == 0
    out = capsys.readouterr().out
    assert 'mistral-small-24b-instruct-2501-q4_k_m  [not here]' in out
    assert '14.33 GB, Apache-2.0, template mistral-v7-tekken, context 32768, KV 160.0 KiB' in out


def test_pull_says_how_large_it_is_shows_progress_and_ends_with_the_path(
    own: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert smallm('pull', 'tiny', download=bring) == 0
    said = capsys.readouterr()
    assert said.out == f'tiny: 0.03 GB, Apache-2.0\n{cache}/models/tiny.gguf\n'
    shown = said.err.splitlines()
    assert shown[-1] == 'sha256 of tiny.gguf: 100 %'
    assert len(shown) == len(set(shown)) <= 11


def test_verify_reads_again_and_names_what_is_wrong(
    own: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert smallm('verify') == 0
    assert capsys.readouterr().out == 'tiny: not here\n'
    assert smallm('verify', 'tiny') == ModelFileError.exit_code
    assert 'is not here yet: smallm models pull tiny' in capsys.readouterr().err
    smallm('pull', 'tiny', download=bring)
    capsys.readouterr()
    assert smallm('verify') == 0
    good = capsys.readouterr()
    assert good.out.startswith(f'tiny: good, sha256 {tiny()["sha256"]}, {cache}/models/')
    assert 'sha256 of tiny.gguf: 100 %' in good.err
    (cache / 'models' / 'tiny.gguf').write_bytes(CONTENT[::-1])
    for words in (['verify'], ['verify', 'tiny']):
        assert smallm(*words) == ModelFileError.exit_code
        said = capsys.readouterr()
        assert f'sha256 wanted {tiny()["sha256"]}, got ' in said.err
        assert 'good' not in said.out


@pytest.mark.parametrize('action', ['verify', 'pull'])
def test_an_unknown_name_is_an_operators_error(own: Path, action: str) -> None:
    with pytest.raises(OperatorError, match="'gpt' is unknown: one of tiny, or a path"):
        smallm(action, 'gpt')


@pytest.mark.parametrize('words', [[], ['pull'], ['push', 'tiny']])
def test_words_that_are_no_command_print_the_usage(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        smallm(*words)
    assert caught.value.code == 2
    assert 'usage:' in capsys.readouterr().err


# The real huggingface_hub against a hub of our own on this host, in a process of its own because
# it reads its environment when it is imported.


class HubHandler(http.server.BaseHTTPRequestHandler):
    """What huggingface.co answers to the two requests of a download."""

    server: Hub

    def do_HEAD(self) -> None:
        self._head(200, len(CONTENT))

    def do_GET(self) -> None:
        asked = self.headers.get('Range', 'bytes=0-')
        start = int(asked.removeprefix('bytes=').split('-')[0])
        self.server.starts.append(start)
        self._head(206 if start else 200, len(CONTENT) - start)
        if self.server.breaks > 0:
            self.server.breaks -= 1
            self.wfile.write(CONTENT[start : start + BREAK_BYTES])
            self.close_connection = True
            return
        self.wfile.write(CONTENT[start:])

    def _head(self, status: int, length: int) -> None:
        self.send_response(status)
        self.send_header('Content-Length', str(length))
        self.send_header('ETag', f'"{hashlib.sha256(CONTENT).hexdigest()}"')
        self.send_header('X-Repo-Commit', COMMIT)
        self.send_header('Accept-Ranges', 'bytes')
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


class Hub(http.server.ThreadingHTTPServer):
    """Counts where downloads began, and breaks off as often as it is told to."""

    def __init__(self) -> None:
        super().__init__(('127.0.0.1', 0), HubHandler)
        self.starts: list[int] = []
        self.breaks = 0


@pytest.fixture
def hub() -> Iterator[Hub]:
    pytest.importorskip('huggingface_hub')
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def pull_from(endpoint: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Pull `tiny` with the real huggingface_hub, in a process of its own."""
    program = (
        'import sys, yaml, json\n'
        'from smallm_ros.core.errors import OperatorError\n'
        'from smallm_ros.engine import registry\n'
        'entry = registry.ModelEntry.model_validate(json.loads(sys.argv[1]))\n'
        'try:\n'
        '    print(registry.pull(entry, registry.hugging_face))\n'
        'except OperatorError as err:\n'
        '    print(err)\n'
        '    sys.exit(err.exit_code)\n'
    )
    environment = {
        **os.environ,
        'PYTHONPATH': str(ROOT),
        'HF_ENDPOINT': endpoint,
        'HF_HOME': str(tmp_path / 'hf'),
        'HF_HUB_DISABLE_TELEMETRY': '1',
    }
    entry = registry.ModelEntry.model_validate(tiny())
    return subprocess.run(
        [sys.executable, '-c', program, entry.model_dump_json()],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_real_huggingface_hub_fetches_and_resumes(
    hub: Hub, tmp_path: Path, cache: Path
) -> None:
    hub.breaks = 1
    done = pull_from(f'http://127.0.0.1:{hub.server_port}', tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (cache / 'models' / 'tiny.gguf').read_bytes() == CONTENT
    assert hub.starts[0] == 0
    assert 0 < hub.starts[-1] <= BREAK_BYTES
    assert not list((cache / 'models').glob('.pull-tiny/*'))


@pytest.mark.slow  # 24 s of huggingface_hub's own retries
def test_without_a_network_there_is_one_clear_line(tmp_path: Path, cache: Path) -> None:
    pytest.importorskip('huggingface_hub')
    # nobody listens on the discard port; HF_HUB_OFFLINE would not ask at all
    done = pull_from('http://127.0.0.1:9', tmp_path)
    assert done.returncode == ModelFileError.exit_code
    assert (
        done.stdout == 'someone/Tiny-GGUF/tiny.gguf: huggingface.co cannot be reached from here\n'
    )
    assert not list(cache.rglob('*.gguf'))
