// Where a sequence lies at a step, and what of the batch a block walks.
#pragma once
#include "../../common/recurrence.h"
#include "../core/values.h"

namespace pf::cuda::recurrent {

// Of a step t and a sequence b, by its place among the sorted ones.
struct Place {
  bool is_active;
  int64_t position, saved;  // in the order of y; of cells and gates
};

// How many sequences run at step t; none outside of the steps. Kernels go by what tensors say, which nobody has read:
// what does not fit is brought back into the batch.
__device__ inline int64_t active_at(const RnnRows& rows, const RnnShape& shape, int64_t t) {
  if (t < 0 || t >= shape.length) return 0;
  const int64_t count = rows.active ? rows.active[t] : shape.batch;
  return count < 0 ? 0 : count > shape.batch ? shape.batch : count;
}
__device__ inline int64_t row_of(const RnnRows& rows, const RnnShape& shape, int64_t b) {
  const int64_t row = rows.order ? rows.order[b] : b;
  return row < 0 ? 0 : row >= shape.batch ? shape.batch - 1 : row;
}
__device__ inline Place place_at(const RnnRows& rows, const RnnShape& shape, int64_t positions, int64_t t, int64_t b,
                                 int64_t row) {
  const bool is_active = b < active_at(rows, shape, t);
  if (!rows.is_packed) return {is_active, t * rows.y_step_rows + row * rows.y_row_rows, t * shape.batch + row};
  const int64_t position = is_active ? rows.offsets[t] + b : 0;
  return {is_active && position >= 0 && position < positions, position, position};
}
// The step that is walked as number `step`.
__device__ inline int64_t time_of(const RnnShape& shape, int64_t direction, int64_t step) {
  return direction == 0 ? step : shape.length - 1 - step;
}

}  // namespace pf::cuda::recurrent
