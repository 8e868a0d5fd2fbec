"""What needs no GPU of the codecs' way to CUDA kernels: tables of layers, and errors."""

import pytest
import torch
from _formats import FORMATS

import commpress
from commpress import ops
from commpress.codecs import LayeredCodec
from commpress.collectives._cuda_ops import layers_of_ranges
from commpress.errors import SpecError, TensorError

CPU = torch.device("cpu")


@pytest.mark.parametrize("rate", [1_000_000, 2_000_000, 2_500_000, 7_999_999, 8_000_000, 300_000])
@pytest.mark.parametrize("name", ["uniform", "lloyd", "hadamard+lloyd"])
def test_bytes_of_whole_blocks_are_the_codecs(name, rate):
    codec = commpress.codec(f"{name}:{rate / 1e6:.6f}")
    table = ops.device_table([ops.DeviceLayer(codec.kind, 0, 0, 5000, codec.payload_nbytes(5000))], CPU)
    (row,) = table.rows.tolist()
    bits, nbytes = row[9:]
    if rate % 1_000_000:
        assert (bits, nbytes) == (0, 0)
    else:
        assert (bits, nbytes) == (rate // 1_000_000, codec.payload_nbytes(4096))
    assert (table.blocks, table.nbytes, table.units) == (2, codec.payload_nbytes(5000), None)


def test_every_block_knows_its_layer():
    layers = [
        ops.DeviceLayer(ops.Kind(0), 65536, 0, 4097, 4 * 4097),
        ops.DeviceLayer(ops.Kind(3, 4_000_000), 131072, 8192, 100, 52),
        ops.DeviceLayer(ops.Kind(1), 7, 0, 12288, 24576),
    ]
    table = ops.device_table(layers, CPU)
    assert table.units.tolist() == [0, 0, 1, 2, 2, 2]
    assert table.rows[:, 6].tolist() == [0, 4097, 4197]  # first value
    assert table.rows[:, 7].tolist() == [0, 16388, 16440]  # first byte
    assert table.rows[:, 8].tolist() == [0, 2, 3]  # blocks before
    assert table.rows[:, 10].tolist() == [16384, 2064, 8192]
    assert (table.blocks, table.nbytes, table.families) == (6, 16440 + 24576, 0b1011)


def test_a_gap_has_values_and_no_bytes():
    """One launch for all shards but the own one: its table leaves out what lies in between."""
    codec = commpress.codec("uniform:4")
    numel, own = 5 * 4096 + 77, (4096, 3 * 4096)
    layers = layers_of_ranges(codec, [(0, own[0]), (own[1], numel)])
    table = ops.device_table(layers, CPU)
    assert table.rows[:, 4].tolist() == [0, own[1]]  # offset
    assert table.rows[:, 6].tolist() == [0, own[1]]  # first value
    assert table.rows[:, 7].tolist() == [0, codec.payload_nbytes(4096)]
    assert table.rows[:, 8].tolist() == [0, 1] and table.units.tolist() == [0, 1, 1, 1]
    assert table.nbytes == codec.payload_nbytes(4096) + codec.payload_nbytes(numel - own[1], offset=own[1])
    layered = LayeredCodec([(9000, codec), (50, commpress.codec("none")), (9000, commpress.codec("hadamard+lloyd:2"))])
    table = ops.device_table(layers_of_ranges(layered, [(4096, 8192), (9050, 18050)]), CPU)
    assert table.rows[:, 0].tolist() == [3, 5] and table.rows[:, 3].tolist() == [65536, 3 * 65536]
    assert table.rows[:, 4].tolist() == [4096, 0] and table.rows[:, 6].tolist() == [0, 9050 - 4096]
    whole = ops.device_table(layers_of_ranges(layered, [(0, 8192), (8192, 18050)]), CPU)
    assert whole.nbytes == layered.payload_nbytes(18050)
    with pytest.raises(SpecError, match="no kernels"):
        layers_of_ranges(commpress.codec("randk:0.1"), [(0, 5)])


@pytest.mark.parametrize("spec", ["uniform:4", "hadamard+lloyd:2", "trellis:2", "topk:0.1"])
def test_devices_without_kernels_are_refused(spec):
    codec, key = commpress.codec(spec), commpress.Key()
    assert codec.runs_on(CPU)
    assert not codec.runs_on(torch.device("meta"))
    with pytest.raises(TensorError, match="is on meta, where .* has no kernels"):
        codec.encode(torch.empty(10, device="meta"), key)
    with pytest.raises(TensorError, match="is on meta"):
        codec.decode(torch.empty(codec.payload_nbytes(10), dtype=torch.uint8), key, out=torch.empty(10, device="meta"))
    with pytest.raises(TensorError, match="here on cpu"):
        codec.decode(torch.empty(codec.payload_nbytes(10), dtype=torch.uint8, device="meta"), key, out=torch.empty(10))


def test_which_codecs_have_cuda_kernels():
    cuda = torch.device("cuda")
    built = ops.cuda_built()
    for spec in (
        "uniform:3",
        "lloyd:2",
        "hadamard+lloyd:0.5",
        "cast:fp16",
        "topk:0.1",
        "threshold:3",
        "bitshift:1",
        "hadamard+bitshift:0.3",
        "ecsq:1",
        "hadamard+ecdq:2",
        "trellis:2",
        *FORMATS,
    ):
        assert commpress.codec(spec).runs_on(cuda) is built
    for spec in ("randk:0.1", "homomorphic:4"):
        assert not commpress.codec(spec).runs_on(cuda)
    mixed = LayeredCodec([(10, commpress.codec("uniform:4")), (10, commpress.codec("randk:0.1"))])
    assert not mixed.runs_on(cuda)
    assert LayeredCodec([(10, commpress.codec("uniform:4")), (5, commpress.codec("none"))]).runs_on(cuda) is built
    assert LayeredCodec([(10, commpress.codec("mxfp4")), (5, commpress.codec("none"))]).runs_on(cuda) is built


def test_blocks_of_topk_are_segments():
    codec = commpress.codec("topk:0.01,block=8192,values=bf16")
    layers = [
        *(codec.device_layers(0, 3 * 8192 + 1) or []),
        *(commpress.codec("uniform:4").device_layers(0, 4097) or []),
        *(commpress.codec("topk:1,block=262144,values=fp32").device_layers(262144, 5) or []),
    ]
    table = ops.device_table(layers, CPU)
    assert table.units.tolist() == [0, 0, 0, 0, 1, 1, 2]
    assert table.rows[:, :2].tolist() == [
        [7, 10_000 | 16 << 20 | 13 << 26],
        [3, 4_000_000],
        [7, 1_000_000 | 32 << 20 | 18 << 26],
    ]
    assert table.rows[:, 7].tolist()[1] == codec.payload_nbytes(3 * 8192 + 1)
    assert table.families == 1 << ops.TOPK | 1 << 3
    assert commpress.codec("randk:0.1").device_layers(0, 5) is None


def test_layers_of_trellises_know_their_codebooks():
    codecs = [commpress.codec(spec) for spec in ("bitshift:2,length=9", "hadamard+bitshift:0.1", "bitshift:2,length=9")]
    table = ops.device_table([*codecs[0].device_layers(4096, 4097), *codecs[1].device_layers(0, 5)], CPU)
    assert table.rows[:, :3].tolist() == [
        [8, 2 | 1 << 3 | 9 << 8, 0],
        [8, 1 | 10 << 3 | 12 << 8 | 1 << 13, 0],
    ]
    assert table.units.tolist() == [0, 0, 1] and table.families == 1 << ops.BITSHIFT
    first, second = (ops.bitshift_codebooks((one,), CPU) for one in ((2, 1, 9), (1, 10, 12)))
    assert table.rows[:, 9:].tolist() == [[0, 0], [first.numel(), 0]]
    assert (first.numel(), second.numel()) == (1 << 7, 10 << 10)
    assert torch.equal(table.codebooks, torch.cat([first, second]))
    again = ops.device_table([layer for codec in codecs for layer in codec.device_layers(0, 100)], CPU)
    assert again.rows[:, 9].tolist() == [0, first.numel(), 0] and again.codebooks.numel() == table.codebooks.numel()
    centroid = commpress.codec("hadamard+bitshift:1,scale=centroid")
    assert ops.device_table(centroid.device_layers(0, 5), CPU).rows[0, 2] == 1
    assert ops.device_table([], CPU).codebooks is None


def test_layers_of_a_mixture_are_its_spans():
    codec = commpress.codec("hadamard+bitshift:0.3,length=8")
    numel, offset = 5 * 16384 + 77, 3 * 16384
    table = ops.device_table(codec.device_layers(offset, numel), CPU)
    assert table.nbytes == codec.payload_nbytes(numel, offset=offset)
    assert table.rows[:, 4].tolist() == [offset + 16384 * i for i in range(6)]
    assert set(table.rows[:, 1].tolist()) == {v << 3 | 1 | 8 << 8 | 1 << 13 for v in (2, 4)}


def test_scratch_memory_is_that_of_the_longest_state():
    layers = [
        layer for spec in ("bitshift:4", "bitshift:1,length=14") for layer in commpress.codec(spec).device_layers(0, 5)
    ]
    table = ops.device_table(layers, CPU)
    # A piece, costs, products and energies, decisions of 4096 codewords, codes.
    assert table.scratch_words == 16384 + 2 * 8192 + 2 * 4096 + 4096 * 8192 // 32 + 4096
    assert table.scratch_words == ops.bitshift_scratch_words(1, 1, 14)
    assert ops.device_table(layers[:0], CPU).scratch_words == 0


@pytest.mark.parametrize(
    ("spec", "offset", "numel", "numels", "substreams"),
    [
        ("ecsq:8,substream=64", 0, 140_000, [140_000], [2]),
        ("hadamard+ecdq:2", 4096, 100, [100], [1]),
        ("trellis:4,states=64,substream=8", (1 << 23) - 8192, (1 << 23) + 9000, [8192, 1 << 23, 808], [1, 512, 1]),
        ("ecsq:4", (1 << 23) - 8192, (1 << 23) + 9000, [8192, 1 << 23, 808], [1, 1, 1]),
    ],
)
def test_blocks_of_entropy_coded_quantisers_are_substreams(spec, offset, numel, numels, substreams):
    codec = commpress.codec(spec)
    table = ops.device_table(codec.device_layers(offset, numel), CPU)
    code = codec.rate | codec.rotate << 23 | (codec.kind == "ecdq") << 24 | {0: 0, 64: 6}[codec.states] << 25
    assert table.rows[:, :3].tolist() == [[ops.ENTROPY, code, 0]] * len(numels)
    assert table.rows[:, 5].tolist() == numels
    assert table.rows[:, 8].tolist() == [sum(substreams[:i]) for i in range(len(numels))]
    assert table.rows[:, 10].tolist() == [codec.substream << 10] * len(numels)
    assert table.blocks == sum(substreams) and table.families == 1 << ops.ENTROPY
    assert table.nbytes == codec.payload_nbytes(numel, offset=offset)
    words = [ops.ecsq_scratch_words(codec.rate, codec.states, codec.substream << 10, n) for n in numels]
    assert table.scratch_words == max(words) and table.scratches == len(numels)
    assert codec.device_layers(offset, 0) == []


def test_scratch_memory_of_a_segment():
    # Values and escapes, streams with states of 32 coders, tables of 56 classes, code lengths, where raw bits and streams begin, sizes of
    # streams, classes and coded classes.
    words = ops.ecsq_scratch_words(4_000_000, 0, 0, 1000)
    assert words == 1024 + 1024 + 512 + 32 + 56 * 512 + 4100 + 4 + 4 + 4 + 140
    layers = [layer for spec in ("ecsq:4", "bitshift:1") for layer in commpress.codec(spec).device_layers(0, 20_000)]
    table = ops.device_table(layers, CPU)
    assert table.scratches == 1 + 5
    assert table.scratch_words == max(
        ops.ecsq_scratch_words(4_000_000, 0, 0, 20_000), ops.bitshift_scratch_words(1, 1, 12)
    )
    with pytest.raises(RuntimeError, match="a segment has"):
        ops.ecsq_scratch_words(4_000_000, 0, 0, (1 << 23) + 1)


@pytest.mark.parametrize("spec", FORMATS)
def test_formats_are_numbers(spec):
    """Each its own, in the 32 bits that the kernels have for it; and the table has the bytes of a whole block."""
    kinds = {commpress.codec(other).kind for other in FORMATS}
    assert len(kinds) == len({commpress.codec(other).format for other in FORMATS})
    codec = commpress.codec(spec)
    assert 0 < codec.kind.rate < 1 << 31
    table = ops.device_table([ops.DeviceLayer(codec.kind, 0, 0, 5000, codec.payload_nbytes(5000))], CPU)
    (row,) = table.rows.tolist()
    assert row[:3] == [ops.FORMAT, codec.kind.rate, 0]
    assert row[9:] == [0, codec.payload_nbytes(4096)]
    assert table.families == 1 << ops.FORMAT


def test_operators_refuse_tensors_that_are_not_on_a_device():
    codec = commpress.codec("uniform:4")
    table = ops.device_table([ops.DeviceLayer(codec.kind, 0, 0, 100, codec.payload_nbytes(100))], CPU)
    with pytest.raises((NotImplementedError, RuntimeError)):
        ops.encode_table(torch.zeros(100), torch.empty(table.nbytes, dtype=torch.uint8), table, seed=0, words=(0, 0, 0))
