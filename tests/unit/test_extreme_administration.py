"""Every call that creates, finds or maintains a cluster, with every argument at its extremes: what cannot be meant is a
typed error in one line, before Ray or anybody else is asked; so nothing is half done.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import raykeeper
from lab.extremes import VALUES
from raykeeper import Cluster, ClusterSpec, KeeperError, SpecError, cluster
from raykeeper.actors import connect as connecting
from raykeeper.actors import ray_calls
from raykeeper.actors.cluster import cluster_backup, cluster_operations, cluster_report
from raykeeper.limits import Compaction, Limits, Settings, Timings

holding_itself: dict[str, Any] = {}
holding_itself["timings"] = holding_itself
MORE = {
    "holding itself": holding_itself,
    "nested": {"a": {"b": {"c": {"d": 1}}}},
    "whole numbers as keys": {1: 2, 10**5000: 3},
    "None as key": {None: 1},
    "lines": "a\nb: c",
    "set": {1},
    "tuple": (1,),
    "bool": False,
}
WRONG = {**VALUES, **MORE}


class Reached(Exception):
    """Somebody was asked."""


@pytest.fixture(autouse=True)
def _nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def reached(*arguments: Any, **named: Any) -> Any:
        raise Reached

    for module, names in {
        cluster: ("join_ray", "join_or_start_ray", "view_ray", "member_actors", "backup_of", "stop_members",
                  "stop_supervisor"),
        connecting: ("open_hub",),
        cluster_backup: ("take_backup",),
        cluster_report: ("member_statuses",),
        cluster_operations: ("access_to", "member_statuses", "administer", "compare_contents"),
        ray_calls: ("in_time",),
    }.items():  # fmt: skip
        for name in names:
            monkeypatch.setattr(module, name, reached)


there = Cluster("x", 7, "/nowhere/at/all")

Call = Callable[[Any], Any]


def never(value: Any) -> bool:
    return False


def number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**63


def text(value: Any) -> bool:
    return isinstance(value, str) and value.isascii()


def some_path(value: Any) -> bool:
    return text(value) and value != "" and "\0" not in value


def empty(value: Any) -> bool:
    """A mapping that changes nothing, or ``None`` for none."""
    return value is None or value == {}


CALLS: dict[str, tuple[Call, Callable[[Any], bool]]] = {
    "launch spec": (lambda x: raykeeper.launch(x), empty),
    "restore path": (lambda x: raykeeper.restore(x), never),
    "restore spec": (lambda x: raykeeper.restore("/dev/null", x), empty),
    "restore from_data_dir": (lambda x: raykeeper.restore(None, from_data_dir=x), some_path),
    "restore both": (lambda x: raykeeper.restore("/dev/null", from_data_dir=x), lambda x: x is None),
    "discard name": (lambda x: raykeeper.discard(x), lambda x: text(x) and x == "1"),
    "discard id": (lambda x: raykeeper.discard("x", x), lambda x: x is None or number(x)),
    "discard data_dir": (lambda x: raykeeper.discard("x", data_dir=x), never),
    "attach name": (lambda x: raykeeper.attach(x), text),
    "connect name": (lambda x: raykeeper.connect(x), text),
    "move_leader": (lambda x: there.move_leader(x), number),
    "promote": (lambda x: there.promote(x), number),
    "remove_member": (lambda x: there.remove_member(x), number),
    "add_member node": (lambda x: there.add_member(x), lambda x: x is None or text(x)),
    "add_member promote": (lambda x: there.add_member(promote=x), lambda x: x is True or x is False),
    "backup path": (lambda x: there.backup(x), some_path),
}
for _section in ("timings", "limits", "compaction"):
    CALLS[f"configure {_section}"] = (lambda x, s=_section: there.configure(**{s: x}), empty)  # type: ignore[misc]
CALLS["configure proxy"] = (lambda x: there.configure(proxy=x), lambda x: x is None or x is False)
CALLS["configure proxy_listen"] = (lambda x: there.configure(proxy_listen=x), lambda x: x is None)
CALLS["configure proxy_advertise"] = (lambda x: there.configure(proxy_advertise=x), lambda x: x is None or text(x))
for _section, _type in (("timings", Timings), ("limits", Limits), ("compaction", Compaction)):
    for _field in _type.__struct_fields__:
        _fields = (lambda x, s=_section, f=_field: there.configure(**{s: {f: x}}),)  # type: ignore[misc]
        CALLS[f"configure {_section}.{_field}"] = (_fields[0], lambda x: x in (0.5, 2**31, 1e9) or x is None)
for _field in ClusterSpec.__struct_fields__:
    CALLS[f"launch {_field}"] = (lambda x, f=_field: raykeeper.launch(**{f: x}), lambda x: True)  # type: ignore[misc]
    CALLS[f"launch spec.{_field}"] = (lambda x, f=_field: raykeeper.launch({f: x}), lambda x: True)  # type: ignore[misc]
    CALLS[f"launch ClusterSpec.{_field}"] = (  # type: ignore[misc]
        lambda x, f=_field: raykeeper.launch(ClusterSpec(**{f: x})),
        lambda x: True,
    )


def seconds(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0


TIMED: dict[str, Callable[[Any], Any]] = {
    "launch": lambda t: raykeeper.launch(timeout=t),
    "restore": lambda t: raykeeper.restore("/dev/null", timeout=t),
    "discard": lambda t: raykeeper.discard("x", timeout=t),
    "attach": lambda t: raykeeper.attach("x", timeout=t),
    "connect": lambda t: raykeeper.connect("x", timeout=t),
    "client": lambda t: there.client(timeout=t),
    "status": lambda t: there.status(timeout=t),
    "members": lambda t: there.members(timeout=t),
    "proxies": lambda t: there.proxies(timeout=t),
    "clients": lambda t: there.clients(timeout=t),
    "events": lambda t: there.events(timeout=t),
    "health": lambda t: there.health(timeout=t),
    "top": lambda t: there.top(timeout=t),
    "settings": lambda t: there.settings(timeout=t),
    "move_leader": lambda t: there.move_leader(1, timeout=t),
    "add_member": lambda t: there.add_member(timeout=t),
    "promote": lambda t: there.promote(1, timeout=t),
    "remove_member": lambda t: there.remove_member(1, timeout=t),
    "upgrade": lambda t: there.upgrade(timeout=t),
    "supervise": lambda t: there.supervise(timeout=t),
    "unsupervise": lambda t: there.unsupervise(timeout=t),
    "shutdown": lambda t: there.shutdown(timeout=t),
    "destroy": lambda t: there.destroy(timeout=t),
    "configure": lambda t: there.configure(timeout=t),
    "check": lambda t: there.check(timeout=t),
    "backup": lambda t: there.backup("/tmp/b", timeout=t),
}
for _name, _timed in TIMED.items():
    CALLS[f"{_name} timeout"] = (_timed, seconds)


def test_every_public_call_of_a_cluster_is_tried() -> None:
    public = {name for name in dir(Cluster) if not name.startswith("_") and callable(getattr(Cluster, name))}
    assert public | {"launch", "restore", "discard", "attach", "connect"} == set(TIMED)


@pytest.mark.parametrize("what", CALLS)
def test_it_is_a_typed_error_at_once_or_may_be_meant(what: str) -> None:
    call, may_be_meant = CALLS[what]
    wrong = []
    for name, value in WRONG.items():
        began = time.process_time()
        try:
            call(value)
            wrong.append(f"{name}: no error")
        except Reached:
            if not may_be_meant(value):
                wrong.append(f"{name}: it went on")
        except KeeperError as error:
            if "\n" in str(error) or len(str(error)) > 1200:
                wrong.append(f"{name}: {len(str(error))} characters, or several lines: {str(error)[:80]!r}")
        except Exception as error:
            wrong.append(f"{name}: {type(error).__name__}: {str(error)[:80]}")
        if time.process_time() - began > 2:
            wrong.append(f"{name}: it took {time.process_time() - began:.1f} s of computing")
    assert wrong == []


def test_the_answer_of_configure_stands_on_the_settings_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """What two fields owe each other can be told only with those that are not named: so the cluster is asked first."""
    asked = []

    class Seen:
        role, term, voters, configuration_index, applied_index = "leader", 1, (1,), 1, 1
        settings = raykeeper.limits.encode_settings(Settings(timings=Timings(election_timeout=9.0)))

    monkeypatch.setattr(cluster_operations, "member_statuses", lambda name: asked.append(name) or {1: Seen})
    with pytest.raises(Reached):
        there.configure(timings={"heartbeat_interval": 2.0})
    with pytest.raises(SpecError, match=r"timings.election_timeout: expected at least 3 times"):
        there.configure(timings={"heartbeat_interval": 4.0})
    assert asked == ["x", "x"]


LAUGHTER = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
BROKEN = {
    "a tab": b"\tname: x",
    "no such anchor": b"name: *a\n",
    "an anchor in itself": b"name: &a [*a]",
    "a mapping in itself": b"&a\ntimings: *a\n",
    "merged with a number": b"<<: 5",
    "billions of items": LAUGHTER.encode(),
    "billions of items for a name": (LAUGHTER + "name: *a11\n").replace("a0: &a0", "placement: &a0").encode(),
    "billions of items for a place": b"placement:\n  - &a0 [y]\n"
    + "".join(f"  - &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)).encode(),
    "a list as key": b"? [a]\n: b",
    "a mapping as key": b"? {a: b}\n: c",
    "a date that is none": b"name: 2021-99-99",
    "5,000 digits": b"members: " + b"9" * 5000,
    "bytes": b"name: !!binary aGVsbG8=",
    "an object": b"!!python/object/apply:os.abort []",
    "two documents": b"name: x\n---\nname: y",
    "a set": b"!!set {name}",
    "no number": b"members: .nan",
    "infinity": b"clock_drift: .inf",
    "a fraction": b"members: 3.0",
    "deep": b"[" * 3000,
    "deep mappings": b"{a: " * 3000,
    "a scalar": b"5",
    "a list": b"- a",
    "a field twice": b"name: a\nname: b",
    "half a character": b'name: "\\ud800"',
    "NUL": b"name: x\0",
    "not UTF-8": b"\xff\xfe\xfd",
    "the empty key": b"'': 5",
    "null as key": b"~: 5",
    "base 60": b"members: 1:30",
    "cut off": b"timings: {election_timeout: 2",
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_yaml_is_refused_in_one_line_that_names_the_file(tmp_path: Path, what: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_bytes(BROKEN[what])
    with pytest.raises(SpecError) as caught:
        raykeeper.launch(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1500
