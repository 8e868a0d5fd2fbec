// The number formats and classic quantisers: every path gives the same bytes and values, sizes are exact, and decoders
// survive any bytes.
#include "formats_kernels.h"
#include "support.h"

using namespace commpress;
using namespace test;

namespace {

std::vector<Format> formats() {
  std::vector<Format> all;
  for (bool stochastic : {false, true}) {
    for (int exponent = 1; exponent <= 8; ++exponent)
      for (int mantissa : {0, 1, 2, 3, 7, 10, 23})
        for (int block : {0, 16, 32, 512, 4096})
          if ((exponent < 8 || block == 0) && (exponent + mantissa >= 2 || block != 0))
            all.push_back({FLOAT, exponent, mantissa, 0, block, stochastic, false, false, mantissa == 3});
    all.push_back({NVFP4, 2, 1, 0, 16, stochastic, false, false, false});
    for (int levels : {1, 3, 100, 127, 32767})
      for (int block : {16, 512, 4096})
        all.push_back({LEVELS, 0, 0, levels, block, stochastic, block == 512, levels == 1 && block != 16, false});
  }
  for (int block : {0, 16, 4096}) all.push_back({SIGN, 0, 0, 0, block, false, false, false, false});
  for (int block : {16, 4096}) all.push_back({TWO_MEANS, 0, 0, 0, block, false, false, false, false});
  return all;
}

std::string name_of(const Format& f) {
  char text[100];
  std::snprintf(text, sizeof text, "scheme %d e%dm%d levels %d block %d%s", f.scheme, f.exponent, f.mantissa, f.levels,
                f.block, f.stochastic ? " stochastic" : "");
  return text;
}

void sizes() {
  for (const Format& f : formats()) {
    require(payload_nbytes(f, 0) == 0, name_of(f) + ": nothing has a size");
    const int64_t n = int64_t{1} << 40;
    require(payload_nbytes(f, 3 * n + 77) == 3 * payload_nbytes(f, n) + payload_nbytes(f, 77),
            name_of(f) + ": sizes do not add up");
  }
}

void paths_agree(int rounds) {
  Noise noise{3};
  for (const Format& f : formats()) {
    for (int round = 0; round < rounds; ++round) {
      const int64_t n = 1 + noise.below(noise.below(3) ? 700 : 9000), offset = BLOCK * noise.below(int64_t{1} << 24);
      const Key key{noise.next(), 1, 2, 3};
      const float gain = round % 3 ? 1.0f : 1.0f / 3;
      std::vector<float> x(n);
      fill(x.data(), n, static_cast<Kind>(noise.below(KINDS)), noise.next());
      std::vector<uint8_t> bytes;
      std::vector<float> values;
      for (Isa isa : available()) {
        Buffer coded(payload_nbytes(f, n), noise.below(4), 0x5A);
        encode(f, key, offset, x.data(), n, gain, coded.data(), isa);
        coded.check_guards(name_of(f) + ": encode");
        require(invalid_block(f, coded.data(), n) == -1, name_of(f) + ": its own payload is invalid");
        if (bytes.empty()) bytes.assign(coded.data(), coded.data() + coded.size());
        require(memcmp(bytes.data(), coded.data(), bytes.size()) == 0, name_of(f) + ": paths differ");
        Buffer out(4 * n, 0, 0);
        fill(out.floats(), n, NORMAL, 4);
        decode(f, coded.data(), out.floats(), n, round % 2, 1.0f, 0.5f, isa);
        out.check_guards(name_of(f) + ": decode");
        if (values.empty()) values.assign(out.floats(), out.floats() + n);
        for (int64_t i = 0; i < n; ++i) {
          const float a = values[i], b = out.floats()[i];
          require(bits_of(a) == bits_of(b) || (a != a && b != b), name_of(f) + ": paths decode differently");
          const bool finite = (bits_of(x[i]) & 0x7FFFFFFFu) < FLOAT_INFINITY;
          require(finite || !((bits_of(b) & 0x7FFFFFFFu) < FLOAT_INFINITY), name_of(f) + ": a NaN was lost");
        }
      }
    }
  }
}

// The maths of formats.h, which a device uses too, against the loops.
void scalar_maths() {
  Noise noise{4};
  for (const Format& f : formats()) {
    if (f.scheme != FLOAT || f.block != 0) continue;
    const FloatForm form = float_form(f);
    const Key key{noise.next(), 1, 2, 3};
    std::vector<float> x(GROUP);
    for (float& value : x) {
      value = float_of(static_cast<uint32_t>(noise.next()));
      if (!((bits_of(value) & 0x7FFFFFFFu) < FLOAT_INFINITY)) value = 0.0f;
    }
    std::vector<uint8_t> coded(payload_nbytes(f, 500));
    std::vector<float> out(500);
    encode(f, key, 0, x.data(), 500, 1.0f, coded.data(), best_isa());
    decode(f, coded.data(), out.data(), 500, false, 1.0f, 1.0f, best_isa());
    for (int64_t i = 0; i < 500; ++i) {
      const uint32_t code = float_code(x[i], form, f.stochastic, rounding_word(key, static_cast<uint64_t>(i))),
                     sign = 1u << (form.bits - 1);
      const float value = float_magnitude(code & (sign - 1), form);
      require(bits_of(code & sign ? -value : value) == bits_of(out[i]), name_of(f) + ": float_code() is another");
    }
  }
}

void scalar_scales_and_levels() {
  Noise noise{6};
  for (const Format& f : formats()) {
    const bool floats = f.scheme == FLOAT && f.block != 0;
    if (!floats && (f.scheme != LEVELS || f.trits)) continue;
    std::vector<float> x(16), out(16);
    fill(x.data(), 16, WIDE, noise.next());
    std::vector<uint8_t> coded(payload_nbytes(f, 16));
    encode(f, {1, 2, 3, 4}, 0, x.data(), 16, 1.0f, coded.data(), best_isa());
    decode(f, coded.data(), out.data(), 16, false, 1.0f, 1.0f, best_isa());
    float largest = 0.0f, step;
    for (float v : x) largest = v > largest ? v : -v > largest ? -v : largest;
    if (floats) {
      const FloatForm form = float_form(f);
      require(coded[0] == float_scale(bits_of(largest), scale_round_up(f, form), form), name_of(f) + ": float_scale()");
    } else {
      memcpy(&step, coded.data(), 4);
      const uint32_t code = (coded[4] | coded[5] << 8 | coded[6] << 16) & ((1u << code_bits(f)) - 1);
      require(bits_of(level_value(code, f.levels, step)) == bits_of(out[0]), name_of(f) + ": level_value()");
    }
  }
}

void hostile_bytes(int rounds) {
  Noise noise{5};
  int64_t valid = 0, invalid = 0;
  for (const Format& f : formats()) {
    for (int round = 0; round < rounds; ++round) {
      const int64_t n = 1 + noise.below(noise.below(3) ? 700 : 9000);
      Buffer coded(payload_nbytes(f, n), noise.below(4), 0);
      for (int64_t i = 0; i < coded.size(); ++i)
        coded.data()[i] = round % 3 ? static_cast<uint8_t>(noise.next()) : static_cast<uint8_t>(noise.below(3) * 63);
      (invalid_block(f, coded.data(), n) == -1 ? valid : invalid) += 1;
      for (Isa isa : available()) {
        Buffer out(4 * n, 0, 0);
        decode(f, coded.data(), out.floats(), n, false, 0.25f, 0.5f, isa);
        out.check_guards(name_of(f) + ": hostile bytes");
      }
    }
  }
  require(valid > 0 && invalid > 0, "the noise was all valid or all invalid");
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 40;
  sizes();
  paths_agree(rounds / 4 + 1);
  scalar_maths();
  scalar_scales_and_levels();
  hostile_bytes(rounds / 8 + 1);
  std::fprintf(stderr, "test_formats: passed, %d rounds\n", rounds);
}
