"""What one submission sent and how long it took; how many bytes that makes on an Ethernet link."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import final

GLOO_PREAMBLE_NBYTES = 48
MSS = 1448
NOTICE_FRAME_NBYTES = 114  # gloo's notice of 48 bytes in a frame of its own
FRAME_NBYTES = 66  # Ethernet 14, IPv4 20, TCP 20 and its timestamp option 12


@final
@dataclasses.dataclass(slots=True)
class Report:
    """Figures of one submission on this rank. Bytes are those this rank sent; times are seconds.

    Attributes:
        numel, world_size, codec1, codec2, sequence: what was reduced.
        chunks: pieces into which each shard was cut.
        bytes_payload1, bytes_payload2: encoded bytes sent in phase 1 (to the shards' owners) and phase 2 (the own reduced shard, once for each other rank).
        bytes_header: headers and verdict prefixes sent.
        messages: number of messages sent; bytes_received, messages_received: the other direction, everything included.
        nodes: in how many nodes the ranks were taken; 1 for a flat all-reduce. With more, all of the above is what went between nodes, and
        bytes_node, messages_node, bytes_node_received, messages_node_received are what stayed inside this rank's node, headers and verdicts included.
        mss: TCP data bytes per frame as the interface counts them, learned from its packet counter once 256 KiB are sent; Ethernet's 1448 before.
        wire_bytes: what the network interface counts as sent, by `wire_nbytes` with that `mss`.
        seconds_queue: between `submit` and the start. seconds_prepare: the observer's `prepare`. seconds_header: waiting for headers.
        seconds_encode1, seconds_decode1, seconds_encode2, seconds_decode2: codec calls (with the observer's `encoded` and `reduced`).
        seconds_wait1, seconds_wait2: waiting for messages (phase 2: for the own shard's reduction too). seconds_total: from the start to the end.
            seconds_node: exchanging and adding inside the node, waits included.
        nonfinite: the result holds a NaN or an infinity; equal on all ranks.
        link_bytes_per_second: what this submission measured, sent and received taken as simultaneous; 0 if it was too small to tell.
    """

    numel: int = 0
    world_size: int = 1
    codec1: str = ""
    codec2: str = ""
    sequence: int = 0
    chunks: int = 0
    bytes_payload1: int = 0
    bytes_payload2: int = 0
    bytes_header: int = 0
    messages: int = 0
    bytes_received: int = 0
    messages_received: int = 0
    nodes: int = 1
    bytes_node: int = 0
    messages_node: int = 0
    bytes_node_received: int = 0
    messages_node_received: int = 0
    seconds_queue: float = 0.0
    seconds_prepare: float = 0.0
    seconds_header: float = 0.0
    seconds_encode1: float = 0.0
    seconds_wait1: float = 0.0
    seconds_decode1: float = 0.0
    seconds_encode2: float = 0.0
    seconds_wait2: float = 0.0
    seconds_decode2: float = 0.0
    seconds_node: float = 0.0
    seconds_total: float = 0.0
    nonfinite: bool = False
    link_bytes_per_second: float = 0.0
    mss: float = MSS

    @property
    def bytes_sent(self) -> int:
        """Payloads, headers and verdicts: every byte handed to the communicator; in a hierarchical all-reduce, every byte for another node."""
        return self.bytes_payload1 + self.bytes_payload2 + self.bytes_header

    @property
    def wire_bytes(self) -> int:
        """`wire_nbytes` of what this submission sent and received; in a hierarchical all-reduce, between nodes."""
        return wire_nbytes(self.bytes_sent, self.messages, self.bytes_received, self.messages_received, mss=self.mss)

    @property
    def wire_bytes_node(self) -> int:
        """The same of what stayed inside the node, as if it had gone over an Ethernet interface of its own; 0 if the all-reduce was flat."""
        return wire_nbytes(
            self.bytes_node, self.messages_node, self.bytes_node_received, self.messages_node_received, mss=self.mss
        )

    @staticmethod
    def merged(reports: Sequence[Report], numel: int, codec: str) -> Report:
        """What several submissions that carried one tensor sent and took together. `numel`, `codec`: of that tensor."""
        total = Report(numel, reports[-1].world_size, codec, codec, reports[0].sequence, chunks=reports[-1].chunks)
        for field in dataclasses.fields(Report):
            if field.name.startswith(("bytes_", "messages", "seconds_")):
                setattr(total, field.name, sum(getattr(report, field.name) for report in reports))
        total.nodes = reports[-1].nodes
        total.mss = reports[-1].mss
        total.nonfinite = any(report.nonfinite for report in reports)
        total.link_bytes_per_second = reports[-1].link_bytes_per_second
        return total


def wire_nbytes(
    sent: int, messages: int, received: int = 0, messages_received: int = 0, *, mss: float = MSS, acks: float = 0.05
) -> int:
    """Bytes that leave an Ethernet interface when gloo sends `messages` messages of `sent` bytes in all, and receives those of the peers.

    The count starts at the destination address and ends before the frame check sequence, as interface counters have it:

        gloo     every message costs the sender a 48-byte notice and a 48-byte preamble, and the receiver a 48-byte notice
        TCP      a frame of 14 (Ethernet) + 20 (IPv4) + 32 (TCP with timestamps) bytes for each `mss` bytes of data and for each notice,
                 and `acks` empty frames for each full frame received

    Args:
        sent, messages: what this rank handed to the communicator. received, messages_received: what it got.
        mss: TCP data bytes per frame: 1448 at an MTU of 1500. An interface whose sender-side segmentation happens behind the counter (TSO/GSO without a
            shaper that splits) counts up to 64 KiB as one frame (`Report.mss` is what a run learned); the wire itself still carries 1448.
        acks: empty acknowledgements per full frame received. Traffic goes both ways at once, so nearly all of them ride on data; one way only it would be 0.5.
    """
    frames = math.ceil((sent + GLOO_PREAMBLE_NBYTES * messages) / mss) if sent else 0
    notices = messages + messages_received
    acknowledgements = round(acks * received / mss)
    data = sent + GLOO_PREAMBLE_NBYTES * (messages + notices)
    return data + FRAME_NBYTES * (frames + notices + acknowledgements)
