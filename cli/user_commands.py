"""`raykeeper user|role|auth ...`: users, their roles, and what roles may do. The words are etcdctl's.

A password is never an argument, which other users of the machine could see: it is read from a file,
asked for at a terminal, or one line of the standard input.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import InvalidArgument
from ..schema.auth_operations import ROOT
from .options import BYTES, common, open_client, options, selected, timeout_option
from .render import CommandResult, show, text

if TYPE_CHECKING:
    from ..actors.client.user_steps import GrantedKeys
    from ..actors.client.users import Users

_name = click.argument("name")
_role = click.argument("role")
_new_password = click.option(
    "--new-password-file", type=click.Path(exists=True, dir_okay=False), help="Read it from here; else it is asked for."
)
_permission_keys = options(
    click.argument("key", type=BYTES),
    click.argument("end", type=BYTES, required=False),
    click.option("--prefix", is_flag=True, help="All keys that start with KEY."),
    click.option("--from-key", is_flag=True, help="All keys from KEY on."),
)


def _password(file: str | None) -> str:
    if file is not None:
        return Path(file).read_text(encoding="utf-8").rstrip("\r\n")
    if sys.stdin.isatty():
        password: str = click.prompt("New password", hide_input=True, confirmation_prompt=True, err=True)
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    if not password:
        raise click.UsageError("no password: type one, write one line to the standard input, or --new-password-file")
    return password


def _shown(name: str) -> str:
    return text(name.encode())


def _permissions(users: Users, role: str) -> tuple[GrantedKeys, ...]:
    """What a role may do. The role root may do everything: it has no list, nor need it be added."""
    try:
        found = users.permissions(role)
    except InvalidArgument:
        if role != ROOT:
            raise
    if role != ROOT:
        return found
    from ..actors.client.user_steps import GrantedKeys

    return (GrantedKeys("readwrite", b"", b""),)


def _permission_line(each: GrantedKeys) -> str:
    if each.end == b"":
        return f"{each.access} from {text(each.key)} on" if each.key else f"{each.access} all keys"
    return f"{each.access} {text(each.key)}" + ("" if each.end is None else f" {text(each.end)}")


def _permission_fields(each: GrantedKeys) -> dict[str, Any]:
    return {"access": each.access, "key": each.key, "end": each.end}


def _on_users(function: Callable[..., CommandResult]) -> Any:
    """The body of a command, from what it does with a cluster's users and roles and returns to be shown."""

    @options(common, timeout_option)
    @functools.wraps(function)
    def run(cluster: str, address: str | None, output: str, timeout: float, **given: Any) -> None:
        with open_client(cluster, address, timeout) as kv:
            said = function(kv.users, **given)
        show(said, output)

    return run


def _done(line: str, **data: Any) -> CommandResult:
    return CommandResult(data, [line])


# --- auth ------------------------------------------------------------------------------------------------------------


@click.group()
def auth() -> None:
    """Whether calls need a user."""


@auth.command()
@_on_users
def enable(users: Users) -> CommandResult:
    """From now on every call needs a user. There must be a user root with the role root."""
    users.enable()
    return _done("authentication is enabled", enabled=True)


@auth.command()
@_on_users
def disable(users: Users) -> CommandResult:
    """From now on no call needs a user."""
    users.disable()
    return _done("authentication is disabled", enabled=False)


@auth.command("status")
@_on_users
def auth_status(users: Users) -> CommandResult:
    """Whether calls need a user."""
    enabled, revision = users.enabled(), users.auth_revision()
    state = "enabled" if enabled else "disabled"
    return _done(f"authentication is {state}, revision {revision}", enabled=enabled, auth_revision=revision)


# --- users -----------------------------------------------------------------------------------------------------------


@click.group()
def user() -> None:
    """Users: each has roles."""


@user.command()
@_name
@_new_password
@click.option("--no-password", is_flag=True, help="The user cannot log in with a password.")
@_on_users
def add(users: Users, name: str, new_password_file: str | None, no_password: bool) -> CommandResult:
    """Add a user without roles."""
    users.add(name, None if no_password else _password(new_password_file))
    return _done(f"user {_shown(name)} added", user=name)


@user.command()
@_name
@_on_users
def delete(users: Users, name: str) -> CommandResult:
    """Delete a user."""
    users.delete(name)
    return _done(f"user {_shown(name)} deleted", user=name)


@user.command()
@_name
@_new_password
@_on_users
def passwd(users: Users, name: str, new_password_file: str | None) -> CommandResult:
    """Change a user's password."""
    users.set_password(name, _password(new_password_file))
    return _done(f"password of user {_shown(name)} changed", user=name)


@user.command("grant-role")
@_name
@_role
@_on_users
def grant_role(users: Users, name: str, role: str) -> CommandResult:
    """Give a user a role."""
    users.grant_role(name, role)
    return _done(f"role {_shown(role)} is granted to user {_shown(name)}", user=name, role=role)


@user.command("revoke-role")
@_name
@_role
@_on_users
def revoke_role(users: Users, name: str, role: str) -> CommandResult:
    """Take a role from a user."""
    users.revoke_role(name, role)
    return _done(f"role {_shown(role)} is revoked from user {_shown(name)}", user=name, role=role)


@user.command("get")
@_name
@click.option("--detail", is_flag=True, help="Also print what each role may do.")
@_on_users
def get_user(users: Users, name: str, detail: bool) -> CommandResult:
    """The roles of a user."""
    roles = users.roles_of(name)
    fields: dict[str, Any] = {"user": name, "roles": [*roles]}
    lines: list[str] = []
    if detail:
        fields["permissions"] = []
    for role in roles:
        lines.append(_shown(role))
        if detail:
            found = _permissions(users, role)
            lines += [f"  {_permission_line(each)}" for each in found]
            fields["permissions"] += [{"role": role, **_permission_fields(each)} for each in found]
    return CommandResult(fields, lines)


@user.command("list")
@_on_users
def list_users(users: Users) -> CommandResult:
    """All users."""
    found = users.list()
    return CommandResult({"users": found}, [_shown(each) for each in found])


# --- roles -----------------------------------------------------------------------------------------------------------


@click.group()
def role() -> None:
    """Roles: each has permissions on keys."""


@role.command("add")
@_name
@_on_users
def add_role(users: Users, name: str) -> CommandResult:
    """Add a role without permissions."""
    users.add_role(name)
    return _done(f"role {_shown(name)} added", role=name)


@role.command("delete")
@_name
@_on_users
def delete_role(users: Users, name: str) -> CommandResult:
    """Delete a role; users lose it."""
    users.delete_role(name)
    return _done(f"role {_shown(name)} deleted", role=name)


@role.command("grant-permission")
@_role
@click.argument("access", type=click.Choice(["read", "write", "readwrite"]))
@_permission_keys
@_on_users
def grant_permission(
    users: Users, role: str, access: str, key: bytes, end: bytes | None, prefix: bool, from_key: bool
) -> CommandResult:
    """Give a role the right to KEY, to those from KEY up to END or to the last, or to all that start with KEY."""
    users.grant_permission(role, access, **selected(key, end, prefix, from_key))
    return _done(f"role {_shown(role)} may {access} {text(key)}", role=role, access=access)


@role.command("revoke-permission")
@_role
@_permission_keys
@_on_users
def revoke_permission(
    users: Users, role: str, key: bytes, end: bytes | None, prefix: bool, from_key: bool
) -> CommandResult:
    """Take the right that was given for exactly these keys."""
    users.revoke_permission(role, **selected(key, end, prefix, from_key))
    return _done(f"permission on {text(key)} is revoked from role {_shown(role)}", role=role)


@role.command("get")
@_name
@_on_users
def get_role(users: Users, name: str) -> CommandResult:
    """The permissions of a role: access, key, end (none for one key, an empty one for all from KEY on)."""
    found = _permissions(users, name)
    data = [_permission_fields(each) for each in found]
    return CommandResult({"role": name, "permissions": data}, [_permission_line(each) for each in found])


@role.command("list")
@_on_users
def list_roles(users: Users) -> CommandResult:
    """All roles."""
    found = users.roles()
    return CommandResult({"roles": [*found]}, [_shown(each) for each in found])
