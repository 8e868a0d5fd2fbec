"""The process that a cluster lives and dies with. Run by path, with nothing but the standard library: it must start in milliseconds and must not load torch.

    python -I -S _keeper.py CONTROL_FD OWNER_PIDFD OWNER_TAG

Two processes come of it. The *guard* stays outside and watches. The *init* is the first process of a new PID namespace; it makes the network
namespaces, holds them by file descriptors alone, and starts the ranks' processes on request.

Nothing of a cluster has a name in any file system or in the host's network namespace, so nothing has to be deleted: when the init ends, for whatever reason, the
kernel kills every process of its PID namespace, the last references to the network namespaces go with them, and the kernel then removes interfaces, bridges and qdiscs.
So all that has to be guaranteed is that the init ends when its owner does:

* the init polls a pidfd of the owner and one of the guard, and ends when either has ended, or when the owner closes the control socket. A pidfd reports SIGKILL like any other end; unlike a pipe
  it cannot be held open by a process that inherited it, and unlike PR_SET_PDEATHSIG it does not fire when a mere thread of the owner ends;
* the guard polls the same pidfd of the owner, and the kernel sends the init SIGKILL when the guard ends (PR_SET_PDEATHSIG; the guard has one thread). This holds even if the init is stopped.

Only if both of them are stopped (SIGSTOP) while the owner is killed does anything stay; `commpress.cluster.sweep`, which each new cluster calls, ends that too.

The owner sends one JSON object a line, with file descriptors attached to some; see `_Init.answer` for the requests. Each gets one reply with the same `id`; a process that ends is reported
by a line of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
from typing import Any, final

_CLONE_NEWNS, _CLONE_NEWIPC, _CLONE_NEWPID, _CLONE_NEWNET = 0x00020000, 0x08000000, 0x20000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC, _MS_SLAVE = 2, 4, 8, 0x1000, 0x4000, 1 << 19
_MNT_DETACH = 2
_PR_SET_PDEATHSIG = 1
_TOOL_SECONDS = 30
_libc = ctypes.CDLL(None, use_errno=True)


def _call(what: str, result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _unshare(flags: int, what: str) -> None:
    _call(f"unshare ({what})", _libc.unshare(flags))


def _enter(namespace: int) -> None:
    _call("setns", _libc.setns(namespace, _CLONE_NEWNET))


def _mount(source: str, target: str, kind: str, flags: int) -> None:
    _call(
        f"mount {kind or source} on {target}",
        _libc.mount(source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), None),
    )


@final
class _Init:
    """Answers the owner until it goes away."""

    def __init__(self, control: socket.socket, watched: list[int]) -> None:
        self._control = control
        self._watched = watched
        self._namespaces: dict[str, int] = {}
        self._running: set[int] = set()
        self._data = b""
        self._fds: list[int] = []

    def serve(self) -> None:
        """Returns when the owner or the guard has ended, or the owner has hung up."""
        woken, wake = socket.socketpair()
        woken.setblocking(False)
        wake.setblocking(False)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        poll = select.poll()
        for fd in (self._control.fileno(), woken.fileno(), *self._watched):
            poll.register(fd, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if ready & set(self._watched):
                return
            if woken.fileno() in ready:
                with contextlib.suppress(BlockingIOError):
                    while woken.recv(4096):
                        pass
                self._reap()
            if self._control.fileno() in ready and not self._hear():
                return

    def _say(self, **message: Any) -> None:
        self._control.sendall(json.dumps(message).encode() + b"\n")

    def _reap(self) -> None:
        # As the first process of its namespace it inherits orphans too; nobody asked for those.
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self._running:
                self._running.discard(pid)
                self._say(ended=pid, status=os.waitstatus_to_exitcode(status))

    def _hear(self) -> bool:
        data, fds, _, _ = socket.recv_fds(self._control, 1 << 16, 64)
        self._fds += fds
        if not data:
            return False
        self._data += data
        while b"\n" in self._data:
            line, self._data = self._data.split(b"\n", 1)
            request = json.loads(line)
            mine = [self._fds.pop(0) for _ in range(request.get("fds", 0))]
            try:
                reply = self.answer(request, mine)
            except (OSError, subprocess.SubprocessError) as problem:
                reply = {
                    "error": getattr(problem, "strerror", None) or str(problem),
                    "errno": getattr(problem, "errno", None),
                }
            finally:
                for fd in mine:
                    os.close(fd)
            self._say(id=request["id"], **reply)
        return True

    def answer(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """Carries out one request: `make` namespaces, run a `tool` in one, `read` files there, `start` a process there, or `signal` one."""
        kind = request["do"]
        if kind == "make":
            _name_hosts(request["hosts"])
            for name in request["names"]:
                self._make(name)
            return {"paths": {name: f"/proc/{os.getpid()}/fd/{fd}" for name, fd in self._namespaces.items()}}
        if kind == "signal":
            for pid in request["pids"]:
                if pid in self._running:  # else it has been reaped, and the number may be another's
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(pid, request["signal"])
            return {}
        _enter(self._namespaces[request["namespace"]])
        if kind == "read":
            return {"texts": [_text(path) for path in request["paths"]]}
        if kind == "tool":
            done = subprocess.run(
                request["command"], input=request["input"], capture_output=True, text=True, timeout=_TOOL_SECONDS
            )
            return {"status": done.returncode, "out": done.stdout, "err": done.stderr}
        return {"pid": self._start(request, fds)}

    def _make(self, name: str) -> None:
        _unshare(_CLONE_NEWNET, "network namespace")
        self._namespaces[name] = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        # No IPv6, so that neighbour discovery does not chatter into the counters. A kernel may have none.
        for which in ("all", "default"):
            with contextlib.suppress(FileNotFoundError):
                with open(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6", "w") as file:
                    file.write("1")

    def _start(self, request: dict[str, Any], fds: list[int]) -> int:
        heard, told = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                self._become(request, fds)
            except BaseException as problem:
                words = getattr(problem, "strerror", None) or f"{type(problem).__name__}: {problem}"
                os.write(told, json.dumps([getattr(problem, "errno", 0), words]).encode())
            finally:
                os._exit(127)
        os.close(told)
        with open(heard, "rb") as file:
            heard_of = file.read()
        if heard_of:
            os.waitpid(pid, 0)
            raise OSError(*json.loads(heard_of))
        self._running.add(pid)
        return pid

    def _become(self, request: dict[str, Any], fds: list[int]) -> None:
        """In the child: the rank's view of /sys, its environment, its files, its program."""
        os.setsid()
        _unshare(_CLONE_NEWNS, "mount namespace")
        # /sys shows the interfaces of the network namespace that mounted it.
        while _libc.umount2(b"/sys", _MNT_DETACH) == 0:
            pass
        _mount("sysfs", "/sys", "sysfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores the last two
            signal.signal(number, signal.SIG_DFL)
        os.chdir(request["cwd"])
        for name, value in request["env"].items():
            os.putenv(name, value)
        for target, fd in enumerate(fds):
            # Received descriptors lie above 2: the keeper has its own standard files.
            os.dup2(fd, target, inheritable=True)
        try:
            os.execvp(request["command"][0], request["command"])
        except OSError as problem:
            raise OSError(problem.errno, f"cannot run {request['command'][0]!r}: {problem.strerror}") from None


def _name_hosts(lines: list[str]) -> None:
    """Adds lines to /etc/hosts as the cluster sees it: there is no name server inside, and resolvers would wait for one."""
    if not os.path.exists("/etc/hosts"):
        return
    text = _text("/etc/hosts") + "".join(line + "\n" for line in lines)
    # A file without a place outside: on a file system in memory, which ranks do not see (they mount their own /sys).
    _mount("tmpfs", "/sys", "tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    with open("/sys/hosts", "w") as file:
        file.write(text)
    _mount("/sys/hosts", "/etc/hosts", "", _MS_BIND)


def _text(path: str) -> str:
    with open(path) as file:
        return file.read()


def main(arguments: list[str]) -> int:
    """Becomes the guard; its child is the init."""
    control = socket.socket(fileno=int(arguments[0]))
    owner = int(arguments[1])
    for fd in (control.fileno(), owner):
        os.set_inheritable(fd, False)
    guard = os.pidfd_open(os.getpid())
    try:
        _unshare(_CLONE_NEWPID, "PID namespace")
        child = os.fork()
    except OSError as problem:
        return _refuse(control, problem)
    if child == 0:
        status = 1
        try:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            status = _init(control, [owner, guard])
        finally:
            os._exit(status)
    control.close()
    init = os.pidfd_open(child)
    poll = select.poll()
    poll.register(owner, select.POLLIN)
    poll.register(init, select.POLLIN)
    if owner in {fd for fd, _ in poll.poll()}:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)  # the kernel holds this back until all processes of the namespace are gone
    return 0


def _init(control: socket.socket, watched: list[int]) -> int:
    try:
        _unshare(_CLONE_NEWNS | _CLONE_NEWIPC | _CLONE_NEWNET, "mount, IPC and network namespaces")
        _mount("none", "/", "", _MS_REC | _MS_SLAVE)  # mounts made here stay here
        _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    except OSError as problem:
        return _refuse(control, problem)
    os.chdir("/")
    control.sendall(b'{"id": 0}\n')
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        _Init(control, watched).serve()
    return 0


def _refuse(control: socket.socket, problem: OSError) -> int:
    with contextlib.suppress(OSError):
        control.sendall(json.dumps({"id": 0, "error": problem.strerror, "errno": problem.errno}).encode() + b"\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
