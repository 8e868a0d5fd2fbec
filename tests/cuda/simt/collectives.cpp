// Where lanes of a warp and threads of a block meet.
#include "state.h"

namespace simt {
namespace {

uint32_t combine(Operation operation, uint32_t a, uint32_t b) {
  switch (operation) {
    case Operation::REDUCE_ADD:
      return a + b;
    case Operation::REDUCE_MIN:
      return b < a ? b : a;
    case Operation::REDUCE_MAX:
      return b > a ? b : a;
    case Operation::REDUCE_MIN_SIGNED:
      return static_cast<int32_t>(b) < static_cast<int32_t>(a) ? b : a;
    case Operation::REDUCE_MAX_SIGNED:
      return static_cast<int32_t>(b) > static_cast<int32_t>(a) ? b : a;
    case Operation::REDUCE_AND:
      return a & b;
    case Operation::REDUCE_OR:
      return a | b;
    default:
      return a ^ b;
  }
}

void reduce_all(Warp& warp, const Group& group) {
  uint32_t total = static_cast<uint32_t>(warp.fibers[lowest_lane(group.mask)].value);
  for (unsigned rest = group.mask & (group.mask - 1); rest; rest &= rest - 1)
    total = combine(group.operation, total, static_cast<uint32_t>(warp.fibers[lowest_lane(rest)].value));
  for (unsigned rest = group.mask; rest; rest &= rest - 1) warp.fibers[lowest_lane(rest)].result = total;
}

void vote_all(Warp& warp, const Group& group) {
  unsigned votes = 0;
  for (unsigned rest = group.mask; rest; rest &= rest - 1)
    if (warp.fibers[lowest_lane(rest)].value) votes |= rest & -rest;
  for (unsigned rest = group.mask; rest; rest &= rest - 1) warp.fibers[lowest_lane(rest)].result = votes;
}

void match_all(Warp& warp, const Group& group) {
  for (unsigned rest = group.mask; rest; rest &= rest - 1) {
    Fiber& fiber = warp.fibers[lowest_lane(rest)];
    fiber.result = 0;
    for (unsigned other = group.mask; other; other &= other - 1)
      if (warp.fibers[lowest_lane(other)].value == fiber.value) fiber.result |= other & -other;
  }
}

// The lane that `fiber` reads from: its own where the one asked for is outside of its segment of `width` lanes.
int source_lane(const Fiber& fiber) {
  const int parameter = static_cast<int>(fiber.parameter);
  const int first = fiber.lane & ~(fiber.width - 1), end = first + fiber.width;
  switch (fiber.operation) {
    case Operation::SHUFFLE:
      return first + (parameter & (fiber.width - 1));
    case Operation::SHUFFLE_UP:
      return fiber.lane - parameter >= first ? fiber.lane - parameter : fiber.lane;
    case Operation::SHUFFLE_DOWN:
      return fiber.lane + parameter < end ? fiber.lane + parameter : fiber.lane;
    default:
      return (fiber.lane ^ parameter) < end ? fiber.lane ^ parameter : fiber.lane;
  }
}

void shuffle_all(Warp& warp, const Group& group) {
  for (unsigned rest = group.mask; rest; rest &= rest - 1) {
    Fiber& fiber = warp.fibers[lowest_lane(rest)];
    const int source = source_lane(fiber);
    if (!(group.mask >> source & 1)) die("shuffle reads a lane outside of the mask", fiber);
    fiber.result = warp.fibers[source].value;
  }
}

void check_shuffle(const Fiber& fiber) {
  const int width = fiber.width;
  if (width < 1 || width > WARP || (width & (width - 1))) die("width of a shuffle is no power of two up to 32", fiber);
  if (fiber.operation != Operation::SHUFFLE && fiber.parameter >= WARP)
    die("distance of a shuffle is 32 or more", fiber);
}

bool is_shuffle(Operation operation) { return operation >= Operation::SHUFFLE && operation <= Operation::SHUFFLE_XOR; }

// The group that waits for this lane with its mask, or a free one. Lanes that wait with another mask may do so for long
// while others meet in parts of it, but not if each side waits for the other.
int group_of(const Warp& warp, const Fiber& fiber) {
  int found = -1;
  for (unsigned rest = warp.under_way; rest; rest &= rest - 1) {
    const Group& group = warp.groups[lowest_lane(rest)];
    if (group.mask == fiber.mask)
      found = lowest_lane(rest);
    else if ((group.mask & fiber.bit()) && (group.arrived & fiber.mask))
      die("lanes of a warp meet with different masks", fiber);
  }
  if (found >= 0) return found;
  // There is one for each lane. The same one for the same mask, if it can be, keeps ThreadSanitizer's orders apart.
  const int preferred = lowest_lane(fiber.mask);
  return warp.under_way >> preferred & 1 ? lowest_lane(~warp.under_way) : preferred;
}

void complete(Warp& warp, const Group& group) {
  if (group.operation == Operation::SYNCWARP) return;
  if (group.operation == Operation::VOTE) return vote_all(warp, group);
  if (group.operation == Operation::MATCH) return match_all(warp, group);
  if (is_shuffle(group.operation)) return shuffle_all(warp, group);
  reduce_all(warp, group);
}

}  // namespace

uint64_t collective(Operation operation, unsigned mask, uint64_t value, unsigned parameter, int width, Site site) {
  Fiber& self = running();
  Block& block = *self.block;
  Warp& warp = block.warps[self.warp];
  self.operation = operation;
  self.mask = mask;
  self.value = value;
  self.parameter = parameter;
  self.width = width;
  self.site = site;
  if (!(mask & self.bit())) die("the calling lane is not in its own mask", self);
  if (mask & ~warp.alive) die("mask names a lane that has exited or does not exist", self);
  if (is_shuffle(operation)) check_shuffle(self);

  const int number = group_of(warp, self);
  Group& group = warp.groups[number];
  if (group.arrived == 0) {
    group.mask = mask;
    group.operation = operation;
    group.site = site;
    ++group.generation;
    warp.under_way |= 1u << number;
  } else if (group.operation != operation || !same_site(group.site, site)) {
    die("lanes of a warp meet in different collectives", self);
  }

  uint64_t* const order = block.group_order(self.warp, number, group.generation);
  if (operation == Operation::SYNCWARP) order_release(order);
  group.arrived |= self.bit();
  if (group.arrived == mask) {
    complete(warp, group);
    group.arrived = 0;
    warp.under_way &= ~(1u << number);
    warp.ready |= mask;
    maybe_let_others_run();
  } else {
    wait(site, false);
  }
  if (operation == Operation::SYNCWARP) order_acquire(order);
  return self.result;
}

int barrier(bool predicate, Site site) {
  Fiber& self = running();
  Block& block = *self.block;
  self.site = site;
  if (block.alive != block.threads) die("__syncthreads after a thread of the block has exited", self);
  if (block.arrived == 0) {
    block.site = site;
    ++block.generation;
    block.votes[block.generation & 1] = 0;
  } else if (!same_site(block.site, site)) {
    die("threads of a block meet in different __syncthreads", self);
  }

  const unsigned generation = block.generation;
  block.votes[generation & 1] += predicate;
  order_release(block.barrier_order(generation));
  if (++block.arrived == block.threads) {
    block.arrived = 0;
    for (Warp& warp : block.warps) warp.ready = warp.alive;
    maybe_let_others_run();
  } else {
    wait(site, true);
  }
  order_acquire(block.barrier_order(generation));
  return block.votes[generation & 1];
}

}  // namespace simt
