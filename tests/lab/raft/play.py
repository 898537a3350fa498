"""Plays: scenario scripts with the expected trace under each line, acted out by a :class:`Cluster`.

A play is a text file of scenes separated by blank lines. A scene is comment lines (``#``), one command, a line of four
dashes, and what is to be seen. ``deliver`` shows each message as it arrives; every command shows who changed its role,
what was applied, and which reads were answered. Commands:

    cluster 1 2 3 [setting=value ...]   begin; voters, and settings of the nodes
    disk 1 term=6 [vote=0] [commit=2] log=1,1,4,4,5     what member 1 finds at its start: an entry of each term
    add 4                               a new member that knows nothing
    tick 1 [n] | tick all [n] | elect 1 | campaign 1
    timeout 2                           the others forget their leader, and member 2 is the first to time out
    inject Heartbeat sender=1 to=2 term=3 ...           any message, as if it had been sent
    propose 1 x [y ...] | read 2 7 | transfer 1 2
    change 1 add-voter 4 remove 2 add-learner 5         in one change; no steps: leave the joint configuration
    deliver [1->2 ...] [kind=AppendEntries] [n]          what is on its way now, in order; n messages at most
    run                                 deliver until nothing is left, without showing the messages
    drop [1->2 ...] [kind=...] | repeat [1->2 ...] [kind=...] | reverse | network
    partition 1 2 | 3 ; heal ; crash 1 ; restart 1
    snapshot 1 [id] | trim 1 5 | damage on
    log [1 ...] | status [1 ...]

``RAFT_PLAYS=rewrite pytest tests/unit/raft/test_plays.py`` writes what is seen into the files, for reading before it is
believed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from lab.raft.cluster import Cluster
from raykeeper.raft import (
    ChangeKind,
    Configuration,
    Entry,
    EntryKind,
    HardState,
    MemberChange,
    Message,
    NotLeader,
    ProposalRefused,
    decode_change,
)
from raykeeper.raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    InstallSnapshotResponse,
    ReadIndex,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
)

_STEPS = {"add-voter": ChangeKind.ADD_VOTER, "add-learner": ChangeKind.ADD_LEARNER, "remove": ChangeKind.REMOVE}


@dataclass
class Scene:
    comments: list[str]
    command: str
    expected: list[str]


def read_play(path: Path) -> list[Scene]:
    scenes = []
    for block in re.split(r"\n\s*\n", path.read_text().strip()):
        lines = block.splitlines()
        comments = [line for line in lines if line.startswith("#")]
        rest = [line for line in lines if not line.startswith("#")]
        if not rest:
            scenes.append(Scene(comments, "", []))
            continue
        assert len(rest) == 1 or rest[1] == "----", f"{path.name}: no ---- under {rest[0]!r}"
        scenes.append(Scene(comments, rest[0], rest[2:]))
    return scenes


def write_play(path: Path, scenes: list[Scene]) -> None:
    blocks = []
    for scene in scenes:
        lines = list(scene.comments)
        if scene.command:
            lines += [scene.command, "----", *scene.expected]
        blocks.append("\n".join(lines))
    path.write_text("\n\n".join(blocks) + "\n")


def entry_text(entry: Entry) -> str:
    if entry.kind is EntryKind.CONFIGURATION:
        steps = [
            f"{step.kind.name.lower().replace('_', '-')} {step.member}" for step in decode_change(entry.data).changes
        ]
        data = f"({', '.join(steps) or 'leave joint'})"
    else:
        data = entry.data.decode() or "(no-op)"
        data = f"{data[:4]}*{len(data)}" if len(data) > 12 else data
    return f"{entry.index}/{entry.term} {data}"


def message_text(message: Message) -> str:
    name, details = type(message).__name__, [f"term {message.term}"]
    match message:
        case RequestVote():
            details += ["pre-vote"] * message.pre_vote + ["transfer"] * message.leadership_transfer
            details.append(f"log ends at {message.last_log_index}/{message.last_log_term}")
        case RequestVoteResponse():
            details += ["pre-vote"] * message.pre_vote + ["granted" if message.vote_granted else "refused"]
        case AppendEntries():
            details += [f"after {message.prev_log_index}/{message.prev_log_term}", f"commit {message.leader_commit}"]
            details.append("; ".join(map(entry_text, message.entries)) or "nothing")
        case AppendEntriesResponse(success=True):
            details.append(f"success {message.index}")
        case AppendEntriesResponse():
            details += [f"reject {message.index}", f"hint {message.hint_index}/{message.hint_term}"]
        case Heartbeat():
            details += [f"commit {message.leader_commit}", f"round {message.context}"]
        case HeartbeatResponse():
            details.append(f"round {message.context}")
        case InstallSnapshot():
            end = message.offset + len(message.data)
            details.append(f"snapshot {message.meta.id} of {message.meta.index}/{message.meta.term}")
            details += [f"bytes {message.offset}-{end} of {message.meta.size}"] + ["done"] * message.done
        case InstallSnapshotResponse():
            outcome = (
                "installed" if message.installed else "rejected" if message.rejected else f"go on at {message.offset}"
            )
            details += [f"snapshot {message.id}", outcome]
        case ReadIndexResponse():
            details.append(f"index {message.index}")
        case ReadIndex():
            pass
        case _:
            pass
    return f"{message.sender}->{message.to} {name} {', '.join(details)}"


def configuration_text(configuration: Configuration) -> str:
    parts = [f"voters {' '.join(map(str, configuration.voters)) or 'none'}"]
    for word, ids in (
        ("outgoing", configuration.outgoing),
        ("learners", configuration.learners),
        ("learners next", configuration.learners_next),
    ):
        if ids:
            parts.append(f"{word} {' '.join(map(str, ids))}")
    return ", ".join(parts)


@dataclass
class _Shown:
    """What was last shown of a member."""

    role: str = "follower"
    term: int = 0
    applied: int = 0
    reads: int = 0
    failed: int = 0
    configuration: Configuration = field(default_factory=Configuration)


class Play:
    """Acts out one play."""

    def __init__(self) -> None:
        self.cluster = Cluster(())
        self._shown: dict[int, _Shown] = {}
        self._out: list[str] = []

    def act(self, command: str) -> list[str]:
        """Do one command; what is to be seen."""
        words = command.split()
        self._out = []
        action: Callable[[list[str]], None] = getattr(self, f"_do_{words[0].replace('-', '_')}")
        try:
            action(words[1:])
        except (NotLeader, ProposalRefused) as error:
            self._out.append(f"refused: {error}")
        self._show_changes()
        return self._out or ["ok"]

    def _show_changes(self) -> None:
        for id, member in self.cluster.members.items():
            shown, node = self._shown.setdefault(id, _Shown(configuration=member.machine.configuration)), member.node
            if node is None:
                continue
            if node.role != shown.role:
                self._out.append(f"{id}: {node.role} in term {node.term}")
            elif node.term != shown.term and node.role != "leader":
                self._out.append(f"{id}: term {node.term}")
            if member.machine.applied > shown.applied:
                texts = []
                for index in range(shown.applied + 1, member.machine.applied + 1):
                    if index < member.log.first_index():
                        texts = [f"snapshot of {index}"]
                    else:
                        texts.append(entry_text(member.log.entries(index, index + 1, 1)[0]))
                self._out.append(f"{id}: applies {'; '.join(texts)}")
            if member.machine.configuration != shown.configuration:
                self._out.append(f"{id}: configuration {configuration_text(member.machine.configuration)}")
            for context, index in member.reads[shown.reads :]:
                self._out.append(f"{id}: read {context} is safe at {index}")
            for context in member.failed_reads[shown.failed :]:
                self._out.append(f"{id}: read {context} failed")
            self._shown[id] = _Shown(
                node.role,
                node.term,
                member.machine.applied,
                len(member.reads),
                len(member.failed_reads),
                member.machine.configuration,
            )

    def _ids(self, words: list[str]) -> list[int]:
        return [int(word) for word in words] if words and words != ["all"] else list(self.cluster.members)

    # -- members ------------------------------------------------------------------------------------------------------

    def _do_cluster(self, words: list[str]) -> None:
        settings: dict[str, Any] = {}
        for word in (word for word in words if "=" in word):
            name, value = word.split("=")
            settings[name] = (
                value == "True" if value in ("True", "False") else float(value) if "." in value else int(value)
            )
        self.cluster = Cluster([int(word) for word in words if "=" not in word], **settings)
        self.cluster.makes_snapshots = False
        self._shown = {}

    def _do_disk(self, words: list[str]) -> None:
        member = self.cluster.members[int(words[0])]
        given = dict(word.split("=") for word in words[1:])
        member.crash()
        terms = [int(term) for term in given["log"].split(",")] if given["log"] else []
        entries = [Entry(i, term, EntryKind.NORMAL, b"%d.%d" % (term, i)) for i, term in enumerate(terms, 1)]
        state = HardState(int(given["term"]), int(given.get("vote", 0)), int(given.get("commit", 0)))
        member.log.append(entries, state, sync=True)
        member.start()
        self._shown[member.id] = _Shown(term=state.term, configuration=member.machine.configuration)
        member.work_off()

    def _do_add(self, words: list[str]) -> None:
        self.cluster.add(int(words[0]))

    def _do_crash(self, words: list[str]) -> None:
        for id in self._ids(words):
            self.cluster.members[id].crash()

    def _do_restart(self, words: list[str]) -> None:
        for id in self._ids(words):
            member = self.cluster.members[id]
            member.start()
            node = self.cluster.node(id)
            self._shown[id] = _Shown(
                term=node.term,
                applied=member.machine.applied,
                reads=len(member.reads),
                failed=len(member.failed_reads),
                configuration=member.machine.configuration,
            )
            member.work_off()

    def _do_tick(self, words: list[str]) -> None:
        count = int(words[1]) if len(words) > 1 else 1
        self.cluster.tick(None if words[0] == "all" else [int(words[0])], count)

    def _do_campaign(self, words: list[str]) -> None:
        self.cluster.node(int(words[0])).campaign()
        self.cluster.members[int(words[0])].work_off()

    def _do_elect(self, words: list[str]) -> None:
        self.cluster.elect(int(words[0]))

    def _do_timeout(self, words: list[str]) -> None:
        id = int(words[0])
        others = [m.id for m in self.cluster.up if m.id != id and self.cluster.node(m.id).role != "leader"]
        self.cluster.tick(others, self.cluster.settings["election_ticks"])
        self.cluster.network = [m for m in self.cluster.network if m.sender not in others]
        for _ in range(2 * self.cluster.settings["election_ticks"]):
            self.cluster.tick([id])
            if self.cluster.node(id).role == "pre-candidate":
                return
        self._out.append(f"{id}: does not campaign")

    def _do_inject(self, words: list[str]) -> None:
        kind: Any = next(kind for kind in get_args(Message) if kind.__name__ == words[0])
        given = {name: int(value) for name, value in (word.split("=") for word in words[1:])}
        for name in ("leadership_transfer", "pre_vote", "vote_granted", "success"):
            if name in given:
                given[name] = bool(given[name])
        self.cluster.network.append(kind(**given))

    def _do_propose(self, words: list[str]) -> None:
        id = int(words[0])
        datas = []
        for word in words[1:]:
            text, _, times = word.partition("*")
            datas.append(text.encode() * int(times or 1))
        self.cluster.node(id).propose(datas)
        self.cluster.members[id].work_off()

    def _do_read(self, words: list[str]) -> None:
        self.cluster.node(int(words[0])).read_index(int(words[1]))
        self.cluster.members[int(words[0])].work_off()

    def _do_transfer(self, words: list[str]) -> None:
        self.cluster.node(int(words[0])).transfer_leadership(int(words[1]))
        self.cluster.members[int(words[0])].work_off()

    def _do_change(self, words: list[str]) -> None:
        id = int(words[0])
        steps = [MemberChange(_STEPS[kind], int(member)) for kind, member in zip(words[1::2], words[2::2], strict=True)]
        self.cluster.node(id).propose_change(steps)
        self.cluster.members[id].work_off()

    def _do_snapshot(self, words: list[str]) -> None:
        meta = self.cluster.members[int(words[0])].make_snapshot(words[1] if len(words) > 1 else "")
        self._out.append(f"snapshot {meta.id} of {meta.index}/{meta.term}, {meta.size} bytes")

    def _do_trim(self, words: list[str]) -> None:
        self.cluster.members[int(words[0])].log.trim(int(words[1]))

    def _do_damage(self, words: list[str]) -> None:
        self.cluster.damages_snapshots = words == ["on"]

    # -- network ------------------------------------------------------------------------------------------------------

    def _take(self, words: list[str]) -> list[Message]:
        """Take the messages that the words select out of the network."""
        links, kind, most = set(), "", len(self.cluster.network)
        for word in words:
            if "->" in word:
                links.add(tuple(map(int, word.split("->"))))
            elif word.startswith("kind="):
                kind = word[5:]
            else:
                most = int(word)
        taken: list[Message] = []
        left: list[Message] = []
        for message in self.cluster.network:
            selected = (not links or (message.sender, message.to) in links) and kind in ("", type(message).__name__)
            (taken if selected and len(taken) < most else left).append(message)
        self.cluster.network = left
        return taken

    def _do_deliver(self, words: list[str]) -> None:
        for message in self._take(words):
            if self.cluster.members[message.to].node is None:
                continue
            self._out.append(message_text(message))
            self.cluster.deliver(message)
            self._show_changes()

    def _do_run(self, words: list[str]) -> None:
        self.cluster.run()

    def _do_drop(self, words: list[str]) -> None:
        self._out += [f"lost: {message_text(message)}" for message in self._take(words)]

    def _do_repeat(self, words: list[str]) -> None:
        messages = self._take(words)
        self.cluster.network += messages + messages

    def _do_reverse(self, words: list[str]) -> None:
        self.cluster.network.reverse()

    def _do_network(self, words: list[str]) -> None:
        self._out += [message_text(message) for message in self.cluster.network] or ["nothing"]

    def _do_partition(self, words: list[str]) -> None:
        self.cluster.partition(*([int(id) for id in side.split()] for side in " ".join(words).split("|")))

    def _do_heal(self, words: list[str]) -> None:
        self.cluster.heal()

    # -- looking ------------------------------------------------------------------------------------------------------

    def _do_log(self, words: list[str]) -> None:
        for id in self._ids(words):
            member, node = self.cluster.members[id], self.cluster.members[id].node
            last = member.log.last_index() if node is None else node.last_index
            base = [f"[{member.log.base[0]}/{member.log.base[1]}]"] if member.log.base[0] else []
            held = (
                []
                if last < member.log.first_index()
                else member.log.entries(member.log.first_index(), last + 1, 1 << 30)
            )
            self._out.append(f"{id}: {'; '.join(base + [entry_text(entry) for entry in held]) or 'empty'}")

    def _do_status(self, words: list[str]) -> None:
        for id in self._ids(words):
            node = self.cluster.members[id].node
            if node is None:
                self._out.append(f"{id}: down")
                continue
            sending = "".join(
                f"; {member} {p.state.value} match {p.match_index} next {p.next_index}"
                f" in flight {len(p._inflights._window)}"
                for member, p in node.progress.items()
                if member != id
            )
            leader = f", leader {node.leader}" if node.leader else ""
            end = f"last {node.last_index}, commit {node.commit_index}"
            self._out.append(f"{id}: {node.role} term {node.term}{leader}, {end}{sending}")
