// The sparsifiers: segments in, bytes out, and back. Only the scan for candidates has vector forms.
#include "sparse.h"

#include <memory>

#include "gaps.h"
#include "select.h"
#include "topk.h"

namespace commpress {

int64_t scan_plain(const float* x, int64_t n, uint32_t least, uint32_t* found) {
  int64_t count = 0, i = 0;
  for (; i + 16 <= n; i += 16) {
    uint32_t any = 0;
    for (int j = 0; j < 16; ++j) any |= least - 1 - magnitude(x[i + j]);  // the top bit is set where the magnitude wins
    if (!(any >> 31)) continue;
    for (int j = 0; j < 16; ++j) {
      found[count] = static_cast<uint32_t>(i + j);
      count += magnitude(x[i + j]) >= least;
    }
  }
  for (; i < n; ++i) {
    found[count] = static_cast<uint32_t>(i);
    count += magnitude(x[i]) >= least;
  }
  return count;
}
#if defined(COMMPRESS_X86)
int64_t scan_avx2(const float* x, int64_t n, uint32_t least, uint32_t* found);
int64_t scan_avx512(const float* x, int64_t n, uint32_t least, uint32_t* found);
#endif

namespace {

Scan scan_of(Isa isa) {
#if defined(COMMPRESS_X86)
  if (isa == Isa::AVX512) return scan_avx512;
  if (isa == Isa::AVX2) return scan_avx2;
#endif
  (void)isa;
  return scan_plain;
}

// Whether all are finite.
bool all_finite(const float* x, int64_t n) {
  uint32_t bad = 0;
  for (int64_t i = 0; i < n; ++i) bad |= magnitude(x[i]) + 0x00800000u;
  return !(bad >> 31);
}

void deliver(float& out, float value, bool accumulate, float beta) { out = accumulate ? out * beta + value : value; }

// Bit strings of section 3, of any length.
class BitWriter {
 public:
  explicit BitWriter(uint8_t* out) : out_(out) {}
  void put(uint32_t code, int bits) {
    pending_ |= static_cast<uint64_t>(code) << held_;
    held_ += bits;
    if (held_ < 32) return;
    const uint32_t word = static_cast<uint32_t>(pending_);
    memcpy(out_, &word, 4);
    out_ += 4;
    pending_ >>= 32;
    held_ -= 32;
  }
  void finish() {
    for (; held_ > 0; held_ -= 8, pending_ >>= 8) *out_++ = static_cast<uint8_t>(pending_);
  }

 private:
  uint8_t* out_;
  uint64_t pending_ = 0;
  int held_ = 0;
};
class BitReader {
 public:
  explicit BitReader(const uint8_t* in) : in_(in) {}
  uint32_t get(int bits) {
    for (; held_ < bits; held_ += 8) pending_ |= static_cast<uint64_t>(*in_++) << held_;
    const uint32_t code = static_cast<uint32_t>(pending_) & ((1u << bits) - 1);
    pending_ >>= bits;
    held_ -= bits;
    return code;
  }

 private:
  const uint8_t* in_;
  uint64_t pending_ = 0;
  int held_ = 0;
};

// Memory for one segment, and what does not change from one segment to the next.
struct Workshop {
  explicit Workshop(const SparsePayload& p) : codec(p.codec), key(p.key), cost(gap_cost(p.codec.fraction)) {
    const int64_t n = p.numel < codec.block ? p.numel : codec.block, room = n + SCAN_SLACK;
    indices.reset(new uint32_t[room]);
    values.reset(new float[room]);
    if (codec.kind != TOPK) return;
    model.reset(new GapModel(codec.fraction));
    work.reset(new uint32_t[room]);
    bytes.reset(new uint8_t[2 * (position_nbytes(cost, n, n) + GAP_SLACK)]);
  }

  const SparseCodec& codec;
  const Key& key;
  GapCost cost;
  std::unique_ptr<GapModel> model;
  std::unique_ptr<uint32_t[]> indices, work;
  std::unique_ptr<float[]> values;
  std::unique_ptr<uint8_t[]> bytes;
};

// ---- topk ----

Header read_header(const SparseCodec& codec, const uint8_t* in) {
  Header header{0, false, {0, 0}};
  memcpy(&header.sent, in, 4);
  if (sparse_quantised(codec)) {
    memcpy(&header.levels.low, in + 4, 2);
    memcpy(&header.levels.high, in + 6, 2);
  }
  header.exact = header.sent & EXACT;
  header.sent &= ~EXACT;
  return header;
}

void encode_values(const SparseCodec& codec, bool finite, const float* values, int64_t m, uint32_t* work, uint8_t* out,
                   uint8_t* levels_out) {
  if (codec.bits == 32) {
    memcpy(out, values, 4 * m);
  } else if (codec.bits == 16) {
    for (int64_t i = 0; i < m; ++i) {
      const uint16_t code = finite_bf16(values[i]);
      memcpy(out + 2 * i, &code, 2);
    }
  } else {
    const int count = 1 << (codec.bits - 1);
    Levels levels{LEVELS_NON_FINITE, LEVELS_NON_FINITE};
    if (finite) {
      for (int64_t i = 0; i < m; ++i) work[i] = magnitude(values[i]);
      levels = find_levels(work, m, count);
    }
    memcpy(levels_out, &levels.low, 2);
    memcpy(levels_out + 2, &levels.high, 2);
    if (!finite) return;
    Quantiser(levels, count).codes(work, m);
    BitWriter writer(out);
    for (int64_t i = 0; i < m; ++i) writer.put(work[i] | bits_of(values[i]) >> 31 << (codec.bits - 1), codec.bits);
    writer.finish();
  }
}

void encode_topk(Workshop& shop, const float* x, int64_t n, int64_t k, float gain, Scan scan, uint8_t* out) {
  const SparseCodec& codec = shop.codec;
  const int64_t nbytes = sparse_nbytes(codec, shop.cost, n, k), header = sparse_header_nbytes(codec);
  uint32_t* const indices = shop.indices.get();
  float* const values = shop.values.get();
  const int64_t chosen = select_largest(x, n, k, scan, indices, shop.work.get());
  int64_t m = 0;
  uint32_t largest = 0;
  for (int64_t i = 0; i < chosen; ++i) {
    const float value = x[indices[i]];
    largest = magnitude(value) > largest ? magnitude(value) : largest;
    indices[m] = indices[i];
    values[m] = sent_value(value, gain);
    m += values[m] != 0.0f;  // a gain may turn a value into zero
  }
  const bool exact = fits_exactly(codec, shop.cost, n, k, m);
  memset(out, 0, nbytes);
  const uint32_t count = static_cast<uint32_t>(m) | (exact ? EXACT : 0);
  memcpy(out, &count, 4);
  uint8_t* positions = out + header;
  if (exact) {
    memcpy(positions, values, 4 * m);
    positions += 4 * m;
  } else {
    encode_values(codec, largest < SCALE32_INFINITY, values, m, shop.work.get(), positions, out + 4);
    positions += packed_nbytes(m, codec.bits);
  }
  if (m == 0) return;
  encode_positions(*shop.model, indices, m, shop.bytes.get(), positions, position_nbytes(shop.cost, n, m));
}

void decode_topk(Workshop& shop, const uint8_t* in, int64_t n, int64_t k, float* out, bool accumulate, float gain,
                 float beta) {
  const SparseCodec& codec = shop.codec;
  Header header = read_header(codec, in);
  in += sparse_header_nbytes(codec);
  if (!accumulate)
    memset(out, 0, 4 * n);
  else if (beta != 1.0f)
    for (int64_t i = 0; i < n; ++i) out[i] *= beta;
  if (!header_valid(codec, shop.cost, header, n, k)) return;
  const int64_t m = header.sent;
  float* const values = shop.values.get();
  if (header.exact || codec.bits == 32) {
    memcpy(values, in, 4 * m);
    in += 4 * m;
  } else if (codec.bits == 16) {
    for (int64_t i = 0; i < m; ++i) {
      uint16_t code;
      memcpy(&code, in + 2 * i, 2);
      values[i] = from_bf16(code);
    }
    in += 2 * m;
  } else {
    const int count = 1 << (codec.bits - 1);
    float table[256];
    const bool finite = header.levels.low != LEVELS_NON_FINITE;
    for (int c = 0; c < count; ++c) {
      table[c] = finite ? level_value(header.levels, count, c) : float_of(0x7FC00000u);
      table[count + c] = -table[c];
    }
    BitReader reader(in);
    for (int64_t i = 0; i < m; ++i) values[i] = table[reader.get(codec.bits)];
    in += packed_nbytes(m, codec.bits);
  }
  if (m == 0) return;
  uint32_t* const positions = shop.indices.get();
  const int64_t size = position_nbytes(shop.cost, n, m);
  const int64_t known = decode_positions(*shop.model, in, size, n, m, shop.bytes.get(), positions);
  for (int64_t i = 0; i < known; ++i) {
    float& to = out[positions[i]];
    const float value = values[i] * gain;
    to = accumulate ? to + value : value;
  }
}

// ---- randk ----

// One coordinate of each of k windows of nearly equal length. Apart from what is done there, so that the processor can
// fetch many of them at a time.
void select_randomly(const Key& key, int64_t start, int64_t n, int64_t k, uint32_t* indices) {
  const int64_t length = n / k, rest = n % k;
  int64_t begin = 0, error = 0;
  for (int64_t j = 0; j < k; j += 4) {
    const Words4 words = philox(key, SELECT, static_cast<uint32_t>(start / 4) + static_cast<uint32_t>(j / 4));
    for (int64_t i = j; i < k && i < j + 4; ++i) {
      error += rest;
      const bool longer = error >= k;
      error -= longer ? k : 0;
      const uint32_t width = static_cast<uint32_t>(length + longer);
      indices[i] = static_cast<uint32_t>(begin) + multiply_high(words.w[i - j], width);
      begin += width;
    }
  }
}

void encode_randk(Workshop& shop, const float* x, int64_t start, int64_t n, int64_t k, float gain, Isa isa,
                  uint8_t* out) {
  const SparseCodec& codec = shop.codec;
  float* const values = shop.values.get();
  if (!all_finite(x, n)) {
    for (int64_t j = 0; j < k; ++j) values[j] = float_of(0xFFFFFFFFu);
  } else {
    const uint32_t* const indices = shop.indices.get();
    select_randomly(shop.key, start, n, k, shop.indices.get());
    for (int64_t j = 0; j < k; ++j) {
      const float width = static_cast<float>((j + 1) * n / k - j * n / k);
      values[j] = clamped(x[indices[j]] * (codec.scaled ? gain * width : gain));
    }
  }
  if (sparse_quantised(codec)) return encode({randk_values(codec), shop.key, start, k}, values, 1.0f, out, isa);
  if (codec.bits == 32) {
    memcpy(out, values, 4 * k);
    return;
  }
  for (int64_t j = 0; j < k; ++j) {
    const uint32_t u = bits_of(values[j]), a = u & 0x7FFFFFFFu;
    uint16_t code = 0xFFFF;
    if (a < SCALE32_INFINITY) {  // the lower bits are the chance to be rounded away from zero
      const uint32_t word = codec.scaled ? rounding_word(shop.key, start + j) & 0xFFFFu : 0x7FFFu + (a >> 16 & 1);
      const uint32_t rounded = (a + word) >> 16;
      code = static_cast<uint16_t>((rounded < SCALE16_LARGEST ? rounded : SCALE16_LARGEST) | (u >> 31 << 15));
    }
    memcpy(out + 2 * j, &code, 2);
  }
}

void decode_randk(Workshop& shop, const uint8_t* in, int64_t start, int64_t n, int64_t k, float* out, bool accumulate,
                  float gain, float beta, Isa isa) {
  const SparseCodec& codec = shop.codec;
  float* const values = shop.values.get();
  if (sparse_quantised(codec)) {
    decode({randk_values(codec), shop.key, start, k}, in, values, false, gain, 1.0f, isa);
  } else {
    for (int64_t j = 0; j < k; ++j) {
      uint16_t code;
      uint32_t word;
      if (codec.bits == 16)
        memcpy(&code, in + 2 * j, 2), word = static_cast<uint32_t>(code) << 16;
      else
        memcpy(&word, in + 4 * j, 4);
      values[j] = float_of(word) * gain;
    }
  }
  bool nan = false;
  for (int64_t j = 0; j < k; ++j) nan |= values[j] != values[j];
  if (nan) {
    for (int64_t i = 0; i < n; ++i) deliver(out[i], float_of(0x7FC00000u), accumulate, beta);
    return;
  }
  if (!accumulate)
    memset(out, 0, 4 * n);
  else if (beta != 1.0f)
    for (int64_t i = 0; i < n; ++i) out[i] *= beta;
  const uint32_t* const indices = shop.indices.get();
  select_randomly(shop.key, start, n, k, shop.indices.get());
  for (int64_t j = 0; j < k; ++j) out[indices[j]] = accumulate ? out[indices[j]] + values[j] : values[j];
}

// f(first coordinate, coordinates, coordinates sent, first byte, bytes) for each segment.
template <class F>
void for_segments(const SparsePayload& p, const GapCost& cost, const F& f) {
  int64_t byte = 0;
  for (int64_t first = 0; first < p.numel; first += p.codec.block) {
    const int64_t n = p.numel - first < p.codec.block ? p.numel - first : p.codec.block;
    const int64_t k = sparse_kept(p.codec, p.offset + first, n), nbytes = sparse_nbytes(p.codec, cost, n, k);
    f(first, n, k, byte, nbytes);
    byte += nbytes;
  }
}

}  // namespace

void sparse_encode(const SparsePayload& p, const float* x, float gain, uint8_t* out, Isa isa) {
  Workshop shop(p);
  const Scan scan = scan_of(isa);
  for_segments(p, shop.cost, [&](int64_t first, int64_t n, int64_t k, int64_t byte, int64_t) {
    if (p.codec.kind == TOPK)
      encode_topk(shop, x + first, n, k, gain, scan, out + byte);
    else
      encode_randk(shop, x + first, p.offset + first, n, k, gain, isa, out + byte);
  });
}

int64_t sparse_inspect(const SparsePayload& p, const uint8_t* in) {
  int64_t invalid = -1;
  if (p.codec.kind == RANDK && !sparse_quantised(p.codec)) return invalid;
  const GapCost cost = gap_cost(p.codec.fraction);
  for_segments(p, cost, [&](int64_t first, int64_t n, int64_t k, int64_t byte, int64_t) {
    if (invalid >= 0) return;
    const bool valid = p.codec.kind == TOPK
                           ? header_valid(p.codec, cost, read_header(p.codec, in + byte), n, k)
                           : inspect({randk_values(p.codec), p.key, p.offset + first, k}, in + byte).invalid_block < 0;
    if (!valid) invalid = first / p.codec.block;
  });
  return invalid;
}

void sparse_decode(const SparsePayload& p, const uint8_t* in, float* out, bool accumulate, float gain, float beta,
                   Isa isa) {
  Workshop shop(p);
  for_segments(p, shop.cost, [&](int64_t first, int64_t n, int64_t k, int64_t byte, int64_t) {
    if (p.codec.kind == TOPK)
      decode_topk(shop, in + byte, n, k, out + first, accumulate, gain, beta);
    else
      decode_randk(shop, in + byte, p.offset + first, n, k, out + first, accumulate, gain, beta, isa);
  });
}

}  // namespace commpress
