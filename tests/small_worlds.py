"""Several processes that learn together, small enough for a test."""

import os
import socket
import sys
import time
import traceback
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from supple import distributed
from supple.cli import main

PATIENCE = 150.0
"""Processes that live longer hang [s]."""


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def variables(rank, size, port):
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def in_processes(size, work, folder: Path):
    """What ``work()`` returns in each of ``size`` joined processes, dicts of tensors by rank."""
    port = free_port()
    folder.mkdir(exist_ok=True)
    children = {fork(rank, size, port, work, folder): rank for rank in range(size)}
    failed = wait(children)
    assert not failed, f"processes {failed} failed or hung"
    return [load_file(folder / f"{rank}.safetensors") for rank in range(size)]


def fork(rank, size, port, work, folder):
    def joined():
        distributed.join(torch.device("cpu"))
        found = {name: value.clone() for name, value in work().items()}
        save_file(found, folder / f"{rank}.safetensors")
        distributed.leave(in_peace=True)
        return 0

    return child(variables(rank, size, port), joined)


def child(environment, work):
    """A process of its own with these variables, whose status is what ``work`` returns."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        os.environ.update(environment)
        status = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def start(size, arguments, folder: Path, **more):
    """``supple`` with these arguments in each of ``size`` processes; their output in ``folder``.

    ``more`` are further variables; a tuple has one value for each process.
    """
    folder.mkdir(exist_ok=True)
    port = free_port()

    def run(rank):
        sys.stdout = sys.stderr = (folder / f"{rank}.txt").open("w", buffering=1)
        return main(arguments[rank] if isinstance(arguments, dict) else arguments)

    def own(rank):
        return {name: v[rank] if isinstance(v, tuple) else v for name, v in more.items()}

    return [
        child({**variables(rank, size, port), **own(rank)}, partial(run, rank))
        for rank in range(size)
    ]


def statuses(processes, patience=PATIENCE):
    """What each ended with; minus the signal's number where one ended it."""
    found: dict[int, int] = {}
    deadline = time.monotonic() + patience
    while len(found) < len(processes):
        for process in processes:
            if process not in found:
                done, status = os.waitpid(process, os.WNOHANG)
                if done:
                    found[process] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            for process in set(processes) - set(found):
                os.kill(process, 9)
            raise AssertionError(f"only {found} of {processes} ended within {patience} s")
        time.sleep(0.01)
    return [found[process] for process in processes]


def wait(children):
    """The ranks of children that did not end with status 0."""
    failed, left, deadline = [], dict(children), time.monotonic() + PATIENCE
    while left:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child in left:
            rank = left.pop(child)
            failed += [rank] if status else []
        elif time.monotonic() > deadline:
            failed += left.values()
            for process in left:
                os.kill(process, 9)
                os.waitpid(process, 0)
            break
        else:
            time.sleep(0.01)
    return failed
