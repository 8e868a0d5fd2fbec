"""Run a function on several real ranks: processes that talk over gloo, with a hard timeout.

    results = launch(__file__, "worker", 4, args={"numel": 10_000}, timeout=60)
    values = [r.ok().value for r in results]

`worker(rank, world_size, **args)` is an ordinary function of the named file. Its return value (anything `torch.save` can write and `torch.load(weights_only=True)` can
read: tensors, numbers, strings, lists, dicts) comes back as `RankResult.value`. An exception comes back as `RankResult.error` (its type's name) and `.message`,
with the traceback in `.stderr`, and the process exits with status 1: a negative `returncode` always means death by a signal.
The default process group exists when the worker is called (`init=False` leaves it to the worker); `destroy=False` leaves it alive at exit.

Importing torch takes seconds, so ranks are forked from one helper process that has imported torch (and pytest) before any of its threads exist; they leave
through the interpreter's normal exit. Ranks of an emulated cluster (`commpress.cluster`) are started afresh.
"""

from __future__ import annotations

import atexit
import dataclasses
import datetime
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from commpress.cluster import Cluster

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
    cluster: Cluster | None = None,
    env: dict[str, str] | None = None,
    preload: tuple[str, ...] = (),
) -> list[RankResult]:
    """Runs `function` of `file` on `world_size` ranks and returns one result per rank, in order.

    Args:
        args: keyword arguments for the worker, JSON-serialisable.
        timeout: seconds after which every process that still runs is killed (its result says `timed_out`).
        group_timeout: timeout of the default process group in seconds.
        cluster: an open cluster of `world_size` ranks to run them in; without, they talk over loopback.
        env: further environment variables.
        preload: modules that the helper process imports, once, so that no rank has to (not in a cluster).
    """
    with tempfile.TemporaryDirectory(prefix="commpress-ranks-") as directory:
        specs = []
        for rank in range(world_size):
            variables = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
            variables["GLOO_SOCKET_IFNAME"] = "lo" if cluster is None else "eth0"
            variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
            variables.update(env or {})
            specs.append(
                {
                    "file": str(pathlib.Path(file).resolve()),
                    "function": function,
                    "rank": rank,
                    "world_size": world_size,
                    "args": args or {},
                    "group_timeout": group_timeout,
                    "init": init,
                    "destroy": destroy,
                    "directory": directory,
                    "env": variables,
                }
            )
        if cluster is None:
            statuses = _nursery().run(specs, timeout, preload)
        else:
            statuses = _run_afresh(specs, timeout, cluster)
        return [_result(directory, rank, *status) for rank, status in enumerate(statuses)]


def _watch(poll: Callable[[], dict[int, int]], kill: Callable[[int], None], count: int, timeout: float) -> list:
    """Collects (returncode, timed out, seconds) of `count` ranks; `poll` gives the statuses of those that ended."""
    start = time.monotonic()
    ended: dict[int, tuple[int, bool, float]] = {}
    killed: set[int] = set()
    while len(ended) < count:
        for rank, status in poll().items():
            ended[rank] = (status, rank in killed, time.monotonic() - start)
        if time.monotonic() - start > timeout and not killed:
            killed = {rank for rank in range(count) if rank not in ended}
            for rank in killed:
                kill(rank)
        time.sleep(0.01)
    return [ended[rank] for rank in range(count)]


def _run_afresh(specs: list[dict], timeout: float, cluster: Cluster) -> list:
    processes = []
    for spec in specs:
        command = [sys.executable, str(pathlib.Path(__file__).resolve()), json.dumps(spec)]
        with open(os.path.join(spec["directory"], f"stderr{spec['rank']}"), "wb") as errors:
            processes.append(cluster.start(spec["rank"], command, env=spec["env"], stdout=errors, stderr=errors))

    reported: set[int] = set()

    def poll() -> dict[int, int]:
        news = {r: status for r, p in enumerate(processes) if r not in reported and (status := p.poll()) is not None}
        reported.update(news)
        return news

    try:
        return _watch(poll, lambda rank: processes[rank].kill(), len(processes), timeout)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait(20)


class _Nursery:
    """The helper process that ranks are forked from."""

    def __init__(self) -> None:
        environment = dict(os.environ, OMP_NUM_THREADS="1")
        self.process = subprocess.Popen(
            [sys.executable, str(pathlib.Path(__file__).resolve()), "--nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        atexit.register(self.close)

    def run(self, specs: list[dict], timeout: float, preload: tuple[str, ...]) -> list:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"specs": specs, "timeout": timeout, "preload": preload}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the helper process that forks ranks has died"
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


_nurseries: list[_Nursery] = []


def _nursery() -> _Nursery:
    if not _nurseries or _nurseries[0].process.poll() is not None:
        _nurseries[:] = [_Nursery()]
    return _nurseries[0]


def _nursery_main() -> int:
    """Forks ranks on request. Returns in the parent when its input ends, and in each rank with its exit status."""
    import contextlib

    import torch
    import torch.distributed

    with contextlib.suppress(ImportError):
        import pytest  # noqa: F401  test files import it, and that takes as long as the rest

    torch.set_num_threads(1)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        for name in request["preload"]:
            importlib.import_module(name)
        pids = []
        for spec in request["specs"]:
            pid = os.fork()
            if pid == 0:
                replies.close()
                os.setpgid(0, 0)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                errors = os.open(
                    os.path.join(spec["directory"], f"stderr{spec['rank']}"), os.O_WRONLY | os.O_CREAT, 0o600
                )
                os.dup2(errors, 1)
                os.dup2(errors, 2)
                os.environ.update(spec["env"])
                sys.path[:0] = spec["env"]["PYTHONPATH"].split(os.pathsep)
                return _child(spec)
            pids.append(pid)

        def poll(pids: list[int] = pids) -> dict[int, int]:
            news = {}
            for rank, pid in enumerate(pids):
                if pid:
                    done, status = os.waitpid(pid, os.WNOHANG)
                    if done:
                        pids[rank] = 0
                        news[rank] = os.waitstatus_to_exitcode(status)
            return news

        statuses = _watch(
            poll, lambda rank, pids=pids: os.kill(pids[rank], signal.SIGKILL), len(pids), request["timeout"]
        )
        replies.write(json.dumps(statuses) + "\n")
        replies.flush()
    return 0


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
    sys.exit(_nursery_main() if sys.argv[1] == "--nursery" else _child(json.loads(sys.argv[1])))
