"""The document by its schema, and the page: one file, no request, nothing a name can break."""

import dataclasses
import json
import shutil
import time
from html import escape
from html.parser import HTMLParser
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch

from supple.cli import main
from supple.diagnostics import document as documents
from supple.diagnostics import instability
from supple.diagnostics.channels import actuators_of, layout_of
from supple.diagnostics.document import Document
from supple.diagnostics.evidence import Evidence, Level, Verdict
from supple.diagnostics.reading import Measured, reading, undefined
from supple.diagnostics.report import svg
from supple.diagnostics.report.page import render, unanswered
from supple.diagnostics.targets import load_targets
from supple.envs.base import Box, Channel, EnvSpec
from supple.errors import InputError
from supple.metrics import METRICS, CsvSink
from tests.diagnostics.test_instability import linear, states
from tests.small_runs import run_whole, small_settings

HOSTILE = "</script><script>alert(1)</script>\"' onload=x <img src=http://evil.example/a>"
VOID = {"meta", "input", "br", "link"}


class Reader(HTMLParser):
    """Every element and attribute; refuses what is not nested well."""

    def __init__(self, page):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, Any]]] = []
        self.text = ""
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def analysis(width=3, names=()):
    found = tuple(Channel(name=name, group="policy", noise=1e-5) for name in names)
    spec = EnvSpec(
        task_id="made/up",
        num_envs=1,
        observation={"policy": width},
        action=Box(low=(-1.0,), high=(1.0,)),
        device=torch.device("cpu"),
        channels=found or None,
    )
    gain = torch.linspace(5, 0.1, width)[None]
    return instability.analyse(
        linear(gain),
        "action",
        states(rows=max(400, 4 * width), width=width),
        layout_of(spec, ("policy",)),
        torch.Generator().manual_seed(0),
        actuators=actuators_of(spec),
    )


def made(count=2, *, name="step", one=None, verdicts=True, every_pair=False):
    """A document of ``count`` checkpoints."""
    found = Document(command=f"supple diagnose {name}", suite="quick", device="cpu", seed=0)
    found.notes.append(f"note on {name}")
    for number in range(count):
        found.targets.append(
            {
                "id": number,
                "label": f"{name} {number}",
                "run": name,
                "task": name,
                "roles": ["last"] if number == count - 1 else [],
                "env_step": 1000 * number,
                "update": number,
                "algorithm": "flashsac",
                "preset": "laptop",
                "parameters": {"actor": 3},
                "observation": {"policy": 3},
                "actions": 1,
                "hash": "0" * 64,
            }
        )
        params = {"threshold": 0.1, "data": "anchor"}
        facts: dict[str, Any] = {"network": "critic", "params": params, "unit": "%", "n": 2048}
        found.add(number, reading(60.0 + number, metric="dormant", ci95=(50.0, 70.0), **facts))
        found.add(number, undefined(f"no rows in {name}", metric="fit_gap", network="critic"))
        facts = {"metric": "ret_mdd", "network": "run", "reference": {"fresh": float("nan")}}
        found.add(number, reading(1.0, **facts))
        found.add(number, reading(2.0, **facts))
        if number:
            drift = reading(0.3, metric="rdm_drift", network="critic")
            for before in range(number) if every_pair else [number - 1]:
                found.add(number, drift, before=before)
    xs, ys = [0.0, 1.0, 2.0], [1.0, 5.0, 3.0]
    found.add_series("eval/return_mean", count - 1, xs, ys, xlabel="environment steps")
    if one is not None:
        for each in instability.readings(one):
            found.add(count - 1, each)
    if verdicts:
        found.add_verdicts(
            [
                Verdict(
                    "V2",
                    "bad",
                    "high",
                    count - 1,
                    f"sick {name}",
                    [0],
                    [1],
                    ["do (--a.b, now 1)"],
                    name,
                ),
                Verdict("V1", "warn", "low", 0, "warned", [0], [], [name], "nothing"),
            ]
        )
    return found.to_json()


def page_of(record, one=None):
    last = len(record["targets"]) - 1
    analyses = {} if one is None else {(last, "action"): one}
    spectrum = {"critic/penultimate/0/spectrum_anchor": torch.tensor([3.0, 1.0, 0.0])}
    return render(record, analyses, {last: spectrum})


@pytest.mark.parametrize("count", [1, 2, 10])
def test_documents_follow_the_schema_and_pages_are_well_formed(count):
    one = analysis()
    record = made(count, one=one)
    jsonschema.validate(json.loads(documents.as_bytes(record)), documents.schema())
    Reader(page_of(record, one))


def test_changes_between_checkpoints_are_a_line_or_a_matrix():
    line, matrix = (page_of(made(4, every_pair=every)) for every in (False, True))
    assert "from each checkpoint to the next" in line
    assert 'class="cell"' not in line
    assert matrix.count('class="cell"') == 6


def test_a_bias_is_judged_by_its_size_on_either_side():
    found = Document(command="", suite="quick", device="cpu", seed=0)
    for value in (-0.9, -0.3, -0.1, 0.1, 0.3, 0.9):
        found.add(0, reading(value, metric="value_bias_norm", network="critic"))
    levels = [metric["level"] for metric in found.metrics]
    assert levels == ["bad", "warn", "ok", "ok", "warn", "bad"]
    record = made() | {"metrics": found.metrics}
    jsonschema.validate(json.loads(documents.as_bytes(record)), documents.schema())
    assert "± 0.2, 0.5 [E]" in Reader(page_of(record | {"verdicts": []})).text


def test_the_schema_refuses_what_is_not_finite_or_has_no_reason():
    record = made()
    for change in ({"value": None}, {"status": "undefined", "value": 1.0}, {"level": "dreadful"}):
        broken = json.loads(documents.as_bytes(record))
        broken["metrics"][0] |= change
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, documents.schema())
    record["metrics"][0]["value"] = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        documents.as_bytes(record)


def test_a_page_requests_nothing_and_needs_no_script():
    one = analysis(names=("a", "b", "c"))
    found = Reader(page_of(made(one=one), one))
    for tag, attributes in found.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "img")
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes)
    assert "http" not in page_of(made(one=one), one).replace("http-equiv", "")
    policy = next(a["content"] for t, a in found.elements if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'")
    targets = {a["href"][1:] for _, a in found.elements if a.get("href", "").startswith("#")}
    assert targets <= {a["id"] for _, a in found.elements if "id" in a}


def test_names_cannot_become_markup():
    one = analysis(names=(HOSTILE, "b", "c"))
    page = page_of(made(name=HOSTILE, one=one), one)
    plain = Reader(page_of(made(one=one), one))
    found = Reader(page)
    assert [tag for tag, _ in found.elements] == [tag for tag, _ in plain.elements]
    assert page.count("<script>") == 1
    assert "<img" not in page
    assert HOSTILE in found.text


def test_the_verdict_comes_first():
    text = Reader(page_of(made())).text
    places = [
        text.index(part) for part in ("1 fault and 1 warning", "sick step", "Seven questions")
    ]
    assert places == sorted(places)
    assert places[-1] < text.index("All measurements")
    assert "--a.b" in text


def test_without_faults_it_says_what_was_not_asked():
    text = Reader(page_of(made(verdicts=False))).text
    assert "No fault found by the checks that ran." in text
    assert "Not answered: Can it still learn? (no rows in step) Is the value right?" in text


def test_four_hundred_channels_fit():
    one = analysis(width=400, names=[f"joint_{k}_pos" for k in range(400)])
    page = page_of(made(one=one), one)
    Reader(page)
    assert len(page) < 2**20


KEPT = {
    # what a suite keeps for plots: the title it is drawn under
    "critic/all/trained/fit_curve_smooth_0": "How the critic learns new targets",
    "critic/all/fresh0/fit_curve_smooth_0": "How the critic learns new targets",
    "critic/all/0/grad_cos": "Gradients of the critic's samples",
    "critic/all/joined/value": "Values against returns",
    "critic/all/joined/return": "Bias over the episode",
    "critic/all/joined/step": "Values against returns",
    "critic/all/mean/support_atoms": "Mass on the value range",
    "critic/all/mean/support_target": "Mass on the value range",
    "critic/all/0/support_prediction": "Mass on the value range",
    "flow/all/mean/paths": "Paths of the flow",
}


def kept_arrays():
    random = torch.Generator().manual_seed(0)
    curve = torch.tensor([[10.0, 0.8], [20.0, 0.4]])
    steps = torch.arange(200)
    return {
        "critic/all/trained/fit_curve_smooth_0": curve,
        "critic/all/fresh0/fit_curve_smooth_0": curve,
        "critic/all/0/grad_cos": 2 * torch.rand(256, 256, generator=random) - 1,
        "critic/all/joined/value": torch.rand(200, generator=random),
        "critic/all/joined/return": torch.rand(200, generator=random),
        "critic/all/joined/step": steps % 50,
        "critic/all/mean/support_atoms": torch.linspace(-5, 5, 101),
        "critic/all/mean/support_target": torch.full((101,), 1 / 101),
        "critic/all/0/support_prediction": torch.full((101,), 1 / 101),
        "flow/all/mean/paths": torch.rand(17, 6, 8, generator=random),
    }


def drawn_titles(arrays):
    record = made()
    record["series"] += [
        {"id": name, "target": 1, "x": [1e-4, 1e-3], "y": [1.0, 2.0]}
        for name in ("lr_sweep", "churn: values")
    ]
    for metric, params in (
        ("flow_recovery", {"tau": 0.5}),
        ("ranld_overlap", {"with": HOSTILE, "mode": "action"}),
    ):
        entry = record["metrics"][0] | {"id": metric, "params": params, "value": 0.5, "target": 1}
        record["metrics"].append(entry | {"member": "mean"})
    page = render(record, {}, {1: arrays})
    assert not any("src" in attributes for _, attributes in Reader(page).elements)
    return page


def test_everything_that_is_kept_for_plots_is_drawn():
    page = drawn_titles(kept_arrays())
    for title in (
        *KEPT.values(),
        "Return by learning rate",
        "What one update changes elsewhere",
        "Recovery from errors on the way",
        "Policies side by side",
    ):
        assert escape(title) in page, title


@pytest.mark.parametrize("missing", KEPT)
def test_a_plot_without_its_data_is_left_out(missing):
    arrays = kept_arrays()
    del arrays[missing]
    page = drawn_titles(arrays)
    if "fresh" not in missing:
        assert f'aria-label="{escape(KEPT[missing])}"' not in page


def test_tiles_show_size_and_sign():
    picture = svg.tiles([[1.0, -0.5], [0.0, 0.01]], title="t")
    assert picture.count('class="cell"') == 2
    assert picture.count("<circle") == 1


def test_numbers_are_short():
    shown = [svg.number(v) for v in (0, 0.5, 1234, 45_600, 2.5e6, 1.5e-4, -3.14159)]
    assert shown == ["0", "0.5", "1234", "45.6k", "2.5M", "1.5e-4", "-3.14"]
    assert [svg.number(v) for v in (999.6, 999_700, 999.9e6)] == ["1000", "1M", "1G"]


def test_axes_hold_their_data_and_have_round_ticks():
    linear_axis = svg.axis([0, 9.7], 0, 100, zero=True)
    assert linear_axis.ticks() == [0, 5, 10]
    assert svg.axis([0.01, 100], 0, 100, log=True).ticks() == [0.01, 0.1, 1, 10, 100]
    flat = svg.axis([3, 3], 0, 100)
    assert flat.low < 3 < flat.high
    assert svg.axis([], 0, 1).ticks()


def test_long_lines_keep_their_peaks():
    points = [(float(k), 0.0) for k in range(5000)]
    points[1234] = (1234.0, 9.0)
    kept = svg.thinned(points)
    assert len(kept) <= svg.MOST_POINTS
    assert (1234.0, 9.0) in kept


# --- the command -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of three checkpoints."""
    folder = tmp_path_factory.mktemp("run") / "counter"
    settings = small_settings("toy/lqr", folder, env_steps=120)
    settings.checkpoint.every = 40
    run_whole(settings)
    return folder


def diagnosed(run, out, *flags):
    status = main(["diagnose", str(run), "--out", str(out), *flags])
    record = json.loads((out / "report.json").read_bytes())
    jsonschema.validate(record, documents.schema())
    return status, record


def test_a_run_is_diagnosed(run, tmp_path, capsys):
    status, record = diagnosed(run, tmp_path, "--suite", "quick")
    assert status == 0
    assert [t["env_step"] for t in record["targets"]] == [40, 80, 120]
    assert "last" in record["targets"][-1]["roles"]
    Reader((tmp_path / "report.html").read_text())
    with np.load(tmp_path / "arrays.npz") as arrays:
        assert all(np.isfinite(arrays[name]).all() for name in arrays.files)
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "report.html")


def test_rules_see_what_the_run_measured_before_each_checkpoint(run, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    sink = CsvSink(folder / METRICS)
    for step, value in ((60, 3.0), (80, 4.0), (100, 5.0)):
        sink.write(step, {"diag/critic/all/worst/stab_adam": value})
    sink.close()
    seen: list[Evidence] = []

    def judge(found):
        seen.extend(found)
        return []

    monkeypatch.setattr("supple.diagnostics.rules.judge", judge)
    diagnosed(folder, tmp_path / "out", "--no-html")
    found = [each.course.get("critic/all/worst/stab_adam") for each in seen]
    assert found == [None, [3.0], [3.0, 4.0, 5.0]]


def test_runs_of_one_name_are_told_apart(run, tmp_path):
    other = tmp_path / "b" / "counter"
    shutil.copytree(run, other)
    _, record = diagnosed(run, tmp_path / "out", "--compare", str(other))
    names = [target["run"] for target in record["targets"]]
    assert names[3:] == ["b/counter"] * 3
    assert len(set(names)) == 2 and all(name.endswith("/counter") for name in names)
    assert len({target["label"] for target in record["targets"]}) == 6


def test_policies_that_do_not_compare_end_nothing(run, tmp_path, monkeypatch):
    def deaf(*given, like=None, **more):
        if like is not None:
            raise InputError("the decision does not respond to any channel")
        return instability.analyse(*given, **more)

    monkeypatch.setattr("supple.diagnostics.diagnose.analyse", deaf)
    other = tmp_path / "other"
    shutil.copytree(run, other)
    _, record = diagnosed(run, tmp_path / "out", "--compare", str(other), "--no-html")
    (found,) = [each for each in record["metrics"] if each["id"] == "ranld_overlap"]
    assert found["reason"] == "the decision does not respond to any channel"
    assert "policies side by side" in record["timing"]


@pytest.mark.parametrize("suite", ["standard", "full"])
def test_the_referee_is_called_once_and_in_full_by_the_full_suite(
    run, tmp_path, monkeypatch, suite, capsys
):
    asked = []

    def measured(subject, data, suite, *, groups, on_group):
        asked.append((suite, *groups))
        for name in groups:
            on_group(name)
        return Measured({}, {})

    monkeypatch.setattr("supple.diagnostics.diagnose.measure", measured)
    diagnosed(run, tmp_path, "--suite", suite, "--episodes", "2", "--no-html")
    calls = [call for call in asked if "fit_gap" in call]
    assert {call[0] for call in asked} == {suite}
    assert len(calls) == sum("value_bias" in call for call in asked)
    assert all(("descriptors" in call) == (suite == "full") for call in calls)
    assert "    value bias" in capsys.readouterr().err.splitlines(), "what takes long is said"


def agents_run(tmp_path, task, **changes):
    folder = tmp_path / "run"
    settings = small_settings(task, folder, env_steps=40, agent="ppo", **changes)
    settings.diagnostics.enabled = False
    run_whole(settings)
    return folder


def test_what_was_asked_for_and_is_left_out_is_said(run, tmp_path, monkeypatch):
    nothing = lambda *_, **__: Measured({}, {})  # noqa: E731
    monkeypatch.setattr("supple.diagnostics.diagnose.measure", nothing)
    asked = "--modes", "fisher", "--episodes", "2", "--no-html"
    for suite, what, why in (
        ("quick", "ranld mode fisher", "the quick suite has the modes action and choice only"),
        ("quick", "episodes", "the quick suite makes no environment"),
        ("standard", "disturbances", "no direction of the mode action to try: name it in --modes"),
    ):
        rollouts = ["--rollouts"] if suite == "standard" else []
        _, record = diagnosed(run, tmp_path / suite, "--suite", suite, *asked, *rollouts)
        skipped = {entry["what"]: entry["why"] for entry in record["skipped"]}
        assert why in skipped[what]


def test_a_run_without_transitions_says_so(tmp_path):
    _, record = diagnosed(agents_run(tmp_path, "toy/bandit"), tmp_path / "out")
    assert any("no transitions to look at" in entry["why"] for entry in record["skipped"])
    assert any("no replay rows are left" in note for note in record["notes"])


@pytest.mark.slow
@pytest.mark.parametrize(("task", "memory"), [("toy/counter", 0), ("toy/recall", 4)])
def test_episodes_stand_in_for_transitions(tmp_path, task, memory):
    folder = agents_run(tmp_path, task, memory=memory)
    flags = ("--suite", "standard", "--episodes", "2", "--rollouts")
    _, record = diagnosed(folder, tmp_path / "out", *flags)
    assert {d["name"] for d in record["datasets"]} >= {"rollout"}
    on_episodes = {m["id"] for m in record["metrics"] if m["params"].get("data") == "rollout"}
    assert "feat_norm" in on_episodes
    skipped = {entry["what"]: entry["why"] for entry in record["skipped"]}
    assert "PPO's critic values states" in skipped["ranld mode critic"]


def test_the_same_seed_gives_the_same_document(run, tmp_path):
    found = [diagnosed(run, tmp_path / name, "--no-html")[1] for name in ("a", "b")]
    assert documents.without_timing(found[0]) == documents.without_timing(found[1])
    assert not (tmp_path / "a" / "report.html").exists()


ROBUST = "Is it robust to its sensors?"


def test_robustness_is_not_measured_without_declared_noise(run, tmp_path, capsys):
    noise = tmp_path / "noise.json"
    noise.write_text('{"obs[0]": 0.01}')
    why = "no sensor noise is declared: --noise-spec"
    for flags, unknown in (([], True), (["--noise-spec", str(noise)], False)):
        _, record = diagnosed(run, tmp_path / "out", *flags)
        assert (f"{ROBUST} ({why})" in capsys.readouterr().out) == unknown
        assert (ROBUST in unanswered(record)) == unknown
        said = {(each["what"], each["why"]) for each in record["skipped"]}
        assert (("ranld_noise_changed", why) in said) == unknown


def test_noise_that_reaches_no_decision_is_measured_all_the_same():
    one = dataclasses.replace(analysis(names=("a", "b", "c")), noisy=None)
    (found,) = [e for e in instability.readings(one) if e.metric == "ranld_noise_changed"]
    assert found.value == 0


def test_noise_is_declared_for_the_first_task_only(run, tmp_path, capsys):
    noise = tmp_path / "noise.json"
    noise.write_text('{"obs[0]": 0.01}')
    other, same = tmp_path / "other", tmp_path / "same"
    run_whole(small_settings("toy/asymmetric", other, env_steps=120))
    shutil.copytree(run, same)
    flags = "--compare", str(same), str(other), "--noise-spec", str(noise), "--no-html"
    _, record = diagnosed(run, tmp_path / "out", *flags)
    runs = {target["id"]: target["run"] for target in record["targets"]}
    declared = {runs[m["target"]] for m in record["metrics"] if m["id"] == "ranld_noise_dist"}
    assert declared == {"counter", "same"}
    note = "other: --noise-spec is of the channels of toy/lqr, and is not applied"
    assert record["notes"].count(note) == 1
    assert f"note: {note}" in capsys.readouterr().out


def test_a_referee_that_the_full_suite_called_coarsely_is_said(run, tmp_path, monkeypatch, capsys):
    takes = "the whole probe (--suite full) needs 4096 rows, got 40"
    gap = reading(0.1, metric="fit_gap", network="critic", reason=f"coarse: {takes}")
    found = lambda *_, groups, **__: Measured({"gap": gap} if "fit_gap" in groups else {}, {})  # noqa: E731
    monkeypatch.setattr("supple.diagnostics.diagnose.measure", found)
    for suite in ("standard", "full"):
        flags = ("--suite", suite, "--episodes", "2", "--no-html")
        _, record = diagnosed(run, tmp_path / suite, *flags)
        note = f"step 120: fit_gap is coarse: {takes}"
        assert (note in record["notes"]) == (suite == "full")
        assert (f"note: {note}" in capsys.readouterr().out.splitlines()) == (suite == "full")


def test_a_damaged_checkpoint_is_left_out_and_named(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (broken,) = (copy / "checkpoints" / "step_120").glob("*.safetensors")
    broken.write_bytes(broken.read_bytes()[:-1])
    _, record = diagnosed(copy, tmp_path / "out")
    assert [t["env_step"] for t in record["targets"]] == [40, 80]
    assert "damaged" in record["notes"][0]


def test_checkpoints_that_are_not_looked_at_are_counted(run, monkeypatch):
    monkeypatch.setattr("supple.diagnostics.targets.MOST", 2)
    _, notes = load_targets([run])
    said = "2 of 3 checkpoints are looked at; give the folder of another to see it"
    assert notes == [f"counter: {said}"]


def test_what_does_not_fit_is_refused_in_one_line(run, tmp_path, capsys):
    for flags, complaint in (
        ([str(tmp_path / "none")], "none holds no run"),
        ([str(run), "--episodes", "1"], "--episodes must be >= 2, got 1"),
        ([str(run), "--modes", "sideways"], "--modes must be some of"),
        ([str(run), "--rollouts"], "--rollouts needs the simulator, the quick suite makes none"),
        ([str(run), "--budget", "-1"], "--budget must be >= 0 minutes"),
        ([str(run), "--noise-spec", str(tmp_path / "x")], "cannot be read as JSON"),
        (
            [str(run), "--modes", "choice"],
            "--modes must be some of action, fisher, critic for what is looked at here, got choice",
        ),
    ):
        assert main(["diagnose", *flags, "--out", str(tmp_path / "out" / "deeper")]) == 2
        assert complaint in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_what_fails_leaves_nothing_in_a_folder_without_a_run(tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(["diagnose", str(empty)]) == 2
    assert not list(empty.iterdir())


def test_where_no_report_can_be_written_is_said_before_anything_is_measured(
    run, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("supple.diagnostics.command.diagnose", lambda *_: pytest.fail("measured"))
    (tmp_path / "file").touch()
    locked = tmp_path / "locked"
    locked.mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: path != locked)
    for out, why in ((tmp_path / "file" / "out", "is no folder"), (locked, "no permission in")):
        assert main(["diagnose", str(run), "--out", str(out)]) == 2
        assert f"cannot write {out}: " in (said := capsys.readouterr().err)
        assert why in said


def test_an_older_page_does_not_stay_beside_a_newer_report(run, tmp_path):
    diagnosed(run, tmp_path)
    diagnosed(run, tmp_path, "--no-html")
    assert {path.name for path in tmp_path.iterdir()} == {"arrays.npz", "report.json"}


def test_fail_on_gives_status_four(run, tmp_path, monkeypatch):
    sick = Verdict("V1", "warn", "high", 0, "sick", [0], [], [], "nothing")
    monkeypatch.setattr("supple.diagnostics.rules.judge", lambda evidence: [sick])
    assert diagnosed(run, tmp_path, "--fail-on", "warn")[0] == 4
    assert diagnosed(run, tmp_path, "--fail-on", "bad")[0] == 0


def test_fail_on_goes_by_what_each_rule_said_last(run, tmp_path, monkeypatch, capsys):
    levels: list[Level] = ["bad", "warn", "warn"]  # at the three checkpoints
    found = [
        Verdict("V2", level, "high", target, "sick", [0], [], [], "nothing")
        for target, level in enumerate(levels)
    ]
    monkeypatch.setattr("supple.diagnostics.rules.judge", lambda evidence: found)
    assert diagnosed(run, tmp_path, "--fail-on", "bad", "--no-html")[0] == 0
    assert capsys.readouterr().out.startswith("▲ warn: sick")


def test_a_spent_budget_is_said_and_loading_spends_it_too(run, tmp_path, monkeypatch):
    def slow(*given, **more):
        time.sleep(0.2)
        return load_targets(*given, **more)

    monkeypatch.setattr("supple.diagnostics.diagnose.load_targets", slow)
    _, record = diagnosed(run, tmp_path, "--budget", "0.003", "--no-html")
    assert record["timing"]["loading"] >= 0.2
    skipped = {entry["what"]: entry["why"] for entry in record["skipped"]}
    assert "--budget was used up" in skipped["units, features and weights"]
