// The decoder of the entropy-coded quantisers against the CPU path, to the bit: rates, trellises, sizes, substreams,
// segments, magnitudes, alignments, several senders, tables of layers; and payloads that no encoder writes.
//   test_entropy [SEED [ORDER [BLOCKS_IN_FLIGHT [PARTS]]]]
// ORDER: 0 in order, 1 reversed, 2 random. PARTS: every how many-th case is run, 1 for all.
#include <memory>

#include "entropy_inputs.h"
#include "simt/engine.h"

namespace {

using Header = std::unique_ptr<EcsqHeader, EcsqHeaderDeleter>;

// Encodes for several senders on the CPU, decodes their sum, and compares it with the CPU path's.
void check(const Bucket& bucket, Kind kind, int64_t way, int senders, const std::string& what, Noise& noise) {
  const float gains[] = {1.0f, 0.25f + noise.unit(), 0x1p-110f, 0x1p105f, 0x1p-148f};
  const float gain = gains[noise.below(4) ? noise.below(2) : noise.below(5)];
  const float beta = noise.below(2) ? 1.0f : noise.unit();
  const bool accumulate = noise.below(2);
  Key key = key_of(noise);
  std::vector<std::unique_ptr<Buffer>> sent;
  cuda::Sources sources{};
  Buffer sum(4 * bucket.numel, 4 * noise.below(4), 0), known(4 * bucket.numel, 0, 0);
  const std::vector<float> before = values(NORMAL, bucket.numel, noise);
  std::memcpy(sum.data(), before.data(), 4 * bucket.numel);
  std::memcpy(known.data(), before.data(), 4 * bucket.numel);
  for (int sender = 0; sender < senders; ++sender) {
    std::vector<float> x = values(kind, bucket.numel, noise);
    spoil(x, way, noise);
    key.sender_phase = static_cast<uint32_t>(sender + 3) << 8 | 16;
    sources.sender_phase[sender] = key.sender_phase;
    sent.push_back(std::make_unique<Buffer>(bucket.nbytes, noise.below(17), 0xCD));
    Buffer& payload = *sent.back();
    bucket.each(key, [&](const EcsqCodec& codec, const Key& own, const cuda::Layer& layer) {
      uint8_t* const at = payload.data() + layer.byte;
      ecsq_encode(codec, own, layer.offset, x.data() + layer.first, layer.numel, 1.0f, at, Isa::PLAIN);
      const Header header(ecsq_open(codec, at, layer.numel));
      require(header != nullptr, what + ": the CPU's own");
      ecsq_decode(*header, 0, ecsq_substreams(*header), own, layer.offset, known.floats() + layer.first,
                  accumulate || sender > 0, gain, sender ? 1.0f : beta, Isa::PLAIN);
    });
    sources.payload[sender] = payload.data();
  }
  sources.count = senders;
  sources.position = static_cast<int32_t>(noise.below(9));
  cuda::Report report{0, 0};
  key.sender_phase = 0;
  require(cuda::decode(bucket.job(key), cuda::family_bit(cuda::ENTROPY), sources, sum.floats(),
                       {accumulate, gain, beta}, &report, QUEUE) == 0,
          what + ": launch");
  sum.check_guards(what);
  same(sum.floats(), known.floats(), bucket.numel, what + ", sum");
  bool overflow = false;
  for (int64_t i = 0; i < bucket.numel; ++i) overflow = overflow || !(bits_of(known.floats()[i]) << 1 < 0xFF000000u);
  require(report.invalid == 0, what + ": a payload of its own is called invalid");
  require((report.non_finite != 0) == overflow, what + ": finiteness");
}

void single_layers(Run& run) {
  const int64_t sizes[] = {1, 31, 513, 4097, 10000, 20021};
  for (int64_t kind = 0; kind < 3; ++kind)
    for (int32_t rate : RATES)
      for (int64_t n : sizes)
        for (int64_t way = 0; way < 4; ++way) {
          if (!run.next()) continue;
          Noise noise{run.seed + static_cast<uint64_t>(run.number)};
          const EcsqCodec codec = codec_of(kind, rate, noise);
          const Kind values = static_cast<Kind>(way ? int64_t{NORMAL} : noise.below(KINDS));
          Bucket bucket;
          bucket.add(codec, BLOCK * noise.below(1000), n);
          check(bucket, values, way, 1 + static_cast<int>(noise.below(3)),
                name_of(codec, n) + ", " + KIND_NAMES[values] + " " + std::to_string(way), noise);
        }
}

// Thirty-two lanes, two substreams and more, and segments: a payload that begins shortly before a border between them.
void long_layers(Run& run) {
  struct Case {
    int64_t kind;
    int32_t rate;
    int64_t offset, n;
  };
  const int64_t border = ECSQ_SEGMENT;
  const Case cases[] = {{0, 8000000, 0, 140000},
                        {1, 8000000, 4096, 140000},
                        {2, 8000000, 0, 140000},
                        {0, 4000000, 0, 70001},
                        {1, 5000000, 0, 70001},
                        {2, 2000000, 0, 70001},
                        {0, 3000000, 8192, 360000},
                        {2, 6000000, 0, 200003},
                        {1, 6000000, 0, 290003},
                        {0, 2000000, border - 4096, 9001},
                        {2, 6000000, border - 16384, 30000},
                        {1, 8000000, border - 20480, 170001}};
  for (const Case& one : cases)
    for (int64_t way = 0; way < 4; ++way) {
      if (!run.next()) continue;
      Noise noise{run.seed + static_cast<uint64_t>(run.number)};
      const EcsqCodec codec = codec_of(one.kind, one.rate, noise);
      Bucket bucket;
      bucket.add(codec, one.offset, one.n);
      check(bucket, NORMAL, way, 1 + static_cast<int>(noise.below(2)), "long " + name_of(codec, one.n), noise);
    }
}

// Layers of several codecs, more substreams than blocks of threads.
void tables(Run& run) {
  for (int table = 0; table < 12; ++table) {
    if (!run.next()) continue;
    Noise noise{run.seed + static_cast<uint64_t>(run.number)};
    Bucket bucket;
    while (bucket.units < 12)
      bucket.add(any_codec(noise), BLOCK * noise.below(9), 1 + noise.below(9000), noise.below(99));
    const Kind kinds[] = {NORMAL, MIXED, HEAVY, NOT_FINITE};
    check(bucket, kinds[noise.below(4)], noise.below(4), 1 + static_cast<int>(noise.below(4)),
          "table " + std::to_string(table), noise);
  }
}

// Any bytes, and an encoder's of which some are others: the values of the CPU path, and the same verdict.
void hostile(Run& run) {
  for (int attempt = 0; attempt < 500; ++attempt) {
    if (!run.next()) continue;
    Noise noise{run.seed + static_cast<uint64_t>(run.number)};
    EcsqCodec codec = any_codec(noise);
    int64_t n = 1 + noise.below(20000);
    if (noise.below(3) == 0) {  // two to four substreams
      codec = codec_of(noise.below(3), noise.below(2) ? 8000000 : 5000000, noise);
      codec.substream = ECSQ_LEAST_SUBSTREAM;
      n = 33000 + noise.below(30000);
    }
    Bucket bucket;
    bucket.add(codec, 0, n);
    Key key = key_of(noise);
    Buffer bytes(bucket.nbytes, noise.below(5), 0);
    std::vector<float> x = values(NORMAL, n, noise);
    spoil(x, noise.below(4), noise);
    ecsq_encode(codec, key, 0, x.data(), n, 1.0f, bytes.data(), Isa::PLAIN);
    const int64_t way = noise.below(9), header = noise.below(2) ? 30 : std::min<int64_t>(bucket.nbytes, 160);
    if (way == 0) {  // the header
      bytes.data()[noise.below(header)] ^= static_cast<uint8_t>(1u << noise.below(8));
    } else if (way == 1) {
      bytes.data()[noise.below(header)] = static_cast<uint8_t>(noise.below(2) ? 255 : noise.below(256));
    } else if (way == 6) {  // the last escape, whose highest byte is not zero
      uint32_t at;
      std::memcpy(&at, bytes.data() + 14, 4);
      if (bytes.data()[0] % 2 == 1 && at < bucket.nbytes) {
        while (at > 20 && bytes.data()[at - 1] == 0) --at;
        bytes.data()[at - 1] = static_cast<uint8_t>(noise.below(2) ? 0x7F : 0x72);
      }
    } else if (way == 8) {  // an entry of a substream, or of what stands there
      const int classes = bytes.data()[7];
      int64_t at = ecsq_header_nbytes(codec) + (classes + 7) / 8;
      for (int k = 0; k < std::min(classes, 56); ++k)
        at += (bytes.data()[ecsq_header_nbytes(codec) + k / 8] >> k % 8 & 1) * ecsq_class_nbytes(codec);
      at += 4 * noise.below(4);
      if (at + 4 <= bucket.nbytes) {
        uint32_t number;
        std::memcpy(&number, bytes.data() + at, 4);
        number += static_cast<uint32_t>(noise.below(noise.below(2) ? 8 : 200)) - 3;
        std::memcpy(bytes.data() + at, &number, 4);
      }
    } else if (way == 7) {  // the number of escapes, and where the first stream begins
      uint32_t number;
      uint8_t* const field = bytes.data() + (noise.below(2) ? 10 : 14);
      std::memcpy(&number, field, 4);
      number += static_cast<uint32_t>(noise.below(2) ? noise.below(20) - 10 : noise.below(4000) - 2000);
      std::memcpy(field, &number, 4);
    } else if (way == 2) {  // the other kind of segment
      bytes.data()[0] = static_cast<uint8_t>(noise.below(5));
    } else {
      const int64_t from = way == 5 ? bucket.nbytes / 3 : noise.below(2) ? 22 : std::min<int64_t>(60, bucket.nbytes);
      for (int64_t i = from; i < bucket.nbytes; ++i)
        if (way == 3 || noise.below(way == 4 ? 60 : 2000) == 0)
          bytes.data()[i] = static_cast<uint8_t>(noise.below(2) ? 255 : noise.below(256));
    }
    const std::string what = "any bytes, attempt " + std::to_string(attempt) + ", " + name_of(codec, n);
    cuda::Sources sources{};
    sources.count = 1;
    sources.position = 6;
    sources.payload[0] = bytes.data();
    sources.sender_phase[0] = key.sender_phase;
    std::vector<float> known(n);
    const Header opened(ecsq_open(codec, bytes.data(), n));
    if (opened) ecsq_decode(*opened, 0, ecsq_substreams(*opened), key, 0, known.data(), false, 1.5f, 1.0f, Isa::PLAIN);
    Buffer out(4 * n, 0, 0xCD);
    cuda::Report report{0, 0};
    cuda::decode(bucket.job(key), cuda::family_bit(cuda::ENTROPY), sources, out.floats(), {false, 1.5f, 1.0f}, &report,
                 QUEUE);
    out.check_guards(what);
    require(report.invalid == (opened ? 0 : 7), what + ": verdict " + std::to_string(report.invalid));
    if (opened) same(out.floats(), known.data(), n, what);
  }
}

}  // namespace

int main(int count, char** arguments) {
  const auto number = [&](int i, int64_t otherwise) { return i < count ? std::atoll(arguments[i]) : otherwise; };
  const uint64_t seed = static_cast<uint64_t>(number(1, 1));
  const simt::Order orders[] = {simt::Order::IN_ORDER, simt::Order::REVERSED, simt::Order::RANDOM};
  simt::set_schedule({orders[number(2, 0)], static_cast<unsigned>(seed), static_cast<unsigned>(number(3, 1)),
                      static_cast<uint8_t>(seed % 2 ? 0xA5 : 0)});
  Run run{seed, number(4, 1)};
  single_layers(run);
  long_layers(run);
  Run often{seed, (run.parts + 3) / 4};
  tables(often);
  hostile(often);
  std::printf("passed\n");
}
