"""How a wrong version of the code is made, and the list of all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

Mutate = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Mutant:
    """A broken rule."""

    name: str
    profile: str
    apply: Mutate
    """While this context is entered, the code is wrong."""
    first_seed: int = 0
    """Where to begin looking for a seed that catches it: what seldom shows need not be looked for each time."""


MUTANTS: dict[str, Mutant] = {}


def mutant(name: str, profile: str, first_seed: int = 0) -> Callable[[Mutate], Mutate]:
    """Register a mutant."""

    def register(apply: Mutate) -> Mutate:
        MUTANTS[name] = Mutant(name, profile, apply, first_seed)
        return apply

    return register


@contextmanager
def patched(owner: Any, name: str, replacement: Any) -> Iterator[None]:
    """Replace an attribute of a class for a while."""
    assert hasattr(owner, name), f"{owner.__name__} has no {name}"
    original = owner.__dict__.get(name)
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        if original is None:
            delattr(owner, name)
        else:
            setattr(owner, name, original)


@contextmanager
def together(*changes: AbstractContextManager[None]) -> Iterator[None]:
    """Several replacements at once."""
    with ExitStack() as stack:
        for change in changes:
            stack.enter_context(change)
        yield
