"""Run a function on several real ranks: subprocesses that talk over gloo, with a hard timeout.

    results = launch(__file__, "worker", 4, args={"numel": 10_000}, timeout=60)
    values = [r.ok().value for r in results]

`worker(rank, world_size, **args)` is an ordinary function of the named file. Its return value (anything `torch.save` can write and `torch.load(weights_only=True)` can
read: tensors, numbers, strings, lists, dicts) comes back as `RankResult.value`. An exception comes back as `RankResult.error` (its type's name) and `.message`,
with the traceback in `.stderr`, and the process exits with status 1: a negative `returncode` always means death by a signal.
The default process group exists when the worker is called (`init=False` leaves it to the worker); `destroy=False` leaves it alive at exit.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class RankResult:
    """What one rank did: exit status (negative: the signal that ended it), value or error, and its standard error."""

    rank: int
    returncode: int
    timed_out: bool
    value: Any
    error: str | None
    message: str
    stderr: str
    seconds: float

    def ok(self) -> RankResult:
        """This result, if the rank returned a value; otherwise an AssertionError that shows its standard error."""
        assert not self.timed_out, f"rank {self.rank} was still running at the timeout\n{self.stderr}"
        assert self.returncode == 0 and self.error is None, f"rank {self.rank}: status {self.returncode}\n{self.stderr}"
        return self

    def failed(self, error: str) -> RankResult:
        """This result, if the rank ended by itself with that exception type; otherwise an AssertionError."""
        assert not self.timed_out, f"rank {self.rank} was still running at the timeout\n{self.stderr}"
        assert self.returncode == 1, f"rank {self.rank}: status {self.returncode} instead of 1\n{self.stderr}"
        assert self.error == error, f"rank {self.rank}: {self.error}: {self.message} (wanted {error})\n{self.stderr}"
        return self


def launch(
    file: str | pathlib.Path,
    function: str,
    world_size: int,
    *,
    args: dict[str, Any] | None = None,
    timeout: float = 60.0,
    group_timeout: float = 30.0,
    init: bool = True,
    destroy: bool = True,
    prefix: Callable[[int], Sequence[str]] | None = None,
    interface: str | Callable[[int], str] = "lo",
    env: dict[str, str] | None = None,
) -> list[RankResult]:
    """Runs `function` of `file` on `world_size` ranks and returns one result per rank, in order.

    Args:
        args: keyword arguments for the worker, JSON-serialisable.
        timeout: seconds after which every process that still runs is killed (its result says `timed_out`).
        group_timeout: timeout of the default process group in seconds.
        prefix: command put before each rank's own, for example `["ip", "netns", "exec", name]`.
        interface: network interface for gloo, or a function of the rank that names it.
        env: further environment variables.
    """
    with tempfile.TemporaryDirectory(prefix="commpress-ranks-") as directory:
        processes = []
        start = time.monotonic()
        for rank in range(world_size):
            spec = {
                "file": str(pathlib.Path(file).resolve()),
                "function": function,
                "rank": rank,
                "world_size": world_size,
                "args": args or {},
                "group_timeout": group_timeout,
                "init": init,
                "destroy": destroy,
                "directory": directory,
            }
            variables = dict(os.environ, OMP_NUM_THREADS="1", PYTHONUNBUFFERED="1")
            variables["GLOO_SOCKET_IFNAME"] = interface if isinstance(interface, str) else interface(rank)
            variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
            variables.update(env or {})
            command = [*(prefix(rank) if prefix else ()), sys.executable, str(pathlib.Path(__file__).resolve())]
            errors = open(os.path.join(directory, f"stderr{rank}"), "wb")
            with errors:
                process = subprocess.Popen(
                    [*command, json.dumps(spec)], stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, env=variables
                )
            processes.append(process)
        ended: dict[int, float] = {}
        timed_out = set()
        try:
            while len(ended) < world_size:
                for rank, process in enumerate(processes):
                    if rank not in ended and process.poll() is not None:
                        ended[rank] = time.monotonic() - start
                if time.monotonic() - start > timeout:
                    timed_out = {rank for rank in range(world_size) if rank not in ended}
                    break
                time.sleep(0.01)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                process.wait()
        return [
            _result(directory, rank, process.returncode, rank in timed_out, ended.get(rank, timeout))
            for rank, process in enumerate(processes)
        ]


def _result(directory: str, rank: int, returncode: int, timed_out: bool, seconds: float) -> RankResult:
    import torch

    value, error, message = None, None, ""
    path = os.path.join(directory, f"result{rank}.pt")
    if os.path.exists(path):
        try:
            loaded = torch.load(path, weights_only=True)
            value, error, message = loaded["value"], loaded["error"], loaded["message"]
        except Exception as problem:  # killed while it wrote
            error, message = "Unreadable", str(problem)
    with open(os.path.join(directory, f"stderr{rank}"), errors="replace") as file:
        stderr = file.read()
    return RankResult(rank, returncode, timed_out, value, error, message, stderr, seconds)


def _child(spec: dict[str, Any]) -> int:
    import traceback

    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    directory, rank = spec["directory"], spec["rank"]
    value, error, message = None, None, ""
    try:
        module_spec = importlib.util.spec_from_file_location("commpress_test_worker", spec["file"])
        assert module_spec is not None and module_spec.loader is not None
        sys.path.insert(0, os.path.dirname(spec["file"]))
        module = importlib.util.module_from_spec(module_spec)
        sys.modules[module_spec.name] = module
        module_spec.loader.exec_module(module)
        if spec["init"]:
            dist.init_process_group(
                "gloo",
                init_method=f"file://{directory}/store",
                rank=rank,
                world_size=spec["world_size"],
                timeout=datetime.timedelta(seconds=spec["group_timeout"]),
            )
        value = getattr(module, spec["function"])(rank, spec["world_size"], **spec["args"])
    except BaseException as problem:
        traceback.print_exc()
        error, message = type(problem).__name__, str(problem)
    temporary = os.path.join(directory, f"result{rank}.tmp")
    torch.save({"value": value, "error": error, "message": message}, temporary)
    os.replace(temporary, os.path.join(directory, f"result{rank}.pt"))
    if spec["destroy"] and dist.is_initialized():
        dist.destroy_process_group()
    return 0 if error is None else 1


if __name__ == "__main__":
    sys.exit(_child(json.loads(sys.argv[1])))
