// The sparsifiers: the same bytes on every path (checksums on standard output), the k largest against sorting, and
// decoders that survive any bytes.
#include "sparse.h"

#include <algorithm>

#include "support.h"

using namespace commpress;
using namespace test;

namespace {

const SparseCodec CODECS[] = {
    {TOPK, 10000, 4, false, 65536},  {TOPK, 10000, 1, false, 4096},   {TOPK, 100000, 32, false, 65536},
    {TOPK, 30000, 16, false, 8192},  {TOPK, 500000, 8, false, 65536}, {TOPK, 1, 2, false, 65536},
    {TOPK, 1000000, 3, false, 4096}, {RANDK, 10000, 32, true, 65536}, {RANDK, 100000, 4, true, 65536},
    {RANDK, 300000, 16, true, 4096}, {RANDK, 50000, 2, false, 8192},  {RANDK, 1000000, 16, false, 4096},
};

std::string name_of(const SparseCodec& codec) {
  char text[80];
  std::snprintf(text, sizeof text, "%s:%d,bits=%d,scaled=%d,block=%" PRId64, codec.kind == TOPK ? "topk" : "randk",
                codec.fraction, codec.bits, codec.scaled, codec.block);
  return text;
}

int64_t size_of(const SparsePayload& p) {
  return sparse_payload_nbytes(p.codec, gap_cost(p.codec.fraction), p.offset, p.numel);
}

void same_on_every_path() {
  for (const SparseCodec& codec : CODECS) {
    Checksum sum;
    int64_t bytes = 0;
    for (int64_t numel : {1, 17, 4097, 70001}) {
      for (int kind = 0; kind < KINDS; ++kind) {
        const SparsePayload p{codec, {7, 1, 2 << 8, 3}, codec.block * 5, numel};
        std::vector<float> x(numel);
        fill(x.data(), numel, static_cast<Kind>(kind), 11);
        const int64_t nbytes = size_of(p);
        std::vector<uint8_t> first;
        for (Isa isa : available()) {
          Buffer coded(nbytes, 1, 0x5A), out(4 * numel, 0, 0x5A);
          sparse_encode(p, x.data(), 0.5f, coded.data(), isa);
          coded.check_guards(name_of(codec) + ": encode");
          require(sparse_inspect(p, coded.data()) == -1, name_of(codec) + ": its own payload is refused");
          sparse_decode(p, coded.data(), out.floats(), false, 1.0f, 1.0f, isa);
          out.check_guards(name_of(codec) + ": decode");
          if (first.empty()) {
            first.assign(coded.data(), coded.data() + nbytes);
            sum.bytes(coded.data(), nbytes);
            sum.floats(out.floats(), numel);
            bytes += nbytes;
          }
          require(std::equal(first.begin(), first.end(), coded.data()), name_of(codec) + ": paths differ");
        }
      }
    }
    std::printf("%s bytes=%" PRId64 " %016" PRIx64 "\n", name_of(codec).c_str(), bytes, sum.value);
  }
}

void largest_against_sorting() {
  const int64_t n = 65536;
  const SparseCodec codec{TOPK, 20000, 32, false, n};
  for (int kind = 0; kind < KINDS; ++kind) {
    const SparsePayload p{codec, {1, 2, 3 << 8, 4}, 0, n};
    std::vector<float> x(n), out(n);
    fill(x.data(), n, static_cast<Kind>(kind), 5);
    std::vector<int64_t> order(n);
    for (int64_t i = 0; i < n; ++i) order[i] = i;
    const auto bits = [&](int64_t i) { return bits_of(x[i]) & 0x7FFFFFFFu; };
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return bits(a) > bits(b); });
    std::vector<float> expected(n, 0.0f);
    for (int64_t i = 0; i < sparse_kept(codec, 0, n); ++i)
      if (bits(order[i])) expected[order[i]] = x[order[i]];
    for (Isa isa : available()) {
      std::vector<uint8_t> coded(size_of(p));
      sparse_encode(p, x.data(), 1.0f, coded.data(), isa);
      sparse_decode(p, coded.data(), out.data(), false, 1.0f, 1.0f, isa);
      for (int64_t i = 0; i < n; ++i)
        require(bits_of(out[i]) == bits_of(expected[i]) || (out[i] != out[i] && expected[i] != expected[i]),
                std::string("not the largest of ") + KIND_NAME[kind]);
    }
  }
}

void hostile_bytes(int rounds) {
  Noise noise{3};
  int64_t valid = 0, invalid = 0;
  for (const SparseCodec& codec : CODECS) {
    for (int round = 0; round < rounds; ++round) {
      const int64_t numel = 1 + noise.below(noise.below(3) ? 900 : 9000);
      const SparsePayload p{codec, {noise.next(), 1, 2, 3}, codec.block * noise.below(1000), numel};
      const int64_t nbytes = size_of(p);
      Buffer coded(nbytes, noise.below(4), 0), out(4 * numel, 0, 0);
      if (round % 2) {  // a real payload with a few bits turned
        std::vector<float> x(numel);
        fill(x.data(), numel, static_cast<Kind>(noise.below(KINDS)), noise.next());
        sparse_encode(p, x.data(), 1.0f, coded.data(), best_isa());
        for (int k = 0; k < 3; ++k) coded.data()[noise.below(nbytes)] ^= static_cast<uint8_t>(1u << noise.below(8));
      } else {
        for (int64_t i = 0; i < nbytes; ++i) coded.data()[i] = static_cast<uint8_t>(noise.next());
        if (codec.kind == TOPK) {  // headers that may pass, positions that may not
          const uint32_t header[2] = {static_cast<uint32_t>(noise.below(1 + sparse_kept(codec, p.offset, numel))),
                                      0x42003F00u};
          memcpy(coded.data(), header, codec.bits <= 8 ? 8 : 4);
        }
      }
      (sparse_inspect(p, coded.data()) < 0 ? valid : invalid) += 1;
      for (bool accumulate : {false, true}) {
        fill(out.floats(), numel, NORMAL, 4);
        sparse_decode(p, coded.data(), out.floats(), accumulate, 0.25f, 0.5f, best_isa());
        out.check_guards(name_of(codec) + ": hostile bytes");
      }
    }
  }
  require(valid > 0 && invalid > 0, "the noise was all valid or all invalid");
}

}  // namespace

int main(int argc, char** argv) {
  same_on_every_path();
  largest_against_sorting();
  hostile_bytes(argc > 1 ? std::atoi(argv[1]) : 40);
  std::fprintf(stderr, "test_sparse: passed\n");
}
