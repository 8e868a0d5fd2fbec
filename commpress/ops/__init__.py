"""Typed wrappers of the C++ operators, and their fake kernels. Everything about a codec's meaning is in :mod:`commpress.codecs`."""

from commpress.ops._bitshift import bitshift_decode, bitshift_encode, bitshift_nbytes
from commpress.ops._cuda import (
    ENTROPY,
    FORMAT,
    TOPK,
    DeviceLayer,
    DeviceTable,
    Kind,
    cuda_built,
    decode_table,
    device_table,
    encode_table,
    entropy_code,
    gap,
    new_report,
    topk_code,
)
from commpress.ops._ecsq import ecsq_decode, ecsq_encode, ecsq_payload_nbytes, ecsq_substream_numel
from commpress.ops._formats import (
    Format,
    FormatFlag,
    Scheme,
    format_code,
    format_decode,
    format_encode,
    format_nbytes,
)
from commpress.ops._homomorphic import (
    homomorphic_add,
    homomorphic_decode,
    homomorphic_encode,
    homomorphic_scales,
)
from commpress.ops._layers import decode_layers, decode_sum_layers, encode_layers, reduce_layers
from commpress.ops._library import LIBRARY, Isa, isa_available
from commpress.ops._modulo import Modulo, modulo_decode, modulo_encode
from commpress.ops._moments import add_multiple, follow_squares, segment_products
from commpress.ops._quantisers import decode, decode_sum, encode, payload_nbytes, payload_nbytes_each, reduce
from commpress.ops._sparse import sparse_decode, sparse_encode, sparse_payload_nbytes
from commpress.ops._tcq import tcq_dequantise, tcq_quantise

__all__ = [
    "DeviceLayer",
    "DeviceTable",
    "ENTROPY",
    "FORMAT",
    "Format",
    "FormatFlag",
    "LIBRARY",
    "Isa",
    "Kind",
    "Modulo",
    "add_multiple",
    "bitshift_decode",
    "bitshift_encode",
    "bitshift_nbytes",
    "Scheme",
    "TOPK",
    "cuda_built",
    "decode",
    "decode_layers",
    "decode_sum",
    "decode_sum_layers",
    "decode_table",
    "device_table",
    "ecsq_decode",
    "ecsq_encode",
    "ecsq_payload_nbytes",
    "ecsq_substream_numel",
    "encode",
    "encode_layers",
    "encode_table",
    "entropy_code",
    "gap",
    "follow_squares",
    "format_code",
    "format_decode",
    "format_encode",
    "format_nbytes",
    "homomorphic_add",
    "homomorphic_decode",
    "homomorphic_encode",
    "homomorphic_scales",
    "isa_available",
    "modulo_decode",
    "modulo_encode",
    "new_report",
    "payload_nbytes",
    "payload_nbytes_each",
    "reduce",
    "reduce_layers",
    "segment_products",
    "sparse_decode",
    "sparse_encode",
    "sparse_payload_nbytes",
    "tcq_dequantise",
    "tcq_quantise",
    "topk_code",
]
