// Softmax over the middle dimension of [outer, n, inner], its logarithm, and softmax of -x. A warp or a block takes a
// row (inner 1), eight threads a column; what they hold of it in registers is read once. A longer one is read again for
// the sum and for the result.
#pragma once
#include <type_traits>

#include "../../common/softmax.h"
#include "../core/math.h"
#include "../core/teams.h"

namespace pf::cuda::softmax {

namespace {

// The first elements of a team's softmax in a tensor, and the elements from one to the next.
struct Place {
  int64_t outer, inner;
  bool is_there;
};
template <class Team>
__device__ Place own_place(int64_t outer, int64_t inner) {
  if constexpr (std::is_same_v<Team, ColumnTeam>) {
    const int64_t tiles = (inner + Team::kTeams - 1) / Team::kTeams;
    const int64_t column = (int64_t)blockIdx.x % tiles * Team::kTeams + Team::team();
    return {(int64_t)blockIdx.x / tiles, column, column < inner};
  } else {
    const int64_t row = (int64_t)blockIdx.x * Team::kTeams + Team::team();
    return {row, 0, row < outer};
  }
}
// Rows are read by kAtOnce adjacent elements, columns one by one.
template <class Team, class T>
constexpr int kAtOnce = std::is_same_v<Team, ColumnTeam> ? 1 : kChunk<T>;

template <class From, class To, class Team, int kSteps>
struct Forward : Kernel<Team::kThreads> {
  static constexpr int kCount = kAtOnce<Team, From>;
  typedef Acc<From> V;

  __device__ void operator()(SoftmaxFwd p, bool is_aligned) const {
    const Place place = own_place<Team>(p.outer, p.inner);
    const int64_t n = place.is_there ? p.n : 0;  // all of a block come to its barriers
    const From* const x = (const From*)p.x + place.outer * p.x_outer_stride + place.inner;
    To* const y = (To*)p.y + place.outer * p.n * p.inner + place.inner;
    const V sign = p.kind == SoftmaxKind::softmin ? V(-1) : V(1);
    auto read = [&](V(&values)[1][kCount], int64_t at) {
      load_values(values[0], x + (kCount == 1 ? at * p.x_step : at), n - at, is_aligned);
      PF_UNROLL_ALL
      for (int i = 0; i < kCount; i++) values[0][i] *= sign;
    };
    Share<V, Team, kSteps, kCount> share;
    share.hold(n, read);

    V top = -infinity<V>();  // a NaN is not larger, and shows in the sum
    share.each(n, read, [&](V(&values)[1][kCount], int64_t at) {
      PF_UNROLL_ALL
      for (int i = 0; i < kCount; i++)
        if (at + i < n) top = Larger()(top, values[0][i]);
    });
    top = Team::over(top, Larger());
    V total = 0;
    share.each(n, read, [&](V(&values)[1][kCount], int64_t at) {
      PF_UNROLL_ALL
      for (int i = 0; i < kCount; i++)
        if (at + i < n) total += exp(values[0][i] - top);
    });
    total = Team::over(total, Add());

    const bool is_log = p.kind == SoftmaxKind::log_softmax;
    const V shift = is_log ? log(total) : V(1) / total;
    share.each(n, read, [&](V(&values)[1][kCount], int64_t at) {
      PF_UNROLL_ALL
      for (int i = 0; i < kCount; i++) {
        const V below = values[0][i] - top;
        values[0][i] = is_log ? below - shift : exp(below) * shift;
      }
      store_values(y + at * p.inner, values[0], n - at, is_aligned);
    });
  }
};

// dx = y (dy - sum(dy y)), of the logarithm dy - exp(y) sum(dy); of softmin the negative of the first.
template <class From, class To, class Team, int kSteps>
struct Backward : Kernel<Team::kThreads> {
  static constexpr int kCount = kAtOnce<Team, From>;
  typedef Acc<From> V;

  __device__ void operator()(SoftmaxBwd p, bool is_aligned) const {
    const Place place = own_place<Team>(p.outer, p.inner);
    const int64_t n = place.is_there ? p.n : 0;
    const From* const dy = (const From*)p.dy + place.outer * p.dy_outer_stride + place.inner;
    const From* const y = (const From*)p.y + place.outer * p.y_outer_stride + place.inner;
    To* const dx = (To*)p.dx + place.outer * p.n * p.inner + place.inner;
    auto read = [&](V(&values)[2][kCount], int64_t at) {
      load_values(values[0], dy + (kCount == 1 ? at * p.dy_step : at), n - at, is_aligned);
      load_values(values[1], y + (kCount == 1 ? at * p.y_step : at), n - at, is_aligned);
    };
    Share<V, Team, kSteps, kCount, 2> share;
    share.hold(n, read);

    const bool is_log = p.kind == SoftmaxKind::log_softmax;
    V total = 0;
    share.each(n, read, [&](V(&values)[2][kCount], int64_t) {
      PF_UNROLL_ALL  // zeros beyond the end
          for (int i = 0; i < kCount; i++) total += is_log ? values[0][i] : values[0][i] * values[1][i];
    });
    total = Team::over(total, Add());

    const V sign = p.kind == SoftmaxKind::softmin ? V(-1) : V(1);
    share.each(n, read, [&](V(&values)[2][kCount], int64_t at) {
      PF_UNROLL_ALL
      for (int i = 0; i < kCount; i++) {
        const V gradient = values[0][i], of = values[1][i];
        values[0][i] = is_log ? gradient - exp(of) * total : sign * of * (gradient - total);
      }
      store_values(dx + at * p.inner, values[0], n - at, is_aligned);
    });
  }
};

// Calls f(numbers of type from, and to), of the pairs that there are: one type, or a half type beside float.
template <class F>
Status for_pair(Dtype narrow, Dtype wide, F f) {
  return for_dtype(narrow, [&](auto element) {
    if constexpr (sizeof(element) == 2)
      if (wide == Dtype::f32) return f(element, float());
    return f(element, element);
  });
}

// Calls f(team, steps, grid), as for_row_team; columns are held where eight lanes can.
template <class T, class F>
Status for_team(int64_t outer, int64_t n, int64_t inner, F f) {
  if (!outer || !n || !inner) return {nullptr};
  if (inner == 1)
    return for_row_team<T, kChunk<T>>(
        n, [&](auto team, auto steps) { return f(team, steps, dim3(blocks_for(outer, decltype(team)::kTeams))); });
  const dim3 grid(blocks_for(outer * blocks_for(inner, ColumnTeam::kTeams), 1));
  constexpr int kSteps = kHeld<T> / 2;  // more, of two tensors, left room for one block on an SM
  if (n <= ColumnTeam::kLanes * kSteps) return f(ColumnTeam(), Number<kSteps>(), grid);
  return f(ColumnTeam(), Number<0>(), grid);
}

}  // namespace

Status softmax_fwd(const SoftmaxFwd& p, void* stream) {
  return for_pair(p.from, p.to, [&](auto from, auto to) {
    using From = decltype(from);
    using To = decltype(to);
    const bool aligned = is_aligned(p.x, p.x_outer_stride, sizeof(From)) && is_aligned(p.y, p.n * p.inner, sizeof(To));
    return for_team<From>(p.outer, p.n, p.inner, [&](auto team, auto steps, dim3 grid) {
      return launch<Forward<From, To, decltype(team), decltype(steps)::value>>(grid, 0, (Stream)stream, p, aligned);
    });
  });
}

Status softmax_bwd(const SoftmaxBwd& p, void* stream) {
  return for_pair(p.to, p.from, [&](auto to, auto from) {
    using From = decltype(from);
    using To = decltype(to);
    const bool aligned = is_aligned(p.dy, p.dy_outer_stride, sizeof(From)) &&
                         is_aligned(p.y, p.y_outer_stride, sizeof(From)) && is_aligned(p.dx, p.n * p.inner, sizeof(To));
    return for_team<From>(p.outer, p.n, p.inner, [&](auto team, auto steps, dim3 grid) {
      return launch<Backward<From, To, decltype(team), decltype(steps)::value>>(grid, 0, (Stream)stream, p, aligned);
    });
  });
}

}  // namespace pf::cuda::softmax
