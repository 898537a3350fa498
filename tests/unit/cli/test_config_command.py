"""`config get` and `config set`: how fields are named, typed and refused. The cluster is a fake."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner, Result

from raykeeper import InvalidArgument
from raykeeper.cli import config, main
from raykeeper.limits import Settings
from raykeeper.spec import ClusterSpec


class FakeCluster:
    def __init__(self) -> None:
        self.now = Settings()

    def settings(self, *, timeout: float) -> Settings:
        return self.now

    def configure(self, *, timeout: float, **changed: Any) -> Settings:
        spec = ClusterSpec(**{name: getattr(self.now, name) for name in self.now.__struct_fields__})
        self.now = ClusterSpec.load(spec, **changed).settings
        return self.now


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    fake = FakeCluster()
    monkeypatch.setattr(config, "open_operations", lambda cluster, address: fake)
    return fake


def run(*words: str) -> Result:
    return CliRunner().invoke(main.cli, ["config", *words])


def test_all_settings_are_printed_by_name(fake: FakeCluster) -> None:
    found = json.loads(run("get", "-o", "json").stdout)
    assert found == json.loads(json.dumps(config.flat(Settings())))
    assert "lanes: on" in run("get").stdout.splitlines()
    assert run("get", "timings.election_timeout").stdout == "timings.election_timeout: 1\n"
    section = run("get", "compaction").stdout
    assert len(section.splitlines()) == len(Settings().compaction.__struct_fields__)
    assert run("get", "-o", "table").exit_code == 0
    assert run("get", "nonsense").exit_code == 2


def test_values_have_the_types_of_their_fields(fake: FakeCluster) -> None:
    changes = ["timings.election_timeout=2.5", "limits.max_request_bytes=2097152", "lanes=off", "lane_ports=7000-7010"]
    changed = json.loads(run("set", *changes, "proxy=one", "-o", "json").stdout)
    assert changed == {
        "timings.election_timeout": 2.5,
        "limits.max_request_bytes": 2097152,
        "lanes": False,
        "lane_ports": "7000-7010",
        "proxy": "one",
    }
    assert (fake.now.lanes, fake.now.timings.election_timeout, fake.now.lane_ports) == (False, 2.5, "7000-7010")
    assert run("set", "lanes=on").stdout == "lanes: on\n"


OTHERS = {
    "compaction.mode": "off",
    "lane_ports": "7000-7010",
    "lane_interface": "eth1",
    "proxy": "all",
    "proxy_listen": "0.0.0.0:2379-2389",
    "proxy_advertise": "host:2379",
    "proxy_cors": "https://a,https://b:8443",
    "proxy_console": "act",
    "proxy_tls.cert_file": "/c.pem",
    "proxy_tls.key_file": "/k.pem",
    "proxy_tls.trusted_ca_file": "/ca.pem",
    "proxy_tls.client_cert_auth": "on",
}
"""Values of the fields that are not numbers."""


def test_what_get_prints_set_takes_for_every_field(fake: FakeCluster) -> None:
    shown = dict(line.split(": ", 1) for line in run("get").stdout.splitlines())
    free = {field: value for field, value in shown.items() if field not in config.FIXED}
    done = run("set", *(f"{field}={value}" for field, value in free.items()))
    assert (done.exit_code, fake.now) == (0, Settings()), done.output
    done = run("set", *(f"{field}={value}" for field, value in OTHERS.items()), "lanes=off")
    assert done.exit_code == 0, done.output
    assert fake.now.proxy_cors == ("https://a", "https://b:8443")
    assert fake.now.proxy_tls.client_cert_auth is True
    for field, value in OTHERS.items():
        assert run("get", field).stdout == f"{field}: {value}\n"
    assert run("set", "proxy_cors=").exit_code == 0
    assert fake.now.proxy_cors == ()
    words = {field for field, value in config.flat(Settings()).items() if not isinstance(value, (int, float))}
    assert words | {"proxy_tls.client_cert_auth"} == set(OTHERS), "a new field needs a value here"


@pytest.mark.parametrize("value", ["1234567.5", "12345678", "1000000000", "90.1234567", "1e3", "100.1"])
def test_numbers_are_printed_with_all_their_digits(fake: FakeCluster, value: str) -> None:
    """Also those that a short form would round."""
    run("set", f"timings.replace_after={value}")
    assert fake.now.timings.replace_after == float(value)
    shown = run("get", "timings.replace_after").stdout.removeprefix("timings.replace_after: ").strip()
    assert run("set", f"timings.replace_after={shown}").exit_code == 0
    assert fake.now.timings.replace_after == float(value)
    assert shown == (str(int(float(value))) if float(value).is_integer() else value)


@pytest.mark.parametrize("change", ["nonsense=1", "timings=1", "timings.election_timeout", "=", ""])
def test_what_is_no_change_is_bad_usage(fake: FakeCluster, change: str) -> None:
    assert run("set", change).exit_code == 2


@pytest.mark.parametrize(
    "change", ["lease_reads=on", "clock_drift=0.2", "timings.election_timeout=0", "lanes=perhaps", "lane_ports=x"]
)
def test_what_cannot_be_is_a_typed_error_and_changes_nothing(fake: FakeCluster, change: str) -> None:
    result = run("set", change)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert fake.now == Settings()


def test_every_setting_can_be_changed_or_is_fixed() -> None:
    """A new setting must be one that ``configure`` takes, or stand among the fixed ones."""
    import inspect

    from raykeeper.cluster import Cluster

    taken = set(inspect.signature(Cluster.configure).parameters) - {"self", "timeout"}
    assert taken | set(config.FIXED) == set(Settings.__struct_fields__)
    for field in config.FIXED:
        with pytest.raises(InvalidArgument):
            config.parsed((f"{field}=1",))
