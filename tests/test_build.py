"""What setup.py compiles anew: it goes by contents, not by times, and by its own tree, not by the one that a build folder was copied from."""

import os
import pathlib
import runpy
import shutil
import sys
from collections.abc import Callable
from typing import Any

import pytest
import setuptools

ROOT = pathlib.Path(__file__).resolve().parent.parent

Build = Callable[[], list[str]]


def builder(root: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Compiles the one source of `root` with a compiler that is a script; gives the sources that it was called for."""
    classes: dict[str, Any] = {}
    with monkeypatch.context() as patched:
        patched.setattr(setuptools, "setup", lambda **options: classes.update(options["cmdclass"]))
        runpy.run_path(str(root / "setup.py"))
    log = root / "compiled"
    command = classes["build_ext"](setuptools.Distribution())
    command.force = False

    def build() -> list[str]:
        log.write_text("")
        command.compile_one(root / "csrc" / "a.cpp", [sys.executable, str(root / "compiler.py")])
        return log.read_text().split()

    return build


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> pathlib.Path:
    root = tmp_path / "tree"
    (root / "csrc").mkdir(parents=True)
    shutil.copy(ROOT / "setup.py", root)
    (root / "csrc/a.cpp").write_text('#include "a.h"\n')
    (root / "csrc/a.h").write_text("1\n")
    (root / "compiler.py").write_text(
        "import pathlib, sys\n"
        "names = dict(zip(sys.argv[1:], sys.argv[2:]))\n"
        "pathlib.Path(names['-o']).write_text('object')\n"
        "pathlib.Path(names['-MF']).write_text('a.o: ' + names['-c'] + ' \\\\\\n csrc/a.h\\n')\n"
        "open('compiled', 'a').write(names['-c'] + '\\n')\n"
    )
    for path in root.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    return root


@pytest.mark.parametrize("changed", ["csrc/a.cpp", "csrc/a.h", "setup.py"])
def test_what_changed_is_compiled_anew_whatever_its_time(
    tree: pathlib.Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    build = builder(tree, monkeypatch)
    assert build() == ["csrc/a.cpp"] and build() == []
    os.utime(tree / changed)
    assert build() == []
    with open(tree / changed, "a") as file:
        file.write("# more\n")
    os.utime(tree / changed, (1_000_000_000, 1_000_000_000))  # older than the object
    assert build() == ["csrc/a.cpp"] and build() == []


def test_a_copied_build_folder_does_not_look_where_it_came_from(
    tree: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert builder(tree, monkeypatch)() == ["csrc/a.cpp"]
    copy = tree.parent / "copy"
    shutil.copytree(tree, copy)
    (copy / "compiler.py").unlink()
    (copy / "compiler.py").symlink_to(tree / "compiler.py")
    build = builder(copy, monkeypatch)
    build()  # the compiler's path is part of the command
    assert build() == []
    (copy / "csrc/a.h").write_text("2\n")
    os.utime(copy / "csrc/a.h", (1_000_000_000, 1_000_000_000))
    assert build() == ["csrc/a.cpp"]


def test_what_was_edited_while_it_was_compiled_is_not_trusted(
    tree: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(tree / "compiler.py", "a") as file:
        file.write("open('csrc/a.h', 'a').write('2')\n")
    build = builder(tree, monkeypatch)
    assert build() == ["csrc/a.cpp"] and build() == ["csrc/a.cpp"]
