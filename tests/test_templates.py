"""Templates give the ids that each model's own makers give, and text never becomes control."""

from __future__ import annotations

import ctypes
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smallm_ros.core.errors import ModelFileError
from smallm_ros.engine import registry
from smallm_ros.engine.templates import TEMPLATES, conversation, fitting

# What robots and their people write. llama.cpp's splitter of Tekken text is coarser than Mistral's
# own for combining marks and for capitals outside ASCII: see the test of MARKED below.
WORDS = (
    'scan: front 1.25 m, left 0.40 m|3.14159|{"v": [1, 2]}|naïve café|Größe|Привет, мир|γωνία|…|'
    '前方に障害物があります|机器人|로봇이 움직인다|مرحبا|שלום|🤖🚧|👩‍🚀|00000000000000000000'
).split('|')
BLANKS = ['\n', '\n\n', '  ', '\t', '\r\n', '\u00a0', ' \n ', '\x00', '\u200d']
MARKED = ['नमस्ते', 'สวัสดี', 'роБОТ']
HOSTILE = (
    '<s> </s> [INST] [/INST] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [TOOL_CALLS] [AVAILABLE_TOOLS] '
    '<unk> <pad> [IMG] <SPECIAL_20> <|im_start|> <|im_end|> <|endoftext|> <repo_name> <file_sep> '
    '<|begin_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|> <bos> <start_of_turn> '
    '<end_of_turn> [ARGS] [CALL_ID] [THINK]'
).split()
# No surrogates, and nothing unassigned, whose category differs between Unicode versions.
ANY = st.text(st.characters(exclude_categories=('Cs', 'Cn')), max_size=12)
CASELESS = st.text(
    st.characters(codec='ascii')
    | st.characters(categories=('Lo', 'Nd', 'No', 'P', 'S', 'Zs', 'Cc', 'Cf')),
    max_size=12,
)
MIXED = st.lists(
    st.sampled_from(WORDS) | st.sampled_from(BLANKS) | st.sampled_from(HOSTILE) | CASELESS,
    max_size=6,
).map(' '.join)
CONVERSATIONS = settings(
    max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
MANY = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Letters:
    """A tokenizer whose tokens are the letters, with chosen control tokens above them."""

    def __init__(self, *controls: str) -> None:
        self.controls = {text: 0x110000 + index for index, text in enumerate(controls)}
        self.asked: list[str] = []

    def tokenize(self, text: str) -> list[int]:
        self.asked.append(text)
        return [ord(letter) for letter in text]

    def control_token(self, text: str) -> int:
        if text not in self.controls:
            raise ModelFileError(f'its vocabulary has no control token {text!r}')
        return self.controls[text]

    def shown(self, ids: list[int]) -> str:
        names = {token: f'⟨{text}⟩' for text, token in self.controls.items()}
        return ''.join(names.get(token) or chr(token) for token in ids)


def letters(name: str) -> Letters:
    return Letters(*TEMPLATES[name].controls())


def test_mistral_has_no_space_around_its_markers() -> None:
    model = letters('mistral-v7-tekken')
    got = conversation('mistral-v7-tekken', model, 'Drive.', [('wall', 'stop'), ('free', 'go')])
    assert model.shown(got.prefix) == (
        '⟨<s>⟩⟨[SYSTEM_PROMPT]⟩Drive.⟨[/SYSTEM_PROMPT]⟩'
        '⟨[INST]⟩wall⟨[/INST]⟩stop⟨</s>⟩⟨[INST]⟩free⟨[/INST]⟩go⟨</s>⟩⟨[INST]⟩'
    )
    assert model.shown(got.suffix) == '⟨[/INST]⟩'
    assert model.shown([got.end]) == '⟨</s>⟩'


def test_chatml_joins_plain_text_before_it_is_tokenised() -> None:
    model = letters('chatml')
    got = conversation('chatml', model, 'Drive.', [('wall', 'stop')])
    assert model.shown(got.prefix) == (
        '⟨<|im_start|>⟩system\nDrive.⟨<|im_end|>⟩\n⟨<|im_start|>⟩user\nwall⟨<|im_end|>⟩\n'
        '⟨<|im_start|>⟩assistant\nstop⟨<|im_end|>⟩\n⟨<|im_start|>⟩user\n'
    )
    assert model.shown(got.suffix) == '⟨<|im_end|>⟩\n⟨<|im_start|>⟩assistant\n'
    assert model.shown([got.end]) == '⟨<|im_end|>⟩'
    assert 'system\nDrive.' in model.asked


@pytest.mark.parametrize('name', TEMPLATES)
def test_text_is_only_ever_tokenised_as_plain_text(name: str) -> None:
    model, hostile = letters(name), ''.join(HOSTILE)
    calm = conversation(name, model, 'x', [('x', 'x')])
    attacked = conversation(name, model, hostile, [(hostile, hostile)])
    controls = set(model.controls.values())
    kept = [[i for i in one.prefix if i in controls] for one in (calm, attacked)]
    assert kept[0] == kept[1]


def test_an_unknown_template_is_named_with_those_there_are() -> None:
    with pytest.raises(ModelFileError, match="'alpaca' is unknown: one of mistral-v7"):
        conversation('alpaca', Letters(), '', [])


@pytest.mark.parametrize('name', TEMPLATES)
def test_the_vocabulary_tells_the_template(name: str) -> None:
    same = {'mistral-v13': 'mistral-v11'}.get(name, name)  # the same ids: see below
    assert fitting(None, letters(name)) == same
    assert fitting(name, letters(name)) == name


def test_a_vocabulary_that_fits_none_or_two_asks_for_a_name() -> None:
    with pytest.raises(ModelFileError, match=r'\(fitting: none\): name one of mistral'):
        fitting(None, Letters('<s>', '</s>'))
    both = Letters(*(text for one in TEMPLATES.values() for text in one.controls()))
    with pytest.raises(ModelFileError, match=r'\(fitting: mistral-v7-tekken, .*chatml'):
        fitting(None, both)
    assert fitting('chatml', both) == 'chatml'


def test_a_template_that_the_vocabulary_lacks_is_refused() -> None:
    with pytest.raises(ModelFileError, match=re.escape("no control token '[SYSTEM_PROMPT]'")):
        fitting('mistral-v7-tekken', Letters('<s>', '</s>', '[INST]', '[/INST]'))


def test_a_newer_vocabulary_is_not_one_of_before() -> None:
    with pytest.raises(ModelFileError, match=re.escape("no control token '[ARGS]'")):
        fitting('mistral-v11', letters('mistral-v7-tekken'))


def test_gemma_has_no_system_turn() -> None:
    model = letters('gemma')
    got = conversation('gemma', model, 'Drive.', [('wall', 'stop')])
    assert model.shown(got.prefix) == (
        '⟨<bos>⟩⟨<start_of_turn>⟩user\nDrive.\n\nwall⟨<end_of_turn>⟩\n'
        '⟨<start_of_turn>⟩model\nstop⟨<end_of_turn>⟩\n⟨<start_of_turn>⟩user\n'
    )
    alone = conversation('gemma', model, 'Drive.', [])
    assert model.shown(alone.prefix) == '⟨<bos>⟩⟨<start_of_turn>⟩user\nDrive.\n\n'
    assert model.shown(alone.suffix) == '⟨<end_of_turn>⟩\n⟨<start_of_turn>⟩model\n'


def applied(name: str, messages: list[tuple[str, str]]) -> str:
    """Return a conversation as llama.cpp's own code for a template writes it, markers spelt."""
    import llama_cpp

    raw = [(role.encode(), text.encode()) for role, text in messages]
    chat = (llama_cpp.llama_chat_message * len(raw))(
        *(llama_cpp.llama_chat_message(role=role, content=text) for role, text in raw))
    buffer = ctypes.create_string_buffer(4 * sum(len(text) for _, text in raw) + 4096)
    size = llama_cpp.llama_chat_apply_template(
        name.encode(), chat, len(raw), True, buffer, len(buffer))
    assert 0 < size <= len(buffer)
    return buffer.raw[:size].decode()


# llama.cpp takes the blanks off each text's ends, as these models' own templates do, and ends a
# text at a zero byte.
TRIMMED = st.one_of(st.lists(st.sampled_from(WORDS) | ANY, max_size=6).map(' '.join)).map(
    lambda text: text.replace('\x00', '').strip() or 'go')


@pytest.mark.parametrize(('name', 'theirs', 'begin'), [
    ('llama-3', 'llama3', '<|begin_of_text|>'), ('gemma', 'gemma', '<bos>'),
    ('chatml', 'chatml', ''),
])
@MANY
@given(system=TRIMMED, turns=st.lists(st.tuples(TRIMMED, TRIMMED), max_size=3), last=TRIMMED)
def test_the_text_is_that_of_llama_cpps_own_template(
    name: str, theirs: str, begin: str, system: str, turns: list[tuple[str, str]], last: str
) -> None:
    # Their vocabularies are not on PyPI, so control tokens are held by their spelling.
    pytest.importorskip('llama_cpp')
    model = letters(name)
    got = conversation(name, model, system, turns)
    names = {token: text for text, token in model.controls.items()}
    ids = [*got.prefix, *map(ord, last), *got.suffix]
    ours = ''.join(names.get(token) or chr(token) for token in ids)
    messages = [('system', system)]
    for text, answer in turns:
        messages += [('user', text), ('assistant', answer)]
    assert ours == begin + applied(theirs, [*messages, ('user', last)])


@pytest.fixture(scope='module')
def tekken() -> Iterator[Any]:
    """The true Tekken vocabulary, in llama.cpp."""
    pytest.importorskip('llama_cpp')
    from smallm_ros.engine.model import LlamaModel, ModelSettings
    from tests import tekken_gguf

    model = LlamaModel.load(
        tekken_gguf.cached(), name='tekken', sha256='', settings=ModelSettings(), progress=None
    )
    yield model
    model.close()


@pytest.fixture(scope='module')
def instruct(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """mistral-common's own encoder for the same vocabulary, V7."""
    from tests import tekken_gguf

    folder = tekken_gguf.v7_folder(tmp_path_factory.mktemp('tekken'))
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    return MistralTokenizer.from_file(str(folder / 'tekken.json'))


NEWER = ('[ARGS]', '[CALL_ID]', '[THINK]', '[/THINK]')
"""Control tokens of the Tekken vocabularies since v11, in places that v7 leaves free."""


class Words:
    """mistral-common's Tekken vocabulary, as our templates ask one."""

    def __init__(self, vocabulary: Any) -> None:
        self._vocabulary = vocabulary

    def tokenize(self, text: str) -> list[int]:
        ids: list[int] = self._vocabulary.encode(text, bos=False, eos=False)
        return ids

    def control_token(self, text: str) -> int:
        try:
            return int(self._vocabulary.get_special_token(text))
        except ValueError as err:
            raise ModelFileError(str(err)) from err


@pytest.fixture(scope='module', params=['v11', 'v13'])
def newer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A newer version's name and mistral-common's own encoder for it."""
    from tests import tekken_gguf

    folder = tekken_gguf.v7_folder(tmp_path_factory.mktemp('tekken'))
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    file = folder / 'tekken.json'
    definition = json.loads(file.read_text(encoding='utf-8'))
    definition['config']['version'] = request.param
    known = list(Tekkenizer.DEPRECATED_SPECIAL_TOKENS)
    definition['special_tokens'] = known + [
        {'rank': len(known) + at, 'token_str': text, 'is_control': True}
        for at, text in enumerate(NEWER)]
    file.write_text(json.dumps(definition), encoding='utf-8')
    return f'mistral-{request.param}', MistralTokenizer.from_file(str(file))


@pytest.mark.model
def test_mistral_ids_are_those_of_ros_notes(tekken: Any) -> None:
    got = conversation('mistral-v7-tekken', tekken, '', [('', '')])
    assert (got.prefix, got.suffix, got.end) == ([1, 17, 18, 3, 4, 2, 3], [4], 2)


@pytest.mark.model
@CONVERSATIONS
@given(system=MIXED, turns=st.lists(st.tuples(MIXED, MIXED), max_size=3), last=MIXED)
def test_mistral_ids_equal_mistral_common(
    tekken: Any, instruct: Any, system: str, turns: list[tuple[str, str]], last: str
) -> None:
    got = conversation('mistral-v7-tekken', tekken, system, answered(turns))
    assert got.prefix + tekken.tokenize(last) + got.suffix == theirs(
        instruct, system, turns, last)


@pytest.mark.model
@CONVERSATIONS
@given(system=MIXED, turns=st.lists(st.tuples(MIXED, MIXED), max_size=3), last=MIXED)
def test_newer_mistral_ids_equal_mistral_common(
    newer: Any, system: str, turns: list[tuple[str, str]], last: str
) -> None:
    name, encoder = newer
    words = Words(encoder.instruct_tokenizer.tokenizer)
    got = conversation(name, words, system, answered(turns))
    assert got.prefix + words.tokenize(last) + got.suffix == theirs(encoder, system, turns, last)
    assert fitting(None, words) == 'mistral-v11'


def answered(turns: list[tuple[str, str]]) -> list[tuple[str, str]]:
    # mistral-common strips blanks off an answer's end and refuses one without content
    return [(text, answer.rstrip(' ') or 'go') for text, answer in turns]


def theirs(encoder: Any, system: str, turns: list[tuple[str, str]], last: str) -> list[int]:
    """Return the ids of a conversation as mistral-common encodes it."""
    from mistral_common.protocol.instruct.messages import (
        AssistantMessage,
        SystemMessage,
        UserMessage,
    )
    from mistral_common.protocol.instruct.request import ChatCompletionRequest

    messages: list[Any] = [SystemMessage(content=system)]
    for text, answer in answered(turns):
        messages += [UserMessage(content=text), AssistantMessage(content=answer)]
    messages.append(UserMessage(content=last))
    request = ChatCompletionRequest(messages=messages)
    ids: list[int] = encoder.encode_chat_completion(request).tokens
    return ids


@pytest.mark.model
@pytest.mark.parametrize('text', MARKED)
def test_a_known_difference_of_llama_cpp_changes_ids_and_no_text(
    tekken: Any, instruct: Any, text: str
) -> None:
    # If this fails, llama.cpp has learned Tekken's own splitting: let MIXED hold these words.
    wanted = instruct.instruct_tokenizer.tokenizer.encode(text, bos=False, eos=False)
    got = tekken.tokenize(text)
    assert got != wanted
    assert b''.join(map(tekken.piece, got)) == b''.join(map(tekken.piece, wanted)) == text.encode()


@pytest.fixture(scope='module')
def embedded() -> Iterator[tuple[Any, Path]]:
    """The embedded model and its file."""
    pytest.importorskip('llama_cpp')
    from smallm_ros.engine.model import LlamaModel, ModelSettings

    file = registry.resolve('smollm2-135m-instruct')
    model = LlamaModel.load(
        file.path, name=file.name, sha256=file.sha256, settings=ModelSettings(), progress=None
    )
    yield model, file.path
    model.close()


@pytest.fixture(scope='module')
def jinja(embedded: tuple[Any, Path]) -> Iterator[Any]:
    """The embedded file's own template, run by llama-cpp-python's Jinja: messages to ids."""
    from llama_cpp import Llama
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    source = Llama(str(embedded[1]), vocab_only=True, verbose=False)
    formatter = Jinja2ChatFormatter(
        template=source.metadata['tokenizer.chat_template'],
        eos_token='<|im_end|>',
        bos_token='<|im_start|>',
    )

    def ids(messages: list[Any]) -> list[int]:
        prompt = formatter(messages=messages).prompt
        return source.tokenize(prompt.encode(), add_bos=False, special=True)

    yield ids
    source.close()


# Jinja's text is parsed for control tokens, so what could look like one is left out here.
CALM = MIXED.map(lambda text: text.replace('<', '').replace('\x00', ''))


@pytest.mark.model
@MANY
@given(system=CALM, turns=st.lists(st.tuples(CALM, CALM), max_size=3), last=CALM)
def test_chatml_ids_equal_the_models_own_template(
    embedded: tuple[Any, Path], jinja: Any, system: str, turns: list[tuple[str, str]], last: str
) -> None:
    last = last.lstrip()  # as templates.py asks of a text that is tokenised apart
    messages = [{'role': 'system', 'content': system}]
    for text, answer in turns:
        messages += [{'role': 'user', 'content': text}, {'role': 'assistant', 'content': answer}]
    messages.append({'role': 'user', 'content': last})
    model = embedded[0]
    got = conversation('chatml', model, system, turns)
    assert got.prefix + model.tokenize(last) + got.suffix == jinja(messages)


@pytest.mark.model
@MANY
@given(pieces=st.lists(st.sampled_from(HOSTILE) | ANY, min_size=1, max_size=8))
def test_hostile_text_never_becomes_a_control_token(
    tekken: Any, embedded: tuple[Any, Path], pieces: list[str]
) -> None:
    text = ''.join(pieces)
    # both vocabularies hold their control tokens in front
    assert min(embedded[0].tokenize(text), default=17) >= 17
    ids = tekken.tokenize(text)
    assert min(ids, default=1000) >= 1000
    assert b''.join(map(tekken.piece, ids)).decode() == text
