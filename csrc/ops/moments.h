// The second moments E[x x^T] of a matrix's inputs, and the factors by which rounding feeds its errors forward. Like
// fit_affine no nodes of a graph: they work on evaluated arrays at once, and in place, for a moment matrix of a 9B is
// 604 MB. mlx_delta.conversion.moments is the interface.
#pragma once

#include "ops/common.h"

namespace mlx_delta {

// sums[K, K] += x^T x for x [M, K], in the upper triangle; with y [M, N] sums[N, K] += y^T x, all of it. All float32.
// The sums' bits do not depend on the threads, nor do those of what follows.
void add_moments(const mx::array& sums, const mx::array& x, const std::optional<mx::array>& y = {});

// With H = sums * factor, its rows and columns put in order (int32 [K], which of them comes at each place; every block
// of 64 is a permutation of itself), and damping added to its diagonal: the factors U, upper triangular with ones on
// its diagonal, and D, diagonal, of
//     H = U D U^T.
// U replaces sums above the diagonal, what else is there means nothing; returns D, float32 [K].
mx::array factor_moments(const mx::array& sums, const mx::array& order, float factor, float damping);

// values[N, K] becomes values H^-1, of which upper, diagonal and order are factors; values by column, H's by place.
void solve_moments(const mx::array& values, const mx::array& upper, const mx::array& diagonal, const mx::array& order);

// Helpers of conversion's kernels. Both throw std::invalid_argument naming the argument.
void check_ready(const char* op, const char* argument, const mx::array& a);  // evaluated and row-contiguous
void check_order(const char* op, const mx::array& order, int block);         // each block a permutation of itself

}  // namespace mlx_delta
