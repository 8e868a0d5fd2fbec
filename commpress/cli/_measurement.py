"""What the commands of measuring experiments have in common: options, a folder of results, a table, a picture, an exit status."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, final

from commpress.cli._progress import with_bar

EXIT_FAILED = 1


class Found(Protocol):
    """What an experiment that ends in checks found."""

    def records(self) -> list[dict[str, Any]]:
        """Lines of JSON."""

    def table(self) -> str:
        """Text for people, every line with its newline."""

    def checks(self) -> Sequence[Any]:
        """`commpress.experiments._checks.Check` of what must hold."""


def add_parser(
    experiments: Any,
    name: str,
    summary: str,
    run: Callable[[argparse.Namespace], int],
    *,
    takes: str,
    quick: str = "less than a minute",
    picture: str | None = None,
    examples: str = "",
) -> argparse.ArgumentParser:
    """The command, with the options that all of them have.

    Args:
        takes: how long the full one is. quick: and the quick one. picture: its file, if it is not called like the experiment. examples: further lines of them.
    """
    files = f"table.txt, results.jsonl and {picture or f'{name}.png'}"
    parser: argparse.ArgumentParser = experiments.add_parser(
        name,
        help=summary,
        description=f"Measures {summary}. It writes {files}; the exit status is 1 if a figure is not what theory says. "
        f"The full one takes about {takes}.",
        epilog=f"examples:\n  commpress experiment {name} --quick        {quick}\n"
        f"{examples}  commpress experiment {name} --seed 1 --out reports/{name}-1\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=f"where results go (default reports/{name})")
    parser.add_argument("--quick", action="store_true", help=f"fewer and smaller measurements: {quick}")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of data and codecs (default 0)")
    parser.set_defaults(run=run)
    return parser


@final
@dataclasses.dataclass(frozen=True)
class Measurement:
    """An experiment without options of its own.

    Its package in `commpress.experiments` has ``run(quick=, seed=, on_progress=)``, which returns a `Found`, and ``plot(found, path)``.
    """

    NAME: str
    SUMMARY: str
    takes: str

    def add_to(self, experiments: Any) -> None:
        """Adds the experiment."""
        add_parser(experiments, self.NAME, self.SUMMARY, self.run, takes=self.takes)

    def run(self, options: argparse.Namespace) -> int:
        """Carries it out on one thread: 0 done, 1 done and a figure is not what theory says."""
        from commpress.experiments._checks import checks_table

        package = importlib.import_module(f"commpress.experiments.{self.NAME.replace('-', '_')}")
        results = Results(self.NAME, options)
        with one_thread():
            found: Found = with_bar(
                self.NAME, lambda tell: package.run(quick=options.quick, seed=options.seed, on_progress=tell)
            )
        checks = found.checks()
        return results.conclude(
            found.table() + "\nWhat must hold\n" + checks_table(checks),
            [*found.records(), *(check.record() for check in checks)],
            lambda path: package.plot(found, path),
            [f"{self.NAME}: {check.what}: {check.measured:.4g}" for check in checks if not check.passed],
        )


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Where tensors are small: a second thread only waits for the first."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@final
class Results:
    """Where an experiment's results go; made before the work begins, since it tells how long it took.

    Attributes:
        out: the folder; it exists.

    Raises:
        SpecError: a seed that codecs do not take.
    """

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        from commpress.errors import SpecError

        if not 0 <= options.seed < 1 << 62:
            raise SpecError(f"--seed must be in [0, 2^62), got {options.seed}")
        self.out: Path = options.out if options.out is not None else Path("reports") / name
        self.out.mkdir(parents=True, exist_ok=True)
        self._name, self._began = name, time.monotonic()

    def conclude(
        self,
        text: str,
        records: Iterable[dict[str, Any]],
        plot: Callable[[Path], None],
        wrong: Sequence[str],
        *,
        picture: str | None = None,
    ) -> int:
        """Prints and writes everything.

        Args:
            text: the tables. records: lines of JSON. plot: draws the picture to a file. picture: its name, if it is not the experiment's.
            wrong: what is not as it has to be, a line each.

        Returns:
            0, or `EXIT_FAILED` where something is wrong.
        """
        from commpress.experiments import PlotError

        print(text, end="")
        (self.out / "table.txt").write_text(text)
        (self.out / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        try:
            plot(self.out / (picture or f"{self._name}.png"))
        except PlotError as error:
            print(f"\nThe picture was left out: {error}")
        print(f"\n{time.monotonic() - self._began:.0f} s in all. Results: {self.out.resolve()}")
        for line in wrong:
            print(f"commpress experiment: {line}", file=sys.stderr)
        return EXIT_FAILED if wrong else 0
