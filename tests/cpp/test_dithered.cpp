// `homomorphic` and `modulo`: every path gives the same bytes, sums and values, the maths of homomorphic.h is that of
// the loops, and decoders survive any bytes.
#include "homomorphic_kernels.h"
#include "modulo_kernels.h"
#include "support.h"

using namespace commpress;
using namespace test;

namespace {

constexpr int64_t WORKERS = 5;

void require_same(std::vector<uint8_t>& first, Buffer& buffer, const char* what) {
  buffer.check_guards(what);
  if (first.empty()) first.assign(buffer.data(), buffer.data() + buffer.size());
  require(memcmp(first.data(), buffer.data(), first.size()) == 0, std::string(what) + ": paths differ");
}

void require_same_values(std::vector<float>& first, Buffer& buffer, int64_t n, const char* what) {
  buffer.check_guards(what);
  if (first.empty()) first.assign(buffer.floats(), buffer.floats() + n);
  for (int64_t i = 0; i < n; ++i) {
    const float a = first[i], b = buffer.floats()[i];
    require(bits_of(a) == bits_of(b) || (a != a && b != b), std::string(what) + ": paths differ");
  }
}

void homomorphic_paths(int rounds) {
  Noise noise{3};
  for (int round = 0; round < rounds; ++round) {
    const Grid g{1 + static_cast<int32_t>(noise.below(8)), 512 << noise.below(4), noise.below(2) == 0};
    const int64_t n = 1 + noise.below(noise.below(3) ? 700 : 9000), offset = BLOCK * noise.below(int64_t{1} << 24);
    const Key key{noise.next(), 1, 16, 3};
    const int64_t scale_bytes = scales_nbytes(g, n), code_bytes = integers_nbytes(n, g.bits);
    std::vector<float> x(n * WORKERS);
    std::vector<uint8_t> agreed(scale_bytes);
    for (int64_t w = 0; w < WORKERS; ++w) {
      fill(x.data() + w * n, n, static_cast<Kind>(noise.below(KINDS)), noise.next());
      std::vector<uint8_t> first;
      for (Isa isa : available()) {
        Buffer scales(scale_bytes, noise.below(4), 0x5A);
        grid_scales(g, x.data() + w * n, n, scales.data(), isa);
        require_same(first, scales, "scales");
      }
      require(invalid_scale(first.data(), scale_bytes / 2) == -1, "an own scale is invalid");
      for (int64_t i = 0; i < scale_bytes; i += 2) {
        uint16_t a, b;
        memcpy(&a, agreed.data() + i, 2);
        memcpy(&b, first.data() + i, 2);
        if (b > a) memcpy(agreed.data() + i, &b, 2);
      }
    }
    std::vector<std::vector<uint8_t>> codes(WORKERS);
    std::vector<const uint8_t*> pointers;
    for (int64_t w = 0; w < WORKERS; ++w) {
      for (Isa isa : available()) {
        Buffer coded(code_bytes, noise.below(4), 0x5A);
        grid_encode(g, key, static_cast<uint32_t>(w), offset, x.data() + w * n, n, agreed.data(), coded.data(), isa);
        require_same(codes[w], coded, "codes");
      }
      pointers.push_back(codes[w].data());
    }
    std::vector<uint8_t> sums;
    std::vector<float> values;
    for (Isa isa : available()) {
      Buffer added(integers_nbytes(n, sum_width(g.bits, WORKERS)), noise.below(4), 0x5A);
      grid_add(g.bits, pointers.data(), WORKERS, n, added.data(), isa);
      require_same(sums, added, "sums");
      Buffer out(4 * n, 0, 0);
      fill(out.floats(), n, NORMAL, 4);
      grid_decode(g, key, 0, WORKERS, offset, sums.data(), agreed.data(), n, out.floats(), round % 2, 0.2f, 0.5f, isa);
      require_same_values(values, out, n, "sums decoded");
    }
  }
}

// The maths of homomorphic.h, which a device uses too, against the loops.
void scalar_maths() {
  const Key key{77, 1, 16, 3};
  for (int bits = 1; bits <= 8; ++bits) {
    const Grid g{bits, 512, bits % 2 == 0};
    std::vector<float> x(100), out(100);
    fill(x.data(), 100, NORMAL, static_cast<uint64_t>(bits));
    std::vector<uint8_t> scales(2), codes(integers_nbytes(100, bits));
    grid_scales(g, x.data(), 100, scales.data(), best_isa());
    grid_encode(g, key, 3, 4096, x.data(), 100, scales.data(), codes.data(), best_isa());
    grid_decode(g, key, 3, 1, 4096, codes.data(), scales.data(), 100, out.data(), false, 1.0f, 1.0f, best_isa());
    uint16_t scale;
    memcpy(&scale, scales.data(), 2);
    const float range = grid_range(scale), multiplier = grid_multiplier(range, bits);
    for (int64_t i = 0; i < 100; ++i) {
      const uint32_t at = static_cast<uint32_t>(i), row = at / 16;
      const auto word = [&](uint32_t purpose) {
        return rotate_left(lane_word(key, purpose, 4096 / 16, row / 4, at % 16), 8 * (row % 4));
      };
      const uint32_t dither = dither_of(worker_word(word(DITHER), word(DITHER_STRIDE), 3));
      const uint32_t code =
          (static_cast<uint32_t>(round_to_int(x[i] * multiplier)) + grid_half(bits) + dither) >> DITHER_BITS;
      require(code < 1u << bits, "a code is out of range");
      const float value = grid_sum(code, dither, bits, 1, g.subtract) * grid_half_step(range, bits);
      require(bits_of(value) == bits_of(out[i]), "grid_sum() is another");
    }
  }
}

Modulo some_modulo(Noise& noise) {
  const float step = 0.0005f + noise.unit() * 3.0f;
  return {1 + static_cast<int32_t>(noise.below(8)), step, noise.unit() / step, noise.unit()};
}

void modulo_paths(int rounds) {
  Noise noise{4};
  for (int round = 0; round < rounds; ++round) {
    const Modulo m = some_modulo(noise);
    const int64_t n = 1 + noise.below(noise.below(3) ? 700 : 9000), offset = BLOCK * noise.below(int64_t{1} << 24);
    const Key key{noise.next(), 1, 2, 3};
    std::vector<float> x(n), side(n), values;
    fill(x.data(), n, static_cast<Kind>(noise.below(KINDS)), noise.next());
    fill(side.data(), n, static_cast<Kind>(noise.below(KINDS)), noise.next());
    std::vector<uint8_t> bytes;
    for (Isa isa : available()) {
      Buffer coded(payload_nbytes(m, n), noise.below(4), 0x5A);
      modulo_encode(m, key, offset, x.data(), n, round % 3 ? 1.0f : 1.0f / 3, coded.data(), isa);
      require_same(bytes, coded, "modulo");
      require(invalid_block(m, coded.data(), n) == -1, "modulo: its own payload is invalid");
      Buffer out(4 * n, 0, 0);
      fill(out.floats(), n, NORMAL, 4);
      modulo_decode(m, key, offset, bytes.data(), side.data(), n, out.floats(), round % 2, 1.0f, 0.5f, isa);
      require_same_values(values, out, n, "modulo decoded");
    }
  }
}

void hostile_bytes(int rounds) {
  Noise noise{5};
  for (int round = 0; round < rounds; ++round) {
    const Grid g{1 + static_cast<int32_t>(noise.below(8)), 512 << noise.below(4), noise.below(2) == 0};
    const Modulo m = some_modulo(noise);
    const int64_t n = 1 + noise.below(noise.below(3) ? 700 : 9000), workers = 1 + noise.below(256);
    const auto random = [&](Buffer& buffer) {
      for (int64_t i = 0; i < buffer.size(); ++i) buffer.data()[i] = static_cast<uint8_t>(noise.next());
    };
    Buffer scales(scales_nbytes(g, n), noise.below(4), 0), payload(payload_nbytes(m, n), noise.below(4), 0),
        sums(integers_nbytes(n, sum_width(g.bits, workers)), noise.below(4), 0), side(4 * n, 0, 0);
    for (Buffer* buffer : {&scales, &sums, &payload, &side}) random(*buffer);
    for (Isa isa : available()) {
      Buffer out(4 * n, 0, 0);
      grid_decode(g, {1, 2, 3, 4}, 0, workers, 0, sums.data(), scales.data(), n, out.floats(), false, 0.25f, 0.5f, isa);
      out.check_guards("homomorphic: hostile bytes");
      modulo_decode(m, {1, 2, 3, 4}, 0, payload.data(), side.floats(), n, out.floats(), true, 0.25f, 0.5f, isa);
      out.check_guards("modulo: hostile bytes");
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 40;
  homomorphic_paths(rounds);
  scalar_maths();
  modulo_paths(rounds);
  hostile_bytes(rounds);
  std::fprintf(stderr, "test_dithered: passed, %d rounds\n", rounds);
}
