// What a launch is told. Plain data without CUDA: the operators fill it in, the kernels read it.
#pragma once
#include "bitshift.h"
#include "ecsq_format.h"
#include "ectcq_chains.h"
#include "entropy_coders.h"
#include "philox.h"
#include "sparse.h"
#include "wire.h"

namespace commpress {
namespace cuda {

// A number format, as one more family of a table. Its rate is packed_format() of formats.h.
constexpr int32_t FORMAT = 6;

// `topk`, whose blocks of work are segments, and whose rate is packed_topk().
constexpr int32_t TOPK_SEGMENTS = 7;
constexpr int32_t packed_topk(int32_t fraction, int32_t bits, int64_t block) {
  int32_t digits = 0;
  while (int64_t{1} << digits < block) ++digits;
  return fraction | bits << 20 | digits << 26;
}
COMMPRESS_HD SparseCodec unpacked_topk(int32_t packed) {
  return {TOPK, packed & 0xFFFFF, packed >> 20 & 63, false, int64_t{1} << (packed >> 26)};
}

// The bitshift trellis. Its rate is packed_trellis(); a layer's `bits` say where its codebook begins.
constexpr int32_t BITSHIFT = 8;
constexpr int32_t packed_trellis(int32_t bits, int32_t values, int32_t length, bool rotated) {
  return bits | values << 3 | length << 8 | rotated << 13;
}
COMMPRESS_HD Trellis unpacked_trellis(int32_t packed, bool centroid) {
  const int32_t bits = packed & 7, values = packed >> 3 & 31;
  return {bits, values, packed >> 8 & 31, (packed >> 13 & 1) != 0, centroid, trellis_spread(bits, values)};
}

// What a block of threads of its encoder needs besides, in words: a piece, costs before and after a codeword, products
// and energies of rows, decisions of a chain (or of the walk across a seam), and codes, a byte each.
COMMPRESS_HD int64_t search_floats(const Trellis& t) {
  return (int64_t{2} << (t.length - t.bits)) + (int64_t{2} << (t.length - 2));
}
COMMPRESS_HD int64_t decision_words(const Trellis& t) {
  const int64_t codewords = trellis_codewords(t, trellis_chain(t, trellis_span(t))), least = 2 * TRELLIS_WARM_UP;
  return (codewords > least ? codewords : least) * t.bits * ((int64_t{1} << (t.length - t.bits)) / 32);
}
COMMPRESS_HD int64_t scratch_words(const Trellis& t) {
  return trellis_span(t) + search_floats(t) + decision_words(t) + trellis_span(t) / 4;
}

// The entropy-coded quantisers. A layer is one segment, its blocks of work are substreams (of the encoder the layer
// itself), its rate is packed_entropy(), and its `block_nbytes` those of a substream.
constexpr int32_t ENTROPY = 9;
constexpr int32_t packed_entropy(int32_t rate, bool rotate, bool dither, int32_t states) {
  int32_t digits = 0;
  while (states >> digits > 1) ++digits;
  return rate | rotate << 23 | dither << 24 | digits << 25;
}

// A row of the table of layers, all int64 as in the tensor that holds it.
struct Layer {
  int64_t family, rate, centroid;
  int64_t tensor;         // added to the key's
  int64_t offset, numel;  // offset: index of the first coordinate, a multiple of BLOCK
  int64_t first, byte;    // where it begins in the values and in the payload
  int64_t unit;           // blocks of all layers before
  int64_t bits;           // of every code, if that is one number; else 0, and block_nbytes is 0 too
  int64_t block_nbytes;   // of a whole block
};
constexpr int64_t LAYER_COLUMNS = sizeof(Layer) / sizeof(int64_t);

// `bits` and `block_nbytes` of a codec.
constexpr int64_t even_bits(const Codec& codec) {
  return codec.family >= UNIFORM && codec.rate % RATE_ONE == 0 ? codec.rate / RATE_ONE : 0;
}
constexpr int64_t even_block_nbytes(const Codec& codec) {
  if (codec.family == RAW) return 4 * BLOCK;
  if (codec.family <= CAST_BF16) return 2 * BLOCK;
  const int64_t bits = even_bits(codec);
  return bits ? (codec.family == UNIFORM ? 2 * BLOCK / GROUP : 4) + bits * BLOCK / 8 : 0;
}

// Of the part that encodes with a trellis.
COMMPRESS_HD int64_t entropy_trellis_words(const EcsqCodec& codec, int64_t n) {
  if (codec.states == 0 || ecsq_segment_nbytes(codec, n) < ECTCQ_LEAST_NBYTES) return 0;
  return ChainScratch(codec, n).end;
}

COMMPRESS_HD EcsqCodec entropy_codec_of(const Layer& layer) {
  const int32_t packed = static_cast<int32_t>(layer.rate), digits = packed >> 25;
  return {packed & 0x7FFFFF,   (packed >> 23 & 1) != 0,  (packed >> 24 & 1) != 0,
          layer.centroid != 0, digits ? 1 << digits : 0, layer.block_nbytes};
}

// What a block of threads of their encoder needs besides, in words: where each array begins that EncoderMemory of
// cuda_entropy_encoder.h names, and the end of all.
constexpr int64_t CLASS_WORDS = entropy::CELLS * entropy::SYMBOLS;  // counts of a class, or its table
struct EntropyScratch {
  int64_t escapes, streams, classes, lengths, at, substreams, kinds, coded, trellis, end;
  COMMPRESS_HD EntropyScratch(const EcsqCodec& codec, int64_t n) {
    const EcsqSubstreams parts(codec, n);
    const int64_t padded = parts.blocks * ECSQ_BLOCK;
    const auto even = [](int64_t words) { return (words + 3) / 4 * 4; };
    escapes = padded;
    streams = escapes + padded;
    classes = streams + padded / 2 + entropy::MOST_LANES;
    lengths = classes + ECSQ_MOST_CLASSES * CLASS_WORDS;
    at = lengths + even(entropy::TOTAL + 1);
    substreams = at + even(parts.blocks + parts.count);
    kinds = substreams + even(3 * parts.count);
    coded = kinds + even((parts.blocks + 3) / 4);
    trellis = coded + even((ecsq_segment_nbytes(codec, n) + 3) / 4);
    end = trellis + even(entropy_trellis_words(codec, n));
  }
};

struct Job {
  const Layer* layers;           // in device memory; null: `single` is all there is
  const int32_t* layer_of_unit;  // in device memory: which layer a block belongs to
  Layer single;
  int64_t units;  // blocks of all layers
  Key key;
  const int64_t* step;  // in device memory, added to the key's step; may be null. What a captured graph counts with.
  const float* codebooks = nullptr;  // in device memory: levels of all codebooks that layers of BITSHIFT name
};

// Payloads of the same coordinates, and who sent them. More senders than fit go in several launches.
constexpr int MOST_SENDERS = 16;
struct Sources {
  const uint8_t* payload[MOST_SENDERS];
  uint32_t sender_phase[MOST_SENDERS];
  int32_t count, position;  // position: number of the first among all senders
};

struct Delivery {
  bool accumulate;
  float gain, beta;  // beta applies to what was there before the first sender
};

// What decoders report, in device memory, zero before.
struct Report {
  int32_t invalid;     // 1 + position of a sender whose payload is invalid
  int32_t non_finite;  // not zero: so is something in the result
};

enum Input : int32_t { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };

// Memory of encoders of BITSHIFT and ENTROPY: for each of `count` blocks of threads `each` words, scratch_words() or
// what EntropyScratch says, or more.
struct Scratch {
  uint32_t* words;
  int64_t each;
  int32_t count;
};

// What is encoded.
struct Gradient {
  const void* data;
  Input input;
};

// A device, the number of its multiprocessors, and a cudaStream_t of it.
struct Queue {
  int device, processors;
  void* stream;
};
int processors_of(int device);

// Launches of one kernel each; they return a cudaError_t, 0 for success. `plain`: it does RAW and casts as well.
int encode_uniform(const Job& job, const Gradient& x, float gain, uint8_t* out, bool plain, const Queue& queue);
int encode_rotated(const Job& job, const Gradient& x, float gain, uint8_t* out, bool plain, const Queue& queue);
int decode_uniform(const Job& job, const Sources& sources, float* out, const Delivery& delivery, Report* report,
                   bool plain, const Queue& queue);
int decode_rotated(const Job& job, const Sources& sources, float* out, const Delivery& delivery, Report* report,
                   bool plain, const Queue& queue);
int encode_formats(const Job& job, const Gradient& x, float gain, uint8_t* out, const Queue& queue);
int decode_formats(const Job& job, const Sources& sources, float* out, const Delivery& delivery, Report* report,
                   const Queue& queue);
int encode_sparse(const Job& job, const Gradient& x, float gain, uint8_t* out, const Queue& queue);
int decode_sparse(const Job& job, const Sources& sources, float* out, const Delivery& delivery, Report* report,
                  const Queue& queue);
int encode_trellis(const Job& job, const Gradient& x, float gain, uint8_t* out, const Scratch& scratch,
                   const Queue& queue);
int decode_trellis(const Job& job, const Sources& sources, float* out, const Delivery& delivery, Report* report,
                   const Queue& queue);
// The parts that the one before leaves out: rests of payloads, and pieces that a sender has rotated twice.
int decode_trellis_careful(const Job& job, const Sources& sources, float* out, const Delivery& delivery, Report* report,
                           const Queue& queue);
int encode_entropy(const Job& job, const Gradient& x, float gain, uint8_t* out, const Scratch& scratch,
                   const Queue& queue);
int decode_entropy(const Job& job, const Sources& sources, float* out, const Delivery& delivery, Report* report,
                   const Queue& queue);

// Families that a table holds, as bits: `uniform` has a kernel, number formats, `topk` and the bitshift trellis have
// one each (its decoder two), the others another. Of the first and the last the one that is launched, or launched
// first, does RAW and casts as well.
constexpr uint32_t family_bit(int family) { return 1u << family; }
struct Launches {
  bool rotated, uniform, formats, sparse, trellis, plain_with_rotated;
};
constexpr Launches launches_of(uint32_t families) {
  const uint32_t plain = family_bit(RAW) | family_bit(CAST_FP16) | family_bit(CAST_BF16);
  const bool uniform = (families & family_bit(UNIFORM)) != 0, formats = (families & family_bit(FORMAT)) != 0,
             sparse = (families & family_bit(TOPK_SEGMENTS)) != 0, trellis = (families & family_bit(BITSHIFT)) != 0,
             rotated = (families & (family_bit(HADAMARD_LLOYD) | family_bit(LLOYD))) != 0 ||
                       (!uniform && (families & plain) != 0);
  return {rotated, uniform, formats, sparse, trellis, rotated && (families & plain) != 0};
}

inline int encode(const Job& job, uint32_t families, const Gradient& x, float gain, uint8_t* out, const Queue& queue,
                  const Scratch& scratch = {nullptr, 0, 0}) {
  if (job.units == 0) return 0;
  const Launches launches = launches_of(families);
  int error = launches.rotated ? encode_rotated(job, x, gain, out, launches.plain_with_rotated, queue) : 0;
  if (!error && launches.uniform) error = encode_uniform(job, x, gain, out, !launches.plain_with_rotated, queue);
  if (!error && launches.formats) error = encode_formats(job, x, gain, out, queue);
  if (!error && launches.sparse) error = encode_sparse(job, x, gain, out, queue);
  if (!error && launches.trellis) error = encode_trellis(job, x, gain, out, scratch, queue);
  if (!error && (families & family_bit(ENTROPY))) error = encode_entropy(job, x, gain, out, scratch, queue);
  return error;
}

inline int decode(const Job& job, uint32_t families, const Sources& sources, float* out, const Delivery& delivery,
                  Report* report, const Queue& queue) {
  if (job.units == 0) return 0;
  const Launches launches = launches_of(families);
  int error =
      launches.rotated ? decode_rotated(job, sources, out, delivery, report, launches.plain_with_rotated, queue) : 0;
  if (!error && launches.uniform)
    error = decode_uniform(job, sources, out, delivery, report, !launches.plain_with_rotated, queue);
  if (!error && launches.formats) error = decode_formats(job, sources, out, delivery, report, queue);
  if (!error && launches.sparse) error = decode_sparse(job, sources, out, delivery, report, queue);
  if (!error && launches.trellis) error = decode_trellis(job, sources, out, delivery, report, queue);
  if (!error && launches.trellis) error = decode_trellis_careful(job, sources, out, delivery, report, queue);
  if (!error && (families & family_bit(ENTROPY))) error = decode_entropy(job, sources, out, delivery, report, queue);
  return error;
}

}  // namespace cuda
}  // namespace commpress
