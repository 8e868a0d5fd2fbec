// `ecsq` and `ecdq`: the loops of every path give the same counts, bytes, sums and values, blocks alone and whole
// segments; what one pass settles is what all steps between count; and decoders survive any bytes.
#include <algorithm>
#include <cmath>
#include <memory>

#include "ecsq.h"
#include "ecsq_kernels.h"
#include "entropy_coders.h"
#include "support.h"

using namespace commpress;
using namespace test;

namespace {

using entropy::Counts;

bool operator==(const Counts& a, const Counts& b) { return memcmp(a.of, b.of, sizeof a.of) == 0; }

// A block of a class, as an encoder meets it.
struct Block {
  int64_t n;
  float x[ECSQ_BLOCK];
  int32_t w[ECSQ_BLOCK];
  entropy::Model model;
  entropy::Frequencies frequencies;
  EcsqQuantiser quantiser;
};

bool make(Noise& noise, Block& b) {
  b.n = noise.below(3) ? ECSQ_BLOCK : 1 + noise.below(ECSQ_BLOCK);
  const int64_t relative = noise.below(2) ? noise.below(8192) : noise.below(51200) - 8192;
  const bool dither = noise.below(2) == 0;
  b.model.shape = static_cast<int>(noise.below(8));
  b.model.shift = static_cast<int>(noise.below(noise.below(2) ? 5 : 40)) - 2;
  b.model.largest = static_cast<int>(noise.below(noise.below(2) ? 8 : entropy::LARGEST + 1));
  b.model.escape = noise.below(8) > 0;
  if (!entropy::frequencies_of(b.model, relative, dither, b.frequencies)) return false;
  const float deviation = static_cast<float>(std::exp2(static_cast<double>(relative) / 2048));
  b.quantiser = {noise.below(2) ? 1.0f : 1.0f / 3, noise.below(2) ? 1.0f : 3.7f,
                 static_cast<float>(static_cast<double>(entropy::dead_zone(relative)) / 65536),
                 entropy::raw_bits(relative), dither};
  const Kind kinds[] = {NORMAL, WIDE, SPARSE, ONE_SPIKE, CONSTANT, SIGNED_ZEROS, HUGE_VALUES};
  // Escapes cost what they cost: only where the class has them.
  const Kind kind = kinds[noise.below(noise.below(4) ? 1 : 7)];
  fill(b.x, ECSQ_BLOCK, kind, noise.next());
  for (float& x : b.x)
    if (kind != HUGE_VALUES) x *= deviation / (b.quantiser.gain * b.quantiser.inverse);
  ecsq_kernels(Isa::PLAIN).dither({noise.next(), 1, 2, 3}, ECSQ_BLOCK * noise.below(int64_t{1} << 20), b.n, b.w);
  const int32_t rare[] = {0, -1, 1, -(1 << 23), (1 << 23) - 1};  // of which few are drawn
  for (int32_t& w : b.w)
    if (noise.below(40) == 0) w = rare[noise.below(5)];
  if (b.model.escape) return true;
  // Without an escape no value may need one.
  const float most = (static_cast<float>(b.model.largest) + 0.25f) * static_cast<float>(1 << b.quantiser.raw) - 1.0f;
  for (float& x : b.x) {
    const float v = x * b.quantiser.gain * b.quantiser.inverse;
    if (!(std::fabs(v) < most)) x = 0.0f;
  }
  return true;
}

void counts_agree(const Block& b, Noise& noise) {
  Counts first;
  EcsqQuantiser least = b.quantiser, most = b.quantiser;
  least.inverse *= 1.0f - noise.unit() * (noise.below(2) ? 0.01f : 0.3f);
  most.inverse *= 1.0f + noise.unit() * 0.02f;
  least.offset *= 1.0f - noise.unit() * 0.1f;
  for (Isa isa : available()) {
    const EcsqKernels& kernels = ecsq_kernels(isa);
    Counts counts;
    kernels.count(b.quantiser, b.x, b.w, b.n, counts);
    if (isa == Isa::PLAIN) first = counts;
    require(counts == first, "count: paths differ");
    Counts settled;
    Buffer open(4 * (ECSQ_BLOCK + 8), 0, 0), open_w(4 * (ECSQ_BLOCK + 8), 0, 0);
    int32_t* const dithers = reinterpret_cast<int32_t*>(open_w.data());
    const int64_t met = kernels.settle(least, most, b.x, b.w, b.n, settled, open.floats(), dithers);
    open.check_guards("settle");
    open_w.check_guards("settle");
    for (const EcsqQuantiser& q : {least, b.quantiser, most}) {
      Counts whole, parts = settled;
      kernels.count(q, b.x, b.w, b.n, whole);
      kernels.count(q, open.floats(), dithers, met, parts);
      require(parts == whole, "settle: counts differ");
    }
  }
}

struct Written {
  std::vector<uint8_t> bytes, low;
  std::vector<uint32_t> states;
  std::vector<int64_t> sums;
  std::vector<EcsqEscape> escapes;
  bool operator==(const Written& other) const {
    if (escapes.size() != other.escapes.size()) return false;
    for (size_t i = 0; i < escapes.size(); ++i)
      if (escapes[i].index != other.escapes[i].index || bits_of(escapes[i].value) != bits_of(other.escapes[i].value))
        return false;
    return bytes == other.bytes && low == other.low && states == other.states && sums == other.sums;
  }
};

Written written(const Block& b, int lanes, Isa isa) {
  EcsqClassCoder c;
  c.quantiser = b.quantiser;
  c.largest = b.model.largest;
  c.empty = b.model.empty();
  c.folded = b.frequencies.rows > 1;
  for (int row = 0; row < b.frequencies.rows; ++row) {
    uint32_t start = 0;
    for (int s = 0; s < entropy::SYMBOLS; start += static_cast<uint32_t>(b.frequencies.of[row][s++]))
      c.entry[row][s] = static_cast<uint32_t>(b.frequencies.of[row][s]) | start << 16;
  }
  Written r;
  r.states.assign(entropy::MOST_LANES, entropy::RANS_LOW + 12345);
  Buffer out(2 * b.n, 0, 0), low((b.n * b.quantiser.raw + 7) / 8, 0, 0);
  uint8_t* const end = out.data() + out.size();
  uint8_t* const to =
      ecsq_kernels(isa).encode(c, b.x, b.w, b.n, 1000, r.states.data(), lanes, end, low.data(), r.escapes);
  out.check_guards("encode");
  low.check_guards("encode: low bits");
  r.bytes.assign(to, end);
  r.low.assign(low.data(), low.data() + low.size());
  r.sums = {c.n1, c.n2, c.n3, c.w1, c.w2, c.w3, c.q3, c.x3, c.squares};
  std::sort(r.escapes.begin(), r.escapes.end(), [](auto& a, auto& b) { return a.index < b.index; });
  return r;
}

struct Read {
  std::vector<float> z;
  std::vector<int32_t> escapes;
  std::vector<uint32_t> states;
  int64_t left;
  bool operator==(const Read& other) const {
    return memcmp(z.data(), other.z.data(), 4 * z.size()) == 0 && escapes == other.escapes && states == other.states &&
           left == other.left;
  }
};

// From a stream that ends with `behind` more bytes.
Read read(const Block& b, const Written& from, int lanes, int64_t behind, Isa isa) {
  EcsqClassDecoder c;
  c.raw = b.quantiser.raw;
  c.largest = b.model.largest;
  c.empty = b.model.empty();
  c.folded = b.frequencies.rows > 1;
  c.dither = b.quantiser.dither;
  for (int row = 0; row < b.frequencies.rows && !c.empty; ++row)
    for (uint32_t s = 0; s < entropy::SYMBOLS; ++s)
      for (uint32_t r = 0, f = static_cast<uint32_t>(b.frequencies.of[row][s]); r < f; ++r)
        c.slots.push_back(f | r << 12 | s << 24);
  for (int s = 0; s < entropy::SYMBOLS; ++s) c.values[s] = s ? static_cast<float>(s - 32) * 1.01f : 0.0f;
  const int64_t size = static_cast<int64_t>(from.bytes.size());
  Buffer in(size + behind, 0, 0x33), low(static_cast<int64_t>(from.low.size()) + (lanes == 32 ? 16 : 0), 0, 0x77),
      z(4 * b.n, 0, 0);
  std::copy(from.bytes.begin(), from.bytes.end(), in.data());
  std::copy(from.low.begin(), from.low.end(), low.data());
  EcsqStream stream{in.data(), in.data() + in.size(), lanes, {}};
  std::copy(from.states.begin(), from.states.end(), stream.states);
  Read r;
  ecsq_kernels(isa).decode(c, stream, b.w, low.data(), b.n, z.floats(), r.escapes);
  z.check_guards("decode");
  r.z.assign(z.floats(), z.floats() + b.n);
  r.states.assign(stream.states, stream.states + entropy::MOST_LANES);
  r.left = stream.end - stream.in;
  return r;
}

void blocks_agree(int rounds) {
  Noise noise{11};
  for (int round = 0; round < 20 * rounds; ++round) {
    Block b;
    if (!make(noise, b)) continue;
    counts_agree(b, noise);
    const int lanes = noise.below(4) ? 32 : noise.below(2) ? 4 : 1;
    const Written first = written(b, lanes, Isa::PLAIN);
    const int64_t behind = noise.below(2) ? 2000 : 2 * noise.below(40);
    const Read values = read(b, first, lanes, behind, Isa::PLAIN);
    require(values.left == behind, "decode: it does not end where the stream does");
    require(values.escapes.size() == first.escapes.size(), "decode: escapes are lost");
    for (size_t i = 0; i < values.escapes.size(); ++i)
      require(values.escapes[i] + 1000 == first.escapes[i].index, "decode: an escape is elsewhere");
    Written broken = first;
    for (uint8_t& byte : broken.bytes)
      if (noise.below(40) == 0) byte = static_cast<uint8_t>(noise.next());
    if (noise.below(2)) broken.bytes.resize(broken.bytes.size() / 2);
    const Read unlike = read(b, broken, lanes, behind, Isa::PLAIN);
    for (Isa isa : available()) {
      require(written(b, lanes, isa) == first, "encode: paths differ");
      require(read(b, first, lanes, behind, isa) == values, "decode: paths differ");
      require(read(b, broken, lanes, behind, isa) == unlike, "decode: paths differ on a broken stream");
    }
  }
}

void scaling_and_dithers() {
  std::vector<float> x(77);
  fill(x.data(), 77, HUGE_VALUES, 1);
  x[3] = float_of(0x7FC00000u);
  for (Isa isa : available()) {
    std::vector<float> z = x;
    ecsq_kernels(isa).scale(z.data(), 77, 1e3);
    for (int i = 0; i < 77; ++i) {
      const double product = static_cast<double>(x[i]) * 1e3, most = 0x1.fffffep127;
      const float bounded = static_cast<float>(product < -most ? -most : product > most ? most : product);
      require(bits_of(z[i]) == bits_of(bounded) || i == 3, "scale: another value");
    }
    require(z[3] != z[3], "scale: a NaN is lost");
    for (int64_t n : {int64_t{1}, int64_t{100}, int64_t{511}, ECSQ_BLOCK}) {
      Buffer w(4 * n, 0, 0), first(4 * n, 0, 0);
      ecsq_kernels(isa).dither({5, 1, 2, 3}, 1 << 20, n, reinterpret_cast<int32_t*>(w.data()));
      ecsq_kernels(Isa::PLAIN).dither({5, 1, 2, 3}, 1 << 20, n, reinterpret_cast<int32_t*>(first.data()));
      w.check_guards("dither");
      require(memcmp(w.data(), first.data(), 4 * n) == 0, "dither: paths differ");
    }
  }
}

// Whole segments: all kinds of input, and then a damaged payload.
void segments_agree(int rounds) {
  Noise noise{13};
  const int32_t rates[] = {ECSQ_LEAST_RATE, 300000, 1000000, 2000000, 4000000, 5500000, 8000000};
  for (int round = 0; round < rounds; ++round) {
    const EcsqCodec codec{rates[noise.below(7)],
                          noise.below(3) == 0,
                          noise.below(3) == 0,
                          noise.below(2) == 0,
                          0,
                          noise.below(3) ? (8 + noise.below(40)) << 10 : 0};
    const int64_t n = 1 + noise.below(noise.below(4) ? 3000 : 210000), nbytes = ecsq_segment_nbytes(codec, n);
    const Key key{noise.next(), 1, 2, 3};
    std::vector<float> x(n);
    fill(x.data(), n, noise.below(3) ? NORMAL : static_cast<Kind>(noise.below(KINDS)), noise.next());
    for (int64_t i = n / 3; i < n / 2; ++i) x[i] *= 0.05f;
    if (noise.below(2)) x[n / 5] *= 1000.0f;
    std::vector<uint8_t> first, damaged;
    const auto decode = [&](std::vector<uint8_t>& bytes, Isa isa) {
      Buffer in(nbytes, noise.below(4), 0), out(4 * n, 0, 0x11);
      std::copy(bytes.begin(), bytes.end(), in.data());
      const std::unique_ptr<EcsqHeader, EcsqHeaderDeleter> header(ecsq_open(codec, in.data(), n));
      if (!header) return std::vector<uint8_t>();
      const int64_t count = ecsq_substreams(*header), apart = noise.below(2) ? count : 1;
      for (int64_t s = apart; s-- > 0;)  // in any order
        ecsq_decode(*header, s, apart == 1 ? count : s + 1, key, 4096, out.floats(), false, 0.7f, 0.0f, isa);
      out.check_guards("segment: decode");
      for (int64_t i = 0; i < n; ++i)
        if (out.floats()[i] != out.floats()[i]) out.floats()[i] = 0.0f;  // NaNs are of many kinds
      return std::vector<uint8_t>(out.data(), out.data() + 4 * n);
    };
    std::vector<uint8_t> values, others;
    for (Isa isa : available()) {
      Buffer out(nbytes, noise.below(4), 0x5A);
      ecsq_encode(codec, key, 4096, x.data(), n, 0.7f, out.data(), isa);
      out.check_guards("segment: encode");
      if (isa == Isa::PLAIN) {
        first.assign(out.data(), out.data() + nbytes);
        damaged = first;
        for (int64_t i = noise.below(3) ? nbytes - nbytes / 4 : 0; i < nbytes; ++i)
          if (noise.below(300) == 0) damaged[i] = static_cast<uint8_t>(noise.next());
        if (noise.below(2) && nbytes > 300 && first[0] == 1) {  // a stream that ends too soon
          const uint32_t stream = static_cast<uint32_t>(nbytes - 128 - noise.below(100));
          memcpy(damaged.data() + 14, &stream, 4);
        }
        values = decode(first, isa);
        others = decode(damaged, isa);
        require(!values.empty(), "segment: its own payload is refused");
      }
      require(memcmp(out.data(), first.data(), nbytes) == 0, "segment: paths differ");
      require(decode(first, isa) == values, "segment: decoders differ");
      require(decode(damaged, isa) == others, "segment: decoders differ on damaged bytes");
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 40;
  blocks_agree(rounds);
  scaling_and_dithers();
  segments_agree(rounds);
  std::fprintf(stderr, "test_ecsq: passed, %d rounds\n", rounds);
}
