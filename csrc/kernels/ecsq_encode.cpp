// Encoding of one segment: classes, rate control, streams.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "ecsq.h"
#include "ecsq_format.h"
#include "ecsq_kernels.h"
#include "entropy_coders.h"
#include "quantise.h"

namespace commpress {

namespace {

using entropy::Model;

constexpr int64_t CLASS_WIDTH = ECSQ_CLASS_WIDTH, FLOOR_LEVEL = -48;  // in 1/16 octave
constexpr int64_t FINEST = 36800;  // a class is at most so many 1/2048 octaves above the step: at most 16 raw bits
constexpr int64_t SAMPLED_BLOCKS = 256, STRIDE = 8;  // segments of so many blocks are searched on every eighth first

int64_t floor_divide(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

class Encoder {
 public:
  Encoder(const EcsqCodec& codec, const Key& key, int64_t index, const float* x, int64_t n, float gain, uint8_t* out,
          Isa isa)
      : codec_(codec),
        key_(key),
        index_(index),
        x_(x),
        n_(n),
        gain_(gain),
        out_(out),
        nbytes_(ecsq_segment_nbytes(codec, n)),
        lanes_(ecsq_lanes(nbytes_)),
        blocks_((n + ECSQ_BLOCK - 1) / ECSQ_BLOCK),
        kernels_(ecsq_kernels(isa)) {}

  void run() {
    if (nbytes_ >= 1 + 4 * n_) return write_raw();
    if (!prepare()) return write_mode(only_zeros() ? ECSQ_ZERO : ECSQ_NAN);
    int64_t j;
    if (!find_step(j)) return write_mode(any_nan() ? ECSQ_NAN : ECSQ_ZERO);
    while (!write(j)) cost(j += 16, 1);  // coding took more than the sum of its logarithms
  }

 private:
  void write_mode(uint8_t mode) {
    memset(out_, 0, nbytes_);
    out_[0] = mode;
  }

  void write_raw() {
    write_mode(ECSQ_RAW);
    for (int64_t i = 0; i < n_; ++i) {
      float y = x_[i] * gain_;
      if (!std::isfinite(x_[i]))
        y = x_[i];
      else if (!std::isfinite(y))
        y = y < 0 ? -ECSQ_FLT_MAX : ECSQ_FLT_MAX;
      memcpy(out_ + 1 + 4 * i, &y, 4);
    }
  }

  int64_t size_of(int64_t block) const { return std::min(ECSQ_BLOCK, n_ - block * ECSQ_BLOCK); }
  bool only_zeros() const {
    return std::all_of(kinds_.begin(), kinds_.end(), [](int k) { return k == entropy::KIND_ZERO; });
  }
  bool any_nan() const {
    return std::any_of(kinds_.begin(), kinds_.end(), [](int k) { return k == entropy::KIND_NAN; });
  }

  // ---- what does not depend on the step ----

  // Largest finite magnitude, as bits.
  uint32_t largest_finite() const {
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

  void own_copy() {
    if (copy_) return;
    copy_.reset(new float[n_]);
    memcpy(copy_.get(), x_, 4 * n_);
    x_ = copy_.get();
  }

  // Scales, rotates, classifies. False if no block has a value that is finite and not zero.
  bool prepare() {
    const float most = float_of(codec_.rotate || !ordinary_in_one_pass() ? largest_finite() : bits_of(1.0f));
    const int e = most > 0 ? exponent_of(most) : 0, eg = exponent_of(gain_);
    if (e < -60 || e > 60 || eg < -60 || eg > 60) {
      own_copy();
      for (int64_t i = 0; i < n_; ++i) copy_[i] = scale_by_power(copy_[i], -e);
      gain_ = scale_by_power(gain_, -eg);
      shift_ = e + eg;
      sums_.clear();
    }
    if (codec_.rotate) {
      own_copy();
      ecsq_rotations(n_, [&](int64_t at, int64_t size) { kernels_.rotate(copy_.get() + at, size, key_, index_ + at); });
      sums_.clear();
    }
    if (sums_.empty()) gather();
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

  void gather() {
    sums_.resize(blocks_);
    mosts_.resize(blocks_);
    for (int64_t b = 0; b < blocks_; ++b) kernels_.statistics(x_ + b * ECSQ_BLOCK, size_of(b), sums_[b], mosts_[b]);
  }

  // Gathers; true if all magnitudes are finite and none of them extreme, as nearly always.
  bool ordinary_in_one_pass() {
    gather();
    uint32_t most = 0;
    for (const uint32_t m : mosts_) most = std::max(most, m);
    return most >= bits_of(0x1p-60f) && most < bits_of(0x1p60f);
  }

  void classify(const std::vector<int64_t>& levels) {
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
    first_step(weight, least, greatest);
    // Of the places where classes may begin, that which gathers most.
    int64_t phase = 0, most = -1;
    for (int64_t p = 0; p < CLASS_WIDTH; ++p) {
      int64_t sum = 0, here = 0;
      for (int64_t level = least; level <= greatest; ++level) {
        here += met[level - least];
        if (level == greatest || floor_divide(level + p, CLASS_WIDTH) != floor_divide(level + 1 + p, CLASS_WIDTH)) {
          sum += here * here;
          here = 0;
        }
      }
      if (sum > most) {
        most = sum;
        phase = p;
      }
    }
    const int64_t floor_class = floor_divide((first_ >> 7) + FLOOR_LEVEL + phase, CLASS_WIDTH);
    const auto class_of = [&](int64_t level) {
      return std::max(floor_divide(level + phase, CLASS_WIDTH), floor_class);
    };
    int64_t lowest = class_of(least), highest = std::min(class_of(greatest), lowest + ECSQ_MOST_CLASSES - 1);
    for (int flat = 0; flat < 2; ++flat) {
      if (flat) lowest = highest;
      count_ = static_cast<int>(highest - lowest + 1);
      centre_ = (CLASS_WIDTH * lowest - phase + CLASS_WIDTH / 2) * 128;
      finest_ = centre_ + (count_ - 1) * CLASS_WIDTH * 128 - FINEST;
      classes_.assign(count_, {});
      for (int64_t b = 0; b < blocks_; ++b) {
        if (kinds_[b] < 0) continue;
        const int64_t c = std::min(class_of(levels[b]), highest);
        kinds_[b] = static_cast<int16_t>(std::max(c, lowest) - lowest);
        classes_[kinds_[b]].present = true;
      }
      coded_kinds_ = entropy::encode_classes(kinds_);
      header_ = ecsq_header_nbytes(codec_) + (count_ + 7) / 8;
      for (const Class& c : classes_) header_ += c.present ? ecsq_class_nbytes(codec_) : 0;
      room_ = nbytes_ - header_ - static_cast<int64_t>(coded_kinds_.size()) - 3 * lanes_ - 8;
      if (static_cast<int64_t>(coded_kinds_.size()) <= nbytes_ / 2 && room_ >= nbytes_ / 4) break;
    }
    if (codec_.dither) {
      dither_.reset(new int32_t[n_]);
      for (int64_t b = 0; b < blocks_; ++b)
        kernels_.dither(key_, index_ + b * ECSQ_BLOCK, size_of(b), dither_.get() + b * ECSQ_BLOCK);
    }
  }

  // Coarsest of the steps 2^(t/16) at which a normal source in every block would have enough bits.
  void first_step(const std::vector<int64_t>& weight, int64_t least, int64_t greatest) {
    const int64_t budget = nbytes_ * 8 * 4096;
    int64_t low = least - 256, high = greatest + 64;
    while (high - low > 1) {
      const int64_t t = (low + high) >> 1;
      int64_t total = 0;
      for (int64_t level = least; level <= greatest; ++level)
        total += weight[level - least] * entropy::rate_at(level * 128 + 64 - t * 128);
      (total <= budget ? high : low) = t;
    }
    first_ = high * 128;
  }

  // ---- what does ----

  struct Class {
    bool present = false;
    Model model;
    entropy::Counts counts;
  };

  int64_t relative(int kind, int64_t j) const { return centre_ + kind * CLASS_WIDTH * 128 - j; }

  EcsqQuantiser quantiser(int kind, int64_t j) const {
    const int64_t r = relative(kind, j);
    return {gain_, static_cast<float>(1.0 / entropy::step_of(j)),
            static_cast<float>(static_cast<double>(entropy::dead_zone(r)) / 65536), entropy::raw_bits(r),
            codec_.dither};
  }

  const int32_t* dither_of(int64_t block) const { return dither_ ? dither_.get() + block * ECSQ_BLOCK : nullptr; }

  // Bytes for every stride-th block, times stride; leaves the models in classes_.
  int64_t cost(int64_t j, int64_t stride) {
    std::vector<EcsqQuantiser> quantisers;
    for (int k = 0; k < count_; ++k) {
      quantisers.push_back(quantiser(k, j));
      classes_[k].counts = entropy::Counts{};
      classes_[k].counts.rows = codec_.dither && !quantisers[k].raw ? entropy::CELLS : 1;
    }
    int64_t bits = 0, rest = 0;
    for (int64_t b = 0; b < blocks_; b += stride) {
      const int kind = kinds_[b];
      if (kind < 0) continue;
      kernels_.count(quantisers[kind], x_ + b * ECSQ_BLOCK, dither_of(b), size_of(b), classes_[kind].counts);
      rest += (size_of(b) * quantisers[kind].raw + 7) / 8;
    }
    for (int k = 0; k < count_; ++k) {
      if (!classes_[k].present) continue;
      int64_t here;
      classes_[k].model = entropy::fit(classes_[k].counts, relative(k, j), codec_.dither, here);
      bits += here;
    }
    return ((bits + (1 << 19) - 1) / (1 << 19) + rest) * stride;
  }

  bool find_step(int64_t& j) {
    j = first_;
    if (blocks_ >= SAMPLED_BLOCKS)
      j = entropy::search([&](int64_t at) { return cost(at, STRIDE); }, room_, j, finest_, room_ >> 11, n_, 5).last;
    int64_t best = 0;
    std::vector<Model> models(count_);
    const auto keep = [&](int64_t at) {
      best = at;
      for (int k = 0; k < count_; ++k) models[k] = classes_[k].model;
    };
    bool found = false;
    const auto full = [&](int64_t at) {
      const int64_t c = cost(at, 1);
      if (c <= room_ && (!found || at < best)) {
        found = true;
        keep(at);
      }
      return c;
    };
    int64_t last = entropy::search(full, room_, j, finest_, room_ >> 13, n_, 8).last;
    for (int i = 0; i < 200 && !found; ++i) full(last += 512);
    for (int k = 0; k < count_; ++k) classes_[k].model = models[k];
    j = best;
    return found;
  }

  bool write(int64_t j) {
    std::vector<EcsqClassCoder> coders(count_);
    std::vector<int64_t> low_at(blocks_);
    for (int k = 0; k < count_; ++k)
      if (classes_[k].present) ready(coders[k], k, j);
    int64_t body = header_ + static_cast<int64_t>(coded_kinds_.size());
    for (int64_t b = 0; b < blocks_; ++b) {
      low_at[b] = body;
      if (kinds_[b] >= 0) body += (size_of(b) * coders[kinds_[b]].quantiser.raw + 7) / 8;
    }
    if (body + 4 * lanes_ > nbytes_) return false;
    uint32_t states[entropy::MOST_LANES];
    for (uint32_t& state : states) state = entropy::RANS_LOW;
    std::vector<EcsqEscape> escapes;
    uint8_t* at = out_ + nbytes_;
    uint8_t spare[2 * ECSQ_BLOCK + 64];
    for (int64_t b = blocks_; b-- > 0;) {
      if (kinds_[b] < 0) continue;
      EcsqClassCoder& c = coders[kinds_[b]];
      // Near the end of the room a block is written apart first.
      const bool near = at - (out_ + body) < 2 * ECSQ_BLOCK;
      uint8_t* const from = near ? spare + sizeof(spare) : at;
      uint8_t* const to = kernels_.encode(c, x_ + b * ECSQ_BLOCK, dither_of(b), size_of(b), b * ECSQ_BLOCK, states,
                                          lanes_, from, out_ + low_at[b], escapes);
      if (near) {
        if (at - (out_ + body) < from - to) return false;
        memcpy(at - (from - to), to, from - to);
      }
      at -= from - to;
    }
    if (at - (out_ + body) < 4 * lanes_ + 4 * static_cast<int64_t>(escapes.size())) return false;
    for (int lane = lanes_; lane-- > 0;) memcpy(at -= 4, &states[lane], 4);
    std::sort(escapes.begin(), escapes.end(),
              [](const EcsqEscape& a, const EcsqEscape& b) { return a.index < b.index; });
    for (const EcsqEscape& e : escapes) {
      memcpy(out_ + body, &e.value, 4);
      body += 4;
    }
    memset(out_ + body, 0, at - (out_ + body));
    write_header(j, coders, escapes.size(), at - out_);
    return true;
  }

  void ready(EcsqClassCoder& c, int k, int64_t j) const {
    entropy::Frequencies f;
    entropy::frequencies_of(classes_[k].model, relative(k, j), codec_.dither, f);
    c.quantiser = quantiser(k, j);
    c.largest = classes_[k].model.largest;
    c.empty = classes_[k].model.empty();
    c.folded = f.rows > 1;
    for (int row = 0; row < f.rows; ++row) {
      uint32_t start = 0;
      for (int s = 0; s < entropy::SYMBOLS; start += static_cast<uint32_t>(f.of[row][s++]))
        c.entry[row][s] = static_cast<uint32_t>(f.of[row][s]) | start << 16;
    }
  }

  void write_header(int64_t j, const std::vector<EcsqClassCoder>& coders, size_t escapes, int64_t stream) {
    uint8_t* to = out_;
    const auto put = [&](int64_t value, int nbytes) {
      for (int i = 0; i < nbytes; ++i) *to++ = static_cast<uint8_t>(value >> (8 * i));
    };
    put(ECSQ_CODED, 1);
    put(j + 2048 * shift_, 3);
    put(centre_ - j, 3);
    put(count_, 1);
    put(static_cast<int64_t>(coded_kinds_.size()), 2);
    put(static_cast<int64_t>(escapes), 4);
    put(stream, 4);
    uint8_t* const rho_at = to;
    if (ecsq_has_rho(codec_)) to += 4;
    for (int byte = 0; byte < (count_ + 7) / 8; ++byte) {
      int mask = 0;
      for (int k = 0; k < 8 && 8 * byte + k < count_; ++k) mask |= classes_[8 * byte + k].present << k;
      put(mask, 1);
    }
    double energy = 0, product = 0;
    for (int k = 0; k < count_; ++k) {
      const Model& m = classes_[k].model;
      if (!classes_[k].present) continue;
      put((m.shift + 64) | m.escape << 7, 1);
      put(m.largest | m.shape << 5, 1);
      if (codec_.dither) continue;
      const EcsqClassCoder& c = coders[k];
      const int64_t one = nearest(c.w1 - 256 * c.n1, c.n1), two = nearest(c.w2 - 512 * c.n2, c.n2);
      const int64_t slope = nearest(16 * (c.w3 - 256 * c.q3 - two * c.n3), c.q3 - 2 * c.n3);
      put(one, 1);
      put(two, 1);
      put(slope, 1);
      energy += static_cast<double>(16 * c.squares);
      product += static_cast<double>(16 * (256 + one) * c.w1 + 16 * (512 + two) * c.w2 + (4096 + slope) * c.x3 +
                                     (16 * two - 2 * slope) * c.w3);
    }
    memcpy(to, coded_kinds_.data(), coded_kinds_.size());
    const float rho = product > 0 ? static_cast<float>(energy / product) : 1.0f;
    if (ecsq_has_rho(codec_)) memcpy(rho_at, &rho, 4);
  }

  static int64_t nearest(int64_t total, int64_t count) {
    if (count == 0) return 0;
    return std::min<int64_t>(std::max<int64_t>(floor_divide(2 * total + count, 2 * count), -127), 127);
  }

  const EcsqCodec codec_;
  const Key key_;
  const int64_t index_;
  const float* x_;
  const int64_t n_;
  float gain_;
  uint8_t* const out_;
  const int64_t nbytes_;
  const int lanes_;
  const int64_t blocks_;
  const EcsqKernels& kernels_;
  std::unique_ptr<float[]> copy_;
  std::unique_ptr<int32_t[]> dither_;
  int64_t shift_ = 0;
  std::vector<float> sums_;
  std::vector<uint32_t> mosts_;
  std::vector<int16_t> kinds_;
  std::vector<Class> classes_;
  std::vector<uint8_t> coded_kinds_;
  int count_ = 0;
  int64_t centre_ = 0, first_ = 0, finest_ = 0, header_ = 0, room_ = 0;
};

}  // namespace

void ecsq_encode(const EcsqCodec& codec, const Key& key, int64_t index, const float* x, int64_t n, float gain,
                 uint8_t* out, Isa isa) {
  Encoder(codec, key, index, x, n, gain, out, isa).run();
}

}  // namespace commpress
