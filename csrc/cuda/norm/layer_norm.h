// LayerNorm over the rows of a matrix, alone or of x + residual, and RMSNorm, which has no mean: y = xhat weight + bias
// with xhat = (x - mean) rstd. A warp takes a row, or a block where it is long, and holds it in registers: it is read
// once, and its deviations are squared when the mean is known. Ba et al. 2016, arXiv:1607.06450.
#pragma once
#include "../../common/norm.h"
#include "../core/math.h"
#include "../core/teams.h"

namespace pf::cuda::norm {

namespace {

// Where which rows begin at multiples of 16 bytes.
struct Aligned {
  bool in, out, params;
};

template <class T, class Team, int kSteps>
struct Forward : Kernel<Team::kThreads> {
  static constexpr int kAtOnce = kChunk<T>;
  typedef Acc<T> V;

  __device__ void operator()(LayerNormFwd p, Aligned aligned) const {
    const int64_t row = (int64_t)blockIdx.x * Team::kTeams + Team::team();
    if (row >= p.rows) return;  // a whole team
    const T* const x = (const T*)p.x + row * p.x_row_stride;
    const T* const residual = p.residual ? (const T*)p.residual + row * p.residual_row_stride : nullptr;
    auto read = [&](V(&values)[1][kAtOnce], int64_t at) {
      load_values(values[0], x + at, p.cols - at, aligned.in);
      if (!residual) return;
      V added[kAtOnce];
      load_values(added, residual + at, p.cols - at, aligned.in);
      PF_UNROLL_ALL  // rounded: what is normalised is what the backward will read
          for (int i = 0; i < kAtOnce; i++) values[0][i] = widen(narrow<T>(values[0][i] + added[i]));
    };
    Share<V, Team, kSteps, kAtOnce> share;
    share.hold(p.cols, read);

    V mean = 0;
    if (p.mean) {
      V sum = 0;
      share.each(p.cols, read, [&](V(&values)[1][kAtOnce], int64_t) {
        PF_UNROLL_ALL
        for (int i = 0; i < kAtOnce; i++) sum += values[0][i];  // zeros beyond the end
      });
      mean = Team::over(sum, Add()) / (V)p.cols;
    }
    V squares = 0;
    share.each(p.cols, read, [&](V(&values)[1][kAtOnce], int64_t at) {
      PF_UNROLL_ALL
      for (int i = 0; i < kAtOnce; i++) {
        const V apart = at + i < p.cols ? values[0][i] - mean : V(0);
        squares += apart * apart;
      }
    });
    const V rstd = V(1) / sqrt(Team::over(squares, Add()) / (V)p.cols + (V)p.eps);

    share.each(p.cols, read, [&](V(&values)[1][kAtOnce], int64_t at) {
      const int64_t left = p.cols - at, place = row * p.cols + at;
      if (residual) store_values((T*)p.summed + place, values[0], left, aligned.out);
      V weight[kAtOnce], bias[kAtOnce];
      if (p.weight) load_values(weight, (const V*)p.weight + at, left, aligned.params);
      if (p.bias) load_values(bias, (const V*)p.bias + at, left, aligned.params);
      PF_UNROLL_ALL
      for (int i = 0; i < kAtOnce; i++) {
        values[0][i] = (values[0][i] - mean) * rstd;
        if (p.weight) values[0][i] *= weight[i];
        if (p.bias) values[0][i] += bias[i];
      }
      store_values((T*)p.y + place, values[0], left, aligned.out);
    });
    if (Team::lane() == 0) {
      if (p.mean) ((V*)p.mean)[row] = mean;
      ((V*)p.rstd)[row] = rstd;
    }
  }
};

// dx alone. The derivative of a normalised row is the projection away from xhat and, where it was centred, from 1.
template <class T, class Team, int kSteps>
struct Backward : Kernel<Team::kThreads> {
  static constexpr int kAtOnce = kChunk<T>;
  typedef Acc<T> V;

  __device__ void operator()(LayerNormBwd p, Aligned aligned) const {
    const int64_t row = (int64_t)blockIdx.x * Team::kTeams + Team::team();
    if (row >= p.rows) return;
    const T *const dy = (const T*)p.dy + row * p.dy_row_stride, *const x = (const T*)p.x + row * p.x_row_stride;
    const V mean = p.mean ? ((const V*)p.mean)[row] : V(0), rstd = ((const V*)p.rstd)[row];
    // dy weight, rounded (its own mean must be it in a row of one element), and xhat
    auto read = [&](V(&values)[2][kAtOnce], int64_t at) {
      const int64_t left = p.cols - at;
      load_values(values[0], dy + at, left, aligned.in);
      load_values(values[1], x + at, left, aligned.in);
      V weight[kAtOnce];
      if (p.weight) load_values(weight, (const V*)p.weight + at, left, aligned.params);
      PF_UNROLL_ALL
      for (int i = 0; i < kAtOnce; i++) {
        if (p.weight) values[0][i] = product(values[0][i], weight[i]);
        values[1][i] = i < left ? (values[1][i] - mean) * rstd : V(0);
      }
    };
    Share<V, Team, kSteps, kAtOnce, 2> share;
    share.hold(p.cols, read);

    V along_one = 0, along_xhat = 0;
    share.each(p.cols, read, [&](V(&values)[2][kAtOnce], int64_t) {
      PF_UNROLL_ALL
      for (int i = 0; i < kAtOnce; i++) along_one += values[0][i], along_xhat += values[0][i] * values[1][i];
    });
    along_one = p.mean ? Team::over(along_one, Add()) / (V)p.cols : V(0);
    along_xhat = Team::over(along_xhat, Add()) / (V)p.cols;

    const T* const dsummed = p.dsummed ? (const T*)p.dsummed + row * p.dsummed_row_stride : nullptr;
    share.each(p.cols, read, [&](V(&values)[2][kAtOnce], int64_t at) {
      const int64_t left = p.cols - at;
      V added[kAtOnce];
      if (dsummed) load_values(added, dsummed + at, left, aligned.in);
      PF_UNROLL_ALL
      for (int i = 0; i < kAtOnce; i++) {
        values[0][i] = (values[0][i] - along_one - values[1][i] * along_xhat) * rstd;
        if (dsummed) values[0][i] += added[i];
      }
      store_values((T*)p.dx + row * p.cols + at, values[0], left, aligned.out);
    });
  }
};

// ---- dweight and dbias: sums over rows, of blocks of rows at first, in the same order every time

// 32 columns of a block of rows, to workspace[block, 2, cols].
template <class T>
struct ParameterShares : Kernel<ColumnTeam::kThreads> {
  typedef Acc<T> V;

  __device__ void operator()(LayerNormBwd p, int64_t block_rows) const {
    const int64_t column = (int64_t)blockIdx.x * ColumnTeam::kTeams + ColumnTeam::team();
    const int64_t begin = blockIdx.y * block_rows, end = begin + block_rows < p.rows ? begin + block_rows : p.rows;
    V dweight = 0, dbias = 0;
    if (column < p.cols)
      for (int64_t row = begin + ColumnTeam::lane(); row < end; row += ColumnTeam::kLanes) {
        const V dy = widen(((const T*)p.dy)[row * p.dy_row_stride + column]);
        const V x = widen(((const T*)p.x)[row * p.x_row_stride + column]);
        const V centred = p.mean ? x - ((const V*)p.mean)[row] : x;
        dweight += dy * (centred * ((const V*)p.rstd)[row]);
        dbias += dy;
      }
    dweight = ColumnTeam::over(dweight, Add());
    dbias = ColumnTeam::over(dbias, Add());
    if (ColumnTeam::lane() == 0 && column < p.cols) {
      V* const to = (V*)p.workspace + (int64_t)blockIdx.y * 2 * p.cols + column;
      to[0] = dweight;
      to[p.cols] = dbias;
    }
  }
};
template <class V>
struct ParameterSums : Kernel<ColumnTeam::kThreads> {
  __device__ void operator()(const V* shares, V* dweight, V* dbias, int64_t blocks, int64_t cols) const {
    const int64_t column = (int64_t)blockIdx.x * ColumnTeam::kTeams + ColumnTeam::team();
    V* const to = blockIdx.y ? dbias : dweight;
    V sum = 0;
    if (column < cols)
      for (int64_t block = ColumnTeam::lane(); block < blocks; block += ColumnTeam::kLanes)
        sum += shares[(2 * block + blockIdx.y) * cols + column];
    sum = ColumnTeam::over(sum, Add());
    if (to && ColumnTeam::lane() == 0 && column < cols) to[column] = sum;
  }
};

}  // namespace

Status layer_norm_fwd(const LayerNormFwd& p, void* stream) {
  if (!p.rows || !p.cols) return {nullptr};
  return for_dtype(p.dtype, [&](auto element) {
    using T = decltype(element);
    constexpr int64_t kSize = sizeof(T);
    const Aligned aligned = {
        is_aligned(p.x, p.x_row_stride, kSize) && is_aligned(p.residual, p.residual_row_stride, kSize),
        is_aligned(p.y, p.cols, kSize) && is_aligned(p.summed, p.cols, kSize),
        is_aligned(p.weight) && is_aligned(p.bias)};
    return for_row_team<T, kChunk<T>>(p.cols, [&](auto team, auto steps) {
      using Team = decltype(team);
      return launch<Forward<T, Team, decltype(steps)::value>>(dim3(blocks_for(p.rows, Team::kTeams)), 0, (Stream)stream,
                                                              p, aligned);
    });
  });
}

Status layer_norm_bwd(const LayerNormBwd& p, void* stream) {
  if (!p.cols) return {nullptr};
  return for_dtype(p.dtype, [&](auto element) {
    using T = decltype(element);
    constexpr int64_t kSize = sizeof(T);
    Status status = {nullptr};
    if (p.dx && p.rows) {
      const Aligned aligned = {is_aligned(p.dy, p.dy_row_stride, kSize) && is_aligned(p.x, p.x_row_stride, kSize) &&
                                   is_aligned(p.dsummed, p.dsummed_row_stride, kSize),
                               is_aligned(p.dx, p.cols, kSize), is_aligned(p.weight)};
      status = for_row_team<T, kChunk<T>>(p.cols, [&](auto team, auto steps) {
        using Team = decltype(team);
        return launch<Backward<T, Team, decltype(steps)::value>>(dim3(blocks_for(p.rows, Team::kTeams)), 0,
                                                                 (Stream)stream, p, aligned);
      });
    }
    if (status.error || !(p.dweight || p.dbias)) return status;
    typedef Acc<T> V;
    const unsigned tiles = blocks_for(p.cols, ColumnTeam::kTeams);
    const int64_t blocks = layer_norm_bwd_blocks(p.rows, p.cols);
    if (blocks)
      status = launch<ParameterShares<T>>(dim3(tiles, (unsigned)blocks), 0, (Stream)stream, p,
                                          layer_norm_bwd_block_rows(p.rows, p.cols));
    if (status.error) return status;
    return launch<ParameterSums<V>>(dim3(tiles, 2), 0, (Stream)stream, (const V*)p.workspace, (V*)p.dweight,
                                    (V*)p.dbias, blocks, p.cols);
  });
}

}  // namespace pf::cuda::norm
