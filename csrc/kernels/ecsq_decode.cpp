// Decoding of one segment: everything is checked before a value is written.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "ecsq.h"
#include "ecsq_format.h"
#include "ecsq_kernels.h"
#include "ectcq_model.h"
#include "entropy_coders.h"

namespace commpress {

struct EcsqHeader {
  EcsqCodec codec;
  const uint8_t* in;
  int64_t n, nbytes;
  uint8_t mode;
  int64_t j, relative;
  double rho = 1.0;
  std::vector<int16_t> kinds;
  std::vector<entropy::Model> models;
  std::vector<bool> present;
  std::vector<int8_t> places;            // three for each class
  std::vector<EctcqModel> with_trellis;  // one for each class, where the mode is ECSQ_TRELLIS
  // Of a substream; `escapes` are those before it, `kinds_nbytes` and `low_at` of its classes and its raw bits.
  struct Entry {
    int64_t stream_at, escapes, kinds_nbytes, low_at;
  };
  std::vector<Entry> entries;  // one more, for the end
  int64_t escapes_at;

  EcsqSubstreams substreams() const { return {codec, n}; }
  bool coded() const { return mode == ECSQ_CODED || mode == ECSQ_TRELLIS; }
  int lanes() const { return mode == ECSQ_TRELLIS ? ECTCQ_LANES : ecsq_lanes(nbytes); }
  int64_t level_of(int kind) const { return relative + kind * ECSQ_CLASS_WIDTH * 128; }
  bool in_trellis(int kind) const { return mode == ECSQ_TRELLIS && level_of(kind) <= ECTCQ_MOST_LEVEL; }
  // How much coarser than the common one the step of a class is, in 1/2048 octave.
  int64_t coarser(int kind) const { return mode == ECSQ_TRELLIS && !in_trellis(kind) ? ECTCQ_COARSER : 0; }
  // Level in its own steps.
  int64_t relative_of(int kind) const { return level_of(kind) - coarser(kind); }
  int raw_bits(int kind) const { return in_trellis(kind) ? 0 : entropy::raw_bits(relative_of(kind)); }
};

void EcsqHeaderDeleter::operator()(EcsqHeader* header) const { delete header; }

namespace {

int64_t unsigned_at(const uint8_t* in, int nbytes) {
  int64_t value = 0;
  for (int i = nbytes; i-- > 0;) value = value << 8 | in[i];
  return value;
}
int64_t signed24_at(const uint8_t* in) {
  const int64_t value = unsigned_at(in, 3);
  return value >= 1 << 23 ? value - (1 << 24) : value;
}

bool parse_trellis_class(const EcsqHeader& h, int64_t& at, EctcqModel& m) {
  if (at >= h.nbytes) return false;
  m.largest = h.in[at] & 31;
  m.ample[0] = h.in[at] >> 5 & 1;
  m.ample[1] = h.in[at] >> 6 & 1;
  m.escape = h.in[at] >> 7;
  if (at + m.nbytes() > h.nbytes) return false;
  memcpy(m.places, h.in + at + 1, 6);
  for (int q = 0; q < 2; ++q) memcpy(m.codes[q] + 1, h.in + at + 7 + q * m.largest, m.largest);
  at += m.nbytes();
  int32_t f[2][entropy::SYMBOLS];
  return ectcq_frequencies(m, f);
}

bool parse(EcsqHeader& h) {
  const uint8_t* const in = h.in;
  h.mode = in[0];
  if (h.mode == ECSQ_ZERO || h.mode == ECSQ_NAN) return true;
  if (h.mode == ECSQ_RAW) return h.nbytes >= 1 + 4 * h.n;
  if (h.mode == ECSQ_TRELLIS && !(h.codec.states && h.nbytes >= ECTCQ_LEAST_NBYTES)) return false;
  if (!h.coded()) return false;
  h.j = signed24_at(in + 1);
  h.relative = signed24_at(in + 4);
  const int count = in[7];
  const EcsqSubstreams substreams = h.substreams();
  h.entries.assign(substreams.count + 1, {});
  h.entries[0] = {unsigned_at(in + 14, 4), 0, unsigned_at(in + 8, 2), 0};
  h.entries.back() = {h.nbytes, unsigned_at(in + 10, 4), 0, 0};
  int64_t at = ecsq_header_nbytes(h.codec);
  if (ecsq_has_rho(h.codec)) {
    float rho;
    memcpy(&rho, in + 18, 4);
    if (!(rho > 0 && std::isfinite(rho))) return false;
    h.rho = rho;
  }
  const auto beyond = [](int64_t value, int64_t limit) { return value < -limit || value > limit; };
  if (count < 1 || count > ECSQ_MOST_CLASSES || beyond(h.j, 2048 * 400) || beyond(h.relative, 1 << 17) ||
      beyond(h.level_of(count - 1), 1 << 17) || entropy::raw_bits(h.level_of(count - 1)) > 17)
    return false;
  const uint8_t* const mask = in + at;
  at += (count + 7) / 8;
  if (at > h.nbytes) return false;
  h.present.assign(count, false);
  int64_t there = 0;
  for (int k = 0; k < 8 * ((count + 7) / 8); ++k) {
    if (!(mask[k / 8] >> k % 8 & 1)) continue;
    if (k >= count) return false;
    h.present[k] = true;
    ++there;
  }
  if (h.mode == ECSQ_CODED && at + there * ecsq_class_nbytes(h.codec) > h.nbytes) return false;
  h.models.assign(count, {});
  h.places.assign(3 * count, 0);
  h.with_trellis.assign(h.mode == ECSQ_TRELLIS ? count : 0, {});
  entropy::Frequencies f;
  for (int k = 0; k < count; ++k) {
    if (!h.present[k]) continue;
    if (h.in_trellis(k)) {
      if (!parse_trellis_class(h, at, h.with_trellis[k])) return false;
      continue;
    }
    if (at + ecsq_class_nbytes(h.codec) > h.nbytes) return false;
    entropy::Model& m = h.models[k];
    m.shift = (in[at] & 127) - 64;
    m.escape = in[at] >> 7;
    m.largest = in[at + 1] & 31;
    m.shape = in[at + 1] >> 5;
    if (!entropy::frequencies_of(m, h.relative_of(k), h.codec.dither, f)) return false;
    if (!h.codec.dither) memcpy(&h.places[3 * k], in + at + 2, 3);
    at += ecsq_class_nbytes(h.codec);
  }
  if (at + substreams.entries_nbytes() > h.nbytes) return false;
  for (int64_t s = 1; s < substreams.count; ++s, at += ECSQ_ENTRY_NBYTES)
    h.entries[s] = {unsigned_at(in + at, 4), unsigned_at(in + at + 4, 4), unsigned_at(in + at + 12, 2),
                    unsigned_at(in + at + 8, 4)};
  h.kinds.resize(substreams.blocks);
  for (int64_t s = 0; s < substreams.count; ++s) {
    const int64_t nbytes = h.entries[s].kinds_nbytes, first = substreams.first(s);
    if (at + nbytes > h.nbytes ||
        !entropy::decode_classes(in + at, nbytes, count, &h.kinds[first], substreams.last(s) - first))
      return false;
    at += nbytes;
  }
  for (int64_t s = 0; s < substreams.count; ++s) {
    if (s == 0) h.entries[s].low_at = at;
    if (h.entries[s].low_at != at) return false;
    for (int64_t b = substreams.first(s); b < substreams.last(s); ++b) {
      if (h.kinds[b] < 0) continue;
      if (!h.present[h.kinds[b]]) return false;
      at += (std::min(ECSQ_BLOCK, h.n - b * ECSQ_BLOCK) * h.raw_bits(h.kinds[b]) + 7) / 8;
    }
    const EcsqHeader::Entry &e = h.entries[s], &next = h.entries[s + 1];
    if (e.escapes > next.escapes || e.stream_at + 4 * h.lanes() > next.stream_at) return false;
  }
  h.escapes_at = at;
  if (at + 4 * h.entries.back().escapes > h.entries[0].stream_at) return false;
  for (int64_t e = 0; e < h.entries.back().escapes; ++e) {
    float value;
    memcpy(&value, in + at + 4 * e, 4);
    if (!(value >= -ECSQ_FARTHEST && value <= ECSQ_FARTHEST)) return false;
  }
  return true;
}

constexpr int64_t STREAM_NUMEL = 1 << 20;  // 4 MiB of values: more than a second-level cache holds

class Decoder {
 public:
  Decoder(const EcsqHeader& h, const Key& key, int64_t index, bool accumulate, float gain, float beta, Isa isa)
      : h_(h),
        key_(key),
        index_(index),
        accumulate_(accumulate),
        gain_(gain),
        beta_(beta),
        kernels_(ecsq_kernels(isa)),
        trellis_(ectcq_kernels(isa)),
        code_(ectcq_code(h.codec.states)),
        scale_(h.coded() ? entropy::step_of(h.j) * (h.codec.rotate ? 1.0 : gain) : 0.0),
        coarse_scale_(h.coded() ? entropy::step_of(h.j + ECTCQ_COARSER) * (h.codec.rotate ? 1.0 : gain) : 0.0) {}

  // Substreams from one to another; `out` is the whole segment.
  void run(float* out, int64_t first, int64_t last) {
    streams_ = !accumulate_ && h_.n >= STREAM_NUMEL && reinterpret_cast<uintptr_t>(out) % 64 == 0;
    if (h_.coded()) ready();
    for (int64_t s = first; s < last; ++s) h_.coded() ? substream(s, out) : simple(s, out);
    if (streams_) kernels_.finish_stream();
  }

 private:
  int64_t begin_of(int64_t s) const { return h_.substreams().first(s) * ECSQ_BLOCK; }
  int64_t end_of(int64_t s) const { return std::min(h_.n, h_.substreams().last(s) * ECSQ_BLOCK); }

  void substream(int64_t s, float* out) {
    const EcsqHeader::Entry &entry = h_.entries[s], &next = h_.entries[s + 1];
    stream_.in = h_.in + entry.stream_at;
    stream_.end = h_.in + next.stream_at;
    stream_.lanes = h_.lanes();
    memcpy(stream_.states, stream_.in, 4 * stream_.lanes);
    stream_.in += 4 * stream_.lanes;
    low_ = h_.in + entry.low_at;
    met_ = entry.escapes;
    escapes_ = next.escapes;
    spanned_ = 0;
    const int64_t end = end_of(s);
    for (int64_t i = begin_of(s); i < end; i += BLOCK) {
      const int64_t n = std::min(BLOCK, end - i);
      for (int64_t at = 0; at < n; at += ECSQ_BLOCK) block(i + at, std::min(ECSQ_BLOCK, n - at), z_ + at);
      if (h_.codec.rotate) {
        ecsq_rotations(n, [&](int64_t at, int64_t size) { kernels_.unrotate(z_ + at, size, key_, index_ + i + at); });
        kernels_.scale(z_, n, scale_ * gain_);
      }
      deliver(out + i, n);
    }
  }

  void simple(int64_t s, float* out) {
    const int64_t end = end_of(s);
    for (int64_t i = begin_of(s); i < end; i += BLOCK) {
      const int64_t n = std::min(BLOCK, end - i);
      if (h_.mode == ECSQ_RAW) {
        memcpy(z_, h_.in + 1 + 4 * i, 4 * n);
        for (int64_t k = 0; k < n; ++k) z_[k] *= gain_;
      } else {
        std::fill(z_, z_ + n, h_.mode == ECSQ_NAN ? float_of(0x7FC00000u) : 0.0f);
      }
      deliver(out + i, n);
    }
  }

  void ready() {
    classes_.resize(h_.models.size());
    with_trellis_.resize(h_.with_trellis.size());
    for (size_t k = 0; k < classes_.size(); ++k) {
      if (!h_.present[k]) continue;
      if (h_.in_trellis(static_cast<int>(k))) {
        ready_trellis(static_cast<int>(k));
        continue;
      }
      EcsqClassDecoder& c = classes_[k];
      const int64_t relative = h_.relative_of(static_cast<int>(k));
      entropy::Frequencies f;
      entropy::frequencies_of(h_.models[k], relative, h_.codec.dither, f);
      c.raw = entropy::raw_bits(relative);
      c.largest = h_.models[k].largest;
      c.empty = h_.models[k].empty();
      c.folded = f.rows > 1;
      c.dither = h_.codec.dither;
      if (!c.empty) {
        c.slots.resize(static_cast<size_t>(f.rows) * entropy::TOTAL);
        for (int row = 0; row < f.rows; ++row) fill_slots(f.of[row], c.slots.data() + row * entropy::TOTAL);
      }
      for (int q = -entropy::LARGEST; q <= entropy::LARGEST; ++q) c.values[32 + q] = value(static_cast<int>(k), q);
      c.values[0] = 0.0f;
    }
  }

  void ready_trellis(int k) {
    const EctcqModel& m = h_.with_trellis[k];
    EctcqClassDecoder& c = with_trellis_[k];
    c.largest = m.largest;
    c.empty = m.empty();
    int32_t f[2][entropy::SYMBOLS];
    ectcq_frequencies(m, f);
    if (!c.empty) c.slots.resize(2 * entropy::TOTAL);
    for (int q = 0; q < 2; ++q) {
      if (!c.empty) fill_slots(f[q], c.slots.data() + q * entropy::TOTAL);
      c.values[q][0] = 0.0f;
      for (int i = -entropy::LARGEST; i <= entropy::LARGEST; ++i) {
        const double level = static_cast<double>(ectcq_level(m, q, i < 0 ? -i : i)) * h_.rho / 4096;
        c.values[q][32 + i] = valued(i < 0 ? -level : level, scale_);
      }
    }
  }

  static void fill_slots(const int32_t (&f)[entropy::SYMBOLS], uint32_t* slot) {
    for (uint32_t s = 0; s < entropy::SYMBOLS; ++s)
      for (uint32_t r = 0, count = static_cast<uint32_t>(f[s]); r < count; ++r) *slot++ = count | r << 12 | s << 24;
  }

  // Steps stay steps until they are rotated.
  float valued(double v, double scale) const {
    return h_.codec.rotate ? static_cast<float>(v) : ecsq_bounded(v * scale);
  }

  // Of a symbol without dither and raw bits; in steps if it is to be rotated.
  float value(int k, int q) const {
    const int8_t* const place = &h_.places[3 * k];
    int32_t level = ecsq_magnitude(place, q < 0 ? -q : q);
    if (q < 0) level = -level;
    const double v = static_cast<double>(level) * h_.rho / 4096;
    return valued(v, scale_);
  }

  void block(int64_t i, int64_t n, float* z) {
    const int kind = h_.kinds[i / ECSQ_BLOCK];
    if (kind < 0) {
      std::fill(z, z + n, kind == entropy::KIND_NAN ? float_of(0x7FC00000u) : 0.0f);
      return;
    }
    positions_.clear();
    if (h_.in_trellis(kind)) return trellis_block(with_trellis_[kind], n, z);
    const EcsqClassDecoder& c = classes_[kind];
    if (c.dither) kernels_.dither(key_, index_ + i, n, w_);
    kernels_.decode(c, stream_, w_, low_, n, z, positions_);
    low_ += (n * c.raw + 7) / 8;
    if (h_.coarser(kind)) {
      const double scale = h_.codec.rotate ? entropy::step_of(ECTCQ_COARSER) : coarse_scale_;
      kernels_.scale(z, n, scale);
      place_escapes(z, n, scale);
      return;
    }
    if ((c.dither || c.raw) && !h_.codec.rotate) kernels_.scale(z, n, scale_);
    place_escapes(z, n, h_.codec.rotate ? 1.0 : scale_);
  }

  void place_escapes(float* z, int64_t n, double scale) {
    for (const int32_t position : positions_) {
      float v = 0.0f;
      if (met_ < escapes_) memcpy(&v, h_.in + h_.escapes_at + 4 * met_, 4);
      ++met_;
      if (position < n) z[position] = ecsq_bounded(static_cast<double>(v) * scale);
    }
  }

  void trellis_block(const EctcqClassDecoder& c, int64_t n, float* z) {
    if (spanned_++ % ECTCQ_SPAN == 0) std::fill(chains_, chains_ + ECTCQ_LANES, 0u);
    float* const whole = n == ECSQ_BLOCK ? z : tail_;
    const int64_t left = escapes_ - met_;
    const uint8_t* const parity = h_.in + h_.escapes_at + 4 * std::min(met_, escapes_);
    trellis_.decode(*code_, c, stream_, chains_, parity, left, whole, positions_);
    if (whole != z) memcpy(z, whole, 4 * n);
    place_escapes(z, n, h_.codec.rotate ? 1.0 : scale_);
  }

  void deliver(float* out, int64_t n) const {
    if (accumulate_)
      kernels_.accumulate(z_, n, beta_, out);
    else if (streams_ && n == BLOCK)
      kernels_.stream(z_, n, out);
    else
      memcpy(out, z_, 4 * n);
  }

  const EcsqHeader& h_;
  const Key key_;
  const int64_t index_;
  const bool accumulate_;
  bool streams_ = false;
  const float gain_, beta_;
  const EcsqKernels& kernels_;
  const EctcqKernels& trellis_;
  const EctcqCode* const code_;  // where there is a trellis
  const double scale_, coarse_scale_;
  const uint8_t* low_ = nullptr;
  EcsqStream stream_;
  std::vector<EcsqClassDecoder> classes_;
  std::vector<int32_t> positions_;
  std::vector<EctcqClassDecoder> with_trellis_;
  int64_t met_ = 0, escapes_ = 0;  // next escape, and that which belongs to the next substream
  int64_t spanned_ = 0;
  uint32_t chains_[ECTCQ_LANES];
  float tail_[ECSQ_BLOCK];
  alignas(64) float z_[BLOCK];
  int32_t w_[ECSQ_BLOCK];
};

}  // namespace

EcsqHeader* ecsq_open(const EcsqCodec& codec, const uint8_t* in, int64_t n) {
  EcsqHeader* const header = new EcsqHeader{};
  header->codec = codec;
  header->in = in;
  header->n = n;
  header->nbytes = ecsq_segment_nbytes(codec, n);
  if (parse(*header)) return header;
  delete header;
  return nullptr;
}

int64_t ecsq_substreams(const EcsqHeader& header) { return header.substreams().count; }

void ecsq_decode(const EcsqHeader& header, int64_t first, int64_t last, const Key& key, int64_t index, float* out,
                 bool accumulate, float gain, float beta, Isa isa) {
  Decoder(header, key, index, accumulate, gain, beta, isa).run(out, first, last);
}

}  // namespace commpress
