"""The README's picture has the figures of results.json."""

import json
from pathlib import Path

import plot

HERE = Path(__file__).parent


def test_the_small_plot_shows_the_last_results():
    results = json.loads((HERE / "results.json").read_text("utf-8"))
    drawn = (HERE / "cost.svg").read_text("utf-8")
    assert drawn == plot.small(results), "make bench writes cost.svg"
