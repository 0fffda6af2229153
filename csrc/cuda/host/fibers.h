// Fibers: what runs a CUDA thread on the CPU. They take turns on one thread of the system, so that a run can be had
// again, and a switch costs 20 ns, where a barrier of the system's threads costs microseconds.
#pragma once
#include <stddef.h>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace pf::cuda::host {

// A stack of its own, and where on it the fiber left off.
struct Fiber {
  void* stack = nullptr;  // its lowest byte
  size_t stack_bytes = 0;
  void* race_detector = nullptr;  // ThreadSanitizer's name of it
#if defined(__x86_64__)
  void* left_off = nullptr;
#else
  ucontext_t left_off;
#endif
};

constexpr size_t kStackBytes = 128 << 10;  // AddressSanitizer's frames are several times as large as others
constexpr size_t kStackGuard = 1 << 20;    // below it, where what runs over its end stops

// The thread of the system itself, as what a fiber is switched to from.
void adopt(Fiber& fiber);
// A fiber that, when it is first switched to, calls `entry`, which must not return; false: there is no memory.
bool prepare(Fiber& fiber, void (*entry)());
// Leaves `from` and goes on where `to` left off.
void switch_fiber(Fiber& from, Fiber& to);
// The first thing that an entry does.
void begin_fiber();
// Its stack is another's from here on. `has_ended`: it was not left amid its calls, because something failed.
void forget(Fiber& fiber, bool has_ended);

// ThreadSanitizer's view: what was written before a release is seen after an acquire of the same address.
void happens_before(const void* at);
void happens_after(const void* at);

}  // namespace pf::cuda::host
