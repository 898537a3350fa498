"""Which way a command goes: by the endpoint that it is given, by a proxy of its node, or by Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lab.certificates import Certificates
from lab.http2.etcd_port import EtcdPort, etcd_port
from raykeeper import ClusterNotFound
from raykeeper.cli import main, options
from raykeeper.cli.etcd_gateway import Endpoint, EtcdGateway
from raykeeper.limits import ProxyTls
from raykeeper.proxy_notices import ProxyNotice, leave_notice, start_of

RAY = "10.9.8.7:6379"
"""Nobody listens there: a command that goes by Ray finds nothing."""


@pytest.fixture(scope="module")
def port() -> Iterator[EtcdPort]:
    with etcd_port() as port:
        yield port


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy waits as long as its client does, however busy the machine is."""
    for file in ("member_calls", "etcd_backend"):
        monkeypatch.setattr(f"raykeeper.actors.proxy.{file}.PROXY_TIMEOUT_S", 120.0)


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYKEEPER_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    def nobody(*_: Any) -> Any:
        raise ClusterNotFound("it went by Ray")

    monkeypatch.setattr(options, "join", nobody)


def run(*words: str) -> Result:
    return CliRunner().invoke(main.cli, words)


def good(*words: str) -> str:
    result = run(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


def notice(port: EtcdPort, **changed: Any) -> ProxyNotice:
    started = start_of(os.getpid())
    id = port.proxy.kv.cluster_id
    return ProxyNotice("c", id, RAY, f"http://{port.endpoint}", "", False, os.getpid(), started)._replace(**changed)


LONG = ("--timeout", "120")
NEAR = ("--cluster", "c", "--address", RAY, *LONG)


def test_a_proxy_of_the_node_is_found_and_asked(port: EtcdPort) -> None:
    leave_notice(notice(port))
    assert good("put", "k", "1", *NEAR) == "OK\n"
    assert good("get", "k", *NEAR) == "k\n1\n"
    assert json.loads(good("get", "k", "-o", "json", *NEAR))["items"][0]["value"] == "1"
    assert good("txn", "--compare", "value(k) = 1", "--success", "put k 2 --prev", *NEAR) == "SUCCESS\n\nOK\nk\n1\n"
    assert good("del", "k", *NEAR) == "1\n"


@pytest.mark.parametrize(
    "words",
    [
        ("put", "k", "1", "--request-id", "r"),
        ("del", "k", "--request-id", "r"),
        ("get", "k", "--endpoint", "ray"),
    ],
)
def test_what_a_proxy_cannot_do_goes_by_ray(port: EtcdPort, words: tuple[str, ...]) -> None:
    leave_notice(notice(port))
    assert "it went by Ray" in run(*words, *NEAR).stderr


@pytest.mark.parametrize(
    "changed",
    [{"cluster": "d"}, {"ray": "10.9.8.7:6380"}, {"started": 1}, {"client_cert": True}, {"url": "http://127.0.0.1:1"}],
    ids=str,
)
def test_a_proxy_that_is_another_or_gone_is_not_asked(port: EtcdPort, changed: dict[str, Any]) -> None:
    leave_notice(notice(port, **changed))
    assert "it went by Ray" in run("get", "k", *NEAR).stderr


def test_a_proxy_of_another_cluster_id_is_an_error(port: EtcdPort) -> None:
    leave_notice(notice(port, id=12345))
    result = run("get", "k", *NEAR)
    assert result.exit_code == 1
    assert "3039" in result.stderr


def test_an_endpoint_that_is_given_is_the_only_way(port: EtcdPort) -> None:
    assert good("put", "e", "1", "--endpoint", port.endpoint, *LONG) == "OK\n"
    assert good("get", "e", "--endpoint", f"http://{port.endpoint}", *LONG) == "e\n1\n"
    gone = run("get", "e", "--endpoint", "127.0.0.1:1")
    assert (gone.exit_code, gone.stderr.count("\n")) == (1, 1)
    assert "127.0.0.1:1" in gone.stderr
    mixed = run("put", "e", "1", "--request-id", "r", "--endpoint", port.endpoint, *LONG)
    assert mixed.exit_code == 2
    assert "--request-id needs Ray" in mixed.stderr
    assert run("get", "e", "--endpoint", "nonsense").exit_code == 1


def test_users_log_in_at_the_proxy(port: EtcdPort, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("pw\n")
    users = port.proxy.kv.users
    users.add("root", "pw")
    users.add_role("root")
    users.grant_role("root", "root")
    users.enable()
    as_root = ("--user", "root", "--password-file", str(secret))
    try:
        leave_notice(notice(port))
        assert good("put", "u", "1", *NEAR, *as_root) == "OK\n"
        assert run("get", "u", *NEAR).exit_code == 1
        secret.write_text("wrong")
        assert run("get", "u", *NEAR, *as_root).exit_code == 1
    finally:
        secret.write_text("pw")
        gateway = EtcdGateway(Endpoint(f"http://{port.endpoint}"), 60)
        gateway.log_in("root", "pw")
        gateway.call("auth/disable", {})


def test_tls_by_the_certificate_that_the_notice_names(tmp_path: Path) -> None:
    made = Certificates(tmp_path / "pki").issue("proxy")
    with etcd_port(tls=ProxyTls(cert_file=made.certificate, key_file=made.key)) as port:
        url = f"https://{port.endpoint}"
        leave_notice(notice(port, url=url, cert_file=made.certificate))
        assert good("put", "t", "1", *NEAR) == "OK\n"
        assert good("get", "t", "--endpoint", url, "--cacert", made.authority, *LONG) == "t\n1\n"
        assert run("get", "t", "--endpoint", url).exit_code == 1, "nobody vouches for it"


def test_a_command_by_a_proxy_loads_neither_ray_nor_anything_else_that_is_slow(port: EtcdPort, tmp_path: Path) -> None:
    leave_notice(notice(port))
    program = "import sys; sys.argv[0] = 'raykeeper'\nfrom raykeeper.cli.main import cli\ntry:\n    cli()\nfinally:\n"
    program += "    print(*sys.modules, file=sys.stderr)\n"
    done = subprocess.run(
        [sys.executable, "-c", program, "put", "k", "1", *NEAR], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "OK\n"
    assert "raykeeper.cli.gateway_client" in (loaded := set(done.stderr.split()))
    assert sorted(loaded & {"ray", "rocksdict", "asyncio", "grpc", "yaml", "rich", "cloudpickle"}) == []
