"""One member's data on disk, and the rules by which it is made, opened and swapped.

    identity.json   who this is; written last, so a folder with one is complete
    log/            the Raft log
    CURRENT         the name of the folder that holds the state
    state-N/        the state; N grows with each that replaces it
    membership.json who took part when this was last looked at
    damaged.json    names the state that was found damaged, and says why
    incoming/ outgoing/   snapshots under way; what has come of one is gone on with after a restart

Only ``create`` makes databases (bootstrap and join). A damaged or missing log means that the vote may be gone, so the
member may not come back under its id. A damaged state can be had again: ``open(rebuild=True)`` puts an empty one in
its place. If the log still holds everything from its first entry on, it is simply applied anew. Otherwise the new state
is ``lost``: the member keeps its promises by its log, and waits for a snapshot (``actors.raft.snapshots``). The damaged
one stays until another is in its place: it may be the last that there is.
"""

from __future__ import annotations

from contextlib import suppress

import msgspec
from msgspec.structs import replace

from ..actors.raft.messages import Configuration, SnapshotMeta
from ..errors import ClusterMismatch, DataCorrupted
from ..limits import Limits, Settings, encode_settings
from .checkpoint import Incoming, Outgoing
from .engine import Disk
from .members import Description
from .membership_note import note_of, write_note
from .portable import Portable
from .raft_log import RaftLog
from .state import FormatUnknown, State

FORMAT = 1
"""Version of the layout and of everything in it."""

_IDENTITY, _CURRENT, _DAMAGED = "identity.json", "CURRENT", "damaged.json"


_encode = msgspec.json.Encoder().encode


class DataMissing(DataCorrupted):
    """There is no member's data in the folder."""


class LogDamaged(DataCorrupted):
    """The Raft log is damaged or missing: the member's promises may be gone, it may not serve under its id."""


class StateDamaged(DataCorrupted):
    """The state is damaged or missing, or does not reach the log; the log is intact."""


class FirstMember(msgspec.Struct, frozen=True):
    """A member of the first configuration."""

    id: int
    name: str
    pin: str = ""
    """The resource that pins it to its place."""


class Identity(Portable, frozen=True):
    """Who the data belongs to. Never changes."""

    cluster_name: str
    cluster: int
    """Cluster id, drawn once."""
    member: int
    name: str
    members: tuple[FirstMember, ...] = ()
    """The voters of the first configuration: before any entry of the log, on every member alike."""
    settings: Settings = Settings()
    """The settings before any entry of the log, on every member alike."""
    format: int = FORMAT
    restored: int = 0
    """The log index of the backup that its first state came from; 0 for a cluster that began empty."""


class _Damage(msgspec.Struct, frozen=True):
    """A state that must not be opened again."""

    state: str
    why: str


class _Format(msgspec.Struct, frozen=True):
    format: int


class MemberFolder:
    """The opened data of one member. One thread owns it."""

    def __init__(self, disk: Disk, path: str, identity: Identity, log: RaftLog, state: State, number: int) -> None:
        self._disk = disk
        self.path = path
        self.identity = identity
        self.log = log
        self.state = state
        """The state machine; ``install`` replaces it."""
        self.serve_from = 0
        """The state is not what it was before it was damaged until it has applied this entry; 0: it never was."""
        self._number = number
        self._images = 0
        self._noted: tuple[Configuration, dict[int, Description]] | None = None

    # -- making and opening -------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls, disk: Disk, path: str, identity: Identity, *, cache_bytes: int = Limits().log_cache_bytes
    ) -> MemberFolder:
        """Make the data of a new member. Leftovers of a creation that was interrupted are removed.

        Raises:
            ClusterMismatch: there is a member's data already.
        """
        if disk.exists(f"{path}/{_IDENTITY}"):
            raise ClusterMismatch(f"{path} already holds a member's data")
        for name in disk.list(path):
            disk.remove(f"{path}/{name}")
        disk.make_folder(path)
        configuration = Configuration(voters=tuple(sorted(member.id for member in identity.members)))
        log = RaftLog.create(disk, f"{path}/log", cache_bytes=cache_bytes)
        state = State.create(disk, f"{path}/state-1", configuration, encode_settings(identity.settings))
        disk.replace(f"{path}/{_CURRENT}", b"state-1")
        disk.replace(f"{path}/{_IDENTITY}", msgspec.json.format(msgspec.json.encode(identity)))
        return cls(disk, path, identity, log, state, 1)

    @staticmethod
    def adopt(disk: Disk, path: str, identity: Identity, configuration: Configuration, index: int, term: int) -> None:
        """Make a member of a folder that holds nothing but a state as ``state-1``: the log begins behind (index, term).

        Args:
            configuration: the first one, which stands in the state.
        """
        log = RaftLog.create(disk, f"{path}/log", cache_bytes=Limits().log_cache_bytes)
        try:
            log.reset(index, term, configuration)
        finally:
            log.close()
        disk.replace(f"{path}/{_CURRENT}", b"state-1")
        disk.replace(f"{path}/{_IDENTITY}", msgspec.json.format(msgspec.json.encode(identity)))

    @property
    def never_served(self) -> bool:
        """Whether a member that came from a backup has promised nothing since: no vote, no entry, no other term."""
        log, began = self.log, self.identity.restored
        hard = log.hard_state
        return bool(began) and (
            (log.last_index(), hard.commit, hard.vote, hard.term) == (began, began, 0, log.term(log.last_index()))
        )

    @staticmethod
    def read_identity(disk: Disk, path: str) -> Identity | None:
        """Who the data in a folder belongs to; ``None`` if there is none, or its creation was never finished.

        Raises:
            DataCorrupted: it cannot be read, or is of a format that this version does not know.
        """
        try:
            data = disk.read(f"{path}/{_IDENTITY}")
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            format = msgspec.json.decode(data, type=_Format).format
            if format != FORMAT:
                raise DataCorrupted(f"{path} has format {format}; this version of RayKeeper knows {FORMAT}")
            return msgspec.json.decode(data, type=Identity)
        except msgspec.MsgspecError as error:
            raise DataCorrupted(f"{path}/{_IDENTITY} cannot be read: {error}") from error

    @classmethod
    def open(
        cls, disk: Disk, path: str, *, cache_bytes: int = Limits().log_cache_bytes, rebuild: bool = False
    ) -> MemberFolder:
        """Open a member's data by the rules of the disk, and clear away what a crash may have left.

        Args:
            rebuild: put an empty state in the place of a damaged one, if the log is intact.

        Raises:
            DataMissing, LogDamaged, StateDamaged: it may not serve as it is.
            FormatUnknown: it was written by another version of RayKeeper.
            Unavailable: another process has it open.
        """
        identity = cls.read_identity(disk, path)
        if identity is None:
            raise DataMissing(f"{path} holds no member's data")
        try:
            log = RaftLog.open(disk, f"{path}/log", cache_bytes=cache_bytes)
        except DataCorrupted as error:
            raise LogDamaged(f"the Raft log is damaged or missing: {error}") from error
        try:
            try:
                folder = cls._open_whole(disk, path, identity, log)
            except StateDamaged as error:
                if not rebuild:
                    raise
                folder = cls._begin_rebuild(disk, path, identity, log, str(error))
        except BaseException:
            log.close()
            raise
        if folder.state.lost or disk.exists(f"{path}/{_DAMAGED}"):
            folder.serve_from = max(1, log.hard_state.commit)
        folder._clear_away()
        return folder

    @classmethod
    def _open_whole(cls, disk: Disk, path: str, identity: Identity, log: RaftLog) -> MemberFolder:
        state, number = cls._open_state(disk, path)
        folder = cls(disk, path, identity, log, state, number)
        try:
            folder._reconcile()
        except BaseException:
            state.close()
            raise
        return folder

    @classmethod
    def _begin_rebuild(cls, disk: Disk, path: str, identity: Identity, log: RaftLog, why: str) -> MemberFolder:
        """An empty state in the place of the damaged one. A crash on the way leaves a damaged one."""
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
        state = State.create(disk, f"{path}/state-{number}", configuration, settings, lost=lost)
        try:
            disk.replace(f"{path}/{_CURRENT}", f"state-{number}".encode("ascii"))
        except BaseException:
            state.close()
            raise
        return cls(disk, path, identity, log, state, number)

    @staticmethod
    def _damage(disk: Disk, path: str) -> _Damage | None:
        try:
            return msgspec.json.decode(disk.read(f"{path}/{_DAMAGED}"), type=_Damage)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None

    def condemn_state(self, why: str) -> None:
        """Note durably that the state is damaged, though it can be opened: it must not be, ever again."""
        if not self.state.lost:
            self._disk.replace(f"{self.path}/{_DAMAGED}", _encode(_Damage(f"state-{self._number}", why)))

    def rebuilt(self) -> None:
        """The state has caught up with what it was before it was damaged, durably: the damaged one may go."""
        self.serve_from = 0
        self._disk.remove(f"{self.path}/{_DAMAGED}")
        self._clear_away()

    @property
    def is_there(self) -> bool:
        """Whether the folder is still where it was: files that are open outlive the removal of their names."""
        return self._disk.exists(f"{self.path}/{_IDENTITY}")

    @staticmethod
    def _open_state(disk: Disk, path: str) -> tuple[State, int]:
        try:
            current = disk.read(f"{path}/{_CURRENT}").decode("ascii")
            number = int(current.removeprefix("state-"))
            damage = MemberFolder._damage(disk, path)
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
        """Make log and state fit together again."""
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
            # A snapshot was made current, and the crash came before the log was reset.
            log.reset(applied, term, state.configuration)
        hard = log.hard_state
        if hard.commit < applied:
            # The commit index is written with every batch but not synced for its own sake; the state knows better.
            log.append([], replace(hard, commit=applied), sync=True)

    def _clear_away(self) -> None:
        keep = {_IDENTITY, _CURRENT, "log", f"state-{self._number}"}
        damage = self._damage(self._disk, self.path)
        if damage is not None:
            keep.add(damage.state)
        for name in self._disk.list(self.path):
            if name not in keep and name.startswith(("state-", "outgoing", _IDENTITY, _CURRENT)):
                self._disk.remove(f"{self.path}/{name}")

    def note_membership(self) -> None:
        """Leave a note of who takes part and where, for a launch over this data; it is worth no more than that."""
        state = self.state
        known = (state.configuration, state.members.by_id)
        if not state.lost and (self._noted is None or self._noted[0] != known[0] or self._noted[1] is not known[1]):
            with suppress(OSError):
                write_note(self._disk, self.path, note_of(state))
                self._noted = known

    def close(self) -> None:
        """Release both databases; waits for the readers of the state."""
        self.state.close()
        self.log.close()

    # -- snapshots ----------------------------------------------------------------------------------------------------

    def new_outgoing(self) -> Outgoing:
        """A place for an image of the state: write a checkpoint to its ``source``, then ``pack`` it."""
        self._images += 1
        folder = f"{self.path}/outgoing/{self._images}"
        self._disk.remove(folder)
        self._disk.make_folder(folder)
        return Outgoing(self._disk, folder)

    def new_incoming(self, meta: SnapshotMeta) -> Incoming:
        """A place for an image that is about to arrive."""
        self._images += 1
        self._disk.remove(f"{self.path}/incoming")
        folder = f"{self.path}/incoming/{self._images}"
        return Incoming(self._disk, folder, f"{self.path}/state-{self._number + self._images}", meta)

    def left_incoming(self) -> Incoming | None:
        """What an earlier process has left of an image that was arriving, if it can be gone on with."""
        for name in self._disk.list(f"{self.path}/incoming"):
            self._images += 1
            target = f"{self.path}/state-{self._number + self._images}"
            left = Incoming.find(self._disk, f"{self.path}/incoming/{name}", target)
            if left is not None and (self.state.lost or left.meta.index > self.state.applied_index):
                return left
        self._disk.remove(f"{self.path}/incoming")
        return None

    def install(self, incoming: Incoming, *, keep_log: bool = False) -> State:
        """Make an unpacked snapshot the state: name it in CURRENT, reset the log. Waits for readers of the old one.

        A crash between the two leaves a log that does not fit the state; ``open`` then resets it.

        Args:
            keep_log: the log holds the snapshot's last entry, on disk, and goes on behind it.
        """
        new = incoming.state
        if new is None:
            raise ValueError("the snapshot is not unpacked")
        name = incoming.target.rsplit("/", 1)[1]
        self._disk.replace(f"{self.path}/{_CURRENT}", name.encode("ascii"))
        if keep_log:
            hard = self.log.hard_state
            if hard.commit < new.applied_index:
                self.log.append([], replace(hard, commit=new.applied_index), sync=True)
        else:
            self.log.reset(new.applied_index, new.applied_term, new.configuration)
        old, self.state = self.state, new
        incoming.state = None
        old.close()
        self._disk.remove(f"{self.path}/state-{self._number}")
        self._number = int(name.removeprefix("state-"))
        return new
