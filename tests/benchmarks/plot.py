"""results.json as a picture: bars for each server, curves for growth."""

from pathlib import Path
from typing import Any

from measure import Figure
from report import Results, curves, of

_COLOURS = {
    "gateway": "#2563eb",
    "nginx": "#16a34a",
    "bare aiohttp": "#9ca3af",
    "LiteLLM": "#d97706",
}


def draw(results: Results, path: Path) -> bool:
    """Returns False without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    # Text stays text and ids do not change between runs: the file and its diffs stay small.
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "bench", "font.size": 9})
    figure, rows = plt.subplots(2, 3, figsize=(12, 7), facecolor="white", layout="constrained")
    events = results.get("events", {}).get("long 200", {})
    requests = results.get("requests", {}).get("32", {})
    _bars(rows[0][0], events, "CPU µs per streamed event, 200 streams")
    _bars(rows[0][1], requests, "CPU µs per whole request")
    titles = {
        "streams": "streams",
        "agents": "agents in config.yaml",
        "keys": "keys in the database",
        "replicas": "replicas that share one Redis",
    }
    drawn = curves(results.get("growth", {}))
    for axes, (varied, title) in zip([rows[0][2], *rows[1]], titles.items(), strict=True):
        _lines(axes, drawn.get(varied, {}), f"CPU µs by {title}")
    figure.savefig(path, format="svg", metadata={"Date": None})
    plt.close(figure)
    return True


def small(results: Results) -> str:
    """The README's picture, an SVG made without matplotlib: CPU µs per streamed event of Dify."""
    events = results["events"]["long 200"]
    width = 420 / of(events["bare aiohttp, dify"], "cpu_us").median
    rows = []
    for row, (server, colour) in enumerate(list(_COLOURS.items())[:3]):
        cpu_us, y = of(events[f"{server}, dify"], "cpu_us").median, 44 + 30 * row
        rows += [
            f'<text x="120" y="{y + 15}" text-anchor="end">{server}</text>',
            f'<rect x="130" y="{y}" width="{cpu_us * width:.0f}" height="21" fill="{colour}"/>',
            f'<text x="{137 + cpu_us * width:.0f}" y="{y + 15}">{cpu_us:.0f} µs</text>',
        ]
    head = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 146" width="640" height="146"'
        ' font-family="system-ui, sans-serif" font-size="14">\n'
        '<rect width="640" height="146" rx="12" fill="#ffffff"/>\n'
        '<text x="20" y="27" font-weight="600">CPU time per streamed event, 200 streams</text>\n'
    )
    return head + "\n".join(rows) + "\n</svg>\n"


def _bars(axes: Any, by_target: Results, title: str) -> None:
    names = [name for name in by_target if not name.startswith("nothing")]
    figures = [of(by_target[name], "cpu_us") for name in names]
    middles = [f.median for f in figures]
    colours = [_COLOURS[name.partition(",")[0]] for name in names]
    axes.barh(names, middles, xerr=_errors(figures), color=colours, ecolor="#111827", capsize=3)
    for row, middle in enumerate(middles):
        place = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(f"{middle:.0f}", (figures[row].high, row), **place)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    _finish(axes, title)


def _lines(axes: Any, lines: dict[str, dict[int, Figure]], title: str) -> None:
    for name, line in lines.items():
        figures = list(line.values())
        middles = [f.median for f in figures]
        axes.errorbar(list(line), middles, yerr=_errors(figures), marker="o", capsize=3, label=name)
    if lines:
        axes.set_xscale("log")
        counts = list(next(iter(lines.values())))
        axes.set_xticks(counts, [f"{n // 1000}k" if n >= 1000 else str(n) for n in counts])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
    _finish(axes, title)


def _errors(figures: list[Figure]) -> list[list[float]]:
    """How far each figure extends below and above its median."""
    return [[f.median - f.low for f in figures], [f.high - f.median for f in figures]]


def _finish(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
