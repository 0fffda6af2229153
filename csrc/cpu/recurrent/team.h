// How a recurrent layer is shared between threads, and the barrier of those that have to meet in every step.
//
// Two directions run side by side when the threads are even in number. Within a direction the sequences are dealt out
// to groups of threads, which never meet; the threads of a group own slices of the units and meet after each step,
// because each of them reads all of h. Groups of one thread are best while the recurrent weights fit its L2 and every
// group has sequences enough to fill a tile.
#pragma once
#include <sched.h>
#include "../../common/recurrent.h"
#include "../core/parallel.h"
#include "../simd/operand.h"

namespace PF_ISA::recurrent {

namespace {

constexpr int64_t kSliceBytes = 1 << 20;  // of recurrent weights, per thread
constexpr int64_t kGroupRows = 6;         // sequences a group should have
constexpr int64_t kStepFlops = 1 << 15;   // per thread, or the barrier of a step costs more than the thread brings

constexpr int kSpins = 256;  // some microseconds: longer than a step's threads are apart while all of them run

struct Plan {
  int threads, sides, groups, slices;  // threads = sides * groups * slices
};

// Bytes of a weight in the panels.
PF_INLINE int64_t weight_size(Dtype dtype) {
  int64_t size = 0;
  for_dtype(dtype, [&](auto storage) { size = sizeof(Term<Operand<decltype(storage)>>); });
  return size;
}

// `threads`: no more than these are there.
PF_INLINE Plan plan_team(const RnnShape& s, int threads) {
  const int64_t gate_rows = gate_count(s.cell) * s.hidden;
  const int64_t step_flops = 2 * s.batch * gate_rows * s.output;
  const int64_t flops = s.directions * s.length * 2 * s.batch * gate_rows * (s.input + s.output);
  threads = (int)max_of(1, min_of(threads, flops / kThreadFlops));
  Plan plan;
  plan.sides = s.directions == 2 && threads % 2 == 0 ? 2 : 1;
  const int64_t weight_bytes = gate_rows * s.output * weight_size(s.dtype);
  const int64_t max_slices = ceil_div(s.hidden, PF_VECTOR_BYTES);
  for (int each = threads / plan.sides;; each--) {
    plan.slices = 1;
    while (plan.slices < each && (each % plan.slices || weight_bytes > plan.slices * kSliceBytes ||
                                  s.batch * plan.slices < kGroupRows * each))
      plan.slices++;
    plan.groups = each / plan.slices;
    plan.threads = plan.sides * each;
    if (each == 1 || plan.slices == 1 || (plan.slices <= max_slices && step_flops >= plan.slices * kStepFlops))
      return plan;
  }
}

struct Arrival {
  int64_t step;
  char apart[56];  // a cache line each
};

// Meets the threads of one group. On a busy machine the others may not be running: the processor is given up soon.
struct Barrier {
  Arrival* arrivals;
  int members, me;
  int64_t step;
  void wait() {
    if (members == 1) return;
    __atomic_store_n(&arrivals[me].step, ++step, __ATOMIC_RELEASE);
    for (int other = 0; other < members; other++)
      for (int spins = 0; __atomic_load_n(&arrivals[other].step, __ATOMIC_ACQUIRE) < step; spins++) {
        if (spins < kSpins)
          spin_pause();
        else
          sched_yield();
      }
  }
};

// What one thread does.
struct Part {
  int thread, side, slice, slices;
  int64_t group, first, every, rows;  // sequences first, first + every, ...: sorted by length, so each has its share
  Barrier barrier;
  // Its share of `count` panels.
  int64_t begin(int64_t count) const { return count * slice / slices; }
  int64_t end(int64_t count) const { return count * (slice + 1) / slices; }
  // How many of its sequences are among the first `active`.
  int64_t rows_of(int64_t active) const { return active > first ? ceil_div(active - first, every) : 0; }
};

PF_INLINE int64_t group_rows(const RnnShape& s, const Plan& plan) { return ceil_div(s.batch, plan.groups); }

// body(direction, part, plan) on every thread of the team. `arrivals`: one a thread.
template <class Body>
PF_INLINE void run_team(const RnnShape& s, int threads, Arrival* arrivals, Body body) {
  const Plan wanted = plan_team(s, threads);
  memset(arrivals, 0, wanted.threads * sizeof(Arrival));
  auto work = [&](int thread, int team) {
    const Plan plan = team == wanted.threads ? wanted : plan_team(s, team);  // fewer threads may be given
    if (thread >= plan.threads) return;
    Part part;
    part.thread = thread;
    part.slices = plan.slices;
    part.side = thread / (plan.groups * plan.slices);
    part.group = thread / plan.slices % plan.groups;
    part.slice = thread % plan.slices;
    part.first = part.group;
    part.every = plan.groups;
    part.rows = part.rows_of(s.batch);
    part.barrier = {arrivals + thread - part.slice, plan.slices, part.slice, 0};
    for (int64_t d = part.side; d < s.directions; d += plan.sides) body(d, part, plan);
  };
  if (wanted.threads == 1) return work(0, 1);
#pragma omp parallel num_threads(wanted.threads)
  work(omp_get_thread_num(), omp_get_num_threads());
}

PF_INLINE int64_t active_sequences(const RnnShape& s, const RnnRows& rows, int64_t t) {
  return t < 0 || t >= s.length ? 0 : rows.active ? rows.active[t] : s.batch;
}

// Rows of one direction of `cells` and `gates`.
PF_INLINE int64_t kept_rows(const RnnShape& s, const RnnRows& rows) {
  return rows.is_packed ? rows.offsets[s.length - 1] + rows.active[s.length - 1] : s.length * s.batch;
}

// Where in the tensors the sequences of a thread, numbered j, have their rows.
struct Places {
  const RnnShape& s;
  const RnnRows& rows;
  const Part& part;
  int64_t direction;

  int64_t position(int64_t j) const { return part.first + j * part.every; }  // in order of length
  int64_t sequence(int64_t j) const { return rows.order ? rows.order[position(j)] : position(j); }
  int64_t step(int64_t t) const { return rows.is_packed ? rows.offsets[t] : t; }
  int64_t active(int64_t t) const { return part.rows_of(active_sequences(s, rows, t)); }
  int64_t state(int64_t j) const { return direction * s.batch + sequence(j); }  // row of h_0, c_0, h_n, c_n
  int64_t y(int64_t t, int64_t j) const {                                       // counting halves of rows
    return (step(t) * rows.y_step_rows + sequence(j) * rows.y_row_rows) * s.directions + direction;
  }
  int64_t kept(int64_t t, int64_t j) const {  // row of `cells` and `gates`
    return direction * kept_rows(s, rows) + step(t) * (rows.is_packed ? 1 : s.batch) + sequence(j);
  }
};

}  // namespace

}  // namespace PF_ISA::recurrent
