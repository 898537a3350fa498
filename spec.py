"""A cluster's spec: ``cluster.yaml``, a mapping, or fields by name, checked and converted to a ``ClusterSpec``.

Anything wrong raises a :class:`SpecError` of one line that names the file, the field and what was expected. Each value
is checked alone by its type in ``limits.py``; the table ``_AT_LEAST`` and ``_check_rules`` hold the rules between
fields. The defaults are in the classes; ``cluster.yaml`` at the root repeats them with comments, and a test compares.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import reprlib
from collections.abc import Hashable, Iterator, Mapping
from typing import Annotated, Any

import msgspec
import yaml

from .errors import SpecError
from .limits import MAX_MEMBERS, Compaction, Fraction, Limits, ProxyTls, Settings, Timings
from .proxy_address import is_origin, port_range, read_advertised_address, read_listen_address

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
"""Valid cluster names: a name becomes part of actor names and of folder names."""
PROXY_MODES = ("off", "one", "all")
CONSOLE_MODES = ("off", "read", "act")
RAYS_OWN = frozenset(("CPU", "GPU", "memory", "object_store_memory", "bundle"))
"""Resources that Ray's nodes offer, and that an actor cannot request by name."""
_INTERFACE = re.compile(r"[^\s/\x00-\x1f\x7f]{0,15}")
"""Linux's rule for names of interfaces (IFNAMSIZ)."""
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
"""A name that shells can give to a variable."""
_UNSPEAKABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
"""Characters that a folder's name must not have, because errors, markers and commands could not show them: control
characters, and bytes that are not UTF-8."""


class ClusterSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How to launch a cluster. Only the first launch uses ``members``; later the data on disk says who is a member."""

    name: str = "default"
    """The name for ``connect``."""
    members: Annotated[int, msgspec.Meta(ge=1, le=MAX_MEMBERS)] = 3
    """How many members a new cluster gets."""
    data_dir: str = "~/.raykeeper"
    """Folder for the data on each node: an absolute path, or one from ``~/``, the home of the user that Ray runs as."""
    placement: str | tuple[str, ...] = "spread"
    """``"spread"`` evenly over the nodes, or the names of Ray resources (such as ``node:10.0.0.1``), one for each node
    that may hold members, used in turn."""
    bootstrap: str = "auto"
    """``"auto"``: if there is neither data nor any trace of a cluster of this name, a new one is created; ``"never"``:
    the cluster must exist (etcd's ``initial-cluster-state: existing``)."""
    supervised: bool = True
    """Whether a supervisor restarts members and replaces lost ones (``actors/cluster/supervisor.py``)."""
    lanes: bool = True
    """Whether clients and members also communicate over sockets, faster than actor calls; ``on`` or ``off``."""
    lane_ports: str = ""
    """TCP ports that members may listen on for lanes from other nodes: ``FIRST-LAST``, or one; empty: any free one."""
    lane_interface: str = ""
    """The network interface, such as ``eth1``, on whose address they listen; empty: on the Ray node's address."""
    lease_reads: bool = False
    """Whether linearizable reads skip the round trip to a majority while the leader's lease runs; ``on`` or ``off``.
    They are then linearizable only if the rates of the members' clocks differ by no more than ``clock_drift``."""
    clock_drift: Fraction = 0.1
    """How much faster, as a fraction, the clock of one member may run than another's (for ``lease_reads``)."""
    proxy: str = "off"
    """Where proxies run, which speak etcd's API to etcd's clients: ``"all"``: on every Ray node; ``"one"``: on one of
    them; ``"off"``: nowhere."""
    proxy_listen: str = "127.0.0.1:2379"
    """Where such a proxy listens: ``HOST:PORT``, ``HOST:FIRST-LAST`` for the first free port of a range, or port 0 for
    any free one."""
    proxy_advertise: str = ""
    """What its clients are told, ``HOST`` or ``HOST:PORT``. Empty: the address that it listens on, or, if that is all
    addresses of the machine, the Ray node's."""
    proxy_cors: tuple[str, ...] = ()
    """Origins, such as ``https://host``, whose web pages may ask such a proxy by HTTP; ``*`` for all."""
    proxy_console: str = "off"
    """Whether such a proxy serves the console, a web page: ``"read"``: to look; ``"act"``: also to act; ``"off"``:
    not."""
    user: str = ""
    """The user, with the role ``root``, for whom a launch administers a cluster in which users are needed."""
    password_file: str = ""
    """The file that holds its password, on the machine that launches: an absolute path, or one from ``~/``; or..."""
    password_env: str = ""
    """... the environment variable that does. A spec never holds the password itself."""
    timings: Timings = Timings()
    limits: Limits = Limits()
    compaction: Compaction = Compaction()
    proxy_tls: ProxyTls = ProxyTls()

    @property
    def settings(self) -> Settings:
        """The settings of a new cluster."""
        return Settings(
            timings=self.timings,
            limits=self.limits,
            compaction=self.compaction,
            lanes=self.lanes,
            lane_ports=self.lane_ports,
            lane_interface=self.lane_interface,
            lease_reads=self.lease_reads,
            clock_drift=self.clock_drift,
            proxy=self.proxy,
            proxy_listen=self.proxy_listen,
            proxy_advertise=self.proxy_advertise,
            proxy_cors=self.proxy_cors,
            proxy_console=self.proxy_console,
            proxy_tls=self.proxy_tls,
        )

    @classmethod
    def load(
        cls, spec: str | os.PathLike[str] | Mapping[str, Any] | ClusterSpec | None = None, /, **overrides: Any
    ) -> ClusterSpec:
        """Read a spec from a YAML file, a mapping or another spec (``None``: all defaults), and change some fields.

        ``overrides`` name top-level fields; a mapping given for a section (``timings``, ``limits``, ``compaction``,
        ``proxy_tls``) changes the fields that it names and leaves the others.

        Raises:
            SpecError: a field is unknown, has the wrong type, or has a value that is not valid.
        """
        if spec is None:
            source, raw = "spec", {}
        elif isinstance(spec, (ClusterSpec, Mapping)):
            source, raw = "spec", _plain("spec", spec)
        elif isinstance(spec, (str, os.PathLike)):
            path = os.fsdecode(spec)
            source, raw = _named(path), _read(path)
        else:
            raise SpecError("spec", "", f"a path, a mapping or a ClusterSpec, got {type(spec).__name__}")
        loaded = _convert(source, raw)
        if not overrides:
            return loaded
        merged = _plain("spec", loaded)
        for field, value in _plain("arguments", overrides).items():
            old = merged.get(field)
            merged[field] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
        return _convert("arguments", merged)


def check_fields(source: str, fields: Mapping[str, Any]) -> None:
    """Check that each of some fields of a spec is known and has the right type, and all that does not depend on others.

    Raises:
        SpecError: one of them is not.
    """
    _check_proxy(source, _typed(source, _plain(source, fields)))


def check(source: str, timings: Timings, limits: Limits) -> None:
    """Check the rules between timings and limits, for a spec and for ``Cluster.configure``.

    Raises:
        SpecError: two of them contradict each other; it names ``source``.
    """
    for field, number in (*_numbers("timings", timings), *_numbers("limits", limits)):
        if not math.isfinite(number):
            raise SpecError(source, field, f"a finite number, got {number}")
    values = dict((*_numbers("timings", timings), *_numbers("limits", limits)))
    for field, factor, other in _AT_LEAST:
        if values[field] < factor * values[other]:
            least = other if factor == 1 else f"{factor} times {other}"
            raise SpecError(source, field, f"at least {least} ({factor * values[other]:g}), got {values[field]:g}")


_AT_LEAST = (
    # A follower must miss several heartbeats before it campaigns (Raft paper, section 5.6).
    ("timings.election_timeout", 3, "timings.heartbeat_interval"),
    # A session must outlive the election of a new leader, or each failover would end it.
    ("timings.session_ttl", 3, "timings.election_timeout"),
    ("timings.request_ttl", 1, "timings.session_ttl"),
    # No member is replaced for a failure that an election repairs.
    ("timings.replace_after", 3, "timings.election_timeout"),
    # One request of the largest size must fit into every window on its way.
    ("limits.max_request_bytes", 1, "limits.max_key_bytes"),
    ("limits.max_batch_bytes", 1, "limits.max_request_bytes"),
    ("limits.max_inbox_bytes", 1, "limits.max_batch_bytes"),
    ("limits.max_uncommitted_bytes", 1, "limits.max_batch_bytes"),
    ("limits.max_append_bytes_in_flight", 1, "limits.max_append_bytes"),
    ("limits.max_session_answer_bytes", 1, "limits.max_request_bytes"),
    ("limits.max_pending_requests", 1, "limits.max_batch_requests"),
    ("limits.max_session_answers", 1, "limits.max_batch_requests"),
    # The log may grow to about twice this beside a full state.
    ("limits.reserve_bytes", 2, "limits.log_cut_bytes"),
)
"""(field, factor, other field): the field's value must be at least factor times the other's."""


def _numbers(section: str, values: Timings | Limits) -> Iterator[tuple[str, float]]:
    for name in values.__struct_fields__:
        yield f"{section}.{name}", getattr(values, name)


def _check_rules(source: str, spec: ClusterSpec) -> None:
    """Check what the types alone do not express."""
    if not NAME.fullmatch(spec.name):
        raise SpecError(
            source,
            "name",
            f"up to 63 letters, digits, '.', '_' and '-', the first a letter or digit, got {_shown(spec.name)}",
        )
    if not (spec.data_dir == "~" or spec.data_dir.startswith(("/", "~/"))) or _UNSPEAKABLE.search(spec.data_dir):
        raise SpecError(source, "data_dir", f"an absolute path, or one from ~/, got {_shown(spec.data_dir)}")
    if isinstance(spec.placement, str):
        if spec.placement != "spread":
            raise SpecError(
                source, "placement", f"spread, or a list of Ray resource names, got {_shown(spec.placement)}"
            )
    elif not spec.placement or not all(spec.placement):
        raise SpecError(source, "placement", "spread, or a list of at least one Ray resource name")
    elif unfit := [name for name in spec.placement if name in RAYS_OWN or _UNSPEAKABLE.search(name)]:
        raise SpecError(source, "placement", f"resources that an actor can be pinned by, got {_shown(unfit[0])}")
    if port_range(spec.lane_ports) is None:
        raise SpecError(source, "lane_ports", f"ports as 7000-7099, or one port, got {_shown(spec.lane_ports)}")
    if not _INTERFACE.fullmatch(spec.lane_interface):
        raise SpecError(source, "lane_interface", f"the name of an interface, got {_shown(spec.lane_interface)}")
    if spec.bootstrap not in ("auto", "never"):
        raise SpecError(source, "bootstrap", f"auto or never, got {_shown(spec.bootstrap)}")
    _check_user(source, spec)
    _check_proxy(source, spec)
    check(source, spec.timings, spec.limits)


def _check_user(source: str, spec: ClusterSpec) -> None:
    """No message shows what was given for a password: it may be one."""
    file = spec.password_file
    if file and (not file.startswith(("/", "~/")) or _UNSPEAKABLE.search(file)):
        raise SpecError(source, "password_file", "an absolute path, or one from ~/")
    if spec.password_env and not _VARIABLE.fullmatch(spec.password_env):
        raise SpecError(source, "password_env", "the name of an environment variable")
    if spec.user and bool(file) is bool(spec.password_env):
        raise SpecError(source, "user", "one of password_file and password_env beside it")
    if not spec.user and (file or spec.password_env):
        raise SpecError(source, "user", "the name of the user whose password it is")


def _check_proxy(source: str, spec: ClusterSpec) -> None:
    if spec.proxy not in PROXY_MODES:
        raise SpecError(source, "proxy", f"off, one or all, got {_shown(spec.proxy)}")
    if read_listen_address(spec.proxy_listen) is None:
        raise SpecError(
            source, "proxy_listen", f"HOST:PORT, or HOST:FIRST-LAST for a range, got {_shown(spec.proxy_listen)}"
        )
    if spec.proxy_advertise and read_advertised_address(spec.proxy_advertise) is None:
        raise SpecError(source, "proxy_advertise", f"HOST, or HOST:PORT, got {_shown(spec.proxy_advertise)}")
    if strange := [origin for origin in spec.proxy_cors if not is_origin(origin)]:
        raise SpecError(source, "proxy_cors", f"origins as https://HOST[:PORT], or *, got {_shown(strange[0])}")
    if spec.proxy_console not in CONSOLE_MODES:
        raise SpecError(source, "proxy_console", f"off, read or act, got {_shown(spec.proxy_console)}")
    _check_proxy_tls(source, spec.proxy_tls)


def _check_proxy_tls(source: str, tls: ProxyTls) -> None:
    for name in ("cert_file", "key_file", "trusted_ca_file"):
        path = getattr(tls, name)
        if path and (not path.startswith("/") or _UNSPEAKABLE.search(path)):
            raise SpecError(source, f"proxy_tls.{name}", f"an absolute path, got {_shown(path)}")
    for name, needs in (("cert_file", "key_file"), ("key_file", "cert_file"), ("trusted_ca_file", "cert_file")):
        if getattr(tls, name) and not getattr(tls, needs):
            raise SpecError(source, f"proxy_tls.{needs}", f"a path, since {name} is given")
    if tls.client_cert_auth and not tls.trusted_ca_file:
        raise SpecError(source, "proxy_tls.trusted_ca_file", "a path, since client_cert_auth is on")


_ON_OFF = {"on": True, "off": False}
_SECTIONS = ("timings", "limits", "compaction", "proxy_tls")


def _convert(source: str, raw: Any) -> ClusterSpec:
    spec = _typed(source, raw)
    _check_rules(source, spec)
    return spec


def _typed(source: str, raw: Any) -> ClusterSpec:
    """Convert plain values to a spec; a value that its type does not accept raises a ``SpecError`` that names it."""
    if not isinstance(raw, dict):
        raise SpecError(source, "", f"a mapping of fields, got {_shown(raw)}")
    # A section with all its lines commented out reads as null: it means the defaults.
    raw = {field: value for field, value in raw.items() if value is not None or field not in _SECTIONS}
    _no_unknown_fields(source, raw)
    port = raw.get("lane_ports")
    if type(port) is int and 0 < port < 1 << 16:  # one port, as YAML reads it
        raw = {**raw, "lane_ports": str(port)}
    for field in ("lanes", "lease_reads"):
        if isinstance(raw.get(field), str):  # a word: not from YAML, which reads on and off as booleans
            if raw[field] not in _ON_OFF:
                raise SpecError(source, field, f"on or off, got {_shown(raw[field])}")
            raw[field] = _ON_OFF[raw[field]]
    for field in ("proxy", "proxy_console"):
        if raw.get(field) is False:  # YAML's off
            raw[field] = "off"
    try:
        return msgspec.convert(raw, ClusterSpec)
    except msgspec.ValidationError as error:
        raise _spec_error(source, str(error), raw) from None
    except UnicodeEncodeError:  # a number is converted from text through its bytes
        raise SpecError(source, "", "text that UTF-8 can encode") from None


def _no_unknown_fields(source: str, raw: dict[Any, Any]) -> None:
    sections: dict[str, tuple[Any, tuple[str, ...]]] = {
        "": (raw, ClusterSpec.__struct_fields__),
        "timings.": (raw.get("timings"), Timings.__struct_fields__),
        "limits.": (raw.get("limits"), Limits.__struct_fields__),
        "compaction.": (raw.get("compaction"), Compaction.__struct_fields__),
        "proxy_tls.": (raw.get("proxy_tls"), ProxyTls.__struct_fields__),
    }
    if "password" in raw:
        raise SpecError(
            source, "password", "password_file or password_env in its place: a spec says where a password is"
        )
    for prefix, (given, known) in sections.items():
        for field in given if isinstance(given, dict) else ():
            if field not in known:
                near = difflib.get_close_matches(_named(field), known, 1)
                hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(known)}"
                raise SpecError(source, f"{prefix}{_named(field)}", f"a known field; {hint}")


_WORDS = {"str": "text", "array": "a list", "object": "a mapping", "int": "a whole number", "float": "a number"}
_EXPECTED = re.compile(r"Expected (?P<what>.*?)(?:, got .*?)?(?: - at `\$\.?(?P<path>.*)`)?$")
_INVALID_CHOICE = re.compile(r"Invalid enum value (.*) - at `\$\.compaction\.mode`")


def _spec_error(source: str, message: str, raw: Any) -> SpecError:
    """Rephrase msgspec's "Expected `int` >= 1 - at `$.members`" in the words of this file, with the value found."""
    choice = _INVALID_CHOICE.fullmatch(message)
    if choice is not None:
        return SpecError(source, "compaction.mode", f"age, revisions or off, got {_shown(choice[1].strip(chr(39)))}")
    found = _EXPECTED.match(message)
    if found is None:
        return SpecError(source, "", message)
    what = re.sub(r"`([^`]*)`", lambda m: " or ".join(_WORDS.get(w, w) for w in m[1].split(" | ")), found["what"])
    path = found["path"] or ""
    value = raw
    for step in re.findall(r"[^.\[\]]+", path):
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, (list, tuple)) and step.isdigit():
            value = value[int(step)]
    if path.startswith("password"):
        return SpecError(source, path, what)
    return SpecError(source, path, f"{what}, got {_shown(value)}")


_short = reprlib.Repr()
_short.maxlevel = 2
_short.maxstring = _short.maxother = 60


def _shown(value: Any) -> str:
    """A value for a message, abbreviated: a few lines of YAML can expand to billions of items."""
    try:
        text = _short.repr(value)
    except Exception:  # Python does not format a number of 5,000 digits
        text = f"something of type {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _named(name: Any) -> str:
    """The name of a field or file for a message: in one line, even for what cannot be such a name."""
    printable = isinstance(name, str) and name.isprintable() and len(name) <= _MAX_NAME
    return str(name) if printable else _shown(name)


_MAX_NAME = 4096
"""No path can be longer."""


def _plain(source: str, value: Any, depth: int = 3) -> Any:
    """Mappings, structs and paths as YAML would give them. Fields are nested at most ``depth`` deep."""
    if isinstance(value, msgspec.Struct):
        value = {name: getattr(value, name) for name in value.__struct_fields__}
    if isinstance(value, Mapping):
        if not depth:
            raise SpecError(source, "", "fields, and mappings of fields; a mapping is nested too deeply")
        return {key: _plain(source, item, depth - 1) for key, item in value.items()}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which refuses a repeated field: YAML would silently keep the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} occurs twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read(path: str) -> Any:
    """The content of a YAML file. Whatever it is that cannot be read, the error is a ``SpecError`` of one line."""
    try:
        with open(os.path.expanduser(path), encoding="utf-8") as file:
            content = yaml.load(file, _Loader)
    except OSError as error:
        raise SpecError(_named(path), "", f"a readable file: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SpecError(_named(path), "", "a UTF-8 text file") from None
    except yaml.YAMLError as error:
        raise SpecError(_named(path), "", f"valid YAML; {_where(error)}") from None
    except (RecursionError, MemoryError):
        raise SpecError(_named(path), "", "valid YAML; it is nested too deeply") from None
    except Exception as error:  # the YAML library lets errors of malformed dates and numbers pass
        raise SpecError(
            _named(path), "", f"valid YAML; {' '.join(str(error).split()) or type(error).__name__}"
        ) from None
    return {} if content is None else content


def _where(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = " ".join(str(getattr(error, "problem", None) or error).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else problem
