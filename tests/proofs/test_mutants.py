"""The list of planted defects stays true; `make mutants` plants them."""

from __future__ import annotations

from tests.proofs import mutants


def test_every_planted_defect_still_fits_the_code() -> None:
    assert mutants.untrue() == []


def test_there_are_many_each_changes_something_and_has_a_name_of_its_own() -> None:
    assert len(mutants.MUTANTS) >= 40
    assert all(mutant.old != mutant.new for mutant in mutants.MUTANTS)
    names = [(mutant.file, mutant.name) for mutant in mutants.MUTANTS]
    assert len(set(names)) == len(names)
