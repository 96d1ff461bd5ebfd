"""Free text: one printable line within its limits, whatever the logits want and when it is cut."""

from __future__ import annotations

import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip('llama_cpp')
pytest.importorskip('llguidance')

import llguidance

from smallm_ros.core.errors import ModelFileError, PackageMissingError
from smallm_ros.core.exchange import FreeText
from smallm_ros.engine import registry
from smallm_ros.engine.model import Batch, DecodeError, LlamaModel, ModelSettings
from smallm_ros.engine.speech import Speech, Step
from tests import tekken_gguf
from tests.fakes.history_model import HistoryModel

RULES = FreeText(lead=' because', max_tokens=64, max_characters=120)
WANTED = 'die Wände sind näher als 0,3 m — 走 🤖 left'
CONTROLS = range(256, HistoryModel.n_vocab)
EOS, OTHER_END = 257, 259

Logits = npt.NDArray[np.float32]


class ByteModel(HistoryModel):
    """The history model with its vocabulary as llguidance wants it."""

    def llguidance_tokenizer(self) -> object:
        return llguidance.LLTokenizer(llguidance.TokenizerWrapper(Vocabulary(self)))


class Vocabulary:
    def __init__(self, model: HistoryModel) -> None:
        self.eos_token_id, self.bos_token_id = EOS, CONTROLS[0]
        self.special_token_ids = list(CONTROLS)
        self.tokens = [model.piece(token) for token in range(model.n_vocab)]

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


class Reader:
    """Logits that want a given text byte by byte, each call kept; every second choice is 'x'."""

    def __init__(self, wanted: bytes, then: int = EOS, at: int | None = None,
                 does: Callable[[], None] = lambda: None) -> None:
        self.queue = [*wanted, then]
        self.calls: list[list[int]] = []
        self.at, self.does = at, does

    def step(self, tokens: Sequence[int]) -> Logits:
        if len(self.calls) == self.at:
            self.does()
        self.calls.append(list(tokens))
        logits = np.zeros(HistoryModel.n_vocab, np.float32)
        logits[ord('x')] = 1
        logits[self.queue[min(len(self.calls), len(self.queue)) - 1]] = 2
        return logits


class Patience:
    """Lets `steps` steps happen."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left >= 0


@pytest.fixture(scope='module')
def speech() -> Speech:
    return Speech(ByteModel(), EOS)


def check(text: str, tokens: int, rules: FreeText) -> None:
    assert tokens <= rules.max_tokens
    assert len(text) <= rules.max_characters
    assert text == text.strip()
    assert len(text.splitlines()) <= 1
    assert '\ufffd' not in text
    kinds = {unicodedata.category(character) for character in text}
    assert not kinds & {'Cc', 'Cf', 'Cs', 'Co', 'Zl', 'Zp'}


def test_the_end_ends_it(speech: Speech) -> None:
    reader = Reader(WANTED.encode())
    assert speech.speak(RULES, reader.step, lambda: True) == (
        WANTED, len(WANTED.encode()), False)
    assert reader.calls[0] == list(b' because')
    assert reader.calls[1:] == [[byte] for byte in WANTED.encode()]


def test_the_template_may_end_an_answer_otherwise_than_the_vocabulary() -> None:
    speech = Speech(ByteModel(), OTHER_END)
    assert speech.speak(RULES, Reader(b'near', OTHER_END).step, lambda: True) == ('near', 4, False)
    assert speech.speak(RULES, Reader(b'near', EOS).step, lambda: True)[0].startswith('nearxxx')


def test_cut_at_any_step_it_returns_what_there_is(speech: Speech) -> None:
    raw = WANTED.encode()
    for steps in range(len(raw) + 1):
        reader = Reader(raw)
        text, tokens, cut = speech.speak(RULES, reader.step, Patience(steps))
        assert (tokens, cut) == (steps, True)
        assert text == raw[:steps].decode('utf-8', 'ignore').strip()
        assert len(reader.calls) == steps
        check(text, tokens, RULES)


@pytest.mark.parametrize('hostile', [
    b'\n', b'\r', b'\x00', b'\x1b', b'\x7f', '\x85'.encode(), '\u2028'.encode(), b'\xff',
    '\u202e'.encode(), '\u200b'.encode(), '\ue000'.encode(), b'\xc0\xaf', b'\xed\xa0\x80',
])
def test_what_is_not_printable_is_not_said(speech: Speech, hostile: bytes) -> None:
    text, tokens, _ = speech.speak(RULES, Reader(b'a' + hostile + b'b').step, lambda: True)
    check(text, tokens, RULES)
    assert text.startswith('a')
    assert hostile not in text.encode()


@pytest.mark.parametrize('token', [token for token in CONTROLS if token != EOS])
def test_no_control_token_but_the_end(speech: Speech, token: int) -> None:
    reader = Reader(b'a', token)
    speech.speak(RULES, reader.step, lambda: True)
    assert all(set(call).isdisjoint(CONTROLS) for call in reader.calls)


def test_what_spells_a_control_token_is_plain_text(speech: Speech) -> None:
    assert speech.speak(RULES, Reader(b'[INST] x').step, lambda: True) == ('[INST] x', 8, False)


def test_the_limits_cut_it_and_cost_no_pass_to_learn_it(speech: Speech) -> None:
    for rules, text in (
        (FreeText(' as', 4, 100), 'die'),
        (FreeText(' as', 100, 1), 'd'),
        (FreeText(' as', 100, 9), 'die Wände'),
    ):
        reader = Reader(WANTED.encode())
        said, tokens, cut = speech.speak(rules, reader.step, lambda: True)
        assert (said, cut, len(reader.calls)) == (text, True, tokens)


def test_without_a_lead_the_first_step_asks_for_what_stands(speech: Speech) -> None:
    reader = Reader(b'near')
    assert speech.speak(FreeText('', 9, 9), reader.step, lambda: True) == ('near', 4, False)
    assert reader.calls[0] == []


def test_no_characters_is_no_text(speech: Speech) -> None:
    reader = Reader(b'near')
    assert speech.speak(FreeText(' as', 9, 0), reader.step, lambda: True) == ('', 0, True)
    assert reader.calls == []


def test_no_step_without_leave(speech: Speech) -> None:
    reader = Reader(b'near')
    assert speech.speak(RULES, reader.step, lambda: False) == ('', 0, True)
    assert reader.calls == []


def test_an_aborted_step_cuts_it_and_a_failed_one_is_told(speech: Speech) -> None:
    def fail(code: int) -> Callable[[], None]:
        def does() -> None:
            raise DecodeError(code)
        return does

    assert speech.speak(RULES, Reader(b'near', at=3, does=fail(2)).step, lambda: True) == (
        'nea', 3, True)
    with pytest.raises(DecodeError, match='-3'):
        speech.speak(RULES, Reader(b'near', at=3, does=fail(-3)).step, lambda: True)
    assert speech.speak(RULES, Reader(b'near').step, lambda: True) == ('near', 4, False)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_cut_it(speech: Speech, value: float) -> None:
    reader = Reader(b'near')

    def step(tokens: Sequence[int]) -> Logits:
        logits = reader.step(tokens)
        return np.full_like(logits, value) if len(reader.calls) == 3 else logits

    assert speech.speak(RULES, step, lambda: True) == ('ne', 2, True)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), tokens=st.integers(1, 64), characters=st.integers(1, 240),
       steps=st.integers(0, 64), steady=st.booleans())
def test_random_logits_stay_within_the_rules(
        speech: Speech, seed: int, tokens: int, characters: int, steps: int,
        steady: bool) -> None:
    random = np.random.default_rng(seed)
    # always the same logits make it repeat itself, new ones walk over every byte
    fixed = random.normal(size=HistoryModel.n_vocab).astype(np.float32)
    rules = FreeText(' because', tokens, characters)
    said: list[int] = []

    def step(taken: Sequence[int]) -> Logits:
        said.extend(taken)
        if steady:
            return fixed
        return random.normal(size=HistoryModel.n_vocab).astype(np.float32)

    text, count, _ = speech.speak(rules, step, Patience(steps))
    check(text, count, rules)
    assert count <= steps
    assert set(said).isdisjoint(CONTROLS)


# --- on llama.cpp's vocabularies ------------------------------------------------------------

CASES = {'smollm2': '<|im_end|>', 'tekken': '</s>'}


@pytest.fixture(scope='module', params=list(CASES))
def real(request: pytest.FixtureRequest) -> Iterator[tuple[LlamaModel, Speech]]:
    name = request.param
    path = (tekken_gguf.cached() if name == 'tekken'
            else registry.resolve('smollm2-135m-instruct').path)
    model = LlamaModel.load(path, name=name, sha256='0' * 64, settings=ModelSettings(
        context_tokens=512, batch_tokens=128, sequences=4, n_gpu_layers=0))
    yield model, Speech(model, model.control_token(CASES[name]))
    model.close()


def said_by(model: LlamaModel, taken: list[int]) -> Step:
    """Return a step on sequence 0 after a prompt; what is appended is put into `taken`."""
    model.remove(-1, 0, -1)
    held = 0

    def step(tokens: Sequence[int]) -> Logits:
        nonlocal held
        taken.extend(tokens)
        new = list(tokens)
        if not held:
            new = model.tokenize('The robot sees a wall ahead and turns left') + new
        count = len(new)
        row = model.evaluate(Batch(
            new, range(held, held + count), [(0,)] * count, [count - 1]))[0]
        held += count
        return row

    return step


def is_control(model: LlamaModel, token: int) -> bool:
    try:
        return model.control_token(model.piece(token).decode()) == token
    except (ModelFileError, UnicodeDecodeError):
        return False


@pytest.mark.model
def test_a_real_vocabulary_says_one_printable_line(real: tuple[LlamaModel, Speech]) -> None:
    model, speech = real
    lead = len(model.tokenize(RULES.lead))
    for steps in (0, 1, 2, 3, 7, 12):
        taken: list[int] = []
        text, count, cut = speech.speak(RULES, said_by(model, taken), Patience(steps))
        check(text, count, RULES)
        assert count == steps
        assert cut
        assert not any(is_control(model, token) for token in taken)
        raw = b''.join(model.piece(token) for token in taken[lead:])
        # the last token that was chosen was not appended any more
        assert text.startswith(raw.decode('utf-8', 'ignore').strip())


@pytest.mark.model
def test_a_real_vocabulary_whose_favourites_are_forbidden(
        real: tuple[LlamaModel, Speech]) -> None:
    model, speech = real
    end = model.control_token(CASES[model.name])
    pieces = {token: model.piece(token) for token in range(model.n_vocab) if token != end}
    forbidden = [
        token for token, piece in pieces.items()
        if any(byte < 32 for byte in piece)
        or (piece[:1] in (b'<', b'[') and is_control(model, token))
    ]
    assert sum(is_control(model, token) for token in forbidden) > 10
    random = np.random.default_rng(2501)
    taken: list[int] = []

    def step(tokens: Sequence[int]) -> Logits:
        taken.extend(tokens)
        logits = random.normal(size=model.n_vocab).astype(np.float32)
        logits[forbidden] += 100
        return logits

    for characters in (1, 2, 17, 240):
        rules = FreeText(' as', 64, characters)
        text, count, _ = speech.speak(rules, step, lambda: True)
        check(text, count, rules)
    assert not set(taken) & set(forbidden)


@pytest.mark.model
def test_the_mask_is_cheap(
        real: tuple[LlamaModel, Speech], monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    model, speech = real
    took_ms: list[float] = []
    allowed = speech._allowed

    def timed(*arguments: object) -> npt.NDArray[np.bool_]:
        began = time.perf_counter()
        mask = allowed(*arguments)
        took_ms.append((time.perf_counter() - began) * 1e3)
        return mask

    monkeypatch.setattr(speech, '_allowed', timed)
    wanted = model.tokenize(' the wall ahead is 0,3 m away; links ist es frei, drum nach links')
    for _ in range(8):
        calls = iter(wanted)

        def step(_tokens: Sequence[int], calls: Iterator[int] = calls) -> Logits:
            logits = np.zeros(model.n_vocab, np.float32)
            logits[next(calls)] = 1
            return logits

        text, count, _ = speech.speak(
            FreeText(' because', len(wanted), 240), step, lambda: True)
        assert text.startswith('the wall ahead is 0,3 m away; links ist')
        assert count == len(wanted)
    p50, p99 = np.percentile(took_ms, [50, 99])
    with capsys.disabled():
        print(f'\n{model.name}: a mask over {model.n_vocab} tokens takes {p50:.3f} ms p50, '
              f'{p99:.3f} p99, {max(took_ms):.3f} max of {len(took_ms)}')
    assert p50 < 5


@pytest.mark.model
def test_a_missing_llguidance_says_how_to_install_it(
        real: tuple[LlamaModel, Speech], monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = real
    monkeypatch.setattr(model, '_guidance', None)
    monkeypatch.setitem(sys.modules, 'llguidance.llamacpp', None)
    with pytest.raises(PackageMissingError, match='pip install llguidance'):
        Speech(model, 2)
