"""One campaign: ``make chaos MINUTES=2 SEED=1``, which runs ``python -m chaos.campaign --minutes 2 --seed 1``.

A Ray of its own, a cluster, processes that work, one fault after the other (now and then two at once), all healed, the
verdict. The seed decides what the processes ask for and which faults come; when each thing happens is up to the
machine. It ends with a table, and with status 1 if a promise was broken, 2 if too little happened to judge.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

import raykeeper
from lab.ray.contents import content
from lab.ray.faults import Faults
from lab.ray.proxies import Proxies
from lab.ray.tools import kill_actors, wait_until
from raykeeper import KeeperError
from raykeeper.errors import LockLost
from simulation.checker import Violation

from .field import Bit, Field, NotNow, unmount
from .journal import OK, Record, gather
from .nemesis import FAULTS, OF_PROXIES, SPOILING
from .verdict import Truth, judge
from .work import COUNTER, QUEUE, WorkerActor

TESTS = Path(__file__).resolve().parent.parent
PATCHES = TESTS / "lab" / "ray" / "patches"
PROCESSES = 3
NAME = "chaos"
SPEC: dict[str, Any] = {
    "members": 3,
    # Whose data is lost is to be replaced, and contents are to be compared, within minutes; who starts slowly is not.
    "timings": {"session_ttl": 20.0, "replace_after": 8.0, "check_interval": 20.0},
    # Snapshots and cuts of the log are to happen, and to take long enough to be met; a small disk is to have room.
    "limits": {
        "log_cut_entries": 1500,
        "log_keep_entries": 300,
        "log_cut_bytes": 16 << 20,
        "reserve_bytes": 32 << 20,
        "snapshot_chunk_bytes": 64 << 10,
        "snapshot_bytes_per_second": 2 << 20,
    },
}
RECOVERY = 90.0
"""Seconds within which the cluster must be whole again once a fault is over."""


@dataclass
class Caused:
    """A fault that was caused."""

    name: str
    kind: int
    what: str
    start_ns: int
    end_ns: int = 0
    whole_ns: int = 0
    bit: bool = False
    done: int = 0
    """Operations that succeeded between its beginning and the cluster's being whole again."""


class Inconclusive(Exception):
    """Too little happened for a verdict."""


class Campaign:
    """One run.

    Args:
        minutes: of work and faults; healing and verdict come on top.
        seed: decides what is done.
        folder: where history and data go.
        only: names of faults; all if empty.
        lanes: on or off.
        proxies: how many there are, through which part of the work goes as etcd's.
    """

    def __init__(
        self, minutes: float, seed: int, folder: Path, only: Sequence[str], lanes: str = "on", proxies: int = 2
    ) -> None:
        self.minutes = minutes
        self.lanes = lanes
        self.proxies = proxies
        self._endpoints: list[str] = []
        self.seed = seed
        self.folder = folder
        self.rng = random.Random(seed)
        self.caused: list[Caused] = []
        self.records: list[Record] = []
        self.checked: dict[str, int] = {}
        self._truth = Truth()
        self._kinds = {fault: kind for fault, kind in FAULTS.items() if not only or fault.__name__ in only}
        self._numbers = 0
        self._pause = threading.Event()
        self._scratch = Path(tempfile.mkdtemp(prefix="rkc-"))  # short: Ray puts sockets into it
        self._journals = folder / "journals"
        self._mounts: list[Path] = []
        self._began = 0.0

    def run(self) -> None:
        """Do it all.

        Raises:
            Violation: a promise was broken.
            Inconclusive: too little happened.
        """
        shutil.rmtree(self.folder, ignore_errors=True)
        self._journals.mkdir(parents=True)
        try:
            cluster = self._launch()
            self._began = time.monotonic()
            self._field = self._make_field(cluster)
            self._start_proxies(cluster)
            for _ in range(PROCESSES):
                self._new_worker()
            try:
                self._torment()
            finally:
                self._field.faults.end()
            self._judge(cluster)
        finally:
            self._end()
            for folder in self._mounts:
                unmount(folder)
            shutil.rmtree(self._scratch, ignore_errors=True)

    # -- what is tormented --------------------------------------------------------------------------------------------

    def _launch(self) -> Any:
        (self._scratch / "syncs").mkdir()
        self._start_ray(self._scratch / "syncs")
        return raykeeper.launch({"name": NAME, "data_dir": str(self.folder / "data"), **self._spec()})

    def _spec(self) -> dict[str, Any]:
        return {**SPEC, "lanes": self.lanes}

    def _folder_of(self, member: int) -> Path:
        return self.folder / "data" / NAME / f"m{member}"

    def _make_field(self, cluster: Any) -> Field:
        return Field(
            cluster,
            Faults(self._scratch / "switch"),
            {},
            self._scratch / "syncs",
            self._folder_of,
            self._replace,
            self.rng,
            self._scratch / "fault",
            self._mounts,
        )

    def _start_proxies(self, cluster: Any) -> None:
        if self.proxies:
            self._field.proxies = proxies = Proxies(cluster)
            self._endpoints = [proxies.start() for _ in range(self.proxies)]
        else:
            self._kinds = {fault: kind for fault, kind in self._kinds.items() if fault not in OF_PROXIES}

    def _end(self) -> None:
        if self._endpoints:
            assert self._field.proxies is not None
            self._field.proxies.end()
        if ray.is_initialized():  # else the first question would lead into any Ray that runs on the machine
            kill_actors(NAME)
        ray.shutdown()

    def _start_ray(self, syncs: Path) -> None:
        os.environ.update(
            PYTHONPATH=os.pathsep.join(filter(None, [str(PATCHES), str(TESTS), os.environ.get("PYTHONPATH", "")])),
            RAYKEEPER_SYNC_JOURNAL=str(syncs),
            RAYKEEPER_TEST_SWITCH=str(self._scratch / "switch"),
            RAYKEEPER_TEST_FAULT=str(self._scratch / "fault"),
            RAY_timeout_ms_task_wait_for_death_info="0",
            RAY_raylet_start_wait_time_s="120",
            RAY_worker_niceness="0",  # workers on equal terms with members, else faults would be starvation mostly
        )
        self._init_ray()

    def _init_ray(self) -> None:
        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=200 * 1024 * 1024,
            _temp_dir=str(self._scratch / "ray"),
        )

    # -- work and faults ----------------------------------------------------------------------------------------------

    def _new_worker(self) -> None:
        self._numbers += 1
        name = f"w{self._numbers}"
        actor = WorkerActor.remote(name, NAME, str(self._journals), self.seed, self._began, self._endpoints)
        self._field.workers[name] = (actor, ray.get(actor.pid.remote(), timeout=60))

    def _replace(self, name: str) -> None:
        del self._field.workers[name]
        self._new_worker()

    def _torment(self) -> None:
        until = self._began + 60 * self.minutes
        self._pause.wait(2.0)
        while time.monotonic() < until:
            faults = [self._draw()]
            if self.rng.random() < 0.2:
                faults.append(self._draw())
            if SPOILING.issuperset(faults):
                del faults[1:]
            self._cause(faults)
            self._field.tidy()
            self._read_truth()
            if self.rng.random() < 0.3:
                self._compact()
            self._pause.wait(self.rng.uniform(0.5, 2.0))

    def _draw(self) -> Any:
        return self.rng.choices(list(self._kinds), [often for _, often in self._kinds.values()])[0]

    def _cause(self, faults: Sequence[Any]) -> None:
        begun: list[tuple[Any, Caused]] = []
        bits: list[Bit] = []
        try:
            for fault in faults:
                generator = fault(self._field)
                entry = Caused(fault.__name__, self._kinds[fault][0], "", time.monotonic_ns())
                try:
                    entry.what = next(generator)
                except NOT_NOW as error:
                    self._say(f"{entry.name}: not now, {error!r}")
                    continue
                begun.append((generator, entry))
                self.caused.append(entry)
                self._say(f"{entry.name}: {entry.what}")
                self._pause.wait(self.rng.uniform(0.0, 1.0))
            self._pause.wait(self.rng.choice((0.5, 1.5, 3.0, 5.0)))
        finally:
            for generator, entry in reversed(begun):
                bits.append(False)
                try:
                    next(generator)
                except StopIteration as end:
                    bits[-1] = end.value
                except NOT_NOW as error:
                    self._say(f"{entry.name}: {error!r}")
                entry.end_ns = time.monotonic_ns()
        whats = [entry.what for _, entry in begun]
        self._become_whole(whats)
        for (_, entry), bit in zip(reversed(begun), bits, strict=True):
            entry.bit = bool(bit() if callable(bit) else bit)
        self._become_whole(whats)
        for _, entry in begun:
            entry.whole_ns = time.monotonic_ns()

    def _say(self, line: str) -> None:
        print(f"{time.monotonic() - self._began:6.1f} s  {line}"[:200], flush=True)

    def _become_whole(self, whats: Sequence[str]) -> None:
        try:
            wait_until(self._whole, RECOVERY)
        except AssertionError:
            status = self._field.cluster.status()
            members = [(each.name, each.role, each.term, each.why_not_serving) for each in status.members]
            raise Violation(f"not whole again within {RECOVERY} s after {whats}: {members}, {status.alarms}") from None

    def _whole(self) -> bool:
        """Whether somebody leads, every member serves, and there is no alarm."""
        status = self._field.cluster.status()
        voters = [member for member in status.members if member.role in ("leader", "follower")]
        serving = [not member.why_not_serving for member in status.members]
        return bool(status.leader) and len(voters) >= SPEC["members"] and all(serving) and not status.alarms

    # -- the truth ----------------------------------------------------------------------------------------------------

    def _read_truth(self) -> None:
        """Read on in the store's history, up to now."""
        with raykeeper.connect(NAME, timeout=60) as kv:
            upto = kv.revision()
            if upto <= self._truth.upto:
                return
            with kv.watch(prefix="", start_revision=self._truth.upto + 1) as watch:
                deadline = time.monotonic() + 60
                while watch.revision < upto:
                    event = watch.next(timeout=1.0)
                    if event is None:
                        if time.monotonic() > deadline:
                            raise Violation(f"a watch stands at {watch.revision}, though {upto} is confirmed")
                        continue
                    if event.kv.mod_revision <= upto:
                        key = event.kv.key.decode()
                        value = None if event.type == "delete" or key.startswith("flood/") else event.kv.text
                        self._truth.changes.append((event.kv.mod_revision, key, value))
            self._truth.upto = upto

    def _compact(self) -> None:
        with raykeeper.connect(NAME, timeout=60) as kv:
            kv.compact(self._truth.upto)

    # -- the end ------------------------------------------------------------------------------------------------------

    def _judge(self, cluster: Any) -> None:
        hanging = self._finish()
        if hanging:
            raise Violation(f"the cluster is whole, and these still wait: {hanging}")
        self._read_truth()
        left, total = self._drain()
        hashes = wait_until(lambda: self._hashes(cluster), RECOVERY, "all members at the same index")
        self.records = gather(sorted(self._journals.iterdir()), self.folder / "history.jsonl")
        with (self.folder / "changes.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(change)}\n" for change in self._truth.changes)
        self._count()
        if len(set(hashes.values())) != 1:
            raise Violation(f"the members' contents differ: {hashes}")
        self.checked = judge(self.records, self._truth, left, total)
        self._check_that_it_counts()

    def _finish(self) -> list[str]:
        """Have the workers end; what of them hangs."""
        actors = [actor for actor, _ in self._field.workers.values()]
        hanging: list[list[str]] = ray.get([actor.finish.remote(60.0) for actor in actors], timeout=120)
        for actor in actors:
            ray.kill(actor)
        return [each for some in hanging for each in some]

    def _drain(self) -> tuple[list[str], int]:
        """What is left in the queue, and the counter."""
        left: list[str] = []
        with raykeeper.connect(NAME, timeout=30) as kv:
            queue = kv.queue(QUEUE, ttl=30)
            deadline = time.monotonic() + RECOVERY
            while len(queue):
                claim = queue.claim(timeout=5)
                if claim is not None:
                    with suppress(LockLost):  # a machine that is so busy: it comes back
                        claim.ack()
                        left.append(claim.item.decode())
                        deadline = time.monotonic() + RECOVERY  # there may be many, but one after the other must come
                if time.monotonic() > deadline:
                    raise Violation(f"the queue does not become empty: {len(queue)} items are left")
            return left, kv.counter(COUNTER).value()

    def _hashes(self, cluster: Any) -> dict[str, str]:
        """Each member's content hash, once all have applied the same; else nothing."""
        found = self._contents(cluster)
        same = len({index for index, _ in found.values()}) == 1 and len(found) >= SPEC["members"]
        return {name: digest for name, (_, digest) in found.items()} if same else {}

    def _contents(self, cluster: Any) -> dict[str, tuple[int, str]]:
        return {member.name: content(member) for member in cluster.members() if member.actor is not None}

    def _count(self) -> None:
        """Operations that succeeded during each fault."""
        ends = sorted(record.end_ns for record in self.records if record.outcome == OK and record.end_ns)
        for entry in self.caused:
            entry.done = sum(entry.start_ns <= end <= (entry.whole_ns or NEVER) for end in ends)

    def _check_that_it_counts(self) -> None:
        kinds = {entry.kind for entry in self.caused if entry.bit} - {0}
        # Of a kind, not of each fault: clients that are all cut off from the leader for a moment get nothing done.
        done: Counter[int] = Counter()
        for entry in self.caused:
            done[entry.kind] += entry.done
        idle = sorted(kind for kind in kinds if not done[kind])
        if len(kinds) < min(3, len({kind for kind, _ in self._kinds.values()} - {0})):
            raise Inconclusive(f"only faults of kinds {sorted(kinds)} bit")
        if idle:
            raise Inconclusive(f"no operation succeeded during faults of kinds {idle}")

    def table(self) -> str:
        """Faults caused, and operations done."""
        rows = defaultdict(list)
        for entry in self.caused:
            rows[entry.kind, entry.name].append(entry)
        lines = [f"{'fault':<28}{'kind':>5}{'caused':>8}{'bit':>5}{'operations done':>17}{'longest outage s':>18}"]
        for (kind, name), entries in sorted(rows.items()):
            outage = max((self._outage(entry) for entry in entries), default=0.0)
            bit, done = sum(entry.bit for entry in entries), sum(entry.done for entry in entries)
            lines.append(f"{name:<28}{kind or '-':>5}{len(entries):>8}{bit:>5}{done:>17}{outage:>18.1f}")
        outcomes: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        for record in self.records:
            outcomes[record.operation][record.outcome] += 1
        lines.append(f"\n{'operation':<28}{'ok':>8}{'fail':>8}{'unknown':>9}")
        for operation, counts in sorted(outcomes.items()):
            lines.append(f"{operation:<28}{counts['ok']:>8}{counts['fail']:>8}{counts['unknown']:>9}")
        lines.append("\nchecked: " + ", ".join(f"{name} {count}" for name, count in self.checked.items()))
        return "\n".join(lines)

    def _outage(self, entry: Caused) -> float:
        """Seconds from the beginning of a fault to its end and recovery in which the longest time no write ended."""
        ends = [
            record.end_ns
            for record in self.records
            if record.outcome == OK
            and record.operation in ("put", "add")
            and record.end_ns
            and entry.start_ns <= record.end_ns <= (entry.whole_ns or NEVER)
        ]
        points = sorted([entry.start_ns, *ends, entry.whole_ns or entry.end_ns])
        return max((b - a for a, b in itertools.pairwise(points)), default=0) / 1e9


NEVER = 1 << 62
NOT_NOW = (NotNow, OSError, KeeperError, ray.exceptions.RayError)
"""How a fault may fail to happen, mostly because another one is on: a process is dead already, a disk read-only."""


def main(kind: type[Campaign] = Campaign, target: str = "chaos") -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--folder", type=Path, default=Path("chaos-runs"))
    parser.add_argument("--only", default="", help="names of faults, with commas between")
    parser.add_argument("--proxies", type=int, default=2, help="through which part of the work goes as etcd's")
    parser.add_argument("--lanes", choices=("on", "off"), default="on", help="off: all goes by actor calls")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.randrange(10**6)
    folder = options.folder.resolve() / f"seed-{seed}"
    command = f"make {target} MINUTES={options.minutes:g} SEED={seed}"
    command += f"{' LANES=off' if options.lanes == 'off' else ''}{'' if options.proxies else ' PROXIES=0'}"
    only = [name for name in options.only.split(",") if name]
    print(f"{command}\nhistory: {folder / 'history.jsonl'}", flush=True)
    campaign = kind(options.minutes, seed, folder, only, options.lanes, options.proxies)
    status = 0
    try:
        campaign.run()
    except (Violation, AssertionError, KeeperError) as error:
        traceback.print_exc()
        print(f"BROKEN: {error}"[:3000])
        status = 1
    except Inconclusive as error:
        print(f"INCONCLUSIVE: {error}")
        status = 2
    print(campaign.table())
    if status:
        print(f"again: {command}")
    else:
        shutil.rmtree(folder / "data", ignore_errors=True)
        print(f"no promise was broken; {folder / 'history.jsonl'}")
    return status


if __name__ == "__main__":
    sys.exit(main())
