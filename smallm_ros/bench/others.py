"""What one would write first: a chat completion with a JSON schema, in process and as a server.

The same file, threads, context, KV type and flash attention as ours, the static prefix warm, and
each keeps the longest common prefix of its last prompt, as it does by default. What is not equal:
they answer in JSON, token by token, and compile the schema's grammar at each call, because the
request is the only place for it; ours corrects the prior, they do not.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import select
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp

from smallm_ros.bench.observations import AsJson, Case
from smallm_ros.bench.server import Settings
from smallm_ros.bench.shot import Shot
from smallm_ros.bench.tap import Tap
from smallm_ros.core.clock import SECOND, Clock
from smallm_ros.core.errors import OperatorError, PackageMissingError
from smallm_ros.core.exchange import Declaration

MOST_TOKENS = 96
"""Of an answer; the longest in a policy of ours has 40."""
REPLY_LIMIT_S = 600
LOAD_LIMIT_NS = 600 * SECOND
END_LIMIT_S = 5.0

_KV_TYPES = {
    'f16': llama_cpp.GGML_TYPE_F16,
    'q8_0': llama_cpp.GGML_TYPE_Q8_0,
    'q4_0': llama_cpp.GGML_TYPE_Q4_0,
}


@dataclass(frozen=True, slots=True)
class Chat:
    """What a chat model is told before the observation, and in what form it must answer."""

    turns: tuple[dict[str, str], ...]
    form: AsJson

    @classmethod
    def of(cls, declared: Declaration, form: AsJson) -> Chat:
        """Return the declaration as turns, its examples answered in JSON."""
        turns = [{'role': 'system', 'content': declared.system}]
        for text, answer in declared.examples:
            turns += [{'role': 'user', 'content': text},
                      {'role': 'assistant', 'content': form.text(answer)}]
        return cls(tuple(turns), form)

    def messages(self, text: str) -> list[dict[str, str]]:
        """Return the conversation that ends with `text`."""
        return [*self.turns, {'role': 'user', 'content': text}]


class Completion:
    """`Llama.create_chat_completion` of llama-cpp-python."""

    def __init__(self, settings: Settings, chat: Chat, tap: Tap, clock: Clock) -> None:
        self._chat, self._tap, self._clock = chat, tap, clock
        self._llama = llama_cpp.Llama(
            settings.path, n_ctx=settings.context_tokens, n_threads=settings.threads,
            n_threads_batch=settings.threads, n_gpu_layers=settings.gpu_layers, flash_attn=True,
            type_k=_KV_TYPES[settings.kv_type], type_v=_KV_TYPES[settings.kv_type], verbose=False,
        )
        self._format = {'type': 'json_object', 'schema': chat.form.schema}

    def ask(self, text: str) -> Shot:
        """Decide on one observation, as it is written."""
        self._tap.take()
        began_ns = self._clock.now_ns()
        found: Any = self._llama.create_chat_completion(
            messages=self._chat.messages(text), response_format=self._format, temperature=0.0,
            max_tokens=MOST_TOKENS,
        )
        took_ns = self._clock.now_ns() - began_ns
        passes = self._tap.take()
        return Shot(
            took_ns=took_ns, batches=tuple(p.tokens for p in passes),
            answer=self._chat.form.answer(found['choices'][0]['message']['content']),
            decode_ns=sum(p.took_ns for p in passes),
            reused=found['usage']['prompt_tokens'] - passes[0].tokens,
        )

    def close(self) -> None:
        """Free the model."""
        self._llama.close()


class Served:
    """A llama-server, the one in the PyPI package `xllamacpp`, in a process of its own."""

    def __init__(self, settings: Settings, chat: Chat, log: Path, clock: Clock) -> None:
        if importlib.util.find_spec('xllamacpp') is None:
            raise PackageMissingError('xllamacpp is not installed: pip install xllamacpp')
        self._chat, self._log, self._clock = chat, log, clock
        with log.open('wb') as output:
            self._process = subprocess.Popen(
                [sys.executable, '-m', 'smallm_ros.bench.server', settings.words()],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output,
                start_new_session=True,
            )
        try:
            host, port = self._address().removeprefix('http://').split(':')
            self._connection = http.client.HTTPConnection(host, int(port), timeout=REPLY_LIMIT_S)
        except (OperatorError, ValueError):
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._process.pid

    def ask(self, text: str) -> Shot:
        """Decide on one observation, as it is written."""
        body = json.dumps({
            'messages': self._chat.messages(text), 'temperature': 0.0, 'cache_prompt': True,
            'max_tokens': MOST_TOKENS,
            'response_format': {'type': 'json_schema',
                                'json_schema': {'schema': self._chat.form.schema}},
        })
        # The server closes a connection that was quiet for 5 s, so each question has its own.
        try:
            self._connection.connect()
            took_ns, status, raw = self._exchange(body)
        except (OSError, http.client.HTTPException) as err:
            raise OperatorError(f'the llama-server broke off: {err!r}, see {self._log}') from err
        finally:
            self._connection.close()
        if status != http.client.OK:
            raise OperatorError(f'the llama-server answered {status}: {raw[:300]!r}')
        found = json.loads(raw)
        timings = found['timings']
        # the first token comes from the prompt's pass, and the end of the answer is one more
        return Shot(
            took_ns=took_ns,
            batches=(timings['prompt_n'], *(1,) * (timings['predicted_n'] - 1)),
            answer=self._chat.form.answer(found['choices'][0]['message']['content']),
            reused=timings['cache_n'],
        )

    def _exchange(self, body: str) -> tuple[int, int, bytes]:
        """Return how long the answer took, its status and its text."""
        began_ns = self._clock.now_ns()
        self._connection.request('POST', '/v1/chat/completions', body,
                                 {'Content-Type': 'application/json'})
        reply = self._connection.getresponse()
        raw = reply.read()
        took_ns = self._clock.now_ns() - began_ns
        return took_ns, reply.status, raw

    def close(self) -> None:
        """End the server."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(END_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _address(self) -> str:
        """Return where the server listens, once its model is loaded."""
        assert self._process.stdout is not None
        until_ns = self._clock.now_ns() + LOAD_LIMIT_NS
        line = b''
        while not line.endswith(b'\n'):
            left_s = (until_ns - self._clock.now_ns()) / SECOND
            if left_s <= 0 or not select.select([self._process.stdout], [], [], left_s)[0]:
                raise OperatorError(f'the llama-server was not ready in '
                                    f'{LOAD_LIMIT_NS / SECOND:g} s: see {self._log}')
            read = os.read(self._process.stdout.fileno(), 4096)
            if not read:
                raise OperatorError(f'the llama-server ended while it loaded: see {self._log}')
            line += read
        return line.decode().splitlines()[-1]


class Reads:
    """A chat arm that reads one of an observation's two texts."""

    def __init__(self, chat: Completion | Served, *, sentence: bool) -> None:
        self._chat, self._sentence = chat, sentence

    def ask(self, case: Case) -> Shot:
        """Decide on one observation."""
        return self._chat.ask(case.sentence if self._sentence else case.compact)
