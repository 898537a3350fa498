"""One member's data on disk: its layout, and the rules for creating, opening and replacing its parts.

    identity.json   cluster and member; written last, so a folder with one is complete
    log/            the Raft log, in segments
    CURRENT         the name of the folder that holds the state
    state-N/        the state; N grows with each state that replaces another
    membership.json a hint: the members as last applied (``membership_note``)
    damaged.json    names a state that was found damaged, and says why
    incoming/ outgoing/   snapshots being received and sent; receiving continues after a restart

Only ``create`` and ``create_from_state`` make logs and states (bootstrap, join, restore). A damaged or missing log
means that the vote may be gone, so the member may not come back under its id. A damaged state can be rebuilt:
``open(rebuild=True)`` puts an empty state in its place. If the log still holds everything from its first entry on, it
is simply applied again. Otherwise the new state is ``lost``: the member keeps its promises by its log, and waits for a
snapshot (``raft/install_snapshot.py``). The damaged state stays until another is complete: it may be the last copy.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress

import msgspec
from msgspec.structs import replace

from ..errors import ClusterMismatch, DataCorrupted, NoSpace
from ..limits import LOG_SEGMENT_BYTES, Limits, Settings, encode_settings
from ..raft.messages import Configuration, SnapshotMeta
from ..schema.member_record import MemberRecord
from ..schema.portable import Portable
from .engine.interface import Disk
from .log.raft_log import RaftLog
from .membership_note import note_of, write_note
from .snapshot_file import SnapshotSink, SnapshotSource
from .state.machine import State
from .state.stored_state import FormatUnknown

DATA_DIR_FORMAT = 2
"""Version of the layout and of everything in it."""

_IDENTITY, _CURRENT, _DAMAGED = "identity.json", "CURRENT", "damaged.json"


_encode = msgspec.json.Encoder().encode


class DataMissing(DataCorrupted):
    """The folder holds no member's data."""


class LogDamaged(DataCorrupted):
    """The Raft log is damaged or missing: the member's promises may be gone, so it may not serve under its id."""


class StateDamaged(DataCorrupted):
    """The state is damaged or missing, or ends before the log begins; the log is intact."""


class FirstMember(msgspec.Struct, frozen=True):
    """A member of the first configuration."""

    id: int
    name: str
    pin: str = ""
    """The Ray resource that pins it to its node."""


class Identity(Portable, frozen=True):
    """The cluster and member that the data belongs to. Never changes."""

    cluster_name: str
    cluster: int
    """Cluster id, drawn at random at bootstrap."""
    member: int
    name: str
    members: tuple[FirstMember, ...] = ()
    """The voters of the first configuration, before any entry of the log; the same on every member."""
    settings: Settings = Settings()
    """The settings before any entry of the log; the same on every member."""
    format: int = DATA_DIR_FORMAT
    restored: int = 0
    """The log index of the backup that the cluster was restored from; 0 for a cluster that began empty."""


class _Damage(msgspec.Struct, frozen=True):
    """A state that must not be opened again."""

    state: str
    why: str


class _DirFormat(msgspec.Struct, frozen=True):
    format: int


class DataDir:
    """The opened data of one member. One thread owns it."""

    def __init__(self, disk: Disk, path: str, identity: Identity, log: RaftLog, state: State, number: int) -> None:
        self._disk = disk
        self.path = path
        self.identity = identity
        self.log = log
        self.state = state
        """The state machine; ``install_snapshot`` replaces it."""
        self.serve_from = 0
        """A rebuilt state may serve only after it has applied this entry; 0 for a state that was not damaged."""
        self._number = number
        self._snapshots = 0
        self._noted: tuple[Configuration, dict[int, MemberRecord]] | None = None

    # -- creating and opening ------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        disk: Disk,
        path: str,
        identity: Identity,
        *,
        cache_bytes: int = Limits().log_cache_bytes,
        segment_bytes: int = LOG_SEGMENT_BYTES,
    ) -> DataDir:
        """Create the data of a new member. Leftovers of an interrupted creation are removed.

        Raises:
            ClusterMismatch: the folder already holds a member's data.
        """
        if disk.exists(f"{path}/{_IDENTITY}"):
            raise ClusterMismatch(f"{path} already holds a member's data")
        for name in disk.list(path):
            disk.remove(f"{path}/{name}")
        disk.make_folder(path)
        configuration = Configuration(voters=tuple(sorted(member.id for member in identity.members)))
        log = cls._create_log(disk, path, identity, cache_bytes, segment_bytes)
        state = State.create(disk, f"{path}/state-1", configuration, encode_settings(identity.settings))
        disk.replace(f"{path}/{_CURRENT}", b"state-1")
        disk.replace(f"{path}/{_IDENTITY}", msgspec.json.format(msgspec.json.encode(identity)))
        return cls(disk, path, identity, log, state, 1)

    @staticmethod
    def create_from_state(
        disk: Disk, path: str, identity: Identity, configuration: Configuration, index: int, term: int
    ) -> None:
        """Create a member's data around a restored state, ``state-1``. The log begins after (index, term).

        Args:
            configuration: the first configuration, as in the state.
        """
        log = DataDir._create_log(disk, path, identity, Limits().log_cache_bytes, LOG_SEGMENT_BYTES)
        try:
            log.reset(index, term, configuration)
        finally:
            log.close()
        disk.replace(f"{path}/{_CURRENT}", b"state-1")
        disk.replace(f"{path}/{_IDENTITY}", msgspec.json.format(msgspec.json.encode(identity)))

    @staticmethod
    def _create_log(disk: Disk, path: str, identity: Identity, cache_bytes: int, segment_bytes: int) -> RaftLog:
        """The log's number is drawn from cluster and member, so that no other member's log has it."""
        number = int.from_bytes(hashlib.sha256(f"{identity.cluster} {identity.member}".encode()).digest()[:8], "little")
        return RaftLog.create(disk, f"{path}/log", cache_bytes=cache_bytes, number=number, segment_bytes=segment_bytes)

    @property
    def never_served(self) -> bool:
        """Whether a member restored from a backup has made no promise since: no vote, no entry, no newer term."""
        log, began = self.log, self.identity.restored
        hard = log.hard_state
        return bool(began) and (
            (log.last_index(), hard.commit, hard.vote, hard.term) == (began, began, 0, log.term(log.last_index()))
        )

    @staticmethod
    def read_identity(disk: Disk, path: str) -> Identity | None:
        """The cluster and member that a folder's data belongs to; ``None`` if it holds none, or its creation was never
        finished.

        Raises:
            FormatUnknown: it was written by another version of RayKeeper.
            DataCorrupted: it cannot be read.
        """
        try:
            data = disk.read(f"{path}/{_IDENTITY}")
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            format = msgspec.json.decode(data, type=_DirFormat).format
            if format != DATA_DIR_FORMAT:
                raise FormatUnknown(
                    f"{path} has format {format}, and this version of RayKeeper knows {DATA_DIR_FORMAT}: "
                    "use the version that wrote it, or make a backup with that one and restore it with this one"
                )
            return msgspec.json.decode(data, type=Identity)
        except msgspec.MsgspecError as error:
            raise DataCorrupted(f"{path}/{_IDENTITY} cannot be read: {error}") from error

    @classmethod
    def open(
        cls,
        disk: Disk,
        path: str,
        *,
        cache_bytes: int = Limits().log_cache_bytes,
        segment_bytes: int = LOG_SEGMENT_BYTES,
        rebuild: bool = False,
    ) -> DataDir:
        """Open a member's data, make log and state consistent, and remove what a crash may have left.

        The log comes first: without it the member may not start, while a state can be rebuilt.

        Args:
            rebuild: put an empty state in place of a damaged one, if the log is intact.

        Raises:
            DataMissing, LogDamaged, StateDamaged: the member may not serve with this data.
            FormatUnknown: it was written by another version of RayKeeper.
            NoSpace: the disk is full. Nothing was changed, and what was begun is removed.
            Unavailable: another process has it open.
        """
        identity = cls.read_identity(disk, path)
        if identity is None:
            raise DataMissing(f"{path} holds no member's data")
        try:
            log = RaftLog.open(disk, f"{path}/log", cache_bytes=cache_bytes, segment_bytes=segment_bytes)
        except DataCorrupted as error:
            raise LogDamaged(f"the Raft log is damaged or missing: {error}") from error
        try:
            try:
                data_dir = cls._open_reconciled(disk, path, identity, log)
            except StateDamaged as error:
                if not rebuild:
                    raise
                data_dir = cls._start_rebuild(disk, path, identity, log, str(error))
        except BaseException:
            log.close()
            raise
        try:
            if data_dir.state.lost or disk.exists(f"{path}/{_DAMAGED}"):
                data_dir.serve_from = max(1, log.hard_state.commit)
            data_dir._remove_leftovers()
        except BaseException:
            data_dir.close()
            raise
        return data_dir

    @classmethod
    def _open_reconciled(cls, disk: Disk, path: str, identity: Identity, log: RaftLog) -> DataDir:
        state, number = cls._open_state(disk, path)
        data_dir = cls(disk, path, identity, log, state, number)
        try:
            data_dir._reconcile()
        except BaseException:
            state.close()
            raise
        return data_dir

    @classmethod
    def _start_rebuild(cls, disk: Disk, path: str, identity: Identity, log: RaftLog, why: str) -> DataDir:
        """Put an empty state in place of the damaged one.

        First it is noted durably that the old state is damaged, and CURRENT is changed last. So a crash in between
        leaves a state that is known to be damaged, and the next start tries again.
        """
        numbers = [int(name[6:]) for name in disk.list(path) if name.startswith("state-") and name[6:].isdigit()]
        number = max(numbers, default=0) + 1
        if cls._damage(disk, path) is None:
            disk.replace(f"{path}/{_DAMAGED}", _encode(_Damage(f"state-{max(numbers, default=0)}", why)))
        if log.first_index() == 1:
            configuration = Configuration(voters=tuple(sorted(member.id for member in identity.members)))
            lost = ""
        else:
            configuration, lost = log.configuration or Configuration(), why
        settings = encode_settings(identity.settings)
        try:
            state = State.create(disk, f"{path}/state-{number}", configuration, settings, lost=lost)
            try:
                disk.replace(f"{path}/{_CURRENT}", f"state-{number}".encode("ascii"))
            except BaseException:
                state.close()
                raise
        except NoSpace:  # it is tried again and again
            disk.remove(f"{path}/state-{number}")
            raise
        return cls(disk, path, identity, log, state, number)

    @staticmethod
    def _damage(disk: Disk, path: str) -> _Damage | None:
        try:
            return msgspec.json.decode(disk.read(f"{path}/{_DAMAGED}"), type=_Damage)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None

    def mark_state_damaged(self, why: str) -> None:
        """Note durably that the state is damaged, although it can be opened: it must never be opened again."""
        if not self.state.lost:
            self._disk.replace(f"{self.path}/{_DAMAGED}", _encode(_Damage(f"state-{self._number}", why)))

    def finish_rebuild(self) -> None:
        """The rebuilt state has durably applied everything that the damaged one had: the damaged one may be removed."""
        self.serve_from = 0
        self._disk.remove(f"{self.path}/{_DAMAGED}")
        self._remove_leftovers()

    @property
    def exists(self) -> bool:
        """Whether the folder still exists: open files outlive the removal of their names, so writes would not fail."""
        return self._disk.exists(f"{self.path}/{_IDENTITY}")

    def free_bytes(self) -> int:
        """Bytes that this process may still write to the disk."""
        return self._disk.free_bytes(self.path)

    @staticmethod
    def _open_state(disk: Disk, path: str) -> tuple[State, int]:
        """Open the state that CURRENT names, with its number. One that was marked as damaged is never opened, even if
        it could be."""
        try:
            current = disk.read(f"{path}/{_CURRENT}").decode("ascii")
            number = int(current.removeprefix("state-"))
            damage = DataDir._damage(disk, path)
            if damage is not None and damage.state == current:
                raise StateDamaged(damage.why)
            return State.open(disk, f"{path}/{current}"), number
        except (FileNotFoundError, ValueError) as error:
            raise StateDamaged(f"{path}/{_CURRENT} is missing or damaged: {error}") from error
        except (StateDamaged, FormatUnknown):
            raise
        except DataCorrupted as error:
            raise StateDamaged(f"the state is damaged or missing: {error}") from error

    def _reconcile(self) -> None:
        """Make log and state consistent after a crash.

        They are separate, so a crash may leave them apart in three ways. The state ends before the log
        begins: entries are gone for good, and the state must be rebuilt. The log does not contain the state's last
        entry: a snapshot was made current, and the crash came before the log was reset; the reset is repeated. The hard
        state's commit index lags the applied index: it is raised, and with that the pair is as if synced together.
        """
        log, state = self.log, self.state
        if state.lost:
            return
        applied, term = state.applied_index, state.applied_term
        if applied < log.first_index() - 1:
            raise StateDamaged(
                f"{self.path}: the state ends at {applied}, but the log begins at {log.first_index()}: "
                "entries between are gone"
            )
        if applied > log.last_index() or log.term(applied) != term:
            log.reset(applied, term, state.configuration)
        hard = log.hard_state
        if hard.commit < applied:
            # The commit index is written with every batch, but not synced by itself; what is applied is
            # committed.
            log.append([], replace(hard, commit=applied), sync=True)
        if not log.first_index() - 1 <= applied <= log.hard_state.commit <= log.last_index():
            raise LogDamaged(f"{self.path}: log and state differ: {log.hard_state}, applied {applied}")

    def _remove_leftovers(self) -> None:
        """Remove all that a crash may have left: other states, but never the damaged one, and half-written files."""
        keep = {_IDENTITY, _CURRENT, "log", f"state-{self._number}"}
        damage = self._damage(self._disk, self.path)
        if damage is not None:
            keep.add(damage.state)
        for name in self._disk.list(self.path):
            if name not in keep and name.startswith(("state-", "outgoing", _IDENTITY, _CURRENT)):
                self._disk.remove(f"{self.path}/{name}")

    def write_membership_note(self) -> None:
        """Write down the members and where they live, for a launch from this data. Nothing else relies on it."""
        state = self.state
        known = (state.configuration, state.members.by_id)
        if not state.lost and (self._noted is None or self._noted[0] != known[0] or self._noted[1] is not known[1]):
            with suppress(OSError, NoSpace):
                write_note(self._disk, self.path, note_of(state))
                self._noted = known

    def close(self) -> None:
        """Release log and state; waits for the readers of the state."""
        try:
            self.state.close()
        finally:
            self.log.close()

    # -- snapshots ----------------------------------------------------------------------------------------------------

    def new_snapshot_source(self) -> SnapshotSource:
        """A folder for a snapshot to be sent: write a checkpoint to its ``source``, then ``pack`` it."""
        self._snapshots += 1
        folder = f"{self.path}/outgoing/{self._snapshots}"
        self._disk.remove(folder)
        self._disk.make_folder(folder)
        return SnapshotSource(self._disk, folder)

    def new_snapshot_sink(self, meta: SnapshotMeta) -> SnapshotSink:
        """A folder for a snapshot that is about to arrive. An earlier one that is incomplete is dropped."""
        self._snapshots += 1
        self._disk.remove(f"{self.path}/incoming")
        folder = f"{self.path}/incoming/{self._snapshots}"
        return SnapshotSink(self._disk, folder, f"{self.path}/state-{self._number + self._snapshots}", meta)

    def find_snapshot_sink(self) -> SnapshotSink | None:
        """The incomplete snapshot that an earlier process was receiving, if receiving it can continue."""
        for name in self._disk.list(f"{self.path}/incoming"):
            self._snapshots += 1
            target = f"{self.path}/state-{self._number + self._snapshots}"
            left = SnapshotSink.resume(self._disk, f"{self.path}/incoming/{name}", target)
            if left is not None and (self.state.lost or left.meta.index > self.state.applied_index):
                return left
        self._disk.remove(f"{self.path}/incoming")
        return None

    def install_snapshot(self, sink: SnapshotSink, *, keep_log: bool = False) -> State:
        """Make an unpacked snapshot the state: name it in CURRENT, then reset the log. Waits for readers of the old
        state.

        CURRENT comes first: a crash between the two leaves a state that is newer than the log, which ``open`` repairs.
        The other order could leave a log that begins after the state ends, and that cannot be repaired.

        Args:
            keep_log: the log holds the snapshot's last entry, on disk, and the entries after it are kept.

        Raises:
            ValueError: it is older than the state, or the log does not continue it. Nothing was changed.
        """
        new = sink.state
        if new is None:
            raise ValueError("the snapshot is not unpacked")
        index, term, log = new.applied_index, new.applied_term, self.log
        if not self.state.lost and index <= self.state.applied_index:
            raise ValueError(f"a snapshot of {index} would take back a state of {self.state.applied_index}")
        if keep_log and not (log.first_index() - 1 <= index <= log.last_index() and log.term(index) == term):
            raise ValueError(
                f"the log does not hold entry {index} of term {term}, and so does not continue the snapshot"
            )
        name = sink.target.rsplit("/", 1)[1]
        self._disk.replace(f"{self.path}/{_CURRENT}", name.encode("ascii"))
        if keep_log:
            hard = self.log.hard_state
            if hard.commit < new.applied_index:
                self.log.append([], replace(hard, commit=new.applied_index), sync=True)
        else:
            self.log.reset(new.applied_index, new.applied_term, new.configuration)
        old, self.state = self.state, new
        sink.state = None
        old.close()
        self._disk.remove(f"{self.path}/state-{self._number}")
        self._number = int(name.removeprefix("state-"))
        return new
