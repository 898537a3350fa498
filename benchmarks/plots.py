"""The plots of the page: throughput against calls in flight, and latencies side by side."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from results import Result, Results


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw what there is to draw, as PNG files. Nothing, if matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        return []
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, measures, title in (
        ("puts", ("put",), "Durable puts a second, one client process (coroutines)"),
        ("gets", ("get", "sync+get"), "Linearizable gets a second, one client process (coroutines)"),
    ):
        lines = _lines(results, measures)
        if any(len(points) > 1 for points in lines.values()):
            drawn.append(_throughput(lines, title, folder / f"{name}.png"))
    bars = _bars(results)
    if bars:
        drawn.append(_latencies(bars, folder / "latency.png"))
    return drawn


def _lines(results: Results, measures: tuple[str, ...]) -> dict[str, list[Result]]:
    lines: dict[str, list[Result]] = {}
    for each in results:
        fits = each.measure in measures and each.face == "coroutines" and each.processes == 1
        if fits and not each.system.startswith("floor") and each.median("per_second"):
            name = (
                each.system
                if each.measure == measures[0]
                else f"{each.system} ({each.measure}: not quite linearizable)"
            )
            lines.setdefault(name, []).append(each)
    return lines


def _throughput(lines: dict[str, list[Result]], title: str, path: Path) -> Path:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2))
    for name, points in lines.items():
        points.sort(key=lambda each: each.in_flight)
        x = [each.in_flight for each in points]
        y = [each.median("per_second") or 0.0 for each in points]
        spread = [each.spread("per_second") or (0.0, 0.0) for each in points]
        errors = [[v - low for v, (low, _) in zip(y, spread, strict=True)]]
        errors.append([high - v for v, (_, high) in zip(y, spread, strict=True)])
        style = "--" if "actor" in name else "-"
        label = f"{name}: one copy, in memory" if "actor" in name else name
        axes.errorbar(x, y, yerr=errors, marker="o", capsize=3, linestyle=style, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("calls in flight")
    axes.set_ylabel("calls a second")
    axes.set_title(title, fontsize=11)
    axes.grid(True, which="both", alpha=0.25)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


_KINDS = (
    ("serial put", "put", 1),
    ("serial get,\nlinearizable", "get", 1),
    ("put to\nwatch event", "put to watch event", 2),
    ("lock and\nunlock", "lock and unlock", 1),
)


def _bars(results: Results) -> dict[str, list[float]]:
    """Median latencies in milliseconds by system, in the order of ``_KINDS``; 0 for what was not measured."""
    bars: dict[str, list[float]] = {}
    systems = dict.fromkeys(each.system for each in results if not each.system.startswith("floor"))
    for system in systems:
        times, label = [], system
        for _, measure, processes in _KINDS:
            found = results.median("p50", system, measure, "coroutines", processes)
            if found is None and measure == "get":
                found = results.median("p50", system, "sync+get")
                label = f"{system} (get: sync+get, not quite linearizable)" if found else label
            times.append((found or 0.0) * 1e3)
        if any(times):
            bars[label] = times
    return bars


def _latencies(bars: dict[str, list[float]], path: Path) -> Path:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2))
    width = 0.8 / len(bars)
    for number, (system, times) in enumerate(bars.items()):
        places = [place + (number - (len(bars) - 1) / 2) * width for place in range(len(_KINDS))]
        axes.bar(places, times, width, label=system)
    axes.set_xticks(range(len(_KINDS)), [kind[0] for kind in _KINDS])
    axes.set_ylabel("p50, milliseconds")
    axes.set_title("One call at a time", fontsize=11)
    axes.grid(True, axis="y", alpha=0.25)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
