"""The dependency law of docs/design.md: rooms import one way, and the kernels know nothing of torch or Python."""

import ast
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "commpress"
KERNELS = ROOT / "csrc" / "kernels"

# A room may import itself and rooms with a lower number. 0 is the ground that everybody stands on.
LEVEL = {
    "errors": 0,
    "_version": 0,
    "ops": 1,
    "codecs": 2,
    "reference": 3,
    "wire": 3,
    "feedback": 3,
    "lowrank": 3,
    "optim": 3,
    "collectives": 4,
    "hooks": 5,
    "mpi": 5,
    "experiments": 6,
    "run": 6,
    "doctor": 6,
    "cli": 7,
    "__main__": 8,
    "__init__": 8,
}
# These see numbers only; they stand on the ground alone, whoever uses them.
APART = {"telemetry", "information", "allocation", "estimation", "cluster"}
USES_TELEMETRY_FROM = LEVEL["feedback"]
NO_PROCESS_GROUPS = {
    "errors",
    "ops",
    "codecs",
    "reference",
    "wire",
    "lowrank",
    "optim",
    "telemetry",
    "information",
    "allocation",
    "estimation",
    "cluster",
}
KERNEL_HEADERS = {".h", ".cuh", ".inc"}


def room_of(path: pathlib.Path, package: pathlib.Path = PACKAGE) -> str:
    return path.relative_to(package).parts[0].removesuffix(".py")


def imports_of(source: str, path: pathlib.Path, package: pathlib.Path = PACKAGE) -> list[str]:
    """Dotted names of everything that a file imports, wherever in the file; relative imports made absolute."""
    here = ["commpress", *path.relative_to(package).parent.parts]
    found = []
    for node in ast.walk(ast.parse(source, str(path))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            stem = here[: len(here) - node.level + 1] if node.level else []
            module = ".".join([*stem, *([node.module] if node.module else [])])
            found += [f"{module}.{alias.name}" for alias in node.names]
    return found


def offences(source: str, path: pathlib.Path, package: pathlib.Path = PACKAGE) -> list[str]:
    """What a file of the package imports against the law."""
    room, wrong = room_of(path, package), []
    for name in imports_of(source, path, package):
        if room in NO_PROCESS_GROUPS and name.startswith("torch.distributed"):
            wrong.append(f"{room} imports {name}: no process groups here")
        if room == "cluster" and name.split(".")[0] not in {*sys.stdlib_module_names, "commpress"}:
            wrong.append(f"{room} imports {name}: the standard library is enough here")
        parts = name.split(".")
        if parts[0] != "commpress":
            continue
        other = parts[1] if len(parts) > 1 else "__init__"
        if other not in LEVEL and other not in APART:
            other = "__init__"  # `from commpress import Key`
        if other == room or LEVEL.get(other) == 0:
            continue
        if room in APART:
            wrong.append(f"{room} imports {name}: it stands apart")
        elif other in APART:
            if LEVEL[room] < USES_TELEMETRY_FROM:
                wrong.append(f"{room} imports {name}: too low for that")
        elif LEVEL[other] >= LEVEL[room]:
            wrong.append(f"{room} imports {name}: against the direction")
    return wrong


def python_files() -> list[pathlib.Path]:
    return sorted(PACKAGE.rglob("*.py"))


def test_every_room_has_a_place() -> None:
    rooms = {room_of(path) for path in python_files()}
    assert "codecs" in rooms, "looked in the wrong folder"
    assert rooms <= set(LEVEL) | APART, "give the new room its place in the law (docs/design.md) and here"


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: pathlib.Path) -> None:
    assert offences(path.read_text(), path) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("codecs/_x.py", "from commpress.hooks import register"),
        ("codecs/_x.py", "from .. import collectives"),
        ("codecs/_x.py", "def f():\n    import torch.distributed as dist"),
        ("ops/_x.py", "from commpress import Key"),
        ("telemetry/_x.py", "from commpress.codecs import Key"),
        ("telemetry/_x.py", "from torch.distributed import barrier"),
        ("information/_x.py", "from commpress import ops"),
        ("cluster/_x.py", "from commpress.telemetry import JsonlSink"),
        ("cluster/_x.py", "import torch"),
        ("codecs/_x.py", "import commpress.telemetry"),
        ("hooks/_x.py", "import commpress"),
    ],
)
def test_the_law_has_teeth(file: str, source: str) -> None:
    assert offences(source, PACKAGE / file) != []


def test_what_the_law_allows() -> None:
    assert offences("from commpress.codecs import Key\nfrom commpress import telemetry", PACKAGE / "hooks/_x.py") == []
    assert offences("from ._y import z\nfrom ..errors import SpecError", PACKAGE / "codecs/_x.py") == []


def kernel_files() -> list[pathlib.Path]:
    return sorted(path for path in KERNELS.iterdir() if path.suffix in {*KERNEL_HEADERS, ".cpp", ".cu"})


@pytest.mark.parametrize("path", kernel_files(), ids=lambda path: path.name)
def test_kernels_know_no_torch_and_no_python(path: pathlib.Path) -> None:
    text = path.read_text()
    for name in re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', text, flags=re.MULTILINE):
        assert not re.match(r"(torch|ATen|c10|caffe2|Python\.h|pybind11|numpy)", name), name
        assert ".." not in name, f"{name} leaves the room"
    code = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)
    assert not re.search(r"\b(torch|at|c10)::|\bgetenv\b", code)


def test_only_ops_know_torch_in_cpp() -> None:
    assert kernel_files(), "looked in the wrong folder"
    for path in (ROOT / "csrc").iterdir():
        assert path.is_dir() or path.name.startswith("ops"), f"{path.name} has no room"


def test_the_package_takes_no_settings_from_the_environment() -> None:
    """Settings are arguments; what torchrun sets is read by the commands alone."""
    for path in python_files():
        if path.name == "nodes.py":  # who shares a machine is for the launcher to say, and nothing else is read
            assert path.read_text().count("os.environ") == 1
            assert set(re.findall(r'"([A-Z][A-Z_]+)"', path.read_text())) == {
                "GROUP_RANK",
                "LOCAL_RANK",
                "LOCAL_WORLD_SIZE",
            }
        elif room_of(path) not in {"cli", "experiments", "run", "doctor", "__main__"}:
            assert not re.search(r"\bos\.(environ|getenv)", path.read_text()), path
