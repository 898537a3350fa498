"""`raykeeper put`, `get` and `del`: keys from a shell. ``txn.py`` has the same as operations of a transaction."""

from __future__ import annotations

from typing import Any

import click

from ..actors.client.results import KEEP
from .options import (
    BYTES,
    MAX_NUMBER,
    WholeNumber,
    check_endpoint,
    common,
    endpoint_option,
    fenced,
    keys_option,
    lease_id,
    lock_of_environment,
    open_keys,
    options,
    selected,
    timeout_option,
)
from .render import show
from .stdio import read_stdin, write_bytes

_THEIR_FIELDS = {"create": "create_revision", "modify": "mod_revision"}


class _SortField(click.Choice[str]):
    """Type of an argument: a field to sort by, by our name or etcdctl's, in any case."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The field; called by Click."""
        word = str(value).lower()
        return super().convert(_THEIR_FIELDS.get(word, word), param, ctx)


put_options = options(
    click.argument("key", type=BYTES),
    click.argument("value", type=BYTES, required=False),
    click.option("--lease", type=lease_id, help="Lease to attach the key to; its id as `lease grant` prints it."),
    click.option("--ignore-value", is_flag=True, help="Keep the value that KEY has; no VALUE is given."),
    click.option("--ignore-lease", is_flag=True, help="Keep the lease that KEY has."),
    click.option("--prev", "--prev-kv", "prev", is_flag=True, help="Also print the previous value."),
)
get_options = options(
    keys_option,
    click.option(
        "--limit", type=WholeNumber(0, MAX_NUMBER), default=0, help="Print at most this many keys (default: all)."
    ),
    click.option("--rev", type=WholeNumber(1, MAX_NUMBER), help="Read as of this revision."),
    click.option(
        "--sort",
        "--sort-by",
        "sort",
        type=_SortField(["key", "version", "create_revision", "mod_revision", "value"]),
        help="Sort by this (default: key).",
    ),
    click.option(
        "--order",
        type=click.Choice(["ascend", "descend"], case_sensitive=False),
        default="ascend",
        show_default=True,
        help="Order of the sort.",
    ),
    click.option("--keys-only", is_flag=True, help="Omit the values."),
    click.option("--count-only", is_flag=True, help="Print only the number of keys."),
)
consistency_options = options(
    click.option(
        "--consistency",
        type=click.Choice(["l", "s"]),
        help="Linearizable (l, the default), or serializable (s), as --serializable.",
    ),
    click.option("--serializable", is_flag=True, help="Let any member answer at once; may be stale."),
)
write_options = options(
    click.option(
        "--request-id",
        type=BYTES,
        metavar="TEXT",
        help="Name the request: repeated under this name, it has one effect.",
    ),
    click.option("--guard", is_flag=True, help="Under `raykeeper lock`: refuse to write once the lock is lost."),
)
delete_options = options(
    keys_option, click.option("--prev", "--prev-kv", "prev", is_flag=True, help="Also print what was deleted.")
)


def only_by_ray(request_id: bytes | None, guard: bool) -> str:
    """What of a write etcd's API does not have, if anything. To be called before stdin is read.

    Raises:
        UsageError: an endpoint was given, which cannot do that; or there is no lock for a guard.
    """
    asked = "--request-id" if request_id is not None else "--guard" if guard else ""
    check_endpoint(asked)
    if guard:
        lock_of_environment()
    return asked


def put_arguments(
    key: bytes,
    value: bytes | None,
    lease: int | None,
    ignore_value: bool,
    ignore_lease: bool,
    prev: bool,
) -> dict[str, Any]:
    """The options of a put as arguments of the client's ``put``.

    Raises:
        UsageError: there is both what to keep and what to put in its place, or neither a value nor one to keep.
    """
    if ignore_value and value is not None:
        raise click.UsageError("--ignore-value keeps the value that is there: give no VALUE")
    if ignore_lease and lease is not None:
        raise click.UsageError("--lease and --ignore-lease exclude each other")
    if value is None and not ignore_value:
        raise click.UsageError("a put needs a VALUE, or --ignore-value")
    kept = KEEP if ignore_lease else lease
    return {"key": key, "value": KEEP if ignore_value else value, "lease": kept, "prev": prev}


def get_arguments(
    key: bytes, end: bytes | None, prefix: bool, from_key: bool, rev: int | None, **rest: Any
) -> dict[str, Any]:
    """The options of a get as arguments of the client's ``range``."""
    return {**selected(key, end, prefix, from_key), "revision": rev, **rest}


def is_serializable(consistency: str | None, serializable: bool) -> bool:
    """Whether a read is to be serializable, from what was given for ``consistency_options``.

    Raises:
        UsageError: the two contradict each other.
    """
    if serializable and consistency == "l":
        raise click.UsageError("--consistency l and --serializable exclude each other")
    return serializable or consistency == "s"


@click.command()
@put_options
@options(common, endpoint_option, timeout_option)
@write_options
def put(
    cluster: str,
    address: str | None,
    output: str,
    timeout: float,
    guard: bool,
    request_id: bytes | None,
    value: bytes | None,
    ignore_value: bool,
    **rest: Any,
) -> None:
    """Set KEY to VALUE; without VALUE, or if it is `-`, the value is read from stdin."""
    by_ray = only_by_ray(request_id, guard)
    reads = value == b"-" or (value is None and not ignore_value)
    arguments = put_arguments(value=b"-" if reads else value, ignore_value=ignore_value, **rest)
    key, kept = arguments.pop("key"), arguments.pop("value")
    if reads:
        kept = read_stdin("the value")
    with open_keys(cluster, address, timeout, by_ray) as kv:
        show(fenced(kv, guard).put(key, kept, request_id=request_id, **arguments), output)


@click.command()
@get_options
@options(common, endpoint_option, timeout_option)
@consistency_options
@click.option(
    "--value-only",
    "--print-value-only",
    "value_only",
    is_flag=True,
    help="Print the bytes of the values as they are, and nothing else.",
)
def get(
    cluster: str,
    address: str | None,
    output: str,
    timeout: float,
    consistency: str | None,
    serializable: bool,
    value_only: bool,
    **keys: Any,
) -> None:
    """Print KEY, or the keys from KEY up to END, END excluded. For a key that does not exist nothing is printed."""
    serializable = is_serializable(consistency, serializable)
    arguments = get_arguments(**keys)
    with open_keys(cluster, address, timeout) as kv:
        found = kv.range(serializable=serializable, **arguments)
    if value_only:
        write_bytes(b"".join(item.raw for item in found))
    else:
        show(found, output, keys_only=keys["keys_only"], count_only=keys["count_only"])


@click.command("del")
@delete_options
@options(common, endpoint_option, timeout_option)
@write_options
def delete(
    cluster: str,
    address: str | None,
    output: str,
    timeout: float,
    guard: bool,
    request_id: bytes | None,
    key: bytes,
    end: bytes | None,
    prefix: bool,
    from_key: bool,
    **rest: Any,
) -> None:
    """Delete KEY, or the keys from KEY up to END, END excluded; prints how many."""
    which = selected(key, end, prefix, from_key)
    with open_keys(cluster, address, timeout, only_by_ray(request_id, guard)) as kv:
        show(fenced(kv, guard).delete(**which, request_id=request_id, **rest), output)
