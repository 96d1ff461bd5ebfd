"""One run: every arm on every observation, in turn, so that all of them see the same machine.

A round is one observation in all arms; who begins rotates. Each of our tree's arms is followed at
once by its floor, on the same context. The first rounds warm everything up and are not counted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from smallm_ros.bench.arms import CLOSE, PATIENCE_NS, Arm, Ours, Stepwise
from smallm_ros.bench.canary import Canary, Rule, others_ms
from smallm_ros.bench.contexts import NotedModel
from smallm_ros.bench.floors import floor_a, floor_b
from smallm_ros.bench.names import (
    CHAT,
    CHAT_SENTENCE,
    FLOOR_B,
    FLOORS,
    ONE,
    OURS,
    OURS_WORDS,
    SERVER,
    SERVER_SENTENCE,
    SKIPPABLE,
    STEPWISE,
    TWO,
)
from smallm_ros.bench.observations import AsJson, Case, cases, in_words
from smallm_ros.bench.others import Chat, Completion, Reads, Served
from smallm_ros.bench.result import DIFFERS, SAME, TIE, Conditions, Round, Run
from smallm_ros.bench.server import Settings
from smallm_ros.bench.shot import Shot
from smallm_ros.bench.tap import Tap
from smallm_ros.core.budget import CostModel
from smallm_ros.core.clock import SECOND, Clock
from smallm_ros.core.errors import OperatorError
from smallm_ros.core.exchange import Decide, Declaration
from smallm_ros.core.passes import Passes
from smallm_ros.core.policy import Policy
from smallm_ros.core.prompt import declaration
from smallm_ros.engine import registry
from smallm_ros.engine.alarm import SteadyAlarm
from smallm_ros.engine.decode import TreeDecider
from smallm_ros.engine.load import cost_model, prior_folder
from smallm_ros.engine.model import ModelSettings
from smallm_ros.engine.options import LoadRequest
from smallm_ros.engine.progress import ProgressPage, ProgressWriter
from smallm_ros.engine.templates import fitting
from smallm_ros.replay.report import describe_machine

WARM_ROUNDS = 2
PASSES = {OURS: Passes.AUTO, ONE: Passes.ONE, TWO: Passes.TWO, OURS_WORDS: Passes.AUTO}

Say = Callable[[str], None]
"""Told in one line what is being done."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run."""

    request: LoadRequest
    policy: Policy
    observations: int
    seed: int
    skip: tuple[str, ...]
    """Of SKIPPABLE."""
    folder: Path
    """Where the server's log and the canary's go."""
    rule: Rule
    command: str
    started: str


def run(
    plan: Plan, clock: Clock, say: Say, announce: Say, admit: Callable[[Conditions], None]
) -> Run:
    """Load everything, run all rounds, and return what was found.

    `announce` is told once, before the first round, what will be run and by which rule; `admit`
    gets the conditions then, and raises where they are not those that were wanted.
    """
    declared = declaration(plan.policy)
    if declared.history:
        raise OperatorError(f'policy {plan.policy.name}: decision.history is {declared.history}: '
                            'the other arms have no such history, so nothing could be compared')
    asked = cases(plan.policy, plan.seed, plan.observations + WARM_ROUNDS)
    if len(asked) <= WARM_ROUNDS:
        raise OperatorError(f'policy {plan.policy.name}: its observations are all alike')
    before = os.getloadavg()[0]
    with contextlib.ExitStack() as stack:
        bench = _Bench(plan, declared, clock, say, stack)
        admit(bench.conditions)
        announce(f'{bench.conditions.model}, {bench.conditions.threads} thread(s), '
                 f'{len(asked) - WARM_ROUNDS} observations after {WARM_ROUNDS} to warm up, arms '
                 f'{", ".join(bench.arms)}; {plan.rule}')
        canary = Canary(plan.folder / 'canary.bin')
        stack.callback(canary.close)
        gc.collect()
        gc.freeze()  # as the worker does: what was loaded is never looked at again
        stack.callback(gc.unfreeze)
        pids = (os.getpid(), canary.pid, *bench.pids)
        rounds = list(_rounds(bench, asked, pids, clock, say))
        steps = canary.steps()
    judged = tuple(
        dataclasses.replace(
            r, left_out=plan.rule.judge(steps, r.begin_ns, r.end_ns, r.others_ms)
        ) for r in rounds
    )
    return Run(
        started=plan.started, command=plan.command, conditions=bench.conditions,
        machine=describe_machine(), load=(before, os.getloadavg()[0]), rounds=judged,
        costs=bench.costs, notes=tuple(bench.notes),
    )


def _rounds(
    bench: _Bench, asked: Sequence[Case], pids: Sequence[int], clock: Clock, say: Say
) -> Iterator[Round]:
    names = list(bench.arms)
    total = len(asked)
    began_ns = clock.now_ns()
    for index, case in enumerate(asked):
        first = index % len(names)
        begin_ns, before_ms = clock.now_ns(), others_ms(pids)
        shots: dict[str, Shot] = {}
        for name in names[first:] + names[:first]:
            shots[name] = bench.arms[name].ask(case)
            shots |= bench.floors(name)
        end_ns, taken_ms = clock.now_ns(), others_ms(pids) - before_ms
        done = index + 1
        each_s = (end_ns - began_ns) / SECOND / done
        say(f'round {done} of {total}, {each_s:.1f} s each, {each_s * (total - done):.0f} s left')
        if index >= WARM_ROUNDS:
            equal = bench.equal(shots)
            yield Round(index - WARM_ROUNDS, begin_ns, end_ns, taken_ms, '', shots, equal)


class _Bench:
    """All arms, loaded; they are freed by the stack that they were given."""

    def __init__(
        self, plan: Plan, declared: Declaration, clock: Clock, say: Say,
        stack: contextlib.ExitStack,
    ) -> None:
        self._plan, self._declared, self._clock, self._say = plan, declared, clock, say
        self._stack = stack
        self.notes: list[str] = []
        self.pids: list[int] = []
        """Of the processes that belong to the arms."""
        self._priors = prior_folder(plan.request)
        self._tap = stack.enter_context(Tap(clock))
        request = plan.request
        file = registry.resolve(request.model, template=request.template,
                                progress=lambda what, _done, _total: say(what))
        self._path = file.path
        self._settings = ModelSettings(
            context_tokens=request.context_tokens, n_gpu_layers=request.n_gpu_layers,
            use_mlock=request.use_mlock, kv_type=request.kv_type, threads=request.threads,
        )
        say(f'loading {file.name}')
        self._base = NotedModel.open(
            file.path, name=file.name, sha256=file.sha256, settings=self._settings,
        )
        stack.callback(self._base.close)
        self._template = fitting(file.template, self._base)
        page = ProgressPage.create(clock.now_ns())
        stack.callback(page.close)
        self._beats = ProgressWriter(page, clock)
        say('measuring what a batch costs')
        self.costs = cost_model(self._base, request, self._beats, clock).points
        self._beats.ready()
        self.arms: dict[str, Arm] = self._ours()
        self._stepwise = self._add_stepwise()
        self._add_chats()
        self.conditions = self._conditions()

    def floors(self, name: str) -> Mapping[str, Shot]:
        """Return the floors that are measured right after an arm's decision."""
        arm = self.arms[name]
        if not isinstance(arm, Ours) or name not in FLOORS:
            return {}
        found = {FLOORS[name]: floor_a(arm, self._tap)}
        if name == OURS:
            found[FLOOR_B] = floor_b(arm, self._tap)
        return found

    def equal(self, shots: Mapping[str, Shot]) -> Mapping[str, str]:
        """Compare the answers of our tree's arms with the stepwise one."""
        if self._stepwise is None or self._declared.decide is not Decide.GREEDY:
            return {}
        standard = shots[STEPWISE].answer
        return {
            name: self._verdict(name, shots[name].answer, standard)
            for name in FLOORS if name in shots
        }

    def _verdict(self, name: str, answer: str, standard: str) -> str:
        """Say whether an answer is stepwise decoding's, or in either evaluation nearly was."""
        arm = self.arms[name]
        assert isinstance(arm, Ours) and self._stepwise is not None
        if answer == standard:
            return SAME
        return TIE if min(arm.apart(standard), self._stepwise.apart(answer)) < CLOSE else DIFFERS

    def _ours(self) -> dict[str, Arm]:
        found: dict[str, Arm] = {}
        for name, passes in PASSES.items():
            if name in self._plan.skip:
                continue
            self._say(f'declaring the policy: {name}')
            model = self._base if name == OURS else self._context()
            # nothing waits while it is declared: the batches are as large in every arm
            decider = TreeDecider(
                model, self._template, CostModel(self.costs), self._beats, self._clock,
                alarm=SteadyAlarm(), check_ns=PATIENCE_NS, passes=passes, cache=self._priors,
            )
            self._stack.callback(decider.close)
            words = name == OURS_WORDS
            told = declaration(in_words(self._plan.policy)) if words else self._declared
            found[name] = Ours(decider, model, told, self._tap, self._clock, words=words)
        return found

    def _context(self) -> NotedModel:
        model = self._base.beside(self._path, self._settings)
        self._stack.callback(model.close)
        return model

    def _add_stepwise(self) -> Stepwise | None:
        if STEPWISE in self._plan.skip:
            return None
        self._say(f'declaring the policy: {STEPWISE}')
        ours = self.arms[OURS]
        assert isinstance(ours, Ours)
        found = Stepwise(self._context(), self._template, self._declared, ours.bias,
                         ours.static, self._tap, self._clock)
        self.arms[STEPWISE] = found
        return found

    def _add_chats(self) -> None:
        wanted = [name for name in (CHAT, SERVER) if name not in self._plan.skip]
        if wanted and not self._base.has_chat_template:
            self.notes.append(f'{" and ".join(wanted)} left out: the model file carries no chat '
                              'template that could be rendered')
            return
        chat = Chat.of(self._declared, AsJson.of(self._plan.policy))
        settings = Settings(
            path=str(self._path), context_tokens=self._base.n_ctx, threads=self._base.threads,
            gpu_layers=self._plan.request.n_gpu_layers, kv_type=self._plan.request.kv_type,
            parent=os.getpid(),
        )
        if CHAT in wanted:
            self._say('loading create_chat_completion')
            completion = Completion(settings, chat, self._tap, self._clock)
            self._add_both(completion, CHAT, CHAT_SENTENCE)
        if SERVER in wanted and importlib.util.find_spec('xllamacpp') is None:
            self.notes.append('server left out: xllamacpp is not installed: '
                              'pip install xllamacpp')
        elif SERVER in wanted:
            self._say('starting the llama-server')
            served = Served(settings, chat, self._plan.folder / 'server.log', self._clock)
            self.pids.append(served.pid)
            self.notes.append('the server runs the llama.cpp that is built into xllamacpp; the '
                              'column `this` of the prediction is all arms on our build')
            self._add_both(served, SERVER, SERVER_SENTENCE)

    def _add_both(self, chat: Completion | Served, compact: str, sentence: str) -> None:
        self._stack.callback(chat.close)
        self.arms[compact] = Reads(chat, sentence=False)
        self.arms[sentence] = Reads(chat, sentence=True)

    def _conditions(self) -> Conditions:
        machine, request, model = describe_machine(), self._plan.request, self._base
        return Conditions(
            model=model.name, model_sha256=model.sha256, template=self._template,
            threads=model.threads, gpu_layers=model.gpu_layers, context_tokens=model.n_ctx,
            kv_type=request.kv_type, policy=self._plan.policy.name,
            declaration=self._declared.space, seed=self._plan.seed,
            observations=self._plan.observations, cpu=machine.cpu, cores=machine.cores,
            accelerator=_accelerator(),
            llama_cpp_python=metadata.version('llama-cpp-python'),
            xllamacpp=metadata.version('xllamacpp') if SERVER in self.arms else '',
            skipped=tuple(name for name in SKIPPABLE if name not in self.arms),
            rule=str(self._plan.rule),
        )


def _accelerator() -> str:
    """Return what NVIDIA's driver or a Jetson's device tree calls the hardware, or ''."""
    found = [
        line.split(':', 1)[1].strip()
        for path in sorted(Path('/proc/driver/nvidia/gpus').glob('*/information'))
        for line in path.read_text(encoding='utf-8', errors='replace').splitlines()
        if line.startswith('Model:')
    ]
    with contextlib.suppress(OSError):
        board = Path('/proc/device-tree/model').read_text(encoding='utf-8', errors='replace')
        found.append(board.rstrip('\0'))
    return ', '.join(found)
