// Every kernel here is a template: with FAULT it has the error that its name says, without it is sound.
#include "faults.h"

#include <cstdio>
#include <cstring>

#include "simt/simt.h"
#include "support.h"

using test::require;

namespace {

constexpr unsigned ALL = 0xFFFFFFFFu;
constexpr int THREADS = 64, BLOCKS = 6;

// What every kernel is given: one word for each thread of the grid, zero at first, and not a byte more.
using Words = unsigned*;

__device__ unsigned& own(Words words) { return words[blockIdx.x * blockDim.x + threadIdx.x]; }
__device__ unsigned lane() { return threadIdx.x & 31; }

// ---- barriers ----

template <bool FAULT>
__global__ void barrier_in_divergent_code(Words words) {
  if (!FAULT || threadIdx.x < 40) __syncthreads();
  own(words) = 1;
}

template <bool FAULT>
__global__ void exit_before_barrier(Words words) {
  if (FAULT && threadIdx.x == 3) return;
  own(words) = 1;
  __syncthreads();
}

template <bool FAULT>
__global__ void two_barriers_for_one(Words words) {
  if (!FAULT || threadIdx.x % 2) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  own(words) = 1;
}

// ---- masks ----

template <bool FAULT>
__global__ void mask_lacks_caller(Words words) {
  own(words) = __shfl_xor_sync(FAULT ? 0x0000FFFFu : ALL, threadIdx.x, 1);
}

template <bool FAULT>
__global__ void mask_names_exited_lane(Words words) {
  if (lane() >= 24) return;
  own(words) = __ballot_sync(FAULT ? ALL : 0x00FFFFFFu, 1);
}

template <bool FAULT>
__global__ void mask_names_missing_lane(Words words) {
  const bool last = threadIdx.x / 32 == blockDim.x / 32;
  own(words) = __ballot_sync(last && !FAULT ? (1u << blockDim.x % 32) - 1 : ALL, 1);
}

template <bool FAULT>
__global__ void lane_exits_while_awaited(Words words) {
  if (FAULT && lane() == 31) return;
  own(words) = __reduce_add_sync(ALL, 1u);
}

template <bool FAULT>
__global__ void different_masks(Words words) {
  own(words) = __ballot_sync(FAULT && lane() >= 16 ? 0xFFFF0001u : ALL, 1);
}

template <bool FAULT>
__global__ void different_overlapping_masks(Words words) {
  own(words) = __ballot_sync(FAULT && lane() >= 16 ? 0xFFFF8000u : ALL, 1);
}

template <bool FAULT>
__global__ void different_collectives(Words words) {
  unsigned result;
  if (!FAULT || lane() % 2) {
    result = __reduce_add_sync(ALL, lane());
  } else {
    result = __reduce_max_sync(ALL, lane());
  }
  own(words) = result;
}

template <bool FAULT>
__global__ void collective_in_both_branches(Words words) {
  unsigned result;
  if (!FAULT || lane() % 2) {
    result = __ballot_sync(ALL, 1);
  } else {
    result = __ballot_sync(ALL, 0);
  }
  own(words) = result;
}

// To a GPU two instances of a template are different instructions, though they stand on one line. Only compilers that
// know std::source_location tell them apart here.
template <int>
__device__ unsigned neighbour(unsigned value) {
  return __shfl_xor_sync(ALL, value, 1);
}
template <bool FAULT>
__global__ void instances_of_a_template(Words words) {
  if (!FAULT || lane() % 2)
    own(words) = neighbour<1>(lane());
  else
    own(words) = neighbour<2>(lane());
}

template <bool FAULT>
__global__ void shuffle_from_outside_of_mask(Words words) {
  if (lane() < 16) own(words) = __shfl_sync(0x0000FFFFu, threadIdx.x, FAULT ? 16 : 15);
}

template <bool FAULT>
__global__ void shuffle_too_far(Words words) {
  own(words) = __shfl_down_sync(ALL, threadIdx.x, FAULT ? 32 : 31);
}

// ---- progress ----

template <bool FAULT>
__global__ void deadlock(Words words) {
  if (FAULT && lane() < 16) __syncwarp();
  __syncthreads();
  own(words) = 1;
}

template <bool FAULT>
__global__ void polling_without_end(Words words) {
  if (!FAULT && blockIdx.x == 0 && threadIdx.x == 1) atomicExch(&words[0], 1);
  if (blockIdx.x == 0 && threadIdx.x == 0)
    while (atomicAdd(&words[0], 0) == 0) __nanosleep(20);
}

template <bool FAULT>
__global__ void trap(Words words) {
  own(words) = 1;
  if (FAULT && own(words)) __trap();
}

// ---- memory ----

template <bool FAULT>
__global__ void shared_overrun(Words words) {
  auto& values = simt::shared_array<unsigned, THREADS + 1>([] {});
  auto& others = simt::shared_array<unsigned, THREADS>([] {});
  volatile unsigned* const row = values;
  row[threadIdx.x + 1 + (FAULT && threadIdx.x == THREADS - 1)] = 1;
  others[threadIdx.x] = 1;
  own(words) = others[threadIdx.x];
}

template <bool FAULT>
__global__ void shared_overread(Words words) {
  auto& values = simt::shared_array<unsigned, THREADS>([] {});
  volatile unsigned* const row = values;
  row[threadIdx.x] = 1;
  __syncthreads();
  own(words) = row[threadIdx.x + FAULT];
}

template <bool FAULT>
__global__ void global_overrun(Words words) {
  (&own(words))[FAULT] = 1;
}

template <bool FAULT>
__global__ void local_overrun(Words words) {
  volatile unsigned local[8] = {};
  local[threadIdx.x % 8 + (FAULT && threadIdx.x == 7)] = 1;
  __syncthreads();
  own(words) = local[threadIdx.x % 8];
}

template <bool FAULT>
__global__ void misaligned_vector(Words words) {
  if (threadIdx.x % 2 == 0 && threadIdx.x < THREADS - 2)
    __stcs(reinterpret_cast<uint2*>(&own(words) + FAULT), make_uint2(1, 1));
}

template <bool FAULT>
__global__ void too_much_shared(Words words) {
  auto& values = simt::shared_array<double, 6000>([] {});
  auto& more = simt::shared_array<float, FAULT ? 289 : 288>([] {});
  values[threadIdx.x] = 1;
  more[threadIdx.x] = 1;
  own(words) = 1;
}

template <bool FAULT>
__global__ void stack_overrun(Words words) {
  volatile unsigned local[FAULT ? 68000 : 50000];
  for (unsigned i = 50000; i-- > 0;) local[i] = i;
  own(words) = local[threadIdx.x];
}

// The fill of shared memory reaches the result: see fill_reaches_result.
template <bool FAULT>
__global__ void shared_read_before_written(Words words) {
  auto& counts = simt::shared_array<unsigned, THREADS>([] {});
  if (!FAULT || threadIdx.x != 0) counts[threadIdx.x] = threadIdx.x;
  __syncthreads();
  own(words) = counts[THREADS - 1 - threadIdx.x];
}

// ---- races ----

template <bool FAULT>
__global__ void shared_race(Words words) {
  auto& values = simt::shared_array<unsigned, THREADS>([] {});
  values[threadIdx.x] = threadIdx.x;
  if (!FAULT) __syncthreads();
  own(words) = values[THREADS - 1 - threadIdx.x];
}

template <bool FAULT>
__global__ void missing_syncwarp(Words words) {
  auto& values = simt::shared_array<unsigned, THREADS>([] {});
  values[threadIdx.x] = __shfl_xor_sync(ALL, threadIdx.x, 1);
  if (!FAULT) __syncwarp();
  own(words) = values[threadIdx.x ^ 1];
}

template <bool FAULT>
__global__ void syncwarp_for_barrier(Words words) {
  auto& values = simt::shared_array<unsigned, THREADS>([] {});
  values[threadIdx.x] = threadIdx.x;
  if (FAULT)
    __syncwarp();
  else
    __syncthreads();
  own(words) = values[threadIdx.x ^ 32];
}

template <bool FAULT>
__global__ void block_race(Words words) {
  if (threadIdx.x == 0) words[FAULT ? 0 : blockIdx.x] += 1;
}

template <bool FAULT>
__global__ void plain_counter(Words words) {
  if (FAULT)
    ++words[0];
  else
    atomicAdd(&words[0], 1);
}

// The first block sends a value to the last one.
template <bool FAULT>
__global__ void relaxed_flag(Words words) {
  unsigned* const flag = &words[THREADS];
  if (threadIdx.x != 0) return;
  if (blockIdx.x == 0) {
    words[0] = 17;
    if (FAULT)
      atomicExch(flag, 1);
    else
      simt::store_release(flag, 1u);
  } else if (blockIdx.x == BLOCKS - 1) {
    while ((FAULT ? atomicAdd(flag, 0) : simt::load_acquire(flag)) == 0) __nanosleep(20);
    words[1] = words[0];
  }
}

// ---- the list ----

std::vector<unsigned> run_kernel(void (*kernel)(Words), unsigned threads, const simt::Schedule& schedule) {
  std::vector<unsigned> words(BLOCKS * threads);
  simt::set_schedule(schedule);
  simt::launch(BLOCKS, threads, [&] { kernel(words.data()); });
  return words;
}

struct Fault {
  const char* name;
  const char* builds;  // that must catch it
  void (*faulty)(Words);
  void (*sound)(Words);
};

#define FAULT(name, builds) {#name, builds, name<true>, name<false>}
constexpr const char* EVERY = "plain sanitize threads";
const Fault FAULTS[] = {
    FAULT(barrier_in_divergent_code, EVERY),
    FAULT(exit_before_barrier, EVERY),
    FAULT(two_barriers_for_one, EVERY),
    FAULT(mask_lacks_caller, EVERY),
    FAULT(mask_names_exited_lane, EVERY),
    FAULT(mask_names_missing_lane, EVERY),
    FAULT(lane_exits_while_awaited, EVERY),
    FAULT(different_masks, EVERY),
    FAULT(different_overlapping_masks, EVERY),
    FAULT(different_collectives, EVERY),
    FAULT(collective_in_both_branches, EVERY),
    FAULT(instances_of_a_template, "plain sanitize"),
    FAULT(shuffle_from_outside_of_mask, EVERY),
    FAULT(shuffle_too_far, EVERY),
    FAULT(deadlock, EVERY),
    FAULT(polling_without_end, "plain sanitize"),
    FAULT(trap, EVERY),
    FAULT(shared_overrun, EVERY),
    FAULT(shared_overread, "sanitize"),
    FAULT(global_overrun, "sanitize"),
    FAULT(local_overrun, "sanitize"),
    FAULT(misaligned_vector, "sanitize"),
    FAULT(too_much_shared, EVERY),
    FAULT(stack_overrun, EVERY),
    FAULT(shared_read_before_written, EVERY),
    FAULT(shared_race, "threads"),
    FAULT(missing_syncwarp, "threads"),
    FAULT(syncwarp_for_barrier, "threads"),
    FAULT(block_race, "threads"),
    FAULT(plain_counter, "threads"),
    FAULT(relaxed_flag, "threads"),
};
#undef FAULT

void run(const Fault& fault, bool planted) {
  const auto kernel = planted ? fault.faulty : fault.sound;
  const unsigned threads = std::strcmp(fault.name, "mask_names_missing_lane") == 0 ? THREADS - 24 : THREADS;
  simt::Schedule schedule{simt::Order::IN_ORDER, 0, 3, 0x00};
  const std::vector<unsigned> first = run_kernel(kernel, threads, schedule);
  schedule.shared_fill = 0xFF;
  require(first == run_kernel(kernel, threads, schedule), "the fill of shared memory reaches the result");
}

}  // namespace

void list_faults() {
  for (const Fault& fault : FAULTS) std::printf("%s %s\n", fault.name, fault.builds);
}

void run_fault(const char* name, bool planted) {
  for (const Fault& fault : FAULTS)
    if (std::strcmp(fault.name, name) == 0) return run(fault, planted);
  test::fail("no such fault");
}

void run_sound_twins() {
  for (const Fault& fault : FAULTS) run(fault, false);
}
