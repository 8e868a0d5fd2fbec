"""The command ``commpress``, also ``python -m commpress``. One module per subcommand."""

from commpress.cli._main import main

__all__ = ["main"]
