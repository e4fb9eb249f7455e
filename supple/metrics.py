"""Where metric rows go: CSV, JSONL and TensorBoard always, Weights & Biases on request.

* ``metrics.csv``: first column ``step`` (environment steps), a column per metric ever seen, empty
  where a row lacks it. Numbers read back exactly; ``nan``, ``inf`` and ``-inf`` are spelled so.
* ``metrics.jsonl``: one object a line, only the metrics of that row. JSON has no NaN or infinity:
  both are ``null``; the CSV tells which.
* ``events.out.tfevents.*``: TensorBoard, a tag per metric.
"""

from __future__ import annotations

import csv
import importlib
import io
import json
import math
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

from supple.errors import InputError, first_line, how_to_install, say_once
from supple.files import replace_file

METRICS = "metrics.csv"
WANDB_ID = "wandb-id"
"""The run's on Weights & Biases; checkpoints name it as well."""
WITHOUT_WANDB = "go on without: leave --log.wandb out, in a run there is supple resume --no-wandb"


class MetricSinks:
    """Every sink of one run. Existing files are continued.

    Args:
        folder: the run's folder.
        wandb_project: Weights & Biases project; empty is off.
        settings: what W&B is told of the run, nested; its ``task`` groups runs.
        writes: False takes rows and keeps none.

    Raises:
        InputError: W&B is wanted but not installed, or ``metrics.csv`` is not one of ours.
    """

    def __init__(
        self,
        folder: Path,
        *,
        wandb_project: str = "",
        settings: Mapping[str, Any] | None = None,
        writes: bool = True,
    ) -> None:
        self._folder = folder
        self._sinks: list[Sink] = []
        if writes:
            self._sinks += [
                CsvSink(folder / METRICS),
                JsonlSink(folder / "metrics.jsonl"),
                TensorBoardSink(folder),
            ]
        self._wandb: WandbSink | None = None
        if wandb_project and writes:
            self._wandb = WandbSink(folder, wandb_project, settings or {})
            self._sinks.append(self._wandb)

    def begin(self) -> None:
        """Make sure that rows will arrive, before there are any.

        Raises:
            InputError: W&B is wanted and refuses.
        """
        if self._wandb:
            self._wandb.begin()

    def write(self, step: int, row: Mapping[str, float], *, replace: bool = False) -> None:
        """Append one row; it is with the operating system when this returns.

        Args:
            step: environment steps.
            row: metric name to value; any subset of the names, new ones at any time.
            replace: put it in place of the rows from ``step`` on. A kill leaves those or this one.

        Raises:
            ValueError: a metric is called ``step``.
            OSError: the disk is full.
        """
        if "step" in row:
            raise ValueError("a metric row cannot hold 'step': it is the row's own column")
        values = {name: float(value) for name, value in row.items()}
        for sink in self._sinks:
            sink.write(step, values, replace=replace)

    def truncate_after(self, step: int) -> None:
        """Forget rows beyond ``step`` and what a kill left half-written; for a resume.

        TensorBoard files cannot be cut: the next one tells readers to drop what lies beyond.
        W&B keeps such points; they are drawn twice.
        """
        for sink in self._sinks:
            sink.truncate_after(step)

    def show_video(self, step: int, path: Path) -> None:
        """Send a film to where films can be looked at: W&B."""
        if self._wandb:
            self._wandb.show_video(step, path)

    def row_at(self, step: int) -> dict[str, float]:
        """The newest row, if it is that of ``step``; else nothing."""
        path = self._folder / METRICS
        columns = read_csv(path) if path.exists() else {}
        if not columns.get("step") or columns["step"][-1] != step:
            return {}
        newest = {name: values[-1] for name, values in columns.items() if name != "step"}
        return {name: value for name, value in newest.items() if value is not None}

    def flush(self) -> None:
        """Wait until all rows are on the disk."""
        for sink in self._sinks:
            sink.flush()

    def close(self) -> None:
        """Release the files. Safe to call twice."""
        for sink in self._sinks:
            sink.close()

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs to log to the same place: the W&B run id or None."""
        return {"wandb_run_id": self._wandb.run_id if self._wandb else None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict()``'s value; before ``begin`` and the first ``write``."""
        if self._wandb and state["wandb_run_id"]:
            self._wandb.run_id = state["wandb_run_id"]


def read_csv(path: Path | str) -> dict[str, list[float | None]]:
    """The columns of a ``metrics.csv``; None where a row lacks the metric.

    Half-written rows are left out, so that a run in progress can be read.

    Raises:
        InputError: no such file, or not one of ours.
    """
    columns, rows = _read_table(Path(path))
    return {
        name: [float(row[i]) if row[i] else None for row in rows] for i, name in enumerate(columns)
    }


def complete(columns: Mapping[str, Sequence[float | None]], *names: str) -> list[tuple[float, ...]]:
    """The rows of ``read_csv``'s columns in which all of these have a number."""
    blank: list[float | None] = [None] * len(columns.get("step", ()))
    rows = zip(*(columns.get(name, blank) for name in names), strict=True)
    return [tuple(value for value in row if value is not None) for row in rows if None not in row]


def best_evaluation(run: Path) -> tuple[int, float] | None:
    """Step and mean return of a run's best evaluation, the later of equals; None without any.

    Raises:
        InputError: its metrics are not ours.
    """
    path = run / METRICS
    columns = read_csv(path) if path.exists() else {}
    found = max(complete(columns, "eval/return_mean", "step"), default=None)
    return None if found is None else (int(found[1]), found[0])


class Sink(Protocol):
    """One destination of metric rows; the methods are those of ``MetricSinks``."""

    def write(  # noqa: D102
        self, step: int, row: Mapping[str, float], *, replace: bool = False
    ) -> None: ...

    def truncate_after(self, step: int) -> None: ...  # noqa: D102

    def flush(self) -> None: ...  # noqa: D102

    def close(self) -> None: ...  # noqa: D102


class _Lines:
    """A text file that grows by lines; opened at the first one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None

    def _open(self) -> TextIO:
        if self._file is None:
            # Line-buffered: a kill loses no row, and the file can be followed while it grows.
            self._file = self._path.open("a", buffering=1, encoding="utf-8", newline="")
        return self._file

    def flush(self) -> None:
        """Wait until all lines are on the disk."""
        if self._file:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; the next line opens it again."""
        if self._file:
            self._file.close()
            self._file = None


class CsvSink(_Lines):
    """``metrics.csv``. A new metric rewrites the file, in one step, with one more column."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._columns = _read_table(path)[0] if path.exists() else ["step"]

    def write(self, step: int, row: Mapping[str, float], *, replace: bool = False) -> None:
        """Append a row."""
        new = [name for name in row if name not in self._columns]
        columns = [*self._columns, *new]
        cells = [str(step), *(repr(row[name]) if name in row else "" for name in columns[1:])]
        if not (new or replace) and self._path.exists():
            self._open().write(_csv_text([cells]))
            return
        self.close()
        rows = _read_table(self._path)[1] if self._path.exists() else []
        kept = [row for row in rows if int(row[0]) < step] if replace else rows
        empty = [""] * len(new)
        self._replace(columns, [*([*row, *empty] for row in kept), cells])

    def truncate_after(self, step: int) -> None:
        """Keep whole rows up to ``step``, and the columns that were known by then."""
        if not self._path.exists():
            return
        self.close()
        columns, rows = _read_table(self._path)
        kept = [row for row in rows if int(row[0]) <= step]
        known = [i for i in range(len(columns)) if i == 0 or any(row[i] for row in kept)]
        self._replace([columns[i] for i in known], [[row[i] for i in known] for row in kept])

    def _replace(self, columns: list[str], rows: Iterable[Sequence[str]]) -> None:
        replace_file(self._path, _csv_text([columns, *rows]).encode())
        self._columns = columns


class JsonlSink(_Lines):
    """``metrics.jsonl``."""

    def write(self, step: int, row: Mapping[str, float], *, replace: bool = False) -> None:
        """Append a row."""
        values = {name: value if math.isfinite(value) else None for name, value in row.items()}
        line = json.dumps({"step": step, **values}, allow_nan=False) + "\n"
        if replace:
            self._cut(step - 1, line)
        else:
            self._open().write(line)

    def truncate_after(self, step: int) -> None:
        """Keep whole rows up to ``step``."""
        if self._path.exists():
            self._cut(step, "")

    def _cut(self, step: int, then: str) -> None:
        self.close()
        lines = _whole_lines(self._path).splitlines(keepends=True) if self._path.exists() else []
        kept = [line for line in lines if _json_step(line) <= step]
        replace_file(self._path, "".join([*kept, then]).encode())


class TensorBoardSink:
    """TensorBoard event files in the run's folder; a new file per process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None
        self._purge_step: int | None = None

    def write(self, step: int, row: Mapping[str, float], *, replace: bool = False) -> None:
        """Append a row; non-finite values are drawn as gaps."""
        if replace:
            self.truncate_after(step - 1)
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=self._purge_step)
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)

    def truncate_after(self, step: int) -> None:
        """Make readers drop what earlier files hold beyond ``step``."""
        self.close()
        self._purge_step = step + 1

    def flush(self) -> None:
        """Write what is queued."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Write what is queued and close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def require_wandb(project: str) -> Any:
    """The wandb module.

    Raises:
        InputError: the package is missing.
    """
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise InputError(
            f"--log.wandb {project} needs the wandb package, which cannot be imported"
            f" ({error}): {how_to_install('wandb')}, or {WITHOUT_WANDB}"
        ) from error


class WandbSink:
    """One Weights & Biases run, continued by its id.

    Args:
        folder: the run's folder, whose path is its name there.
        project: of W&B, which reads entity, tags and mode from its own variables.
        settings: of the run; those of one ``task`` are a group, or what ``WANDB_RUN_GROUP`` says.

    Raises:
        InputError: the package is missing.
    """

    def __init__(self, folder: Path, project: str, settings: Mapping[str, Any]) -> None:
        self._wandb = require_wandb(project)
        self._folder = folder
        self._project = project
        self._settings = settings
        self._run: Any = None
        self._lost = False
        self._id_file = folder / WANDB_ID
        known = self._id_file.read_text().strip() if self._id_file.exists() else ""
        self.run_id = known or uuid.uuid4().hex[:12]

    def write(self, step: int, row: Mapping[str, float], *, replace: bool = False) -> None:
        """Send a row."""
        self._log(step, row)

    def show_video(self, step: int, path: Path) -> None:
        """Send a film."""
        self._log(step, {"video": self._wandb.Video(str(path))})

    def begin(self) -> None:
        """Open the run there.

        Raises:
            InputError: W&B refuses: nobody is logged in, or it cannot be reached.
        """
        # Before W&B knows it: a run that is killed before its first checkpoint has one, too.
        replace_file(self._id_file, self.run_id.encode())
        try:
            self._run = self._wandb.init(
                project=self._project,
                id=self.run_id,
                name="/".join(self._folder.absolute().parts[-3:]),
                group=os.environ.get("WANDB_RUN_GROUP") or self._settings.get("task"),
                config=dict(self._settings),
                allow_val_change=True,  # a resume may extend training
                dir=str(self._folder),
                resume="allow",
            )
            # W&B's own step only grows, and would drop the rows a resume repeats.
            self._run.define_metric("*", step_metric="env_steps")
        except Exception as error:  # its own errors, those of HTTP and of sockets
            raise InputError(
                f"--log.wandb {self._project} cannot begin: {first_line(error)}; wandb login, or"
                f" WANDB_MODE=offline, or {WITHOUT_WANDB}"
            ) from error

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        if self._lost:
            return
        if self._run is None:
            self.begin()
        try:
            self._run.log({"env_steps": step, **values})
        except Exception as error:  # training is worth more than its rows there
            self._lost = True
            say_once(f"W&B takes no more rows, {METRICS} has them all: {first_line(error)}")

    def truncate_after(self, step: int) -> None:
        """Nothing: what was sent stays."""

    def flush(self) -> None:
        """Nothing: rows are sent in the background."""

    def close(self) -> None:
        """Send the rest."""
        run, self._run = self._run, None
        if run is None or self._lost:
            return
        try:
            run.finish()
        except Exception as error:  # what was trained is on the disk
            say_once(f"W&B may lack the last rows: {first_line(error)}")


# --- reading and writing text ----------------------------------------------------------------


def _whole_lines(path: Path) -> str:
    """The text up to its last line end."""
    text = path.read_bytes().decode("utf-8", errors="replace")
    return text[: text.rfind("\n") + 1]


def _read_table(path: Path) -> tuple[list[str], list[list[str]]]:
    """Columns, and the rows that are whole: as many cells as columns, every cell a number."""
    try:
        table = list(csv.reader(io.StringIO(_whole_lines(path), newline="")))
    except (OSError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a metrics table: {error}") from error
    columns = table[0] if table else []
    if columns[:1] != ["step"]:
        raise InputError(f"{path} is no metrics table: expected its first column to be step")
    return columns, [row for row in table[1:] if len(row) == len(columns) and _is_row(row)]


def _is_row(cells: Sequence[str]) -> bool:
    try:
        int(cells[0])
        for cell in cells[1:]:
            float(cell or 0)
    except ValueError:
        return False
    return True


def _csv_text(rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _json_step(line: str) -> float:
    """The row's step; infinity for a damaged line."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
