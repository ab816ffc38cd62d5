// Operations on simdgroup matrices, emulated by shuffles: right, and far from what tensor cores do.
#pragma once
#include "simdgroup.h"
// after what it needs
#include "fragment.h"

namespace metal {

template <class T, class P>
inline void simdgroup_load(thread simdgroup_matrix<T>& matrix, P from, ulong stride = 8, ulong2 origin = 0,
                           bool transpose = false) {
  for (uint i = 0; i < 2; i++) matrix.elements[i] = from[offset_of(i, stride, origin, transpose)];
}
template <class T, class P>
inline void simdgroup_store(const thread simdgroup_matrix<T>& matrix, P to, ulong stride = 8, ulong2 origin = 0,
                            bool transpose = false) {
  for (uint i = 0; i < 2; i++) to[offset_of(i, stride, origin, transpose)] = matrix.elements[i];
}

// The lane that holds the elements at `row` and at `column`, and the next.
inline uint lane_of(uint row, uint column) {
  const uint quad = (row & 4) + (column & 4) / 2 + (row & 2) / 2;
  return quad * 4 + (row & 1) * 2 + (column & 2) / 2;
}

// d = a b + c, summed in float32 and rounded once.
template <class D, class A, class B, class C>
inline void simdgroup_multiply_accumulate(thread simdgroup_matrix<D>& d, const thread simdgroup_matrix<A>& a,
                                          const thread simdgroup_matrix<B>& b, const thread simdgroup_matrix<C>& c) {
  const Fragment at(msl::lane());
  float sum[2] = {float(c.elements[0]), float(c.elements[1])};
  for (uint k = 0; k < 8; k++) {
    const vec<A, 2> of_row = msl::from_lane(a.elements, lane_of(at.row, k));
    const vec<B, 2> of_column = msl::from_lane(b.elements, lane_of(k, at.column));
    for (uint i = 0; i < 2; i++) sum[i] = __builtin_fmaf(float(of_row[k % 2]), float(of_column[i]), sum[i]);
  }
  for (uint i = 0; i < 2; i++) d.elements[i] = D(sum[i]);
}
template <class D, class A, class B>
inline void simdgroup_multiply(thread simdgroup_matrix<D>& d, const thread simdgroup_matrix<A>& a,
                               const thread simdgroup_matrix<B>& b) {
  simdgroup_multiply_accumulate(d, a, b, make_filled_simdgroup_matrix<float>(0.0f));
}

}  // namespace metal
