// Self test of the emulator. `test_simt` runs what must work under several schedules, and the sound twin of every
// fault; `test_simt faults` lists the planted faults with the builds that must catch them; `test_simt fault NAME` runs
// one, and ends with 0 only if nothing caught it.
#include <cstring>

#include "faults.h"
#include "simt/simt.h"
#include "support.h"

using test::require;

namespace {

constexpr unsigned ALL = 0xFFFFFFFFu;

template <class T>
T lane_value(int lane) {
  return static_cast<T>(static_cast<T>(lane) * static_cast<T>(37.25) - static_cast<T>(11));
}

// ---- warps ----

template <class T>
__global__ void shuffles(T* out) {
  const int lane = threadIdx.x & 31;
  const T value = lane_value<T>(lane);
  for (int width = 32; width >= 1; width /= 2) {
    for (int k = 0; k < 32; ++k) {
      T* const row = out + ((31 - __clz(width)) * 32 + k) * 4 * 32 + lane;
      row[0] = __shfl_sync(ALL, value, k + lane, width);
      row[32] = __shfl_up_sync(ALL, value, k, width);
      row[64] = __shfl_down_sync(ALL, value, k, width);
      row[96] = __shfl_xor_sync(ALL, value, k, width);
    }
  }
}

template <class T>
void test_shuffles() {
  std::vector<T> out(6 * 32 * 4 * 32);
  simt::launch(1, 32, [&] { shuffles(out.data()); });
  for (int width = 32, log_width = 5; width >= 1; width /= 2, --log_width) {
    for (int k = 0; k < 32; ++k) {
      for (int lane = 0; lane < 32; ++lane) {
        const int first = lane / width * width, place = lane % width;
        const int sources[4] = {first + (k + lane) % width, place >= k ? lane - k : lane,
                                place + k < width ? lane + k : lane, (lane ^ k) < first + width ? lane ^ k : lane};
        for (int which = 0; which < 4; ++which)
          require(out[((log_width * 32 + k) * 4 + which) * 32 + lane] == lane_value<T>(sources[which]), "a shuffle");
      }
    }
  }
}

constexpr int VOTES = 16;

// Two unequal parts of a warp diverge and vote at different places.
__global__ void votes(const unsigned* in, unsigned* out) {
  const int rank = threadIdx.x;
  const unsigned value = in[rank], mask = rank % 32 < 20 ? 0x000FFFFFu : 0xFFF00000u;
  unsigned* const row = out + rank * VOTES;
  if (rank % 32 < 20) {
    row[0] = __ballot_sync(mask, value & 1);
    row[1] = __any_sync(mask, value % 16 == 0);
    row[2] = __all_sync(mask, value % 16 != 0);
  } else {
    row[0] = __ballot_sync(mask, value & 1);
    row[1] = __any_sync(mask, value % 16 == 0);
    row[2] = __all_sync(mask, value % 16 != 0);
  }
  row[3] = __match_any_sync(mask, value % 4);
  row[4] = __match_any_sync(mask, static_cast<unsigned long long>(value % 4) << 40);
  row[5] = __reduce_add_sync(mask, value);
  row[6] = __reduce_min_sync(mask, value);
  row[7] = __reduce_max_sync(mask, value);
  row[8] = __reduce_add_sync(mask, static_cast<int>(value));
  row[9] = __reduce_min_sync(mask, static_cast<int>(value));
  row[10] = __reduce_max_sync(mask, static_cast<int>(value));
  row[11] = __reduce_and_sync(mask, value | 0xF0u);
  row[12] = __reduce_or_sync(mask, value & 0x11111111u);
  row[13] = __reduce_xor_sync(mask, value);
  __syncwarp();
  row[14] = __shfl_sync(mask, value, rank % 32 < 20 ? 3 : 23);
  row[15] = __ballot_sync(ALL, 1);
}

void test_votes() {
  constexpr int THREADS = 96;
  test::Noise noise{5};
  std::vector<unsigned> in(THREADS), out(THREADS * VOTES);
  for (unsigned& value : in) value = static_cast<unsigned>(noise.next());
  simt::launch(1, THREADS, [&] { votes(in.data(), out.data()); });
  for (int rank = 0; rank < THREADS; ++rank) {
    const int warp = rank / 32 * 32, first = warp + (rank % 32 < 20 ? 0 : 20), end = warp + (rank % 32 < 20 ? 20 : 32);
    unsigned expected[VOTES] = {};
    expected[2] = 1;
    expected[6] = ALL;
    expected[9] = 0x7FFFFFFFu;
    expected[10] = 0x80000000u;
    expected[11] = ALL;
    for (int other = first; other < end; ++other) {
      const unsigned value = in[other], bit = 1u << (other - warp);
      const int signed_value = static_cast<int>(value);
      if (value & 1) expected[0] |= bit;
      if (value % 16 == 0) expected[1] = 1;
      if (value % 16 == 0) expected[2] = 0;
      if (value % 4 == in[rank] % 4) expected[3] |= bit;
      expected[5] += value;
      expected[6] = value < expected[6] ? value : expected[6];
      expected[7] = value > expected[7] ? value : expected[7];
      if (signed_value < static_cast<int>(expected[9])) expected[9] = value;
      if (signed_value > static_cast<int>(expected[10])) expected[10] = value;
      expected[11] &= value | 0xF0u;
      expected[12] |= value & 0x11111111u;
      expected[13] ^= value;
    }
    expected[4] = expected[3];
    expected[8] = expected[5];
    expected[14] = in[warp + (rank % 32 < 20 ? 3 : 23)];
    expected[15] = ALL;
    require(std::memcmp(expected, &out[rank * VOTES], sizeof(expected)) == 0, "a vote, match or reduction");
  }
}

// ---- blocks ----

struct Pair {
  float first;
  int second;
};

__device__ unsigned* scratch() {
  auto& words = simt::shared_array<unsigned, 256>([] {});
  return words;
}

template <int WHICH>
__device__ unsigned* scratch_of() {
  auto& words = simt::shared_array<unsigned, 4>([] {});
  return words;
}

__global__ void blocks(const float* in, float* out, int* counts, unsigned* places) {
  auto& values = simt::shared_array<float, 250>([] {});
  auto& pairs = simt::shared_array<Pair, 250>([] {});
  const int rank = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const int threads = blockDim.x * blockDim.y * blockDim.z;
  const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  values[rank] = in[block * threads + rank];
  pairs[rank] = {values[rank], rank};
  scratch()[rank] = block;
  for (int round = 0; round < 3; ++round) {
    __syncthreads();
    const Pair other = pairs[threads - 1 - rank];
    const float sum = values[threads - 1 - rank] + other.first;
    __syncthreads();
    values[rank] = sum;
    pairs[rank].first = sum;
  }
  counts[3 * (block * threads + rank)] = __syncthreads_count(rank % 3 == block % 3);
  counts[3 * (block * threads + rank) + 1] = __syncthreads_or(block == 1 && rank == threads - 1);
  counts[3 * (block * threads + rank) + 2] = __syncthreads_and(block != 1 || rank != 0);
  out[block * threads + rank] = values[rank];
  places[block * threads + rank] = scratch()[threads - 1 - rank] | (scratch_of<0>() == scratch_of<1>() ? 1u << 31 : 0);
}

void test_blocks() {
  for (const dim3 shape : {dim3(64), dim3(10, 5, 5), dim3(96, 2), dim3(1)}) {
    const dim3 grid(2, 1, 3);
    const int threads = shape.x * shape.y * shape.z, count = 6 * threads;
    std::vector<float> in(count), out(count);
    std::vector<int> counts(3 * count);
    std::vector<unsigned> places(count);
    for (int i = 0; i < count; ++i) in[i] = static_cast<float>(i);
    simt::launch(grid, shape, [&] { blocks(in.data(), out.data(), counts.data(), places.data()); });
    for (int block = 0; block < 6; ++block) {
      for (int rank = 0; rank < threads; ++rank) {
        const int i = block * threads + rank, mirrored = block * threads + threads - 1 - rank;
        require(out[i] == 8 * in[mirrored], "values over barriers");
        require(counts[3 * i] == (threads - block % 3 + 2) / 3, "__syncthreads_count");
        require((counts[3 * i + 1] != 0) == (block == 1), "__syncthreads_or");
        require((counts[3 * i + 2] != 0) == (block != 1), "__syncthreads_and");
        require(places[i] == static_cast<unsigned>(block), "shared arrays by their place in the source");
      }
    }
  }
}

__global__ void deep_stack(float* out) {
  volatile float local[40000];
  for (int i = 0; i < 40000; ++i) local[i] = static_cast<float>(i);
  __syncthreads();
  float sum = 0;
  for (int i = 0; i < 40000; i += 100) sum += local[i];
  out[threadIdx.x] = sum;
}

void test_deep_stack() {
  float out[64];
  simt::launch(1, 64, [&] { deep_stack(out); });
  for (float sum : out) require(sum == 100.0f * 399 * 400 / 2, "values on a thread's stack");
}

// ---- atomics ----

struct Counters {
  unsigned sum = 0, bits = 0, most = 0, least = ALL, parity = 0, kept = ALL, locked = 0, under_lock = 0, ticket = 0;
  int lowest = 0;
  float total = 0;
  unsigned long long wide = 0;
};

__global__ void atomics(Counters* counters, unsigned long long* chain) {
  const unsigned rank = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(&counters->sum, 1);
  atomicAdd(&counters->total, 0.5f);
  atomicAdd(&counters->wide, 1ull << 32);
  atomicOr(&counters->bits, 1u << (rank % 24));
  atomicAnd(&counters->kept, ~(1u << (rank % 24)));
  atomicXor(&counters->parity, rank);
  atomicMax(&counters->most, rank);
  atomicMin(&counters->least, rank + 7);
  atomicMin(&counters->lowest, -static_cast<int>(rank));
  if (threadIdx.x == 0) {
    while (atomicCAS(&counters->locked, 0u, 1u) != 0) __nanosleep(20);
    const unsigned before = __atomic_load_n(&counters->under_lock, __ATOMIC_RELAXED);
    __nanosleep(20);
    __atomic_store_n(&counters->under_lock, before + 1, __ATOMIC_RELAXED);
    atomicExch(&counters->locked, 0u);
    // Each block waits for the one that drew the ticket before.
    const unsigned ticket = atomicAdd(&counters->ticket, 1);
    if (ticket > 0)
      while (simt::load_acquire(&chain[ticket - 1]) == 0) __nanosleep(20);
    simt::store_release(&chain[ticket], ticket == 0 ? 1 : chain[ticket - 1] + 2);
  }
}

void test_atomics() {
  constexpr unsigned BLOCKS = 9, THREADS = 64, TOTAL = BLOCKS * THREADS;
  Counters counters;
  std::vector<unsigned long long> chain(BLOCKS);
  simt::launch(BLOCKS, THREADS, [&] { atomics(&counters, chain.data()); });
  unsigned parity = 0;
  for (unsigned rank = 0; rank < TOTAL; ++rank) parity ^= rank;
  require(counters.sum == TOTAL && counters.total == 0.5f * TOTAL && counters.wide == (1ull << 32) * TOTAL, "sums");
  require(counters.bits == 0xFFFFFFu && counters.kept == 0xFF000000u && counters.parity == parity, "bits");
  require(counters.most == TOTAL - 1 && counters.least == 7 && counters.lowest == 1 - static_cast<int>(TOTAL), "ends");
  require(counters.under_lock == BLOCKS && chain[BLOCKS - 1] == 2 * BLOCKS - 1, "locks and flags");
}

// ---- one thread ----

void test_intrinsics() {
  const float infinity = __builtin_inff(), not_a_number = __builtin_nanf("");
  require(__popc(0xF0F0u) == 8 && __popcll(~0ull) == 64 && __clz(1) == 31 && __clz(0) == 32 && __ffs(8) == 4, "counts");
  require(__ffs(0) == 0 && __brev(1u) == 0x80000000u && __brev(0x12345678u) == 0x1E6A2C48u, "__ffs and __brev");
  require(__umulhi(0xFFFFFFFFu, 0xFFFFFFFFu) == 0xFFFFFFFEu, "__umulhi");
  require(__byte_perm(0x33221100u, 0x77665544u, 0x7531u) == 0x77553311u, "__byte_perm");
  require(__byte_perm(0x00008000u, 0u, 0x0009u) == 0x000000FFu, "__byte_perm of signs");
  require(__funnelshift_l(0x80000001u, 0x12345678u, 4) == 0x23456788u, "__funnelshift_l");
  require(__funnelshift_r(0x80000001u, 0x12345678u, 36) == 0x88000000u, "__funnelshift_r");
  require(__funnelshift_lc(1u, 2u, 32) == 1u && __funnelshift_rc(1u, 2u, 40) == 2u, "__funnelshift_lc and _rc");
  require(__float_as_uint(-1.0f) == 0xBF800000u && __uint_as_float(0x40490FDBu) == 0x1.921fb6p1f, "bits of floats");
  require(__float2int_rn(2.5f) == 2 && __float2int_rn(-3.5f) == -4 && __float2int_rd(-0.5f) == -1, "rounding");
  require(__float2int_rz(-2.9f) == -2 && __float2int_rn(infinity) == INT32_MAX, "rounding");
  require(__float2int_rz(-infinity) == INT32_MIN && __float2int_rd(not_a_number) == 0, "conversions saturate");
  require(__fmaf_rn(0x1.000002p0f, 0x1.000002p0f, -1.0f) == 0x1.000001p-22f, "__fmaf_rn rounds once");
  require(__fdiv_rn(1.0f, 0.0f) == infinity && __fsqrt_rn(2.0f) == 0x1.6a09e6p0f, "division and root");
}

void test_all() {
  test_shuffles<int>();
  test_shuffles<float>();
  test_shuffles<unsigned long long>();
  test_shuffles<double>();
  test_votes();
  test_blocks();
  test_deep_stack();
  test_atomics();
}

}  // namespace

int main(int count, char** arguments) {
  const std::string what = count > 1 ? arguments[1] : "";
  if (what == "faults") return list_faults(), 0;
  if (what == "fault" && count == 3) return run_fault(arguments[2], true), 0;
  require(count == 1, "arguments: none, `faults`, or `fault NAME`");
  test_intrinsics();
  for (const simt::Order order : {simt::Order::IN_ORDER, simt::Order::REVERSED, simt::Order::RANDOM}) {
    for (uint64_t seed = 0; seed < (order == simt::Order::RANDOM ? 3 : 1); ++seed) {
      for (unsigned blocks_in_flight : {1, 3, 16}) {
        simt::set_schedule({order, seed, blocks_in_flight});
        test_all();
      }
    }
  }
  run_sound_twins();
  std::puts("passed");
}
