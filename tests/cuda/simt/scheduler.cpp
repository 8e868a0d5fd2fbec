// Launches: which thread runs next, how blocks begin and end, and reports of errors.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "state.h"

namespace simt {

Thread* current = nullptr;
dim3 grid_size, block_size;
Engine& engine = *new Engine;  // never destroyed: a leak checker reaches its blocks through it

bool same_site(const Site& a, const Site& b) {
  const auto same = [](const char* x, const char* y) { return x == y || std::strcmp(x, y) == 0; };
  return a.line == b.line && same(a.file, b.file) && same(a.function, b.function);
}

const char* name_of(Operation operation) {
  static const char* const names[] = {"__syncwarp",       "__ballot, __any or __all",
                                      "__shfl",           "__shfl_up",
                                      "__shfl_down",      "__shfl_xor",
                                      "__match_any",      "__reduce_add",
                                      "__reduce_min",     "__reduce_max",
                                      "__reduce_min int", "__reduce_max int",
                                      "__reduce_and",     "__reduce_or",
                                      "__reduce_xor"};
  return names[static_cast<int>(operation)];
}

// ---- reports ----

void die(const char* message, const Fiber& fiber) {
  const uint3 block = fiber.block_index;
  std::fprintf(stderr, "simt: ERROR %s [block %u,%u,%u thread %d warp %d lane %d, %s:%d]\n", message, block.x, block.y,
               block.z, fiber.rank, fiber.warp, fiber.lane, fiber.site.file, fiber.site.line);
  std::abort();
}

void die(const char* message, const Block& block) {
  std::fprintf(stderr, "simt: ERROR %s [block %u,%u,%u]\n", message, block.index.x, block.index.y, block.index.z);
  std::abort();
}

namespace {

[[noreturn]] void die_of_launch(const char* message) {
  std::fprintf(stderr, "simt: ERROR %s\n", message);
  std::abort();
}

bool wait_alike(const Fiber& a, const Fiber& b) {
  if (a.in_barrier != b.in_barrier || !same_site(a.site, b.site)) return false;
  return a.in_barrier || (a.operation == b.operation && a.mask == b.mask);
}

// One line for each set of lanes that wait for the same.
void print_waiting(const Warp& warp) {
  for (unsigned rest = warp.alive & ~warp.ready; rest;) {
    const Fiber& first = warp.fibers[lowest_lane(rest)];
    unsigned lanes = 0;
    for (unsigned others = rest; others; others &= others - 1)
      if (wait_alike(first, warp.fibers[lowest_lane(others)])) lanes |= others & -others;
    std::fprintf(stderr, "simt: block %u,%u,%u warp %d lanes %08x wait in ", first.block_index.x, first.block_index.y,
                 first.block_index.z, first.warp, lanes);
    if (first.in_barrier)
      std::fprintf(stderr, "__syncthreads");
    else
      std::fprintf(stderr, "%s with mask %08x", name_of(first.operation), first.mask);
    std::fprintf(stderr, " at %s:%d\n", first.site.file, first.site.line);
    rest &= ~lanes;
  }
}

void print_all_waiting() {
  for (const Block* block : engine.live)
    for (const Warp& warp : block->warps) print_waiting(warp);
}

// ---- order ----

uint64_t random_below(uint64_t n) {
  engine.noise ^= engine.noise << 13;
  engine.noise ^= engine.noise >> 7;
  engine.noise ^= engine.noise << 17;
  return (engine.noise >> 16) % n;
}

Fiber* random_lane(Warp& warp) {
  unsigned lanes = warp.ready;
  for (uint64_t skipped = random_below(__builtin_popcount(lanes)); skipped; --skipped) lanes &= lanes - 1;
  return &warp.fibers[lowest_lane(lanes)];
}

Fiber* random_fiber() {
  uint64_t ready = 0;
  for (Block* block : engine.live)
    for (Warp& warp : block->warps) ready += warp.ready != 0;
  if (ready == 0) return nullptr;
  uint64_t chosen = random_below(ready);
  for (Block* block : engine.live)
    for (Warp& warp : block->warps)
      if (warp.ready != 0 && chosen-- == 0) return random_lane(warp);
  return nullptr;
}

Fiber* next_fiber() {
  const Order order = engine.schedule.order;
  if (order == Order::RANDOM) return random_fiber();
  const bool reversed = order == Order::REVERSED;
  const auto lane_of = [&](Warp& warp) {
    return &warp.fibers[reversed ? highest_lane(warp.ready) : lowest_lane(warp.ready)];
  };
  // The running warp first: most waits are for its other lanes.
  if (current) {
    Warp& warp = running().block->warps[running().warp];
    if (warp.ready) return lane_of(warp);
  }
  const size_t blocks = engine.live.size();
  for (size_t i = 0; i < blocks; ++i) {
    Block& block = *engine.live[reversed ? blocks - 1 - i : i];
    const size_t warps = block.warps.size();
    for (size_t j = 0; j < warps; ++j) {
      Warp& warp = block.warps[reversed ? warps - 1 - j : j];
      if (warp.ready) return lane_of(warp);
    }
  }
  return nullptr;
}

// Null is the host.
void switch_to(Fiber* next, bool ends = false) {
  if (next == current) return;
  Context& from = current ? running().context : engine.host;
  Context& to = next ? next->context : engine.host;
  current = next;
  switch_context(from, to, ends);
}

// ---- threads ----

void end_thread() {
  Fiber& self = running();
  Block& block = *self.block;
  Warp& warp = block.warps[self.warp];
  engine.idle_yields = 0;
  if (!stack_guard_holds(self.context)) die("a thread has used more than its 256 KB of stack", self);
  if (block.arrived) {
    print_all_waiting();
    die("a thread exits while others wait in __syncthreads", self);
  }
  for (unsigned waiting = warp.alive & ~warp.ready; waiting; waiting &= waiting - 1)
    if (warp.fibers[lowest_lane(waiting)].mask & self.bit())
      die("a lane exits while others of its warp wait for it", warp.fibers[lowest_lane(waiting)]);
  warp.alive &= ~self.bit();
  warp.ready &= ~self.bit();
  --block.alive;
  switch_to(block.alive ? next_fiber() : nullptr, true);
}

void thread_main() {
  finish_first_switch(engine.host);
  engine.body(engine.argument);
  order_release(&engine);  // the host acquires it when the launch ends
  end_thread();
  std::abort();  // nothing switches to a thread that has ended
}

// ---- blocks ----

void renew_memory(Block& block, unsigned threads) {
#if defined(SIMT_TSAN)
  // The last block's accesses to these addresses must be forgotten: nothing orders them before this block's.
  const bool usable = false;
#else
  const bool usable = block.memory && block.fibers.size() >= threads;
#endif
  if (usable) return;
  if (block.memory) {
    for (Fiber& fiber : block.fibers) dispose(fiber.context);
    unpoison(block.arena, ARENA_NBYTES);
    unmap_memory(block.memory, block.memory_nbytes);
  }
  block.memory_nbytes = threads * STACK_STRIDE + ARENA_NBYTES + Block::ORDER_NBYTES;
  block.memory = map_memory(block.memory_nbytes);
  block.arena = block.memory + threads * STACK_STRIDE;
  block.arena += -reinterpret_cast<uintptr_t>(block.arena) % RED_ZONE;
  block.order_words = reinterpret_cast<uint64_t*>(block.arena + ARENA_NBYTES);
  // Not assigned as wholes: that may be a call of memcpy, which ThreadSanitizer would take for a kernel's access.
  if (block.fibers.size() < threads) block.fibers = std::vector<Fiber>(threads);
  for (Fiber& fiber : block.fibers) fiber.context = Context{};
}

void start_block(Block& block, uint64_t number) {
  const unsigned threads = block_size.x * block_size.y * block_size.z;
  renew_memory(block, threads);
  block.index = {static_cast<unsigned>(number % grid_size.x), static_cast<unsigned>(number / grid_size.x % grid_size.y),
                 static_cast<unsigned>(number / grid_size.x / grid_size.y)};
  block.threads = block.alive = static_cast<int>(threads);
  block.arrived = 0;
  block.warps.assign((threads + WARP - 1) / WARP, Warp{});
  open_shared(block);
  for (unsigned rank = 0; rank < threads; ++rank) {
    Fiber& fiber = block.fibers[rank];
    fiber.block_index = block.index;
    fiber.thread_index = {rank % block_size.x, rank / block_size.x % block_size.y, rank / block_size.x / block_size.y};
    fiber.block = &block;
    fiber.rank = static_cast<int>(rank);
    fiber.warp = fiber.rank / WARP;
    fiber.lane = fiber.rank % WARP;
    fiber.site = {"the kernel's begin", 0};
    fiber.mask = 0;
    prepare(fiber.context, block.memory + rank * STACK_STRIDE, thread_main);
    Warp& warp = block.warps[fiber.warp];
    if (fiber.lane == 0) warp.fibers = &fiber;
    warp.alive |= fiber.bit();
    warp.ready = warp.alive;
  }
}

void check_launch(dim3 grid, dim3 block) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  const bool blocks_hold = grid.x && grid.y && grid.z && grid.x <= INT32_MAX && grid.y <= 65535 && grid.z <= 65535;
  const bool threads_hold = threads && threads <= MOST_THREADS && block.x <= 1024 && block.y <= 1024 && block.z <= 64;
  if (!blocks_hold || !threads_hold) die_of_launch("a launch of no blocks or threads, or of too many");
}

}  // namespace

void wait(Site site, bool in_barrier) {
  Fiber& self = running();
  Warp& warp = self.block->warps[self.warp];
  engine.idle_yields = 0;
  self.site = site;
  self.in_barrier = in_barrier;
  warp.ready &= ~self.bit();
  switch_to(next_fiber());
}

void maybe_let_others_run() {
  if (engine.schedule.order == Order::RANDOM) switch_to(next_fiber());
}

// In turn through the warps of all blocks in flight: any other order may starve the thread that is waited for.
void yield(Site site) {
  Fiber& self = running();
  self.site = site;
  constexpr uint64_t MOST_IDLE_YIELDS = 10000000;
  if (++engine.idle_yields > MOST_IDLE_YIELDS) {
    print_all_waiting();
    die("a polling loop makes no progress", self);
  }
  const size_t blocks = engine.live.size();
  size_t here = 0;
  while (engine.live[here] != self.block) ++here;
  size_t warp = self.warp + 1;
  for (size_t i = 0; i <= blocks; ++i, warp = 0) {
    Block& block = *engine.live[(here + i) % blocks];
    for (; warp < block.warps.size(); ++warp)
      if (block.warps[warp].ready) return switch_to(random_lane(block.warps[warp]));
  }
}

void trap(Site site) {
  running().site = site;
  die("__trap", running());
}

void set_schedule(const Schedule& schedule) {
  if (schedule.blocks_in_flight == 0) die_of_launch("a schedule of no blocks in flight");
  engine.schedule = schedule;
}

void run(dim3 grid, dim3 block, void (*body)(void*), void* argument) {
  static std::mutex one_at_a_time;
  static thread_local bool launching = false;
  if (launching) die("a kernel launches a kernel", running());
  check_launch(grid, block);
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  launching = true;
  grid_size = grid;
  block_size = block;
  engine.body = body;
  engine.argument = argument;
  engine.noise = 0x9E3779B97F4A7C15u * (2 * engine.schedule.seed + 1);
  engine.idle_yields = 0;
  adopt_host(engine.host);

  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  uint64_t started = 0;
  while (started < blocks && started < engine.schedule.blocks_in_flight) {
    if (engine.pool.size() == started) engine.pool.push_back(new Block);
    Block* const next = engine.pool[started];
    start_block(*next, started++);
    engine.live.push_back(next);
  }
  while (!engine.live.empty()) {
    Fiber* const next = next_fiber();
    if (next == nullptr) {
      print_all_waiting();
      die_of_launch("deadlock");
    }
    switch_to(next);
    for (size_t i = 0; i < engine.live.size();) {
      Block& ended = *engine.live[i];
      if (ended.alive == 0) check_red_zones(ended);
      if (ended.alive == 0 && started < blocks) start_block(ended, started++);
      if (ended.alive == 0)
        engine.live.erase(engine.live.begin() + static_cast<std::ptrdiff_t>(i));
      else
        ++i;
    }
  }
  order_acquire(&engine);
  launching = false;
}

}  // namespace simt
