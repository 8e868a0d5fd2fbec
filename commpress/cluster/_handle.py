"""The owner's side of the keeper: starts it, asks it, ends it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any, Final, final

from commpress.errors import ClusterError

KEEPER: Final = pathlib.Path(__file__).with_name("_keeper.py")
ROOT_NEEDED: Final = (
    "an emulated cluster needs root: run it under `sudo`, or in a container as root with --cap-add NET_ADMIN --cap-add SYS_ADMIN "
    "(and, where AppArmor forbids mounts, --security-opt apparmor=unconfined)"
)
_CLOSE_SECONDS = 10.0
_TOOLS = ("ip", "bridge", "tc")


def missing() -> str | None:
    """What is plainly missing on this machine and what to do about it, or None. Tries nothing."""
    if not sys.platform.startswith("linux") or not hasattr(os, "pidfd_open"):
        return "an emulated cluster needs Linux 5.3 or newer"
    if os.geteuid() != 0:
        return ROOT_NEEDED
    for tool in _TOOLS:
        if shutil.which(tool) is None:
            return f"no `{tool}` on this machine: install iproute2 (Debian, Ubuntu: `apt install iproute2`)"
    return None


@final
class Keeper:
    """A running keeper. Its methods may be called from any thread.

    Raises:
        ClusterError: the machine cannot do it; the message says what to do.
    """

    def __init__(self) -> None:
        if (problem := missing()) is not None:
            raise ClusterError(problem)
        self._lock = threading.RLock()
        self._data = b""
        self._asked = 0
        self._replies: dict[int, dict[str, Any]] = {}
        self._ended: dict[int, int] = {}
        self._owner = os.getpid()
        self._socket, theirs = socket.socketpair()
        try:
            me = os.pidfd_open(self._owner)
        except OSError as error:
            self._socket.close()
            theirs.close()
            raise ClusterError(f"an emulated cluster needs Linux 5.3 or newer: pidfd_open: {error.strerror}") from None
        try:
            # -I: nothing from this folder or the user's may stand in for the standard library.
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(KEEPER), str(theirs.fileno()), str(me), tag_of(self._owner)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), me),
                start_new_session=True,  # Ctrl-C is the owner's to handle
                cwd="/",
            )
        except BaseException:
            self._socket.close()
            raise
        finally:
            os.close(me)
            theirs.close()
        try:
            self._answer_to(0)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The guard's process ID."""
        return self._process.pid

    def fileno(self) -> int:
        """Readable when there is something to `pump`."""
        return self._socket.fileno()

    def ask(self, do: str, fds: Sequence[int] = (), **request: Any) -> dict[str, Any]:
        """One request and its reply.

        Raises:
            ClusterError: the keeper could not do it, or is gone.
        """
        with self._lock:
            self._asked += 1
            data = json.dumps({"id": self._asked, "do": do, "fds": len(fds), **request}).encode() + b"\n"
            try:
                sent = socket.send_fds(self._socket, [data], list(fds)) if fds else 0
                self._socket.sendall(data[sent:])
            except OSError:
                raise self._gone() from None
            return self._answer_to(self._asked)

    def pump(self) -> None:
        """Takes in what has been reported. Does not wait.

        Raises:
            ClusterError: the keeper is gone.
        """
        with self._lock:
            while self._receive(wait=False):
                pass

    def status_of(self, pid: int) -> int | None:
        """How a process that the keeper started has ended, as `subprocess.Popen.returncode`; None: it runs."""
        with self._lock:
            if pid not in self._ended:
                self.pump()
            return self._ended.get(pid)

    def close(self) -> None:
        """Ends the keeper and every process of the cluster; returns when they are gone. May be called again."""
        if os.getpid() != self._owner:
            return  # a forked copy of the owner: not its cluster
        if self._process.returncode is not None:
            self._socket.close()
            return
        with contextlib.suppress(OSError):  # the keeper may have hung up first
            self._socket.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(_CLOSE_SECONDS)
        except BaseException as problem:
            # It may have been stopped, or the user is impatient. Nothing can refuse this one.
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            if not isinstance(problem, subprocess.TimeoutExpired):
                raise
        finally:
            self._socket.close()

    def _answer_to(self, number: int) -> dict[str, Any]:
        while number not in self._replies:
            self._receive(wait=True)
        reply = self._replies.pop(number)
        if "error" in reply:
            if reply.get("errno") in (errno.EPERM, errno.EACCES) and not reply["error"].startswith("cannot run"):
                raise ClusterError(f"{reply['error']}; {ROOT_NEEDED}")
            if reply.get("errno") in (errno.EINVAL, errno.ENOSYS) and number == 0:
                raise ClusterError(f"{reply['error']}: this kernel lacks PID, mount, IPC or network namespaces")
            raise ClusterError(reply["error"])
        return reply

    def _receive(self, wait: bool) -> bool:
        try:
            data = self._socket.recv(1 << 16, 0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            raise self._gone()
        self._data += data
        while b"\n" in self._data:
            line, self._data = self._data.split(b"\n", 1)
            message = json.loads(line)
            if "ended" in message:
                self._ended[message["ended"]] = message["status"]
            else:
                self._replies[message["id"]] = message
        return True

    def _gone(self) -> ClusterError:
        return ClusterError("the cluster's keeper was killed, and with it the kernel ended all ranks and links")


def tag_of(pid: int) -> str:
    """A process as PID and start time, which together are not used twice."""
    return f"{pid}:{_start_time(pid)}"


def sweep() -> list[int]:
    """Ends keepers whose owner has ended, and with them their clusters; returns the guards' process IDs.

    They end by themselves, unless somebody has stopped them (SIGSTOP). Each new cluster calls this.
    """
    found = []
    here = os.readlink("/proc/self/ns/pid")
    for folder in pathlib.Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            # In another PID namespace the owner's number means another process. The init is in one, and ends with its guard.
            if KEEPER.name not in {pathlib.Path(word).name for word in words} or os.readlink(folder / "ns/pid") != here:
                continue
            owner, start = words[words.index(next(w for w in words if w.endswith(KEEPER.name))) + 3].split(":")
            if _start_time(int(owner)) != int(start):
                os.kill(int(folder.name), signal.SIGKILL)
                found.append(int(folder.name))
        except (OSError, ValueError, IndexError):
            continue  # it has ended meanwhile, or is no keeper, or not ours
    return found


def _start_time(pid: int) -> int:
    """Clock ticks from boot to the process's start; -1: there is no such process, or it has ended and is a zombie."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return -1
    return -1 if fields[0] in "ZX" else int(fields[19])
