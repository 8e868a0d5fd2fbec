// The switch saves what a called function must preserve on the stack it leaves, and takes it from the one it enters.
#include "fiber.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#if defined(SIMT_ASAN)
#include <sanitizer/common_interface_defs.h>
#endif

extern "C" void simt_switch_stack(void** save, void* load);

#if defined(__x86_64__)
asm(R"(
    .text
    .globl simt_switch_stack
    .type simt_switch_stack, @function
simt_switch_stack:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
    .size simt_switch_stack, .-simt_switch_stack
)");
#elif defined(__aarch64__)
asm(R"(
    .text
    .globl simt_switch_stack
    .type simt_switch_stack, %function
simt_switch_stack:
    sub sp, sp, #176
    stp x19, x20, [sp]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #176
    ret
    .size simt_switch_stack, .-simt_switch_stack
)");
#else
#error "simt_switch_stack is not written for this processor"
#endif

namespace simt {
namespace {

constexpr uint64_t GUARD = 0xC0DEC0DE5AFE57ACu;  // at the far end of each stack

// As simt_switch_stack would have left it, called from nowhere, just before it called `entry`.
void* first_stack_pointer(char* stack, void (*entry)()) {
  void** pointer = reinterpret_cast<void**>(stack + STACK_NBYTES - 64);
#if defined(__x86_64__)
  *--pointer = nullptr;  // the address that `entry` would return to
  *--pointer = reinterpret_cast<void*>(entry);
  constexpr int REGISTERS = 6;
  pointer -= REGISTERS;
  std::memset(pointer, 0, REGISTERS * sizeof(void*));
#else
  constexpr int REGISTERS = 22, LINK = 11;
  pointer -= REGISTERS;
  std::memset(pointer, 0, REGISTERS * sizeof(void*));
  pointer[LINK] = reinterpret_cast<void*>(entry);
#endif
  return pointer;
}

#if defined(SIMT_TSAN)
// ThreadSanitizer gives a new fiber the number of one that was destroyed, and then takes the accesses of both for those
// of one thread. So the last of them stay, for as many blocks as its 8,128 numbers allow.
void destroy_late(void* fiber) {
  constexpr size_t KEPT = 2048;
  static void* kept[KEPT];
  static size_t next = 0;
  if (kept[next]) __tsan_destroy_fiber(kept[next]);
  kept[next] = fiber;
  next = (next + 1) % KEPT;
}
#endif

}  // namespace

void prepare(Context& context, char* stack, void (*entry)()) {
  context.stack = stack;
  context.stack_nbytes = STACK_NBYTES;
  *reinterpret_cast<volatile uint64_t*>(stack) = GUARD;
  context.stack_pointer = first_stack_pointer(stack, entry);
#if defined(SIMT_TSAN)
  context.sanitizer = __tsan_create_fiber(0);
#else
  context.sanitizer = nullptr;
#endif
}

bool stack_guard_holds(const Context& context) {
  return *reinterpret_cast<const volatile uint64_t*>(context.stack) == GUARD;
}

void dispose([[maybe_unused]] Context& context) {
#if defined(SIMT_TSAN)
  destroy_late(context.sanitizer);
#endif
  context = Context{};
}

void adopt_host(Context& host) {
  host = Context{};
#if defined(SIMT_TSAN)
  host.sanitizer = __tsan_get_current_fiber();
#endif
}

void switch_context(Context& from, Context& to, [[maybe_unused]] bool from_ends) {
#if defined(SIMT_ASAN)
  __sanitizer_start_switch_fiber(from_ends ? nullptr : &from.sanitizer, to.stack, to.stack_nbytes);
#elif defined(SIMT_TSAN)
  __tsan_switch_to_fiber(to.sanitizer, __tsan_switch_to_fiber_no_sync);
#endif
  simt_switch_stack(&from.stack_pointer, to.stack_pointer);
#if defined(SIMT_ASAN)
  __sanitizer_finish_switch_fiber(from.sanitizer, nullptr, nullptr);
#endif
}

void finish_first_switch([[maybe_unused]] Context& host) {
#if defined(SIMT_ASAN)
  const void* stack;
  size_t nbytes;
  __sanitizer_finish_switch_fiber(nullptr, &stack, &nbytes);
  // The first of a launch comes from the host.
  if (host.stack == nullptr) {
    host.stack = static_cast<char*>(const_cast<void*>(stack));
    host.stack_nbytes = nbytes;
  }
#endif
}

// ThreadSanitizer forgets the accesses to a range that is unmapped through the C library, at no cost for the pages that
// were never touched. It would mark all of a range that is mapped through it as written, so the system call is direct.
char* map_memory(size_t nbytes) {
  const long address =
      syscall(SYS_mmap, nullptr, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0L);
  if (address == -1) {
    std::perror("simt: ERROR no memory for the stacks of a block");
    std::abort();
  }
  return reinterpret_cast<char*>(address);
}

void unmap_memory(char* memory, size_t nbytes) { munmap(memory, nbytes); }

}  // namespace simt
