// Memory that says when something runs over its end: pages behind it and in front that nothing may touch.
#pragma once
#include <stddef.h>

namespace pf::cuda::host {

class Guarded {
 public:
  Guarded(size_t bytes, const char* name);
  ~Guarded();
  Guarded(const Guarded&) = delete;
  void* data() const { return begin; }
  void poison();  // 0xff, in and around it: NaN in every type
  // Was nothing written between it and its pages? (What ends it is aligned to 16 bytes.)
  bool is_intact() const;
  // Of those that live, the one that this address lies in or near; null where there is none.
  static const Guarded* around(const void* address);

  const char* const name;
  const size_t bytes;

 private:
  char *mapping, *begin;
  size_t mapped;
  Guarded *before, *behind;
};

}  // namespace pf::cuda::host
