// The entropy-coded quantisers on the device: what a block of threads keeps in shared memory, and the header of a
// segment. A unit of work is a substream. The segment's header and tables of classes are read and checked by every
// block of threads for itself; classes of blocks, raw bits and escapes by the one whose substream has them.
#pragma once
#include "cuda_block.h"
#include "cuda_launch.h"
#include "ecsq_format.h"
#include "ectcq.h"
#include "entropy_coders.h"

namespace commpress {
namespace cuda {

constexpr int ENTROPY_THREADS = 256, ENTROPY_WARPS = ENTROPY_THREADS / 32;
// Coordinates that are decoded between two meetings of all threads.
constexpr int PART = 2048, GROUP_NUMEL = static_cast<int>(ECSQ_BLOCK), PART_GROUPS = PART / GROUP_NUMEL;
// Words of a stream that are held at a time: each coordinate takes at most one.
constexpr int STREAM_WORDS = PART + 1024;

// Tables of classes that were met of late. Those of a class have some rows of `cells`, which say where to begin to look
// for a symbol, and 64 entries of symbols; where there is no dither 64 values follow.
constexpr int TABLE_WORDS = 5120, MOST_SLOTS = 20;
struct TableShape {
  int rows, cell_bits, row_words;
  COMMPRESS_DEVICE int cells() const { return entropy::TOTAL >> cell_bits; }
  COMMPRESS_DEVICE int slots() const { return TABLE_WORDS / (rows * row_words); }
};

struct ClassHeader {
  uint16_t at;  // where it begins in the segment; 0: no block is of this class
  uint8_t largest;
  int8_t raw;
  bool escape, empty, trellis, coarser;
};

// Neighbouring blocks of coordinates that are decoded at a time.
struct Part {
  int32_t kind[PART_GROUPS];
  uint32_t low[PART_GROUPS];  // where raw bits begin in the segment
  int8_t slot[PART_GROUPS];
  int8_t fills, fill_slot[PART_GROUPS], fill_kind[PART_GROUPS];
};

// A substream. All positions are bytes of the segment.
struct EntropySpace {
  alignas(16) float y[BLOCK];
  alignas(16) uint16_t words[STREAM_WORDS];
  uint32_t tables[TABLE_WORDS];
  uint32_t signs[128];
  uint8_t codes[PART];  // symbol + 64 quantiser

  bool rotate, dither, has_rho;
  int trellis_states, header_nbytes,
      class_nbytes;  // bytes of the header without the mask of classes, and of each class
  uint32_t nbytes;
  int n, mode, classes, level, step, lanes;
  int substreams, number;   // of the segment, and which of them
  int first_group, groups;  // blocks of coordinates before it, and its own
  bool last, valid, raw;    // raw: there are classes with raw bits
  float rho;
  TableShape shape;
  // Of values that are not of tables and of escapes, of those with the coarser step; and what all are multiplied by
  // behind a rotation.
  double scale, coarse, rotated;
  uint32_t stream, stream_end, low_end, escapes_at, escapes_end, first_stream, kinds_at;
  uint32_t kinds_before, kinds_before_last, kinds_all, all_escapes;
  ClassHeader of_class[ECSQ_MOST_CLASSES];

  // Where the decoders of symbols and of classes are.
  uint32_t states[32], chains[32], low, escapes;
  int used, spanned, decoded_groups, hand;
  entropy::ClassContexts contexts;
  entropy::BinaryDecoder kinds;
  int8_t tags[MOST_SLOTS];
  Part parts[2];
};

COMMPRESS_DEVICE uint32_t word24_from(const uint8_t* p) {
  return half_from(p) | static_cast<uint32_t>(__ldg(p + 2)) << 16;
}
COMMPRESS_DEVICE int signed24_from(const uint8_t* p) { return static_cast<int>(word24_from(p) << 8) >> 8; }

// In 1/2048 octave.
COMMPRESS_DEVICE int level_of_class(const EntropySpace& s, int kind) {
  return s.level + kind * static_cast<int>(ECSQ_CLASS_WIDTH) * 128;
}
// In its own steps.
COMMPRESS_DEVICE int relative_of_class(const EntropySpace& s, int kind) {
  return level_of_class(s, kind) - (s.of_class[kind].coarser ? static_cast<int>(ECTCQ_COARSER) : 0);
}
COMMPRESS_DEVICE int group_numel(const EntropySpace& s, int group) {
  return smaller(GROUP_NUMEL, s.n - (s.first_group + group) * GROUP_NUMEL);
}

// What a segment is, and which substream; by one thread.
COMMPRESS_DEVICE void begin_unit(EntropySpace& s, const Layer& layer, int64_t unit) {
  const EcsqCodec codec = entropy_codec_of(layer);
  const int64_t nbytes = ecsq_segment_nbytes(codec, layer.numel);
  const EcsqSubstreams substreams(codec, layer.numel);
  const int64_t number = unit - layer.unit;
  s.substreams = static_cast<int>(substreams.count);
  s.number = static_cast<int>(number);
  s.rotate = codec.rotate;
  s.dither = codec.dither;
  s.has_rho = ecsq_has_rho(codec);
  s.trellis_states = codec.states;
  s.header_nbytes = static_cast<int>(ecsq_header_nbytes(codec));
  s.class_nbytes = static_cast<int>(ecsq_class_nbytes(codec));
  s.n = static_cast<int>(layer.numel);
  s.nbytes = static_cast<uint32_t>(nbytes);
  s.first_group = static_cast<int>(substreams.first(number));
  s.groups = static_cast<int>(substreams.last(number)) - s.first_group;
  s.last = number + 1 == substreams.count;
}

// The header as far as the classes, by one thread; false for one that no encoder writes.
COMMPRESS_SELDOM bool read_header(EntropySpace& s, const uint8_t* in, float gain) {
  const auto beyond = [](int value, int limit) { return value < -limit || value > limit; };
  s.mode = in[0];
  if (s.mode == ECSQ_ZERO || s.mode == ECSQ_NAN) return true;
  if (s.mode == ECSQ_RAW) return s.nbytes >= 1 + 4 * static_cast<int64_t>(s.n);
  if (s.mode == ECSQ_TRELLIS ? !(s.trellis_states && s.nbytes >= ECTCQ_LEAST_NBYTES) : s.mode != ECSQ_CODED)
    return false;
  s.step = signed24_from(in + 1);
  s.level = signed24_from(in + 4);
  s.classes = in[7];
  s.first_stream = word_from(in + 14);
  s.all_escapes = word_from(in + 10);
  s.rho = s.has_rho ? float_of(word_from(in + 18)) : 1.0f;
  if (!(s.rho > 0.0f && s.rho <= ECSQ_FLT_MAX)) return false;
  if (s.classes < 1 || s.classes > ECSQ_MOST_CLASSES || beyond(s.step, 2048 * 400) || beyond(s.level, 1 << 17) ||
      beyond(level_of_class(s, s.classes - 1), 1 << 17) || entropy::raw_bits(level_of_class(s, s.classes - 1)) > 17)
    return false;
  s.lanes = s.mode == ECSQ_TRELLIS ? ECTCQ_LANES : ecsq_lanes(s.nbytes);
  s.shape = s.dither ? TableShape{entropy::CELLS, 6, 128} : TableShape{s.mode == ECSQ_TRELLIS ? 2 : 1, 5, 256};
  const double gained = static_cast<double>(gain);
  s.scale = s.rotate ? 1.0 : entropy::step_of(s.step) * gained;
  s.coarse = s.rotate ? entropy::step_of(ECTCQ_COARSER) : entropy::step_of(s.step + ECTCQ_COARSER) * gained;
  s.rotated = entropy::step_of(s.step) * gained;
  const uint8_t* const mask = in + s.header_nbytes;
  uint32_t at = static_cast<uint32_t>(s.header_nbytes + (s.classes + 7) / 8);
  s.raw = false;
  for (int k = 0; k < (s.classes + 7) / 8 * 8; ++k) {
    const bool there = mask[k / 8] >> k % 8 & 1;
    if (k >= s.classes) {
      if (there) return false;
      continue;
    }
    ClassHeader& c = s.of_class[k];
    c.at = 0;
    if (!there) continue;
    c.trellis = s.mode == ECSQ_TRELLIS && level_of_class(s, k) <= ECTCQ_MOST_LEVEL;
    c.coarser = s.mode == ECSQ_TRELLIS && !c.trellis;
    if (at + (c.trellis ? 1 : s.class_nbytes) > s.nbytes) return false;
    c.at = static_cast<uint16_t>(at);
    c.largest = in[at + !c.trellis] & 31;
    c.escape = in[at] >> 7;
    c.empty = c.largest == 0 && !c.escape;
    c.raw = static_cast<int8_t>(c.trellis ? 0 : entropy::raw_bits(relative_of_class(s, k)));
    s.raw = s.raw || c.raw > 0;
    at += c.trellis ? 7u + 2u * c.largest : static_cast<uint32_t>(s.class_nbytes);
  }
  s.kinds_at = at + static_cast<uint32_t>(s.substreams - 1) * ECSQ_ENTRY_NBYTES;
  s.kinds_before = s.kinds_before_last = s.kinds_all = 0;
  return s.kinds_at <= s.nbytes;
}

// Where the block classes of each substream begin; by all. A barrier must follow.
COMMPRESS_DEVICE void add_up_kinds(EntropySpace& s, const uint8_t* in) {
  const int substreams = s.substreams;
  const uint8_t* const entries = in + s.kinds_at - (substreams - 1) * ECSQ_ENTRY_NBYTES;
  for (int i = thread(); i < substreams; i += threads()) {
    const uint32_t nbytes = half_from(i == 0 ? in + 8 : entries + (i - 1) * ECSQ_ENTRY_NBYTES + 12);
    if (i < s.number) atomicAdd(&s.kinds_before, nbytes);
    if (i < substreams - 1) atomicAdd(&s.kinds_before_last, nbytes);
    atomicAdd(&s.kinds_all, nbytes);
  }
}

// The next block's class; false where no encoder writes it.
COMMPRESS_DEVICE bool next_kind(EntropySpace& s, entropy::BinaryDecoder& coder, int& kind) {
  return entropy::decode_class(s.contexts, coder, s.classes, kind) && (kind < 0 || s.of_class[kind].at != 0);
}
COMMPRESS_DEVICE uint32_t raw_nbytes(const EntropySpace& s, int kind, int numel) {
  return kind < 0 ? 0 : static_cast<uint32_t>(numel * s.of_class[kind].raw + 7) / 8;
}

// The substream's own entry, by one thread. Escapes begin where the raw bits of the last substream end, which only its
// classes say.
COMMPRESS_SELDOM bool read_entry(EntropySpace& s, const uint8_t* in) {
  const int substreams = s.substreams, number = s.number;
  const uint8_t* const entry = in + s.kinds_at + (number - substreams) * ECSQ_ENTRY_NBYTES;
  const uint32_t kinds_end = s.kinds_at + s.kinds_all;
  if (kinds_end > s.nbytes) return false;
  s.stream = number == 0 ? s.first_stream : word_from(entry);
  s.escapes = number == 0 ? 0 : word_from(entry + 4);
  s.low = number == 0 ? kinds_end : word_from(entry + 8);
  const uint8_t* const next = entry + ECSQ_ENTRY_NBYTES;
  s.stream_end = s.last ? s.nbytes : word_from(next);
  s.escapes_end = s.last ? s.all_escapes : word_from(next + 4);
  s.low_end = s.last ? s.first_stream : word_from(next + 8);
  if (s.escapes > s.escapes_end || s.stream_end > s.nbytes || s.low > s.low_end || s.low_end > s.first_stream ||
      s.first_stream > s.nbytes || static_cast<uint64_t>(s.stream) + 4 * s.lanes > s.stream_end)
    return false;
  s.escapes_at = 0;
  if (s.escapes < s.escapes_end) {
    uint64_t at = substreams == 1 ? kinds_end : word_from(in + s.kinds_at - ECSQ_ENTRY_NBYTES + 8);
    if (s.raw) {
      const uint8_t* const from = in + s.kinds_at + s.kinds_before_last;
      const int begin = s.last ? s.first_group : s.groups * (substreams - 1),
                end = (s.n + GROUP_NUMEL - 1) / GROUP_NUMEL;
      entropy::BinaryDecoder coder;
      coder.begin(from, s.kinds_all - s.kinds_before_last);
      s.contexts.begin();
      for (int group = begin; group < end; ++group) {
        int kind;
        if (!next_kind(s, coder, kind)) return false;
        at += raw_nbytes(s, kind, smaller(GROUP_NUMEL, s.n - group * GROUP_NUMEL));
      }
    }
    if (at + 4 * static_cast<uint64_t>(s.escapes_end) > s.first_stream) return false;
    s.escapes_at = static_cast<uint32_t>(at);
  }
  const uint32_t own = half_from(number == 0 ? in + 8 : entry + 12);
  s.kinds.begin(in + s.kinds_at + s.kinds_before, own);
  s.contexts.begin();
  s.decoded_groups = s.spanned = s.hand = s.used = 0;
  for (int slot = 0; slot < MOST_SLOTS; ++slot) s.tags[slot] = -1;
  return true;
}

// The floats of escapes; by all.
COMMPRESS_DEVICE bool escapes_valid(const EntropySpace& s, const uint8_t* in) {
  bool valid = true;
  for (uint32_t e = s.escapes + thread(); e < s.escapes_end; e += threads()) {
    const float value = float_of(word_from(in + s.escapes_at + 4 * e));
    valid = valid && value >= -ECSQ_FARTHEST && value <= ECSQ_FARTHEST;
  }
  return valid;
}

}  // namespace cuda
}  // namespace commpress
