// Checks of arguments: all raise std::invalid_argument (ValueError in Python): "op: argument: expected ..., found ...".
#pragma once

#include <string>

#include "mlx/array.h"

namespace mlx_delta {

namespace mx = mlx::core;

[[noreturn]] void fail(const char* op, const char* argument, const std::string& expected, const std::string& found);

// "float32 [2, 3]"
std::string describe(const mx::array& a);

// A dimension of -1 accepts any size.
void check_shape(const char* op, const char* argument, const mx::array& a, const mx::Shape& expected);
void check_rank(const char* op, const char* argument, const mx::array& a, int rank, const char* dims);
void check_float(const char* op, const char* argument, const mx::array& a);
void check_same_dtype(const char* op, const char* argument, const mx::array& a, mx::Dtype expected);
void check_positive(const char* op, const char* argument, double value);

// Of what works on evaluated arrays at once (conversion's kernels): evaluated and row-contiguous; an order of which
// each block is a permutation of itself.
void check_ready(const char* op, const char* argument, const mx::array& a);
void check_order(const char* op, const mx::array& order, int block);

}  // namespace mlx_delta
