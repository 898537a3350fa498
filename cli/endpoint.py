"""`raykeeper endpoint`, `alarm` and `defrag`: what an operator asks of each member by itself, in etcdctl's words.

All members of the cluster are asked, by Ray; with ``--endpoint``, only the member that answers there. In JSON each
command prints one object, whose list has an item for each member.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from ..errors import KeeperError, Unavailable
from ..limits import OPERATOR_TIMEOUT_S, STATUS_TIMEOUT_S
from .options import (
    MAX_NUMBER,
    WholeNumber,
    common,
    endpoint_option,
    given_endpoint,
    member_id,
    open_operations,
    options,
    timeout_of,
    timeout_option,
)
from .render import CommandResult, show

if TYPE_CHECKING:
    from ..actors.cluster.member_upkeep import MemberAnswer
    from .gateway_client import GatewayClient

Row = dict[str, Any]

# --- endpoint --------------------------------------------------------------------------------------------------------


@click.group()
def endpoint() -> None:
    """The members as each of them answers for itself."""


@endpoint.command("status")
@options(common, endpoint_option, timeout_option)
def endpoint_status(cluster: str, address: str | None, output: str, timeout: float) -> None:
    """Print the status of each member: size, role, term, progress in the log, errors."""
    client = given_endpoint(timeout)
    if client is not None:
        with client:
            rows = [_status_at(client)]
    else:
        rows = _statuses(cluster, address, timeout)
    lines = [
        f"{row['endpoint']}, {row['member']:x}, {_megabytes(row['db_size'])}, {_yes(row['leader'])}, "
        f"{_yes(row['learner'])}, {row['term']}, {row['raft_index']}, {row['applied_index']}, "
        f"{'; '.join(row['errors'])}"
        for row in rows
    ]
    show(CommandResult({"endpoints": rows}, lines), output)
    _complain(rows, "errors", "does not serve")


@endpoint.command("health")
@options(common, endpoint_option, timeout_option)
def endpoint_health(cluster: str, address: str | None, output: str, timeout: float) -> None:
    """Check that each member serves a linearizable read. Exit status 1 if one does not."""
    client = given_endpoint(timeout)
    if client is not None:
        with client:
            rows = [_health_at(client)]
    else:
        from ..actors.cluster.member_upkeep import member_health
        from ..actors.naming import member_name

        found = open_operations(cluster, address)
        answers = member_health(cluster, found.id, timeout=timeout)
        rows = [_health(member_name(member), answer) for member, answer in answers.items()]
    lines = [
        f"{row['endpoint']} is healthy: successfully committed proposal: took = {row['took_s'] * 1e3:.3f}ms"
        if row["healthy"]
        else f"{row['endpoint']} is unhealthy: {row['error']}"
        for row in rows
    ]
    show(CommandResult({"endpoints": rows}, lines), output)
    _complain(rows, "error", "is unhealthy")


@endpoint.command("hashkv")
@click.option("--rev", type=WholeNumber(1, MAX_NUMBER), help="Up to this revision (default: the newest of all).")
@options(common, endpoint_option, timeout_of(OPERATOR_TIMEOUT_S))
def endpoint_hashkv(cluster: str, address: str | None, output: str, timeout: float, rev: int | None) -> None:
    """Print a hash of each member's keys, all versions. Exit status 1 if two differ or one does not say."""
    client = given_endpoint(timeout)
    if client is not None:
        from .etcd_gateway import number  # loaded with the client, and not for other commands

        with client:
            answer = client.gateway.call("maintenance/hashkv", {"revision": str(rev or 0)})
        rows: list[Row] = [
            {
                "endpoint": client.gateway.url,
                "hash": number(answer.get("hash")),
                "revision": number(answer.get("hash_revision")) or number(answer.get("header", {}).get("revision")),
                "compact_revision": number(answer.get("compact_revision")),
                "error": "",
            }
        ]
    else:
        rows = _hashes(cluster, address, timeout, rev or 0)
    lines = [f"{row['endpoint']}, {row['error'] or row['hash']}" for row in rows]
    show(CommandResult({"endpoints": rows}, lines), output)
    _complain(rows, "error", "does not say")
    if len({(row["hash"], row["revision"], row["compact_revision"]) for row in rows}) > 1:
        same = len({(row["revision"], row["compact_revision"]) for row in rows}) == 1
        if same:
            raise Unavailable("members differ at one revision; `raykeeper check` says which are wrong")


def _statuses(cluster: str, address: str | None, timeout: float) -> list[Row]:
    from ..actors.member_access import member_statuses
    from ..actors.naming import member_name

    open_operations(cluster, address)
    rows = []
    for member, status in member_statuses(cluster, min(timeout, STATUS_TIMEOUT_S)).items():
        row = _no_status(member_name(member), member)
        if status is not None:
            row |= {
                "db_size": status.db_size,
                "db_size_in_use": status.db_size_in_use,
                "leader": status.leader == member,
                "learner": member in status.learners,
                "term": status.term,
                "raft_index": status.commit_index,
                "applied_index": status.applied_index,
                "revision": status.revision,
                "errors": [status.why_not_serving] if status.why_not_serving else [],
            }
        rows.append(row)
    return rows


def _no_status(endpoint: str, member: int) -> Row:
    names = ("db_size", "db_size_in_use", "leader", "learner", "term", "raft_index", "applied_index", "revision")
    empty = {name: False if name in ("leader", "learner") else 0 for name in names}
    return {"endpoint": endpoint, "member": member, **empty, "errors": ["it does not answer"]}


def _status_at(client: GatewayClient) -> Row:
    from .etcd_gateway import number

    answer = client.gateway.call("maintenance/status", {})
    header = answer.get("header", {})
    member = number(header.get("member_id"))
    return {
        "endpoint": client.gateway.url,
        "member": member,
        "db_size": number(answer.get("dbSize")),
        "db_size_in_use": number(answer.get("dbSizeInUse")),
        "leader": number(answer.get("leader")) == member,
        "learner": bool(answer.get("isLearner")),
        "term": number(answer.get("raftTerm")),
        "raft_index": number(answer.get("raftIndex")),
        "applied_index": number(answer.get("raftAppliedIndex")),
        "revision": number(header.get("revision")),
        "errors": [str(each).strip() for each in answer.get("errors", ())],
    }


def _health(endpoint: str, answer: MemberAnswer) -> Row:
    healthy = not answer.error
    return {"endpoint": endpoint, "healthy": healthy, "took_s": round(answer.took, 6), "error": answer.error}


def _health_at(client: GatewayClient) -> Row:
    began, error = time.monotonic(), ""
    try:
        client.range(b"health")
    except KeeperError as problem:
        error = str(problem)
    took = round(time.monotonic() - began, 6)
    return {"endpoint": client.gateway.url, "healthy": not error, "took_s": took, "error": error}


def _hashes(cluster: str, address: str | None, timeout: float, revision: int) -> list[Row]:
    from ..actors.cluster.member_upkeep import member_hashes
    from ..actors.naming import member_name

    found = open_operations(cluster, address)
    rows = []
    for member, answer in member_hashes(cluster, found.id, revision, timeout=timeout).items():
        reply = answer.reply
        rows.append(
            {
                "endpoint": member_name(member),
                "hash": 0 if reply is None else reply.hash,
                "revision": 0 if reply is None else reply.hash_revision,
                "compact_revision": 0 if reply is None else reply.compact_revision,
                "error": answer.error,
            }
        )
    return rows


def _complain(rows: list[Row], field: str, what: str) -> None:
    """End with an error if there are any.

    Raises:
        Unavailable: the field of a row is not empty.
    """
    bad = [row["endpoint"] for row in rows if row[field]]
    if bad:
        raise Unavailable(f"{', '.join(bad)} {what}; `raykeeper status` has more about it")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _yes(value: bool) -> str:
    return "true" if value else "false"


# --- alarms and space ------------------------------------------------------------------------------------------------


@click.group()
def alarm() -> None:
    """Alarms: out of space, or a member whose content differs."""


@alarm.command("list")
@options(common, endpoint_option, timeout_option)
def list_alarms(cluster: str, address: str | None, output: str, timeout: float) -> None:
    """Print the alarms that are active."""
    client = given_endpoint(timeout)
    if client is not None:
        with client:
            rows = _alarms_at(client)
    else:
        open_operations(cluster, address)
        rows = [row for row, _ in _alarms(cluster, timeout)]
    _show_alarms(rows, output)


@alarm.command("disarm")
@options(common, endpoint_option, timeout_option)
def disarm_alarms(cluster: str, address: str | None, output: str, timeout: float) -> None:
    """End all alarms, and print them. One whose cause lasts is raised again by its member."""
    client = given_endpoint(timeout)
    if client is not None:
        with client:
            rows = _alarms_at(client)
            for row in rows:
                asked = {"action": "DEACTIVATE", "memberID": str(row["member"]), "alarm": row["alarm"]}
                client.gateway.call("maintenance/alarm", asked, writes=True)
    else:
        from ..actors.cluster.member_upkeep import disarm

        id = open_operations(cluster, address).id
        found = _alarms(cluster, timeout)
        for _, active in found:
            disarm(cluster, id, active, timeout=timeout)
        rows = [row for row, _ in found]
    _show_alarms(rows, output)


def _alarms(cluster: str, timeout: float) -> list[tuple[Row, Any]]:
    from ..actors.cluster.member_upkeep import active_alarms

    return [
        ({"member": each.member, "alarm": each.kind, "message": each.message}, each)
        for each in active_alarms(cluster, timeout=timeout)
    ]


def _alarms_at(client: GatewayClient) -> list[Row]:
    from .etcd_gateway import number

    answer = client.gateway.call("maintenance/alarm", {"action": "GET"})
    return [
        {"member": number(each.get("memberID")), "alarm": str(each.get("alarm", "NONE")), "message": ""}
        for each in answer.get("alarms", ())
    ]


def _show_alarms(rows: list[Row], output: str) -> None:
    lines = [f"memberID:{row['member']} alarm:{row['alarm']} {row['message']}".rstrip() for row in rows]
    show(CommandResult({"alarms": rows}, lines), output)


def defragmented(cluster: str, address: str | None, name: int | None, timeout: float = OPERATOR_TIMEOUT_S) -> list[Row]:
    """Have all members, one after the other, or one of this id defragment its state; a row for each.

    Args:
        timeout: seconds for all of them.

    Raises:
        Unavailable: there is no such member.
    """
    from ..actors.cluster.member_upkeep import defragment_members
    from ..actors.naming import member_name

    id = open_operations(cluster, address).id
    answers = defragment_members(cluster, id, name, timeout=timeout)
    if not answers:
        raise Unavailable(f"cluster {cluster} has no member m{name}")
    return [
        {"endpoint": member_name(member), "took_s": round(answer.took, 3), "error": answer.error}
        for member, answer in answers.items()
    ]


@click.command()
@click.argument("name", type=member_id, required=False)
@options(common, endpoint_option, timeout_of(OPERATOR_TIMEOUT_S))
def defrag(cluster: str, address: str | None, output: str, timeout: float, name: int | None) -> None:
    """Have all members, one after the other, or member NAME return the space of what was deleted to their disks."""
    client = given_endpoint(timeout)
    if client is not None:
        if name is not None:
            raise click.UsageError("either NAME or --endpoint")
        began = time.monotonic()
        with client:
            client.gateway.call("maintenance/defragment", {}, writes=True)
        rows: list[Row] = [{"endpoint": client.gateway.url, "took_s": round(time.monotonic() - began, 3), "error": ""}]
    else:
        rows = defragmented(cluster, address, name, timeout)
    lines = [
        f"Failed to defragment {row['endpoint']}: {row['error']}"
        if row["error"]
        else f"Finished defragmenting {row['endpoint']}"
        for row in rows
    ]
    show(CommandResult({"defragmented": rows}, lines), output)
    _complain(rows, "error", "was not defragmented")
