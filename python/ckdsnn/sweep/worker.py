"""A process that runs one command of `ckdsnn` after another: PyTorch and Lightning are imported once, not for each."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

OPTION = "--worker"  # of `ckdsnn sweep`, alone: this process is one
DONE = b"done\n"


def work(run: Callable[[list[str]], int]) -> int:
    """Runs the commands that come on standard input, a line of JSON each: `arguments`, and the file `log` for what the
    command says. Answers `done` on standard output where one succeeded, and ends with the status of one that did not:
    what it leaves of the process is not to be relied on.

    Args:
        run: a command, by its arguments; returns its exit status.

    Returns:
        The exit status of the command that did not succeed; after the end of the input, the process ends with 0.
    """
    # Under numbers of their own: what a command prints goes to its log, and none reads what is not for it. The answers
    # are never closed, so that their end is the end of the process.
    answers, tasks = os.dup(1), os.fdopen(os.dup(0), "rb")
    os.dup2(2, 1)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    for line in tasks:
        task = json.loads(line)
        with open(task["log"], "ab", buffering=0) as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        sys.argv[1:] = task["arguments"]  # where Lightning starts processes for several devices, it looks there
        status = run(task["arguments"])
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        if status:
            return status
        os.write(answers, DONE)
    # The interpreter's end would look through all of PyTorch's objects, for more than a second, and Triton's bindings
    # would then report what they have left in the log of the last run.
    os._exit(0)


def run_command(arguments: list[str]) -> int:
    """A command of `ckdsnn`; what it sets for its process, the next one does not find."""
    import torch

    from ckdsnn import cli

    with _settings_kept(torch):
        return cli.main(arguments)


@contextlib.contextmanager
def _settings_kept(torch: Any) -> Iterator[None]:
    environment = dict(os.environ)
    strict = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    kept = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    precision, dtype, threads = torch.get_float32_matmul_precision(), torch.get_default_dtype(), torch.get_num_threads()
    yield
    os.environ.clear()
    os.environ.update(environment)
    torch.use_deterministic_algorithms(strict[0], warn_only=strict[1])
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = kept
    torch.set_float32_matmul_precision(precision)
    torch.set_default_dtype(dtype)
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # for those who share the GPU
