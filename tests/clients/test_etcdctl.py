"""etcdctl of two versions, each subcommand: its output is compared with what it says of a real etcd."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import signal
import time
from pathlib import Path

import pytest

from lab.etcd_clients import PATIENCE, Command, Ran, Started, api3, comparable, etcdctl_program
from lab.http2.etcd_port import EtcdPort
from raykeeper.store.backup_file import verify
from raykeeper.store.engine.rocks import RocksDisk

ALIKE = """
put a 1
put a 2 --prev-kv
put a --ignore-value --prev-kv
put b 3 -w json
put d/1 x -w fields
get a -w json
get a -w fields
get --prefix "" -w simple
get --prefix "" -w protobuf --count-only
get --from-key a --limit 1 -w json
get --prefix "" --keys-only --sort-by=MODIFY --order=DESCEND
get --prefix "" --sort-by=VERSION --order=ASCEND --print-value-only
get --prefix "" --count-only -w json
get a c
get a --rev 2 --print-value-only
get a --rev 9999
get a --consistency=s --hex
get ""
put "" x
put a b --lease=99
put a b --ignore-value
put a b --ignore-lease
put new 1 --ignore-lease
put new --ignore-value
del nothing
del a --prev-kv -w json
del d/ --prefix --prev-kv
txn -w json <<< mod("b") > "0"\\n\\nput x 1\\nget x\\ndel b\\n\\nput y 1\\n\\n
txn <<< value("b") = "0"\\n\\nput x 1\\n\\nget x\\n\\n
txn <<< ver("x") = "1"\\ncreate("x") > "0"\\nlease("x") = "0"\\n\\nput x 1\\n\\nget x\\n\\n
txn <<< value("b") = "0"\\n\\nput x 1\\n\\nput x 1\\nput x 2\\n\\n
lease grant 100 -w json
lease grant 9000000001
lease grant 0
lease grant -5
lease list -w json
lease timetolive 1234
lease timetolive 1234 -w json
lease revoke 1234
lease keep-alive --once 1234
lease keep-alive 1234
compaction 3
compaction 3
compaction 9999
compaction 5 --physical
get a --rev 2
watch a --rev 1
alarm list
alarm disarm
endpoint health
endpoint health -w json
endpoint hashkv --rev 9999
endpoint status --cluster --dial-timeout=5s -w nothing
defrag
member add x
member add x --peer-urls=bad
member remove 77
member remove zz
member promote 77
member update 77 --peer-urls=http://127.0.0.1:1
move-leader 77
lock l -- echo hi
lock l -- false
lock --ttl=2 l -- sh -c "echo $ETCD_LOCK_KEY $ETCD_LOCK_REV"
get l --prefix
elect e --listen=false
lock
get
"""
"""Command lines, in this order, on empty stores; after <<<, what they read."""

USERS = """
user add root:r
user add root:r
user add ann:a
user add eve --no-password
user list
user get ann
user get none
user grant-role ann team
role add team
role add team
role grant-permission team readwrite team/ --prefix=true
role grant-permission team read one
role grant-permission team write from --from-key
role grant-permission none read k
role get team
role list
user grant-role ann team
user grant-role ann none
user get ann --detail
auth enable
user list
--user=root:wrong user list
--user=root:r user list
--user=root:r role list -w json
--user=root:r user get root
put team/a 1
--user=ann:a put team/a 1
--user=ann:a put other 1
--user=ann:a get team/ --prefix
--user=ann:a get "" --prefix
--user=ann:a get one
--user=ann:a put one 1
--user=ann:a del team/ --prefix
--user=ann --password=a put team/a 2
--user=ann:a user get ann
--user=ann:a user get root
--user=ann:a role get team
--user=ann:a role get root
--user=ann:a user add bob:b
--user=ann:a lock team/l -- echo hi
--user=ann:a lock other -- echo hi
--user=ann:a member add x --peer-urls=http://127.0.0.1:1
--user=root:r user passwd ann --interactive=false <<< new
--user=ann:a get team/a
--user=ann:new get team/a
--user=root:r role revoke-permission team team/ --prefix
--user=ann:new get team/a
--user=root:r role revoke-permission team team/ --prefix
--user=root:r user revoke-role ann team
--user=root:r user revoke-role ann team
--user=root:r user revoke-role root root
--user=root:r user delete root
--user=root:r role delete root
--user=root:r role delete team
--user=root:r user delete ann
--user=ann:new get one
--user=ann:new auth disable
--user=root:r auth disable
user delete eve
user delete root
role delete root
user list
get team/a
"""
"""Users, roles, and commands of users; the store is as before afterwards."""

NEW = """
auth status
downgrade validate 3.4.0
downgrade enable 3.4.0
downgrade cancel
"""
"""What only 3.5 has."""


@pytest.fixture(params=["3.5", "3.4"])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def etcdctl(version: str, port: EtcdPort) -> Command:
    return command(version, port.endpoint)


def command(version: str, endpoint: str) -> Command:
    return Command([etcdctl_program(version), f"--endpoints={endpoint}"], endpoint, api3())


def ran(etcdctl: Command, line: str) -> Ran:
    arguments, _, stdin = line.partition("<<<")
    read = stdin.strip().replace("\\n", "\n")
    return comparable(etcdctl.run(*shlex.split(arguments), stdin=read), etcdctl.endpoint)


def test_the_same_output_as_with_etcd(version: str, both: tuple[str, EtcdPort]) -> None:
    """All that etcdctl prints, and how it ends; its own log lines and what is each store's own are left out."""
    commands = command(version, both[0]), command(version, both[1].endpoint)
    apart = []
    for line in (ALIKE + (NEW if version == "3.5" else "")).strip().splitlines():
        theirs, ours = (ran(each, line) for each in commands)
        if theirs != ours:
            apart.append(f"{line}\n  etcd: {theirs}\n  ours: {ours}")
    assert not apart, "\n".join(apart)


def test_users_and_roles(version: str, both: tuple[str, EtcdPort]) -> None:
    commands = command(version, both[0]), command(version, both[1].endpoint)
    apart = []
    for line in USERS.strip().splitlines():
        theirs, ours = (ran(each, line) for each in commands)
        if theirs != ours:
            apart.append(f"{line}\n  etcd: {theirs}\n  ours: {ours}")
    assert not apart, "\n".join(apart)


def test_watches_print_the_same(version: str, both: tuple[str, EtcdPort]) -> None:
    """From the past, with previous values, as JSON, two from one command, and a command that is run for each event."""
    printed = []
    for endpoint in (both[0], both[1].endpoint):
        etcdctl = command(version, endpoint)
        for value in "123":
            etcdctl.said("put", "w/a", value)
        watches = [
            etcdctl.start("watch", "w/", "--prefix", "--rev=2", "--prev-kv"),
            etcdctl.start("watch", "w/", "w0", "--rev=3", "-w", "json"),
            etcdctl.start("watch", "w/", "--prefix", "--rev=2", "--", "sh", "-c", f"echo {EVENT}"),
            etcdctl.start("watch", "-i"),
        ]
        try:
            watches[-1].write("watch w/a w/f --rev=4\nprogress\nwatch w/ --prefix --rev=1\n")
            etcdctl.said("put", "w/c", "1")
            etcdctl.said("del", "w/a")
            etcdctl.said("put", "w/end", "END")
            lines = [
                _until(watch, end) for watch, end in zip(watches, ("END", "RU5E", '"w/end" "END"', "END"), strict=True)
            ]
            lines[3] += _until(watches[3], "END")  # of the other one
        finally:
            for watch in watches:
                watch.end()
        lines[1] = [json.dumps(event) for line in lines[1] for event in json.loads(line)["Events"]]  # grouped at will
        lines[2] = sorted(lines[2])  # the command's lines and its own
        lines[3] = sorted(line.partition(": ")[0] for line in lines[3])  # one watch beside the other
        printed.append([comparable(Ran(0, "\n".join(each), ""), endpoint).out for each in lines])
    assert printed[0] == printed[1]


EVENT = "$ETCD_WATCH_EVENT_TYPE $ETCD_WATCH_KEY $ETCD_WATCH_VALUE"


def _until(watch: Started, end: str) -> list[str]:
    lines = [watch.line()]
    while end not in lines[-1]:
        lines.append(watch.line())
    return lines


def test_a_large_value(etcdctl: Command) -> None:
    value = "v" * 1_000_000
    assert etcdctl.said("put", "large", stdin=value) == "OK\n"
    assert etcdctl.said("get", "large", "--print-value-only") == f"{value}\n"
    assert "request is too large" in etcdctl.run("put", "large", stdin="v" * 1_600_000).err
    far_too_large = etcdctl.run("put", "large", stdin="v" * 3_000_000)
    assert "trying to send message larger than max" in far_too_large.err, "the client refuses it itself"


def test_leases(etcdctl: Command) -> None:
    lease = etcdctl.said("lease", "grant", "60").split()[1]
    etcdctl.said("put", "leased", "x", f"--lease={lease}")
    assert f"lease {lease} keepalived" in etcdctl.said("lease", "keep-alive", "--once", lease)
    assert "attached keys([leased])" in etcdctl.said("lease", "timetolive", "--keys", lease)
    assert lease in etcdctl.said("lease", "list")
    assert "revoked" in etcdctl.said("lease", "revoke", lease)
    assert etcdctl.said("get", "leased") == ""


def test_a_lease_that_is_kept_outlives_its_time_and_then_ends(etcdctl: Command) -> None:
    lease = etcdctl.said("lease", "grant", "4").split()[1]
    etcdctl.said("put", "kept", "x", f"--lease={lease}")
    keeper = etcdctl.start("lease", "keep-alive", lease)
    try:
        kept = f"lease {lease} keepalived with TTL(4)"
        for _ in range(5):  # a third of the time apart
            assert keeper.line() == kept
        assert etcdctl.said("get", "kept") == "kept\nx\n"
        etcdctl.said("lease", "revoke", lease)
        while (line := keeper.line()) == kept:  # the commands take their time, too
            pass
        assert line == f"lease {lease} expired or revoked."
    finally:
        keeper.end()


def test_a_lock_is_held_by_one_and_handed_over(version: str, etcdctl: Command) -> None:
    first, second = etcdctl.start("lock", "mutex"), None
    try:
        assert first.line().startswith("mutex/")
        second = etcdctl.start("lock", "mutex", "--", "sh", "-c", "echo second has $ETCD_LOCK_KEY; exit 7")
        deadline = time.monotonic() + PATIENCE
        while etcdctl.said("get", "mutex/", "--prefix", "--keys-only").count("mutex/") < 2:
            assert time.monotonic() < deadline
        first.process.send_signal(signal.SIGINT)
        assert second.line().startswith("second has mutex/")
        assert second.process.wait(PATIENCE) == {"3.5": 7, "3.4": 1}[version]
    finally:
        for each in (first, second):
            if each is not None:
                each.end()
    assert etcdctl.said("get", "mutex/", "--prefix") == ""


def test_an_election_with_an_observer(version: str, etcdctl: Command) -> None:
    office = f"office{version}"
    observer = etcdctl.start("elect", "--listen", office)
    one = etcdctl.start("elect", office, "one")
    two = None
    try:
        assert one.line().startswith(f"{office}/")
        assert one.line() == "one"
        assert observer.line().startswith(f"{office}/")
        assert observer.line() == "one"
        two = etcdctl.start("elect", office, "two")
        one.process.send_signal(signal.SIGINT)
        assert two.line().startswith(f"{office}/")
        assert two.line() == "two"
        assert observer.line().startswith(f"{office}/")
        assert observer.line() == "two"
    finally:
        for each in (observer, one, two):
            if each is not None:
                each.end()


def test_a_mirror_from_etcd_and_back(version: str, both: tuple[str, EtcdPort]) -> None:
    """What is there when it begins, and what is put while it runs."""
    etcd, ours = command(version, both[0]), command(version, both[1].endpoint)
    for n in range(3):
        etcd.said("put", f"x/{n}", str(n))
    mirror = etcd.start("make-mirror", ours.endpoint, "--prefix=x/", "--dest-prefix=x/")
    try:
        _wait_for(ours, "x/", [0, 1, 2])
        for n in range(3, 6):
            etcd.said("put", f"x/{n}", str(n))
        etcd.said("del", "x/1")
        _wait_for(ours, "x/", [0, 2, 3, 4, 5])
    finally:
        mirror.end()
    mirror = ours.start("make-mirror", etcd.endpoint, "--prefix=x/", "--dest-prefix=y/")
    try:
        _wait_for(etcd, "y/", [0, 2, 3, 4, 5])
    finally:
        mirror.end()


def _wait_for(etcdctl: Command, prefix: str, numbers: list[int]) -> None:
    """Until these keys are there, each with its number."""
    deadline = time.monotonic() + PATIENCE
    expected = "".join(f"{prefix}{n}\n{n}\n" for n in numbers)
    while (found := etcdctl.said("get", prefix, "--prefix")) != expected:
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


def test_what_etcdctl_says_of_the_endpoint(etcdctl: Command, port: EtcdPort) -> None:
    status = etcdctl.said("endpoint", "status").split(", ")
    assert status[0] == port.endpoint
    assert status[4:6] == ["true", "false"], "it leads, and is not a learner"
    assert f'"Endpoint" : "{port.endpoint}"' in etcdctl.said("endpoint", "hashkv", "-w", "fields")
    assert port.endpoint in etcdctl.said("endpoint", "status", "--cluster")
    assert f"http://{port.endpoint}" in etcdctl.said("member", "list", "-w", "table")


def test_a_snapshot_is_saved_whole(etcdctl: Command, tmp_path: Path) -> None:
    """In our format: etcdctl cannot look into it, and ``raykeeper restore`` can."""
    for number in range(40):
        etcdctl.said("put", f"snap/{number}", "v" * 30_000)
    file = tmp_path / "saved"
    assert "Snapshot saved at" in etcdctl.said("snapshot", "save", str(file))
    assert verify(RocksDisk(), str(file)).revision > 40
    data = file.read_bytes()
    assert data[-32:] == hashlib.sha256(data[:-32]).digest()


@pytest.mark.parametrize("version", ["3.5", pytest.param("3.4", marks=pytest.mark.survival)])
def test_its_own_check_of_a_large_store_passes(version: str, etcdctl: Command) -> None:
    """10,000 keys of 1 KiB; it asks the port's metrics how much memory that takes."""
    said = etcdctl.said(
        "check", "datascale", "--load=s", "--auto-compact", "--auto-defrag", "--dial-timeout=60s", timeout=4 * PATIENCE
    )
    assert "PASS: Approximate system memory used" in said
    assert etcdctl.said("get", "/etcdctl-check-datascale/", "--prefix", "--keys-only") == ""


LOCAL = ("help", "version", "completion", "migrate", "snapshot restore", "snapshot status")
"""They ask no server. The last two are about etcd's own files: see docs/architecture/etcd-services.md."""


def test_each_subcommand_is_tried(version: str) -> None:
    listed = Command([etcdctl_program(version)], "", api3()).said("help").partition("COMMANDS:")[2]
    commands = re.findall(r"^\t([a-z][a-z -]*[a-z])\t", listed.partition("OPTIONS:")[0], re.MULTILINE)
    assert len(commands) > 40
    tried = {re.sub(r"^--\S+ ", "", line) for line in (ALIKE + USERS + NEW).strip().splitlines()}
    code = Path(__file__).read_text()
    for command in commands:
        by_line = any(f"{line} ".startswith(f"{command} ") for line in tried)
        by_test = '"' + '", "'.join(command.split()) + '"' in code
        assert by_line or by_test or command.startswith(LOCAL), f"etcdctl {version} {command}"


@pytest.mark.parametrize("version", ["3.5", pytest.param("3.4", marks=pytest.mark.survival)])
def test_its_own_check_of_performance_runs_to_its_end(version: str, etcdctl: Command) -> None:
    """150 puts a second for a minute, the smallest load that there is; then compaction, and defragmentation. Its
    verdict is about the machine that runs the tests, and beside some figures of a slow one there is none."""
    before = json.loads(etcdctl.said("get", "a", "-w", "json"))["header"]["revision"]
    said = etcdctl.run("check", "perf", "--load=s", "--auto-compact", "--auto-defrag", timeout=60 + 2 * PATIENCE)
    assert said.code in (0, 1), said
    for measured in ("hroughput", "lowest request took", "tddev"):
        assert measured in said.out, said
    for done in ("Compacted with revision", "Defragmented"):
        assert done in said.out, said
    left = json.loads(etcdctl.said("get", "/etcdctl-check-perf/", "--prefix", "-w", "json"))
    assert "kvs" not in left
    assert left["header"]["revision"] > before
