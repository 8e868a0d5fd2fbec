"""Runs the script as Python would, between the setting and the taking away of the hooks that find its models."""

from __future__ import annotations

import argparse
import builtins
import importlib.machinery
import io
import os
import runpy
import sys
import types
import zipfile
from pathlib import Path

from commpress.errors import SpecError
from commpress.run._models import Models
from commpress.run._options import register_options

_HERE = str(Path(__file__).parent)


def execute(options: argparse.Namespace) -> int:
    """Runs the script of a parsed command line.

    Returns:
        0, or 1 after an exception, which is shown as Python shows it. ``sys.exit`` and Ctrl-C in the script pass through.

    Raises:
        SpecError: there is no such script, or an option is wrong.
    """
    if not options.module and not os.path.exists(options.script):
        raise SpecError(f"there is no script {options.script!r} in {os.getcwd()}")
    models = Models(register_options(options), telemetry=options.telemetry, quiet=options.quiet)
    completed = False
    with models:
        try:
            _run(options.script, options.arguments, module=options.module)
            completed = True
        except SystemExit:
            completed = True
            raise
        except Exception as error:
            # Before the states are closed, which may wait for ranks that are gone.
            trace = _of_the_script(error.__traceback__)
            sys.excepthook(type(error), error.with_traceback(trace), trace)
            return 1
        finally:
            models.close(completed=completed)
    return 0


def _run(script: str, arguments: list[str], *, module: bool) -> None:
    """As ``python script arguments`` or ``python -m script arguments``: arguments, search path and __main__."""
    sys.argv = [script, *arguments]
    if not getattr(sys.flags, "safe_path", False):  # Python 3.11 on: -P, -I
        # In place of the folder of this command: that of the script.
        sys.path[0] = os.getcwd() if module else os.path.dirname(os.path.realpath(script))
    if module:
        runpy.run_module(script, run_name="__main__", alter_sys=True)
    elif os.path.isdir(script) or zipfile.is_zipfile(script):
        runpy.run_path(script, run_name="__main__")
    else:
        _run_file(os.path.abspath(script))


def _run_file(path: str) -> None:
    """Not by runpy, which would name the file as it was given, and take __main__ away before functions that were registered for the exit are called."""
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=path, __builtins__=builtins, __cached__=None)
    main.__loader__ = importlib.machinery.SourceFileLoader("__main__", path)
    sys.modules["__main__"] = main
    with io.open_code(path) as file:
        code = compile(file.read(), path, "exec", dont_inherit=True)
    exec(code, main.__dict__)


def _of_the_script(trace: types.TracebackType | None) -> types.TracebackType | None:
    """Without the frames above the script's first one."""
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if not (name.startswith((_HERE, "<frozen runpy>")) or os.path.basename(name) == "runpy.py"):
            break
        trace = trace.tb_next
    return trace
