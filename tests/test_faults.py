"""A machine that gives out ends a run with one line, and its last checkpoint is intact."""

import errno
import os
import resource
import signal
import time

import pytest
import torch

from supple import checkpoint, launch
from supple.cli import DONE, FAILED, RESUMABLE, main
from supple.files import replace_file
from tests.small_runs import flags, one_line

STEPS = ["--env-steps", "120", "--checkpoint.every", "30", "--eval.every", "1000"]


def after_a_checkpoint(monkeypatch, fault):
    """Call ``fault()`` when a run has made its second checkpoint."""
    save = checkpoint.save
    count = 0

    def counted(*given):
        nonlocal count
        path = save(*given)
        count += 1
        if count == 2:
            fault()
        return path

    monkeypatch.setattr(checkpoint, "save", counted)


def train(folder, agent, *more):
    return main(["train", "toy/lqr", *flags(agent), *STEPS, "--run-dir", str(folder), *more])


def assert_resumable(folder, at):
    found, skipped = launch.newest_resumable(folder)
    assert found.header["env_steps"] == at
    assert not skipped
    assert not list((folder / "checkpoints").glob(".tmp*")), "nothing half-written is left"
    assert main(["resume", str(folder)]) == DONE


def fail_with(number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_no_more_checkpoints(agent, tmp_path, monkeypatch, capsys, number):
    with monkeypatch.context() as patch:
        after_a_checkpoint(
            patch, lambda: patch.setattr(checkpoint, "write_synced", fail_with(number))
        )
        assert train(tmp_path / "run", agent) == FAILED
    assert os.strerror(number) in one_line(capsys)
    assert_resumable(tmp_path / "run", 60)


def test_a_disk_that_takes_no_more_rows(tmp_path, monkeypatch, capsys):
    """They are written by a thread of their own; the run hears of it."""
    with monkeypatch.context() as patch:
        full = fail_with(errno.ENOSPC)
        after_a_checkpoint(
            patch, lambda: patch.setattr("supple.replay.segments.replace_file", full)
        )
        assert train(tmp_path / "run", "flashsac") == FAILED
    assert "No space left" in one_line(capsys)
    assert_resumable(tmp_path / "run", 60)


def test_a_limit_that_the_system_itself_enforces(tmp_path, monkeypatch, capsys):
    """No file may grow beyond a few bytes: every write really fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))

    try:
        with monkeypatch.context() as patch:
            after_a_checkpoint(patch, limit)
            assert train(tmp_path / "run", "flashsac") == FAILED
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "File too large" in one_line(capsys)
    assert_resumable(tmp_path / "run", 60)


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        with pytest.raises(OSError, match="File too large") as caught:
            replace_file(tmp_path / "table.csv", bytes(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(tmp_path / "table.csv")
    assert not any(tmp_path.iterdir())
    with pytest.raises(OSError, match="No such file") as caught:
        replace_file(tmp_path / "none" / "table.csv", b"")
    assert caught.value.filename == str(tmp_path / "none" / "table.csv")


ERRORS = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("error", ERRORS, ids=["python", "cuda", "cpu"])
def test_memory_that_runs_out(tmp_path, monkeypatch, capsys, error):
    def out_of_memory(*_):
        raise error

    with monkeypatch.context() as patch:
        after_a_checkpoint(
            patch,
            lambda: patch.setattr("supple.agents.flashsac.FlashSAC.update", out_of_memory),
        )
        assert train(tmp_path / "run", "flashsac") == FAILED
    assert "out of memory; checkpoints are intact: lower" in one_line(capsys)
    assert_resumable(tmp_path / "run", 60)


def test_an_unforeseen_error_keeps_its_traceback(tmp_path, monkeypatch, capsys):
    """The negative control: only what is known to be no fault of ours is said in one line."""

    def broken(*_):
        raise RuntimeError("what nobody foresaw")

    monkeypatch.setattr("supple.agents.flashsac.FlashSAC.update", broken)
    assert train(tmp_path / "run", "flashsac") == FAILED
    assert "Traceback" in capsys.readouterr().err


def test_a_request_to_stop_while_the_run_is_being_made(tmp_path, monkeypatch, capsys):
    def slow(settings):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr(launch, "new_run", slow)
    before = signal.getsignal(signal.SIGTERM)
    assert train(tmp_path / "run", "ppo") == RESUMABLE
    assert "stopped before the first step" in one_line(capsys)
    assert signal.getsignal(signal.SIGTERM) is before
