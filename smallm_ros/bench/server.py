"""`python -m smallm_ros.bench.server SETTINGS`: a llama-server that ends with its parent.

It says its address on stdout when the model is loaded, and serves until its stdin is closed. A
process of its own: its threads, its allocator and its llama.cpp are not ours.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from dataclasses import dataclass
from typing import Any

from smallm_ros import process
from smallm_ros.engine.options import KvType

NEVER = 0
SILENT = -1


@dataclass(frozen=True, slots=True)
class Settings:
    """What a model of another arm is loaded with: as ours is."""

    path: str
    context_tokens: int
    threads: int
    gpu_layers: int
    kv_type: KvType
    parent: int

    def words(self) -> str:
        """Return the settings as the argument of this module."""
        return json.dumps(dataclasses.asdict(self))


def main() -> None:
    """Serve until stdin is closed."""
    settings = Settings(**json.loads(sys.argv[1]))
    if not process.die_with(settings.parent, signal.SIGKILL):
        return
    server = _server(settings)
    print(server.listening_address, flush=True)
    sys.stdin.read()
    sys.stdout.flush()
    os._exit(0)  # the server's threads have no other end, and nothing here needs one


def _server(settings: Settings) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = settings.path
    params.hostnames = ['127.0.0.1']
    params.port = 0
    params.n_ctx = settings.context_tokens
    params.n_parallel = 1
    params.n_gpu_layers = settings.gpu_layers
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings.threads
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
    kinds = {'f16': 'GGML_TYPE_F16', 'q8_0': 'GGML_TYPE_Q8_0', 'q4_0': 'GGML_TYPE_Q4_0'}
    kind = getattr(xllamacpp.ggml_type, kinds[settings.kv_type])
    params.cache_type_k = params.cache_type_v = kind
    params.cache_prompt = True
    # Only the slot's own cache, as every other arm has: no copies of old prompts in memory.
    params.cache_ram_mib = NEVER
    params.n_ctx_checkpoints = NEVER
    params.fit_params = False
    params.verbosity = SILENT
    return xllamacpp.Server(params)


if __name__ == '__main__':
    main()
