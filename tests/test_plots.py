import io
import json
import math
import sys
import time

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image

from supple import plots
from supple.compare_report import Band, Figures
from supple.errors import InputError
from supple.metrics import MetricSinks
from supple.plots import comparison_png, progress_png

COLUMNS = ("train/return_mean", "eval/return_mean", "eval/return_ci95", "time/env_steps_per_s")


def table(count):
    steps = [100.0 * (i + 1) for i in range(count)]
    return {"step": steps, **{name: [i + 1.0 for i in range(count)] for name in COLUMNS}}


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were written, beside their files."""
    figures = []
    real = Figure.savefig

    def savefig(self, *arguments, **options):
        figures.append(self)
        real(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


def lines(axes):
    return {line.get_label(): line.get_xydata().tolist() for line in axes.lines}


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_a_run_folder_becomes_a_titled_picture(tmp_path, drawn):
    settings = {"task": "toy/$a$", "agent_name": "flashsac", "seed": 3, "more": 1}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    sinks = MetricSinks(tmp_path)
    sinks.write(10, {"train/return_mean": 1.0, "time/env_steps_per_s": 5.0})
    sinks.write(20, {"eval/return_mean": 4.0, "eval/return_ci95": 0.5})
    sinks.write(30, {"train/return_mean": 3.0, "eval/return_mean": 6.0, "eval/return_ci95": 1.0})
    sinks.close()
    progress_png(tmp_path, tmp_path / "progress.png")
    top, bottom = drawn[0].axes
    assert top.get_title(loc="left") == r"toy/\$a\$ · flashsac · seed 3"
    assert lines(top) == {
        "training": [[10, 1], [30, 3]],
        "evaluation, 95 % interval": [[20, 4], [30, 6]],
    }
    band = top.collections[0].get_datalim(top.transData)
    assert (band.ymin, band.ymax) == (3.5, 7.0)
    assert [line.get_xydata().tolist() for line in bottom.lines] == [[[10, 5]]]
    assert texts(top) == []
    picture = Image.open(tmp_path / "progress.png")
    assert picture.size == (880, 572)
    assert len(np.unique(np.asarray(picture))) > 20
    assert [path.name for path in tmp_path.glob("*.tmp")] == []


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_rows_are_enough(tmp_path, drawn, count):
    progress_png(table(count), tmp_path / "p.png", title="few")
    top = drawn[0].axes[0]
    assert texts(top) == ([] if count else ["no finished episode yet"])
    heights = [each.get_datalim(top.transData).get_points()[:, 1] for each in top.collections]
    # One point gets a bar: a band of no width would not be seen.
    assert [isinstance(each, LineCollection) for each in top.collections] == [count == 1] * (
        count > 0
    )
    assert [height.tolist() for height in heights] == [[], [[0, 2]], [[0, 4]]][count]


def test_a_folder_without_rows_is_enough(tmp_path, drawn):
    progress_png(tmp_path, tmp_path / "p.png")
    assert drawn[0].axes[0].get_title(loc="left") == tmp_path.name
    assert (tmp_path / "p.png").exists()


@pytest.mark.filterwarnings("error")
def test_values_that_are_not_finite_are_left_out_and_counted(tmp_path, drawn):
    columns: dict[str, list[float | None]] = {
        "step": [1, 2, 3, 4],
        "train/return_mean": [1.0, math.nan, math.inf, 1e308],
        "eval/return_mean": [None, 1e38, -1e38, -math.inf],
        "eval/return_ci95": [None, math.nan, 1e308, 1.0],
        "time/env_steps_per_s": [math.nan] * 4,
    }
    progress_png(columns, tmp_path / "p.png")
    top = drawn[0].axes[0]
    assert lines(top) == {
        "training": [[1, 1]],
        "evaluation, 95 % interval": [[2, 1e38], [3, -1e38]],
    }
    assert texts(top) == ["4 non-finite values left out"]


def test_an_old_picture_survives_a_failure(tmp_path, monkeypatch):
    path = tmp_path / "p.png"
    path.write_bytes(b"old")
    monkeypatch.setattr("os.replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        progress_png(table(2), path)
    assert [each.name for each in tmp_path.iterdir()] == ["p.png"]
    assert path.read_bytes() == b"old"


def test_a_foreign_table_is_refused(tmp_path):
    (tmp_path / "metrics.csv").write_text("time\n1\n")
    with pytest.raises(InputError, match="no metrics table"):
        progress_png(tmp_path, tmp_path / "p.png")


def test_variants_are_drawn_with_their_intervals(tmp_path, drawn):
    steps = np.array([10.0, 20.0, 30.0])
    mean = np.array([1.0, 2.0, math.nan])
    band = Band(x=steps, middle=mean, low=mean - 1, high=mean + 2)
    bands = {f"variant {i}": band for i in range(9)}
    one = {"variant 0": band}
    means = {"variant 0": (1.5, 1.0, 2.0)}
    shown = Figures(over_steps={"toy/point": bands}, profiles=one, means=means)
    comparison_png(shown, tmp_path / "c.png")
    left, right, profile, dots = drawn[0].axes
    assert left.get_title(loc="left") == "toy/point"
    assert lines(left) == {name: [[10, 1], [20, 2]] for name in bands}
    assert len({line.get_color() for line in left.lines}) == len(plots.COLOURS)
    extent = left.collections[0].get_datalim(left.transData)
    assert (extent.ymin, extent.ymax) == (0, 4)
    assert [text.get_text() for text in right.texts] == ["no wall-clock is known"]
    assert profile.get_xlabel() == "return"
    assert dots.lines[0].get_xdata().tolist() == [1.5]
    assert Image.open(io.BytesIO((tmp_path / "c.png").read_bytes())).format == "PNG"


def test_drawing_is_quick_and_needs_no_pyplot(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it fails
    progress_png(table(400), tmp_path / "p.png")  # fonts are found at the first use
    seconds = []
    for _ in range(3):  # the least of three: a shared core only ever adds time
        start = time.process_time()
        progress_png(table(400), tmp_path / "p.png")
        seconds.append(time.process_time() - start)
    assert min(seconds) < 2
