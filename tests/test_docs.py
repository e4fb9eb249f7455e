"""The site builds without a warning, links lead somewhere, snippets and notebooks run."""

import importlib
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import gymnasium
import jupytext
import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient

from benchmarks import figures, tables
from supple.bench.table import add, read
from supple.cli import DONE, Parser, main, train_settings
from supple.configs import default_settings
from supple.configs.flags import parse_flags
from supple.diagnostics.subject import subject_of
from supple.envs import known_tasks
from supple.errors import InputError
from supple.trained import load_trained
from tests.small_runs import flags

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)
TEXTS = [ROOT / "README.md", *PAGES]
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
FENCES = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


# --- the site --------------------------------------------------------------------------------


def build(source, out):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    return subprocess.run(
        [*command, str(source), str(out)], capture_output=True, text=True, check=False
    )


class Links(HTMLParser):
    """Anchors of a page, and what it links to."""

    def __init__(self, page):
        super().__init__()
        self.anchors, self.links = set(), []
        self.feed(page.read_text())

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        self.links += [found[name] for name in ("href", "src") if found.get(name)]


def broken(site):
    """Links within a built site that lead nowhere."""
    read = {page.resolve(): Links(page) for page in sorted(site.rglob("*.html"))}
    found = []
    for page, links in read.items():
        for link in links.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            there = read.get(target)
            missing = there is not None and parts.fragment and parts.fragment not in there.anchors
            if not target.exists() or missing:
                found.append(f"{page.name}: {link}")
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    done = build(DOCS, out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_links_lead_somewhere(site):
    assert {page.stem for page in site.glob("*.html")} >= {"index", "quickstart", "results", "faq"}
    assert not broken(site)
    assert "supple.agents.flashsac.FlashSAC" in Links(site / "api" / "agents.html").anchors


def test_a_link_that_leads_nowhere_is_seen(tmp_path):
    (tmp_path / "a.html").write_text('<p id="x"><a href="b.html#y">b</a><a href="#x">x</a></p>')
    (tmp_path / "b.html").write_text('<p id="z"><a href="gone.html">c</a></p>')
    assert broken(tmp_path) == ["a.html: b.html#y", "b.html: gone.html"]


def test_links_of_the_readme_and_to_files_lead_somewhere():
    for page in TEXTS:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            path = urlsplit(link).path
            if not urlsplit(link).scheme and path:
                assert (page.parent / path).exists(), f"{page}: {link}"


# --- numbers -----------------------------------------------------------------------------------


def values(text):
    return [float(number) for number in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", text)]


@pytest.mark.parametrize("name", figures.FIGURES)
def test_figures_are_those_of_the_committed_rows(name):
    drawn = figures.draw(name)
    committed = (figures.STATIC / f"{name}.svg").read_text()
    wording = re.sub(r"-?\d+\.?\d*(?:e-?\d+)?", "0", drawn)
    assert wording == re.sub(r"-?\d+\.?\d*(?:e-?\d+)?", "0", committed), "run: make figures"
    # Another processor rounds the last digit of a coordinate otherwise.
    assert values(drawn) == pytest.approx(values(committed), abs=2e-3), "run: make figures"


def test_tables_are_those_of_the_committed_rows():
    for page in tables.pages():
        assert tables.filled(page.read_text()) == page.read_text(), f"{page}: run: make figures"


def test_rows_that_a_benchmark_adds_change_no_table(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "RESULTS", tmp_path / "results")
    shutil.copytree(ROOT / "benchmarks" / "results", figures.RESULTS)
    names = ("front", "critics", "ppo_speed", "replay", "envs", "update")
    before = [tables.TABLES[name]() for name in names]
    for path in figures.RESULTS.glob("bench_*.csv"):
        add([row | {"commit": "0123456789ab"} for row in read(path)], path)
    assert [tables.TABLES[name]() for name in names] == before


def test_a_changed_number_in_a_table_is_seen():
    page = (DOCS / "choosing-a-critic.md").read_text()
    assert tables.filled(page.replace("4752", "4753")) == page


def test_rows_that_do_not_exist_are_not_taken_for_none():
    with pytest.raises(LookupError, match=r"critics\.csv has no row"):
        figures.rows("critics", variant="none")


# --- snippets ----------------------------------------------------------------------------------


def blocks(language):
    return [
        (page, body)
        for page in TEXTS
        for kind, body in FENCES.findall(page.read_text())
        if kind == language
    ]


def shell_lines():
    """Every command of every bash block, and those of ours in blocks without a language."""
    found = []
    for kind in ("bash", ""):
        for page, body in blocks(kind):
            if body.startswith("#!"):
                continue
            for line in body.replace("\\\n", " ").splitlines():
                if line.split()[:1] in (["make"], ["supple"], ["torchrun"]) or (kind and line):
                    words = shlex.split(line, comments=True)
                    found.append(pytest.param(words, id=f"{page.stem}: {' '.join(words)[:60]}"))
    return found


def read_flags(arguments):
    """Let a command read its flags, and stop it there.

    Raises:
        InputError: a flag that does not exist, or a value that does not fit.
    """
    command, *rest = arguments
    if command == "train":
        simulator = rest[0].partition("/")[0] if "/" in rest[0] else ""
        here = not simulator or known_tasks()[simulator].tasks
        train_settings(rest if here and ":" not in rest[0] else ["toy/lqr", *rest[1:]])
        return
    cut = rest.index("--") if "--" in rest else len(rest)
    if command == "compare":
        train_settings([rest[0], *rest[cut + 1 :]])
    parse = Parser.parse_known_args

    def stop(self, args=None, namespace=None):
        _, unknown = parse(self, args, namespace)
        flags = [each for each in unknown if each.startswith("--")]
        takes_env = command in ("eval", "play", "doctor")
        if unknown and not (takes_env and all(each.startswith("--env.") for each in flags)):
            raise InputError(f"{command} takes no {unknown}")
        parse_flags(default_settings("toy/lqr"), unknown)
        raise SystemExit(0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parser, "parse_known_args", stop)
        status = main([command, *rest[:cut]])
    if status != DONE:
        raise InputError(f"supple {' '.join(arguments)}")


def check_line(words):
    """Raises where a line could not run as it stands."""
    program, *rest = words
    if program == "supple":
        read_flags(rest)
    elif program == "torchrun":
        if "supple" in rest:  # the second machine's line is cut short
            read_flags(rest[rest.index("supple") + 1 :])
    elif program == "make":
        rules = re.findall(r"^([\w%-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        targets = [word for word in rest if "=" not in word]
        known = [t for t in targets if t in rules or (t.startswith("sim-") and "sim-%" in rules)]
        assert targets == known, f"make has no target {set(targets) - set(known)}"
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        asked = re.findall(r"\[([\w,]+)\]", " ".join(rest))
        for extra in ",".join(asked).split(","):
            assert extra in extras["optional-dependencies"], extra
    elif program == "docker" and rest[0] == "build":
        assert (ROOT / rest[rest.index("-f") + 1]).is_file()
    elif program == "docker":
        place = rest.index(next(word for word in rest if word.startswith("supple:")))
        read_flags(rest[place + 1 :])
    else:
        pytest.fail(f"nobody checks lines of {program}")


@pytest.mark.parametrize("words", shell_lines())
def test_commands_in_the_docs_take_their_flags(words, monkeypatch):
    monkeypatch.syspath_prepend(DOCS / "examples")
    check_line(words)


@pytest.mark.parametrize(
    "line",
    [
        "supple train toy/lqr --agent.gama 0.9",
        "supple compare toy/lqr --out x -- --presett laptop",
        "supple diagnose DIR --suite half",
        "supple export DIR --env.obs-noise 0",
        "supple eval DIR --agent.gamma 0.9",
        "supple eval DIR --env.obs-nois 0",
        "make lynt",
        'pip install -e ".[exports]"',
        "docker build -f docker/Dockerfile.gpu .",
        "docker run --rm supple:cpu train toy/lqr --presets cpu",
    ],
)
def test_a_misspelt_command_is_seen(line):
    with pytest.raises((InputError, AssertionError)):
        check_line(shlex.split(line))


def test_extras_are_installed_from_a_checkout():
    """supple is on no registry."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    known = set(pyproject["project"]["optional-dependencies"])
    texts = [path.read_text() for path in (*TEXTS, *ROOT.joinpath("supple").rglob("*.py"))]
    named = re.compile(r"how_to_install\([\"'](\w+)[\"']\)|pip install .*\.\[([\w,]+)\]")
    for text in texts:
        assert not re.search(r"pip install.*supple\[", text)
        for in_code, in_docs in named.findall(text):
            assert set((in_code or in_docs).split(",")) <= known


def test_scripts_in_the_docs_are_bash():
    scripts = [body for _, body in blocks("bash") if body.startswith("#!")]
    assert scripts
    for body in scripts:
        done = subprocess.run(
            ["bash", "-n"], input=body, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_every_python_block_is_run_somewhere():
    """In a notebook, or as an example: tests below; that pages show these as they are, above."""
    elsewhere = {page.with_suffix(".md") for page in NOTEBOOKS}
    shown = [body.strip() for page, body in blocks("python") if page not in elsewhere]
    examples = [path.read_text().strip() for path in (DOCS / "examples").glob("*.py")]
    assert sorted(shown) == sorted(examples)


def test_the_library_loop_runs_and_learns_something(tmp_path):
    example = DOCS / "examples" / "library_loop.py"
    done = subprocess.run(
        [sys.executable, str(example)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "'critic/loss'" in done.stdout


def test_what_the_page_about_python_shows_runs_in_its_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    printed = {}
    for name in ("train", "policy", "onnx", "metrics"):
        if name == "onnx":
            assert main(["export", "runs/pendulum", "--out", "pendulum", "--no-zip"]) == DONE
        capsys.readouterr()
        left = runpy.run_path(str(DOCS / "examples" / f"python_{name}.py"))
        printed[name] = capsys.readouterr().out
        if name == "onnx":
            assert left["session"].get_session_options().intra_op_num_threads == 1
    assert "'environment steps': '4,096'" in printed["train"]
    assert float(printed["policy"].removeprefix("return ")) < 0
    first, second = (float(line.split("[[")[1][:-2]) for line in printed["onnx"].splitlines())
    assert first == pytest.approx(second, abs=1e-5) and abs(first) <= 2
    assert "eval/return_mean" in printed["metrics"] and "4096 steps: -" in printed["metrics"]


def test_what_an_environment_says_of_its_robot_is_in_the_bundle(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(DOCS / "examples")
    monkeypatch.chdir(tmp_path)
    given = ["--env-steps", "120", "--run-dir", "run"]
    assert main(["train", "my_robot:Gantry", *flags(), *given]) == DONE, capsys.readouterr().err
    assert main(["export", "run", "--out", "bundle"]) == DONE, capsys.readouterr().err
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert manifest["contract"]["joints"]["policy_names"] == ["x", "y"]
    assert manifest["contract"]["joints"]["robot_names"] == ["y", "x"]
    assert manifest["contract"]["gains"]["stiffness"] == [800.0, 800.0]


def test_the_mirror_image_of_walker_walks_as_its_simulator_does(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(DOCS / "examples")
    monkeypatch.chdir(tmp_path)
    given = ["--agent.symmetry", "my_mirror:mirror", "--env-steps", "120", "--run-dir", "run"]
    assert main(["train", "mujoco/Walker2d", *flags(), *given]) == DONE, capsys.readouterr().err
    mirror = importlib.import_module("my_mirror").mirror

    env, image = (gymnasium.make("Walker2d-v5") for _ in range(2))
    walker: Any = env.unwrapped
    mirrored: Any = image.unwrapped
    env.reset(seed=0)
    image.reset(seed=0)
    data = walker.data
    both = torch.from_numpy(np.concatenate((data.qpos[1:], data.qvel)))
    theirs = mirror("policy", both[None])[0].numpy()
    mirrored.set_state(np.concatenate((data.qpos[:1], theirs[:8])), theirs[8:])
    random = np.random.default_rng(1)
    for _ in range(40):
        action = random.uniform(-1, 1, (1, 6))
        ours, reward, *_ = env.step(action[0])
        theirs, other, *_ = image.step(mirror("action", torch.from_numpy(action))[0].numpy())
        expected = mirror("policy", torch.from_numpy(ours)[None])[0].numpy()
        np.testing.assert_allclose(theirs, expected, atol=1e-6)
        assert other == pytest.approx(reward, abs=1e-6)


@pytest.mark.parametrize("name", ["my_sim:make", "my_batch:Reach"])
def test_own_simulators_are_proved_and_train(name, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(DOCS / "examples")
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "--env", name]) == DONE, capsys.readouterr().out
    given = ["--env-steps", "120", "--run-dir", "run"]
    assert main(["train", name, *flags(), *given]) == DONE, capsys.readouterr().err


def test_an_agent_of_ones_own_trains_resumes_and_is_exported(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(DOCS / "examples")
    monkeypatch.chdir(tmp_path)
    given = ["--agent", "my_agent:HuberSAC", "--env-steps", "160"]
    assert main(["train", "toy/lqr", *flags(), *given, "--run-dir", "run"]) == DONE
    assert main(["resume", "run", "--env-steps", "200"]) == DONE, capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["agent_name"] == given[1]
    for command in (["eval", "run"], ["diagnose", "run"], ["export", "run", "--out", "bundle"]):
        assert main(command) == DONE, capsys.readouterr().err
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert given[1] in json.dumps(manifest)
    assert subject_of(load_trained("run").agent, seed=0).joins == "mean"
    assert main(["train", "toy/lqr", *flags(), *given]) == DONE
    assert len(list((tmp_path / "runs" / "toy-lqr" / "my_agent-HuberSAC").iterdir())) == 1


def test_the_first_own_simulator_has_about_twenty_lines():
    lines = (DOCS / "examples" / "my_sim.py").read_text().splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 22


def test_messages_in_the_faq_are_ours():
    package = "\n".join(
        path.read_text()
        for kind in ("*.py", "*.cpp", "*.h")
        for path in ROOT.joinpath("supple").rglob(kind)
    )
    quoted = re.findall(r"^\*\*`([^`]+)`", (DOCS / "faq.md").read_text(), re.MULTILINE)
    ours = [text for text in quoted if "std >= 0.0" not in text]
    assert len(ours) >= 6
    for text in ours:
        assert text in package, text


# --- notebooks ---------------------------------------------------------------------------------


def sources(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_equal_their_pages_and_hold_no_output(path):
    notebook = nbformat.read(path, as_version=4)
    assert sources(notebook) == sources(jupytext.read(path.with_suffix(".md")))
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": tmp_path}}).execute()
    printed = "".join(o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", []))
    assert {"compare_critics": "beats categorical", "train_diagnose_export": "checks passed"}[
        path.stem
    ] in printed, json.dumps(printed)
