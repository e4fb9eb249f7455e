"""Test tiers: a marked test runs, or is skipped with its reason, or fails under ``--require``.

``gpu`` needs CUDA. ``sim("module", ...)`` needs those importable modules. ``recipe`` runs only when
asked for, by ``-m recipe`` or ``--require recipe``.
"""

import importlib.util
import os
import resource
from pathlib import Path

import pytest
import torch

TIERS = ("gpu", "sim", "recipe")

# Before anything imports Triton: without a GPU its kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# One thread: reductions then add in one order, so equal inputs give equal bits.
torch.set_num_threads(1)


@pytest.fixture
def one_thread():
    """A forked child has only the thread that forked: it must not wait for others'."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def traced_graphs(monkeypatch):
    """Graphs in the order they would be compiled; they run as they were traced."""
    graphs = []

    def compiler(graph, inputs, **_):
        graphs.append(graph)
        return graph

    monkeypatch.setattr("torch._inductor.standalone_compile", compiler)
    return graphs


@pytest.fixture
def keep_row(request):
    """Of a long form, append what it came to to ``benchmarks/results/trust.csv``."""

    def keep(variable, attempts, **came_to):
        if variable not in os.environ:
            return
        from supple.bench import table  # imports Triton, see above

        row = {
            "test": request.node.name,
            "attempts": attempts,
            "came to": ", ".join(f"{number} {what}" for what, number in came_to.items()),
            "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }
        rows = Path(__file__).parents[1] / "benchmarks" / "results" / "trust.csv"
        command = (
            f"{variable}={os.environ[variable]} python -m pytest tests/{request.node.path.name}"
        )
        table.append([row], rows, command)

    return keep


@pytest.fixture(scope="module", params=["flashsac", "ppo"])
def agent(request):
    """The name of each agent in turn."""
    return request.param


def pytest_addoption(parser):
    parser.addoption(
        "--require",
        action="append",
        default=[],
        choices=TIERS,
        help="fail, not skip, tests of this tier that cannot run here (repeatable)",
    )


def reason_to_skip(tier, marker, config):
    if tier == "gpu" and not torch.cuda.is_available():
        return "needs a CUDA device, torch sees none"
    if tier == "sim":
        missing = [name for name in marker.args if importlib.util.find_spec(name) is None]
        if missing:
            return f"needs {', '.join(missing)}, which is not installed"
    asked = "recipe" in config.getoption("--require") or "recipe" in config.getoption("-m")
    if tier == "recipe" and not asked:
        return "takes hours: ask with -m recipe"
    return None


def pytest_collection_modifyitems(items):
    """Files with slow tests begin first, so that no process is left alone with them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_runtest_setup(item):
    for tier in TIERS:
        for marker in item.iter_markers(tier):
            reason = reason_to_skip(tier, marker, item.config)
            if reason and tier in item.config.getoption("--require"):
                pytest.fail(f"--require {tier}: {reason}", pytrace=False)
            if reason:
                pytest.skip(reason)
