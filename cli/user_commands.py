"""`raykeeper user|role|auth ...`: users, their roles, and what roles may do. The words are etcdctl's.

A password is never an argument, which other users of the machine could see: it is read from a file,
asked for at a terminal, or one line of the standard input.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from .options import BYTES, common, open_client, options, timeout_option
from .render import CommandResult, show, text

_name = click.argument("name")
_role = click.argument("role")
_new_password = click.option(
    "--new-password-file", type=click.Path(exists=True, dir_okay=False), help="Read it from here; else it is asked for."
)
_permission_keys = options(
    click.argument("key", type=BYTES),
    click.argument("end", type=BYTES, required=False),
    click.option("--prefix", is_flag=True, help="All keys that start with KEY."),
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


def _done(output: str, line: str, **data: Any) -> None:
    show(CommandResult(data, [line]), output)


def _shown(name: str) -> str:
    return text(name.encode())


def _keys(key: bytes, end: bytes | None, prefix: bool) -> dict[str, Any]:
    if prefix and end is not None:
        raise click.UsageError("END and --prefix exclude each other")
    return {"prefix": key} if prefix else {"key": key, "end": end}


# --- auth ------------------------------------------------------------------------------------------------------------


@click.group()
def auth() -> None:
    """Whether calls need a user."""


@auth.command()
@options(common, timeout_option)
def enable(cluster: str, address: str | None, output: str, timeout: float) -> None:
    """From now on every call needs a user. There must be a user root with the role root."""
    with open_client(cluster, address, timeout) as kv:
        kv.users.enable()
    _done(output, "authentication is enabled", enabled=True)


@auth.command()
@options(common, timeout_option)
def disable(cluster: str, address: str | None, output: str, timeout: float) -> None:
    """From now on no call needs a user."""
    with open_client(cluster, address, timeout) as kv:
        kv.users.disable()
    _done(output, "authentication is disabled", enabled=False)


@auth.command("status")
@options(common, timeout_option)
def auth_status(cluster: str, address: str | None, output: str, timeout: float) -> None:
    """Whether calls need a user."""
    with open_client(cluster, address, timeout) as kv:
        enabled, revision = kv.users.enabled(), kv.users.auth_revision()
    state = "enabled" if enabled else "disabled"
    _done(output, f"authentication is {state}, revision {revision}", enabled=enabled, auth_revision=revision)


# --- users -----------------------------------------------------------------------------------------------------------


@click.group()
def user() -> None:
    """Users: each has roles."""


@user.command()
@_name
@_new_password
@click.option("--no-password", is_flag=True, help="The user cannot log in with a password.")
@options(common, timeout_option)
def add(
    cluster: str,
    address: str | None,
    output: str,
    timeout: float,
    name: str,
    new_password_file: str | None,
    no_password: bool,
) -> None:
    """Add a user without roles."""
    password = None if no_password else _password(new_password_file)
    with open_client(cluster, address, timeout) as kv:
        kv.users.add(name, password)
    _done(output, f"user {_shown(name)} added", user=name)


@user.command()
@_name
@options(common, timeout_option)
def delete(cluster: str, address: str | None, output: str, timeout: float, name: str) -> None:
    """Delete a user."""
    with open_client(cluster, address, timeout) as kv:
        kv.users.delete(name)
    _done(output, f"user {_shown(name)} deleted", user=name)


@user.command()
@_name
@_new_password
@options(common, timeout_option)
def passwd(
    cluster: str, address: str | None, output: str, timeout: float, name: str, new_password_file: str | None
) -> None:
    """Change a user's password."""
    password = _password(new_password_file)
    with open_client(cluster, address, timeout) as kv:
        kv.users.set_password(name, password)
    _done(output, f"password of user {_shown(name)} changed", user=name)


@user.command("grant-role")
@_name
@_role
@options(common, timeout_option)
def grant_role(cluster: str, address: str | None, output: str, timeout: float, name: str, role: str) -> None:
    """Give a user a role."""
    with open_client(cluster, address, timeout) as kv:
        kv.users.grant_role(name, role)
    _done(output, f"role {_shown(role)} is granted to user {_shown(name)}", user=name, role=role)


@user.command("revoke-role")
@_name
@_role
@options(common, timeout_option)
def revoke_role(cluster: str, address: str | None, output: str, timeout: float, name: str, role: str) -> None:
    """Take a role from a user."""
    with open_client(cluster, address, timeout) as kv:
        kv.users.revoke_role(name, role)
    _done(output, f"role {_shown(role)} is revoked from user {_shown(name)}", user=name, role=role)


@user.command("get")
@_name
@options(common, timeout_option)
def get_user(cluster: str, address: str | None, output: str, timeout: float, name: str) -> None:
    """The roles of a user."""
    with open_client(cluster, address, timeout) as kv:
        roles = kv.users.roles_of(name)
    show(CommandResult({"user": name, "roles": [*roles]}, [_shown(role) for role in roles]), output)


@user.command("list")
@options(common, timeout_option)
def list_users(cluster: str, address: str | None, output: str, timeout: float) -> None:
    """All users."""
    with open_client(cluster, address, timeout) as kv:
        users = kv.users.list()
    show(CommandResult({"users": users}, [_shown(each) for each in users]), output)


# --- roles -----------------------------------------------------------------------------------------------------------


@click.group()
def role() -> None:
    """Roles: each has permissions on keys."""


@role.command("add")
@_name
@options(common, timeout_option)
def add_role(cluster: str, address: str | None, output: str, timeout: float, name: str) -> None:
    """Add a role without permissions."""
    with open_client(cluster, address, timeout) as kv:
        kv.users.add_role(name)
    _done(output, f"role {_shown(name)} added", role=name)


@role.command("delete")
@_name
@options(common, timeout_option)
def delete_role(cluster: str, address: str | None, output: str, timeout: float, name: str) -> None:
    """Delete a role; users lose it."""
    with open_client(cluster, address, timeout) as kv:
        kv.users.delete_role(name)
    _done(output, f"role {_shown(name)} deleted", role=name)


@role.command("grant-permission")
@_role
@click.argument("access", type=click.Choice(["read", "write", "readwrite"]))
@_permission_keys
@options(common, timeout_option)
def grant_permission(
    cluster: str,
    address: str | None,
    output: str,
    timeout: float,
    role: str,
    access: str,
    key: bytes,
    end: bytes | None,
    prefix: bool,
) -> None:
    """Give a role the right to KEY, to those from KEY up to END, or to all that start with KEY."""
    with open_client(cluster, address, timeout) as kv:
        kv.users.grant_permission(role, access, **_keys(key, end, prefix))
    _done(output, f"role {_shown(role)} may {access} {text(key)}", role=role, access=access)


@role.command("revoke-permission")
@_role
@_permission_keys
@options(common, timeout_option)
def revoke_permission(
    cluster: str,
    address: str | None,
    output: str,
    timeout: float,
    role: str,
    key: bytes,
    end: bytes | None,
    prefix: bool,
) -> None:
    """Take the right that was given for exactly these keys."""
    with open_client(cluster, address, timeout) as kv:
        kv.users.revoke_permission(role, **_keys(key, end, prefix))
    _done(output, f"permission on {text(key)} is revoked from role {_shown(role)}", role=role)


@role.command("get")
@_name
@options(common, timeout_option)
def get_role(cluster: str, address: str | None, output: str, timeout: float, name: str) -> None:
    """The permissions of a role: access, key, end (none for one key, an empty one for all from KEY on)."""
    with open_client(cluster, address, timeout) as kv:
        found = kv.users.permissions(name)
    lines = [
        f"{each.access} {text(each.key)}" + ("" if each.end is None else f" {text(each.end)}" if each.end else " (all)")
        for each in found
    ]
    data = [{"access": each.access, "key": each.key, "end": each.end} for each in found]
    show(CommandResult({"role": name, "permissions": data}, lines), output)


@role.command("list")
@options(common, timeout_option)
def list_roles(cluster: str, address: str | None, output: str, timeout: float) -> None:
    """All roles."""
    with open_client(cluster, address, timeout) as kv:
        roles = kv.users.roles()
    show(CommandResult({"roles": [*roles]}, [_shown(each) for each in roles]), output)
