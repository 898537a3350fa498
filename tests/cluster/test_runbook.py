"""The remedies of the runbook, by the commands that it names, against real members that have the trouble.

What takes several hosts is in ``test_head_lost.py``, ``test_second_cluster.py`` and ``test_healing.py``.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

import raykeeper
from lab.certificates import Certificates
from lab.ray.faults import Faults
from lab.ray.load import Load
from lab.ray.tools import Made, kill, leader, not_serving, remove, serving, wait_until
from raykeeper.errors import LockLost
from raykeeper.store.data_dir import DataDir
from raykeeper.store.engine.rocks import RocksDisk
from raykeeper.store.state.mvcc import RECORD

pytestmark = pytest.mark.survival


class Shell:
    """Commands on one cluster, as an operator types them."""

    def __init__(self, name: str, folder: Path) -> None:
        self._environment = {
            **os.environ,
            "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
            "RAYKEEPER_CLUSTER": name,
            "RAYKEEPER_RUNTIME_DIR": str(folder / "run"),
            "XDG_STATE_HOME": str(folder),
        }

    def ran(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "raykeeper", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=self._environment)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def __call__(self, *words: str) -> str:
        done = self.ran(*words)
        assert done.returncode == 0, (words, done.stdout + done.stderr)
        return done.stdout

    def refused(self, *words: str) -> str:
        done = self.ran(*words)
        assert done.returncode == 1, (words, done.stdout + done.stderr)
        return done.stdout + done.stderr

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "raykeeper", *words]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self._environment
        )

    def until_whole(self) -> str:
        """What `status` says once it finds nothing missing."""
        said: list[str] = []

        def whole() -> bool:
            done = self.ran("status")
            said.append(done.stdout)
            return done.returncode == 0

        wait_until(whole, 120, lambda: said[-1])
        return said[-1]


@pytest.fixture
def shell(clusters: Made, tmp_path: Path) -> Shell:
    return Shell(clusters.name, tmp_path)


def follower(cluster: Any) -> Any:
    lead = leader(cluster)
    return next(member for member in cluster.members() if member.id != lead.id)


# --- nothing is answered ---------------------------------------------------------------------------------------------


def test_a_majority_whose_disks_are_gone(clusters: Made, shell: Shell, tmp_path: Path) -> None:
    """One survivor makes a new cluster of the same name, by the steps of operations.md."""
    cluster = clusters.launch(supervised=True)
    with cluster.client() as kv:
        for n in range(100):
            kv.put(f"k{n}", f"v{n}")
        wait_until(lambda: len({member.applied_index for member in cluster.members()}) == 1, what="all are level")
    for member in cluster.members():
        if member.id != 2:
            ray.kill(member.actor, no_restart=True)
            remove(clusters.folder(member.id))
    assert "no member leads" in shell.refused("status")
    spec = tmp_path / "jobs.yaml"
    spec.write_text(f"name: {clusters.name}\ndata_dir: {clusters.data_dir}\n")
    survivor, saved = str(clusters.folder(2)), str(tmp_path / "m2-saved")
    assert "another process holds" in shell.refused("restore", "--from-data-dir", survivor, str(spec))

    shell("down")
    subprocess.run(["cp", "-a", survivor, saved], check=True)
    destroy = ("down", "--destroy", "--yes", "--id", f"{cluster.id:x}", "--data-dir", str(clusters.data_dir))
    assert f"--id {cluster.id:x}" in shell.refused("restore", "--from-data-dir", saved, str(spec)), "it says what to do"
    shell(*destroy)
    shell("restore", "--from-data-dir", saved, str(spec))
    shell.until_whole()
    found = json.loads(shell("get", "k", "--prefix", "-o", "json"))["items"]
    assert {each["key"]: each["value"] for each in found} == {f"k{n}": f"v{n}" for n in range(100)}
    shell("put", "k", "after")


# --- one member is down ----------------------------------------------------------------------------------------------


def test_a_log_that_is_gone_is_made_good_by_another_member(clusters: Made, shell: Shell) -> None:
    cluster = clusters.launch()
    kv = cluster.client()
    kv.put("k", "v")
    victim = follower(cluster)
    os.kill(victim.pid, signal.SIGSTOP)
    remove(clusters.folder(victim.id))
    kill(victim.pid)
    wait_until(lambda: "no data directory" in not_serving(cluster).get(victim.name, ""), what="it says why")
    assert f"{victim.name} does not serve" in shell.refused("status")
    shell("member", "add")
    shell("member", "remove", victim.name)
    said = shell.until_whole()
    assert "m4" in said
    assert victim.name not in {member.name for member in cluster.members()}
    assert kv.get("k").text == "v"


@pytest.fixture
def code(local_ray: Path) -> Iterator[Any]:
    """Has processes that start from now on run other code; see ``lab/ray/patches/sitecustomize.py``."""
    fault = Path(os.environ["RAYKEEPER_TEST_FAULT"])

    def install(which: str) -> None:
        fault.write_text(f"{which} commands:COMMANDS_VERSION\n")

    yield install
    fault.unlink(missing_ok=True)


def test_a_member_of_an_older_version_than_the_log(clusters: Made, shell: Shell, code: Any, stopped: list[int]) -> None:
    """`CommandUnknown`: with the newer version installed there, `upgrade` frees it."""
    code("newer")
    cluster = clusters.launch()
    wait_until(lambda: cluster.upgrade() == 2, 180, "all run the newer code")  # Ray may start one in an older process
    victim = follower(cluster)

    def pid() -> int:
        return int(cluster.members()[victim.id - 1].pid)

    def unknown() -> bool:
        """It misses a command of the newer version, and comes back with older code, if Ray starts a new process."""
        before = pid()
        os.kill(before, signal.SIGSTOP)
        stopped.append(before)
        shell("config", "set", f"timings.replace_after={1000 + before}", "--timeout", "60")
        kill(before)
        wait_until(lambda: pid() not in (0, before), what="it is there again")
        wait_until(lambda: serving(cluster) or "CommandUnknown" in not_serving(cluster).get(victim.name, ""))
        return victim.name in not_serving(cluster)

    code("older")
    wait_until(unknown, 180, "it has stopped")
    assert "CommandUnknown" in shell.refused("status")
    before = pid()
    code("newer")
    wait_until(lambda: shell.ran("upgrade", "--timeout", "60").returncode == 0, 240, "it runs the newer code")
    shell.until_whole()
    assert pid() not in (0, before)
    assert {member.name for member in cluster.members()} == {"m1", "m2", "m3"}


def test_a_version_that_does_not_start(clusters: Made, shell: Shell, code: Any) -> None:
    """`upgrade` stops at the first member; with the old version installed again, it comes back."""
    code("older")
    cluster = clusters.launch()
    kv = cluster.client(timeout=60)
    kv.put("k", "1")
    code("broken")
    said: list[str] = []

    def stopped() -> bool:
        """Ray may start a member in a process that was there before."""
        done = shell.ran("upgrade", "--timeout", "30")
        said.append(done.stderr)
        return done.returncode == 1 and re.search("m[123] .*this version does not start", done.stderr) is not None

    wait_until(stopped, 240, lambda: f"one does not start: {said}")
    assert len(not_serving(cluster)) == 1
    kv.put("k", "2")
    code("older")
    wait_until(lambda: shell.ran("upgrade", "--timeout", "60").returncode == 0, 240, "it runs the old code")
    shell.until_whole()
    assert kv.get("k").text == "2"


def test_data_of_another_format_is_refused_and_left_alone(clusters: Made, shell: Shell, tmp_path: Path) -> None:
    cluster = clusters.launch()
    cluster.client().put("k", "v")
    cluster.shutdown()
    identity = clusters.folder(1) / "identity.json"
    good = identity.read_text()
    other = re.sub(r'("format[a-z_]*": ?)(\d+)', r"\g<1>99", good)
    assert other != good
    identity.write_text(other)
    spec = tmp_path / "jobs.yaml"
    spec.write_text(f"name: {clusters.name}\ndata_dir: {clusters.data_dir}\nsupervised: false\n")
    files = sorted(path.name for path in clusters.folder(1).iterdir())
    done = shell.ran("up", str(spec))
    assert done.returncode == 1
    assert re.search("99", done.stdout + done.stderr), done
    assert identity.read_text() == other
    assert sorted(path.name for path in clusters.folder(1).iterdir()) == files
    identity.write_text(good)
    shell.ran("up", str(spec))
    shell.until_whole()


# --- disks -----------------------------------------------------------------------------------------------------------


def test_a_slow_disk_of_the_leader(clusters: Made, shell: Shell, scratch: Path) -> None:
    cluster = clusters.launch(timings={"election_timeout": 6.0})
    kv = cluster.client(timeout=60)
    lead = leader(cluster)
    fault = scratch / "fault"
    fault.write_text(f"slow:0.3 * {lead.pid}\n")
    try:

        def told() -> bool:
            kv.put("k", "v")
            return "slow disk" in shell("logs", lead.name, "-n", "100")

        wait_until(told, 120, "its log says so")
        target = follower(cluster).name
        assert shell("move-leader", target, "--timeout", "60") == f"leader: {target}\n"
        shell("member", "add")
        shell("member", "remove", lead.name, "--timeout", "60")
    finally:
        fault.unlink()
    shell.until_whole()
    assert lead.name not in {member.name for member in cluster.members()}
    assert kv.get("k").text == "v"


def fill(kv: Any, prefix: str) -> None:
    """Put until the cluster refuses for lack of space."""
    for n in range(400):
        try:
            kv.put(f"{prefix}{n:04}", os.urandom(100_000))
        except raykeeper.NoSpace:
            return
    raise AssertionError("all puts were taken")


def test_keys_that_take_the_quota(clusters: Made, shell: Shell) -> None:
    cluster = clusters.launch(limits={"quota_bytes": 4_000_000})
    kv = cluster.client(timeout=60)
    kv.put("kept", "v")
    fill(kv, "old/")
    shell.refused("put", "new", "1")
    assert "alarm:NOSPACE its data takes" in shell("alarm", "list")
    shell("del", "old/", "--prefix")
    shell("compact", str(json.loads(shell("get", "old/", "--prefix", "-o", "json"))["revision"]))
    wait_until(lambda: shell("alarm", "list").strip() == "", what="the alarm has ended by itself")
    wait_until(lambda: shell.ran("put", "new", "1").returncode == 0, what="puts are taken again")
    assert kv.get("kept").text == "v"


def test_a_quota_that_is_raised(clusters: Made, shell: Shell) -> None:
    cluster = clusters.launch(limits={"quota_bytes": 4_000_000})
    kv = cluster.client(timeout=60)
    fill(kv, "k/")
    shell("config", "set", "limits.quota_bytes=400000000")
    wait_until(lambda: shell.ran("put", "new", "1").returncode == 0, what="puts are taken again")
    wait_until(lambda: shell("alarm", "list").strip() == "", what="the alarm has ended by itself")


def tamper(folder: str, text: bytes) -> None:
    """Change a value in a stopped member's state, as no checksum sees it."""
    opened = DataDir.open(RocksDisk(), folder)
    with opened.state.reading() as engine:
        key, record = next(iter(engine.iterate("keys", b"u")))
        engine.write([("keys", key, record[: RECORD.size] + text)])
        engine.flush()
    opened.close()


def test_members_that_differ_without_a_majority(clusters: Made, shell: Shell, tmp_path: Path) -> None:
    """All is served and nothing rebuilt; a backup can be made, and restored."""
    cluster = clusters.launch(timings={"check_interval": 1.0})
    kv = cluster.client()
    for n in range(20):
        kv.put(f"k{n:02}", f"v{n}")
    cluster.shutdown()
    for member, text in ((1, b"one"), (2, b"two")):
        tamper(str(clusters.folder(member)), text)
    cluster = clusters.launch()
    wait_until(lambda: "there is no majority" in shell.ran("alarm", "list").stdout, what="the alarm")
    assert "there is no majority" in shell("status")
    shell.refused("check")
    assert shell("get", "k19", "--value-only") == "v19"
    backup = tmp_path / "jobs.rkbackup"
    shell("backup", str(backup))
    name = clusters.name + "-restored"
    clusters.also(name)
    spec = tmp_path / "restored.yaml"
    spec.write_text(f"name: {name}\ndata_dir: {clusters.data_dir}\n")
    shell("restore", str(backup), str(spec))
    assert shell("get", "k19", "--value-only", "--cluster", name) == "v19"
    assert json.loads(shell("check", "--cluster", name, "-o", "json"))["equal"]


# --- clocks ----------------------------------------------------------------------------------------------------------


def test_a_clock_that_is_off(clusters: Made, shell: Shell, faults: Faults) -> None:
    cluster = clusters.launch()
    kv = cluster.client(timeout=60)
    victim = follower(cluster)
    faults.clock(victim.pid, 100.0)
    load = Load(kv)
    try:
        part = f"the clock of {victim.name}'s host is"
        wait_until(lambda: part in shell.ran("status").stdout, 180, "status says so")
        assert part in shell.ran("health").stdout
        assert "ahead" in shell("logs", leader(cluster).name, "-n", "200")
    finally:
        assert load.check()


# --- locks and queues ------------------------------------------------------------------------------------------------

HOLDER = """
import sys
import ray, raykeeper
ray.init(address=sys.argv[1], log_to_driver=False, logging_level=40)
kv = raykeeper.connect(sys.argv[2], timeout=60)
lock = kv.lock("reports", ttl=600)
lock.acquire()
print("held", flush=True)
sys.stdin.readline()
try:
    lock.guard().put("written", "late")
    print("written", flush=True)
except raykeeper.KeeperError as error:
    print(type(error).__name__, flush=True)
"""


def test_a_stuck_lock(clusters: Made, shell: Shell, stopped: list[int]) -> None:
    """Whose it is, and how its hold is ended: what it writes under its guard from then on is refused."""
    cluster = clusters.launch()
    command = [sys.executable, "-c", HOLDER, ray.get_runtime_context().gcs_address, cluster.name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        os.kill(holder.pid, signal.SIGSTOP)
        stopped.append(holder.pid)
        said = shell("locks", "reports")
        assert f"pid {holder.pid}" in said
        found = re.search("lease ([0-9a-f]+)", said)
        assert found is not None, said
        shell("lease", "revoke", found[1])
        assert shell("lock", "reports", "--timeout", "60", "--", "echo", "it is mine").endswith("it is mine\n")
        os.kill(holder.pid, signal.SIGCONT)
        out, _ = holder.communicate("go on\n", timeout=120)
    assert out.strip() == LockLost.__name__
    assert shell("get", "written") == ""


def test_an_item_over_which_workers_die(clusters: Made, shell: Shell) -> None:
    cluster = clusters.launch()
    kv = cluster.client()
    queue = kv.queue("shards")
    queue.put("good")
    queue.put("poison")
    claims = [queue.claim(), queue.claim()]
    assert "queue shards, 2 items" in shell("queues", "shards")
    for claim in claims:
        claim.nack()
    page = (Path(raykeeper.__file__).parent / "docs" / "runbook.md").read_text()
    found = re.search("```python\n(import raykeeper\n.*?claim.ack.*?)```", page, re.DOTALL)
    assert found is not None
    program = found[1].replace('"jobs"', f'"{cluster.name}"').replace('"NAME"', '"shards"')
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}

    def asked(answers: str) -> str:
        command = [sys.executable, "-c", program]
        return subprocess.check_output(command, input=answers, text=True, timeout=120, env=environment)

    said = asked("n\n\n")
    assert said.index("good") < said.index("poison")
    assert len(queue) == 2, "nothing is taken out unseen"
    said = asked("n\ny\n")
    assert said.index("good") < said.index("poison")
    assert len(queue) == 1
    claim = queue.claim()
    assert claim.item == b"good"
    claim.ack()
    assert "take it out" not in asked(""), "no item, no question"


# --- watches --------------------------------------------------------------------------------------------------------

WATCHER = """
import sys
import ray, raykeeper
ray.init(address=sys.argv[1], log_to_driver=False, logging_level=40)
kv = raykeeper.connect(sys.argv[2], timeout=60)
kv.put("mine", "1")
with kv.watch(prefix="w/") as watch:
    print("watching", flush=True)
    for event in watch:
        pass
"""


def test_a_watcher_that_lags(clusters: Made, shell: Shell, stopped: list[int]) -> None:
    cluster = clusters.launch()
    kv = cluster.client(timeout=60)
    command = [sys.executable, "-c", WATCHER, ray.get_runtime_context().gcs_address, cluster.name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdout is not None
        assert watcher.stdout.readline() == "watching\n"
        assert f"pid {watcher.pid}" in shell("clients")
        os.kill(watcher.pid, signal.SIGSTOP)
        stopped.append(watcher.pid)

        async def put() -> None:
            await asyncio.gather(*[kv.aio.put(f"w/{n}", "v") for n in range(1500)])

        def told() -> bool:
            asyncio.run(put())
            return any("a watcher lags" in shell("logs", name, "-n", "200") for name in ("m1", "m2", "m3"))

        try:
            wait_until(told, 180, "a member's log says so")
        finally:
            watcher.kill()


# --- certificates ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("etcdctl") is None, reason="there is no etcdctl: apt-get install etcd-client")
def test_a_proxy_whose_certificate_has_expired(clusters: Made, shell: Shell, tmp_path: Path) -> None:
    clusters.launch()
    certificates = Certificates(tmp_path / "pki")
    old = certificates.issue("proxy", expired=True)
    listen = ("--listen", "127.0.0.1:0", "--cert-file", old.certificate, "--key-file", old.key)
    proxy = shell.start("proxy", "-o", "json", *listen)
    try:
        assert proxy.stdout is not None
        url = json.loads(proxy.stdout.readline())["url"]
        asked = ("get", "k", "--endpoint", url, "--cacert", old.authority)
        assert "expired" in shell.refused(*asked)
        command = ["etcdctl", f"--endpoints={url}", f"--cacert={old.authority}", "put", "k", "v"]
        environment = {**os.environ, "ETCDCTL_API": "3"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)
        assert done.returncode != 0
        certificates.issue("proxy")
        shell("put", "k", "v", *asked[2:])
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)
        assert (done.returncode, done.stdout) == (0, "OK\n"), done
        assert shell(*asked) == "k\nv\n"
    finally:
        proxy.terminate()
        proxy.communicate(timeout=120)
