"""llama.cpp behind our Model: shared KV, branches in one batch, and files that are not models."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('llama_cpp')

from smallm_ros.core.clock import MS
from smallm_ros.core.errors import ModelFileError, OperatorError
from smallm_ros.engine import registry
from smallm_ros.engine.alarm import SteadyAlarm
from smallm_ros.engine.model import (
    ABORTED,
    Batch,
    DecodeError,
    LlamaModel,
    ModelSettings,
    physical_cores,
)
from smallm_ros.steady import now_ns

pytestmark = pytest.mark.model

SMALL = ModelSettings(context_tokens=512, batch_tokens=128, sequences=16, n_gpu_layers=0)
PROMPT = 'The robot sees a wall in front of it and open space to its left. It should turn'
BRANCHES = (' left and then go on', ' right into the corner', ' left at half speed')


@pytest.fixture(scope='module')
def file() -> registry.ModelFile:
    return registry.resolve('smollm2-135m-instruct')


@pytest.fixture(scope='module')
def source() -> Path:
    return registry.locate(registry.entry_named('smollm2-135m-instruct'))


def load(file: registry.ModelFile, settings: ModelSettings = SMALL) -> LlamaModel:
    return LlamaModel.load(
        file.path, name=file.name, sha256=file.sha256, settings=settings, progress=None
    )


@pytest.fixture(scope='module')
def loaded(file: registry.ModelFile) -> Iterator[LlamaModel]:
    model = load(file)
    yield model
    model.close()


@pytest.fixture
def model(loaded: LlamaModel) -> LlamaModel:
    """The embedded model with nothing in its KV cache."""
    loaded.remove(-1, 0, -1)
    return loaded


def run(
    model: LlamaModel, tokens: Sequence[int], start: int, *sequences: int
) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Evaluate tokens from position `start` on; return a copy of every token's logits."""
    count = len(tokens)
    return model.evaluate(
        Batch(tokens, range(start, start + count), [sequences] * count, range(count))
    ).copy()


def test_it_says_what_it_is(loaded: LlamaModel, file: registry.ModelFile) -> None:
    assert (loaded.name, loaded.sha256) == ('smollm2-135m-instruct', file.sha256)
    assert (loaded.n_vocab, loaded.n_ctx, loaded.n_batch, loaded.n_seq_max) == (
        49152,
        512,
        128,
        16,
    )
    assert loaded.gpu_layers == 0
    assert loaded.threads == max(1, physical_cores() - 1)
    assert 1 <= physical_cores() <= len(os.sched_getaffinity(0))


def test_a_shared_prefix_gives_what_a_full_evaluation_gives(model: LlamaModel) -> None:
    tokens = model.tokenize(PROMPT + BRANCHES[0])
    cut = len(model.tokenize(PROMPT))
    full = run(model, tokens, 0, 0)
    model.copy_sequence(0, 3, 0, cut)
    model.copy_sequence(0, 4, 0, cut)
    shared = run(model, tokens[cut:], cut, 3)
    # Its cells lie elsewhere, the sums have another order, and rounding to 8 bits amplifies that.
    assert np.abs(shared - full[cut:]).max() < 1.0
    other = run(model, model.tokenize(BRANCHES[1]), cut, 4)
    assert np.abs(other[0] - full[cut]).max() > 3.0, 'what is not shared is far from it'


def test_what_was_removed_is_evaluated_anew(model: LlamaModel) -> None:
    first, second = model.tokenize(PROMPT + BRANCHES[0]), model.tokenize(PROMPT + BRANCHES[1])
    cut = len(model.tokenize(PROMPT))
    wanted = run(model, second, 0, 1)
    run(model, first, 0, 0)
    model.remove(0, cut, -1)
    got = run(model, second[cut:], cut, 0)
    assert (got.argmax(1) == wanted[cut:].argmax(1)).all()


def test_branches_in_one_batch_equal_each_branch_alone(model: LlamaModel) -> None:
    prompt = model.tokenize(PROMPT)
    branches = [model.tokenize(text) for text in BRANCHES]
    alone = []
    for branch in branches:
        alone.append(run(model, prompt + branch, 0, 0).argmax(1)[len(prompt) :])
        model.remove(-1, 0, -1)
    everyone = (0, 1, 2)
    tokens, positions = list(prompt), list(range(len(prompt)))
    sequences: list[tuple[int, ...]] = [everyone] * len(prompt)
    for sequence, branch in enumerate(branches):
        tokens += branch
        positions += range(len(prompt), len(prompt) + len(branch))
        sequences += [(sequence,)] * len(branch)
    outputs = range(len(prompt), len(tokens))
    together = model.evaluate(Batch(tokens, positions, sequences, outputs)).argmax(1)
    assert together.tolist() == np.concatenate(alone).tolist()


def test_only_the_wanted_logits_come_and_none_may_be_wanted(model: LlamaModel) -> None:
    tokens = model.tokenize(PROMPT)
    count = len(tokens)
    every = run(model, tokens, 0, 0)
    some = model.evaluate(Batch(tokens, range(count), [(1,)] * count, (2, count - 1)))
    assert some.shape == (2, model.n_vocab)
    assert (some.argmax(1) == every[[2, count - 1]].argmax(1)).all()
    nothing = model.evaluate(Batch(tokens, range(count), [(3,)] * count, ()))
    assert nothing.shape == (0, model.n_vocab)


def test_a_batch_that_is_not_valid_has_a_code_and_does_no_harm(model: LlamaModel) -> None:
    with pytest.raises(DecodeError, match='returned -1: the batch is not valid') as caught:
        run(model, [model.n_vocab], 0, 0)
    assert caught.value.code == -1
    assert run(model, model.tokenize(PROMPT), 0, 0).shape[0] > 0


def test_a_full_cache_has_a_code_and_keeps_what_it_held(model: LlamaModel) -> None:
    tokens = (model.tokenize(PROMPT) * 8)[:128]
    for start in range(0, 512, 128):
        model.evaluate(Batch(tokens, range(start, start + 128), [(0,)] * 128, ()))
    with pytest.raises(DecodeError, match='returned 1: no room in the KV cache') as caught:
        run(model, tokens[:1], 0, 1)
    assert caught.value.code == 1
    model.remove(0, 500, -1)
    assert run(model, tokens[:1], 500, 0).shape == (1, model.n_vocab)


# --- a batch that is ended in flight


@pytest.fixture(scope='module')
def alarm() -> Iterator[SteadyAlarm]:
    alarm = SteadyAlarm()
    yield alarm
    alarm.close()


def aborted(
    model: LlamaModel, alarm: SteadyAlarm, batch: Batch, after_ns: int
) -> int | None:
    """Evaluate a batch that is aborted after a while; return the nanoseconds from then on.

    None when the batch was faster than that.
    """
    at: list[int] = []

    def abort() -> None:
        at.append(now_ns())
        model.abort()

    alarm.arm(now_ns() + after_ns, abort)
    try:
        model.evaluate(batch)
    except DecodeError as err:
        ended_ns = now_ns()
        if err.code != ABORTED:
            raise
        return ended_ns - at[0]
    finally:
        alarm.disarm()
    return None


def branches_batch(model: LlamaModel, prompt: Sequence[int], start: int) -> Batch:
    """Return a batch as a decision has it: a shared rest of a prompt, then a lane a branch."""
    tails = [model.tokenize(text) * 8 for text in BRANCHES]
    lanes = [(1 + n,) for n in range(len(tails))]
    shared = (0, *(lane for (lane,) in lanes))
    tokens, positions = list(prompt[start:]), list(range(start, len(prompt)))
    sequences: list[tuple[int, ...]] = [shared] * len(tokens)
    for tail, lane in zip(tails, lanes, strict=True):
        tokens += tail
        positions += range(len(prompt), len(prompt) + len(tail))
        sequences += [lane] * len(tail)
    return Batch(tokens, positions, sequences, range(len(tokens)))


def test_after_an_abort_the_cache_is_what_it_was_before(
    model: LlamaModel, alarm: SteadyAlarm
) -> None:
    choose = random.Random(2)
    prompt = model.tokenize(PROMPT)
    cut = len(prompt) - 6

    def begin() -> Batch:
        model.remove(-1, 0, -1)
        run(model, prompt[:cut], 0, 9)
        for sequence in (0, 1, 2, 3):
            model.copy_sequence(9, sequence, 0, cut)
        return branches_batch(model, prompt, cut)

    batch = begin()
    wanted = model.evaluate(batch).argmax(1).tolist()
    batch = begin()
    whole_ns = now_ns()
    model.evaluate(batch)
    whole_ns = now_ns() - whole_ns
    batch = begin()
    delays_ns: list[int] = []
    # 30 aborted batches of some 80 tokens would fill the 512 cells several times over.
    for _ in range(30):
        delay_ns = aborted(model, alarm, batch, choose.randrange(whole_ns // 3))
        if delay_ns is None:
            batch = begin()
        else:
            delays_ns.append(delay_ns)
    assert len(delays_ns) >= 10
    assert sorted(delays_ns)[len(delays_ns) // 2] < whole_ns / 4, 'it does not run to its end'
    assert model.evaluate(batch).argmax(1).tolist() == wanted
    # No cell is lost: all of them can be filled.
    model.remove(-1, 0, -1)
    for start in range(0, 512, 128):
        tokens = (prompt * 8)[:128]
        model.evaluate(Batch(tokens, range(start, start + 128), [(0,)] * 128, ()))


def test_an_aborted_batch_leaves_no_cell_in_any_sequence(
    model: LlamaModel, alarm: SteadyAlarm
) -> None:
    from llama_cpp import llama_cpp as llama

    prompt = model.tokenize(PROMPT)
    run(model, prompt[:5], 0, 0)
    for sequence in (1, 2, 3):
        model.copy_sequence(0, sequence, 0, 5)
    batch = branches_batch(model, prompt, 5)
    assert aborted(model, alarm, batch, 2 * MS) is not None
    ends = [llama.llama_memory_seq_pos_max(model._memory, sequence) for sequence in range(16)]
    assert ends == [4, 4, 4, 4, *(-1,) * 12]


def test_an_abort_between_two_batches_ends_the_next_unless_it_is_taken_back(
    model: LlamaModel
) -> None:
    tokens = model.tokenize(PROMPT)
    model.abort()
    with pytest.raises(DecodeError) as err:
        run(model, tokens, 0, 0)
    assert err.value.code == ABORTED
    wanted = run(model, tokens, 0, 0).argmax(1)
    model.abort()
    model.clear_abort()
    assert (run(model, tokens, 0, 1).argmax(1) == wanted).all()


def test_only_the_cpu_and_metal_ask_whether_to_go_on(model: LlamaModel) -> None:
    assert model.abortable
    assert model._model is not None and model._context is not None
    on_cuda = LlamaModel(
        model._model, model._context, name='x', sha256='', threads=1, gpu_layers=30
    )
    assert not on_cuda.abortable
    on_cuda.abort()


def test_the_vocabulary_is_made_once_for_llguidance(model: LlamaModel) -> None:
    llguidance = pytest.importorskip('llguidance')
    tokenizer = model.llguidance_tokenizer()
    assert isinstance(tokenizer, llguidance.LLTokenizer)
    assert model.llguidance_tokenizer() is tokenizer
    assert tokenizer.vocab_size == model.n_vocab
    assert tokenizer.tokenize_str(PROMPT) == model.tokenize(PROMPT)


@pytest.mark.parametrize(
    'batch',
    [
        Batch([], [], [], []),
        Batch([5] * 129, range(129), [(0,)] * 129, []),
        Batch([5], [0, 1], [(0,)], []),
        Batch([5], [0], [], []),
    ],
)
def test_a_batch_of_the_wrong_shape_never_reaches_llama_cpp(
    model: LlamaModel, batch: Batch
) -> None:
    with pytest.raises(ValueError, match='a batch of'):
        model.evaluate(batch)


def test_a_sequence_outside_the_cache_never_reaches_llama_cpp(model: LlamaModel) -> None:
    for act in (
        lambda: model.copy_sequence(0, 16, 0, -1),
        lambda: model.copy_sequence(-1, 0, 0, -1),
        lambda: model.remove(16, 0, -1),
    ):
        with pytest.raises(ValueError, match='outside 0 to 15'):
            act()
    with pytest.raises(ValueError, match='outside 0 to 15'):
        run(model, [5], 0, 16)


def test_plain_text_and_control_tokens_are_kept_apart(model: LlamaModel) -> None:
    start = model.control_token('<|im_start|>')
    assert model.piece(start) == b'<|im_start|>'
    assert start not in model.tokenize('<|im_start|>system')
    assert model.tokenize('') == []
    assert b''.join(map(model.piece, model.tokenize('größer \ud800'))).decode() == 'größer ?'
    for text in ('system', '', '<|im_start|><|im_end|>', '<|IM_START|>', ' the'):
        with pytest.raises(ModelFileError, match='has no control token'):
            model.control_token(text)
    with pytest.raises(ValueError, match='token 49152 is outside'):
        model.piece(49152)


def test_a_text_longer_than_the_context_is_counted_all_the_same(model: LlamaModel) -> None:
    assert len(model.tokenize('7' * 5000)) == 5000


def test_a_closed_model_says_so(file: registry.ModelFile) -> None:
    told: list[float] = []
    model = LlamaModel.load(file.path, name='x', sha256='', settings=SMALL, progress=told.append)
    assert told
    assert told == sorted(told)
    assert told[-1] == 1.0
    model.close()
    model.close()
    for act in (
        lambda: model.tokenize('x'),
        lambda: run(model, [5], 0, 0),
        lambda: model.remove(0, 0, -1),
        lambda: model.copy_sequence(0, 1, 0, -1),
        lambda: model.piece(5),
        model.llguidance_tokenizer,
    ):
        with pytest.raises(ValueError, match='is closed'):
            act()


@pytest.mark.parametrize('kv_type', ['q8_0', 'q4_0'])
def test_a_quantised_cache_still_knows_the_fox(file: registry.ModelFile, kv_type: str) -> None:
    model = load(file, ModelSettings(context_tokens=256, kv_type=kv_type))
    tokens = model.tokenize('The quick brown fox jumps over the lazy')
    assert model.piece(int(run(model, tokens, 0, 0)[-1].argmax())) == b' dog'
    model.close()


@pytest.mark.parametrize(
    ('wrong', 'said'),
    [
        ({'sequences': 257}, 'sequences is 257, allowed are 1 to 256'),
        ({'sequences': 64, 'batch_tokens': 32}, 'sequences is 64, allowed are 1 to 32'),
        ({'batch_tokens': 0}, 'batch_tokens is 0'),
        ({'context_tokens': -5}, 'context_tokens is -5'),
        ({'threads': 0}, 'threads is 0'),
        ({'n_gpu_layers': -2}, 'n_gpu_layers is -2'),
        ({'kv_type': 'q5_1'}, "kv_type is 'q5_1', allowed are f16, q8_0, q4_0"),
    ],
)
def test_settings_that_llama_cpp_would_assert_on_are_refused(
    wrong: dict[str, int], said: str
) -> None:
    with pytest.raises(OperatorError, match=said):
        ModelSettings(**wrong)


def test_more_context_than_the_model_was_trained_on_is_refused(file: registry.ModelFile) -> None:
    with pytest.raises(ModelFileError, match=r'9000 tokens was asked for.*trained on 8192'):
        load(file, ModelSettings(context_tokens=9000))


@pytest.mark.skipif(shutil.which('setpriv') is None, reason='setpriv is not installed')
def test_memory_that_cannot_be_locked_is_said_and_not_passed_over(
    file: registry.ModelFile,
) -> None:
    program = (
        'import resource, sys\n'
        'from pathlib import Path\n'
        'from smallm_ros.engine.model import LlamaModel, ModelFileError, ModelSettings\n'
        'resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))\n'
        'try:\n'
        "    LlamaModel.load(Path(sys.argv[1]), name='x', sha256='',\n"
        '                    settings=ModelSettings(use_mlock=True, n_gpu_layers=0))\n'
        'except ModelFileError as err:\n'
        '    print(err)\n'
    )
    unprivileged = ['setpriv', '--bounding-set=-ipc_lock'] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*unprivileged, sys.executable, '-c', program, str(file.path)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, 'PYTHONPATH': str(Path(registry.__file__).parents[2])},
        check=False,
    )
    assert re.fullmatch(rf'{file.path}: use_mlock: .*mlock.*ulimit -l.*\n', done.stdout), done


# Files that are not models. Each is loaded in a process of its own, forked by one that has
# imported everything, because what is asked is that none of them ends the process.

LOADER = """
import json, os, resource, sys
from pathlib import Path
from smallm_ros.core.errors import ModelFileError
from smallm_ros.engine.model import Batch, LlamaModel, ModelSettings
SETTINGS = ModelSettings(context_tokens=256, batch_tokens=32, sequences=4, n_gpu_layers=0)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

def load(path):
    try:
        model = LlamaModel.load(Path(path), name='x', sha256='', settings=SETTINGS, progress=None)
        model.close()
        return 'loaded'
    except ModelFileError as err:
        return str(err)

def attempt(path, size, position, byte):
    if byte is not None:
        with open(path, 'r+b') as file:
            file.seek(position)
            before = file.read(1)
            file.seek(position)
            file.write(bytes([byte]))
    if size is not None:
        os.truncate(path, size)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, load(path).encode())
        os._exit(0)
    os.close(write)
    said = os.fdopen(read, 'rb').read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if byte is not None:
        with open(path, 'r+b') as file:
            file.seek(position)
            file.write(before)
    return [status, said]

for line in sys.stdin:
    print(json.dumps(attempt(*json.loads(line))), flush=True)
"""

Attempt = tuple[str, int | None, int | None, int | None]


def attempts(wanted: Sequence[Attempt]) -> list[str]:
    """Load files, truncated or with a byte changed, and return what each said; none may crash."""
    done = subprocess.run(
        [sys.executable, '-c', LOADER],
        input=''.join(json.dumps(each) + '\n' for each in wanted),
        capture_output=True,
        text=True,
        timeout=250,
        env={**os.environ, 'PYTHONPATH': str(Path(registry.__file__).parents[2])},
        check=False,
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(wanted), done.stderr
    assert done.stderr == ''
    for each, (status, said) in zip(wanted, results, strict=True):
        assert status == 0, f'{each} ended its process with {status}'
        assert '\n' not in said
        assert said == 'loaded' or said.startswith(each[0]), said
    return [said for _status, said in results]


def head_bytes(path: Path) -> int:
    """Return how many bytes come before the tensors' data: where a flip is more than noise."""
    return path.read_bytes().rindex(b'blk.29.ffn_norm.weight') + 64


def test_what_is_no_file_or_no_model_is_one_line(tmp_path: Path, source: Path) -> None:
    makers: dict[str, Callable[[Path], object]] = {
        'missing': lambda path: None,
        'directory': lambda path: path.mkdir(),
        'fifo': os.mkfifo,
        'empty': lambda path: path.touch(),
        'text': lambda path: path.write_text('hello, I am not a model at all'),
        'zeros': lambda path: path.write_bytes(bytes(4096)),
        'version': lambda path: path.write_bytes(b'GGUF' + b'\x09' + bytes(4096)),
        'counts': lambda path: path.write_bytes(b'GGUF\x03\0\0\0' + b'\xff' * 4096),
    }
    for name, make in makers.items():
        make(tmp_path / name)
    said = attempts([(str(tmp_path / name), None, None, None) for name in makers])
    wanted = [
        'cannot be opened: No such file or directory',
        'is not a regular file',
        'is not a regular file',
        'is empty',
        "is not a GGUF: it begins with b'hell'",
        r"is not a GGUF: it begins with b'\x00\x00\x00\x00'",
        'GGUF version 9, supported are 2 and 3',
        'is corrupt: it states 18446744073709551615 tensors',
    ]
    for line, part in zip(said, wanted, strict=True):
        assert part in line


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read everything')
def test_an_unreadable_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / 'secret.gguf'
    path.write_bytes(b'GGUF')
    path.chmod(0)
    assert 'Permission denied' in attempts([(str(path), None, None, None)])[0]


def test_a_truncated_file_is_one_line_wherever_it_ends(tmp_path: Path, source: Path) -> None:
    path = tmp_path / 'cut.gguf'
    shutil.copyfile(source, path)
    size, head = path.stat().st_size, head_bytes(path)
    ends = {1, 3, 4, 8, 23, 24, 25, 100, 1000, head // 2, head - 100, head, head + 4096, size - 1}
    ends |= {size * share // 17 for share in range(1, 17)}
    said = attempts([(str(path), end, None, None) for end in sorted(ends, reverse=True)])
    assert len(said) == 30
    assert 'loaded' not in said


def flips(path: Path, count: int) -> list[Attempt]:
    raw = path.read_bytes()[: head_bytes(path)]
    choose = random.Random(2501)
    # half of them where the numbers are: the first pairs, and the table of tensors
    places = [
        choose.choice(
            [
                choose.randrange(2_000),
                choose.randrange(len(raw) - 16_000, len(raw)),
                choose.randrange(len(raw)),
                choose.randrange(len(raw)),
            ]
        )
        for _ in range(count)
    ]
    return [(str(path), None, at, raw[at] ^ 1 << choose.randrange(8)) for at in places]


def test_a_flipped_bit_in_the_head_is_one_line_or_loads(tmp_path: Path, source: Path) -> None:
    path = tmp_path / 'flipped.gguf'
    shutil.copyfile(source, path)
    said = attempts(flips(path, 16))
    assert any(line != 'loaded' for line in said)


@pytest.mark.slow
def test_300_flipped_bits_in_the_head(tmp_path: Path, source: Path) -> None:
    path = tmp_path / 'flipped.gguf'
    shutil.copyfile(source, path)
    attempts(flips(path, 300))


def test_two_tokens_spelled_alike_are_found_before_llama_cpp_asserts(
    tmp_path: Path, source: Path
) -> None:
    path = tmp_path / 'twice.gguf'
    shutil.copyfile(source, path)
    raw = path.read_bytes()[:100_000]
    at = raw.index((1).to_bytes(8, 'little') + b'b' + (1).to_bytes(8, 'little') + b'c') + 8
    assert "b'a', is in it twice" in attempts([(str(path), None, at, ord('a'))])[0]
