"""The command `raykeeper`: the cluster up and down, and its keys from a shell. docs/cli.md has examples.

Exit status 0 is success, 1 a ``KeeperError`` (one line on stderr, never a traceback), 2 bad usage, 130 Ctrl-C. The
commands only translate: what they mean is said in the client, how they print in ``printing``. Those that go on until
they are told to stop have files of their own: ``cli_watch``, ``cli_lease``, ``cli_hold``.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click

from . import __version__, cli_bench, cli_care, cli_hold, cli_lease, cli_watch
from .actors.client.arguments import shown
from .actors.client.operations import Comparand, Compare, Condition, Op
from .cli_common import (
    BYTES,
    MAX_NUMBER,
    WholeNumber,
    address_option,
    cluster_id,
    common,
    fenced,
    hush,
    join,
    keys_option,
    lease_id,
    member_id,
    open_client,
    open_cluster,
    options,
    output_option,
    selected,
    timeout_of,
    timeout_option,
    warnings_told,
    whole_number,
)
from .cli_lasting import signals_raised
from .cli_streams import speaking, stdin, tell, write
from .errors import ClusterNotFound, KeeperError, MembersMissing
from .limits import MEMBERSHIP_TIMEOUT, UPGRADE_TIMEOUT
from .printing import show
from .ray_head import RayHead
from .spec import ClusterSpec

# --- the cluster -----------------------------------------------------------------------------------------------------


class _Commands(click.Group):
    def main(self, *arguments: Any, **named: Any) -> Any:
        return speaking(lambda: super(_Commands, self).main(*arguments, **named))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(130)
        except Exception as error:
            if not isinstance(error, KeeperError) and not type(error).__module__.startswith("ray."):
                raise
            tell(str(error))
            ctx.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="raykeeper")
def cli() -> None:
    """RayKeeper: a replicated key-value store whose members are Ray actors."""


@cli.command()
@click.argument("spec", required=False, type=click.Path())
@click.option("--cluster", help="Name of the cluster, instead of the spec's.")
@click.option("--bootstrap", type=click.Choice(["auto", "never"]), help="Instead of the spec's.")
@options(address_option, output_option)
def up(spec: str | None, cluster: str | None, bootstrap: str | None, address: str | None, output: str) -> None:
    """Launch the cluster of SPEC (./cluster.yaml if there is one) and leave it running.

    Starts a Ray head if no Ray runs on this machine and no address is given; `raykeeper down` stops it again.
    """
    hush()
    from .cluster import launch

    if spec is None and os.path.exists("cluster.yaml"):
        spec = "cluster.yaml"
    given = {"name": cluster, "bootstrap": bootstrap}
    loaded = ClusterSpec.load(spec, **{field: value for field, value in given.items() if value})
    head, started = RayHead(), False
    with signals_raised():
        try:
            started = address is None and head.start_if_none_runs()
            with warnings_told():
                join(address)
                status = launch(loaded).status()
        except MembersMissing:
            if started:
                tell("Ray's head runs on, so that the nodes that are missing can join it; `raykeeper down` stops it")
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
@click.option("--data-dir", help="With --destroy: where the data lies, of a cluster that does not run.")
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

    With --destroy and --id or --data-dir (of the spec; ~/.raykeeper by default) also a cluster that does not run is
    given up, or what is left of one: an error of `up`, or an alarm, says how. If no Ray runs on this machine, and no
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
    """Give up a cluster that does not run. Where no Ray runs any more, either, one is started for that long."""
    hush()
    from .cluster import discard

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
    """How the cluster and each of its members are."""
    show(open_cluster(cluster, address).status(timeout=timeout), output)


# --- members ---------------------------------------------------------------------------------------------------------


@cli.group()
def member() -> None:
    """The members of a cluster: who takes part, and changes of that."""


@member.command("list")
@options(common, timeout_option)
def member_list(cluster: str, address: str | None, output: str, timeout: float) -> None:
    """All members and how they are."""
    show(open_cluster(cluster, address).status(timeout=timeout), output)


@member.command("add")
@click.argument("node", required=False)
@common
@click.option("--learner", is_flag=True, help="Leave it a learner, instead of a voter once it has caught up.")
@timeout_of(MEMBERSHIP_TIMEOUT, "Seconds to catch up in.")
def member_add(cluster: str, address: str | None, output: str, node: str | None, learner: bool, timeout: float) -> None:
    """Add a member on NODE: a Ray node's id or address, or a resource. By default on the node with the fewest."""
    added = open_cluster(cluster, address).add_member(node, promote=not learner, timeout=timeout)
    show({"added": added.name, "id": added.id, "role": added.role, "node": added.node}, output)


@member.command("remove")
@click.argument("name", type=member_id)
@options(common, timeout_of(MEMBERSHIP_TIMEOUT))
def member_remove(cluster: str, address: str | None, output: str, name: int, timeout: float) -> None:
    """Take member NAME (m4, or 4) out for good, and delete its data."""
    open_cluster(cluster, address).remove_member(name, timeout=timeout)
    show({"removed": f"m{name}"}, output)


@member.command("promote")
@click.argument("name", type=member_id)
@options(common, timeout_of(MEMBERSHIP_TIMEOUT))
def member_promote(cluster: str, address: str | None, output: str, name: int, timeout: float) -> None:
    """Make the learner NAME (m4, or 4) a voter, if it has caught up."""
    open_cluster(cluster, address).promote(name, timeout=timeout)
    show({"promoted": f"m{name}"}, output)


@cli.command("move-leader")
@click.argument("name", type=member_id)
@options(common, timeout_option)
def move_leader(cluster: str, address: str | None, output: str, name: int, timeout: float) -> None:
    """Hand leadership to member NAME (m2, or 2)."""
    open_cluster(cluster, address).move_leader(name, timeout=timeout)
    show({"leader": f"m{name}"}, output)


@cli.command()
@common
@timeout_of(UPGRADE_TIMEOUT, "Seconds for all of them.")
def upgrade(cluster: str, address: str | None, output: str, timeout: float) -> None:
    """Restart all members one by one, the leader last, with the code that is installed on their nodes now.

    Prints the version of commands that all of them know then.
    """
    version = open_cluster(cluster, address).upgrade(timeout=timeout)
    show({"upgraded": cluster, "commands_version": version}, output)


# --- keys ------------------------------------------------------------------------------------------------------------

_put = options(
    click.argument("key", type=BYTES),
    click.argument("value", type=BYTES),
    click.option("--lease", type=lease_id, help="Lease id to bind the key to, as `lease grant` prints it."),
    click.option("--prev", is_flag=True, help="Also print what was there before."),
)
_get = options(
    keys_option,
    click.option("--limit", type=WholeNumber(0, MAX_NUMBER), default=0, help="At most so many keys."),
    click.option("--rev", type=WholeNumber(1, MAX_NUMBER), help="Read the past, as of this revision."),
    click.option("--sort", type=click.Choice(["key", "version", "create_revision", "mod_revision", "value"])),
    click.option("--order", type=click.Choice(["ascend", "descend"]), default="ascend"),
    click.option("--keys-only", is_flag=True, help="Leave the values out."),
    click.option("--count-only", is_flag=True, help="Only how many keys there are."),
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
        value = stdin()
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
    """Print KEY, or the keys from KEY up to but without END. A key that does not exist prints nothing."""
    with open_client(cluster, address, timeout) as kv:
        found = kv.range(serializable=serializable, **_get_arguments(**keys))
    if value_only:
        write(b"".join(item.raw for item in found))
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
    """Delete KEY, or the keys from KEY up to but without END; prints how many."""
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
    line, failure operations, one a line. Words are quoted as in a shell; lines that begin with # are skipped.

    \b
    COMPARISON   version|create|mod|value|lease("KEY") =|!=|<|> OPERAND
    OPERATION    put KEY VALUE | get KEY [END] | del KEY [END], with the options of these commands
    """
    blocks: Sequence[Sequence[str]] = (compare, success, failure)
    if not any(blocks):
        blocks = _blocks(os.fsdecode(stdin()))
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
    """The lines of a transaction. Like a shell, it ends one at each newline that is not quoted, and nowhere else."""
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
        raise click.UsageError(f'{shown(line)} is no comparison such as: mod("key") > 5')
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
        raise click.UsageError(f"{shown(line)} is no operation: put, get or del")
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


for _command in (cli_watch.watch, cli_lease.lease, cli_hold.lock, cli_hold.elect):
    cli.add_command(_command)
for _command in (cli_care.backup, cli_care.restore, cli_care.check, cli_care.compact, cli_bench.bench):
    cli.add_command(_command)


def main() -> None:
    """Entry point of the command `raykeeper`."""
    try:
        cli()
    finally:
        # What is left is to let go of Ray. Whoever is impatient ends that at once, and sees no traceback of it.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    main()
