#include "ops/checks.h"

#include <sstream>
#include <stdexcept>
#include <vector>

#include "mlx/utils.h"

namespace mlx_delta {

namespace {

std::string show(const mx::Shape& shape) {
  std::ostringstream out;
  out << "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    out << (i ? ", " : "");
    if (shape[i] < 0)
      out << "any";
    else
      out << shape[i];
  }
  out << "]";
  return out.str();
}

std::string show(mx::Dtype dtype) {
  std::ostringstream out;
  out << dtype;
  const std::string text = out.str();  // "mlx.core.float32" or "float32", by version
  return text.substr(text.rfind('.') + 1);
}

}  // namespace

void fail(const char* op, const char* argument, const std::string& expected, const std::string& found) {
  throw std::invalid_argument(std::string(op) + ": " + argument + ": expected " + expected + ", found " + found);
}

std::string describe(const mx::array& a) { return show(a.dtype()) + " " + show(a.shape()); }

void check_shape(const char* op, const char* argument, const mx::array& a, const mx::Shape& expected) {
  bool same = a.ndim() == expected.size();
  for (size_t i = 0; same && i < expected.size(); ++i) same = expected[i] < 0 || a.shape(int(i)) == expected[i];
  if (!same) fail(op, argument, "shape " + show(expected), describe(a));
}

void check_rank(const char* op, const char* argument, const mx::array& a, int rank, const char* dims) {
  if (int(a.ndim()) != rank || a.size() == 0) fail(op, argument, std::string("non-empty ") + dims, describe(a));
}

void check_float(const char* op, const char* argument, const mx::array& a) {
  if (a.dtype() != mx::float32 && a.dtype() != mx::float16 && a.dtype() != mx::bfloat16)
    fail(op, argument, "float32, float16 or bfloat16", describe(a));
}

void check_same_dtype(const char* op, const char* argument, const mx::array& a, mx::Dtype expected) {
  if (a.dtype() != expected) fail(op, argument, show(expected), describe(a));
}

void check_positive(const char* op, const char* argument, double value) {
  if (!(value > 0)) fail(op, argument, "a positive number", std::to_string(value));
}

void check_ready(const char* op, const char* argument, const mx::array& a) {
  if (!a.is_available() || !a.flags().row_contiguous) fail(op, argument, "an evaluated, contiguous array", "another");
}

void check_order(const char* op, const mx::array& order, int block) {
  const int* columns = order.data<int>();
  const int n = order.shape(0);
  std::vector<bool> seen(static_cast<size_t>(n));
  for (int i = 0; i < n; ++i) {
    const int column = columns[i];
    if (column < 0 || column >= n || column / block != i / block || seen[size_t(column)])
      fail(op, "order", "each block of " + std::to_string(block) + " a permutation of itself",
           std::to_string(column) + " at " + std::to_string(i));
    seen[size_t(column)] = true;
  }
}

}  // namespace mlx_delta
