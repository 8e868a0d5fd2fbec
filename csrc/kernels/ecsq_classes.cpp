// Classes of a segment's blocks: all that does not depend on the step.
#include "ecsq_classes.h"

#include <cmath>
#include <cstring>

#include "entropy_coders.h"
#include "quantise.h"

namespace commpress {

EcsqClasses::EcsqClasses(const EcsqCodec& codec, const Key& key, int64_t index, const float* x, int64_t n, float gain,
                         Isa isa)
    : codec_(codec),
      key_(key),
      index_(index),
      x_(x),
      n_(n),
      gain_(gain),
      nbytes_(ecsq_segment_nbytes(codec, n)),
      blocks_((n + ECSQ_BLOCK - 1) / ECSQ_BLOCK),
      substreams_(codec, n),
      kernels_(ecsq_kernels(isa)) {}

bool EcsqClasses::only_zeros() const {
  return std::all_of(kinds_.begin(), kinds_.end(), [](int k) { return k == entropy::KIND_ZERO; });
}

bool EcsqClasses::any_nan() const {
  return std::any_of(kinds_.begin(), kinds_.end(), [](int k) { return k == entropy::KIND_NAN; });
}

// Largest finite magnitude, as bits.
uint32_t EcsqClasses::largest_finite() const {
  uint32_t most = 0;
  for (int64_t b = 0; b < blocks_; ++b) {
    float sum;
    uint32_t here;
    kernels_.statistics(x_ + b * ECSQ_BLOCK, size_of(b), sum, here);
    if (here >= SCALE32_INFINITY) {
      here = 0;
      for (int64_t i = 0; i < size_of(b); ++i) {
        const uint32_t a = bits_of(x_[b * ECSQ_BLOCK + i]) & 0x7FFFFFFFu;
        if (a < SCALE32_INFINITY) here = std::max(here, a);
      }
    }
    most = std::max(most, here);
  }
  return most;
}

void EcsqClasses::own_copy() {
  if (copy_) return;
  copy_.reset(new float[n_]);
  memcpy(copy_.get(), x_, 4 * n_);
  x_ = copy_.get();
}

bool EcsqClasses::prepare() {
  const int eg = exponent_of(gain_);
  const bool usual = codec_.rotate ? eg >= -60 && eg <= 60 && rotate_in_one_pass() : gather_in_one_pass();
  const float most = usual ? 1.0f : float_of(largest_finite());
  const int e = most > 0 ? exponent_of(most) : 0;
  if (e < -60 || e > 60 || eg < -60 || eg > 60) {
    own_copy();
    for (int64_t i = 0; i < n_; ++i) copy_[i] = scale_by_power(copy_[i], -e);
    gain_ = scale_by_power(gain_, -eg);
    shift_ = e + eg;
    sums_.clear();
  }
  if (codec_.rotate && !usual) {
    own_copy();
    for (int64_t i = 0; i < n_; i += BLOCK) rotate(i, copy_.get() + i);
    sums_.clear();
  }
  if (sums_.empty()) gather(0, blocks_);
  kinds_.resize(blocks_);
  std::vector<int64_t> levels(blocks_);
  bool normal = false;
  for (int64_t b = 0; b < blocks_; ++b) {
    kinds_[b] = mosts_[b] >= SCALE32_INFINITY ? entropy::KIND_NAN : mosts_[b] == 0 ? entropy::KIND_ZERO : 0;
    if (kinds_[b] < 0) continue;
    levels[b] = ecsq_level(divide(sums_[b], static_cast<float>(size_of(b))) * gain_);
    normal = true;
  }
  if (normal) classify(levels);
  return normal;
}

void EcsqClasses::gather(int64_t first, int64_t last) {
  sums_.resize(blocks_);
  mosts_.resize(blocks_);
  for (int64_t b = first; b < last; ++b) kernels_.statistics(x_ + b * ECSQ_BLOCK, size_of(b), sums_[b], mosts_[b]);
}

// All magnitudes are finite and the largest is not extreme, as nearly always.
static bool ordinary(uint32_t most) { return most >= bits_of(0x1p-60f) && most < bits_of(0x1p60f); }

// Gathers; true if the magnitudes are ordinary.
bool EcsqClasses::gather_in_one_pass() {
  gather(0, blocks_);
  return ordinary(*std::max_element(mosts_.begin(), mosts_.end()));
}

// Rotates the up to BLOCK coordinates from `at` on, which `from` holds, into the copy.
void EcsqClasses::rotate(int64_t at, const float* from) {
  const int64_t n = std::min(BLOCK, n_ - at);
  float* const to = copy_.get() + at;
  int64_t done = 0;
  ecsq_rotations(n, [&](int64_t start, int64_t size) {
    kernels_.rotate(from + start, to + start, size, key_, index_ + at + start);
    done = start + size;
  });
  if (from != to) std::copy(from + done, from + n, to + done);
}

// Rotates into an own copy and gathers; false, and nothing is changed, if the magnitudes before are not ordinary.
bool EcsqClasses::rotate_in_one_pass() {
  copy_.reset(new float[n_]);
  const float* const source = x_;
  x_ = copy_.get();
  uint32_t most = 0;
  for (int64_t i = 0; i < n_; i += BLOCK) {
    for (int64_t at = i; at < std::min(n_, i + BLOCK); at += ECSQ_BLOCK) {
      float sum;
      uint32_t here;
      kernels_.statistics(source + at, std::min(ECSQ_BLOCK, n_ - at), sum, here);
      most = std::max(most, here);
      for (int64_t k = 0; k < ECSQ_BLOCK; k += 16) __builtin_prefetch(x_ + at + BLOCK + k, 1, 2);
    }
    rotate(i, source + i);
    gather(i / ECSQ_BLOCK, std::min(blocks_, (i + BLOCK) / ECSQ_BLOCK));
  }
  if (ordinary(most)) return true;
  x_ = source;
  copy_.reset();
  return false;
}

void EcsqClasses::classify(const std::vector<int64_t>& levels) {
  int64_t least = INT64_MAX, greatest = INT64_MIN;
  for (int64_t b = 0; b < blocks_; ++b)
    if (kinds_[b] >= 0) {
      least = std::min(least, levels[b]);
      greatest = std::max(greatest, levels[b]);
    }
  std::vector<int64_t> met(greatest - least + 1), weight(greatest - least + 1);
  for (int64_t b = 0; b < blocks_; ++b)
    if (kinds_[b] >= 0) {
      ++met[levels[b] - least];
      weight[levels[b] - least] += size_of(b);
    }
  find_first_step(weight, least, greatest);
  const int64_t phase = ecsq_phase(least, greatest, [&](int64_t level) { return met[level - least]; });
  EcsqClassRange range(phase, first_, least, greatest);
  for (int flat = 0; flat < 2; ++flat) {
    if (flat) range.flatten();
    const int64_t count = range.count();
    centre_ = range.centre();
    finest_ = range.finest_step();
    present_.assign(count, false);
    levels_.assign(count, 0);
    members_.assign(count, 0);
    for (int64_t b = 0; b < blocks_; ++b) {
      if (kinds_[b] < 0) continue;
      kinds_[b] = static_cast<int16_t>(range.class_of(levels[b]));
      present_[kinds_[b]] = true;
      levels_[kinds_[b]] += 128 * levels[b] + 64;
      ++members_[kinds_[b]];
    }
    for (int64_t k = 0; k < count; ++k)
      if (present_[k]) levels_[k] = floor_divide(levels_[k], members_[k]);
    encode_kinds();
    header_ = ecsq_header_nbytes(codec_) + (count + 7) / 8 + substreams_.entries_nbytes();
    for (const bool there : present_) header_ += there ? ecsq_class_nbytes(codec_) : 0;
    const int64_t coders = substreams_.count * ecsq_lanes(nbytes_);
    const int64_t coded = static_cast<int64_t>(coded_kinds_.size());
    room_ = nbytes_ - header_ - coded - 3 * coders - 8;
    if (coded <= nbytes_ / 2 && room_ >= nbytes_ / 4) break;
  }
}

void EcsqClasses::encode_kinds() {
  coded_kinds_.clear();
  coded_kinds_nbytes_.clear();
  for (int64_t s = 0; s < substreams_.count; ++s) {
    const int64_t first = substreams_.first(s);
    const size_t before = coded_kinds_.size();
    entropy::ClassContexts contexts;
    entropy::encode_classes(&kinds_[first], substreams_.last(s) - first, contexts,
                            [&](uint8_t byte) { coded_kinds_.push_back(byte); });
    coded_kinds_nbytes_.push_back(static_cast<int64_t>(coded_kinds_.size() - before));
  }
}

// Coarsest of the steps 2^(t/16) at which a normal source in every block would have enough bits.
void EcsqClasses::find_first_step(const std::vector<int64_t>& weight, int64_t least, int64_t greatest) {
  first_ = ecsq_first_step(nbytes_, least, greatest, [&](int64_t t) {
    int64_t total = 0;
    for (int64_t level = least; level <= greatest; ++level)
      total += weight[level - least] * entropy::rate_at(level * 128 + 64 - t * 128);
    return total;
  });
}

}  // namespace commpress
