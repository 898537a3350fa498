"""Client libraries of etcd, unmodified: the same program against a real etcd and against a proxy says the same.

Each program (in ``programs/``) goes through what its library offers, and prints a line for every answer; both stores
are empty when it begins, so revisions are the same, too.
"""

from __future__ import annotations

import importlib.util
import os
import sys

import pytest

from lab.etcd_clients import PROGRAMS, Command, go_client, node_program
from lab.http2.etcd_port import EtcdPort


def python_program(library: str) -> tuple[list[str], dict[str, str]]:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"there is no {library}: pip install {library}")
    # etcd3's messages were generated long ago: of the runtimes of today the one in Python alone takes them.
    environment = (
        {**os.environ, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"} if library == "etcd3" else os.environ
    )
    return [sys.executable, str(PROGRAMS / f"python_{library}.py")], dict(environment)


def said(both: tuple[str, EtcdPort], program: list[str], environment: dict[str, str] | None = None) -> list[list[str]]:
    endpoints = both[0], both[1].endpoint
    return [Command(program, each, environment).said(each, timeout=120).splitlines() for each in endpoints]


@pytest.mark.parametrize("library", ["aetcd", "etcd3", "etcd3gw"])
def test_python(library: str, both: tuple[str, EtcdPort]) -> None:
    theirs, ours = said(both, *python_program(library))
    assert ours == theirs
    assert len(ours) >= 20


def test_node(both: tuple[str, EtcdPort]) -> None:
    node, environment = node_program()
    theirs, ours = said(both, [node, str(PROGRAMS / "npm_etcd3.js")], dict(environment))
    assert ours == theirs
    assert len(ours) >= 20


@pytest.mark.survival
def test_go(both: tuple[str, EtcdPort]) -> None:
    """clientv3 with concurrency, namespace, ordering, leasing and mirror."""
    theirs, ours = said(both, [go_client(), "exercise"])
    assert ours == theirs
    assert len(ours) > 300


@pytest.mark.survival
@pytest.mark.parametrize("program", ["kubernetes", "confd"])
def test_what_programs_on_clientv3_ask_for(program: str, both: tuple[str, EtcdPort]) -> None:
    """The storage of Kubernetes' API server, and confd, call by call."""
    theirs, ours = said(both, [go_client(), program])
    assert ours == theirs
    assert "event" in " ".join(ours)
