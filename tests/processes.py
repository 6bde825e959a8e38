"""Processes of tests: groups that have joined and are called together, and scripts that run in several at once."""

from __future__ import annotations

import contextlib
import inspect
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from cgc import parallel

ROOT = Path(__file__).parents[1]
COMMAND = """
    import sys
    from cgc import cli
    sys.exit(cli.main(sys.argv[2:]))
"""
"""A script for `launch`: the command line, whose words follow the folder."""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip


def _work(rank: int, size: int, port: int, pipe: Any) -> None:
    """What a process of a group does: join, then call what it is sent."""
    os.environ.update(environment(rank, size, port))
    torch.set_num_threads(1)
    parallel.join(tests="these")
    while (job := pipe.recv()) is not None:
        function, arguments = job
        try:
            pipe.send((True, function(*arguments)))
        except BaseException as error:
            pipe.send((False, f"{type(error).__name__}: {error}"))
    parallel.leave()


class Group:
    """Processes that have joined; `call` runs a function in all of them and returns what each gives.

    module: the name of the module that has the functions, and what they need: it is imported once for all groups.
    """

    def __init__(self, size: int, module: str) -> None:
        context, port = multiprocessing.get_context("forkserver"), free_port()
        context.set_forkserver_preload([__name__, module])
        pipes = [context.Pipe() for _ in range(size)]
        self._pipes = [ours for ours, _ in pipes]
        self._processes = [context.Process(target=_work, args=(r, size, port, pipes[r][1])) for r in range(size)]
        with pytest.MonkeyPatch.context() as patch:  # for the process that imports
            patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
            for process in self._processes:
                process.start()

    def call(self, function: Any, *arguments: Any) -> list[Any]:
        for pipe in self._pipes:
            pipe.send((function, arguments))
        ends = time.monotonic() + 60
        answers = []
        for pipe in self._pipes:
            assert pipe.poll(max(ends - time.monotonic(), 0)), "a process does not answer"
            answers.append(pipe.recv())
        assert all(good for good, _ in answers), answers
        return [value for _, value in answers]

    def end(self) -> None:
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send(None)
        for process in self._processes:
            process.join(10)
            process.kill()
        assert all(process.exitcode == 0 for process in self._processes)


def launch(script: str, size: int, *arguments: str, torchrun: bool = False) -> list[tuple[int, str]]:
    """Run a script in several processes, return the exit codes and all they say."""
    path, port = Path(arguments[0]) / "script.py", free_port()
    path.write_text(inspect.cleandoc(script))
    common = os.environ | {"PYTHONPATH": str(ROOT), "TORCH_CPP_LOG_LEVEL": "FATAL", "CUDA_VISIBLE_DEVICES": ""}
    if torchrun:
        commands = [[*["-m", "torch.distributed.run", "--nproc-per-node"], str(size), f"--master-port={port}"]]
    else:
        commands = [[] for _ in range(size)]
    processes = [
        subprocess.Popen(
            [sys.executable, *command, str(path), *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, env=common | ({} if torchrun else environment(rank, size, port)),
        )
        for rank, command in enumerate(commands)
    ]  # fmt: skip
    said = []
    for process in processes:
        try:
            text = process.communicate(timeout=45)[0]
        finally:
            process.kill()
        said.append((process.returncode, text))
    return said
