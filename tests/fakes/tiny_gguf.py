"""A GGUF of 100 KB with random weights that llama.cpp loads, tokenises and decodes with.

Its vocabulary are the bytes and ChatML's control tokens, so that the whole engine runs on it in
milliseconds, and a file can be broken in 300 places without minutes of copying.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

WIDTH, HEADS, KV_HEADS, FEED_FORWARD, LAYERS, CONTEXT = 32, 4, 2, 64, 2, 4096
KV_BYTES_PER_TOKEN = LAYERS * KV_HEADS * 2 * (WIDTH // HEADS) * 2


CHATML = ('<|endoftext|>', '<|im_start|>', '<|im_end|>')
PLAIN = 257
"""Tokens that are text; the control tokens follow."""


def write(
    path: Path, *, architecture: str = 'llama', seed: int = 4, controls: Sequence[str] = CHATML
) -> Path:
    """Write the file and return its path; skip the test where gguf is not installed."""
    gguf = pytest.importorskip('gguf')
    random = np.random.default_rng(seed)
    tokens = [*byte_tokens(), 'ab', *controls]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_tokenizer_model('gpt2')
    writer.add_tokenizer_pre('smollm')
    writer.add_token_list(tokens)
    writer.add_token_types([1] * PLAIN + [3] * len(controls))
    writer.add_token_merges(['a b'])
    writer.add_bos_token_id(PLAIN)
    writer.add_eos_token_id(PLAIN + 2)
    half = WIDTH * KV_HEADS // HEADS
    shapes = {'token_embd': (len(tokens), WIDTH), 'output_norm': (WIDTH,)}
    for layer in range(LAYERS):
        shapes |= {f'blk.{layer}.{name}': shape for name, shape in {
            'attn_norm': (WIDTH,), 'attn_q': (WIDTH, WIDTH), 'attn_k': (half, WIDTH),
            'attn_v': (half, WIDTH), 'attn_output': (WIDTH, WIDTH), 'ffn_norm': (WIDTH,),
            'ffn_gate': (FEED_FORWARD, WIDTH), 'ffn_up': (FEED_FORWARD, WIDTH),
            'ffn_down': (WIDTH, FEED_FORWARD),
        }.items()}
    for name, shape in shapes.items():
        values = random.normal(1.0 if len(shape) == 1 else 0.0, 0.2, shape)
        writer.add_tensor(f'{name}.weight', values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def byte_tokens() -> list[str]:
    """Return how GPT-2's vocabulary spells the 256 bytes: printable, each by one character."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
