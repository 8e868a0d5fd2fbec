// The bitshift trellis: every path of this machine gives the same bytes and values, of which it prints checksums that
// must equal tests/golden/bitshift.txt on every machine; hostile bytes decode within their bounds. With an argument N,
// N rounds of those.
#include "bitshift_codec.h"
#include "support.h"

using namespace commpress;
using namespace test;

namespace {

Trellis trellis(int rate, int length, bool rotated, bool centroid) {
  const TrellisRate& r = TRELLIS_RATES[rate];
  return {r.bits, r.values, length, rotated, centroid, r.spread};
}

struct Case {
  int rate, length;
  bool rotated, centroid;
};
const Case CASES[] = {
    {1, 8, false, false}, {1, 9, true, false},  {5, 8, true, true},  {6, 8, false, false},
    {6, 8, true, false},  {7, 10, true, false}, {8, 8, true, false}, {10, 12, false, false},
};

std::string describe(const Trellis& t) {
  return "bitshift " + std::to_string(t.bits) + "/" + std::to_string(t.values) + " length " + std::to_string(t.length) +
         (t.rotated ? " rotated" : "");
}

void same_on_every_path(const Case& c) {
  const Trellis t = trellis(c.rate, c.length, c.rotated, c.centroid);
  Checksum sum;
  for (int kind = 0; kind < KINDS; ++kind) {
    const int64_t n = kind == NORMAL ? 5000 : kind % 2 ? 1024 : 2100, offset = kind == WIDE ? BLOCK * 3 : 0;
    const TrellisPayload payload{t, {0x0123456789ABCDEFu + static_cast<uint64_t>(kind), 7, 3u << 8, 11}, offset, n};
    const int64_t nbytes = trellis_nbytes(t, offset, n);
    std::vector<float> given(n);
    fill(given.data(), n, static_cast<Kind>(kind), 5);
    std::vector<uint8_t> first;
    for (Isa isa : available()) {
      const std::string what = describe(t) + " " + KIND_NAME[kind] + " " + ISA_NAME[static_cast<int>(isa)];
      Buffer x(4 * n, 4, 0), coded(nbytes, kind % 4, 0xCD), values(4 * n, 4, 0xFF);
      memcpy(x.data(), given.data(), x.size());
      encode(payload, x.floats(), 0.5f, coded.data(), isa);
      require(inspect(payload, coded.data()).invalid_block == -1, what + ": its own payload is called invalid");
      decode(payload, coded.data(), values.floats(), false, 2.0f, 1.0f, isa);
      coded.check_guards(what);
      values.check_guards(what + " decode");
      std::vector<uint8_t> all(coded.data(), coded.data() + nbytes);
      Checksum of_values;
      of_values.floats(values.floats(), n);
      for (int k = 0; k < 8; ++k) all.push_back(static_cast<uint8_t>(of_values.value >> 8 * k));
      if (first.empty()) {
        first = all;
        sum.bytes(all.data(), static_cast<int64_t>(all.size()));
      }
      require(first == all, what + ": differs from the first path");
    }
  }
  std::printf("%-40s %016" PRIx64 "\n", describe(t).c_str(), sum.value);
}

void hostile_bytes(int rounds) {
  Noise noise{7};
  int64_t valid = 0, invalid = 0;
  for (int round = 0; round < rounds; ++round) {
    const Case& c = CASES[noise.below(sizeof CASES / sizeof *CASES)];
    const Trellis t = trellis(c.rate, c.length, c.rotated, c.centroid);
    const int64_t n = 1 + noise.below(6000), nbytes = trellis_nbytes(t, 0, n);
    const TrellisPayload payload{t, {noise.next(), 1, 2 << 8, 3}, 0, n};
    Buffer coded(nbytes, noise.below(4), 0);
    for (int64_t i = 0; i < nbytes; ++i) coded.data()[i] = static_cast<uint8_t>(noise.next());
    (inspect(payload, coded.data()).invalid_block == -1 ? valid : invalid) += 1;
    for (Isa isa : available()) {
      Buffer out(4 * n, 0, 0);
      decode(payload, coded.data(), out.floats(), round % 2, 0.25f, 0.5f, isa);
      out.check_guards(describe(t) + ": hostile bytes");
    }
  }
  require(valid > 0 && invalid > 0, "the noise was all valid or all invalid");
}

void sizes() {
  for (const Case& c : CASES) {
    const Trellis t = trellis(c.rate, c.length, c.rotated, c.centroid);
    const int64_t span = trellis_span(t), n = int64_t{1} << 33;
    require(trellis_nbytes(t, 0, 0) == 0, describe(t) + ": nothing has a size");
    require(trellis_nbytes(t, 0, n) == n / span * trellis_piece_nbytes(t, span), describe(t) + ": 2^33 coordinates");
    require(
        trellis_nbytes(t, 0, 5 * span + 777) == 5 * trellis_piece_nbytes(t, span) + trellis_nbytes(t, 5 * span, 777),
        describe(t) + ": sizes do not add up");
  }
}

}  // namespace

int main(int argc, char** argv) {
  sizes();
  for (const Case& c : CASES) same_on_every_path(c);
  hostile_bytes(argc > 1 ? std::atoi(argv[1]) : 40);
  std::fprintf(stderr, "test_bitshift: passed\n");
}
