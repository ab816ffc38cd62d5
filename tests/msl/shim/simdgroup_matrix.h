// Operations on simdgroup matrices.
#pragma once
#include "simdgroup.h"
// after what it needs
#include "fragment.h"

namespace metal {

inline void all_lanes(const msl::Site& site) {
  msl::wait(msl::kWaitsForSimdgroup, site, 0);
  const uint active = msl::simdgroups[msl::current->builtins.simdgroup].active;
  if (active != ~0u) msl::fail(site, "%s with inactive lanes (active: 0x%08x)", site.operation, active);
}

template <class T, class P>
inline void simdgroup_load(thread simdgroup_matrix<T>& matrix, P from, ulong stride = 8, ulong2 origin = 0,
                           bool transpose = false, Caller caller = Caller::here()) {
  all_lanes(caller.site("simdgroup_load"));
  for (uint i = 0; i < 2; i++) matrix.elements[i] = from[offset_of(i, stride, origin, transpose)];
}
template <class T, class P>
inline void simdgroup_store(const thread simdgroup_matrix<T>& matrix, P to, ulong stride = 8, ulong2 origin = 0,
                            bool transpose = false, Caller caller = Caller::here()) {
  all_lanes(caller.site("simdgroup_store"));
  for (uint i = 0; i < 2; i++) to[offset_of(i, stride, origin, transpose)] = matrix.elements[i];
}

// d = a b + c, summed in float32 and rounded once.
template <class D, class A, class B, class C>
inline void simdgroup_multiply_accumulate(thread simdgroup_matrix<D>& d, const thread simdgroup_matrix<A>& a,
                                          const thread simdgroup_matrix<B>& b, const thread simdgroup_matrix<C>& c,
                                          Caller caller = Caller::here()) {
  struct Operands {
    vec<A, 2> a;
    vec<B, 2> b;
  };
  const msl::Site site = caller.site("simdgroup_multiply_accumulate");
  Exchange<Operands> exchange({a.elements, b.elements}, site);
  if (exchange.group().active != ~0u) msl::fail(site, "%s with inactive lanes", site.operation);
  struct Whole {
    float a[8][8], b[8][8];
  };
  static Whole whole;  // gathered once by the first lane to resume; a simdgroup's lanes resume before any other's
  if (!exchange.group().reduced) {
    for (uint lane = 0; lane < 32; lane++) {
      const Fragment at(lane);
      const Operands of = exchange.value(lane);
      for (uint i = 0; i < 2; i++) {
        whole.a[at.row][at.column + i] = float(of.a[i]);
        whole.b[at.row][at.column + i] = float(of.b[i]);
      }
    }
    exchange.group().reduced = true;
  }
  const Fragment at(exchange.lane());
  vec<D, 2> result;
  for (uint i = 0; i < 2; i++) {
    float sum = float(c.elements[i]);
    for (uint k = 0; k < 8; k++) sum += whole.a[at.row][k] * whole.b[k][at.column + i];
    result[i] = D(sum);
  }
  d.elements = result;
}
template <class D, class A, class B>
inline void simdgroup_multiply(thread simdgroup_matrix<D>& d, const thread simdgroup_matrix<A>& a,
                               const thread simdgroup_matrix<B>& b, Caller caller = Caller::here()) {
  simdgroup_multiply_accumulate(d, a, b, make_filled_simdgroup_matrix<float>(0.0f), caller);
}

}  // namespace metal
