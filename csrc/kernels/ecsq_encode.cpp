// Encoding of one segment: rate control, streams.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "ecsq.h"
#include "ecsq_classes.h"
#include "ecsq_symbols.h"
#include "ecsq_writer.h"
#include "ectcq.h"
#include "quantise.h"

namespace commpress {

namespace {

using entropy::Model;

class Encoder {
 public:
  Encoder(const EcsqClasses& source, uint8_t* out)
      : source_(source),
        codec_(source.codec()),
        n_(source.numel()),
        out_(out),
        nbytes_(source.nbytes()),
        lanes_(ecsq_lanes(nbytes_)),
        blocks_(source.blocks()),
        kernels_(source.kernels()),
        kinds_(source.kinds()),
        count_(source.count()),
        models_(count_) {}

  // False: there is no room even for a coarse step.
  bool run() {
    int64_t j;
    if (!find_step(j)) return false;
    while (!write(j)) cost(j += 16, 1);  // coding took more than the sum of its logarithms
    return true;
  }

 private:
  EcsqQuantiser quantiser(int kind, int64_t j) const {
    return ecsq_quantiser(source_.gain(), source_.relative(kind, j), j, codec_.dither);
  }

  int rows_of(const EcsqQuantiser& q) const { return codec_.dither && !q.raw ? entropy::CELLS : 1; }

  // Bytes for every stride-th block, times stride; leaves the models in models_.
  int64_t cost(int64_t j, int64_t stride) {
    std::vector<EcsqQuantiser> quantisers;
    for (int k = 0; k < count_; ++k) quantisers.push_back(quantiser(k, j));
    // Far from the last step the search goes on far, and what is settled here would not serve it.
    const bool settles = stride == 1 && (settled_.covers(j) || std::abs(j - last_) <= reach());
    last_ = j;
    const std::vector<entropy::Counts> counts = settles ? count(j, quantisers) : sample(quantisers, stride);
    int64_t bits = 0, rest = 0;
    for (int64_t b = 0; b < blocks_; b += stride)
      if (kinds_[b] >= 0) rest += (source_.size_of(b) * quantisers[kinds_[b]].raw + 7) / 8;
    for (int k = 0; k < count_; ++k) {
      if (!source_.present(k)) continue;
      int64_t here;
      models_[k] = entropy::fit(counts[k], source_.relative(k, j), codec_.dither, here);
      bits += here;
    }
    return ((bits + (1 << 19) - 1) / (1 << 19) + rest) * stride;
  }

  std::vector<entropy::Counts> sample(const std::vector<EcsqQuantiser>& quantisers, int64_t stride) const {
    std::vector<entropy::Counts> counts(count_);
    for (int k = 0; k < count_; ++k) counts[k].rows = rows_of(quantisers[k]);
    int32_t w[ECSQ_BLOCK];
    for (int64_t b = 0; b < blocks_; b += stride) {
      const int kind = kinds_[b];
      for (int64_t i = 0; b + stride < blocks_ && i < source_.size_of(b + stride); i += 16)
        __builtin_prefetch(source_.values_of(b + stride) + i);  // the processor does not foresee strides
      if (kind < 0) continue;
      kernels_.count(quantisers[kind], source_.values_of(b), source_.dither_of(b, w), source_.size_of(b), counts[kind]);
    }
    return counts;
  }

  // Of all blocks. One pass over them serves many steps: it finds what is the same for all of these.
  std::vector<entropy::Counts> count(int64_t j, const std::vector<EcsqQuantiser>& quantisers) {
    if (!settled_.covers(j)) settle(j, quantisers);
    std::vector<entropy::Counts> counts = settled_.counts;
    for (int k = 0; k < count_; ++k) {
      const std::vector<float>& x = settled_.open[k];
      for (size_t at = 0; at < x.size(); at += ECSQ_BLOCK)
        kernels_.count(quantisers[k], x.data() + at, codec_.dither ? settled_.open_w[k].data() + at : nullptr,
                       std::min<int64_t>(ECSQ_BLOCK, x.size() - at), counts[k]);
    }
    return counts;
  }

  // How far from a step, in 1/2048 octave: the search ranges wider at low rates, and fewer values are near a threshold.
  int64_t reach() const { return codec_.rate < RATE_ONE ? 64 : codec_.rate < 3 * RATE_ONE ? 24 : 8; }

  // Around j, as far as no class changes its raw bits.
  void settle(int64_t j, const std::vector<EcsqQuantiser>& quantisers) {
    std::vector<EcsqQuantiser> least = quantisers, most = quantisers;
    const auto include = [&](int64_t at) {
      for (int k = 0; k < count_; ++k)
        if (entropy::raw_bits(source_.relative(k, at)) != quantisers[k].raw) return false;
      for (int k = 0; k < count_; ++k) {
        const EcsqQuantiser q = quantiser(k, at);
        least[k].inverse = std::min(least[k].inverse, q.inverse);
        least[k].offset = std::min(least[k].offset, q.offset);
        most[k].inverse = std::max(most[k].inverse, q.inverse);
        most[k].offset = std::max(most[k].offset, q.offset);
      }
      return true;
    };
    settled_ = {j, j, {}, {}, {}};
    while (settled_.first > j - reach() && include(settled_.first - 1)) --settled_.first;
    while (settled_.last < j + reach() && include(settled_.last + 1)) ++settled_.last;
    settled_.counts.resize(count_);
    settled_.open.resize(count_);
    settled_.open_w.resize(count_);
    for (int k = 0; k < count_; ++k) settled_.counts[k].rows = rows_of(quantisers[k]);
    float open[ECSQ_BLOCK + 8];
    int32_t w[ECSQ_BLOCK], open_w[ECSQ_BLOCK + 8];
    for (int64_t b = 0; b < blocks_; ++b) {
      const int k = kinds_[b];
      if (k < 0) continue;
      const int64_t met = kernels_.settle(least[k], most[k], source_.values_of(b), source_.dither_of(b, w),
                                          source_.size_of(b), settled_.counts[k], open, open_w);
      settled_.open[k].insert(settled_.open[k].end(), open, open + met);
      if (codec_.dither) settled_.open_w[k].insert(settled_.open_w[k].end(), open_w, open_w + met);
    }
  }

  bool find_step(int64_t& j) {
    const int64_t room = source_.room(), finest = source_.finest_step();
    j = source_.first_step();
    if (blocks_ >= ECSQ_SAMPLED_BLOCKS)
      j = entropy::search([&](int64_t at) { return cost(at, ECSQ_STRIDE); }, room, j, finest, room >> 11, n_, 5).last;
    int64_t best = 0;
    std::vector<Model> models(count_);
    bool found = false;
    const auto full = [&](int64_t at) {
      const int64_t c = cost(at, 1);
      if (c <= room && (!found || at < best)) {
        found = true;
        best = at;
        models = models_;
      }
      return c;
    };
    int64_t last = entropy::search(full, room, j, finest, room >> 13, n_, 8).last;
    for (int i = 0; i < 200 && !found; ++i) full(last += 512);
    models_ = models;
    j = best;
    return found;
  }

  bool write(int64_t j) {
    std::vector<EcsqClassCoder> coders(count_);
    std::vector<int64_t> low_at(blocks_);
    for (int k = 0; k < count_; ++k)
      if (source_.present(k)) ready(coders[k], k, j);
    int64_t body = source_.header() + static_cast<int64_t>(source_.coded_kinds().size());
    for (int64_t b = 0; b < blocks_; ++b) {
      low_at[b] = body;
      if (kinds_[b] >= 0) body += (source_.size_of(b) * coders[kinds_[b]].quantiser.raw + 7) / 8;
    }
    EcsqWriter writer(source_, lanes_, out_, body);
    int32_t w[ECSQ_BLOCK];
    const bool fits = writer.run([&](int64_t b, uint32_t* states, uint8_t* to, std::vector<EcsqEscape>& escapes) {
      return kernels_.encode(coders[kinds_[b]], source_.values_of(b), source_.dither_of(b, w), source_.size_of(b),
                             b * ECSQ_BLOCK, states, lanes_, to, out_ + low_at[b], escapes);
    });
    if (fits) write_header(j, coders, low_at, writer);
    return fits;
  }

  void ready(EcsqClassCoder& c, int k, int64_t j) const {
    entropy::Frequencies f;
    entropy::frequencies_of(models_[k], source_.relative(k, j), codec_.dither, f);
    c.quantiser = quantiser(k, j);
    c.largest = models_[k].largest;
    c.empty = models_[k].empty();
    c.folded = f.rows > 1;
    for (int row = 0; row < f.rows; ++row) {
      uint32_t start = 0;
      for (int s = 0; s < entropy::SYMBOLS; start += static_cast<uint32_t>(f.of[row][s++]))
        c.entry[row][s] = static_cast<uint32_t>(f.of[row][s]) | start << 16;
    }
  }

  void write_header(int64_t j, const std::vector<EcsqClassCoder>& coders, const std::vector<int64_t>& low_at,
                    const EcsqWriter& writer) {
    uint8_t* to = out_;
    const auto put = [&](int64_t value, int nbytes) {
      for (int i = 0; i < nbytes; ++i) *to++ = static_cast<uint8_t>(value >> (8 * i));
    };
    put(ECSQ_CODED, 1);
    put(j + 2048 * source_.shift(), 3);
    put(source_.centre() - j, 3);
    put(count_, 1);
    put(source_.coded_kinds_nbytes()[0], 2);
    put(writer.escapes(), 4);
    put(writer.first_stream_at(), 4);
    uint8_t* const rho_at = to;
    if (ecsq_has_rho(codec_)) to += 4;
    for (int byte = 0; byte < (count_ + 7) / 8; ++byte) {
      int mask = 0;
      for (int k = 0; k < 8 && 8 * byte + k < count_; ++k) mask |= source_.present(8 * byte + k) << k;
      put(mask, 1);
    }
    double energy = 0, product = 0;
    for (int k = 0; k < count_; ++k) {
      const Model& m = models_[k];
      if (!source_.present(k)) continue;
      put((m.shift + 64) | m.escape << 7, 1);
      put(m.largest | m.shape << 5, 1);
      if (codec_.dither) continue;
      const EcsqClassCoder& c = coders[k];
      const int64_t one = ecsq_mean(c.w1 - 256 * c.n1, c.n1), two = ecsq_mean(c.w2 - 512 * c.n2, c.n2);
      const int64_t slope = ecsq_mean(16 * (c.w3 - 256 * c.q3 - two * c.n3), c.q3 - 2 * c.n3);
      put(one, 1);
      put(two, 1);
      put(slope, 1);
      energy += static_cast<double>(16 * c.squares);
      product += static_cast<double>(16 * (256 + one) * c.w1 + 16 * (512 + two) * c.w2 + (4096 + slope) * c.x3 +
                                     (16 * two - 2 * slope) * c.w3);
    }
    writer.entries(low_at, put);
    memcpy(to, source_.coded_kinds().data(), source_.coded_kinds().size());
    const float rho = product > 0 ? static_cast<float>(energy / product) : 1.0f;
    if (ecsq_has_rho(codec_)) memcpy(rho_at, &rho, 4);
  }

  // Symbols that are the same for the steps `first` .. `last`, and for each class the values whose symbols are not.
  struct Settled {
    int64_t first, last;
    std::vector<entropy::Counts> counts;
    std::vector<std::vector<float>> open;
    std::vector<std::vector<int32_t>> open_w;
    bool covers(int64_t j) const { return first <= j && j <= last; }
  };

  const EcsqClasses& source_;
  const EcsqCodec& codec_;
  const int64_t n_;
  uint8_t* const out_;
  const int64_t nbytes_;
  const int lanes_;
  const int64_t blocks_;
  const EcsqKernels& kernels_;
  const std::vector<int16_t>& kinds_;
  const int count_;
  std::vector<Model> models_;
  int64_t last_ = INT64_MIN / 2;  // step
  Settled settled_{1, 0, {}, {}, {}};
};

}  // namespace

void ecsq_encode(const EcsqCodec& codec, const Key& key, int64_t index, const float* x, int64_t n, float gain,
                 uint8_t* out, Isa isa) {
  const int64_t nbytes = ecsq_segment_nbytes(codec, n);
  const auto only_mode = [&](uint8_t mode) {
    memset(out, 0, nbytes);
    out[0] = mode;
  };
  if (nbytes >= 1 + 4 * n) {
    only_mode(ECSQ_RAW);
    for (int64_t i = 0; i < n; ++i) {
      float y = x[i] * gain;
      if (!std::isfinite(x[i]))
        y = x[i];
      else if (!std::isfinite(y))
        y = y < 0 ? -ECSQ_FLT_MAX : ECSQ_FLT_MAX;
      memcpy(out + 1 + 4 * i, &y, 4);
    }
    return;
  }
  EcsqClasses source(codec, key, index, x, n, gain, isa);
  if (!source.prepare()) return only_mode(source.only_zeros() ? ECSQ_ZERO : ECSQ_NAN);
  if (codec.states && nbytes >= ECTCQ_LEAST_NBYTES && ectcq_encode(source, out, isa)) return;
  if (!Encoder(source, out).run()) only_mode(source.any_nan() ? ECSQ_NAN : ECSQ_ZERO);
}

}  // namespace commpress
