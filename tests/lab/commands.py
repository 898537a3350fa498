"""Commands of the command line in this process, on a client that notes what it is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from click.testing import CliRunner, Result

from raykeeper import KeyValue
from raykeeper.cli import main

A = KeyValue(b"a", b"1", 2, 3, 2)
BINARY = KeyValue(b"b\xff", b"\x1b[31m\x00", 4, 4, 1)


class FakeClient:
    """Notes what it is asked and gives back what it was told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.answer: Any = None

    def __enter__(self) -> FakeClient:
        return self

    def __exit__(self, *_: object) -> None: ...

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.asked.append((name, args, kwargs))
            if isinstance(self.answer, BaseException):
                raise self.answer
            return self.answer

        return call


def run(*args: str, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(main.cli, args, input=stdin)


def good(*args: str, stdin: bytes | None = None) -> str:
    result = run(*args, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result.stdout
