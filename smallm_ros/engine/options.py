"""What an engine is started with: one set of words for the supervisor, its worker and the launch.

The supervisor checks them before it spawns anything and hands the same words to the worker.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

KvType = Literal['f16', 'q8_0', 'q4_0']

KV_SHARES: Mapping[KvType, float] = {'f16': 1.0, 'q8_0': 17 / 32, 'q4_0': 9 / 32}
"""Size of a KV cache beside one of f16: 34 and 18 bytes for 32 values of 2 bytes each."""
DEFAULT_MODEL = 'smollm2-135m-instruct'
CHECK_MS = 50
FIRST_TO_GO = 800
"""oom_score_adj of the worker: as if it held 80 % of all memory on top of what it does. So it goes
before any process of the robot that did not ask for worse, even with a small model; not 1000, so
that a batch job can be made to go before it."""
_UNITS = {'': 1, 'KiB': 1 << 10, 'MiB': 1 << 20, 'GiB': 1 << 30}


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """The model to load, and how."""

    model: str = DEFAULT_MODEL
    """A name from the registry, or the path of a GGUF file."""
    context_tokens: int = 4096
    n_gpu_layers: int = -1
    """-1 is all that there are; 0 is the CPU alone."""
    use_mlock: bool = False
    kv_type: KvType = 'f16'
    threads: int | None = None
    """None is the number of physical cores less one, at least one."""
    template: str | None = None
    """Chat template of a GGUF that is not in the registry; None is told from its vocabulary."""
    check_ms: int = CHECK_MS
    """How long a batch of work that can wait may take: a question waits for one at the most."""
    memory_limit_bytes: int | None = None
    """What the worker may hold, resident and swapped: refused at load, killed above it."""
    oom_score_adj: int = FIRST_TO_GO
    """See proc(5): the higher, the sooner the worker goes when memory runs out."""

    def words(self) -> list[str]:
        """Return the command line that `load_request` reads back as this."""
        words = [
            '--model', self.model, '--context', str(self.context_tokens),
            '--n-gpu-layers', str(self.n_gpu_layers), '--kv-type', self.kv_type,
            '--check-ms', str(self.check_ms), '--oom-score-adj', str(self.oom_score_adj),
        ]
        if self.memory_limit_bytes is not None:
            words += ['--memory-limit', str(self.memory_limit_bytes)]
        if self.use_mlock:
            words.append('--use-mlock')
        if self.threads is not None:
            words += ['--threads', str(self.threads)]
        if self.template is not None:
            words += ['--template', self.template]
        return words


def add_load_options(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the options that `load_request` reads."""
    parser.add_argument('--model', default=DEFAULT_MODEL, metavar='NAME|PATH',
                        help='a name that `smallm models list` shows, or a GGUF file '
                             '(default: %(default)s)')
    parser.add_argument('--context', type=_at_least(256), default=4096, metavar='TOKENS',
                        help='context length (default: %(default)s)')
    parser.add_argument('--n-gpu-layers', type=_at_least(-1), default=-1, metavar='N',
                        help='layers on the GPU: -1 all, 0 none (default: %(default)s)')
    parser.add_argument('--kv-type', choices=get_args(KvType), default='f16',
                        help='type of the KV cache (default: %(default)s)')
    parser.add_argument('--threads', type=_at_least(1), metavar='N',
                        help='CPU threads (default: physical cores less one)')
    parser.add_argument('--template', metavar='NAME',
                        help='chat template of a GGUF that the registry does not know '
                             '(default: told from its vocabulary)')
    parser.add_argument('--check-ms', type=_at_least(1), default=CHECK_MS, metavar='MS',
                        help='longest batch of work that can wait, for which a question waits '
                             'too (default: %(default)s)')
    parser.add_argument('--memory-limit', type=_bytes, metavar='BYTES|GiB',
                        help='most memory of the worker, mapped weights too: 18GiB, 900MiB or '
                             'bytes (default: none)')
    parser.add_argument('--oom-score-adj', type=_at_least(0, 1000), default=FIRST_TO_GO,
                        metavar='N', help='how much sooner the worker is killed than others when '
                                          'memory runs out, 0 to 1000 (default: %(default)s)')
    parser.add_argument('--use-mlock', action='store_true',
                        help='keep the model in memory, never swapped')


def load_request(options: argparse.Namespace) -> LoadRequest:
    """Return what the options of `add_load_options` say."""
    return LoadRequest(
        model=options.model, context_tokens=options.context, n_gpu_layers=options.n_gpu_layers,
        use_mlock=options.use_mlock, kv_type=options.kv_type, threads=options.threads,
        template=options.template, check_ms=options.check_ms,
        memory_limit_bytes=options.memory_limit, oom_score_adj=options.oom_score_adj,
    )


def _bytes(text: str) -> int:
    found = re.fullmatch(r'(\d+(?:\.\d+)?) ?([KMG]iB)?', text)
    if found is None or not (count := round(float(found[1]) * _UNITS[found[2] or ''])):
        raise argparse.ArgumentTypeError(f'{text!r} is no size: 18GiB, 900MiB or bytes')
    return count


def _at_least(least: int, most: int | None = None) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f'{value} is less than {least}')
        if most is not None and value > most:
            raise argparse.ArgumentTypeError(f'{value} is more than {most}')
        return value
    return number
