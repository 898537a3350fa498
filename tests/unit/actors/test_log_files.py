"""Where log lines go: a bounded file for each member, little to standard error; and a bad disk does no harm."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from lab.patience import PATIENCE
from raykeeper.actors import log_files
from raykeeper.actors.log_files import BackgroundHandler, LogFile, WarningHandler, log_file_name, ray_log_folder
from raykeeper.limits import LOG_LINES_PER_WINDOW, LOG_STDERR_LINES_PER_WINDOW, LOG_WINDOW_S


def record(text: str, level: int = logging.INFO, name: str = "raykeeper.x", **extra: object) -> logging.LogRecord:
    made = logging.LogRecord(name, level, "", 0, text, None, None)
    made.__dict__.update(extra)
    return made


# --- the file --------------------------------------------------------------------------------------------------------


def test_ray_lists_the_file_and_sends_it_to_no_driver() -> None:
    """As the log monitor of this Ray looks for what it sends."""
    name = log_file_name("jobs", "m1")
    assert name == "raykeeper-jobs-m1.log"
    source = (Path(ray.__file__).parent / "_private" / "log_monitor.py").read_text()
    assert '"{self.logs_dir}/worker*[.out|.err]"' in source, "Ray has changed: look again"
    assert not name.startswith(("worker", "java-worker", "raylet", "gcs_server", "monitor", "runtime_env"))


def test_a_file_and_the_earlier_ones_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_files, "LOG_FILE_BYTES", 200)
    monkeypatch.setattr(log_files, "LOG_OLD_FILES", 2)
    file = LogFile(str(tmp_path / "m1.log"))
    for number in range(100):
        file.emit(record(f"line {number:04}"))
    assert sorted(os.listdir(tmp_path)) == ["m1.log", "m1.log.1", "m1.log.2"]
    assert all(path.stat().st_size <= 200 for path in tmp_path.iterdir())
    assert (tmp_path / "m1.log").read_text().endswith("line 0099\n")


def test_two_processes_of_a_member_may_have_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one before still dies while the next one starts: what either rotates, the other follows."""
    monkeypatch.setattr(log_files, "LOG_FILE_BYTES", 200)
    one, other = LogFile(str(tmp_path / "m1.log")), LogFile(str(tmp_path / "m1.log"))
    for number in range(30):
        one.emit(record(f"one {number:04}"))
        other.emit(record(f"other {number:04}"))
    assert all(path.stat().st_size <= 200 for path in tmp_path.iterdir())
    assert (tmp_path / "m1.log").read_text().endswith("one 0029\nother 0029\n")


def test_a_folder_that_is_gone_costs_lines_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    file = LogFile(str(folder / "m1.log"))
    file.emit(record("first"))
    (folder / "m1.log").unlink()
    folder.rmdir()
    file.emit(record("lost"))
    folder.mkdir()
    file.emit(record("back"))
    assert (folder / "m1.log").read_text() == "back\n"
    assert capsys.readouterr() == ("", "")


class FullDisk(io.FileIO):
    """A file on a disk that is full while a test says so."""

    full = True

    def write(self, data: object) -> int:
        if FullDisk.full:
            raise OSError(28, "No space left on device")
        return super().write(data)  # type: ignore[arg-type]


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def opened(self: LogFile) -> io.TextIOWrapper:
        return io.TextIOWrapper(io.BufferedWriter(FullDisk(self.baseFilename, "a")), encoding="utf-8")

    monkeypatch.setattr(LogFile, "_open", opened)
    FullDisk.full = False
    yield
    FullDisk.full = False


@pytest.mark.parametrize("size", [100, 100_000])
@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_costs_lines_and_nothing_else(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also while a file is rotated, whose ``close`` then fails."""
    monkeypatch.setattr(log_files, "LOG_FILE_BYTES", size)
    monkeypatch.setattr(logging, "raiseExceptions", True)
    file = LogFile(str(tmp_path / "m1.log"))
    file.emit(record("before"))
    FullDisk.full = True
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        file.emit(record("lost " * 10))
    assert len(os.listdir("/proc/self/fd")) <= before
    FullDisk.full = False
    file.emit(record("back"))
    assert (tmp_path / "m1.log").read_text().endswith("back\n")
    assert capsys.readouterr() == ("", "")


def test_a_file_that_takes_no_more_is_opened_again(tmp_path: Path) -> None:
    file = LogFile(str(tmp_path / "m1.log"))
    file.emit(record("before"))
    assert file.stream is not None
    file.stream.close()
    file.emit(record("after"))
    file.stream = open(tmp_path / "m1.log")  # noqa: SIM115  # for reading: it never takes anything
    file.emit(record("lost"))
    file.emit(record("at last"))
    assert (tmp_path / "m1.log").read_text() == "before\nafter\nat last\n"


def test_a_real_disk_that_is_full(capsys: pytest.CaptureFixture[str]) -> None:
    file = LogFile("/dev/full")
    for _ in range(3):
        file.emit(record("lost"))
    assert capsys.readouterr() == ("", "")


# --- standard error --------------------------------------------------------------------------------------------------


class Kept(logging.Handler):
    def __init__(self, level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def test_few_lines_go_where_a_driver_reads_them() -> None:
    now = [0.0]
    kept, deaf = Kept(), Kept(logging.CRITICAL)
    handler = WarningHandler([kept, deaf], "/logs/m1.log", lambda: now[0])
    assert handler.level == logging.WARNING
    for number in range(LOG_STDERR_LINES_PER_WINDOW + 3):
        handler.emit(record(f"lost {number}", logging.WARNING))
    assert kept.lines == [f"lost {number}" for number in range(LOG_STDERR_LINES_PER_WINDOW)]
    handler.emit(record("the end", logging.CRITICAL))
    assert kept.lines[-1] == "the end"
    now[0] += LOG_WINDOW_S
    handler.emit(record("another", logging.ERROR))
    assert kept.lines[-1] == "another (and 3 more lines, in /logs/m1.log)"
    assert deaf.lines == ["the end"]


# --- the thread ------------------------------------------------------------------------------------------------------


def background(*targets: logging.Handler) -> BackgroundHandler:
    return BackgroundHandler("c", "m1", *targets)


class Stuck(logging.Handler):
    """Takes nothing until it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.free = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.free.wait(PATIENCE)
        self.lines.append(record.getMessage())


def test_a_disk_that_is_stuck_delays_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_files, "MAX_LOG_LINES_WAITING", 5)
    monkeypatch.setattr(log_files, "LOG_FLUSH_TIMEOUT_S", 0.01)
    stuck = Stuck()
    handler = background(stuck)
    for number in range(50):
        handler.emit(record(f"line {number}", cluster="c", member="m1"))
    handler.flush()
    monkeypatch.setattr(log_files, "LOG_FLUSH_TIMEOUT_S", 30.0)
    stuck.free.set()
    handler.flush()
    assert stuck.lines[0] == "line 0"
    assert 5 <= len(stuck.lines) <= 7, "as many as may wait, and those that were being written"


def test_a_handler_that_raises_ends_nothing() -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("x")

    kept, deaf = Kept(), Kept(logging.WARNING)
    handler = background(Broken(), kept, deaf)
    for text in ("one", "two"):
        handler.emit(record(text, cluster="c", member="m1"))
    handler.flush()
    assert (kept.lines, deaf.lines) == (["one", "two"], [])


def test_a_line_of_another_room_gets_cluster_and_member_and_a_bound() -> None:
    kept = Kept()
    handler = background(kept)
    for number in range(LOG_LINES_PER_WINDOW + 5):
        handler.emit(record(f"of a client {number}", name="raykeeper.client"))
    handler.emit(record("of a member", cluster="c", member="m2"))
    handler.flush()
    assert kept.lines[0] == "cluster c, m1: of a client 0"
    assert len(kept.lines) == LOG_LINES_PER_WINDOW + 1
    assert kept.lines[-1] == "of a member"


def test_a_traceback_is_text_and_a_line_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept()
    handler = background(kept)
    try:
        raise LookupError("of our own")
    except LookupError as error:
        made = logging.LogRecord("x", logging.ERROR, "", 0, "a %s", ("bug",), (type(error), error, error.__traceback__))
    made.__dict__.update(cluster="c", member="m1")
    handler.emit(made)
    monkeypatch.setattr(log_files, "MAX_LOG_LINE_CHARS", 10)
    handler.emit(record("0123456789abc", cluster="c", member="m1"))
    handler.flush()
    assert kept.lines[0].startswith("a bug\nTraceback")
    assert kept.lines[0].endswith("LookupError: of our own")
    assert kept.lines[1] == "0123456789 ... (3 more characters)"


# --- where Ray's files are -------------------------------------------------------------------------------------------


def worker(mode: object, folder: str | None) -> SimpleNamespace:
    node = SimpleNamespace(get_logs_dir_path=lambda: folder)
    return SimpleNamespace(global_worker=SimpleNamespace(mode=mode), _global_node=node if folder else None)


def test_only_a_process_that_ray_started_for_an_actor_has_a_log_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(mode: object, folder: str | None) -> str | None:
        monkeypatch.setattr(ray._private, "worker", worker(mode, folder))
        return ray_log_folder()

    assert found(ray.WORKER_MODE, str(tmp_path)) == str(tmp_path)
    assert found(ray.WORKER_MODE, str(tmp_path / "gone")) is None
    assert found(ray.SCRIPT_MODE, str(tmp_path)) is None
    assert found(None, None) is None


def test_where_ray_has_moved_things_the_redirected_standard_error_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray._private, "worker", SimpleNamespace())
    for name, folder in (("worker-0a-01-77.err", str(tmp_path)), ("output.txt", None)):
        monkeypatch.setattr(os, "readlink", lambda path, name=name: str(tmp_path / name))
        assert ray_log_folder() == folder


PROGRAM = """
import json, logging, sys
how, folder = sys.argv[1:]
if "root" in how:
    logging.basicConfig(format="root %(message)s", level=logging.INFO)
if "ours" in how:
    logging.getLogger("raykeeper").addHandler(logging.NullHandler())
before = list(logging.root.handlers), logging.root.level
from raykeeper.actors import log_files
from raykeeper.actors.logs import MemberLog
if folder:
    log_files.ray_log_folder = lambda: folder
for _ in range(2):
    log_files.log_to_ray("c", "m1")
log = MemberLog("member", "c", "m1")
log.info("hello")
log.warning("beware")
logging.getLogger("raykeeper.client").info("from inside")
logging.getLogger("another").debug("not ours")
log_files.flush_log()
assert before == (list(logging.root.handlers), logging.root.level)
"""


@pytest.fixture
def lines(tmp_path: Path) -> Callable[[str, bool], tuple[list[str], list[str]]]:
    """The lines of a process in the file and on standard error."""

    def run(how: str, ray: bool) -> tuple[list[str], list[str]]:
        command = [sys.executable, "-c", PROGRAM, how, str(tmp_path) if ray else ""]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout == ""
        file = tmp_path / "raykeeper-c-m1.log"
        written = file.read_text().splitlines() if file.exists() else []
        return written, done.stderr.splitlines()

    return run


Lines = Callable[[str, bool], tuple[list[str], list[str]]]


def test_an_actor_writes_to_its_file_and_warnings_to_standard_error_too(lines: Lines) -> None:
    file, stderr = lines("", True)
    assert [line.split(" raykeeper.")[1] for line in file] == [
        "member cluster c, m1: hello",
        "member cluster c, m1: beware",
        "client cluster c, m1: from inside",
    ]
    assert all(time.strptime(line[:19], "%Y-%m-%d %H:%M:%S") for line in file)
    (line,) = stderr
    assert line == file[1]


def test_with_a_logging_config_its_handlers_get_what_standard_error_would(lines: Lines) -> None:
    file, stderr = lines("root", True)
    assert len(file) == 3
    assert stderr == ["root cluster c, m1: beware"]


def test_without_ray_everything_goes_to_standard_error(lines: Lines) -> None:
    file, stderr = lines("", False)
    assert file == []
    assert [line.split(": ")[-1] for line in stderr] == ["hello", "beware", "from inside"]


def test_a_root_logger_with_handlers_is_enough_without_ray(lines: Lines) -> None:
    file, stderr = lines("root", False)
    assert file == []
    assert stderr == ["root cluster c, m1: hello", "root cluster c, m1: beware", "root from inside"]


@pytest.mark.parametrize("ray", [False, True])
def test_who_has_configured_our_logger_is_left_alone(lines: Lines, ray: bool) -> None:
    assert lines("ours", ray) == ([], [])
