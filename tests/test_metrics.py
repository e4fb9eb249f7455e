import json
import math
import struct
import sys
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing import event_accumulator  # type: ignore[import-untyped]

from supple.cli import BAD_INPUT, DONE, main
from supple.errors import InputError
from supple.metrics import CsvSink, JsonlSink, MetricSinks, Sink, read_csv
from tests.small_runs import FakeWandb, flags, run_whole, small_settings


@pytest.fixture
def sinks(tmp_path):
    made = MetricSinks(tmp_path)
    yield made
    made.close()


def bits(value):
    return None if value is None else struct.pack("d", value)


def json_rows(path):
    def refuse(text):
        raise ValueError(f"{text} is not JSON")

    lines = path.read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def test_a_new_metric_widens_the_table(tmp_path, sinks):
    sinks.write(10, {"b": 0.1, "a": 2})
    sinks.write(20, {"a": 3.0, "late": math.inf, "z,\"quoted'": -0.0})
    sinks.write(30, {})
    assert (tmp_path / "metrics.csv").read_text() == (
        'step,b,a,late,"z,""quoted\'"\n10,0.1,2.0,,\n20,,3.0,inf,-0.0\n30,,,,\n'
    )
    assert read_csv(tmp_path / "metrics.csv") == {
        "step": [10, 20, 30],
        "b": [0.1, None, None],
        "a": [2, 3, None],
        "late": [None, math.inf, None],
        "z,\"quoted'": [None, 0.0, None],
    }


def test_json_lines_are_valid_and_hold_the_row(tmp_path, sinks):
    sinks.write(1, {"a": 0.1, "n": math.nan})
    sinks.write(2, {"p": math.inf, "m": -math.inf})
    assert json_rows(tmp_path / "metrics.jsonl") == [
        {"step": 1, "a": 0.1, "n": None},
        {"step": 2, "p": None, "m": None},
    ]


rows = st.lists(
    st.dictionaries(st.sampled_from(["a", "b/c", "d"]), st.floats(), max_size=3), max_size=6
)


@settings(max_examples=40, deadline=None)
@given(rows=rows, cut=st.integers(-1, 6))
def test_numbers_read_back_exactly_and_truncation_equals_never_written(tmp_path_factory, rows, cut):
    folder = tmp_path_factory.mktemp("run")
    csv_path, jsonl_path = folder / "metrics.csv", folder / "metrics.jsonl"
    files: list[Sink] = [CsvSink(csv_path), JsonlSink(jsonl_path)]
    expected = [*enumerate(rows[: cut + 1]), (99, {"d": 1.0, "a": 2.0})]
    for sink in files:
        for step, row in enumerate(rows):
            sink.write(step, row)
        sink.truncate_after(cut)
        sink.write(*expected[-1])
        sink.close()
    fresh: list[Sink] = [CsvSink(folder / "fresh.csv"), JsonlSink(folder / "fresh.jsonl")]
    for sink in fresh:
        for step, row in expected:
            sink.write(step, row)
        sink.close()
    assert csv_path.read_bytes() == (folder / "fresh.csv").read_bytes()
    assert jsonl_path.read_bytes() == (folder / "fresh.jsonl").read_bytes()
    found = read_csv(csv_path)
    assert found["step"] == [step for step, _ in expected]
    for name in ("a", "b/c", "d"):
        column = found.get(name, [None] * len(expected))
        wanted = [row.get(name) for _, row in expected]
        # A NaN's sign and payload are not kept in text.
        assert [bits(x) for x in column if x == x] == [bits(x) for x in wanted if x == x]
        assert [x is None for x in column] == [x is None for x in wanted]
    for found_row, (step, row) in zip(json_rows(jsonl_path), expected, strict=True):
        assert found_row.pop("step") == step
        assert list(found_row) == list(row)
        for value, wanted in zip(found_row.values(), row.values(), strict=True):
            assert bits(value) == (bits(wanted) if math.isfinite(wanted) else None)


@pytest.mark.parametrize("lost", range(1, 12))
def test_a_half_written_last_line_is_dropped(tmp_path, lost):
    sinks = MetricSinks(tmp_path)
    for step in (1, 2, 3):
        sinks.write(step, {"value": step + 0.5})
    sinks.close()
    for name in ("metrics.csv", "metrics.jsonl"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: -min(lost, len(data.splitlines()[-1]))])
    assert read_csv(tmp_path / "metrics.csv")["step"] == [1, 2]
    resumed = MetricSinks(tmp_path)
    resumed.truncate_after(3)
    resumed.write(3, {"value": 9.0})
    resumed.close()
    assert read_csv(tmp_path / "metrics.csv")["value"] == [1.5, 2.5, 9.0]
    assert [row["value"] for row in json_rows(tmp_path / "metrics.jsonl")] == [1.5, 2.5, 9.0]


def test_lines_that_lost_their_content_are_dropped(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,a\n1,0.5\n2,0.\0\n3\n4,5,6\nx,1\n")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n\0\0\n[]\n{"step": 2, "a\n')
    sinks = MetricSinks(tmp_path)
    sinks.truncate_after(10)
    assert (tmp_path / "metrics.csv").read_text() == "step,a\n1,0.5\n"
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'


def test_a_row_takes_the_place_of_an_older_one_or_leaves_it(tmp_path, sinks, monkeypatch):
    for step in (1, 2, 3):
        sinks.write(step, {"a": float(step)})
    with monkeypatch.context() as killed:
        killed.setattr("supple.metrics.replace_file", Mock(side_effect=OSError))
        with pytest.raises(OSError):
            sinks.write(2, {"a": 4.0, "b": 5.0}, replace=True)
    assert sinks.row_at(3) == {"a": 3.0}
    sinks.write(2, {"a": 4.0, "b": 5.0}, replace=True)
    sinks.write(3, {"b": 6.0})
    assert read_csv(tmp_path / "metrics.csv") == {
        "step": [1, 2, 3],
        "a": [1, 4, None],
        "b": [None, 5, 6],
    }
    assert [row["step"] for row in json_rows(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_truncating_nothing_creates_nothing(tmp_path, sinks):
    sinks.truncate_after(5)
    sinks.flush()
    assert list(tmp_path.iterdir()) == []


def test_rows_are_readable_without_closing(tmp_path, sinks):
    sinks.write(1, {"a": 1.0})
    assert read_csv(tmp_path / "metrics.csv")["a"] == [1.0]
    assert len(json_rows(tmp_path / "metrics.jsonl")) == 1


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path):
    for values, resume_at in (((1.0, 2.0, 3.0), None), ((20.0, 30.0), 1)):
        sinks = MetricSinks(tmp_path)
        first = 1
        if resume_at is not None:
            sinks.truncate_after(resume_at)
            first = resume_at + 1
        for step, value in enumerate(values, start=first):
            sinks.write(step, {"train/x": value})
        sinks.close()
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 2
    events = event_accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/x")] == [(1, 1), (2, 20), (3, 30)]


def test_closing_twice_and_writing_after_is_fine(tmp_path):
    sinks = MetricSinks(tmp_path)
    for step in (1, 2):
        sinks.write(step, {"a": 1.0})
        sinks.close()
        sinks.close()
    assert read_csv(tmp_path / "metrics.csv")["step"] == [1, 2]


def test_step_is_not_a_metric(sinks):
    with pytest.raises(ValueError, match="cannot hold 'step'"):
        sinks.write(1, {"step": 2.0})


def test_foreign_and_missing_tables_are_refused(tmp_path):
    path = tmp_path / "metrics.csv"
    with pytest.raises(InputError, match=r"cannot be read as a metrics table: .*No such file"):
        read_csv(path)
    for text in ("", "time,a\n1,2\n"):
        path.write_text(text)
        with pytest.raises(InputError, match="expected its first column to be step"):
            read_csv(path)
        with pytest.raises(InputError, match="expected its first column to be step"):
            MetricSinks(tmp_path)


def test_wandb_is_imported_only_when_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it fails
    sinks = MetricSinks(tmp_path)
    assert sinks.state_dict() == {"wandb_run_id": None}
    sinks.load_state_dict({"wandb_run_id": "abc"})  # W&B was on before: not an error
    with pytest.raises(InputError, match=r'pip install -e "\.\[wandb\]"'):
        MetricSinks(tmp_path, wandb_project="robots")


def test_a_run_that_wandb_refuses_ends_before_it_trains_and_goes_on_without(
    tmp_path, monkeypatch, capsys
):
    def refuse(**_):
        raise RuntimeError("api_key not configured\nand a long story")

    fake = FakeWandb()
    monkeypatch.setattr(fake, "init", refuse)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    folder = tmp_path / "run"
    given = [*flags(), "--env-steps", "300", "--run-dir", str(folder)]
    command = ["train", "toy/lqr", *given, "--log.wandb", "robots"]
    assert main(command) == BAD_INPUT
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(
        "supple: error: --log.wandb robots cannot begin: api_key not configured;"
    )
    assert "supple resume --no-wandb" in said
    assert not (folder / "metrics.csv").exists()
    monkeypatch.setitem(sys.modules, "wandb", None)  # and now it is not even installed
    assert main(["resume", str(folder)]) == BAD_INPUT
    assert "--no-wandb" in capsys.readouterr().err
    assert main(["resume", str(folder), "--no-wandb"]) == DONE
    assert json.loads((folder / "settings.json").read_text())["log"]["wandb"] == "robots"


def test_training_outlives_wandb(tmp_path, monkeypatch, capsys):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    sinks = MetricSinks(tmp_path, wandb_project="robots")
    sinks.begin()
    sinks.write(1, {"a": 1.0})

    def lose(row):
        raise ConnectionError("the server is gone")

    monkeypatch.setattr(fake, "log", lose)
    for step in (2, 3):
        sinks.write(step, {"a": 1.0})
    sinks.close()
    assert capsys.readouterr().err.count("W&B takes no more rows, metrics.csv has them all") == 1
    assert ("finish",) not in fake.calls  # which may wait for a server that is not there
    assert read_csv(tmp_path / "metrics.csv")["step"] == [1.0, 2.0, 3.0]


def test_wandb_continues_the_same_run(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    folder = tmp_path / "task" / "agent" / "seed0"
    folder.mkdir(parents=True)
    first = MetricSinks(folder, wandb_project="robots")
    first.write(1, {"a": 0.5})
    state = first.state_dict()
    first.close()
    second = MetricSinks(folder, wandb_project="robots")  # killed before its first checkpoint
    second.load_state_dict({"wandb_run_id": None})  # one from when W&B was off
    assert second.state_dict() == state
    second.truncate_after(-1)
    second.write(1, {"a": 0.5})
    second.close()
    third = MetricSinks(folder, wandb_project="robots")
    third.load_state_dict({"wandb_run_id": "of an older supple"})
    third.write(1, {"a": 0.5})
    assert MetricSinks(folder, wandb_project="robots").state_dict() == third.state_dict()
    third.close()
    options = [call[1] for call in fake.calls if call[0] == "init"]
    ids = [state["wandb_run_id"]] * 2 + ["of an older supple"]
    assert [each["id"] for each in options] == ids and len(ids[0]) == 12
    other = MetricSinks(tmp_path, wandb_project="robots").state_dict()
    assert other["wandb_run_id"] not in ids
    assert options[0]["project"] == "robots" and options[0]["resume"] == "allow"
    assert options[0]["name"] == "task/agent/seed0"
    assert options[0]["group"] is None and options[0]["config"] == {}
    assert fake.calls[1:4] == [
        ("define", "*", "env_steps"),
        ("log", {"env_steps": 1, "a": 0.5}),
        ("finish",),
    ]


@pytest.mark.parametrize("group", ["", "wide nets"])
def test_wandb_is_told_what_the_run_is(tmp_path, monkeypatch, group):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_RUN_GROUP", group)
    settings = small_settings("toy/lqr", tmp_path / "run", env_steps=80, agent="ppo")
    settings.log.wandb, settings.eval.video = "robots", True
    monkeypatch.setattr("supple.run.film", lambda *_, **__: None)
    run_whole(settings)
    (options,) = [call[1] for call in fake.calls if call[0] == "init"]
    assert options["group"] == (group or "toy/lqr")
    assert options["config"]["agent_name"] == "ppo"
    assert options["config"]["agent"]["gamma"] == settings.agent.gamma
    assert not {"entity", "tags", "mode"} & options.keys()  # left to W&B's own variables
    film = f"film of {tmp_path / 'run' / 'videos' / 'final.mp4'}"
    shown = [call[1] for call in fake.calls if call[0] == "log" and film in call[1].values()]
    assert shown == [{"env_steps": 80, "video": film}]
