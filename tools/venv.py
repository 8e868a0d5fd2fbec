"""Makes the virtual environment in which the Makefile builds.

    python3 tools/venv.py DIRECTORY [--torch "PIP ARGUMENTS"] [--pip "PIP ARGUMENTS"]

Uses the torch that the calling Python has, if it is new enough; else installs one. Needs the standard library only.
"""

import argparse
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

LEAST_PYTHON = (3, 10)
LEAST_TORCH = (2, 10)
PROBE = "import torch; print(torch.__version__, torch.__path__[0], sep='\\n')"


def fail(message: str) -> None:
    sys.exit(f"\ncommpress: {message}\n")


def probe_torch(python: str) -> "tuple[str, str] | None":
    """Version and site-packages folder of the torch that `python` imports, if it is new enough."""
    done = subprocess.run([python, "-c", PROBE], capture_output=True, text=True)
    if done.returncode:
        return None
    version, folder = done.stdout.split("\n")[:2]
    if tuple(int(part) for part in version.split(".")[:2]) < LEAST_TORCH:
        print(f"The torch {version} of {python} is older than {LEAST_TORCH[0]}.{LEAST_TORCH[1]} and is not used.")
        return None
    return version, os.path.dirname(folder)


def check_machine() -> None:
    found, least = sys.version.split()[0], ".".join(map(str, LEAST_PYTHON))
    if sys.version_info < LEAST_PYTHON:
        fail(f"Python {found} is too old; {least} or newer is needed (make PYTHON=python3.12 ...)")
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        fail("this Python cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv")
    compiler = shlex.split(os.environ.get("CXX", "g++"))[0]
    if shutil.which(compiler) is None:
        fail(f"there is no C++ compiler {compiler!r}. On Debian and Ubuntu: apt-get install g++")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--torch", default="torch>=2.10", help="what to give to `pip install` when there is no torch")
    parser.add_argument("--pip", default="", help="arguments for every `pip install`")
    args = parser.parse_args()
    check_machine()

    outer = probe_torch(sys.executable)
    print(f"Making {args.directory}" + (f" with the torch {outer[0]} of {sys.executable}" if outer else ""), flush=True)
    options = ["--system-site-packages"] if outer else []
    subprocess.run([sys.executable, "-m", "venv", *options, str(args.directory)], check=True)
    python = str(args.directory.absolute() / "bin/python")

    if outer and probe_torch(python) is None:
        # The caller is itself a virtual environment: its packages do not count as the system's, and are linked by name.
        ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        folder = subprocess.run(ask, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
        pathlib.Path(folder, "outer-environment.pth").write_text(outer[1] + "\n")
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", *shlex.split(args.pip)]
    if probe_torch(python) is None:
        print(f"Installing {args.torch} (CONTRIBUTING.md tells how to choose another)", flush=True)
        subprocess.run([*pip, *shlex.split(args.torch)], check=True)
    subprocess.run([*pip, "--quiet", "setuptools>=77", "wheel"], check=True)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        fail(f"{shlex.join(error.cmd)} failed with exit status {error.returncode}")
