#include "guarded.h"

#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace pf::cuda::host {

namespace {

constexpr size_t kAlignment = 16;
constexpr uint8_t kPoison = 0xff;
Guarded* first = nullptr;

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kGuard = 0;  // its redzones say more
#else
const size_t kGuard = (size_t)sysconf(_SC_PAGESIZE);
#endif

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

}  // namespace

Guarded::Guarded(size_t bytes, const char* name) : name(name), bytes(bytes), before(nullptr), behind(first) {
  const size_t inner = round_up(bytes, kAlignment);
#if defined(__SANITIZE_ADDRESS__)
  mapped = bytes;
  mapping = begin = (char*)malloc(bytes);
  if (!mapping) abort();
  (void)inner;
#else
  mapped = round_up(inner, kGuard) + 2 * kGuard;
  // By its number: ThreadSanitizer takes what mmap returns for written by who called it.
  mapping = (char*)syscall(SYS_mmap, nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) abort();
  mprotect(mapping, kGuard, PROT_NONE);
  mprotect(mapping + mapped - kGuard, kGuard, PROT_NONE);
  begin = mapping + mapped - kGuard - inner;
#endif
  if (first) first->before = this;
  first = this;
  poison();
}

Guarded::~Guarded() {
  (before ? before->behind : first) = behind;
  if (behind) behind->before = before;
#if defined(__SANITIZE_ADDRESS__)
  free(mapping);
#else
  syscall(SYS_munmap, mapping, mapped);
#endif
}

void Guarded::poison() {  // byte by byte: ThreadSanitizer watches memset, also here
  for (volatile char* at = mapping + kGuard; at < mapping + mapped - kGuard; at = at + 1) *at = (char)kPoison;
}

bool Guarded::is_intact() const {
  for (const char* at = mapping + kGuard; at < mapping + mapped - kGuard; at++)
    if ((at < begin || at >= begin + bytes) && *(const uint8_t*)at != kPoison) return false;
  return true;
}

const Guarded* Guarded::around(const void* address) {
  for (const Guarded* at = first; at; at = at->behind)
    if ((const char*)address >= at->mapping && (const char*)address < at->mapping + at->mapped) return at;
  return nullptr;
}

}  // namespace pf::cuda::host
