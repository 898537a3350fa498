"""The command `raykeeper`: starting and stopping a cluster, and its keys from a shell. docs/cli.md has examples.

Exit status 0 is success, 1 a ``KeeperError`` (one line on stderr, never a traceback), 2 wrong usage, 130 Ctrl-C. The
commands only translate: the client says what they mean, ``render.py`` how they print. Commands that run until they are
stopped have files of their own: ``watch.py``, ``lease.py``, ``lock.py``, ``proxy.py``.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click

from .. import __version__
from ..actors.arguments import shown
from ..actors.client.txn_parts import Comparand, Compare, Condition, Op
from ..cli import bench, lease, lock, maintenance, proxy, user_commands, watch
from ..errors import ClusterNotFound, KeeperError, MembersMissing
from ..limits import MEMBERSHIP_TIMEOUT_S, UPGRADE_TIMEOUT_S
from ..spec import PROXY_MODES, ClusterSpec
from .options import (
    BYTES,
    MAX_NUMBER,
    WholeNumber,
    address_option,
    cluster_id,
    common,
    fenced,
    join,
    keys_option,
    lease_id,
    member_id,
    open_client,
    open_cluster,
    options,
    output_option,
    selected,
    silence_ray,
    timeout_of,
    timeout_option,
    warnings_told,
    whole_number,
)
from .ray_head import RayHead
from .render import show
from .stdio import read_stdin, run_with_streams, tell, tell_bug, write_bytes
from .streaming import signals_raised

# --- the cluster -----------------------------------------------------------------------------------------------------


_FOR_THE_CALLER = (click.ClickException, click.exceptions.Exit, click.Abort, EOFError, OSError)
"""Exceptions that click and ``run_with_streams`` know."""


class _Commands(click.Group):
    def main(self, *arguments: Any, **named: Any) -> Any:
        return run_with_streams(lambda: super(_Commands, self).main(*arguments, **named))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with warnings_told():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(130)
        except Exception as error:
            if isinstance(error, KeeperError) or type(error).__module__.startswith("ray."):
                tell(str(error))
            elif isinstance(error, _FOR_THE_CALLER):
                raise
            else:
                tell_bug(error)
            ctx.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="raykeeper")
def cli() -> None:
    """RayKeeper: a replicated key-value store whose members are Ray actors."""


@cli.command()
@click.argument("spec", required=False, type=click.Path())
@click.option("--cluster", help="Name of the cluster, instead of the spec's.")
@click.option("--bootstrap", type=click.Choice(["auto", "never"]), help="Instead of the spec's.")
@click.option("--proxy", type=click.Choice(PROXY_MODES), help="Instead of the spec's; a running cluster changes to it.")
@options(address_option, output_option)
def up(
    spec: str | None,
    cluster: str | None,
    bootstrap: str | None,
    proxy: str | None,
    address: str | None,
    output: str,
) -> None:
    """Launch the cluster of SPEC (./cluster.yaml if there is one) and leave it running.

    Starts a Ray head if no Ray runs on this machine and no address is given; `raykeeper down` stops it again.
    """
    silence_ray()
    from ..cluster import launch

    if spec is None and os.path.exists("cluster.yaml"):
        spec = "cluster.yaml"
    given = {"name": cluster, "bootstrap": bootstrap}
    loaded = ClusterSpec.load(spec, **{field: value for field, value in given.items() if value})
    head, started = RayHead(), False
    with signals_raised():
        try:
            started = address is None and head.start_if_none_runs()
            join(address)
            asked: dict[str, Any] = {"proxy": proxy} if proxy else {}
            status = launch(loaded, **asked).status()
        except MembersMissing:
            if started:
                tell("Ray's head keeps running, so that the missing nodes can join it; `raykeeper down` stops it")
            raise
        except BaseException:
            if started:
                head.stop()
            raise
    show(status, output)


@cli.command()
@common
@click.option("--destroy", is_flag=True, help="Also delete the cluster's data, on all nodes.")
@click.option("--yes", is_flag=True, help="Do not ask before deleting.")
@click.option(
    "--id", "id", type=cluster_id, help="With --destroy: the cluster of this id alone, even if it does not run."
)
@click.option("--data-dir", help="With --destroy: where the data of a cluster that does not run is.")
def down(
    cluster: str,
    address: str | None,
    output: str,
    destroy: bool,
    yes: bool,
    id: int | None,
    data_dir: str | None,
) -> None:
    """Stop the cluster; its data stays. Stops Ray too if `raykeeper up` started it and no other cluster runs on it.

    With --destroy and --id or --data-dir (of the spec; ~/.raykeeper by default), a cluster that does not run, or what
    is left of one, is given up too: an error of `up`, or an alarm, says how. If no Ray runs on this machine, and no
    address is given, one is started for that.
    """
    if (id is not None or data_dir is not None) and not destroy:
        raise click.UsageError("--id and --data-dir are for --destroy")
    if destroy and not yes:
        which = f" of id {id:x}" if id is not None else ""
        click.confirm(f"Delete all data of cluster {cluster}{which}?", abort=True, err=True)
    head = RayHead()
    said = {"cluster": cluster, "stopped": True, "destroyed": destroy, "ray_stopped": False}
    try:
        if id is not None or data_dir is not None:
            _discard(head, cluster, address, id, data_dir)
        elif destroy:
            open_cluster(cluster, address).destroy()
        else:
            open_cluster(cluster, address).shutdown()
    except ClusterNotFound as error:
        if destroy and id is None and data_dir is None:
            raise ClusterNotFound(f"{error}; to delete what is left of one that does not run, add --data-dir") from None
        if destroy or not (head.runs() and head.idle()):
            raise
        said["stopped"] = False
    if head.runs() and head.idle():
        head.stop()
        said["ray_stopped"] = True
    show(said, output)


def _discard(head: RayHead, cluster: str, address: str | None, id: int | None, data_dir: str | None) -> None:
    """Give up a cluster that does not run. If no Ray runs either, one is started for that time."""
    silence_ray()
    from ..cluster import discard

    spec = ClusterSpec.load(None, name=cluster, **({} if data_dir is None else {"data_dir": data_dir}))
    started = False
    with signals_raised():
        try:
            started = address is None and head.start_if_none_runs()
            join(address)
            discard(spec.name, id, data_dir=spec.data_dir)
        finally:
            if started:
                head.stop()


@cli.command()
@options(common, timeout_option)
def status(cluster: str, address: str | None, output: str, timeout: float) -> None:
    """Print the status of the cluster and of each member."""
    show(open_cluster(cluster, address).status(timeout=timeout), output)


# --- members ---------------------------------------------------------------------------------------------------------


@cli.group()
def member() -> None:
    """The members of a cluster, and changes of the membership."""


@member.command("list")
@options(common, timeout_option)
def member_list(cluster: str, address: str | None, output: str, timeout: float) -> None:
    """List all members with their status."""
    show(open_cluster(cluster, address).status(timeout=timeout), output)


@member.command("add")
@click.argument("node", required=False)
@common
@click.option("--learner", is_flag=True, help="Leave it a learner, instead of a voter once it has caught up.")
@timeout_of(MEMBERSHIP_TIMEOUT_S, "Seconds to catch up in.")
def member_add(cluster: str, address: str | None, output: str, node: str | None, learner: bool, timeout: float) -> None:
    """Add a member on NODE: a Ray node's id or address, or a resource. By default on the node with the fewest."""
    added = open_cluster(cluster, address).add_member(node, promote=not learner, timeout=timeout)
    show({"added": added.name, "id": added.id, "role": added.role, "node": added.node}, output)


@member.command("remove")
@click.argument("name", type=member_id)
@options(common, timeout_of(MEMBERSHIP_TIMEOUT_S))
def member_remove(cluster: str, address: str | None, output: str, name: int, timeout: float) -> None:
    """Remove member NAME (m4, or 4) for good, and delete its data."""
    open_cluster(cluster, address).remove_member(name, timeout=timeout)
    show({"removed": f"m{name}"}, output)


@member.command("promote")
@click.argument("name", type=member_id)
@options(common, timeout_of(MEMBERSHIP_TIMEOUT_S))
def member_promote(cluster: str, address: str | None, output: str, name: int, timeout: float) -> None:
    """Make the learner NAME (m4, or 4) a voter, if it has caught up."""
    open_cluster(cluster, address).promote(name, timeout=timeout)
    show({"promoted": f"m{name}"}, output)


@cli.command("move-leader")
@click.argument("name", type=member_id)
@options(common, timeout_option)
def move_leader(cluster: str, address: str | None, output: str, name: int, timeout: float) -> None:
    """Transfer leadership to member NAME (m2, or 2)."""
    open_cluster(cluster, address).move_leader(name, timeout=timeout)
    show({"leader": f"m{name}"}, output)


@cli.command()
@common
@timeout_of(UPGRADE_TIMEOUT_S, "Seconds for all of them.")
def upgrade(cluster: str, address: str | None, output: str, timeout: float) -> None:
    """Restart all members one by one, the leader last, with the code that is installed on their nodes now.

    Prints the version of commands that all of them know afterwards.
    """
    version = open_cluster(cluster, address).upgrade(timeout=timeout)
    show({"upgraded": cluster, "commands_version": version}, output)


# --- keys ------------------------------------------------------------------------------------------------------------

_put = options(
    click.argument("key", type=BYTES),
    click.argument("value", type=BYTES),
    click.option("--lease", type=lease_id, help="Lease to attach the key to; its id as `lease grant` prints it."),
    click.option("--prev", is_flag=True, help="Also print the previous value."),
)
_get = options(
    keys_option,
    click.option(
        "--limit", type=WholeNumber(0, MAX_NUMBER), default=0, help="Print at most this many keys (default: all)."
    ),
    click.option("--rev", type=WholeNumber(1, MAX_NUMBER), help="Read as of this revision."),
    click.option(
        "--sort",
        type=click.Choice(["key", "version", "create_revision", "mod_revision", "value"]),
        help="Sort by this (default: key).",
    ),
    click.option(
        "--order",
        type=click.Choice(["ascend", "descend"]),
        default="ascend",
        show_default=True,
        help="Order of the sort.",
    ),
    click.option("--keys-only", is_flag=True, help="Omit the values."),
    click.option("--count-only", is_flag=True, help="Print only the number of keys."),
)
_write = options(
    click.option(
        "--request-id",
        type=BYTES,
        metavar="TEXT",
        help="Name the request: repeated under this name, it has one effect.",
    ),
    click.option("--guard", is_flag=True, help="Under `raykeeper lock`: refuse to write once the lock is lost."),
)
_delete = options(keys_option, click.option("--prev", is_flag=True, help="Also print what was deleted."))


def _get_arguments(
    key: bytes, end: bytes | None, prefix: bool, from_key: bool, rev: int | None, **rest: Any
) -> dict[str, Any]:
    return {**selected(key, end, prefix, from_key), "revision": rev, **rest}


@cli.command()
@_put
@options(common, timeout_option)
@_write
def put(
    cluster: str,
    address: str | None,
    output: str,
    timeout: float,
    guard: bool,
    key: bytes,
    value: bytes,
    **rest: Any,
) -> None:
    """Set KEY to VALUE; `-` reads the value from stdin."""
    if value == b"-":
        value = read_stdin()
    with open_client(cluster, address, timeout) as kv:
        show(fenced(kv, guard).put(key, value, **rest), output)


@cli.command()
@_get
@options(common, timeout_option)
@click.option("--serializable", is_flag=True, help="Let any member answer at once; may be stale.")
@click.option("--value-only", is_flag=True, help="Print the bytes of the values as they are, and nothing else.")
def get(
    cluster: str,
    address: str | None,
    output: str,
    timeout: float,
    serializable: bool,
    value_only: bool,
    **keys: Any,
) -> None:
    """Print KEY, or the keys from KEY up to END, END excluded. For a key that does not exist nothing is printed."""
    with open_client(cluster, address, timeout) as kv:
        found = kv.range(serializable=serializable, **_get_arguments(**keys))
    if value_only:
        write_bytes(b"".join(item.raw for item in found))
    else:
        show(found, output, keys_only=keys["keys_only"], count_only=keys["count_only"])


@cli.command("del")
@_delete
@options(common, timeout_option)
@_write
def delete(
    cluster: str,
    address: str | None,
    output: str,
    timeout: float,
    guard: bool,
    key: bytes,
    end: bytes | None,
    prefix: bool,
    from_key: bool,
    **rest: Any,
) -> None:
    """Delete KEY, or the keys from KEY up to END, END excluded; prints how many."""
    which = selected(key, end, prefix, from_key)
    with open_client(cluster, address, timeout) as kv:
        show(fenced(kv, guard).delete(**which, **rest), output)


@cli.command()
@options(common, timeout_option)
@click.option("--compare", multiple=True, metavar="COMPARISON", help='For example: version("k") = 0')
@click.option("--success", multiple=True, metavar="OPERATION", help="For example: put k v")
@click.option("--failure", multiple=True, metavar="OPERATION", help="For example: get k")
@_write
def txn(
    cluster: str,
    address: str | None,
    output: str,
    timeout: float,
    compare: tuple[str, ...],
    success: tuple[str, ...],
    failure: tuple[str, ...],
    request_id: bytes | None,
    guard: bool,
) -> None:
    """Run a transaction: if all comparisons hold, the success operations, else the failure operations.

    Without options it is read from stdin, as for etcdctl: comparisons, an empty line, success operations, an empty
    line, failure operations, one per line. Words are quoted as in a shell; lines that start with # are skipped.

    \b
    COMPARISON   version|create|mod|value|lease("KEY") =|!=|<|> OPERAND
    OPERATION    put KEY VALUE | get KEY [END] | del KEY [END], with the options of these commands
    """
    blocks: Sequence[Sequence[str]] = (compare, success, failure)
    if not any(blocks):
        blocks = _blocks(os.fsdecode(read_stdin()))
    conditions = [_comparison(line) for line in blocks[0]]
    branches = [[_operation(line) for line in block] for block in blocks[1:]]
    with open_client(cluster, address, timeout) as kv:
        show(fenced(kv, guard).txn(conditions, branches[0], branches[1], request_id=request_id), output)


def _blocks(text: str) -> list[list[str]]:
    blocks: list[list[str]] = [[]]
    for line in _lines(text):
        if not line.strip(_BLANKS):
            blocks.append([])
        elif not line.startswith("#"):
            blocks[-1].append(line)
    if any(blocks[3:]):
        raise click.UsageError("more than three blocks: comparisons, success and failure operations")
    return [*blocks, [], []][:3]


def _lines(text: str) -> Iterator[str]:
    """The lines of a transaction. As in a shell, a line ends at each newline that is not quoted, and nowhere else."""
    begin, quote, skip = 0, "", False
    for place, letter in enumerate(text):
        if skip:
            skip = False
        elif letter == "\\" and quote != "'" and text[begin] != "#":
            skip = True
        elif quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"" and text[begin] != "#":
            quote = letter
        elif letter == "\n":
            yield text[begin:place]
            begin = place + 1
    if begin < len(text):
        yield text[begin:]


_BLANKS = " \t\r\n"
_WORD = r"""(?:[^"'\\)]|\\.|"(?:[^"\\]|\\.)*"|'[^']*')*"""
"""Up to the next closing parenthesis that is not quoted."""
_COMPARISON = re.compile(
    rf"[ \t\r\n]*(version|create|mod|value|lease)\(({_WORD})\)[ \t\r\n]*(==?|!=|<|>)(.*)", re.DOTALL
)
_TARGETS = {
    "version": Compare.version,
    "create": Compare.create_revision,
    "mod": Compare.mod_revision,
    "value": Compare.value,
    "lease": Compare.lease,
}


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise click.UsageError(f"{shown(text)}: {str(error).lower()}") from None


def _comparison(line: str) -> Condition:
    match = _COMPARISON.fullmatch(line)
    keys, operands = (_words(match[2]), _words(match[4])) if match else ([], [])
    if match is None or len(keys) != 1 or len(operands) != 1:
        raise click.UsageError(f'{shown(line)} is not a comparison such as: mod("key") > 5')
    kind, relation = match[1], match[3]
    operand: Any = os.fsencode(operands[0])
    if kind != "value":
        operand = whole_number(operands[0], 16 if kind == "lease" else 10)
        if operand is None:
            raise click.UsageError(f"{shown(line)}: {kind} is compared with a whole number of up to 63 bits")
    left = _TARGETS[kind](os.fsencode(keys[0]))
    return _RELATIONS[relation](left, operand)


_RELATIONS: dict[str, Callable[[Comparand, Any], Condition]] = {
    "=": lambda left, right: left == right,
    "==": lambda left, right: left == right,
    "!=": lambda left, right: left != right,
    "<": lambda left, right: left < right,
    ">": lambda left, right: left > right,
}


def _operation(line: str) -> Op:
    words = _words(line)
    if not words or words[0] not in _OPERATIONS:
        raise click.UsageError(f"{shown(line)} is not an operation: put, get or del")
    command = _OPERATIONS[words[0]]
    with command.make_context(words[0], words[1:]) as context:
        operation: Op = command.invoke(context)
        return operation


@click.command("put", add_help_option=False)
@_put
def _put_operation(**arguments: Any) -> Op:
    return Op.put(**arguments)


@click.command("get", add_help_option=False)
@_get
def _get_operation(**arguments: Any) -> Op:
    return Op.range(**_get_arguments(**arguments))


@click.command("del", add_help_option=False)
@_delete
def _delete_operation(key: bytes, end: bytes | None, prefix: bool, from_key: bool, prev: bool) -> Op:
    return Op.delete(**selected(key, end, prefix, from_key), prev=prev)


_OPERATIONS = {"put": _put_operation, "get": _get_operation, "del": _delete_operation}


for _group in (user_commands.auth, user_commands.user, user_commands.role):
    cli.add_command(_group)
for _command in (watch.watch, lease.lease, lock.lock, lock.elect, proxy.proxy):
    cli.add_command(_command)
for _command in (maintenance.backup, maintenance.restore, maintenance.check, maintenance.compact, bench.bench):
    cli.add_command(_command)


def main() -> None:
    """Entry point of the command `raykeeper`."""
    try:
        cli()
    finally:
        # Only detaching from Ray remains. A signal ends that at once, without a traceback.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    main()
