#include "runtime.h"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <memory>
#include <mutex>

#include "guarded.h"

namespace pf::cuda::host {

constexpr int kLanes = 32;
constexpr int kThreadsMost = 1024, kThreadsOfProcessor = 2048, kBlocksOfProcessor = 32;
constexpr size_t kStaticSharedMost = 48 << 10;
constexpr int kFruitlessRounds = 64;  // in each of which every thread that is left only looked again

Thread* current = nullptr;
Size3 grid_size, block_size;

Options& options() {
  static Options chosen;
  return chosen;
}

bool read_schedule(const char* text, Options& into) {
  static const struct {
    const char* name;
    Schedule schedule;
  } kNames[] = {{"forward", Schedule::forward},
                {"reverse", Schedule::reverse},
                {"depth_first", Schedule::depth_first},
                {"reverse_depth_first", Schedule::reverse_depth_first}};
  for (const auto& row : kNames)
    if (!strcmp(text, row.name)) return into.schedule = row.schedule, true;
  unsigned seed;
  if (sscanf(text, "random:%u", &seed) != 1) return false;
  into.schedule = Schedule::random, into.seed = seed;
  return true;
}
bool read_copies(const char* text, Options& into) {
  if (strcmp(text, "lazy") && strcmp(text, "eager")) return false;
  into.copies = *text == 'l' ? Copies::lazy : Copies::eager;
  return true;
}

namespace {

// Lanes of a warp that wait for the others of their mask.
struct Gathering {
  uint32_t mask, arrived;
  Place at;
  void* lanes[kLanes];
};

struct SharedArray {
  const void* key;
  std::unique_ptr<Guarded> memory;
};

}  // namespace

struct Block {
  std::vector<Thread> threads;
  std::vector<std::vector<Gathering>> warps;
  std::vector<SharedArray> arrays;
  std::unique_ptr<Guarded> dynamic;
  size_t static_bytes;
  int left, arrived;  // threads that have not ended, and of these those at the barrier
  int votes, result;  // how many of them said yes; and at the last one
  unsigned barriers;
  char order[2];  // what the race detector sees them meet at, at every other barrier
};

namespace {

struct Grid {
  Launch launch;
  void (*body)(const void*);
  const void* arguments;
  std::vector<std::unique_ptr<Block>> blocks;  // that are resident
  std::vector<Thread*> threads;                // theirs
  std::vector<uint64_t> ready;                 // a bit for each
  int ready_count, left, fruitless;
  uint32_t random;
  Fiber caller;
  char starts, ends;  // what the race detector sees the caller and the threads meet at
};
Grid grid;
char message[2048];
bool has_failed;

// ---- who runs next

void set_ready(Thread& thread) {
  thread.state = Thread::kReady;
  grid.ready[thread.position / 64] |= uint64_t(1) << thread.position % 64;
  grid.ready_count++;
}
void set_waiting(Thread& thread, Thread::State state, const Place& at) {
  thread.state = state, thread.at = at;
  grid.ready[thread.position / 64] &= ~(uint64_t(1) << thread.position % 64);
  grid.ready_count--;
}

// The first thread that is ready, from this position on and then from the first on; there is one.
int ready_from(int position) {
  const int words = (int)grid.ready.size();
  int word = position / 64;
  uint64_t bits = grid.ready[word] & ~uint64_t(0) << position % 64;
  while (!bits) bits = grid.ready[word = (word + 1) % words];
  return word * 64 + __builtin_ctzll(bits);
}
// And the last one down to the first, and then down from the last.
int ready_down_from(int position) {
  const int words = (int)grid.ready.size();
  int word = position / 64;
  uint64_t bits = grid.ready[word] & ~uint64_t(0) >> (63 - position % 64);
  while (!bits) bits = grid.ready[word = (word + words - 1) % words];
  return word * 64 + 63 - __builtin_clzll(bits);
}

uint32_t draw() {  // Marsaglia 2003, "Xorshift RNGs"
  uint32_t& x = grid.random;
  x ^= x << 13, x ^= x >> 17, x ^= x << 5;
  return x;
}

int choose() {
  const int count = (int)grid.threads.size(), here = current ? current->position : 0;
  switch (options().schedule) {
    case Schedule::forward: return ready_from((here + 1) % count);
    case Schedule::reverse: return ready_down_from((here + count - 1) % count);
    case Schedule::depth_first: return ready_from(0);
    case Schedule::reverse_depth_first: return ready_down_from(count - 1);
    case Schedule::random: return ready_from((int)(draw() % (uint32_t)count));
  }
  return 0;
}

void switch_to(Thread* next) {
  Thread* from = current;
  if (next == from) return;
  current = next;
  switch_fiber(from ? from->fiber : grid.caller, next->fiber);
}

const char* describe(char* into, size_t size, const Thread& thread) {
  const Size3 &t = thread.index, &b = thread.block_index;
  snprintf(into, size, "thread (%u, %u, %u) of block (%u, %u, %u)", t.x, t.y, t.z, b.x, b.y, b.z);
  return into;
}

// Nobody can go on: those that wait, and for what.
[[noreturn]] void fail_for_waiting(const char* what) {
  char text[1024], who[96];
  size_t length = 0;
  const Thread* last = nullptr;
  for (const Thread* thread : grid.threads) {
    if (thread->state == Thread::kDone || length > sizeof text - 200) continue;
    if (last && last->block == thread->block && last->at.line == thread->at.line && last->at.name == thread->at.name)
      continue;
    last = thread;
    length += (size_t)snprintf(text + length, sizeof text - length, "%s%s at %s (%s:%d)", length ? "; " : "",
                               describe(who, sizeof who, *thread), thread->at.name, thread->at.file, thread->at.line);
  }
  fail(last->at, "%s: %s", what, text);
}

// Lets others run, until somebody makes this thread ready again.
void leave() {
  if (!grid.ready_count) {
    int spinning = 0;
    for (Thread* thread : grid.threads) spinning += thread->state == Thread::kSpins;
    if (!spinning) fail_for_waiting("deadlock, nobody can go on");
    if (++grid.fruitless > kFruitlessRounds) fail_for_waiting("livelock, what they look for is never written");
    for (Thread* thread : grid.threads)
      if (thread->state == Thread::kSpins) set_ready(*thread);
  }
  switch_to(grid.threads[choose()]);
}

// ---- the end of a thread

void expect_no_lane_left(const Thread& gone) {
  char who[96];
  for (const Gathering& g : gone.block->warps[gone.warp])
    if (g.mask >> gone.lane & 1)
      fail(g.at, "lane %d of the mask %08x has left the kernel (%s)", gone.lane, g.mask,
           describe(who, sizeof who, gone));
}

void release_barrier(Block& block) {
  block.result = block.votes, block.arrived = block.votes = 0, block.barriers++;
  for (Thread& thread : block.threads)
    if (thread.state == Thread::kAtBarrier) set_ready(thread);
}

void thread_main() {
  begin_fiber();
  happens_after(&grid.starts);
  grid.body(grid.arguments);
  happens_before(&grid.ends);
  Thread& gone = *current;
  made_progress();
  set_waiting(gone, Thread::kDone, {"", "", 0});
  expect_no_lane_left(gone);
  Block& block = *gone.block;
  grid.left--;
  if (--block.left && block.arrived == block.left) release_barrier(block);
  if (grid.left) leave();
  switch_fiber(gone.fiber, grid.caller);
  abort();  // nobody comes back
}

// ---- addresses that nothing lies at

#if !defined(__SANITIZE_ADDRESS__)
thread_local bool is_launching = false;
const char* fault_address;
struct sigaction earlier_segv, earlier_bus;

bool is_on_full_stack() {
  const char* stack = (const char*)current->fiber.stack;
  return fault_address < stack && fault_address >= stack - kStackGuard;
}

void fail_for_fault() {
  const Place at = {"", "memory", 0};
  if (is_on_full_stack()) fail(at, "the stack of %zu bytes is full", current->fiber.stack_bytes);
  if (const Guarded* near = Guarded::around(fault_address))
    fail(at, "an access %td bytes behind the start of %s, which has %zu", fault_address - (const char*)near->data(),
         near->name, near->bytes);
  fail(at, "an access to %p, where nothing lies", (const void*)fault_address);
}

// Goes on, in the fiber, with fail_for_fault; what the fiber was at is lost with it.
void on_fault(int signal, siginfo_t* info, void* context) {
  if (!is_launching) {
    sigaction(signal, signal == SIGSEGV ? &earlier_segv : &earlier_bus, nullptr);
    return;  // and faults again
  }
  fault_address = (const char*)info->si_addr;
#if defined(__x86_64__)
  greg_t* registers = ((ucontext_t*)context)->uc_mcontext.gregs;
  greg_t top = registers[REG_RSP] - 256;  // beyond the red zone
  if (is_on_full_stack()) top = (greg_t)current->fiber.stack + (greg_t)current->fiber.stack_bytes - 256;
  registers[REG_RSP] = (top & ~greg_t(15)) - 8;  // as after a call
  registers[REG_RIP] = (greg_t)fail_for_fault;
#else
  fail_for_fault();
#endif
}

class Faults {
 public:
  Faults() {
    stack.ss_sp = memory, stack.ss_size = sizeof memory;
    sigaltstack(&stack, &earlier_stack);
    struct sigaction action = {};
    action.sa_sigaction = on_fault, action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &earlier_segv);
    sigaction(SIGBUS, &action, &earlier_bus);
    is_launching = true;
  }
  ~Faults() {
    is_launching = false;
    sigaction(SIGSEGV, &earlier_segv, nullptr);
    sigaction(SIGBUS, &earlier_bus, nullptr);
    sigaltstack(&earlier_stack, nullptr);
  }

 private:
  char memory[64 << 10];
  stack_t stack = {}, earlier_stack = {};
};
#else
struct Faults {
  Faults() {}
  ~Faults() {}
};
#endif

}  // namespace

void fail(const Place& at, const char* format, ...) {
  char who[96];
  int length = snprintf(message, sizeof message, "%s, ", grid.launch.kernel);
  if (current)
    length += snprintf(message + length, sizeof message - length, "%s, ", describe(who, sizeof who, *current));
  length += snprintf(message + length, sizeof message - length, "%s", at.name);
  if (at.line) length += snprintf(message + length, sizeof message - length, " (%s:%d)", at.file, at.line);
  length += snprintf(message + length, sizeof message - length, ": ");
  va_list rest;
  va_start(rest, format);
  vsnprintf(message + length, sizeof message - length, format, rest);
  va_end(rest);
  has_failed = true;
  switch_fiber(current->fiber, grid.caller);
  abort();
}

// ---- shared memory

void* shared_array(const void* key, size_t bytes, const char* name) {
  Block& block = *current->block;
  for (const SharedArray& array : block.arrays)
    if (array.key == key) return array.memory->data();
  block.static_bytes += bytes;
  const Place at = {"", name, 0};
  if (block.static_bytes > kStaticSharedMost)
    fail(at, "%zu bytes of shared arrays, of at most %zu; more are dynamic", block.static_bytes, kStaticSharedMost);
  if (block.static_bytes + grid.launch.dynamic_shared > options().shared_bytes)
    fail(at, "%zu bytes of shared memory, of %zu that a block may have",
         block.static_bytes + grid.launch.dynamic_shared, options().shared_bytes);
  block.arrays.push_back({key, std::make_unique<Guarded>(bytes, name)});
  return block.arrays.back().memory->data();
}

void* dynamic_shared() { return current->block->dynamic->data(); }

// ---- barriers

int block_barrier(const Place& at, bool vote) {
  Block& block = *current->block;
  char who[96];
  for (const Thread& other : block.threads)  // the first of them stands for all that are there
    if (other.state == Thread::kAtBarrier) {
      if (other.at.line != at.line || strcmp(other.at.file, at.file))
        fail(at, "another barrier than that of %s (%s:%d): threads of a block diverged",
             describe(who, sizeof who, other), other.at.file, other.at.line);
      break;
    }
  made_progress();
  block.votes += vote;
  char* const order = &block.order[block.barriers % 2];
  happens_before(order);
  if (++block.arrived == block.left) {
    release_barrier(block);
  } else {
    set_waiting(*current, Thread::kAtBarrier, at);
    leave();
  }
  happens_after(order);
  return block.result;
}

void collective(const Place& at, uint32_t mask, void* mine, Complete* complete) {
  Thread& thread = *current;
  std::vector<Gathering>& warp = thread.block->warps[thread.warp];
  char who[96];
  if (!(mask >> thread.lane & 1)) fail(at, "lane %d is not in its own mask %08x", thread.lane, mask);
  Gathering* found = nullptr;
  for (Gathering& g : warp) {
    if (g.mask == mask && g.at.line == at.line && !strcmp(g.at.name, at.name) && !strcmp(g.at.file, at.file))
      found = &g;
    else if (g.mask & mask)
      fail(at,
           "lanes %08x of the mask %08x are at %s (%s:%d), and this one came with the mask %08x: lanes of a warp "
           "diverged",
           g.arrived, g.mask, g.at.name, g.at.file, g.at.line, mask);
  }
  if (!found) {
    Thread* const lanes = &thread.block->threads[thread.warp * kLanes];
    const int count = (int)thread.block->threads.size() - thread.warp * kLanes;
    for (int lane = 0; lane < kLanes; lane++)
      if (mask >> lane & 1 && (lane >= count || lanes[lane].state == Thread::kDone)) {
        if (lane >= count) fail(at, "lane %d of the mask %08x is beyond the block's threads", lane, mask);
        fail(at, "lane %d of the mask %08x has left the kernel (%s)", lane, mask,
             describe(who, sizeof who, lanes[lane]));
      }
    warp.push_back({mask, 0, at, {}});
    found = &warp.back();
  }
  made_progress();
  found->arrived |= 1u << thread.lane;
  found->lanes[thread.lane] = mine;
  if (found->arrived != mask) {
    set_waiting(thread, Thread::kGathers, at);
    return leave();
  }
  const Gathering whole = *found;
  *found = warp.back(), warp.pop_back();
  if (complete) complete(whole.lanes, mask);
  for (int lane = 0; lane < kLanes; lane++)
    if (mask >> lane & 1 && lane != thread.lane) set_ready(thread.block->threads[thread.warp * kLanes + lane]);
}

void warp_barrier(const Place& at, uint32_t mask) {
  const void* order = &current->block->warps[current->warp];
  happens_before(order);
  collective(at, mask, nullptr, nullptr);
  happens_after(order);
}

void spin(const Place& at) {
  set_waiting(*current, Thread::kSpins, at);
  leave();
}
void made_progress() { grid.fruitless = 0; }

// ---- copies

void add_copy(const AsyncCopy& copy) { current->copies.push_back(copy); }
void commit_copies() { current->groups.push_back(current->copies.size()); }
const AsyncCopy* next_copy(int groups) {
  Thread& thread = *current;
  const int last = (int)thread.groups.size() - groups - 1;
  if (last < 0 || thread.copied == thread.groups[last]) return nullptr;
  return &thread.copies[thread.copied++];
}

// ---- launches

int blocks_each(int threads, size_t shared) {
  int most = kThreadsOfProcessor / ((threads + kLanes - 1) / kLanes * kLanes);
  if (most > kBlocksOfProcessor) most = kBlocksOfProcessor;
  const size_t of_processor = options().shared_bytes + 1024, of_block = shared + 1024;  // a kilobyte is the system's
  return (int)(of_processor / of_block) < most ? (int)(of_processor / of_block) : most;
}

namespace {

// What a device would refuse; null: nothing.
const char* refuse(const Launch& l) {
  auto say = [&](const char* format, auto... values) {
    const int length = snprintf(message, sizeof message, "%s: ", l.kernel);
    snprintf(message + length, sizeof message - length, format, values...);
    return message;
  };
  const size_t blocks = (size_t)l.grid.x * l.grid.y * l.grid.z;
  if (l.threads < 1 || l.threads > kThreadsMost) return say("%d threads a block, of 1 to %d", l.threads, kThreadsMost);
  if (l.threads * l.blocks_each > kThreadsOfProcessor)
    return say("launch bounds of %d threads and %d blocks, of at most %d threads", l.threads, l.blocks_each,
               kThreadsOfProcessor);
  if (!blocks || l.grid.x > 0x7fffffffu || l.grid.y > 65535 || l.grid.z > 65535)
    return say("a grid of %u x %u x %u blocks", l.grid.x, l.grid.y, l.grid.z);
  if (l.dynamic_shared > options().shared_bytes)
    return say("%zu bytes of dynamic shared memory, of %zu that a block may have", l.dynamic_shared,
               options().shared_bytes);
  const int resident = blocks_each(l.threads, l.dynamic_shared) * options().processors;
  if (l.is_cooperative && blocks > (size_t)resident)
    return say("a cooperative launch of %zu blocks, of %d that are resident at once", blocks, resident);
  return nullptr;
}

void begin_block(Block& block, int64_t number) {
  const Launch& l = grid.launch;
  block.threads = std::vector<Thread>((size_t)l.threads);
  block.warps.assign((size_t)(l.threads + kLanes - 1) / kLanes, {});
  block.arrays.clear();
  block.dynamic = std::make_unique<Guarded>(l.dynamic_shared, "the dynamic shared memory");
  block.static_bytes = 0, block.left = l.threads, block.arrived = block.votes = block.result = 0, block.barriers = 0;
  for (int i = 0; i < l.threads; i++) {
    Thread& thread = block.threads[i];
    thread.block = &block, thread.number = i, thread.warp = i / kLanes, thread.lane = i % kLanes;
    thread.index = Size3((unsigned)i, 0, 0);
    thread.block_index = Size3((unsigned)(number % l.grid.x), (unsigned)(number / l.grid.x % l.grid.y),
                               (unsigned)(number / l.grid.x / l.grid.y));
    thread.copied = 0, thread.at = {"", "", 0};
    thread.position = (int)grid.threads.size();
    grid.threads.push_back(&thread);
    if (!prepare(thread.fiber, thread_main)) abort();
  }
}

// Was every shared array left as it was around it? Else says so.
bool is_intact(const Block& block) {
  auto say = [&](const Guarded& memory) {
    if (memory.is_intact()) return true;
    const Size3& b = block.threads[0].block_index;
    snprintf(message, sizeof message, "%s, block (%u, %u, %u): a write just outside of %s, which has %zu bytes",
             grid.launch.kernel, b.x, b.y, b.z, memory.name, memory.bytes);
    return false;
  };
  for (const SharedArray& array : block.arrays)
    if (!say(*array.memory)) return false;
  return say(*block.dynamic);
}

// The blocks [first, last), side by side, to their end; false: `message` says why not.
bool run_blocks(int64_t first, int64_t last) {
  grid.threads.clear();
  while ((int64_t)grid.blocks.size() < last - first) grid.blocks.push_back(std::make_unique<Block>());
  for (int64_t number = first; number < last; number++) begin_block(*grid.blocks[number - first], number);
  grid.left = (int)grid.threads.size();
  grid.ready.assign((grid.threads.size() + 63) / 64, 0);
  grid.ready_count = grid.fruitless = 0;
  for (Thread* thread : grid.threads) set_ready(*thread);
  has_failed = false, current = nullptr;
  happens_before(&grid.starts);
  switch_to(grid.threads[choose()]);  // who comes back when all have ended, or one has failed
  happens_after(&grid.ends);
  current = nullptr;
  bool is_right = !has_failed;
  for (Thread* thread : grid.threads) forget(thread->fiber, thread->state == Thread::kDone);
  for (int64_t i = 0; is_right && i < last - first; i++) is_right = is_intact(*grid.blocks[i]);
  return is_right;
}

}  // namespace

const char* run(const Launch& launch, void (*body)(const void*), const void* arguments) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  grid.launch = launch, grid.body = body, grid.arguments = arguments;
  if (const char* reason = refuse(launch)) return reason;
  const Faults faults;
  grid.random = options().seed * 2654435761u + 1;
  adopt(grid.caller);
  grid_size = launch.grid, block_size = Size3((unsigned)launch.threads);
  const int64_t blocks = (int64_t)launch.grid.x * launch.grid.y * launch.grid.z;
  const int64_t at_once = launch.is_cooperative ? blocks : 1;
  bool is_right = true;
  for (int64_t first = 0; is_right && first < blocks; first += at_once) is_right = run_blocks(first, first + at_once);
  grid.blocks.clear(), grid.threads.clear();
  return is_right ? nullptr : message;
}

}  // namespace pf::cuda::host
