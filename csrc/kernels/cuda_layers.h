// A launch works through a table of layers, each with its own codec, in blocks of up to 4096 coordinates.
#pragma once
#include "cuda_device.h"
#include "cuda_job.h"

namespace commpress {
namespace cuda {

// One block: n coordinates from `first` of the values on, `byte` bytes into the payload. `index` counts from the start
// of the layer's tensor.
struct Place {
  Codec codec;
  Key key;
  int64_t first, byte, index;
  int n;
};

// Bytes of a layer's payload before its block number `block`.
COMMPRESS_DEVICE int64_t bytes_before(const Codec& codec, int64_t offset, int64_t block) {
  if (codec.family == RAW) return 4 * BLOCK * block;
  if (codec.family <= CAST_BF16) return 2 * BLOCK * block;
  const int bits = codec.rate / static_cast<int>(RATE_ONE);
  if (bits > 0 && codec.rate % static_cast<int>(RATE_ONE) == 0)  // no division of 64-bit numbers
    return block * ((codec.family == UNIFORM ? 2 * BLOCK / GROUP : 4) + bits * BLOCK / 8);
  return blocks_nbytes(codec, offset / BLOCK, block);
}

COMMPRESS_DEVICE Place place_of(const Job& job, int64_t unit) {
  Layer layer = job.single;  // a copy: a reference would put the parameters into memory
  if (job.layers) layer = job.layers[job.layer_of_unit[unit]];
  Place place;
  place.codec = {static_cast<int32_t>(layer.family), static_cast<int32_t>(layer.rate), layer.centroid != 0};
  place.key = job.key;
  place.key.tensor += static_cast<uint32_t>(layer.tensor);
  if (job.step) place.key.step += static_cast<uint32_t>(*job.step);
  const int64_t block = unit - layer.unit, start = block * BLOCK;
  place.n = static_cast<int>(layer.numel - start < BLOCK ? layer.numel - start : BLOCK);
  place.index = layer.offset + start;
  place.first = layer.first + start;
  place.byte = layer.byte + bytes_before(place.codec, layer.offset, block);
  return place;
}

// Bits of each of the groups of a block, and where their bytes begin; `scale_nbytes` is paid per group.
struct Groups {
  int bits[BLOCK / GROUP];
  int byte[BLOCK / GROUP + 1];
};

// Filled by the first threads of a block; a barrier must follow.
COMMPRESS_DEVICE void fill_groups(Groups& groups, int32_t rate, int64_t index, int scale_nbytes) {
  const int count = static_cast<int>(BLOCK / GROUP), t = thread();
  if (t >= 32) return;
  const int bits = t < count ? group_bits(rate, index + GROUP * t) : 0;
  int bytes = t < count ? scale_nbytes + 64 * bits : 0;
  COMMPRESS_UNROLL_ALL
  for (int step = 1; step < count; step *= 2) {
    const int before = __shfl_up_sync(ALL_LANES, bytes, step);
    if (t >= step) bytes += before;
  }
  if (t < count) {
    groups.bits[t] = bits;
    groups.byte[t + 1] = bytes;
  }
  if (t == 0) groups.byte[0] = 0;
}

}  // namespace cuda
}  // namespace commpress
