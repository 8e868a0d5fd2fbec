"""``commpress watch``: a live run in the terminal."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, final

from commpress.telemetry import LogError, Tail, number

_BAR = 28
_EXAMPLES = """\
examples:
  commpress watch run.jsonl
  commpress watch run.jsonl --once                    one look, for scripts
  commpress watch run.jsonl --layers 20 --interval 5

Ctrl-C ends it; the run does not notice. On a terminal it redraws in place, elsewhere it prints a line per look.
The file may be missing yet, grow, be truncated or replaced.
"""


def add_to(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "watch",
        help="follow a live run in the terminal",
        description="Follows the JSONL records of a run: step, loss, bytes, bits, distortion, information, and the "
        "layers with the most bits.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the run's JSONL records")
    parser.add_argument("--once", action="store_true", help="show what there is and end")
    parser.add_argument(
        "--interval", type=float, default=1.0, metavar="SECONDS", help="between looks (default %(default)s)"
    )
    parser.add_argument("--layers", type=int, default=8, metavar="N", help="layers to show (default %(default)s)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Carries it out."""
    from commpress.errors import SpecError

    if not options.interval > 0:
        raise SpecError(f"--interval must be a positive number of seconds, got {options.interval}")
    if options.layers < 0:
        raise SpecError(f"--layers must not be negative, got {options.layers}")
    return watch(options.file, once=options.once, interval=options.interval, layers=options.layers, out=sys.stdout)


def watch(path: Path, *, once: bool, interval: float, layers: int, out: TextIO) -> int:
    """Follows a file until Ctrl-C, or shows it once. Returns the exit status.

    Raises:
        LogError: with `once`, the file holds no step of a run.
        OSError: the file cannot be read; with `once`, it is not there.
    """
    tail, state, screen = Tail(path), Snapshot(), Screen(out)
    if once:
        path.stat()
        for record in tail.records():
            state.take(record)
        tail.close()
        if not state:
            raise LogError(f"{path}: no step of a run in it yet; without --once the command waits for one")
        width, height = shutil.get_terminal_size((100, 40))
        lines = state.picture(str(path), layers, width - 1)
        out.write("\n".join(lines[: max(1, height - 1)] if out.isatty() else lines) + "\n")
        return 0
    said: Any = None
    try:
        while True:
            for record in tail.records():
                state.take(record)
            if screen.terminal:
                screen.draw(state.picture(str(path), layers, screen.width))
            elif state and state.key != said:
                said = state.key
                screen.say(state.line())
            time.sleep(interval)
    except KeyboardInterrupt:
        return 0
    finally:
        screen.close()
        tail.close()


@final
class Screen:
    """Redraws some lines in place on a terminal; elsewhere appends them."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self.terminal = out.isatty()
        self._drawn = 0
        self._shown: list[str] = []

    @property
    def width(self) -> int:
        """Columns that a line may take without a line break."""
        return shutil.get_terminal_size((100, 40)).columns - 1

    def draw(self, lines: Sequence[str]) -> None:
        """Puts lines, each narrower than the terminal, in place of the last."""
        lines = list(lines[: max(1, shutil.get_terminal_size((100, 40)).lines - 1)])
        if lines == self._shown:
            return
        back = f"\x1b[{self._drawn}F" if self._drawn else ""
        self._out.write(back + "\x1b[J" + "\n".join(lines) + "\n")
        self._out.flush()
        self._drawn, self._shown = len(lines), lines

    def say(self, line: str) -> None:
        """One more line."""
        self._out.write(line + "\n")
        self._out.flush()

    def close(self) -> None:
        """Leaves what is drawn; the terminal goes on below it."""
        if self._drawn:
            self._out.write("\n")
            self._out.flush()


@final
class Snapshot:
    """The latest figures of a run."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self.step: Mapping[str, Any] = {}
        self.loss: float | None = None
        self.loss_step: float | None = None
        self.held_out: float | None = None
        self.nmse: float | None = None
        self.information: Mapping[str, Any] = {}
        self.bits: dict[str, tuple[float, float]] = {}  # bits per coordinate, and bits in all
        self.codec = ""
        self._planned = False

    def __bool__(self) -> bool:
        return bool(self.step) or self.loss is not None

    @property
    def key(self) -> tuple[Any, ...]:
        """Differs when there is something new to say."""
        return (self.step.get("step"), self.step.get("time"), self.loss_step)

    def take(self, record: Mapping[str, Any] | None) -> None:
        """A record of the file, or None where the file begins anew."""
        if record is None:
            self._clear()
            return
        kind = record.get("kind")
        if kind == "evaluation":
            self.held_out = number(record.get("held_out_loss_sample"))
        elif kind == "plan":
            self._layers(record)
            self._planned = bool(self.bits)
        if isinstance(record.get("codec"), str):
            self.codec = record["codec"]
        if kind != "step" or number(record.get("step")) is None:
            return
        for name in ("loss", "loss_rank0"):
            if (loss := number(record.get(name))) is not None:
                self.loss, self.loss_step = loss, number(record.get("step"))
        if "rank" in record:
            self._step(record)

    def _step(self, record: Mapping[str, Any]) -> None:
        self.step = record
        layers = record.get("layers")
        pairs = [
            (x, number(layer.get("numel")) or 0)
            for layer in (layers if isinstance(layers, list) else ())
            if isinstance(layer, dict) and (x := number(layer.get("nmse"))) is not None
        ]
        if total := sum(numel for _, numel in pairs):
            self.nmse = sum(x * numel for x, numel in pairs) / total
        if isinstance(record.get("information"), dict):
            self.information = record["information"]
            if not self._planned:
                self._layers(self.information)

    def _layers(self, record: Mapping[str, Any]) -> None:
        layers = record.get("layers")
        found = [layer for layer in layers if isinstance(layer, dict)] if isinstance(layers, list) else []
        bits = {
            str(layer.get("name")): (rate, rate * (number(layer.get("numel")) or 0))
            for layer in found
            if (rate := number(layer.get("bits"))) is not None
        }
        self.bits = bits or self.bits

    def figures(self) -> list[tuple[str, str]]:
        """What there is to say, by name."""
        step = self.step
        found = [("step", f"{_value(step.get('step', self.loss_step), ',.0f')}")]
        if self.loss is not None:
            held_out = "" if self.held_out is None else f" (held out {self.held_out:.4g})"
            found.append(("loss", f"{self.loss:.4f}{held_out}"))
        if step:
            found.append(("wire bytes per step", _value(step.get("wire_bytes"), ",.0f")))
            asked, sent = step.get("requested_rate"), step.get("achieved_rate")
            found.append(("bits", f"{_value(sent, '.4g')} of {_value(asked, '.4g')} asked for"))
        if self.nmse is not None:
            found.append(("NMSE", f"{self.nmse:.3g}"))
        codec, alloc = (number(self.information.get(name)) for name in ("eta_codec", "eta_alloc"))
        if codec is not None:
            text = f"{100 * codec:.1f} % {self.information.get('label') or 'of the Gaussian limit'}"
            if alloc is not None:
                text += f", plan {100 * alloc:.1f} % of the optimum"
            found.append(("information", text))
        if (seconds := number(step.get("step_time"))) is not None:
            found.append(("step time", f"{1000 * seconds:.1f} ms"))
        if step.get("finite") is False:
            found.append(("warning", "a gradient was not finite"))
        return found

    def line(self) -> str:
        """All in one line."""
        return _plain("  ".join(f"{name} {value}" for name, value in self.figures()))

    def picture(self, title: str, layers: int, width: int) -> list[str]:
        """Lines of at most `width` columns: the figures, and the `layers` layers with the most bits as bars."""
        if not self:
            return [_fit(f"{title}: waiting for the first step", width)]
        lines = [f"{title}   {self.codec}".rstrip(), ""]
        figures = self.figures()
        pad = max(len(name) for name, _ in figures)
        lines += [f"{name.ljust(pad)}  {value}" for name, value in figures]
        most = sorted(self.bits.items(), key=lambda pair: -pair[1][1])[:layers]
        if most:
            lines += ["", f"layers with the most bits ({len(most)} of {len(self.bits)}): per coordinate, share of all"]
            total = sum(spent for _, spent in self.bits.values()) or 1.0
            top = most[0][1][1] or 1.0
            room = max(8, min(44, width - _BAR - 18))
            for name, (rate, spent) in most:
                bar = "#" * max(0, min(_BAR, round(_BAR * spent / top)))
                lines.append(
                    f"{_pad(_middle(_plain(name), room), room)} {rate:6.2f} {100 * spent / total:6.1f} % {bar}"
                )
        return [_fit(line, width) for line in lines]


def _value(value: Any, form: str) -> str:
    found = number(value)
    return "-" if found is None else format(found, form)


def _plain(text: str) -> str:
    """Without what a terminal would obey: names come from a file."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _columns(text: str) -> int:
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _fit(text: str, width: int) -> str:
    text = _plain(text)
    while _columns(text) > max(1, width):
        text = text[:-1]
    return text


def _middle(name: str, room: int) -> str:
    while _columns(name) > room:
        half = (len(name) - 1) // 2
        name = name[: half - 1] + "~" + name[half + 1 :]
    return name


def _pad(name: str, room: int) -> str:
    return name + " " * (room - _columns(name))
