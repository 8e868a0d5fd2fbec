// The engine's own state: one launch at a time, all of it on the host thread that launched.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine.h"
#include "fiber.h"

namespace simt {

constexpr int WARP = 32, MOST_THREADS = 1024, MOST_WARPS = MOST_THREADS / WARP;
constexpr int MOST_SHARED_ARRAYS = 32;
constexpr size_t MOST_SHARED_NBYTES = 48 << 10;
constexpr size_t RED_ZONE = 128;  // before, between and after shared arrays; they are aligned to it as well
constexpr size_t ARENA_NBYTES = MOST_SHARED_NBYTES + RED_ZONE + MOST_SHARED_ARRAYS * 2 * RED_ZONE;

struct Block;

struct Fiber : Thread {
  Context context;
  Block* block = nullptr;
  int rank = 0, warp = 0, lane = 0;
  // Its last collective or barrier.
  Site site = {"", 0};
  bool in_barrier = false;
  Operation operation{};
  unsigned mask = 0, parameter = 0;
  int width = WARP;
  uint64_t value = 0, result = 0;

  unsigned bit() const { return 1u << lane; }
};

// Lanes that meet in a collective, all with this mask.
struct Group {
  unsigned arrived = 0, mask = 0;
  unsigned generation = 0;
  Operation operation{};
  Site site = {"", 0};
};

struct Warp {
  Fiber* fibers = nullptr;
  unsigned alive = 0, ready = 0;  // of the alive lanes, those that do not wait
  unsigned under_way = 0;         // the groups that some lanes have arrived at
  Group groups[WARP];
};

struct SharedArray {
  const void* key;
  size_t start, nbytes;
};

struct Block {
  uint3 index{};
  int threads = 0, alive = 0;
  // the barrier under way
  int arrived = 0, votes[2] = {0, 0};
  unsigned generation = 0;
  Site site = {"", 0};
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  // The memory holds the stacks, the arena of the shared arrays, and a word for each thing that orders memory: the
  // barrier, and each group of each warp. All come in pairs, for a thread may leave one while others enter the next.
  char* memory = nullptr;
  size_t memory_nbytes = 0;
  char* arena = nullptr;
  uint64_t* order_words = nullptr;
  SharedArray shared[MOST_SHARED_ARRAYS];
  int shared_count = 0;
  size_t shared_nbytes = 0, arena_used = 0;

  uint64_t* barrier_order(unsigned generation) { return order_words + (generation & 1); }
  uint64_t* group_order(int warp, int group, unsigned generation) {
    return order_words + 2 + 2 * (warp * WARP + group) + (generation & 1);
  }
  static constexpr size_t ORDER_NBYTES = sizeof(uint64_t) * (2 + 2 * MOST_WARPS * WARP);
};

struct Engine {
  Schedule schedule;
  Context host;
  void (*body)(void*) = nullptr;
  void* argument = nullptr;
  std::vector<Block*> pool, live;
  uint64_t noise = 0;
  uint64_t idle_yields = 0;  // since a thread last began to wait or ended
};
extern Engine& engine;

inline Fiber& running() { return *static_cast<Fiber*>(current); }

[[noreturn]] void die(const char* message, const Fiber& fiber);
[[noreturn]] void die(const char* message, const Block& block);

bool same_site(const Site& a, const Site& b);
const char* name_of(Operation operation);

// The running thread is not ready until another makes it so.
void wait(Site site, bool in_barrier);
// Under RANDOM, any thread may be the next after an event that made several of them ready.
void maybe_let_others_run();

void open_shared(Block& block);
void check_red_zones(const Block& block);

inline int lowest_lane(unsigned mask) { return __builtin_ctz(mask); }
inline int highest_lane(unsigned mask) { return 31 - __builtin_clz(mask); }

}  // namespace simt
