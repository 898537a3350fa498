"""No test waits for another thread or process with a time of its own: see ``lab.patience``.

A few seconds are enough on the machine of the one who writes the test, and not on one that was stopped for that long.
What a test waits for gets ``PATIENCE``. A timeout that must run out is a second at most, as it always does. A time
between the two is neither.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from lab.patience import PATIENCE

TESTS = Path(__file__).parents[2]
FILES = [path for room in ("unit", "lab", "fuzz", "clients") for path in sorted((TESTS / room).rglob("*.py"))]
RUNS_OUT = 1.0
"""Seconds that a timeout has at most which is to run out."""
WAITS = {"communicate", "join", "result", "settimeout"}
"""Methods whose first argument, if it is the only one, is a time to wait."""
ASSERTED = {"wait"}
"""The same, but without ``assert`` before them they only let time pass, or a simulated clock."""
OTHERWISE = {
    "clients/programs/aetcd_work.py": "it asks again",
    "lab/http2/attacks.py": "an attack ends when its connection is held up",
    "lab/patroni.py": "it asks again",
    "lab/ray/": "on real processes, with times of their own",
    "unit/actors/client/core/": "on a simulated clock",
    "unit/actors/client/test_where_it_failed.py": "on a simulated clock",
    "unit/actors/member/test_poller.py": "on a simulated clock",
    "unit/lab/test_benchmark_network.py": "on a simulated clock",
}
"""Files or folders in which such times mean something else."""


def _literal(node: ast.expr) -> float:
    is_number = isinstance(node, ast.Constant) and type(node.value) in (int, float)
    return float(node.value) if is_number else 0.0  # type: ignore[attr-defined]


def _times(tree: ast.AST) -> Iterator[tuple[int, float]]:
    """Line and value of each time to wait that is written as a number."""
    asserted = {id(inner) for each in ast.walk(tree) if isinstance(each, ast.Assert) for inner in ast.walk(each.test)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from ((node.lineno, _literal(each.value)) for each in node.keywords if each.arg == "timeout")
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            if len(node.args) == 1 and (name in WAITS or (name in ASSERTED and id(node) in asserted)):
                yield node.lineno, _literal(node.args[0])
            if name == "wait_for" and len(node.args) == 2:
                yield node.lineno, _literal(node.args[1])
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add) and "monotonic()" in ast.unparse(node.left):
            yield node.lineno, _literal(node.right)


def test_every_wait_is_patient_or_runs_out_at_once() -> None:
    found = []
    for path in FILES:
        name = path.relative_to(TESTS).as_posix()
        if not name.startswith(tuple(OTHERWISE)):
            lines = path.read_text().splitlines()
            for line, seconds in _times(ast.parse("\n".join(lines))):
                if RUNS_OUT < seconds < PATIENCE:
                    found.append(f"{name}:{line}: {lines[line - 1].strip()}")
    assert not found, "\n".join(found)
