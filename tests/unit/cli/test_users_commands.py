"""The commands `auth`, `user` and `role`, and --user of any command, against one real member."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lab.onemember import OneMember, one_member
from raykeeper.actors.client import hub_pool
from raykeeper.cli import main, options
from raykeeper.cli.json_forms import FORMS, misfit


class Shell:
    """Runs commands, as a user whose password lies in a file."""

    def __init__(self, member: OneMember, folder: Path) -> None:
        self.member = member
        self.folder = folder

    def secret(self, text: str) -> str:
        file = self.folder / text
        file.write_text(f"{text}\n")
        return str(file)

    def run(self, line: str, user: str = "", password: str = "", stdin: str | None = None) -> Result:
        environment = {"RAYKEEPER_CLUSTER": self.member.name}
        if user:
            environment |= {"RAYKEEPER_USER": user}
        if password:
            environment |= {"RAYKEEPER_PASSWORD_FILE": self.secret(password)}
        return CliRunner().invoke(main.cli, line.split(), env=environment, input=stdin)

    def said(self, line: str, user: str = "", password: str = "", stdin: str | None = None) -> str:
        result = self.run(line, user, password, stdin)
        assert result.exit_code == 0, (line, result.output)
        return result.stdout.strip()


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Shell]:
    monkeypatch.setattr(options, "join", lambda address: None)
    with one_member() as member:
        yield Shell(member, tmp_path)
        hub_pool._close_all()


def test_from_nothing_to_a_user_who_may_write_under_a_prefix(shell: Shell) -> None:
    assert shell.said("auth status") == "authentication is disabled, revision 1"
    assert shell.run("auth enable").exit_code == 1
    assert shell.said(f"user add root --new-password-file {shell.secret('r')}") == "user root added"
    shell.said("user grant-role root root")
    assert shell.said("user add ann", stdin="a\na\n").endswith("user ann added")
    shell.said("user add robot --no-password")
    shell.said("role add team")
    shell.said("role grant-permission team readwrite team/ --prefix")
    shell.said("role grant-permission team read one")
    shell.said("user grant-role ann team")
    assert shell.said("auth enable") == "authentication is enabled"

    assert shell.run("put team/a 1").exit_code == 1
    assert shell.run("put team/a 1", "ann", "wrong").exit_code == 1
    shell.said("put team/a 1", "ann", "a")
    assert shell.said("get team/a", "ann", stdin="a\n").endswith("1"), "the password is asked for"
    assert shell.run("put other 1", "ann", "a").exit_code == 1
    assert shell.run("user list", "ann", "a").exit_code == 1
    assert shell.said("user list", "root", "r").split() == ["ann", "robot", "root"]
    assert shell.said("user get ann", "ann", "a") == "team"
    assert shell.said("role list", "root", "r") == "team"
    assert shell.said("role get team", "ann", "a").splitlines() == ["read one", "readwrite team/ team0"]
    assert json.loads(shell.said("role get team -o json", "root", "r"))["role"] == "team"

    detail = shell.said("user get ann --detail", "ann", "a").splitlines()
    assert detail == ["team", "  read one", "  readwrite team/ team0"]
    assert shell.said("user get root --detail", "root", "r").splitlines() == ["root", "  readwrite all keys"]
    assert shell.said("role get root", "root", "r") == "readwrite all keys"
    everything = json.loads(shell.said("role get root -o json", "root", "r"))["permissions"]
    of_user = json.loads(shell.said("user get root --detail -o json", "root", "r"))["permissions"]
    assert of_user == [{"role": "root", **each} for each in everything]
    assert shell.run("role get root", "ann", "a").exit_code == 1
    said = json.loads(shell.said("user get ann --detail -o json", "root", "r"))
    assert misfit(FORMS["user get"], said) == ""
    assert [(each["role"], each["key"]) for each in said["permissions"]] == [("team", "one"), ("team", "team/")]

    shell.said("role revoke-permission team one", "root", "r")
    shell.said("role grant-permission team read open --from-key", "root", "r")
    assert "read from open on" in shell.said("role get team", "root", "r")
    shell.said("get zebra", "ann", "a")
    shell.said("role revoke-permission team open --from-key", "root", "r")
    assert shell.run("get zebra", "ann", "a").exit_code == 1
    shell.said(f"user passwd ann --new-password-file {shell.secret('new')}", "root", "r")
    assert shell.run("get team/a", "ann", "a").exit_code == 1
    shell.said("get team/a", "ann", "new")
    shell.said("user revoke-role ann team", "root", "r")
    assert shell.run("get team/a", "ann", "new").exit_code == 1
    shell.said("role delete team", "root", "r")
    shell.said("user delete ann", "root", "r")
    assert shell.said("auth disable", "root", "r") == "authentication is disabled"
    shell.said("get team/a")


def test_wrong_usage(shell: Shell) -> None:
    assert shell.run("role grant-permission team read a b --prefix").exit_code == 2
    assert shell.run("role grant-permission team read a --prefix --from-key").exit_code == 2
    assert shell.run("role grant-permission team everything a").exit_code == 2
    assert shell.run("user add a --new-password-file /nothing/there").exit_code == 2
    assert shell.run("user get nobody").exit_code == 1
