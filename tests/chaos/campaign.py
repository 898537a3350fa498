"""One campaign: ``make chaos MINUTES=2 SEED=1``, which runs ``python -m chaos.campaign --minutes 2 --seed 1``.

A Ray of its own, a cluster, processes that work, one fault after the other (now and then two at once), all healed, the
verdict. The seed decides what the processes ask for and which faults come; when each thing happens is up to the
machine; the mix (``mixes.py``), what sort of faults. It ends with a table and a last line that says how it ended, and
with status

1  a promise was broken,
2  nothing was broken, and the faults did not bite: too little happened to judge,
3  the campaign itself failed: nothing is known.

After 1 and 3, all that may tell why is kept in its folder (``evidence.py``), with a verdict on what there is.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray

import raykeeper
from lab.durable import DurableDisk
from lab.ray.contents import content
from lab.ray.faults import Faults
from lab.ray.proxies import Proxies
from lab.ray.redis import INSTALL, Redis, fixed_port
from lab.ray.tools import kill_actors, wait_until
from raykeeper import KeeperError
from simulation.checker import Violation

from .care import BESIDE, Operator, check_restored, restore_beside
from .control import kill_gcs
from .evidence import Diary, Evidence, questions_to
from .field import RECOVERY, Bit, Field, NotNow, unmount
from .journal import Record, gather
from .ledger import note_run
from .login import PASSWORD, ROOT, VARIABLE, connect, need_users
from .mixes import ALONE, LONGEST, MIXES, NEVER_TWICE, Mix
from .nemesis import OF_PROXIES, SPOILING
from .outcome import (
    EXPIRED,
    GCS_DIED,
    LONG_S,
    PROGRESS,
    READS_FAILED,
    REJOINED,
    REPLACED,
    RESTORED,
    UPGRADED,
    Caused,
    Inconclusive,
    check_recoveries,
    check_that_it_counts,
    count,
    expired,
    questions,
    table,
)
from .promises import check_end_state
from .safety import safety
from .store import drain, read_on, settled_state, write_changes
from .verdict import Truth, judge
from .worker import WorkerActor

TESTS = Path(__file__).resolve().parent.parent
PATCHES = TESTS / "lab" / "ray" / "patches"
PROCESSES = 3
NAME = "chaos"
OF_REDIS = "RAY_REDIS_ADDRESS", "RAY_GCS_SERVER_PORT"
"""Variables by which a Ray finds its Redis, and keeps its GCS at one port."""
SPEC: dict[str, Any] = {
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


class Campaign:
    """One run.

    Args:
        minutes: of work and faults; healing and verdict come on top.
        seed: decides what is done.
        folder: where history and data go.
        only: names of faults; all if empty.
        lanes: on or off.
        proxies: how many there are, through which part of the work goes as etcd's.
        mix: what it is made of.
    """

    def __init__(
        self,
        minutes: float,
        seed: int,
        folder: Path,
        only: Sequence[str],
        lanes: str = "on",
        proxies: int = 2,
        mix: Mix = MIXES["short"],
    ) -> None:
        self.mix = mix
        self.minutes = minutes
        self.lanes = lanes
        self.proxies = 0 if mix.users else proxies  # their work logs nobody in
        self._endpoints: list[str] = []
        self.seed = seed
        self.folder = folder
        self.rng = random.Random(seed)
        self.caused: list[Caused] = []
        self.records: list[Record] = []
        self.checked: dict[str, int] = {}
        self._truth = Truth()
        self.members = mix.members[0] if len(mix.members) == 1 else self.rng.choice(mix.members)
        self.seen: Counter[str] = Counter()
        """What occurred, of that which may have to."""
        left_out = SPOILING if self.members < 3 else frozenset()  # a quorum keeps its data
        self._kinds = {
            fault: kind
            for fault, kind in mix.faults().items()
            if fault not in left_out and (not only or fault.__name__ in only)
        }
        self._numbers = 0
        self._pause = threading.Event()
        self._scratch = Path()
        self._journals = folder / "journals"
        self._mounts: list[Path] = []
        self._operator: Operator | None = None
        self._layer: DurableDisk | None = None
        self._redis: Redis | None = None
        self._began = 0.0

    def run(self) -> None:
        """Do it all.

        Raises:
            Violation: a promise was broken.
            Inconclusive: too little happened.
        """
        shutil.rmtree(self.folder, ignore_errors=True)
        self._journals.mkdir(parents=True)
        self._diary = Diary(self.folder / "diary.jsonl")
        self._scratch = Path(tempfile.mkdtemp(prefix="rkc-"))  # short: Ray puts sockets into it
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
                self._field.faults.heal()  # clocks stay as they are: to put them right would be another step
            self._judge(cluster)
        except Inconclusive:
            raise
        except BaseException as error:
            self._keep(error)
            raise
        finally:
            self._end()
            self._diary.close()
            for folder in self._mounts:
                unmount(folder)
            shutil.rmtree(self._scratch, ignore_errors=True)

    # -- what is tormented --------------------------------------------------------------------------------------------

    def _launch(self) -> Any:
        (self._scratch / "syncs").mkdir()
        (self._scratch / "stacks").mkdir()
        if self.mix.layer and DurableDisk.available():
            self._layer = DurableDisk(self.folder / "data", self.folder / "durable")
        elif self.mix.layer:
            print("LEFT OUT: reads that fail, and power cuts by a layer of their own: no C compiler", flush=True)
        self._start_redis()
        self._start_ray(self._scratch / "syncs")
        cluster = raykeeper.launch({"name": NAME, "data_dir": str(self.folder / "data"), **self._spec()})
        if self.mix.users:
            need_users(NAME)
        return cluster

    def _start_redis(self) -> None:
        if self.mix.gcs_outlives and Redis.available():
            self._redis = Redis(self._scratch)
            os.environ.update(zip(OF_REDIS, (self._redis.address, str(fixed_port())), strict=True))
        elif self._kinds.pop(kill_gcs, None):
            print(f"LEFT OUT: kill_gcs, since {INSTALL}", flush=True)

    def _spec(self) -> dict[str, Any]:
        user = {"user": ROOT, "password_env": VARIABLE} if self.mix.users else {}
        timings = {**SPEC["timings"], **self.mix.timings}
        return {**SPEC, "timings": timings, "lanes": self.lanes, **user, **self.mix.spec(self.members)}

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
            layer=self._layer,
            gcs_outlives=self._redis is not None,
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
        if self._redis is not None:
            for variable in OF_REDIS:  # else any Ray that this process starts later would ask a Redis that is gone
                os.environ.pop(variable, None)
            self._redis.close()

    def _start_ray(self, syncs: Path) -> None:
        os.environ.update(
            PYTHONPATH=os.pathsep.join(filter(None, [str(PATCHES), str(TESTS), os.environ.get("PYTHONPATH", "")])),
            RAYKEEPER_SYNC_JOURNAL=str(syncs),
            RAYKEEPER_TEST_SWITCH=str(self._scratch / "switch"),
            RAYKEEPER_TEST_FAULT=str(self._scratch / "fault"),
            RAYKEEPER_TEST_STACKS=str(self._scratch / "stacks"),
            RAY_timeout_ms_task_wait_for_death_info="0",
            RAY_raylet_start_wait_time_s="120",
            RAY_worker_niceness="0",  # workers on equal terms with members, else faults would be starvation mostly
        )
        os.environ.update({} if self._layer is None else self._layer.environment())
        os.environ.update({VARIABLE: PASSWORD} if self.mix.users else {})
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
        where = NAME, str(self._journals)
        actor = WorkerActor.remote(name, *where, self.seed, self._began, self._endpoints, self.mix.more_work)
        self._field.workers[name] = (actor, ray.get(actor.pid.remote(), timeout=60))

    def _replace(self, name: str) -> None:
        del self._field.workers[name]
        self._new_worker()

    def _torment(self) -> None:
        until = self._began + 60 * self.minutes
        self._pause.wait(2.0)
        if self.mix.operations:
            self._operator = Operator(self._field.cluster, self.seed, self.folder, lambda: self._truth.upto)
        while time.monotonic() < until:
            self._cause(self._draw_some())
            self._field.tidy()
            if self._layer is not None:
                self._layer.forget()
            self._read_truth()
            if self.rng.random() < 0.3:
                with connect(NAME, timeout=60) as kv:
                    kv.compact(self._truth.upto)
            if len(self._field.workers) < PROCESSES:  # one that was killed could not be replaced at once
                with suppress(*NOT_NOW):
                    self._new_worker()
            self._pause.wait(self.rng.uniform(0.5, 2.0))

    def _draw_some(self) -> list[Any]:
        """One fault, or two that may come up at once."""
        faults = [self._draw()]
        if self.rng.random() < 0.2:
            faults.append(self._draw())
        if ALONE.intersection(faults) or any(never.issuperset(faults) for never in (SPOILING, NEVER_TWICE)):
            del faults[1:]
        return faults

    def _draw(self) -> Any:
        return self.rng.choices(list(self._kinds), [often for _, often in self._kinds.values()])[0]

    def _cause(self, faults: Sequence[Any]) -> None:
        begun: list[tuple[Any, Caused]] = []
        bits: list[Bit] = []
        before = self._ids()
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
                self._diary.note(entry.name, "begun", what=entry.what)
                self._say(f"{entry.name}: {entry.what}")
                self._pause.wait(self.rng.uniform(0.0, 1.0))
            self._pause.wait(min([self.mix.hold(self.rng), *(LONGEST.get(each, 1e9) for each in faults)]))
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
                self._diary.note(entry.name, "ended", seconds=entry.seconds)
        whats = [entry.what for _, entry in begun]
        self._become_whole(whats)
        for (_, entry), bit in zip(reversed(begun), bits, strict=True):
            entry.bit = bool(bit() if callable(bit) else bit)
        self._become_whole(whats)
        for _, entry in begun:
            entry.whole_ns = time.monotonic_ns()
            self._diary.note(entry.name, "whole", bit=entry.bit)
        if any(entry.seconds >= LONG_S and entry.bit and entry.kind in (1, 2, 3, 5) for _, entry in begun):
            self.seen[REJOINED] += bool(before) and before == self._ids()

    def _ids(self) -> set[int]:
        """Of the members that there are, as far as that is to be had."""
        with suppress(*NOT_NOW):
            return {member.id for member in self._field.cluster.members()}
        return set()

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
        alarms = [alarm for alarm in status.alarms if not alarm.startswith("the clock of ")]  # ours, and they stay off
        return bool(status.leader) and len(voters) >= self.members and all(serving) and not alarms

    def _read_truth(self, patience: float = 60.0) -> None:
        """Read on in the store's history, up to now."""
        read_on(NAME, self._truth, patience)

    # -- the end ------------------------------------------------------------------------------------------------------

    def _judge(self, cluster: Any) -> None:
        if self._operator is not None and not self._operator.stop(300):
            raise Violation("the cluster is whole, and the operator still waits")
        hanging = self._finish()
        if hanging:
            raise Violation(f"the cluster is whole, and these still wait: {hanging}")
        self._read_truth()
        left, total = drain(NAME, RECOVERY)
        there = settled_state(NAME, self._truth, RECOVERY)
        hashes = wait_until(lambda: self._hashes(cluster), RECOVERY, "all members at the same index")
        self.records = gather(sorted(self._journals.iterdir()), self.folder / "history.jsonl")
        write_changes(self._truth, self.folder / "changes.jsonl")
        count(self.caused, self.records)
        if len(set(hashes.values())) != 1:
            raise Violation(f"the members' contents differ: {hashes}")
        self.checked = {"end state": check_end_state(there, self._truth.changes)}
        self.checked |= judge(self.records, self._truth, left, total, clocks_lie=self.mix.clocks_lie)
        if self._operator is not None:
            self.checked |= {f"operator's {name}": often for name, often in self._operator.done.items()}
            if self._operator.wrong:
                raise Violation(f"an operation failed as none may: {self._operator.wrong[0]}")
            restored = [*self._operator.restored]
            for path in self._operator.backups[-1:]:
                restored.append(restore_beside(path, self.folder / BESIDE / "last", BESIDE))
            self.seen[UPGRADED] = self._operator.done["upgrade"]
            self.seen[RESTORED] = self._operator.done["restore"]
            self.checked["restored"] = sum(check_restored(each, self._truth.changes) for each in restored)
        self.seen[EXPIRED] = expired(self.records)
        self.seen[REPLACED] = self._replacements(cluster)
        self.seen[PROGRESS] = questions(self.records)
        self.seen[GCS_DIED] = sum(entry.bit for entry in self.caused if entry.name == kill_gcs.__name__)
        if self._layer is not None:
            self.seen[READS_FAILED], self.seen["of these after half"] = self._layer.refused_reads()
        kinds = [kind for kind, _ in self._kinds.values()]
        check_recoveries(self.caused)
        check_that_it_counts(self.caused, kinds, self.mix.must | ({PROGRESS} if self.proxies else set()), self.seen)

    def _replacements(self, cluster: Any) -> int:
        return sum(" in place of m" in event.text for event in cluster.events(timeout=60))

    # -- a bad end ----------------------------------------------------------------------------------------------------

    def _keep(self, error: BaseException) -> None:
        """Keep all that may tell why, and judge what there is."""
        evidence = Evidence(self.folder)
        cluster = getattr(getattr(self, "_field", None), "cluster", None)
        questions = questions_to(cluster) if cluster is not None else []
        missing = evidence.keep(
            error,
            [
                ("processes", evidence.processes),
                ("stacks", lambda: evidence.stacks(self._scratch / "stacks")),
                ("status", lambda: evidence.status(questions)),
                ("the store's history", lambda: self._read_truth(15.0)),
                ("its file", lambda: write_changes(self._truth, self.folder / "changes.jsonl")),
                ("history", self._gather),
                ("safety", self._judge_what_there_is),
                ("files", lambda: evidence.files(self.folder / "data", self._mounts)),
                ("logs", lambda: evidence.logs(self._scratch / "ray" / "session_latest" / "logs")),
            ],
        )
        print(f"evidence: {self.folder}" + (f"; not kept: {missing}"[:500] if missing else ""), flush=True)

    def _gather(self) -> None:
        now = time.monotonic_ns()  # the workers go on
        self.records = gather(sorted(self._journals.iterdir()), self.folder / "history.jsonl", now)
        count(self.caused, self.records)

    def _judge_what_there_is(self) -> None:
        holds, lines = safety(self.records, self._truth, clocks_lie=self.mix.clocks_lie)
        said = ["safety: no promise is seen to be broken" if holds else "safety: BROKEN", *lines]
        (self.folder / "safety.txt").write_text("\n".join(said) + "\n")
        print("\n  ".join(said)[:3000], flush=True)

    def table(self) -> str:
        """Faults caused, operations done, and what was checked."""
        return table(self.caused, self.records, self.checked, self.seen)

    def _finish(self) -> list[str]:
        """Have the workers end; what of them hangs."""
        actors = [actor for actor, _ in self._field.workers.values()]
        hanging: list[list[str]] = ray.get([actor.finish.remote(60.0) for actor in actors], timeout=120)
        for actor in actors:
            ray.kill(actor)
        return [each for some in hanging for each in some]

    def _hashes(self, cluster: Any) -> dict[str, str]:
        """Each member's content hash, once all have applied the same; else nothing."""
        found = self._contents(cluster)
        same = len({index for index, _ in found.values()}) == 1 and len(found) >= self.members
        return {name: digest for name, (_, digest) in found.items()} if same else {}

    def _contents(self, cluster: Any) -> dict[str, tuple[int, str]]:
        return {member.name: content(member) for member in cluster.members() if member.actor is not None}


NOT_NOW = (NotNow, OSError, KeeperError, ray.exceptions.RayError)
"""How a fault may fail to happen, mostly because another one is on: a process is dead already, a disk read-only."""


def main(kind: type[Campaign] = Campaign, target: str = "chaos", arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--folder", type=Path, default=Path("chaos-runs"))
    parser.add_argument("--only", default="", help="names of faults, with commas between")
    parser.add_argument("--proxies", type=int, default=2, help="through which part of the work goes as etcd's")
    parser.add_argument("--lanes", choices=("on", "off"), default="on", help="off: all goes by actor calls")
    parser.add_argument("--mix", choices=sorted(MIXES), default="short", help="what the campaign is made of")
    options = parser.parse_args(arguments)
    seed = options.seed if options.seed is not None else random.randrange(10**6)
    folder = options.folder.resolve() / f"seed-{seed}"
    command = f"make {target} MINUTES={options.minutes:g} SEED={seed}"
    command += f"{' LANES=off' if options.lanes == 'off' else ''}{'' if options.proxies else ' PROXIES=0'}"
    command += "" if options.mix == "short" else f" MIX={options.mix}"
    only = [name for name in options.only.split(",") if name]
    print(f"{command}\nhistory: {folder / 'history.jsonl'}", flush=True)
    campaign = kind(options.minutes, seed, folder, only, options.lanes, options.proxies, MIXES[options.mix])
    status, last = 0, f"no promise was broken; {folder / 'history.jsonl'}"
    try:
        campaign.run()
    except (Violation, AssertionError, KeeperError) as error:
        traceback.print_exc()
        status, last = 1, f"BROKEN: {error}"
    except Inconclusive as error:
        status, last = 2, f"INCONCLUSIVE, the faults did not bite: {error}"
    except Exception as error:
        traceback.print_exc()
        status, last = 3, f"FAILED, the campaign itself: {error!r}"
    print(campaign.table())
    if status:
        print(f"again: {command}")
    else:
        for data in ("data", "durable", BESIDE):
            shutil.rmtree(folder / data, ignore_errors=True)
    last = " ".join(last.split())[:500]
    note_run(options.folder.resolve(), target, options.mix, seed, options.minutes, status, last)
    print(last, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
