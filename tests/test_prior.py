"""Prior correction: the bias over the references is subtracted at every choice, and only there."""

from __future__ import annotations

import numpy as np

from smallm_ros.core.exchange import Decided, Declaration, Declared
from smallm_ros.core.tree import ROOT, Tree
from smallm_ros.engine.templates import conversation
from tests.fakes.decider_bench import ANSWERS, TEMPLATE, Bench, stepwise
from tests.fakes.history_model import HistoryModel

REFERENCES = ('scan 1\nodom 2', 'scan 3\nodom 4', 'scan 5')


def declared(bench: Bench, references: tuple[str, ...]) -> None:
    told = bench.decider.declare(
        Declaration('prior', 'drive', (('o', 'left'),), ANSWERS, 200, references)
    )
    assert isinstance(told, Declared)


def corrected(text: str) -> int:
    """Decide stepwise on a fresh model with the mean logits of the references subtracted."""
    model = HistoryModel()
    prompt = conversation(TEMPLATE, model, 'drive', (('o', 'left'),))
    tree = Tree.of([model.tokenize(a) for a in ANSWERS], prompt.end)

    def logits(seen: str, path: list[int]) -> np.ndarray:
        tokens = (*prompt.prefix, *model.tokenize(seen), *prompt.suffix, *path)
        return model._logits(tokens).astype(np.float64)

    node, path = ROOT, []
    while tree.nodes[node].leaf < 0:
        children = tree.nodes[node].children
        ids = [tree.nodes[c].token for c in children]
        mean = np.mean([logits(r, path)[ids] for r in REFERENCES], axis=0)
        best = int((logits(text, path)[ids] - mean).argmax()) if len(ids) > 1 else 0
        node = children[best]
        path.append(ids[best])
    return tree.nodes[node].leaf


def test_it_equals_the_correction_done_by_hand() -> None:
    bench = Bench()
    declared(bench, REFERENCES)
    differ = 0
    for i in range(60):
        answer = bench.ask(bench.question(f'scan {i}', space='prior'))
        assert isinstance(answer, Decided)
        assert answer.decision.leaf == corrected(f'scan {i}')
        differ += answer.decision.leaf != stepwise(ANSWERS, (f'scan {i}',))
    assert differ > 0, 'the correction changed nothing, so this test showed nothing'


def test_the_references_leave_nothing_in_kv() -> None:
    plain, measured = Bench(), Bench()
    declared(plain, ())
    declared(measured, REFERENCES)
    for bench in (plain, measured):
        bench.ask(bench.question('scan 1', space='prior'))
    assert plain.model.cells == measured.model.cells


def test_each_reference_costs_one_pass() -> None:
    plain, measured = Bench(), Bench()
    declared(plain, ())
    declared(measured, REFERENCES)
    assert len(measured.batches) == len(plain.batches) + len(REFERENCES)
