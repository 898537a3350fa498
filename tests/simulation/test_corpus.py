"""Seeds that reached much in campaigns are run first, and together they reach what a sceptic would ask for."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulation import corpus, coverage
from simulation.campaign import reproduce, run_seed
from simulation.world import Report

KNOWN = corpus.read()


@pytest.mark.parametrize(("seed", "profile"), KNOWN)
def test_no_seed_of_the_corpus_breaks_a_promise(seed: int, profile: str) -> None:
    report = run_seed(seed, profile)
    assert not report.failure, f"run again with `{reproduce(seed, profile)}`\n{report.failure}"


def _report(seed: int, turns: int, *kinds: tuple[str, str]) -> Report:
    numbers = [coverage.NUMBER[kind] for kind in kinds]
    reached = sum(1 << coverage.pair_bit(one, other) for one in numbers for other in numbers if one <= other)
    return Report(seed, "mixed", turns=turns, coverage=f"{reached:x}")


CRASH, VOTE, STARTS = ("faults", "crash"), ("messages", "RequestVote"), ("changes", "starts")


def test_seeds_are_kept_for_what_they_add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "PATH", tmp_path / "corpus.txt")
    reports = [
        _report(1, 100, CRASH),
        _report(2, 100, CRASH, VOTE, STARTS),
        _report(3, 100, CRASH, VOTE),
        _report(4, corpus.DEAR + 1, ("faults", "sleep"), VOTE),
        _report(5, 100, ("faults", "pause")),
    ]
    corpus.write(corpus.choose(reports, 9))
    assert corpus.read() == [(2, "mixed"), (5, "mixed")]


def test_pairs_have_bits_of_their_own() -> None:
    bits = [coverage.pair_bit(one, other) for one, other in coverage.all_pairs()]
    assert bits == list(range(len(bits)))
    assert coverage.pair_bit(5, 2) == coverage.pair_bit(2, 5)
    rows = dict(coverage.table(int(_report(1, 1, CRASH, VOTE).coverage, 16)))
    assert rows["  faults x messages"].startswith("1 of ")
    assert "crash in a turn" in rows["  faults never"]
