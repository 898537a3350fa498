"""What goes wrong on a node comes as one line that names the node, and as an error of ours."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from lab.patience import PATIENCE
from raykeeper.actors.cluster import new_cluster
from raykeeper.actors.cluster.new_cluster import warn_if_crowded
from raykeeper.actors.cluster.node_storage import UnusableFolder
from raykeeper.actors.cluster.ray_nodes import PackageMissing, choose_nodes, in_one_line, run_where_possible
from raykeeper.actors.ray_view import RayNode, may_hold
from raykeeper.errors import DataCorrupted, KeeperError, Unavailable

# As Ray's workers say it, cut short in the middle.
FAILED_IMPORT = """The remote function failed to import on the worker. This may be because needed library dependencies \
are not installed in the worker environment or cannot be found from sys.path ['/usr/lib/python3/dist-packages']:

Traceback (most recent call last):
  File "/usr/lib/ray/_private/function_manager.py", line 293, in fetch_and_register_remote_function
    function = pickle.loads(serialized_function)
{cause}
"""
WHERE = "Ray node 10.0.0.7 (abcdef01)"


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (
            RuntimeError(FAILED_IMPORT.format(cause="ModuleNotFoundError: No module named 'raykeeper'")),
            PackageMissing,
            "ModuleNotFoundError: No module named 'raykeeper'",
        ),
        (
            RuntimeError(FAILED_IMPORT.format(cause="AttributeError: module 'inventories' has no attribute 'mark'")),
            PackageMissing,
            "has no attribute 'mark'",
        ),
        (
            RuntimeError(FAILED_IMPORT.format(cause="ImportError: librocksdb.so: cannot open shared object file")),
            PackageMissing,
            "librocksdb.so",
        ),
        (RuntimeError(FAILED_IMPORT.format(cause="SyntaxError: invalid syntax")), PackageMissing, "(SyntaxError: inv"),
        (RuntimeError(FAILED_IMPORT.format(cause="OSError: [Errno 5] bad")), PackageMissing, "(OSError: [Errno 5]"),
        (RuntimeError(FAILED_IMPORT.format(cause="odd.OldError")), PackageMissing, "(odd.OldError)"),
        (ModuleNotFoundError("No module named 'rocksdict'"), PackageMissing, "No module named 'rocksdict'"),
        (PermissionError(13, "Permission denied", "/d/x"), Unavailable, "/d/x: Permission denied"),
        (OSError("gone"), Unavailable, "gone"),
        (RuntimeError("first\nsecond"), Unavailable, "RuntimeError: first"),
        (ZeroDivisionError(), Unavailable, "ZeroDivisionError: it failed"),
    ],
)
def test_an_error_of_a_node_names_it_in_one_line(error: Exception, kind: type[KeeperError], said: str) -> None:
    told = in_one_line(WHERE, error)
    assert type(told) is kind
    assert str(told).startswith(WHERE)
    assert said in str(told)
    assert "\n" not in str(told)
    assert "Traceback" not in str(told)
    assert ("install the package there" in str(told)) is (kind is PackageMissing)


def test_why_ray_could_not_make_an_environment_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not only that: what to install, say."""

    def get(reference: object, timeout: float) -> None:
        raise ray.exceptions.RuntimeEnvSetupError(
            "Traceback ...\n  File ...\nRuntimeError: Please install virtualenv\n"
        )

    task = SimpleNamespace(options=lambda **options: SimpleNamespace(remote=lambda *arguments: None))
    monkeypatch.setattr(ray, "remote", lambda **options: lambda function: task)
    monkeypatch.setattr(ray, "get", get)
    node_7 = RayNode("ab" * 28, "10.0.0.7", frozenset())
    said = run_where_possible({"a": node_7}, print, {"a": ()}, PATIENCE)["a"]
    assert isinstance(said, Unavailable)
    assert str(said).endswith(") failed: RuntimeEnvSetupError: RuntimeError: Please install virtualenv")


@pytest.mark.parametrize("error", [DataCorrupted("m1 is damaged"), UnusableFolder("no room")])
def test_errors_of_ours_stay_what_they_are(error: KeeperError) -> None:
    assert in_one_line(WHERE, error) is error


def node(n: int, *more: str) -> RayNode:
    return RayNode(f"id{n}", f"10.0.0.{n}", frozenset({f"node:10.0.0.{n}", *more}))


def test_any_node_may_hold_a_member_unless_placement_names_some() -> None:
    assert may_hold(node(1), ())
    assert may_hold(node(1, "disk"), ("disk", "ssd"))
    assert not may_hold(node(1), ("disk", "ssd"))


def test_no_node_at_all_is_no_place() -> None:
    with pytest.raises(Unavailable, match="no Ray node"):
        choose_nodes(3, "spread", [])


@pytest.mark.parametrize(
    ("hosts", "said"),
    [
        ((1, 2, 3), None),
        ((1,), None),
        ((1, 1, 1), "3 members are on 1 host (10.0.0.1)"),
        ((1, 2, 1), "3 members are on 2 hosts (10.0.0.1, 10.0.0.2)"),
    ],
)
def test_a_new_cluster_on_fewer_hosts_than_members_is_said(
    caplog: Any, hosts: tuple[int, ...], said: str | None
) -> None:
    with caplog.at_level(logging.WARNING, logger="raykeeper"):
        warn_if_crowded("x", [node(host) for host in hosts])
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == (said is not None)
    assert all(said in line for line in lines if said)


def test_in_a_ray_that_this_process_has_started_that_is_no_warning(
    caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(new_cluster, "ray_is_own", lambda: True)
    with caplog.at_level(logging.INFO, logger="raykeeper"):
        warn_if_crowded("x", [node(1)] * 3)
        warn_if_crowded("x", [node(1), node(1), node(2)])  # but others have joined it
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
