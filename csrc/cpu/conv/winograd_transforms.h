// The transforms of F(m x m, r x r) in one dimension: m results of r taps from a patch of m + r - 1 by as many
// products, y = A^T [(G g) (B^T d)], after Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016).
// In two dimensions each is applied along columns, then along rows.
#pragma once
#include "../simd/vec.h"

namespace PF_ISA::conv {

namespace {

// Points 0, 1, -1 and infinity: half the patch's sums are additions. 16 products instead of 36.
struct TwoResults {
  static constexpr int results = 2, taps = 3, patch = 4;

  template <class V>
  PF_INLINE void of_patch(V (&d)[patch]) {
    const V a = d[0] - d[2], b = d[1] + d[2], c = d[2] - d[1], e = d[1] - d[3];
    d[0] = a, d[1] = b, d[2] = c, d[3] = e;
  }
  template <class V>
  PF_INLINE void of_filter(const V (&g)[3], V (&u)[patch]) {
    const V outer = g[0] + g[2], half = splat<V>(0.5);
    u[0] = g[0];
    u[1] = (outer + g[1]) * half;
    u[2] = (outer - g[1]) * half;
    u[3] = g[2];
  }
  template <class V>
  PF_INLINE void of_sums(const V (&m)[patch], V (&y)[results]) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] - m[3];
  }
  // For the gradient of the filter, A dy and G^T m.
  template <class V>
  PF_INLINE void of_gradient(const V (&dy)[results], V (&u)[patch]) {
    u[0] = dy[0];
    u[1] = dy[0] + dy[1];
    u[2] = dy[0] - dy[1];
    u[3] = -dy[1];
  }
  template <class V>
  PF_INLINE void of_filter_sums(const V (&m)[patch], V (&g)[3]) {
    const V half = splat<V>(0.5), middle = (m[1] + m[2]) * half;
    g[0] = m[0] + middle;
    g[1] = (m[1] - m[2]) * half;
    g[2] = middle + m[3];
  }
};

// The same of two taps, points 0, 1 and infinity: 9 products instead of 16, and no more than two terms anywhere.
struct TwoResultsOfTwo {
  static constexpr int results = 2, taps = 2, patch = 3;

  template <class V>
  PF_INLINE void of_patch(V (&d)[patch]) {
    d[0] -= d[1];
    d[2] -= d[1];
  }
  template <class V>
  PF_INLINE void of_filter(const V (&g)[2], V (&u)[patch]) {
    u[0] = g[0];
    u[1] = g[0] + g[1];
    u[2] = g[1];
  }
  template <class V>
  PF_INLINE void of_sums(const V (&m)[patch], V (&y)[results]) {
    y[0] = m[0] + m[1];
    y[1] = m[1] + m[2];
  }
};

// Points 0, a, -a, b, -b and infinity. Their usual choice, 1 and 2, rounds 2.5 times as much; a and b are exact in
// binary. 36 products instead of 144.
struct FourResults {
  static constexpr int results = 4, taps = 3, patch = 6;
  static constexpr double a = 11.0 / 16, b = 1.5, a2 = a * a, b2 = b * b;

  template <class V>
  PF_INLINE void of_patch(V (&d)[patch]) {
    const V even_a = d[4] - d[2] * splat<V>(b2), odd_a = (d[3] - d[1] * splat<V>(b2)) * splat<V>(a);
    const V even_b = d[4] - d[2] * splat<V>(a2), odd_b = (d[3] - d[1] * splat<V>(a2)) * splat<V>(b);
    d[0] = d[0] * splat<V>(a2 * b2) - d[2] * splat<V>(a2 + b2) + d[4];
    d[5] = d[1] * splat<V>(a2 * b2) - d[3] * splat<V>(a2 + b2) + d[5];
    d[1] = even_a + odd_a, d[2] = even_a - odd_a;
    d[3] = even_b + odd_b, d[4] = even_b - odd_b;
  }
  template <class V>
  PF_INLINE void of_filter(const V (&g)[3], V (&u)[patch]) {
    const V even_a = (g[0] + g[2] * splat<V>(a2)) * splat<V>(1 / (2 * a2 * (a2 - b2)));
    const V even_b = (g[0] + g[2] * splat<V>(b2)) * splat<V>(1 / (2 * b2 * (b2 - a2)));
    const V odd_a = g[1] * splat<V>(a / (2 * a2 * (a2 - b2))), odd_b = g[1] * splat<V>(b / (2 * b2 * (b2 - a2)));
    u[0] = g[0] * splat<V>(1 / (a2 * b2));
    u[1] = even_a + odd_a, u[2] = even_a - odd_a;
    u[3] = even_b + odd_b, u[4] = even_b - odd_b;
    u[5] = g[2];
  }
  template <class V>
  PF_INLINE void of_sums(const V (&m)[patch], V (&y)[results]) {
    const V even_a = m[1] + m[2], odd_a = m[1] - m[2], even_b = m[3] + m[4], odd_b = m[3] - m[4];
    y[0] = m[0] + even_a + even_b;
    y[1] = odd_a * splat<V>(a) + odd_b * splat<V>(b);
    y[2] = even_a * splat<V>(a2) + even_b * splat<V>(b2);
    y[3] = odd_a * splat<V>(a * a2) + odd_b * splat<V>(b * b2) + m[5];
  }
};

}  // namespace

}  // namespace PF_ISA::conv
