"""What an engine is started with: one set of words for the supervisor, its worker and the launch.

The supervisor checks them before it spawns anything and hands the same words to the worker.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

KvType = Literal['f16', 'q8_0', 'q4_0']

DEFAULT_MODEL = 'smollm2-135m-instruct'
CHECK_MS = 50


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

    def words(self) -> list[str]:
        """Return the command line that `load_request` reads back as this."""
        words = [
            '--model', self.model, '--context', str(self.context_tokens),
            '--n-gpu-layers', str(self.n_gpu_layers), '--kv-type', self.kv_type,
            '--check-ms', str(self.check_ms),
        ]
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
    parser.add_argument('--use-mlock', action='store_true',
                        help='keep the model in memory, never swapped')


def load_request(options: argparse.Namespace) -> LoadRequest:
    """Return what the options of `add_load_options` say."""
    return LoadRequest(
        model=options.model, context_tokens=options.context, n_gpu_layers=options.n_gpu_layers,
        use_mlock=options.use_mlock, kv_type=options.kv_type, threads=options.threads,
        template=options.template, check_ms=options.check_ms,
    )


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f'{value} is less than {least}')
        return value
    return number
