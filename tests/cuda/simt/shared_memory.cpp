// Shared arrays, carved from a block's arena where a thread first comes upon them.
#include <cstring>

#include "state.h"

namespace simt {
namespace {

constexpr uint8_t ZONE_BYTE = 0x5E;
constexpr uint64_t ZONE_WORD = 0x0101010101010101u * ZONE_BYTE;

size_t rounded_up(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Not memset, which ThreadSanitizer would take for writes of the running thread.
void fill(char* address, size_t nbytes, uint8_t byte) {
  const uint64_t word = 0x0101010101010101u * byte;
  volatile char* out = address;
  for (; nbytes >= sizeof(word); nbytes -= sizeof(word), out += sizeof(word))
    *reinterpret_cast<volatile uint64_t*>(out) = word;
  for (; nbytes; --nbytes) *out++ = static_cast<char>(byte);
}

bool is_untouched(const char* zone, const char* end) {
  for (; (end - zone) % 8; ++zone)
    if (static_cast<uint8_t>(*zone) != ZONE_BYTE) return false;
  for (; zone != end; zone += 8)
    if (*reinterpret_cast<const uint64_t*>(zone) != ZONE_WORD) return false;
  return true;
}

size_t zone_end(const SharedArray& array) { return rounded_up(array.start + array.nbytes, RED_ZONE) + RED_ZONE; }

}  // namespace

void open_shared(Block& block) {
  block.shared_count = 0;
  block.shared_nbytes = 0;
  block.arena_used = RED_ZONE;
  poison(block.arena, ARENA_NBYTES);
  fill(block.arena, RED_ZONE, ZONE_BYTE);
}

void* shared_memory(const void* key, size_t nbytes, size_t alignment) {
  Block& block = *running().block;
  for (int i = 0; i < block.shared_count; ++i)
    if (block.shared[i].key == key) return block.arena + block.shared[i].start;

  block.shared_nbytes = rounded_up(block.shared_nbytes, alignment) + nbytes;
  if (block.shared_nbytes > MOST_SHARED_NBYTES) die("more than 48 KB of shared memory", running());
  if (block.shared_count == MOST_SHARED_ARRAYS) die("too many shared arrays", running());
  SharedArray& array = block.shared[block.shared_count++];
  array = {key, block.arena_used, nbytes};
  block.arena_used = zone_end(array);

  char* const start = block.arena + array.start;
  fill(start, nbytes, engine.schedule.shared_fill);
  unpoison(start, nbytes);
  fill(start + nbytes, zone_end(array) - array.start - nbytes, ZONE_BYTE);
  return start;
}

void check_red_zones(const Block& block) {
  bool untouched = is_untouched(block.arena, block.arena + RED_ZONE);
  for (int i = 0; i < block.shared_count; ++i) {
    const SharedArray& array = block.shared[i];
    untouched = untouched && is_untouched(block.arena + array.start + array.nbytes, block.arena + zone_end(array));
  }
  if (!untouched) die("a thread has written outside of a shared array", block);
}

}  // namespace simt
