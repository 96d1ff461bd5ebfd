"""A tiny GGUF with the true Tekken vocabulary of Mistral Small 3, and random weights.

It loads, tokenises and decodes like the 24B's file, in 20 MB, so that templates, trees and the
whole engine are tried on the vocabulary that matters without 14 GB. The same bytes each time.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

WIDTH = 64
LAYERS = 2
HEADS = 2
KV_HEADS = 1
FEED_FORWARD = 96
CONTEXT = 32_768
VOCABULARY = 131_072


def tekken_definition() -> Path:
    """Return mistral-common's own file of the vocabulary, or skip the test that asks for it."""
    if sys.version_info < (3, 11):
        pytest.skip('the Tekken vocabulary needs Python 3.11 or later')
    mistral_common = pytest.importorskip('mistral_common')
    pytest.importorskip('gguf')
    return Path(mistral_common.__file__).parent / 'data' / 'tekken_240911.json'


def v7_folder(folder: Path) -> Path:
    """Write the vocabulary as `tekken.json`, version v7, into `folder`; return the folder.

    The package has the file of the same vocabulary as v3; the models of 2501 state v7.
    """
    definition = json.loads(tekken_definition().read_text(encoding='utf-8'))
    definition['config']['version'] = 'v7'
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'tekken.json').write_text(json.dumps(definition), encoding='utf-8')
    return folder


def cached() -> Path:
    """Return the GGUF, built once for this builder and this version of mistral-common."""
    tekken_definition()
    base = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
    recipe = Path(__file__).read_bytes() + importlib.metadata.version('mistral-common').encode()
    path = base / 'smallm_ros' / f'tekken-{hashlib.sha256(recipe).hexdigest()[:16]}.gguf'
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f'.{os.getpid()}.part')
        build(part)
        part.replace(path)
    return path


def build(path: Path) -> None:
    """Write the GGUF to `path`; about 7 s, most of them the merges."""
    import gguf
    from gguf.vocab import MistralVocab

    with tempfile.TemporaryDirectory() as folder:
        vocabulary = MistralVocab(v7_folder(Path(folder)))
    writer = gguf.GGUFWriter(path, 'llama')
    writer.add_name('Tiny Tekken, random weights')
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(1e8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    _add_vocabulary(writer, vocabulary)
    _add_weights(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: Any, vocabulary: Any) -> None:
    tokens, _scores, kinds = zip(*vocabulary.all_tokens(), strict=True)
    writer.add_tokenizer_model(vocabulary.gguf_tokenizer_model)
    writer.add_tokenizer_pre('tekken')
    writer.add_token_list(list(tokens))
    writer.add_token_types(list(kinds))
    writer.add_token_merges(vocabulary.extract_vocab_merges_from_model())
    writer.add_bos_token_id(vocabulary.bos_id)
    writer.add_eos_token_id(vocabulary.eos_id)
    writer.add_unk_token_id(vocabulary.unk_id)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)


def _add_weights(writer: Any) -> None:
    import gguf

    random = np.random.default_rng(2501)
    q8_0 = gguf.GGMLQuantizationType.Q8_0

    def matrix(name: str, rows: int, columns: int) -> None:
        weights = random.standard_normal((rows, columns), dtype=np.float32) / np.sqrt(columns)
        writer.add_tensor(name, gguf.quants.quantize(weights, q8_0), raw_dtype=q8_0)

    def norm(name: str) -> None:
        writer.add_tensor(name, np.ones(WIDTH, np.float32))

    head = WIDTH // HEADS
    matrix('token_embd.weight', VOCABULARY, WIDTH)
    norm('output_norm.weight')
    for layer in range(LAYERS):
        block = f'blk.{layer}'
        norm(f'{block}.attn_norm.weight')
        matrix(f'{block}.attn_q.weight', HEADS * head, WIDTH)
        matrix(f'{block}.attn_k.weight', KV_HEADS * head, WIDTH)
        matrix(f'{block}.attn_v.weight', KV_HEADS * head, WIDTH)
        matrix(f'{block}.attn_output.weight', WIDTH, HEADS * head)
        norm(f'{block}.ffn_norm.weight')
        matrix(f'{block}.ffn_gate.weight', FEED_FORWARD, WIDTH)
        matrix(f'{block}.ffn_up.weight', FEED_FORWARD, WIDTH)
        matrix(f'{block}.ffn_down.weight', WIDTH, FEED_FORWARD)
