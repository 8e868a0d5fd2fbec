"""A codec of its own for every layer of a flat tensor: what a plan of the allocator becomes."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import final

import torch

from commpress import ops
from commpress.codecs import _device
from commpress.codecs._base import BLOCK, Codec
from commpress.codecs._formats import FormatCodec
from commpress.codecs._key import Key
from commpress.codecs._noise import Noise, of_parts
from commpress.codecs._none import NoneCodec
from commpress.codecs._quantisers import QuantisingCodec
from commpress.errors import SpecError, WireError

_Part = tuple[int, Codec, slice, int, slice]  # layer, codec, coordinates, offset in the layer, bytes
_TENSOR_STEP = 1 << 16  # between the keys of two layers, whatever the tensor's own number (below this)


@final
class LayeredCodec(Codec):
    """Layer after layer, each under its own codec and in blocks counted from its own first coordinate.

    A payload is the layers' payloads one after the other; it may begin and be cut at every block of every layer. Layer i draws its randomness from the key whose `tensor`
    is larger by ``(i + 1) * 65536``. Neighbours that are sent exactly are one layer to this class.
    Where all layers are `none`, casts, `uniform`, `lloyd` or `hadamard+lloyd` (on CUDA also number formats) they go through one operator with a table of layers; else one by
    one, and then a decoder that meets an invalid layer has already written those before it.

    Args:
        layers: number of coordinates and codec of each layer, in order.
        rows: how often the tensor repeats them, one row behind the other. No layer crosses the end of a row, so payloads may begin there (a reduce-scatter's do).

    Raises:
        SpecError: a number of coordinates is negative, or there are 65535 layers or more.
    """

    def __init__(self, layers: Sequence[tuple[int, Codec]], *, rows: int = 1) -> None:
        merged: list[tuple[int, Codec]] = []
        for numel, codec in layers:
            if numel < 0:
                raise SpecError(f"a layer has {numel} coordinates")
            if merged and codec.lossless and merged[-1][1] == codec:
                merged[-1] = (merged[-1][0] + numel, codec)
            elif numel:
                merged.append((numel, codec))
        merged *= rows
        if len(merged) >= _TENSOR_STEP - 1:
            raise SpecError(f"{len(merged)} layers; the limit is {_TENSOR_STEP - 2}")
        self._layers = tuple(merged)
        self._starts = [0]
        for numel, _ in merged:
            self._starts.append(self._starts[-1] + numel)
        text = ";".join(f"{numel} {codec}" for numel, codec in merged)
        self._digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        self._tables: dict[tuple[int, int], torch.Tensor] = {}
        self._uniform = all(isinstance(codec, (QuantisingCodec, NoneCodec)) for _, codec in merged)
        self._on_device = all(isinstance(codec, (QuantisingCodec, FormatCodec, NoneCodec)) for _, codec in merged)
        self._cuts: dict[tuple[int, int, int], list[int]] = {}
        self._sizes: dict[tuple[int, int, torch.dtype], int] = {}
        self._plans: dict[tuple[int, int, torch.dtype], list[_Part]] = {}
        self._device_tables: dict[tuple[int, int, torch.device], ops.DeviceTable] = {}

    @property
    def layers(self) -> tuple[tuple[int, Codec], ...]:
        """Number of coordinates and codec of each."""
        return self._layers

    @property
    def numel(self) -> int:
        """Coordinates of the whole tensor."""
        return self._starts[-1]

    @property
    def bits(self) -> float | None:
        """Mean over the coordinates; a layer sent exactly counts as fp32."""
        total = sum(numel * (32.0 if codec.bits is None else codec.bits) for numel, codec in self._layers)
        return total / self.numel if self.numel else None

    @property
    def unbiased(self) -> bool:
        return all(codec.unbiased for _, codec in self._layers)

    @property
    def lossless(self) -> bool:
        return all(codec.lossless for _, codec in self._layers)

    @property
    def noise(self) -> Noise:
        return of_parts(codec.noise for _, codec in self._layers)

    @property
    def even_error(self) -> bool:
        return any(codec.even_error for _, codec in self._layers)

    def passes_on(self, world_size: int) -> bool:
        return world_size == 2  # whatever the plan: what a step records does not depend on it

    def for_feedback(self) -> LayeredCodec:
        return LayeredCodec([(numel, codec.for_feedback()) for numel, codec in self._layers])

    def __str__(self) -> str:
        return f"layers:{len(self._layers)},plan={self._digest}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LayeredCodec) and self._digest == other._digest

    def __hash__(self) -> int:
        return hash(self._digest)

    def payload_nbytes(self, numel: int, *, offset: int = 0, dtype: torch.dtype = torch.float32) -> int:
        place = (numel, offset, dtype)
        if place not in self._sizes:
            self._sizes[place] = sum(
                codec.payload_nbytes(stop - start, offset=inner, dtype=dtype)
                for _, codec, start, stop, inner in self._parts(offset, numel)
            )
        return self._sizes[place]

    def split(self, start: int, stop: int, parts: int) -> list[int]:
        """Cuts where the layers' codecs may be cut, into parts of about equal payload."""
        place = (start, stop, parts)
        if place not in self._cuts:
            self._cuts[place] = self._split(start, stop, parts)
        return list(self._cuts[place])

    def _split(self, start: int, stop: int, parts: int) -> list[int]:
        pieces, ends = list(self._parts(start, stop - start)), [0]
        for _, codec, low, high, inner in pieces:
            ends.append(ends[-1] + codec.payload_nbytes(high - low, offset=inner))
        cuts = [start]
        for part in range(1, parts):
            wanted = -(-ends[-1] * part // parts)
            i = bisect.bisect_left(ends, wanted)
            if i == 0:  # no bytes at all
                cuts.append(start)
                continue
            _, codec, low, high, inner = pieces[i - 1]
            edges = codec.split(inner, inner + high - low, -(-(high - low) // BLOCK))
            first = bisect.bisect_left(edges, wanted - ends[i - 1], key=_bytes_before(codec, inner))
            cuts.append(start + low + edges[first] - inner)
        return [*cuts, stop]

    def seams(self, start: int, stop: int, parts: int) -> list[int]:
        """The seams of the layers' payloads nearest to equal numbers of coordinates."""
        allowed = [start]
        for _, codec, low, high, inner in self._parts(start, stop - start):
            count = max(1, parts * (high - low) // max(1, stop - start))
            allowed += [start + low + cut - inner for cut in codec.seams(inner, inner + high - low, count)[1:]]
        wanted = [start + (stop - start) * part // parts for part in range(1, parts)]
        return [start, *(allowed[bisect.bisect_left(allowed, position)] for position in wanted), stop]

    def check_offset(self, offset: int) -> None:
        i = max(0, bisect.bisect_right(self._starts, offset) - 1)
        if offset < 0 or offset > self.numel:
            raise SpecError(f"offset must lie in the tensor of {self.numel} coordinates, got {offset}")
        if offset != self.numel:
            self._layers[i][1].check_offset(offset - self._starts[i])

    def _parts(self, offset: int, numel: int) -> Iterator[tuple[int, Codec, int, int, int]]:
        """(layer, codec, start, stop, offset in the layer) for what lies in [offset, offset + numel); start and stop count from `offset`."""
        if offset + numel > self.numel:
            raise SpecError(f"coordinates {offset} to {offset + numel} of a tensor of {self.numel}")
        i = max(0, bisect.bisect_right(self._starts, offset) - 1)
        end = offset + numel
        while i < len(self._layers) and self._starts[i] < end:
            low, high = max(offset, self._starts[i]), min(end, self._starts[i + 1])
            yield i, self._layers[i][1], low - offset, high - offset, low - self._starts[i]
            i += 1

    @staticmethod
    def _key(key: Key, layer: int) -> Key:
        return key.of_layer((layer + 1) * _TENSOR_STEP)

    def _bytes(self, offset: int, numel: int, dtype: torch.dtype) -> list[_Part]:
        """`_parts` with the bytes of each; kept, as every step asks for the same."""
        place = (offset, numel, dtype)
        found = self._plans.get(place)
        if found is None:
            found, byte = [], 0
            for i, codec, start, stop, inner in self._parts(offset, numel):
                end = byte + codec.payload_nbytes(stop - start, offset=inner, dtype=dtype)
                found.append((i, codec, slice(start, stop), inner, slice(byte, end)))
                byte = end
            self._plans[place] = found
        return found

    def _table(self, offset: int, numel: int, dtype: torch.dtype) -> torch.Tensor | None:
        """For the operators that take all layers at once; None unless every layer is sent in fp32 or by a quantiser of these, and values are fp32."""
        place = (offset, numel)
        if dtype != torch.float32 or not self._uniform:
            return None
        if place not in self._tables:
            rows = []
            for i, codec, values, inner, _ in self._bytes(offset, numel, dtype):
                kind = (codec.family, codec.rate, codec.centroid) if isinstance(codec, QuantisingCodec) else (0, 0, 0)
                rows.append([*map(int, kind), (i + 1) * _TENSOR_STEP, inner, values.stop - values.start])
            self._tables[place] = torch.tensor(rows, dtype=torch.int64).reshape(len(rows), 6)
        return self._tables[place]

    def runs_on(self, device: torch.device) -> bool:
        return all(codec.runs_on(device) for _, codec in self._layers)

    def device_layers(self, offset: int, numel: int) -> list[ops.DeviceLayer] | None:
        if not self._on_device:
            return None
        layers: list[ops.DeviceLayer] = []
        for i, codec, values, inner, _ in self._bytes(offset, numel, torch.float32):
            own = codec.device_layers(inner, values.stop - values.start) or []
            layers += [layer._replace(tensor=(i + 1) * _TENSOR_STEP) for layer in own]
        return layers

    def _device_table(self, offset: int, numel: int, like: torch.Tensor) -> ops.DeviceTable | None:
        """The same for the CUDA kernels."""
        place = (offset, numel, like.device)
        if not like.is_cuda or not self._on_device or like.dtype != torch.float32 or not numel:
            return None
        if place not in self._device_tables:
            layers = self.device_layers(offset, numel) or []
            self._device_tables[place] = ops.device_table(layers, like.device)
        return self._device_tables[place]

    def _encode(self, x: torch.Tensor, key: Key, out: torch.Tensor, offset: int, gain: float) -> None:
        device_table = self._device_table(offset, x.numel(), x)
        if device_table is not None:
            _device.encode(device_table, x, key, out, gain)
            return
        table = None if x.is_cuda else self._table(offset, x.numel(), x.dtype)
        if table is not None:
            ops.encode_layers(x, out, table, seed=key.seed, words=key.words(), gain=gain)
            return
        for i, codec, values, inner, part in self._bytes(offset, x.numel(), x.dtype):
            codec._encode(x[values], self._key(key, i), out[part], inner, gain)

    def _decode(
        self,
        payload: torch.Tensor,
        key: Key,
        out: torch.Tensor,
        accumulate: bool,
        offset: int,
        gain: float,
        beta: float,
    ) -> None:
        device_table = self._device_table(offset, out.numel(), out)
        if device_table is not None:
            _device.decode(
                device_table,
                [payload],
                [key],
                out,
                accumulate=accumulate,
                gain=gain,
                beta=beta,
                corrupt=lambda _: self._corrupt("a layer"),
            )
            return
        table = None if out.is_cuda else self._table(offset, out.numel(), out.dtype)
        if table is not None:
            words = key.words()
            if not ops.decode_layers(
                payload, out, table, seed=key.seed, words=words, accumulate=accumulate, gain=gain, beta=beta
            ):
                raise self._corrupt("a layer")
            return
        for i, codec, values, inner, part in self._bytes(offset, out.numel(), out.dtype):
            codec._decode(payload[part], self._key(key, i), out[values], accumulate, inner, gain, beta)

    def reduce(
        self,
        payloads: Sequence[torch.Tensor],
        keys: Sequence[Key],
        key: Key,
        *,
        values: torch.Tensor,
        out: torch.Tensor,
        offset: int = 0,
        beta: float = 1.0,
    ) -> bool:
        device_table = self._device_table(offset, values.numel(), values)
        if device_table is not None and key.of_same_tensor(keys):
            return _device.reduce(
                device_table,
                payloads,
                keys,
                key,
                values=values,
                out=out,
                beta=beta,
                corrupt=lambda i: self._corrupt(f"a layer in the payload of rank {keys[i].sender}"),
            )
        table = None if values.is_cuda else self._table(offset, values.numel(), values.dtype)
        if table is not None and key.of_same_tensor(keys):
            senders = [k.words()[1] for k in keys]
            status = ops.reduce_layers(
                list(payloads), values, out, table, seed=key.seed, senders=senders, words=key.words(), beta=beta
            )
            if status >= 0:
                raise self._corrupt(f"a layer in the payload of rank {keys[status].sender}")
            return status == -1
        finite = True
        for i, codec, mine, inner, part in self._bytes(offset, values.numel(), values.dtype):
            finite &= codec.reduce(
                [payload[part] for payload in payloads],
                [self._key(sender, i) for sender in keys],
                self._key(key, i),
                values=values[mine],
                out=out[part],
                offset=inner,
                beta=beta,
            )
        return finite

    def decode_sum(
        self, payloads: Sequence[torch.Tensor], keys: Sequence[Key], *, out: torch.Tensor, offset: int = 0
    ) -> bool:
        first = keys[0]
        device_table = self._device_table(offset, out.numel(), out)
        if device_table is not None and first.of_same_tensor(keys):
            return _device.decode(
                device_table,
                payloads,
                keys,
                out,
                accumulate=False,
                corrupt=lambda i: self._corrupt(f"a layer in the payload of rank {keys[i].sender}"),
            )
        table = None if out.is_cuda else self._table(offset, out.numel(), out.dtype)
        if table is not None and first.of_same_tensor(keys):
            senders = [k.words()[1] for k in keys]
            status = ops.decode_sum_layers(
                list(payloads), out, table, seed=first.seed, senders=senders, step=first.step, tensor=first.tensor
            )
            if status >= 0:
                raise self._corrupt(f"a layer in the payload of rank {keys[status].sender}")
            return status == -1
        finite = True
        for i, codec, mine, inner, part in self._bytes(offset, out.numel(), out.dtype):
            finite &= codec.decode_sum(
                [payload[part] for payload in payloads],
                [self._key(key, i) for key in keys],
                out=out[mine],
                offset=inner,
            )
        return finite

    def _corrupt(self, what: str) -> WireError:
        return WireError(
            f"{what} has a scale that no encoder writes: the bytes are corrupt, or of another plan ({self})"
        )


def _bytes_before(codec: Codec, start: int) -> Callable[[int], int]:
    """Payload bytes of [start, edge) by edge."""
    return lambda edge: codec.payload_nbytes(edge - start, offset=start)
