// Encodes and decodes fixed inputs through every code path of this machine, checks that all give the same bytes, and
// prints a checksum for each codec and kind of input. The text must equal tests/golden/kernels.txt on every machine.
// With an argument N only every N-th case runs, for builds that are slow; the text is then another.
#include "support.h"

using namespace commpress;
using namespace test;

namespace {

struct Case {
  int64_t numel, offset;
  float gain, beta;
};
// Every branch of the block and group structure, full vectors and tails, and offsets whose counters pass 2^32.
const Case CASES[] = {
    {1, 0, 1.0f, 1.0f},           {2, 0, 0.5f, 1.0f},        {15, 4096, 1.0f, 0.5f},     {16, 0, 1.0f, 1.0f},
    {17, 0, 0.25f, 1.0f},         {127, 0, 1.0f, 1.0f},      {128, 8192, 1.0f, 1.0f},    {129, 0, 1.0f / 3, 1.0f},
    {255, 0, 1.0f, 1.0f},         {384, 0, 1.0f, 1.0f},      {511, 0, 1.0f, 1.0f},       {512, 0, 1.0f, 1.0f},
    {513, 0, 1.0f, 1.0f / 3},     {1000, 4096, 1.0f, 1.0f},  {2047, 0, 1.0f, 1.0f},      {4095, 0, 1.0f, 1.0f},
    {4096, 0, 1.0f / 7, 1.0f},    {4097, 0, 1.0f, 1.0f},     {8192, 28672, 1.0f, 0.25f}, {12345, 0, 1.0f, 1.0f},
    {6000, 68719476736, 3.0f, 1}, {9000, 12288, 1.0f, 1.0f},
};

std::string describe(const Codec& codec, Kind kind, const Case& c, Isa isa) {
  char text[200];
  std::snprintf(text, sizeof text, "%s %s numel=%" PRId64 " offset=%" PRId64 " %s", name_of(codec).c_str(),
                KIND_NAME[kind], c.numel, c.offset, ISA_NAME[static_cast<int>(isa)]);
  return text;
}

bool any_non_finite(const std::vector<float>& x) {
  for (float value : x)
    if (!(value - value == 0.0f)) return true;
  return false;
}

void run_case(const Codec& codec, Kind kind, int number, const std::vector<Isa>& isas, Checksum& bytes_sum,
              Checksum& value_sum) {
  const Case& c = CASES[number];
  const Payload payload{codec, {0x0123456789ABCDEFu + number, 7, 3u << 8 | 1u << 4, 11}, c.offset, c.numel};
  const int64_t nbytes = payload_nbytes(codec, c.offset, c.numel);
  std::vector<uint8_t> reference;
  std::vector<float> reference_values, reference_sums, given(c.numel), held(c.numel);
  fill(given.data(), c.numel, kind, static_cast<uint64_t>(number));
  fill(held.data(), c.numel, NORMAL, 99);
  for (Isa isa : isas) {
    const std::string what = describe(codec, kind, c, isa);
    Buffer x(4 * c.numel, 4 * (number % 3), 0), coded(nbytes, number % 5, 0xCD), again(nbytes, 0, 0x32);
    memcpy(x.data(), given.data(), x.size());
    encode(payload, x.floats(), c.gain, coded.data(), isa);
    encode(payload, x.floats(), c.gain, again.data(), isa);
    require(memcmp(given.data(), x.data(), x.size()) == 0, what + ": the input changed");
    require(memcmp(coded.data(), again.data(), nbytes) == 0,
            what + ": not every byte is written, or not always the same");
    coded.check_guards(what);
    const Findings findings = inspect(payload, coded.data());
    require(findings.invalid_block == -1, what + ": the encoder's own payload is called invalid");
    if (codec.family > CAST_BF16)
      require(findings.non_finite == any_non_finite(given),
              what + ": a NaN or an infinity got lost, or came from nowhere");

    Buffer values(4 * c.numel, 4 * (number % 4), 0xFF), sums(4 * c.numel, 0, 0);
    decode(payload, coded.data(), values.floats(), false, 0.5f, 0.0f, isa);
    memcpy(sums.data(), held.data(), sums.size());
    decode(payload, coded.data(), sums.floats(), true, 1.0f, c.beta, isa);
    values.check_guards(what + " decode");
    sums.check_guards(what + " decode and accumulate");

    // A payload is its pieces' payloads, one behind the other.
    const int64_t first = c.numel / 2 / BLOCK * BLOCK;
    if (first > 0) {
      const Payload head{codec, payload.key, c.offset, first},
          tail{codec, payload.key, c.offset + first, c.numel - first};
      const int64_t head_nbytes = payload_nbytes(codec, head.offset, head.numel),
                    tail_nbytes = payload_nbytes(codec, tail.offset, tail.numel);
      require(head_nbytes + tail_nbytes == nbytes, what + ": the pieces' sizes do not add up");
      std::vector<uint8_t> pieces(nbytes);
      encode(head, x.floats(), c.gain, pieces.data(), isa);
      encode(tail, x.floats() + first, c.gain, pieces.data() + head_nbytes, isa);
      require(memcmp(pieces.data(), coded.data(), nbytes) == 0, what + ": the pieces differ from the whole");
    }
    if (isa == isas.front()) {
      reference.assign(coded.data(), coded.data() + nbytes);
      reference_values.assign(values.floats(), values.floats() + c.numel);
      reference_sums.assign(sums.floats(), sums.floats() + c.numel);
      bytes_sum.bytes(coded.data(), nbytes);
      value_sum.floats(values.floats(), c.numel);
      value_sum.floats(sums.floats(), c.numel);
    } else {
      require(memcmp(reference.data(), coded.data(), nbytes) == 0,
              what + ": other bytes than " + ISA_NAME[static_cast<int>(isas.front())]);
      for (int64_t i = 0; i < c.numel; ++i) {
        const auto same = [](float a, float b) { return bits_of(a) == bits_of(b) || (a != a && b != b); };
        require(same(reference_values[i], values.floats()[i]) && same(reference_sums[i], sums.floats()[i]),
                what + ": other values than " + ISA_NAME[static_cast<int>(isas.front())]);
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int stride = argc > 1 ? std::atoi(argv[1]) : 1;
  const std::vector<Isa> isas = available();
  int64_t count = 0;
  for (const Codec& codec : codecs()) {
    for (int kind = 0; kind < KINDS; ++kind) {
      Checksum bytes_sum, value_sum;
      for (int number = kind % stride; number < static_cast<int>(sizeof CASES / sizeof *CASES);
           number += stride, ++count)
        run_case(codec, static_cast<Kind>(kind), number, isas, bytes_sum, value_sum);
      std::printf("%-40s %-10s %016" PRIx64 " %016" PRIx64 "\n", name_of(codec).c_str(), KIND_NAME[kind],
                  bytes_sum.value, value_sum.value);
    }
  }
  std::fprintf(stderr, "test_golden: %" PRId64 " cases, paths:", count);
  for (Isa isa : isas) std::fprintf(stderr, " %s", ISA_NAME[static_cast<int>(isa)]);
  std::fprintf(stderr, "\n");
}
