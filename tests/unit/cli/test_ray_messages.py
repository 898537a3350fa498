"""Ray's messages stand after the command's lines, one line each, and none is lost that fits."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from raykeeper.cli import main, ray_messages
from raykeeper.cli.ray_messages import keep_ray_messages
from raykeeper.limits import MAX_RAY_MESSAGES, RAY_MESSAGE_LETTERS


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("ray")
    handlers, propagate, level = logger.handlers[:], logger.propagate, logger.level
    keep_ray_messages()
    logger.setLevel(logging.WARNING)
    yield logger
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)


def said_by(monkeypatch: pytest.MonkeyPatch, *messages: str, status: int = 0) -> list[str]:
    """The lines of a command during which Ray logs these."""

    @click.command("speak")
    def speak() -> None:
        click.echo("first", err=True)
        for message in messages:
            logging.getLogger("ray.worker").warning(message)
        click.echo("last", err=True)
        if status:
            raise click.exceptions.Exit(status)

    monkeypatch.setitem(main.cli.commands, "speak", speak)
    result = CliRunner().invoke(main.cli, ["speak"])
    assert result.exit_code == status, result.output
    return result.stderr.splitlines()


def test_they_come_last_in_one_line_each(logger: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    for status in (0, 3):
        keep_ray_messages()
        logger.handlers[:] = [ray_messages.RayMessages()]
        assert said_by(monkeypatch, "a node\nhas died\n\n", "other", "other", status=status) == [
            "first",
            "last",
            "raykeeper: warning of Ray: a node has died",
            "raykeeper: warning of Ray: other",
        ]


def test_they_are_bounded(logger: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = said_by(monkeypatch, "x" * 10_000, *(f"message {number}" for number in range(MAX_RAY_MESSAGES + 4)))
    assert len(lines) == 2 + MAX_RAY_MESSAGES + 1
    assert len(lines[2]) < RAY_MESSAGE_LETTERS + 100
    assert lines[-1] == "raykeeper: and 5 more messages of Ray"


def test_a_command_that_runs_for_long_tells_them_at_once(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_messages, "RAY_MESSAGES_WAIT_S", 0.0)
    assert said_by(monkeypatch, "now") == ["first", "raykeeper: warning of Ray: now", "last"]
