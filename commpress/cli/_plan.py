"""``commpress plan``: what compression would bring on a cluster that one has not got yet."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from typing import Any

from commpress.cli._bounds import size
from commpress.cluster import CodecCost, Estimate, Network, bits_per_second, break_even, exact, flat, hierarchical
from commpress.errors import SpecError

_CODECS = ("uniform:4", "hadamard+lloyd:4", "hadamard+lloyd:2", "hadamard+lloyd:1")
_BACKWARD = 2 / 3  # of a step's computation
_EXAMPLES = """\
examples:
  commpress plan --ranks 1024 --rate 25gbit --model 7b
  commpress plan --ranks 1024 --rate 400gbit --model 7b --local-ranks 8 --intra 3200gbit --step-seconds 2
  commpress plan --ranks 64 --rate 10gbit --model 125m --bits 0.5 --codec-speed 20 --json

A plan is arithmetic: no network is touched. docs/cost-model.md says what it assumes.
"""


def _rate(text: str) -> float:
    """Bytes per second from a rate such as 25gbit; beyond the 100 gbit that links of an emulated cluster go to."""
    number = text.strip().lower()
    if number.endswith("tbit"):
        number = f"{float(number.removesuffix('tbit')) * 1000:g}gbit"
    if number.endswith("gbit") and number.removesuffix("gbit").replace(".", "", 1).isdigit():
        value = float(number.removesuffix("gbit")) * 1e9
        if 0 < value <= 1e14:
            return value / 8
    try:
        return bits_per_second(number) / 8
    except SpecError as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None


def add_to(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "plan",
        help="show what compression would bring on a cluster of a given size and speed",
        description="For a number of ranks, a link rate and a model: seconds of the gradient's all-reduce in fp32, in 16 bits "
        "and compressed, over all ranks at once (flat) and exact inside each node (hierarchical); the bytes that leave a "
        "node; and the link rate below which each codec is faster than 16 bits.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--ranks", type=size, required=True, metavar="N", help="ranks in all")
    parser.add_argument("--rate", type=_rate, required=True, help="of the link of a node, one way, as 25gbit")
    parser.add_argument("--model", type=size, required=True, metavar="D", help="parameters, as 7b, 125m or a count")
    parser.add_argument(
        "--local-ranks", type=size, default=1, metavar="L", help="ranks of a node (default %(default)s)"
    )
    parser.add_argument("--intra", type=_rate, help="rate of each rank's link inside its node, as 400gbit")
    parser.add_argument("--codec", nargs="+", metavar="SPEC", help=f"codecs to compare (default: {' '.join(_CODECS)})")
    parser.add_argument("--bits", type=float, metavar="B", help="add the codec that bits=B would use")
    parser.add_argument(
        "--step-seconds",
        type=float,
        metavar="S",
        help="a step without communication: adds the step's time, and the share of the all-reduce that goes on behind backward, two thirds of S",
    )
    parser.add_argument(
        "--latency", type=float, default=20e-6, metavar="S", help="seconds of a message's way (default %(default)g)"
    )
    parser.add_argument(
        "--message-seconds",
        type=float,
        default=5e-6,
        metavar="S",
        help="a rank's time for each message, whatever its size (default %(default)g)",
    )
    parser.add_argument(
        "--codec-speed",
        type=float,
        metavar="GB/S",
        help="fp32 gigabytes a second that every codec encodes, and decodes; by default each is timed on this machine, in this process",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from commpress.codecs import codec as make_codec

    for name in ("step_seconds", "codec_speed"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise SpecError(f"--{name.replace('_', '-')} must be above 0, got {value:g}")
    network = Network(
        options.ranks, options.rate, options.local_ranks, options.intra, options.latency, options.message_seconds
    )
    specs = list(options.codec or ([] if options.bits else _CODECS))
    if options.bits is not None:
        specs.append(_of_budget(options.bits))
    costs = [_cost(make_codec(spec), options.codec_speed) for spec in dict.fromkeys(specs)]
    rows = [
        _row(name, exact(options.model, nbytes, network), None, options)
        for name, nbytes in (("fp32", 4), ("16 bits", 2))
    ]
    for cost in costs:
        for name, function in (("flat", flat), ("hierarchical", hierarchical)):
            if name == "flat" or network.local_ranks > 1:
                estimate = function(options.model, cost, network)
                rows.append(
                    _row(cost.spec, estimate, name, options)
                    | {"break_even_bits_per_second": _break_even(function, options.model, cost, network)}
                )
    speeds = "given" if options.codec_speed else "timed here, one process on CPU"
    if options.json:
        print(
            json.dumps(
                {"network": dataclasses.asdict(network), "numel": options.model, "codec_speeds": speeds, "rows": rows},
                indent=2,
            )
        )
    else:
        _print(rows, network, options, speeds)
    return 0


def _of_budget(bits: float) -> str:
    from commpress.hooks import default_family

    if not 0 < bits <= 8:
        raise SpecError(f"--bits must be above 0 and at most 8, got {bits:g}")
    name, _, rest = default_family(bits).partition(",")
    return f"{name}:{bits:g}" + ("," + rest if rest else "")


def _cost(codec: Any, speed: float | None) -> CodecCost:
    from commpress.collectives import check_codec, codec_cost

    check_codec(codec)
    if speed is None:
        return codec_cost(codec, 4)  # more ranks than two: none passes its contributions on
    each, numel = 4 / (speed * 1e9), 1 << 20
    bits = 8 * codec.payload_nbytes(numel) / numel
    return CodecCost(str(codec), bits, each, each, 3 * each, 2)


def _break_even(function: Any, numel: int, cost: CodecCost, network: Network) -> float | None:
    """Bits per second; inf as text is no JSON, so None stands for "never faster" and 0 is never meant."""

    def at(link: float) -> Network:
        return dataclasses.replace(network, link=link)

    found = break_even(
        lambda link: function(numel, cost, at(link)).seconds, lambda link: exact(numel, 2, at(link)).seconds
    )
    return None if found is None else 8 * min(found, 1e13)


def _row(name: str, estimate: Estimate, way: str | None, options: argparse.Namespace) -> dict[str, Any]:
    row: dict[str, Any] = {
        "codec": name,
        "way": way,
        "seconds": estimate.seconds,
        "wire_seconds": estimate.wire,
        "codec_seconds": estimate.work,
        "bytes_leaving_a_node": estimate.node_bytes,
    }
    if options.step_seconds is not None:
        backward = _BACKWARD * options.step_seconds
        row["hidden_share"] = estimate.hidden(backward)
        row["step_seconds"] = options.step_seconds + estimate.exposed(backward)
    return row


def _print(rows: list[dict[str, Any]], network: Network, options: argparse.Namespace, speeds: str) -> None:
    inside = "" if network.intra is None else f", {_bits(8 * network.intra)} for each rank inside"
    print(
        f"{network.ranks} ranks on {network.nodes} node{'s' * (network.nodes > 1)}, {_bits(8 * network.link)} for each node{inside}; "
        f"{options.model:,} parameters; codec speeds: {speeds}"
    )
    step = options.step_seconds is not None
    head = f"{'codec':>32} {'way':>12} {'all-reduce s':>12} {'wire s':>9} {'codec s':>9} {'GB from node':>12} {'break-even':>12}"
    print(head + (f" {'hidden':>7} {'step s':>9}" if step else ""))
    for row in rows:
        even = ""
        if row["way"] is not None:
            at = row["break_even_bits_per_second"]
            even = "never" if at is None else "any rate" if at >= 8e13 else _bits(at)
        line = (
            f"{row['codec']:>32} {row['way'] or 'ring or tree':>12} {row['seconds']:>12.4g} {row['wire_seconds']:>9.3g} "
            f"{row['codec_seconds']:>9.3g} {row['bytes_leaving_a_node'] / 1e9:>12.4g} {even:>12}"
        )
        print(line + (f" {row['hidden_share']:>7.0%} {row['step_seconds']:>9.4g}" if step else ""))
    print("break-even: the rate of a node's link below which it is faster than 16 bits")


def _bits(value: float) -> str:
    for unit, name in ((1e12, "Tbit/s"), (1e9, "Gbit/s"), (1e6, "Mbit/s")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value / 1e3:.3g} kbit/s"
