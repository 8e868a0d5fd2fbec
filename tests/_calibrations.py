"""Calibrations made up for tests: links and codecs of any speed."""

from commpress.cluster import Calibration, CodecCost


def calibration(
    ranks: int = 2,
    *,
    link: float = 125e6,
    codec_seconds: float = 1e-9,
    codecs: tuple[tuple[str, float], ...] = (("uniform:4", 4.0), ("hadamard+lloyd:4", 4.0), ("hadamard+lloyd:2", 2.0)),
    latency: float = 0.0,
    torch_latency: float | None = None,
) -> Calibration:
    """torch's all-reduces at the wire's speed after a latency, and codecs (spec, bits) that all take `codec_seconds` a coordinate."""
    share = 2 * (ranks - 1) / ranks
    first = latency if torch_latency is None else torch_latency
    line = ((0.0, first), (1e6, first + share * 1e6 / link))
    costs = {spec: CodecCost(spec, bits, codec_seconds, codec_seconds, codec_seconds, ranks) for spec, bits in codecs}
    return Calibration(ranks, ranks, ranks, latency, 0.0, link, 0.0, 8 << 20, {"fp32": line, "bf16": line}, costs)
