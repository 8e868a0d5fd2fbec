// Facts that need no golden text: Random123's vectors, sizes at 64 bits, keys that matter, and decoders that survive
// any bytes.
#include "support.h"

using namespace commpress;
using namespace test;

namespace {

void philox_vectors() {  // Random123's kat_vectors, philox 4x32 with 10 rounds
  const uint32_t given[3][6] = {{0, 0, 0, 0, 0, 0},
                                {~0u, ~0u, ~0u, ~0u, ~0u, ~0u},
                                {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0}};
  const uint32_t wanted[3][4] = {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
                                 {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd},
                                 {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}};
  for (int i = 0; i < 3; ++i) {
    const uint32_t* g = given[i];
    const Words4 out = philox({static_cast<uint64_t>(g[5]) << 32 | g[4], g[1], g[2], g[3]}, 0, g[0]);
    for (int k = 0; k < 4; ++k) require(out.w[k] == wanted[i][k], "philox differs from Random123's vectors");
  }
}

void sizes() {
  Noise noise{1};
  for (const Codec& codec : codecs()) {
    for (int i = 0; i < 200; ++i) {
      const int64_t a = BLOCK * noise.below(1 << 24), b = noise.below(int64_t{1} << 36),
                    offset = BLOCK * noise.below(int64_t{1} << 24);
      const int64_t whole = payload_nbytes(codec, offset, a + b);
      require(whole == payload_nbytes(codec, offset, a) + payload_nbytes(codec, offset + a, b),
              name_of(codec) + ": sizes do not add up");
    }
    require(payload_nbytes(codec, 0, 0) == 0, name_of(codec) + ": nothing has a size");
    if (codec.family <= CAST_BF16 || codec.rate < 1000) continue;
    const int64_t n = int64_t{1} << 33;
    const double bits = 8.0 * static_cast<double>(payload_nbytes(codec, 0, n)) / static_cast<double>(n),
                 rate = codec.rate * 1e-6;
    require(bits >= rate && bits <= rate + 0.04, name_of(codec) + ": 2^33 coordinates have the wrong size");
  }
}

void keys_matter() {
  std::vector<float> x(5000);
  fill(x.data(), 5000, NORMAL, 5);
  const Key keys[] = {{1, 2, 3 << 8, 4}, {2, 2, 3 << 8, 4}, {1 + (uint64_t{1} << 32), 2, 3 << 8, 4},
                      {1, 3, 3 << 8, 4}, {1, 2, 4 << 8, 4}, {1, 2, 3 << 8 | 1 << 4, 4},
                      {1, 2, 3 << 8, 5}};
  for (const Codec& codec : codecs()) {
    if (codec.family != UNIFORM && codec.family != HADAMARD_LLOYD) continue;
    if (codec.rate < 100000) continue;  // so few bits may well agree
    std::vector<std::vector<uint8_t>> seen;
    for (const Key& key : keys) {
      for (int64_t offset : {int64_t{0}, BLOCK}) {
        const Payload payload{codec, key, offset, 4096};
        std::vector<uint8_t> coded(payload_nbytes(codec, offset, 4096));
        encode(payload, x.data(), 1.0f, coded.data(), best_isa());
        for (const auto& other : seen) require(other != coded, name_of(codec) + ": two keys gave the same bytes");
        seen.push_back(coded);
      }
    }
  }
}

// Bytes that no encoder wrote: nothing may be read or written out of bounds, and what counts as valid decodes alike on
// every path.
void hostile_bytes(int rounds) {
  Noise noise{2};
  int64_t valid = 0, invalid = 0;
  for (const Codec& codec : codecs()) {
    for (int round = 0; round < rounds; ++round) {
      const int64_t numel = 1 + noise.below(noise.below(3) ? 700 : 9000), offset = BLOCK * noise.below(1000);
      const Payload payload{codec, {noise.next(), 1, 2, 3}, offset, numel};
      const int64_t nbytes = payload_nbytes(codec, offset, numel);
      Buffer coded(nbytes, noise.below(4), 0);
      if (round % 2) {  // a real payload with a few bits turned
        std::vector<float> x(numel);
        fill(x.data(), numel, static_cast<Kind>(noise.below(KINDS)), noise.next());
        encode(payload, x.data(), 1.0f, coded.data(), best_isa());
        for (int k = 0; k < 3; ++k) coded.data()[noise.below(nbytes)] ^= static_cast<uint8_t>(1u << noise.below(8));
      } else {
        for (int64_t i = 0; i < nbytes; ++i) coded.data()[i] = static_cast<uint8_t>(noise.next());
      }
      const bool is_valid = inspect(payload, coded.data()).invalid_block == -1;
      (is_valid ? valid : invalid) += 1;
      std::vector<float> reference;
      for (Isa isa : available()) {
        Buffer out(4 * numel, 0, 0);
        fill(out.floats(), numel, NORMAL, 4);
        decode(payload, coded.data(), out.floats(), round % 4 < 2, 0.25f, 0.5f, isa);
        out.check_guards(name_of(codec) + ": hostile bytes");
        if (reference.empty()) reference.assign(out.floats(), out.floats() + numel);
        for (int64_t i = 0; is_valid && i < numel; ++i) {
          const float a = reference[i], b = out.floats()[i];
          require(bits_of(a) == bits_of(b) || (a != a && b != b),
                  name_of(codec) + ": paths decode mutated bytes differently");
        }
      }
    }
  }
  require(valid > 0 && invalid > 0, "the noise was all valid or all invalid");
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 40;
  philox_vectors();
  sizes();
  keys_matter();
  hostile_bytes(rounds);
  std::fprintf(stderr, "test_safety: passed, %d rounds of hostile bytes for each codec\n", rounds);
}
