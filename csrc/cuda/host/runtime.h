// Runs the threads of a CUDA grid on the CPU, in a given order, and stops with a sentence at what CUDA leaves
// undefined. Names in capitals and underscores are in names.h; this is what they are made of.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <vector>

#include "fibers.h"

namespace pf::cuda::host {

// Which thread runs when several may. Depth first lets one warp run ahead to the next barrier of its block, which shows
// what lacks a barrier; random takes any, the same ones for the same seed.
enum class Schedule { forward, reverse, depth_first, reverse_depth_first, random };
// When cp.async copies: at the wait for it, which shows a wait that is missing or too weak, or at once, which shows
// memory that is written while others still read it.
enum class Copies { lazy, eager };

struct Options {
  Schedule schedule = Schedule::forward;
  uint32_t seed = 0;
  Copies copies = Copies::lazy;
  size_t shared_bytes =
      227 << 10;         // that a block may have: sm_90 and sm_100; 163 KB sm_80, 99 KB sm_86, sm_89 and sm_120
  int processors = 132;  // of the device that is stood in for
};
Options& options();

// "depth_first", "random:7"; false: there is no such schedule.
bool read_schedule(const char* text, Options& into);
bool read_copies(const char* text, Options& into);

struct Size3 {
  unsigned x = 1, y = 1, z = 1;
  Size3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// Where a kernel calls what.
struct Place {
  const char *file, *name;
  int line;
};

struct AsyncCopy {
  void* to;
  const void* from;
  int bytes;
  bool is_inside;
};

struct Block;

struct Thread {
  Fiber fiber;
  Size3 index, block_index;
  Block* block;
  int position;            // among the threads that are resident
  int number, warp, lane;  // in the block, and of its warp
  enum State { kReady, kAtBarrier, kGathers, kSpins, kDone } state;
  Place at;  // where it waits
  std::vector<AsyncCopy> copies;
  std::vector<size_t> groups;  // how many copies each committed group of them ends behind
  size_t copied, groups_done;
};
extern Thread* current;
extern Size3 grid_size, block_size;

// Ends the launch with a sentence, as printf has it, about the thread that runs.
[[noreturn]] void fail(const Place& at, const char* format, ...) __attribute__((format(printf, 2, 3)));

// The array of the block that is declared at `key`; bytes of 0xff at first, which is NaN in every type.
void* shared_array(const void* key, size_t bytes, const char* name);
void* dynamic_shared();

// All threads of the block that have not ended; how many of them said `vote`.
int block_barrier(const Place& at, bool vote = false);

// The lanes of `mask`: the last one there calls complete(what each gave, by lane; the mask) for all of them.
typedef void Complete(void* const* lanes, uint32_t mask);
void collective(const Place& at, uint32_t mask, void* mine, Complete* complete);
// The one that also orders memory.
void warp_barrier(const Place& at, uint32_t mask);

// Lets others run: what is waited for may be theirs to write.
void spin(const Place& at);
// Somebody may have waited for what was just written.
void made_progress();

// The next copy that a wait for all but the last `groups` groups makes; null when there are no more.
const AsyncCopy* next_copy(int groups);
void add_copy(const AsyncCopy& copy);
void commit_copies();

struct Launch {
  Size3 grid;
  int threads, blocks_each;  // of a block; that an SM must be able to hold
  size_t dynamic_shared;
  bool is_cooperative;
  const char* kernel;
};
// Null, or what is wrong; valid until the next launch of this thread.
const char* run(const Launch& launch, void (*body)(const void* arguments), const void* arguments);
int blocks_each(int threads, size_t shared);

}  // namespace pf::cuda::host
