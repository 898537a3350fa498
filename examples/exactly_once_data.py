"""A Ray Data pipeline whose blocks are written exactly once into a folder outside of Ray, whatever dies meanwhile.

Ray Data runs a task again whose worker or node has died, a task that was given up on may still write, and a driver that
is started again begins from the start. So each block has an *identity* that is the same every time: here the input file
that its rows come from, by its full path. One task reads a file whole, and says with each row how many there are
(``whole``): a sink that is given a part of a file refuses it, before anything of it is there. What is written becomes
visible by a *commit* in RayKeeper, one for each identity:

1. the lock of the identity is taken (the claim): of two attempts one works, the other waits;
2. the rows are written into a file that is named after identity and content, which harms nobody if it is written twice;
3. ``commit/<identity>`` is put through the lock's guard, on condition that it is not there, with a ``request_id`` made
   of the identity. An attempt that lost its claim is refused; the same commit again is the same answer.

Who reads the folder reads the files that are committed (:meth:`ExactlyOnceSink.parts`); others are leftovers of dead
attempts. A driver that is started again passes over what is committed already.

The example kills a worker process and the driver in the middle of the work, starts the driver again, and counts the
rows. Exit status 1 if one is missing or there twice. Needs ``pip install 'raykeeper[data]'``.

    python examples/exactly_once_data.py [--files N]
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import ray
from ray.data import Datasink
from stage import check, kill, say, stage, until

import raykeeper
from raykeeper import Compare, Op

ROWS = 200  # in each input file


class ExactlyOnceSink(Datasink):
    """Writes tables as CSV into a folder that all nodes share; copy this class. For S3 and the like change ``_store``.

    Args:
        kv: a client; it travels with the sink to the tasks.
        name: of the sink: what is committed under it is never written again.
        folder: where the parts go.
        pause: seconds that each write takes longer, for those who want to see it interrupted.
    """

    def __init__(self, kv: raykeeper.Client, name: str, folder: str, pause: float = 0.0) -> None:
        self.area = f"sink/{name}/"
        self.kv = kv.namespace(self.area).with_codec(raykeeper.codec.JSON)
        self.folder = folder
        self.pause = pause

    def left(self, files: Iterable[str]) -> list[str]:
        """Those of some input files, by their full paths, that are not committed yet."""
        done = self.committed()
        return [file for file in files if file not in done]

    def committed(self) -> dict[str, Any]:
        """What is committed, by identity; each time all that its file gives."""
        return {item.key.decode().removeprefix("commit/"): item.value for item in self.kv.range(prefix="commit/")}

    def parts(self) -> list[str]:
        """The files that hold the result, and nothing twice."""
        return [os.path.join(self.folder, entry["part"]) for entry in self.committed().values()]

    def write(self, blocks: Iterable[Any], ctx: Any) -> int:
        """Write some blocks of what ``whole`` makes: called by Ray Data in a task, more than once if it must be.

        Raises:
            ValueError: of some file there is only a part here, and nothing of that was written; or a file is committed
                with other rows.
        """
        table = pa.concat_tables([ray.data.block.BlockAccessor.for_block(block).to_arrow() for block in blocks])
        files = table["path"].unique().to_pylist() if table.num_rows else []
        for file in files:
            rows = table.filter(pyarrow.compute.equal(table["path"], file))
            if pyarrow.compute.any(pyarrow.compute.not_equal(rows["of"], rows.num_rows)).as_py():
                raise ValueError(f"{rows.num_rows} rows of {file} are not all: Ray Data has cut it into several blocks")
            self._write_once(file, rows.drop_columns(["path", "of"]))
        return len(files)

    def _write_once(self, identity: str, rows: pa.Table) -> None:
        self.kv.counter("attempts").add(1)  # for the view: how often it was tried
        content = io.BytesIO()
        pyarrow.csv.write_csv(rows, content)
        data = content.getvalue()
        which, what = (hashlib.sha256(of).hexdigest() for of in (identity.encode(), data))
        entry = {"part": f"{Path(identity).stem}-{which[:16]}-{what[:16]}.csv", "rows": rows.num_rows}
        with self.kv.lock(identity, ttl=5) as claim:
            if self.kv.get(f"commit/{identity}") is None:
                time.sleep(self.pause)
                self._store(entry["part"], data)
                done = claim.guard().txn(
                    compare=[Compare.version(f"commit/{identity}") == 0],
                    success=[Op.put(f"commit/{identity}", entry)],
                    request_id=which,
                )
                assert done.succeeded, "nobody else commits it while the claim is held"
        committed = self.kv.get(f"commit/{identity}")
        if committed is None or committed.value != entry:
            raise ValueError(f"{identity} is committed with other rows: what the pipeline makes of it varies")

    def _store(self, part: str, data: bytes) -> None:
        """The whole part, or none: it gets its name when all of it is on the disk, and the name is on the disk, too,
        before anybody commits it."""
        own = os.path.join(self.folder, f".{part}.{uuid.uuid4().hex}")  # other nodes write here, too
        with open(own, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(own, os.path.join(self.folder, part))
        names = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(names)
        finally:
            os.close(names)


def whole(file: str, rows: pa.Table) -> pa.Table:
    """All rows that a file gives, as the sink takes them: each with the file, and how many there are."""
    columns = {"path": pa.repeat(file, rows.num_rows), "of": pa.repeat(rows.num_rows, rows.num_rows)}
    for name, column in columns.items():
        rows = rows.append_column(name, column)
    return rows


def pipeline(kv: raykeeper.Client, name: str, source: str, folder: str, pause: float) -> None:
    """The driver's part: read, transform, write what is left. Call it again after any failure."""
    sink = ExactlyOnceSink(kv, name, folder, pause)
    files = sink.left(sorted(str(file) for file in Path(source).resolve().glob("*.csv")))
    if not files:
        return
    # One task reads a file whole and writes it. With a shuffle or the like in between, or tasks of other sizes, a file
    # that gives more than `DataContext.get_current().target_max_block_size` comes in parts, and the sink refuses it.
    named = ray.data.from_items([{"path": file} for file in files], override_num_blocks=len(files))
    named.map_batches(read_whole, batch_size=1, batch_format="pyarrow").write_datasink(sink)


def read_whole(batch: pa.Table) -> pa.Table:
    """The rows of the one file that the batch names."""
    [file] = batch["path"].to_pylist()
    return whole(file, transform(pyarrow.csv.read_csv(file)))


def transform(rows: pa.Table) -> pa.Table:
    """Some work on each row."""
    return rows.append_column("square", pyarrow.compute.multiply(rows["number"], rows["number"]))


def show_progress(kv: raykeeper.Client, name: str, total: int) -> None:
    """The progress view: a line for each commit, from any process, until all are there."""
    sink = ExactlyOnceSink(kv, name, "")
    with sink.kv.watch(prefix="commit/", only="put") as commits:
        done = len(sink.committed())
        while done < total:
            event = commits.next()
            done = len(sink.committed())
            now = ", ".join(f"{identity} by {pid}" for identity, pid in writers(sink).items())
            say(
                f"{done} of {total}: {event.kv.key.decode()}; {sink.kv.counter('attempts').value()} attempts; now {now}"
            )


def writers(sink: ExactlyOnceSink) -> dict[str, int]:
    """Who writes just now: identities, and process ids of their tasks."""
    held = {
        lock.name.decode().partition(sink.area)[2]: lock.holders[0].owner
        for lock in sink.kv.in_use("lock")
        if lock.holders
    }
    return {identity: owner.client.pid for identity, owner in held.items() if owner is not None}


def stopped_writer(sink: ExactlyOnceSink) -> int:
    """A process in the middle of a write, which stands still; 0 if there is none."""
    for pid in writers(sink).values():
        os.kill(pid, signal.SIGSTOP)
        if pid in writers(sink).values():
            return pid
        os.kill(pid, signal.SIGCONT)
    return 0


def make_input(source: str, files: int) -> None:
    """Some CSV files."""
    os.makedirs(source)
    for number in range(files):
        rows = "".join(f"{row}\n" for row in range(number * ROWS, (number + 1) * ROWS))
        Path(source, f"input-{number:04}.csv").write_text(f"number\n{rows}")


def verify(kv: raykeeper.Client, name: str, folder: str, files: int) -> None:
    """Each row of the input is in the result, once."""
    parts = ExactlyOnceSink(kv, name, folder).parts()
    numbers = [int(line.split(",")[0]) for part in parts for line in Path(part).read_text().splitlines()[1:]]
    check(sorted(numbers) == list(range(files * ROWS)), f"all {files * ROWS} rows are there, each once")


def driver(arguments: argparse.Namespace) -> subprocess.Popen[bytes]:
    """The pipeline in a process of its own, as a job would be."""
    command = [sys.executable, __file__, "--pipeline", arguments.folder, "--pause", str(arguments.pause)]
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--files", type=int, default=40)
    parser.add_argument("--pause", type=float, default=0.2, help="seconds that each write takes longer")
    parser.add_argument("--pipeline", metavar="FOLDER", help="run the pipeline alone, in the Ray of RAY_ADDRESS")
    arguments = parser.parse_args()
    if arguments.pipeline:
        ray.init(logging_level="ERROR")
        folder = arguments.pipeline
        pipeline(raykeeper.connect(), "squares", f"{folder}/in", f"{folder}/out", arguments.pause)
        return
    with tempfile.TemporaryDirectory() as folder, stage() as cluster:
        show(cluster.client(), arguments, folder)


def show(kv: raykeeper.Client, arguments: argparse.Namespace, folder: str) -> None:
    """Start it, kill what can be killed, start it again."""
    sink = ExactlyOnceSink(kv, "squares", "")
    arguments.folder, files = folder, arguments.files
    make_input(f"{folder}/in", files)
    os.makedirs(f"{folder}/out")
    view = threading.Thread(target=show_progress, args=(kv, "squares", files), daemon=True)
    view.start()
    with driver(arguments) as first:
        try:
            until(lambda: len(sink.committed()) >= files // 5, "a fifth", 120)
            kill(until(lambda: stopped_writer(sink), "a task that writes"), "a worker in the middle of a write")
            until(lambda: len(sink.committed()) >= 2 * files // 5, "two fifths", 120)
        finally:
            kill(first.pid, "the driver")
    say(f"{len(sink.committed())} of {files} are committed; the driver is started again")
    with driver(arguments) as second:
        check(second.wait() == 0, "the second driver is done")
    view.join()
    attempts = sink.kv.counter("attempts").value()
    check(attempts > files, f"some were tried again: {attempts} attempts for {files} files")
    verify(kv, "squares", f"{folder}/out", files)


if __name__ == "__main__":
    main()
