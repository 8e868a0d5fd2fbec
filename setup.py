"""Builds ``commpress/_C.abi3.so``: one shared object for every torch >= 2.10 and every Python.

It is loaded with ``torch.ops.load_library``, uses torch's stable ABI only and no Python header, so compilers are
called directly. The kernels are torch-free; only ``csrc/ops*.cpp`` see torch's headers. Environment: ``CXX``,
``CXXFLAGS``, ``CUDA_HOME``, ``MAX_JOBS``, ``COMMPRESS_CUDA`` = ``auto`` (the default: CUDA kernels if nvcc is
there), ``0``, or ``1`` (an error if they cannot be built), and ``COMMPRESS_CUDA_ARCHS``, the compute capabilities to
build for ("80 90 100" if not given; one is built in a third of the time).
"""

import concurrent.futures
import hashlib
import importlib.util
import os
import pathlib
import platform
import re
import shlex
import shutil
import subprocess
import time

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = pathlib.Path(__file__).resolve().parent
X86 = platform.machine().lower() in ("x86_64", "amd64")
# What csrc/kernels/dispatch.cpp asks the processor for, and nothing beyond.
AVX2 = ["-mavx2", "-mfma"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
ISA_FLAGS = {"_avx2": AVX2, "_avx512": AVX512}
# Results are defined to the bit: nothing here may change one, and a*b+c must stay two operations on every machine.
CXX_FLAGS = [
    "-std=c++17",
    "-O2",
    "-ftree-loop-vectorize",
    "-fno-tree-slp-vectorize",
    "-ffp-contract=off",
    "-fno-math-errno",
]
CXX_FLAGS += ["-g0", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
CXX_FLAGS += ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]  # gcc 12 sees some in its own AVX-512 headers
TORCH_FLAGS = ["-std=c++20", "-DTORCH_TARGET_VERSION=0x020a000000000000"]  # the stable ABI of torch 2.10
NVCC_FLAGS = ["-std=c++17", "-O3", "-fmad=false", "-Xcompiler", "-fPIC,-fvisibility=hidden,-ffp-contract=off"]
CUDA_ARCHS = ["80", "90", "100"]


def torch_dir() -> pathlib.Path:
    spec = importlib.util.find_spec("torch")  # not imported: that takes seconds, and only its folder is wanted
    if spec is None or not spec.submodule_search_locations:
        raise CompileError("commpress is built against torch >= 2.10, and no torch is installed in this environment")
    return pathlib.Path(spec.submodule_search_locations[0])


def find_nvcc(sources: list[pathlib.Path]) -> str | None:
    """nvcc's path if the CUDA kernels are to be built."""
    wish = os.environ.get("COMMPRESS_CUDA", "auto")
    if wish not in ("auto", "0", "1"):
        raise CompileError(f"COMMPRESS_CUDA must be auto, 0 or 1, not {wish!r}")
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=os.path.join(home, "bin") if home else None)
    if wish == "1" and nvcc is None:
        raise CompileError(f"COMMPRESS_CUDA=1, but there is no nvcc {f'in CUDA_HOME={home}' if home else 'on PATH'}")
    return nvcc if wish != "0" and sources else None


def cuda_flags(nvcc: str) -> tuple[list[str], list[str]]:
    """Architecture flags that this nvcc knows, and where its libraries are (it may be a wrapper, so it is asked)."""
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    wanted = os.environ.get("COMMPRESS_CUDA_ARCHS", "").split() or CUDA_ARCHS
    archs = [a for a in wanted if f"sm_{a}" in known]
    if not archs:
        raise CompileError(f"{nvcc} knows none of the compute capabilities {' '.join(wanted)}")
    gencode = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
    gencode.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")  # for GPUs yet to come
    dry_run = [nvcc, "--dryrun", "-c", "-x", "cu", os.devnull, "-o", os.devnull]
    libraries = re.search(r"LIBRARIES=(.*)", subprocess.run(dry_run, capture_output=True, text=True).stderr)
    return gencode, shlex.split(libraries.group(1)) if libraries else []


def inputs_of(source: pathlib.Path, listing: pathlib.Path) -> list[pathlib.Path]:
    """What an object was made of: its source, the headers that the compiler listed, and this file. Paths are relative to ROOT: a copied build/ must not look at the tree that it came from."""
    listed = listing.read_text().replace("\\\n", " ").partition(":")[2].split()
    return [ROOT / path for path in sorted({*listed, str(source.relative_to(ROOT)), "setup.py"})]


def seal_of(source: pathlib.Path, listing: pathlib.Path) -> str:
    """Of the contents, since times are those of a checkout or a copy; empty if something is missing."""
    try:
        contents = [path.read_bytes() for path in inputs_of(source, listing)]
    except FileNotFoundError:
        return ""
    return hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in contents)).hexdigest()


class BuildExtension(build_ext):
    """Compiles several sources at a time; an object is kept until its source, a header that it includes or the command changes."""

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")) + ".abi3.so"

    def build_extension(self, ext: Extension) -> None:
        torch, compiler = torch_dir(), shlex.split(os.environ.get("CXX", "g++"))
        cxx = [*compiler, *CXX_FLAGS, *shlex.split(os.environ.get("CXXFLAGS", ""))]
        cuda_sources = sorted((ROOT / "csrc/kernels").glob("*.cu"))
        nvcc = find_nvcc(cuda_sources)
        defines = ["-DCOMMPRESS_X86=1"] * X86 + ["-DCOMMPRESS_CUDA=1"] * bool(nvcc)
        jobs = []
        for source in sorted((ROOT / "csrc/kernels").glob("*.cpp")):
            isa = next((flags for end, flags in ISA_FLAGS.items() if source.stem.endswith(end)), None)
            if isa is None or X86:
                jobs.append((source, [*cxx, *defines, *(isa or [])]))
        for source in sorted((ROOT / "csrc").glob("ops*.cpp")):
            jobs.append((source, [*cxx, *defines, *TORCH_FLAGS, "-isystem", str(torch / "include")]))
        libraries = []
        if nvcc:
            gencode, folders = cuda_flags(nvcc)
            jobs += [(source, [nvcc, *NVCC_FLAGS, *defines, *gencode]) for source in cuda_sources]
            libraries = [*folders, "-lcudart_static", "-ldl", "-lrt"]
        with concurrent.futures.ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
            objects = list(pool.map(lambda job: self.compile_one(*job), jobs))
        target = pathlib.Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        torch_cpu = [f"-L{torch / 'lib'}", "-Wl,--no-as-needed", "-ltorch_cpu", "-Wl,--as-needed"]
        self.call(
            [
                *compiler,
                "-shared",
                "-pthread",
                "-Wl,--no-undefined",
                *objects,
                "-o",
                str(target),
                *torch_cpu,
                *libraries,
            ]
        )

    def copy_extensions_to_source(self) -> None:
        for ext in self.extensions:
            name = self.get_ext_filename(ext.name)
            shutil.copy2(pathlib.Path(self.build_lib) / name, ROOT / (name + ".new"))
            (ROOT / (name + ".new")).replace(ROOT / name)  # renamed: processes that have the old file open keep it

    def compile_one(self, source: pathlib.Path, command: list[str]) -> str:
        name = hashlib.sha256("\0".join(command).encode()).hexdigest()[:12]
        target = ROOT / "build/objects" / f"{source.stem}-{name}.o"
        listing = target.with_suffix(".d")  # make's syntax: "target: source header header ..."
        kept = target.with_suffix(".seal")
        if self.force or not target.exists() or not kept.exists() or kept.read_text() != seal_of(source, listing):
            target.parent.mkdir(parents=True, exist_ok=True)
            kept.unlink(missing_ok=True)
            began = time.time()
            fresh = target.with_suffix(f".{os.getpid()}.tmp.o")
            self.call([*command, "-MMD", "-MF", str(listing), "-c", str(source.relative_to(ROOT)), "-o", str(fresh)])
            fresh.replace(target)
            if all(path.stat().st_mtime < began for path in inputs_of(source, listing)):  # not edited meanwhile
                kept.write_text(seal_of(source, listing))
        return str(target)

    def call(self, command: list[str]) -> None:
        self.announce(shlex.join(command), level=2)
        try:
            result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
        except FileNotFoundError:
            raise CompileError(
                f"no compiler {command[0]!r}: install one (on Debian and Ubuntu: apt-get install g++), or set CXX"
            ) from None
        if result.stdout:
            print(result.stdout, flush=True)
        if result.returncode:
            raise CompileError(f"{shlex.join(command)}\nfailed with exit status {result.returncode}:\n{result.stdout}")


class Wheel(bdist_wheel):
    """A wheel for one platform and every Python 3: the shared object is not a Python extension module."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("commpress._C", sources=[])],
    cmdclass={"build_ext": BuildExtension, "bdist_wheel": Wheel},
)
