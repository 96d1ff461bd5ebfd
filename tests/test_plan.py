"""`smallm plan`: its arithmetic against figures computed by hand, its advice by trying it."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import re
import struct
from pathlib import Path

import pytest

from smallm_ros.bench import roofline, shape, workload
from smallm_ros.bench.roofline import (
    DEVICES,
    MISTRAL_SMALL,
    Case,
    Device,
    ModelFacts,
    PolicyTokens,
    Source,
    Spread,
    knobs,
    predict,
)
from smallm_ros.cli import plan
from smallm_ros.core.clock import MS, SECOND
from smallm_ros.core.errors import ModelFileError, OperatorError
from smallm_ros.core.passes import Passes
from smallm_ros.core.policy import Policy, load_policy
from smallm_ros.core.tree import Tree
from smallm_ros.engine import registry
from smallm_ros.engine.history import History
from tests import tekken_gguf

POLICIES = Path(__file__).resolve().parent.parent / 'config' / 'policies'
MISTRAL = 'mistral-small-24b-instruct-2501-q4_k_m'
RTX = DEVICES['rtx4090']

MODEL = ModelFacts(
    name='round', weights_bytes=11 * 10**9, read_bytes=10 * 10**9, parameters=20 * 10**9,
    vocabulary=1000, width=100, feed_forward=300, kv_bytes_per_token=100_000, context=8192,
    origin='this test',
)
ROUND = Device(
    name='round', title='A round device', memory_bytes=20 * 10**9, bandwidth_bytes_s=100e9,
    compute_ops_s=10e12, bandwidth_share=0.5, compute_share=0.2, system_bytes=10**9,
    sources=(Source('round figures', 'this test'),),
)
"""A token of MODEL: 10 GB at 50 GB/s, 200 ms, and 40 GOP at 2 TOP/s, 20 ms."""

END = 99
# Two actions of two tokens with two values each: a root, two names of 2 tokens, 4 values, 4 ends.
TREE = Tree.of([[1, 2, 3], [1, 2, 4], [5, 6, 3], [5, 6, 4]], END)


def tokens(budget_ms: int = 1000, dynamic: int = 60) -> PolicyTokens:
    return PolicyTokens(
        policy='round', vocabulary='numbers', drawn='by hand', static=128, tail=4,
        dynamic=Spread(dynamic - 20, dynamic), changed=Spread(dynamic - 30, dynamic + 4),
        history=0, references=3, tree=TREE, budget_ns=budget_ms * MS, period_ns=1000 * MS,
        arrival_ns=50 * MS,
    )


# --- one batch ----------------------------------------------------------------------------------


def test_a_batch_reads_the_weights_once_and_multiplies_each_token() -> None:
    assert ROUND.batch_ns(1, MODEL) == 220 * MS
    assert ROUND.batch_ns(10, MODEL) == 400 * MS
    # 1000 tokens in KV are 100 MB more to read: 2 ms at 50 GB/s, or 17/32 of it as q8_0
    assert ROUND.batch_ns(1, MODEL, 1000) == 222 * MS
    assert ROUND.batch_ns(1, MODEL, 1000, 'q8_0') == round(221.0625 * MS)


def test_the_roofline_overlaps_both_at_the_full_rates() -> None:
    assert ROUND.roofline_ns(1, MODEL) == 100 * MS
    assert ROUND.roofline_ns(50, MODEL) == 200 * MS
    assert all(
        device.roofline_ns(n) < device.batch_ns(n) for device in DEVICES.values()
        for n in (1, 16, 64, 512)
    )


def test_the_rooflines_of_the_24b_are_the_known_ones() -> None:
    rates = {name: SECOND / device.roofline_ns(1) for name, device in DEVICES.items()}
    assert rates == {
        'rtx4090': pytest.approx(72, abs=0.5), 'agx-orin': pytest.approx(14.7, abs=0.05),
        'agx-thor': pytest.approx(19.6, abs=0.05),
    }


def test_the_4090s_batches_are_the_published_ones_scaled_by_the_files() -> None:
    ratio = MISTRAL_SMALL.weights_bytes / 4_692_669_280  # llama 8B Q4_K_S
    for size, rate in ((16, 1946), (32, 3358), (64, 5349), (128, 6901), (256, 8555), (512, 9279)):
        assert RTX.batch_ns(size) == pytest.approx(size / rate * ratio * SECOND, rel=0.02)
    assert RTX.batch_ns(96) == 47 * MS  # between 64 and 128
    assert RTX.batch_ns(640) == 2 * RTX.batch_ns(512) - RTX.batch_ns(384)  # beyond the last


def test_the_jetsons_are_within_what_is_published_for_them() -> None:
    assert 115 * MS <= DEVICES['agx-orin'].batch_ns(1) <= 125 * MS
    assert 200 * MS <= DEVICES['agx-orin'].batch_ns(64) <= 300 * MS
    assert 70 * MS <= DEVICES['agx-thor'].batch_ns(1) <= 75 * MS


def test_the_claim_of_half_a_second_against_one_batch() -> None:
    assert 25 * RTX.batch_ns(1) == 500 * MS
    # 64 new tokens, and a tree of 30
    assert 43 * MS <= RTX.batch_ns(94) <= 48 * MS


def test_points_are_scaled_to_another_model_by_bytes_and_by_parameters() -> None:
    half = dataclasses.replace(MISTRAL_SMALL, read_bytes=MISTRAL_SMALL.read_bytes // 2)
    assert RTX.batch_ns(64, half) == pytest.approx(27 * MS)  # 20 / 2 + 17
    tiny = dataclasses.replace(half, read_bytes=1, parameters=1)
    assert RTX.batch_ns(64, tiny) == roofline.LEAST_BATCH_NS


@pytest.mark.parametrize('device', DEVICES.values(), ids=str)
def test_every_device_says_who_published_its_figures(device: Device) -> None:
    assert any('https://' in source.where for source in device.sources)
    assert all(source.what and source.where for source in device.sources)
    said = ' '.join(source.what for source in device.sources)
    assert f'{device.bandwidth_bytes_s / 1e9:g} GB/s' in said
    assert 'system' in said and 'one token' in said and 'batches' in said
    costs = [device.batch_ns(n) for n in range(1, 600)]
    assert costs == sorted(costs)


# --- a decision ---------------------------------------------------------------------------------


def test_memory_is_weights_kv_buffers_and_the_system() -> None:
    memory = predict(Case(MODEL, ROUND, tokens(), context_tokens=4000)).memory
    assert (memory.weights, memory.kv, memory.system) == (11 * 10**9, 400_000_000, 10**9)
    assert memory.compute == 4 * 512 * (1000 + 100 + 3 * 300)
    assert memory.total == memory.weights + memory.kv + memory.compute + memory.system
    quarter = predict(Case(MODEL, ROUND, tokens(), context_tokens=4000, kv_type='q4_0')).memory
    assert quarter.kv == 400_000_000 * 18 // 64


def test_the_24b_leaves_room_for_its_whole_context_on_a_4090() -> None:
    case = Case(MISTRAL_SMALL, RTX, tokens(), context_tokens=32_768)
    assert predict(case).memory.kv == 32_768 * 163_840
    assert predict(case).fits


def test_the_parts_of_a_decision_by_hand() -> None:
    found = predict(Case(MODEL, ROUND, tokens(), passes=Passes.ONE))
    assert found.layout == '2'
    used = tokens().context * 100_000 / 50e9 * SECOND  # KV that each pass reads
    wait, tokenise, one, margin, transport = found.parts
    assert (wait.typical_ns, wait.most_ns) == (25 * MS, 50 * MS)
    assert (tokenise.typical_ns, tokenise.most_ns) == (300_000, 400_000)
    # beside the prompt the two names of 2 tokens; values and ends are only looked up
    assert one.tokens == Spread(34, 68)
    assert one.typical_ns == pytest.approx((200 + 34 * 20) * MS + used, rel=1e-6)
    assert one.most_ns == pytest.approx((200 + 68 * 20) * MS + used, rel=1e-6)
    assert margin.most_ns == pytest.approx(0.1 * one.most_ns, abs=2)
    assert (transport.typical_ns, transport.most_ns) == (1 * MS, 5 * MS)
    assert found.typical_ns == sum(p.typical_ns for p in found.parts)
    assert found.passes_ns == one.typical_ns


def test_two_passes_pay_where_tokens_cost_more_than_a_pass_over_the_weights() -> None:
    slow = dataclasses.replace(ROUND, compute_ops_s=1e12)  # 200 ms a token, 200 ms a pass
    quick = dataclasses.replace(ROUND, compute_ops_s=1000e12)
    wide = Tree.of([[a, 50 + a, 40 + v] for a in range(8) for v in range(6)], END)
    policy = dataclasses.replace(tokens(), tree=wide)
    assert predict(Case(MODEL, slow, policy)).layout == '1+1'
    assert predict(Case(MODEL, quick, policy)).layout == '2'
    costs = [cost for _, cost in predict(Case(MODEL, slow, policy)).layouts]
    assert costs == sorted(costs)
    forced = Case(MODEL, slow, policy, passes=Passes.ONE)
    cheaper = predict(forced).passes_ns - predict(Case(MODEL, slow, policy)).passes_ns
    assert cheaper > 0


def test_what_is_generated_token_by_token_costs_a_pass_each() -> None:
    found = predict(Case(MODEL, ROUND, dataclasses.replace(tokens(), static=0)))
    assert found.generated_ns == pytest.approx((200 + 30 * 20 + 24 * 220) * MS, rel=0.01)


# --- what would make it fit ---------------------------------------------------------------------


def test_what_fits_needs_no_advice() -> None:
    assert knobs(Case(MISTRAL_SMALL, RTX, tokens())) == ()


def test_each_advice_against_a_short_budget_holds_when_it_is_tried() -> None:
    case = Case(MISTRAL_SMALL, DEVICES['agx-orin'], tokens(budget_ms=280))
    assert not predict(case).time_fits
    found = {knob.change: knob.prediction.case for knob in knobs(case)}
    assert all(predict(changed).fits for changed in found.values())
    said = ' | '.join(found)
    for knob in ('an observation of at most', 'decision.budget_ms', '--device rtx4090'):
        assert knob in said
    assert 'the model as' not in said  # its bytes are not what takes the time


def test_the_observation_advised_is_the_longest_that_fits() -> None:
    case = Case(MISTRAL_SMALL, DEVICES['agx-orin'], tokens(budget_ms=280))
    knob = next(k for k in knobs(case) if k.change.startswith('an observation'))
    advised = knob.prediction.case.tokens
    assert f'prompt_tokens: {advised.dynamic.most})' in knob.change
    assert 16 <= advised.dynamic.most < 60
    longer = dataclasses.replace(
        case.tokens, dynamic=case.tokens.dynamic.at_most(advised.dynamic.most + 1),
        changed=case.tokens.changed.at_most(advised.dynamic.most + 1 + 4),
    )
    assert not predict(dataclasses.replace(case, tokens=longer)).time_fits


def test_the_budget_advised_is_the_least_that_fits_and_slows_the_rate_only_if_it_must() -> None:
    case = Case(MISTRAL_SMALL, DEVICES['agx-orin'], tokens(budget_ms=280))
    knob = next(k for k in knobs(case) if 'budget_ms' in k.change)
    budget_ns = knob.prediction.case.tokens.budget_ns
    assert 'rate_hz' not in knob.change
    assert budget_ns - MS < knob.prediction.most_ns <= budget_ns
    often = dataclasses.replace(case.tokens, period_ns=300 * MS)
    knob = next(k for k in knobs(dataclasses.replace(case, tokens=often))
                if 'budget_ms' in k.change)
    rate_hz = float(knob.change.split('rate_hz: ')[1])
    assert 1000 / rate_hz >= knob.prediction.case.tokens.budget_ns / MS


def test_fewer_bits_help_where_reading_the_weights_is_what_takes_the_time() -> None:
    case = Case(MODEL, dataclasses.replace(ROUND, compute_ops_s=1e16), tokens(budget_ms=250))
    found = [knob for knob in knobs(case) if 'the model as' in knob.change]
    # 4.36 bits a weight are nearest to Q4_K_S; 200 ms x 3.91 / 4.58 x 1.1 and 55 ms are 243 ms
    assert [knob.change.split()[3] for knob in found] == ['Q3_K_M', 'Q2_K']
    assert all(knob.prediction.case.model.read_bytes < MODEL.read_bytes for knob in found)


def test_each_advice_against_too_little_memory_holds_when_it_is_tried() -> None:
    small = dataclasses.replace(RTX, memory_bytes=18 * 10**9)
    case = Case(MISTRAL_SMALL, small, tokens(), context_tokens=32_768)
    assert not predict(case).memory_fits and predict(case).time_fits
    found = {knob.change: knob.prediction.case for knob in knobs(case)}
    assert all(predict(changed).fits for changed in found.values())
    kinds = {change.split(' ')[0] for change in found}
    assert {'--context', '--kv-type', 'the', '--device'} <= kinds
    context = next(c for change, c in found.items() if change.startswith('--context'))
    assert context.context_tokens % 256 == 0
    more = dataclasses.replace(context, context_tokens=context.context_tokens + 256)
    assert not predict(more).fits


def test_a_context_too_small_for_the_prompt_is_told_and_advised() -> None:
    long = dataclasses.replace(tokens(), static=5000)
    case = Case(MISTRAL_SMALL, RTX, long)
    assert not predict(case).context_fits
    assert [knob.change for knob in knobs(case)] == ['--context 5120 instead of 4096']


def test_two_changes_are_advised_where_one_is_not_enough() -> None:
    case = Case(MISTRAL_SMALL, RTX, tokens(budget_ms=60), context_tokens=65_536)
    found = knobs(case)
    assert found
    assert all(', and ' in knob.change and knob.prediction.fits for knob in found)


def test_no_advice_is_made_up_where_nothing_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, 'DEVICES', {})
    hopeless = dataclasses.replace(RTX, memory_bytes=2 * 10**9)
    assert knobs(Case(MISTRAL_SMALL, hopeless, tokens())) == ()


@pytest.mark.parametrize(('bits', 'name'), [(4.84, 'Q4_K_M'), (8.5, 'Q8_0'), (3.3, 'Q2_K')])
def test_the_quantisation_is_told_from_the_bits_a_weight(bits: float, name: str) -> None:
    weights = MODEL.parameters + 2 * MODEL.vocabulary * MODEL.width
    model = dataclasses.replace(MODEL, weights_bytes=round(weights * bits / 8))
    assert roofline.quantisation_of(model) == name


# --- counting -----------------------------------------------------------------------------------


def spelled() -> workload.Vocabulary:
    """Return a vocabulary of one token a character, and one a control token."""
    return workload.Vocabulary(
        said='letters', template='mistral-v7-tekken', size=1_100_000,
        tokenize=lambda text: [ord(c) for c in text],
        control_token=lambda text: 1_000_000 + sum(map(ord, text)),
        piece=lambda token: chr(token).encode() if token < 1_000_000 else b'',
    )


def explorer() -> Policy:
    return load_policy(POLICIES / 'explorer.yaml')


def test_a_policy_is_counted_by_its_texts() -> None:
    policy = explorer().model_copy(update={'examples': ()})
    found = workload.count(policy, spelled(), observations=50)
    told = workload.declaration(policy)
    assert found.static == len(told.system) + 4  # <s>[SYSTEM_PROMPT]…[/SYSTEM_PROMPT][INST]
    assert found.tail == 1  # [/INST]
    texts = [
        ''.join(s.text for s in workload.segments(policy, o))
        for o in workload.draw(policy, policy.prior.seed, 50)
    ]
    assert found.dynamic.most == max(map(len, texts))
    assert min(map(len, texts)) <= found.dynamic.typical <= found.dynamic.most
    # `scan: ahead ` never changes, and is never evaluated again
    assert found.changed.most <= found.dynamic.most + 1 - len('scan: ahead ')
    assert len(found.tree.ends) == 6
    assert (found.budget_ns, found.arrival_ns) == (300 * MS, 50 * MS)
    assert found.history == 0


def test_with_a_history_each_decision_evaluates_a_whole_turn() -> None:
    policy = explorer()
    rules = policy.decision.model_copy(update={'history': 3})
    plain = workload.count(policy, spelled(), observations=50)
    found = workload.count(
        policy.model_copy(update={'decision': rules}), spelled(), observations=50
    )
    turn = len('forward slow') + 2  # </s>[INST]
    assert found.changed.most == plain.dynamic.most + turn + 1
    assert found.history == History.most(3) * (turn + plain.dynamic.most + 1)


def text(value: str) -> bytes:
    return struct.pack('<Q', len(value)) + value.encode()


def gguf(path: Path, *, tied: bool = False, cut: int = 0) -> Path:
    """Write a GGUF's head with a vocabulary of three tokens, two layers, and some data."""
    numbers = {'block_count': 2, 'embedding_length': 8, 'feed_forward_length': 32,
               'attention.head_count': 4, 'attention.head_count_kv': 2, 'context_length': 512}
    pairs = text('general.architecture') + struct.pack('<I', 8) + text('llama')
    for key, value in numbers.items():
        pairs += text(f'llama.{key}') + struct.pack('<II', 4, value)
    pairs += text('tokenizer.ggml.tokens') + struct.pack('<IIQ', 9, 8, 3)
    pairs += text('a') + text('b') + text('c')
    pairs += text('tokenizer.ggml.scores') + struct.pack('<IIQ3f', 9, 6, 3, 0.0, 0.0, 0.0)
    shapes = [('token_embd.weight', (8, 3), 96), ('blk.0.ffn_up.weight', (8, 32), 1024),
              ('blk.1.ffn_up.weight', (8, 32), 1024)]
    shapes += [] if tied else [('output.weight', (8, 3), 96)]
    tensors, offset = b'', 0
    for name, sides, size in shapes:
        tensors += text(name) + struct.pack('<I', len(sides)) + struct.pack('<2Q', *sides)
        tensors += struct.pack('<IQ', 0, offset)
        offset += size
    head = struct.pack('<IIQQ', 0x46554747, 3, len(shapes), len(numbers) + 3) + pairs + tensors
    path.write_bytes(head[:len(head) - cut] if cut else head + bytes(offset))
    return path


def test_a_files_head_tells_its_facts(tmp_path: Path) -> None:
    path = gguf(tmp_path / 'small.gguf')
    size = path.stat().st_size
    found = workload.facts_of_file(path, 'small')
    assert found == ModelFacts(
        name='small', weights_bytes=size, read_bytes=size - 96, parameters=512, vocabulary=3,
        width=8, feed_forward=32, kv_bytes_per_token=2 * 2 * 2 * 2 * 2, context=512,
        origin='head of small.gguf',
    )
    tied = workload.facts_of_file(gguf(tmp_path / 'tied.gguf', tied=True), 'tied')
    assert tied.read_bytes == tied.weights_bytes


@pytest.mark.parametrize('cut', range(1, 200, 7))
def test_a_head_that_is_cut_short_is_refused_in_a_line(tmp_path: Path, cut: int) -> None:
    path = gguf(tmp_path / 'cut.gguf', cut=cut)
    with pytest.raises(ModelFileError, match=r'cut\.gguf: .*') as refused:
        workload.facts_of_file(path, 'cut')
    assert '\n' not in str(refused.value)


def test_the_shape_that_is_known_without_its_file_agrees_with_the_registry() -> None:
    entry = registry.entry_named(MISTRAL)
    assert MISTRAL_SMALL.name == entry.name
    assert MISTRAL_SMALL.weights_bytes == entry.bytes
    assert MISTRAL_SMALL.kv_bytes_per_token == entry.kv_bytes_per_token
    assert MISTRAL_SMALL.context == entry.context


# --- the command --------------------------------------------------------------------------------


@pytest.fixture
def nothing_pulled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


def smallm(*words: str) -> int:
    parser = argparse.ArgumentParser()
    plan.add_parser(parser.add_subparsers())
    args = parser.parse_args(['plan', *words])
    code: int = args.run(args)
    return code


def test_an_unknown_device_or_model_is_one_line_with_the_choices() -> None:
    with pytest.raises(OperatorError, match='rtx4090, agx-orin, agx-thor, this') as device:
        smallm('--model', MISTRAL, '--device', 'rtx5090')
    with pytest.raises(OperatorError, match=f'{MISTRAL}.*smollm2') as model:
        smallm('--model', 'mistral-large', '--device', 'rtx4090')
    assert '\n' not in f'{device.value}{model.value}'


@pytest.mark.usefixtures('nothing_pulled')
def test_the_bench_policy_on_a_4090_without_the_weights(
    capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip('mistral_common')
    pytest.importorskip('gguf')
    bench = ('--policy', str(POLICIES / 'bench.yaml'))
    assert smallm('--model', MISTRAL, '--device', 'rtx4090', *bench, '--json') == 0
    found = json.loads(capsys.readouterr().out)
    assert found['predicted'] and found['fits'] and found['knobs'] == []
    assert found['vocabulary'].startswith('Tekken')
    passes = sum(p['most_ns'] for p in found['parts'] if p['name'].startswith('pass'))
    assert 35 * MS <= passes <= 50 * MS
    assert 480 * MS <= found['generated_ns'] <= 560 * MS
    assert found['levels'] == found['layouts'][0]['levels']
    assert len(found['sources']) >= 3
    assert found['measured'] is None

    assert smallm('--model', MISTRAL, '--device', 'rtx4090', *bench) == 0
    said = capsys.readouterr().out
    assert 'PREDICTED' in said and 'https://github.com/ggml-org/llama.cpp/pull/7860' in said


@pytest.mark.usefixtures('nothing_pulled')
def test_what_does_not_fit_is_said_with_what_would_and_an_exit_code(
    capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip('mistral_common')
    pytest.importorskip('gguf')
    assert smallm('--model', MISTRAL, '--device', 'rtx4090', '--context', '65536') == 1
    said = capsys.readouterr().out
    assert 'DOES NOT FIT' in said
    assert re.search(r'^to fit +--context 32768 instead of 65536: ', said, re.MULTILINE)


@pytest.mark.model
def test_without_its_own_vocabulary_the_embedded_ones_counts_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec',
                        lambda name: None if name == 'mistral_common' else real(name))
    words = workload.vocabulary(workload.Subject(MISTRAL_SMALL, workload.TEKKEN, None))
    assert f'NOT of {MISTRAL}' in words.said
    assert workload.count(explorer(), words, observations=10).dynamic.most > 5


@pytest.mark.model
def test_the_packages_vocabulary_counts_as_a_files_does() -> None:
    path = tekken_gguf.cached()
    facts = workload.facts_of_file(path, 'tiny')
    assert (facts.vocabulary, facts.kv_bytes_per_token) == (131_072, shape.TINY.kv_bytes_per_token)
    policy = load_policy(POLICIES / 'bench.yaml')
    of_file, of_package = (
        workload.count(policy, workload.vocabulary(of), observations=20) for of in (
            workload.Subject(facts, None, path),
            workload.Subject(MISTRAL_SMALL, workload.TEKKEN, None),
        )
    )
    assert of_package == dataclasses.replace(of_file, vocabulary=of_package.vocabulary)


@pytest.mark.model
def test_on_this_machine_the_engine_is_measured_beside_the_prediction(
    capsys: pytest.CaptureFixture[str]
) -> None:
    code = smallm('--model', 'smollm2-135m-instruct', '--device', 'this', '--json')
    found = json.loads(capsys.readouterr().out)
    assert code == (0 if found['fits'] else 1)
    measured = found['measured']
    assert measured['decisions'] >= 3 and measured['passes'] in (1, 2)
    rows = {part['name']: part for part in measured['parts']}
    assert set(rows) == {'tokenise', 'passes', 'engine together'}
    engine, passes = rows['engine together'], rows['passes']
    assert 0 < rows['tokenise']['measured_ns'] < engine['measured_ns']
    assert passes['measured_ns'] <= engine['measured_ns']
    # other machines' load is in the measurement: only a wrong order of magnitude is a mistake
    for predicted in ('roofline_ns', 't_n_ns'):
        assert 0.05 < passes[predicted] / passes['measured_ns'] < 20

    model = workload.subject('smollm2-135m-instruct').facts
    assert (model.kv_bytes_per_token, model.vocabulary, model.context) == (23_040, 49_152, 8192)
    assert model.read_bytes == model.weights_bytes
