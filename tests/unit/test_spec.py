"""A right spec loads from wherever it comes; a wrong one gives one line that names file, field and expectation."""

from __future__ import annotations

import pickle
from pathlib import Path

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from raykeeper import ClusterSpec, SpecError
from raykeeper.actors.client.login import Credentials
from raykeeper.actors.cluster.administrator import credentials_of_spec
from raykeeper.limits import Limits, Timings
from raykeeper.proxy_address import port_range
from rooms import ROOT


def refused(spec: object, **overrides: object) -> SpecError:
    with pytest.raises(SpecError) as caught:
        ClusterSpec.load(spec, **overrides)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert caught.value.applied is False
    return caught.value


def test_cluster_yaml_names_every_field_with_its_default_and_a_comment() -> None:
    text = (ROOT / "cluster.yaml").read_text()
    assert yaml.safe_load(text) == msgspec.json.decode(msgspec.json.encode(ClusterSpec()))
    assert ClusterSpec.load(ROOT / "cluster.yaml") == ClusterSpec()
    uncommented = [line for line in text.splitlines() if line and line[0] not in " #" and "#" not in line]
    assert uncommented == ["proxy_tls:", "timings:", "compaction:", "limits:"], "their comments stand above them"


def test_no_spec_means_the_defaults() -> None:
    assert ClusterSpec.load() == ClusterSpec.load(None) == ClusterSpec.load({}) == ClusterSpec()


@pytest.mark.parametrize("word", [True, False])
def test_lanes_are_on_or_off_however_that_is_said(tmp_path: Path, word: bool) -> None:
    (tmp_path / "c.yaml").write_text(f"lanes: {'on' if word else 'off'}\n")
    for spec in (tmp_path / "c.yaml", {"lanes": word}, {"lanes": "on" if word else "off"}):
        assert ClusterSpec.load(spec).lanes is ClusterSpec.load(spec).settings.lanes is word


def test_ports_of_lanes_are_a_range_or_one_number(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("lane_ports: 7000\n")
    assert ClusterSpec.load(tmp_path / "c.yaml").settings.lane_ports == "7000"
    assert [list(port_range(text) or ()) for text in ("", "7000", "7000-7002")] == [[], [7000], [7000, 7001, 7002]]
    assert [port_range(text) for text in ("0", "70000", "7-6", "a", "1-", "-1", " 1", "1-70000")] == [None] * 8


def test_a_spec_says_where_a_password_is_and_never_the_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c.yaml").write_text("user: root\npassword: hunter2\n")
    error = refused(tmp_path / "c.yaml")
    assert error.field == "password"
    assert "password_file or password_env" in error.expected
    for wrong, field in (
        ({"user": "root"}, "user"),
        ({"user": "root", "password_file": "/f", "password_env": "E"}, "user"),
        ({"password_file": "/f"}, "user"),
        ({"user": "root", "password_file": "hunter2"}, "password_file"),
        ({"user": "root", "password_env": "hunter2!"}, "password_env"),
        ({"user": "root", "password_env": 4711}, "password_env"),
        ({"user": "root", "password_file": ["hunter2"]}, "password_file"),
        ({"user": "root", "password": ["hunter2"]}, "password"),
    ):
        error = refused(wrong)
        assert error.field == field
        assert "hunter2" not in str(error)
        assert "4711" not in str(error)
    assert refused(None, user="root", password="hunter2").field == "password"
    spec = ClusterSpec.load({"user": "root", "password_env": "KEEPER_TEST_PASSWORD"})
    monkeypatch.delenv("KEEPER_TEST_PASSWORD", raising=False)
    with pytest.raises(SpecError) as caught:
        credentials_of_spec(spec)
    assert caught.value.field == "password_env"
    monkeypatch.setenv("KEEPER_TEST_PASSWORD", "hunter2")
    assert credentials_of_spec(spec) == Credentials("root", "hunter2")
    spec = ClusterSpec.load({"user": "root", "password_file": str(tmp_path / "secret")})
    with pytest.raises(SpecError) as caught:
        credentials_of_spec(spec)
    assert caught.value.field == "password_file"
    (tmp_path / "secret").write_text("hunter2\n")
    found = credentials_of_spec(spec)
    assert found is not None
    assert found.read_password() == "hunter2"
    assert credentials_of_spec(ClusterSpec()) is None


def test_origins_of_web_pages_are_checked() -> None:
    assert ClusterSpec.load({"proxy_cors": ["https://a", "*"]}).settings.proxy_cors == ("https://a", "*")
    for wrong in (["a"], ["https://a/path"], "https://a"):
        assert refused({"proxy_cors": wrong}).field.startswith("proxy_cors")


def test_the_console_is_off_unless_asked_for() -> None:
    assert ClusterSpec().settings.proxy_console == "off"
    for value, meant in (("read", "read"), ("act", "act"), (False, "off"), ("off", "off")):
        assert ClusterSpec.load({"proxy_console": value}).settings.proxy_console == meant
    for wrong in ("on", True, 1):
        assert refused({"proxy_console": wrong}).field == "proxy_console"


@pytest.mark.parametrize("text", ["", "# nothing\n", "timings:\nlimits:\n", "---\n"])
def test_an_empty_file_or_section_means_the_defaults(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    assert ClusterSpec.load(str(tmp_path / "c.yaml")) == ClusterSpec()


def test_overrides_replace_fields_and_merge_into_sections() -> None:
    spec = ClusterSpec.load(
        {"name": "a", "timings": {"election_timeout": 2.0}},
        name="b",
        data_dir=Path("/data"),
        timings={"heartbeat_interval": 0.05},
        placement=["node:10.0.0.1", "disk"],
        limits=Limits(max_key_bytes=10),
    )
    assert (spec.name, spec.data_dir, spec.placement) == ("b", "/data", ("node:10.0.0.1", "disk"))
    assert spec.timings == Timings(heartbeat_interval=0.05, election_timeout=2.0)
    assert spec.limits == Limits(max_key_bytes=10)


def test_a_spec_pickles_and_loads_from_itself() -> None:
    spec = ClusterSpec.load(name="x", members=5)
    assert pickle.loads(pickle.dumps(spec)) == spec == ClusterSpec.load(spec)


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ({"lane_ports": "9-8"}, "spec: lane_ports: expected ports as 7000-7099, or one port, got '9-8'"),
        ({"lane_interface": "a b"}, "spec: lane_interface: expected the name of an interface, got 'a b'"),
        ({"member": 3}, "spec: member: expected a known field; did you mean members?"),
        (
            {"limits": {"max_key_byte": 1}},
            "spec: limits.max_key_byte: expected a known field; did you mean max_key_bytes?",
        ),
        (
            {3: 4},
            "spec: 3: expected a known field; one of name, members, data_dir, placement, bootstrap, supervised, lanes, "
            "lane_ports, lane_interface, lease_reads, clock_drift, proxy, proxy_listen, proxy_advertise, proxy_cors, "
            "proxy_console, user, password_file, password_env, timings, limits, compaction, proxy_tls",
        ),
        ({"members": "3"}, "spec: members: expected a whole number, got '3'"),
        ({"lanes": "maybe"}, "spec: lanes: expected on or off, got 'maybe'"),
        ({"members": 3.5}, "spec: members: expected a whole number, got 3.5"),
        ({"members": True}, "spec: members: expected a whole number, got True"),
        ({"members": 0}, "spec: members: expected a whole number >= 1, got 0"),
        ({"members": 10}, "spec: members: expected a whole number <= 9, got 10"),
        ({"name": None}, "spec: name: expected text, got None"),
        ({"compaction": {"mode": "some"}}, "spec: compaction.mode: expected age, revisions or off, got 'some'"),
        ({"compaction": {"keep": 0}}, "spec: compaction.keep: expected a whole number >= 1, got 0"),
        (
            {"limits": {"reserve_bytes": 1024}},
            "spec: limits.reserve_bytes: expected at least 2 times limits.log_cut_bytes (1.34218e+08), got 1024",
        ),
        ({"limits": 3}, "spec: limits: expected a mapping, got 3"),
        ({"placement": 3}, "spec: placement: expected text or a list, got 3"),
        ({"placement": ["a", 3]}, "spec: placement[1]: expected text, got 3"),
        ({"placement": "near"}, "spec: placement: expected spread, or a list of Ray resource names, got 'near'"),
        ({"placement": []}, "spec: placement: expected spread, or a list of at least one Ray resource name"),
        ({"bootstrap": "maybe"}, "spec: bootstrap: expected auto or never, got 'maybe'"),
        ({"bootstrap": True}, "spec: bootstrap: expected text, got True"),
        ({"proxy": "some"}, "spec: proxy: expected off, one or all, got 'some'"),
        ({"proxy": True}, "spec: proxy: expected text, got True"),
        ({"proxy_listen": 2379}, "spec: proxy_listen: expected text, got 2379"),
        (
            {"proxy_listen": ":2379"},
            "spec: proxy_listen: expected HOST:PORT, or HOST:FIRST-LAST for a range, got ':2379'",
        ),
        ({"proxy_tls": {"cert_file": "/c"}}, "spec: proxy_tls.key_file: expected a path, since cert_file is given"),
        ({"proxy_tls": {"cert_file": "c"}}, "spec: proxy_tls.cert_file: expected an absolute path, got 'c'"),
        (
            {"proxy_tls": {"cert_file": "/c", "key_file": "/k", "client_cert_auth": True}},
            "spec: proxy_tls.trusted_ca_file: expected a path, since client_cert_auth is on",
        ),
        ({"proxy_advertise": "a:b"}, "spec: proxy_advertise: expected HOST, or HOST:PORT, got 'a:b'"),
        ({"data_dir": "data"}, "spec: data_dir: expected an absolute path, or one from ~/, got 'data'"),
        ({"timings": {"heartbeat_interval": 0}}, "spec: timings.heartbeat_interval: expected a number >= 0.001, got 0"),
        (
            {"timings": {"session_ttl": float("inf")}},
            "spec: timings.session_ttl: expected a number <= 1000000000.0, got inf",
        ),
        (
            {"timings": {"heartbeat_interval": 0.4}},
            "spec: timings.election_timeout: expected at least 3 times timings.heartbeat_interval (1.2), got 1",
        ),
        (
            {"limits": {"max_inbox_bytes": 2048}},
            "spec: limits.max_inbox_bytes: expected at least limits.max_batch_bytes (2.09715e+06), got 2048",
        ),
        ([1], "spec: expected a path, a mapping or a ClusterSpec, got list"),
    ],
)
def test_a_wrong_spec_gives_this_line(spec: object, line: str) -> None:
    assert str(refused(spec)) == line


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".hidden", "-x", "a b", "x" * 64, "ä", "a\n"])
def test_a_name_that_cannot_be_a_folder_or_an_actor_is_refused(name: str) -> None:
    assert refused({"name": name}).field == "name"


def test_a_wrong_override_is_no_fault_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("members: 1\n")
    error = refused(tmp_path / "c.yaml", members="many")
    assert (error.source, error.field, error.expected) == ("arguments", "members", "a whole number, got 'many'")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1", "valid YAML; line 1, column 6: expected ',' or ']', but got '<stream end>'"),
        ("name: a\nname: b\n", "valid YAML; line 2, column 1: name occurs twice"),
        ("!!python/object:os.system {}", "valid YAML; line 1, column 1: could not determine a constructor for the tag"),
        ("x: \x00", "valid YAML; unacceptable character"),
        ("- 1\n", "a mapping of fields, got [1]"),
        ("x: 2026-13-45\n", "valid YAML; month must be in 1..12"),
        ("!!timestamp x", "valid YAML; "),
        ("!!bool x", "valid YAML; "),
        ("x: !!int y", "valid YAML; invalid literal"),
        ("!!set x", "valid YAML; "),
        ("x: " + "[" * 3000, "valid YAML; it is nested too deeply"),
    ],
)
def test_a_file_that_is_no_spec_says_where(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    error = refused(path)
    assert error.source == str(path)
    assert error.expected.startswith(expected)


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    assert str(refused(tmp_path / "none.yaml")).endswith(
        "none.yaml: expected a readable file: No such file or directory"
    )
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe4\xff")
    assert refused(tmp_path / "latin.yaml").expected == "a UTF-8 text file"


_scalar = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
_fields = st.sampled_from([*ClusterSpec.__struct_fields__, "nonsense", "timings", "limits"])
_section = st.dictionaries(
    st.sampled_from([*Timings.__struct_fields__, *Limits.__struct_fields__]), _scalar, max_size=4
)


@given(st.dictionaries(_fields, _scalar | _section | st.lists(_scalar, max_size=3), max_size=4))
def test_whatever_is_given_the_answer_is_a_spec_or_a_spec_error(raw: dict[str, object]) -> None:
    try:
        spec = ClusterSpec.load(raw)
    except SpecError:
        refused(raw)
    else:
        assert ClusterSpec.load(msgspec.to_builtins(spec)) == spec


def test_lease_reads_are_decided_by_word_or_boolean_and_go_into_the_settings() -> None:
    assert not ClusterSpec.load().settings.lease_reads
    for value in ("on", True):
        settings = ClusterSpec.load({"lease_reads": value, "clock_drift": 0.02}).settings
        assert (settings.lease_reads, settings.clock_drift) == (True, 0.02)
    assert str(refused({"lease_reads": "often"})) == "spec: lease_reads: expected on or off, got 'often'"
    assert "clock_drift" in str(refused({"clock_drift": 1.0}))


@pytest.mark.parametrize("path", ["/a\0b", "/a\nb", "/a\x1b[2J", "/\udcff", "~/\x7f", ""])
def test_a_folder_that_no_error_could_name_is_refused(path: str) -> None:
    assert refused({"data_dir": path}).field == "data_dir"


def test_a_folder_may_have_any_other_name() -> None:
    assert ClusterSpec.load({"data_dir": "/a b/ü\u3000'\"$"}).data_dir == "/a b/ü\u3000'\"$"
