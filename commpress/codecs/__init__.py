"""Codecs: gradient to bytes and back.

``codec("hadamard+lloyd:2")`` parses a spec into a frozen codec. Families of this version, b in (0, 8] bits per coordinate:

| spec | unbiased | what it does |
|---|---|---|
| ``none`` | yes | raw values in their own dtype |
| ``cast:fp16``, ``cast:bf16`` | no | round to nearest even |
| ``uniform:b`` | yes | stochastic rounding on a grid up to the largest magnitude of each 512 coordinates |
| ``lloyd:b`` | no | Lloyd-Max quantiser of N(0,1), least-squares scale for each 4096 coordinates |
| ``hadamard+lloyd:b`` | yes | the same after a random rotation, with EDEN's unbiased scale (``scale=centroid`` for the least-squares one) |
| ``topk:f`` | no | the part f of largest magnitude of each 65536 (``block=``), f in (0, 1]; ``values=fp32``, ``bf16`` or 1 to 8 bits (the default is 4); positions cost their entropy |
| ``threshold:t`` | no | top-k with the part of a normal distribution beyond t standard deviations, and 1-bit values: sign and one magnitude |
| ``randk:f`` | yes | a random part f, which costs no positions, times 1/f (``scale=none``: as they are, biased); ``values=`` as above, the default is fp32 |
| ``bitshift:b`` | no | trellis code with a Gaussian codebook, ``length=`` 8 to 16 bits of state, for some b from 0.05 to 4; slow to encode, near the limit |
| ``hadamard+bitshift:b`` | yes | the same after a random rotation, with EDEN's unbiased scale (or ``scale=centroid``) |
| ``float:eXmY`` | yes | floats of X bits of exponent and Y of mantissa, packed; a power-of-two scale for each 512 (``scale=none``: none, biased) |
| ``mxfp8``, ``mxfp6``, ``mxfp4`` | yes | OCP MX: blocks of 32; ``format=e5m2``, ``format=e3m2`` |
| ``nvfp4`` | yes | e2m1, an e4m3 scale for each 16, a float32 for each 4096 |
| ``natural`` | yes | natural compression: powers of two, a scale for each 512 (``scale=none``: nine bits) |
| ``int8`` | yes | 255 levels up to the largest magnitude of each 512 |
| ``qsgd:s`` | yes | QSGD: s levels on either side, up to the norm of each 512 (``norm=linf``: the largest magnitude) |
| ``ternary`` | yes | TernGrad: three levels, five codes to a byte |
| ``sign`` | no | signs times the mean magnitude of each 4096 (``scale=none``: +1 and -1) |
| ``onebit`` | no | signs with a mean for each sign, for each 4096 |

``float`` to ``ternary`` round stochastically by default; ``rounding=nearest`` is not unbiased. ``block=`` sets the coordinates that share a scale.
| ``ecsq:b`` | no | entropy-coded uniform quantiser with a dead zone, one step for the whole payload, found so that its bits just fit; b from 0.05 on (``scale=centroid`` as above) |
| ``ecdq:b`` | yes | the same with subtractive dither instead of a dead zone |
| ``hadamard+ecsq:b``, ``hadamard+ecdq:b`` | no, yes | both after a random rotation |
| ``trellis:b``, ``hadamard+trellis:b`` | no | `ecsq` with a trellis code of 8 states for its quantiser (ECTCQ): nearer to the limit, slower to encode; ``scale=centroid`` as above |
| ``lowrank:r`` | no | matrices as two factors of r columns, averaged over the ranks: for `register` and `all_reduce`, no payload of its own (``factors=SPEC``, ``iterations=n``, ``reset=f``) |
| ``homomorphic:b`` | yes | b whole bits on a grid that all ranks agree on, with subtractive dither (``rounding=stochastic``: without); an all-reduce adds the codes and never quantises a sum |
| ``modulo:b,rho=r`` | no | the lowest b whole bits of a dithered rounding, for a receiver with side information of correlation r |

``codec.noise`` says how the error goes with a coordinate's size: "multiplicative" for ``cast``, ``float`` of four and more bits of exponent, ``mxfp8``, ``natural`` and ``randk``; "additive" behind a rotation or with
a dither, and for ``int8`` and ``uniform`` of 6 bits and more; "mixed" for the rest (README has the table).

:class:`LayeredCodec` gives every layer of a flat tensor a codec of its own.
"""

from collections.abc import Callable

from commpress.codecs._base import BLOCK, Codec
from commpress.codecs._bitshift import FAMILIES as BITSHIFT_FAMILIES
from commpress.codecs._bitshift import parse_bitshift
from commpress.codecs._ecsq import ENTROPY_FAMILIES, parse_entropy
from commpress.codecs._formats import FAMILIES as FORMAT_FAMILIES
from commpress.codecs._formats import parse_format
from commpress.codecs._homomorphic import FAMILY as HOMOMORPHIC
from commpress.codecs._homomorphic import parse_homomorphic
from commpress.codecs._key import Key
from commpress.codecs._layered import LayeredCodec
from commpress.codecs._linear import LinearCodec
from commpress.codecs._lowrank import LowRankCodec, parse_lowrank
from commpress.codecs._modulo import FAMILY as MODULO
from commpress.codecs._modulo import parse_modulo
from commpress.codecs._noise import KINDS, OCTAVES, Noise
from commpress.codecs._none import parse_none
from commpress.codecs._quantisers import FAMILIES, parse_cast, parse_quantiser
from commpress.codecs._sparse import parse_sparse
from commpress.codecs._spec import Spec, parse
from commpress.errors import SpecError

__all__ = ["BLOCK", "KINDS", "OCTAVES", "Codec", "Key", "LayeredCodec", "LinearCodec", "LowRankCodec", "Noise", "codec"]


_PARSERS: dict[str, Callable[[Spec], Codec]] = {
    "none": parse_none,
    "cast": parse_cast,
    **dict.fromkeys(FAMILIES, parse_quantiser),
    **dict.fromkeys(("topk", "threshold", "randk"), parse_sparse),
    **dict.fromkeys(BITSHIFT_FAMILIES, parse_bitshift),
    **dict.fromkeys(FORMAT_FAMILIES, parse_format),
    **dict.fromkeys(ENTROPY_FAMILIES, parse_entropy),
    "lowrank": parse_lowrank,
    HOMOMORPHIC: parse_homomorphic,
    MODULO: parse_modulo,
}


def codec(spec: "str | Codec") -> Codec:
    """The codec that a spec names; a codec is returned as it is.

    Raises:
        SpecError: the spec is malformed, or names a family, a rate or an option that there is not.
    """
    if isinstance(spec, Codec):
        return spec
    parsed = parse(spec)
    parser = _PARSERS.get(parsed.family)
    if parser is None:
        raise SpecError(f"unknown codec family {parsed.family!r} in {spec!r}; this version has: {', '.join(_PARSERS)}")
    return parser(parsed)
