"""Completion: each script is one that its shell accepts, and asks the command, which answers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from click.testing import CliRunner

from raykeeper.cli import main


def answer(kind: str, words: str, place: str) -> list[str]:
    asked = {"_RAYKEEPER_COMPLETE": f"{kind}_complete", "COMP_WORDS": words, "COMP_CWORD": place}
    program = (sys.executable, "-m", "raykeeper")
    done = subprocess.run(program, env={**os.environ, **asked}, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.splitlines()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_one_of_that_shell(shell: str) -> None:
    result = CliRunner().invoke(main.cli, ["completion", shell])
    assert result.exit_code == 0, result.output
    assert f"_RAYKEEPER_COMPLETE={shell}_complete" in result.stdout
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=result.stdout, text=True, check=True, timeout=60)


def test_commands_options_and_choices_are_completed() -> None:
    assert answer("bash", "raykeeper endp", "1") == ["plain,endpoint"]
    assert "plain,hashkv" in answer("bash", "raykeeper endpoint ", "2")
    assert "plain,--serializable" in answer("bash", "raykeeper get --ser", "2")
    assert answer("bash", "raykeeper get k --order de", "4") == ["plain,descend"]
