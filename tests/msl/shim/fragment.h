// 8x8 matrices spread over a simdgroup in Apple's layout: a lane holds two neighbours of one row. Follows "simdgroup.h".
#pragma once

namespace metal {

struct Fragment {
  uint row, column;  // of the lane's first element
  explicit Fragment(uint lane) {
    const uint quad = lane / 4;
    row = (quad & 4) + (lane / 2) % 4;
    column = (quad & 2) * 2 + (lane % 2) * 2;
  }
};

template <class T, int rows = 8, int columns = 8>
struct simdgroup_matrix {
  static_assert(rows == 8 && columns == 8, "Metal's simdgroup matrices are 8x8");
  vec<T, 2> elements;

  simdgroup_matrix() = default;
  explicit simdgroup_matrix(T diagonal) {
    const Fragment at(msl::lane());
    for (uint i = 0; i < 2; i++) elements[i] = at.row == at.column + i ? diagonal : T(0);
  }
  vec<T, 2>& thread_elements() { return elements; }
  const vec<T, 2>& thread_elements() const { return elements; }
};
typedef simdgroup_matrix<float> simdgroup_float8x8;
typedef simdgroup_matrix<half> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat> simdgroup_bfloat8x8;

template <class T, int rows = 8, int columns = 8>
inline simdgroup_matrix<T, rows, columns> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, rows, columns> result;
  result.elements = vec<T, 2>(value);
  return result;
}

// Where a fragment's element lies in memory.
inline ulong offset_of(uint element, ulong stride, ulong2 origin, bool transpose) {
  const Fragment at(msl::lane());
  const ulong row = transpose ? at.column + element : at.row;
  const ulong column = transpose ? at.row : at.column + element;
  return (origin.y + row) * stride + origin.x + column;
}

}  // namespace metal
