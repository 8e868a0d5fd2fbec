// The encoder of the entropy-coded quantisers, run by the emulator in place of a GPU.
#include "entropy_encoder_emulated.h"

#include "cuda_encode_entropy.h"

namespace commpress {
namespace cuda {

int encode_entropy(const Job& job, const Gradient& x, float gain, uint8_t* out, const Scratch& scratch,
                   const Queue& queue) {
  launch_encode_entropy(job, x, gain, out, scratch, queue);
  return 0;
}

bool streams_fit(const std::vector<uint32_t>& streams, const std::vector<uint32_t>& escaped, uint32_t body,
                 uint32_t nbytes) {
  const int substreams = static_cast<int>(streams.size()),
            blocks = substreams * static_cast<int>(ECSQ_SUBSTREAM_BLOCKS);
  const EcsqCodec codec{8000000, false, false, false, 0, ECSQ_LEAST_SUBSTREAM};
  std::vector<uint32_t> words(EntropyScratch(codec, blocks * ECSQ_BLOCK).end);
  std::vector<uint8_t> out(nbytes);
  int fitting = 0;
  int* const found = &fitting;
  const uint32_t *const nbytes_of = streams.data(), *const escapes_of = escaped.data();
  uint32_t* const memory = words.data();
  uint8_t* const to = out.data();
  simt::launch(1, ENCODER_THREADS, [=] {
    COMMPRESS_SHARED(EncoderSpace, shared, 1);
    EncoderSpace& s = shared[0];
    if (thread() == 0) {
      Layer layer{};
      layer.rate = packed_entropy(codec.rate, false, false, 0);
      layer.numel = blocks * ECSQ_BLOCK;
      layer.block_nbytes = codec.substream;
      begin_segment(s, layer, Key{}, 1.0f, to, memory);
      s.substreams = substreams;
      s.each = static_cast<int>(ECSQ_SUBSTREAM_BLOCKS);
      s.nbytes = nbytes;
      for (int i = 0; i < substreams; ++i) {
        s.memory.streams_nbytes[i] = nbytes_of[i];
        s.memory.escaped[i] = escapes_of[i];
      }
    }
    __syncthreads();
    if (place_streams(s, s.memory, body, 0, to)) atomicAdd(found, 1);
  });
  return fitting == ENCODER_THREADS;
}

}  // namespace cuda
}  // namespace commpress
