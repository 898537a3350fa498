"""What a member does before it looks into a frame, and while it does not serve; without Ray."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from lab.patience import PATIENCE
from raykeeper.actors.member import actor
from raykeeper.actors.member.actor import Member, deadline_of
from raykeeper.actors.member.member_actor import MemberHost
from raykeeper.actors.naming import MemberSpec, encode_member_spec
from raykeeper.errors import NoSpace
from raykeeper.schema.commands import ClientWrite, ClientWrites
from raykeeper.schema.frames import AskStatus, Close, KeepAlive, Open, Read, Reads, Writes
from raykeeper.schema.operations import KeyRange, Put, Range
from raykeeper.store.data_dir import DataDir


def public(kind: type) -> dict[str, list[str]]:
    """The methods of a class, and their parameters without the one that Ray adds."""
    return {
        name: [str(each) for each in inspect.signature(method).parameters.values() if each.name != "_ray_trace_ctx"]
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


def test_the_actor_class_passes_on_every_method() -> None:
    assert public(MemberHost) == public(Member)


@pytest.mark.parametrize(
    ("request_", "deadline"),
    [
        (Writes(1, 2.5, ClientWrites(7, 1, (ClientWrite(1, Put(b"k", b"v")),))), 2.5),
        (Reads(1, 3.0, False, (Read(Range(KeyRange(b"k"))),)), 3.0),
        (Open(1, 0.25, b"nonce"), 0.25),
        (KeepAlive(1, 4, 7), 4.0),
        (Close(1, 5.0, 7), 5.0),
        (AskStatus(), 0.0),
        (["no", "request"], 0.0),
    ],
)
def test_the_deadline_is_read_without_decoding_the_rest(request_: object, deadline: float) -> None:
    assert deadline_of(msgspec.msgpack.encode(request_)) == deadline


def test_noise_has_no_deadline() -> None:
    assert deadline_of(b"") == deadline_of(b"\xc1") == 0.0


@pytest.fixture
def member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Member]:
    """One whose disk is full, for as long as a test lasts."""
    tried: list[float] = []

    def full(*_: object, **__: object) -> DataDir:
        tried.append(time.monotonic())
        raise NoSpace("no room")

    for name in ("as_daemon", "raise_limit"):
        monkeypatch.setattr(actor, name, lambda: None)
    monkeypatch.setattr(actor, "log_to_ray", lambda cluster, member: None)
    monkeypatch.setattr(actor.sys, "setswitchinterval", lambda seconds: None)
    monkeypatch.setattr(actor.ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "0a"))
    monkeypatch.setattr(actor, "NO_SPACE_PAUSE_S", 0.001)
    monkeypatch.setattr(actor.DataDir, "open", full)
    caplog.set_level(logging.INFO, "raykeeper.member")
    folder = tmp_path / "m1"
    folder.mkdir(mode=0o700)
    made = Member(encode_member_spec(MemberSpec("c", 7, 1, "m1", str(folder), "pin")))
    until = time.monotonic() + PATIENCE
    while len(tried) < 5:
        assert time.monotonic() < until
        time.sleep(0.001)
    yield made
    made.stop()


def test_what_is_tried_again_and_again_is_logged_once_and_a_stop_is_no_warning(
    member: Member, caplog: pytest.LogCaptureFixture
) -> None:
    member.stop()
    records = [*caplog.get_records("setup"), *caplog.records]
    assert [(record.levelname, record.getMessage()) for record in records] == [
        ("WARNING", "cluster c, m1: does not serve: NoSpace: no room"),
        ("INFO", "cluster c, m1: does not serve: it was stopped"),
    ]
