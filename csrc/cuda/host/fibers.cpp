#include "fibers.h"

#include <pthread.h>
#include <stdint.h>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// ThreadSanitizer's interface, absent where nothing is compiled for it. This file is not: what it does is no race.
extern "C" {
void* __tsan_create_fiber(unsigned) __attribute__((weak));
void __tsan_destroy_fiber(void*) __attribute__((weak));
void* __tsan_get_current_fiber() __attribute__((weak));
void __tsan_switch_to_fiber(void*, unsigned) __attribute__((weak));
void __tsan_acquire(void*) __attribute__((weak));
void __tsan_release(void*) __attribute__((weak));
}

namespace pf::cuda::host {

namespace {

// What fibers that have ended leave to those to come. ThreadSanitizer makes a fiber by mapping its memory: one for each
// thread of each block would be most of the time.
struct Kept {
  Kept* next;
  void* race_detector;
};
Kept* kept = nullptr;

void* new_stack() {
  char* at = (char*)mmap(nullptr, kStackGuard + kStackBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) return nullptr;
  mprotect(at + kStackGuard, kStackBytes, PROT_READ | PROT_WRITE);
  return at + kStackGuard;
}

}  // namespace

#if defined(__x86_64__)
// What a called function must keep is saved on the stack that is left and restored from the one that is entered.
asm(R"(
.text
.p2align 4
.hidden pf_switch_stack
.globl pf_switch_stack
pf_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
extern "C" void pf_switch_stack(void** left_off, void* to);
#endif

void adopt(Fiber& fiber) {
  fiber = Fiber();
#if defined(__SANITIZE_ADDRESS__)
  pthread_attr_t attributes;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &fiber.stack, &fiber.stack_bytes);
  pthread_attr_destroy(&attributes);
#endif
  if (__tsan_get_current_fiber) fiber.race_detector = __tsan_get_current_fiber();
}

bool prepare(Fiber& fiber, void (*entry)()) {
  fiber.stack_bytes = kStackBytes;
  if (kept) {
    fiber.stack = kept, fiber.race_detector = kept->race_detector;
    kept = kept->next;
  } else {
    fiber.stack = new_stack();
  }
  if (!fiber.stack) return false;
  if (__tsan_create_fiber && !fiber.race_detector) fiber.race_detector = __tsan_create_fiber(0);
#if defined(__x86_64__)
  void** top = (void**)((char*)fiber.stack + kStackBytes);
  *--top = nullptr;       // where an entry would return to
  *--top = (void*)entry;  // where the switch returns to, at the alignment of a called function
  for (int i = 0; i < 6; i++) *--top = nullptr;
  fiber.left_off = top;
#else
  getcontext(&fiber.left_off);
  fiber.left_off.uc_stack.ss_sp = fiber.stack, fiber.left_off.uc_stack.ss_size = kStackBytes;
  fiber.left_off.uc_link = nullptr;
  makecontext(&fiber.left_off, entry, 0);
#endif
  return true;
}

void switch_fiber(Fiber& from, Fiber& to) {
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(to.race_detector, 1);  // 1: a switch orders nothing
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, to.stack, to.stack_bytes);
#endif
#if defined(__x86_64__)
  pf_switch_stack(&from.left_off, to.left_off);
#else
  swapcontext(&from.left_off, &to.left_off);
#endif
#if defined(__SANITIZE_ADDRESS__)
  const void* stack;
  size_t bytes;
  __sanitizer_finish_switch_fiber(fake_stack, &stack, &bytes);
#endif
}

void begin_fiber() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

void forget(Fiber& fiber, bool has_ended) {
  // Of one that was left amid its calls, the race detector's memory of these does not fit another's.
  if (__tsan_destroy_fiber && fiber.race_detector && !has_ended) {
    __tsan_destroy_fiber(fiber.race_detector);
    fiber.race_detector = nullptr;
  }
  if (fiber.stack) {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(fiber.stack, fiber.stack_bytes);  // of frames that were never left
#endif
    Kept* const free = (Kept*)fiber.stack;
    *free = {kept, fiber.race_detector};
    kept = free;
  }
  fiber = Fiber();
}

void happens_before(const void* at) {
  if (__tsan_release) __tsan_release((void*)at);
}
void happens_after(const void* at) {
  if (__tsan_acquire) __tsan_acquire((void*)at);
}

}  // namespace pf::cuda::host
