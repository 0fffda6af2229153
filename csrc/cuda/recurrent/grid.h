// How the blocks of a launch share out units and sequences, and how they wait for one another.
//
// A block has some units with all their gates. The blocks of all units, in one direction, are a group; it walks some
// sequences, and groups know nothing of each other. What a group's blocks tell each other lies in global memory twice,
// by the parity of the step, and a counter says how many of them are done with it: a block that has seen all of them
// behind a step may overwrite what was read in the step before.
#pragma once
#include "places.h"
#include "products.h"

namespace pf::cuda::recurrent {

constexpr int kMostRows = 64;   // sequences of a group: room for their states beside the weights
constexpr int kFlagWords = 32;  // a line of its own for each counter
constexpr int64_t kAligned = 128;

struct Grid {
  int64_t first_row;                // of the sorted sequences, those of this launch
  int count;                        // how many
  int rows;                         // of a group, a multiple of kColumns
  int groups, blocks;               // of a direction; of a group
  int first_direction, directions;  // of this launch
  int64_t pitch;                    // bytes of a unit's worth of gates of a sequence, whole pieces
  uint32_t* flags;                  // of this launch
  char* exchange;                   // [2, directions, groups, rows, gates that are exchanged, pitch]
};

// A block's part of it.
template <int kUnits>
struct Own {
  int64_t direction, first_row, first_unit;
  int rows;  // of the group, with a last tile that may not be full
  uint32_t* flag;
  char* exchange;
  int64_t row_bytes, half;  // of a sequence; from one parity to the other

  __device__ Own(const Grid& grid, int exchanged) {
    const int group = (int)blockIdx.x / grid.blocks;
    direction = grid.first_direction + group / grid.groups;
    first_unit = (int64_t)((int)blockIdx.x % grid.blocks) * kUnits;
    const int first = group % grid.groups * grid.rows, left = grid.count - first;
    first_row = grid.first_row + first;
    rows = left < 0 ? 0 : left < grid.rows ? left : grid.rows;
    flag = grid.flags + group * kFlagWords;
    row_bytes = exchanged * grid.pitch;
    half = (int64_t)grid.directions * grid.groups * grid.rows * row_bytes;
    exchange = grid.exchange + group * grid.rows * row_bytes;
  }
  __device__ char* rows_at(int64_t step, int row) const { return exchange + step % 2 * half + row * row_bytes; }
};

// What all threads of the block have written is there for those who wait.
__device__ __forceinline__ void tell(uint32_t* flag) {
  __syncthreads();
  if (threadIdx.x == 0) add_release(flag, 1);
}
__device__ __forceinline__ void wait_for(const uint32_t* flag, uint32_t target) {
  if (threadIdx.x == 0)
    while (load_acquire(flag) < target) {
    }
  __syncthreads();
}

// ---- on the host

struct Plan {
  int units, blocks, groups, rows, directions;  // as Grid has them; units 0: there is none
  size_t shared;
  int64_t pitch, exchange_bytes, launches;
  int64_t flag_bytes() const { return launches * directions * groups * kFlagWords * 4; }
  int64_t bytes() const { return flag_bytes() + kAligned + exchange_bytes; }
};

inline int64_t divided(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Of the kernel K with so many blocks resident.
template <class K>
Plan plan_for(const RnnShape& shape, int64_t pitch, int resident, size_t shared) {
  Plan plan = {};
  plan.blocks = (int)divided(shape.hidden, K::kUnits);
  plan.directions = (int)shape.directions;
  if (plan.blocks * plan.directions > resident) plan.directions = 1;  // one after the other
  if (plan.blocks > resident) return plan;
  plan.units = K::kUnits, plan.shared = shared, plan.pitch = pitch;
  const int64_t tiles = divided(shape.batch, kColumns), most = resident / (plan.blocks * plan.directions);
  plan.groups = (int)(tiles < most ? tiles : most);
  const int64_t each = divided(tiles, plan.groups) * kColumns, launches = divided(each, kMostRows);
  plan.rows = (int)(divided(divided(tiles, launches), plan.groups) * kColumns);
  plan.launches = divided(shape.batch, (int64_t)plan.groups * plan.rows) * (shape.directions / plan.directions);
  plan.exchange_bytes = 2 * (int64_t)plan.directions * plan.groups * plan.rows * K::kExchanged * pitch;
  return plan;
}

// Fewer tiles of sequences, one after another in every step; of as many, smaller blocks, which come first.
inline bool is_better(const Plan& plan, const Plan& than, const RnnShape& shape) {
  if (!plan.units || !than.units) return plan.units;
  auto steps = [&](const Plan& p) { return p.rows * p.launches * (shape.directions / p.directions); };
  return steps(plan) < steps(than);
}

// The plan for a kernel on this device, whose weights in shared memory may leave none.
template <class K, class Params>
Plan plan_of(const RnnShape& shape) {
  typedef Stored<typename K::Arithmetic> T;
  const int pieces = pieces_of(shape.hidden, sizeof(T)) * K::kExchanged;
  const int64_t beyond = divided(pieces, kWarps) - K::kHeld;
  const size_t shared = kSumsSize<K::kTiles> * sizeof(float) +
                        (beyond > 0 ? (size_t)beyond * kWarps * K::kTiles * kTileBytes : 0) +
                        (size_t)kMostRows * K::kUnits * 2 * sizeof(float);
  int resident = 0;
  if (resident_blocks<K, Params, Grid>(shared, &resident).error) return {};
  return plan_for<K>(shape, (int64_t)pieces_of(shape.hidden, sizeof(T)) * kPieceBytes, resident, shared);
}

// All launches of a plan: chunks of the batch, and directions that are not resident together.
template <class K, class Params>
Status walk(const Params& p, const Plan& plan, Stream stream) {
  const RnnShape& shape = p.walk.shape;
  Grid grid = {};
  grid.rows = plan.rows, grid.groups = plan.groups, grid.blocks = plan.blocks, grid.directions = plan.directions;
  grid.pitch = plan.pitch;
  grid.flags = (uint32_t*)p.walk.workspace;
  grid.exchange = (char*)(divided((int64_t)p.walk.workspace + plan.flag_bytes(), kAligned) * kAligned);
  for (int64_t direction = 0; direction < shape.directions; direction += plan.directions)
    for (int64_t row = 0; row < shape.batch; row += (int64_t)plan.groups * plan.rows) {
      const int64_t left = shape.batch - row, most = (int64_t)plan.groups * plan.rows;
      grid.first_direction = (int)direction, grid.first_row = row, grid.count = (int)(left < most ? left : most);
      const dim3 blocks((unsigned)(plan.directions * plan.groups * plan.blocks));
      const Status status = launch_cooperative<K>(blocks, plan.shared, stream, p, grid);
      if (status.error) return status;
      grid.flags += plan.directions * plan.groups * kFlagWords;
    }
  return {nullptr};
}

}  // namespace pf::cuda::recurrent
