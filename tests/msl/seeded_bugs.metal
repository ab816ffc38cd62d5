// Kernels with one bug each, and correct twins. A comment `finds: <kind>` marks the line a finding must name; kernels
// without one are correct. All run with two threadgroups of 64 threads, 128 floats in x and 128 in y, which starts
// undefined.
#include <metal_stdlib>
using namespace metal;

#define ARGUMENTS                                                                                             \
  const device float *x [[buffer(0)]], device float *y [[buffer(1)]], uint t [[thread_index_in_threadgroup]], \
      uint i [[thread_position_in_grid]], uint lane [[thread_index_in_simdgroup]],                            \
      uint simdgroup [[simdgroup_index_in_threadgroup]], uint g [[threadgroup_position_in_grid]]

// ---- races in threadgroup memory ----
kernel void barrier(ARGUMENTS) {
  threadgroup float tile[64];
  tile[t] = x[i];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[i] = tile[63 - t];
}
kernel void no_barrier(ARGUMENTS) {
  threadgroup float tile[64];
  tile[t] = x[i];
  y[i] = tile[63 - t];  // finds: race
}
kernel void barrier_of_nothing(ARGUMENTS) {
  threadgroup float tile[64];
  tile[t] = x[i];
  threadgroup_barrier(mem_flags::mem_none);
  y[i] = tile[63 - t];  // finds: race
}
kernel void barrier_of_device_memory(ARGUMENTS) {
  threadgroup float tile[64];
  tile[t] = x[i];
  threadgroup_barrier(mem_flags::mem_device);
  y[i] = tile[63 - t];  // finds: race
}
kernel void loop(ARGUMENTS) {
  threadgroup float tile[64];
  float sum = 0.0f;
  for (int n = 0; n < 3; n++) {
    tile[t] = x[i] + float(n);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    sum += tile[63 - t];
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  y[i] = sum;
}
kernel void loop_without_second_barrier(ARGUMENTS) {
  threadgroup float tile[64];
  float sum = 0.0f;
  for (int n = 0; n < 3; n++) {
    tile[t] = x[i] + float(n);  // finds: race
    threadgroup_barrier(mem_flags::mem_threadgroup);
    sum += tile[63 - t];
  }
  y[i] = sum;
}
kernel void simdgroup_barrier_within(ARGUMENTS) {
  threadgroup float tile[64];
  tile[t] = x[i];
  simdgroup_barrier(mem_flags::mem_threadgroup);
  y[i] = tile[t ^ 5];
}
kernel void simdgroup_barrier_across(ARGUMENTS) {
  threadgroup float tile[64];
  tile[t] = x[i];
  simdgroup_barrier(mem_flags::mem_threadgroup);
  y[i] = tile[63 - t];  // finds: race
}
kernel void simdgroup_reads_then_one_writes(ARGUMENTS) {
  threadgroup float tile[2];
  if (lane == 0) tile[simdgroup] = x[i];
  simdgroup_barrier(mem_flags::mem_threadgroup);
  y[i] = tile[simdgroup];
  simdgroup_barrier(mem_flags::mem_threadgroup);
  if (lane == 7) tile[simdgroup] = 2.0f;
}
kernel void simd_sum_is_no_barrier(ARGUMENTS) {
  threadgroup float tile[64];
  tile[t] = x[i];
  const float sum = simd_sum(x[i]);
  y[i] = sum + tile[t ^ 1];  // finds: race
}
kernel void scalar_variable(ARGUMENTS) {
  threadgroup float total;
  if (t == 3) total = x[i];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[i] = total;
}
kernel void different_values(ARGUMENTS) {
  threadgroup float total;
  total = x[i];  // finds: race
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[i] = total;
}

// ---- races in device memory ----
kernel void device_barrier(ARGUMENTS) {
  y[i] = x[i];
  threadgroup_barrier(mem_flags::mem_device);
  const float other = y[i ^ 63];
  threadgroup_barrier(mem_flags::mem_device);
  y[i] = other;
}
kernel void device_memory_behind_threadgroup_barrier(ARGUMENTS) {
  y[i] = x[i];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const float other = y[i ^ 63];  // finds: race
  threadgroup_barrier(mem_flags::mem_device);
  y[i] = other;
}
kernel void device_two_writers(ARGUMENTS) {
  y[i / 2] = x[i];  // finds: race
}
kernel void device_across_threadgroups(ARGUMENTS) {
  y[i] = x[i];
  threadgroup_barrier(mem_flags::mem_device);
  y[(i + 64) % 128] = x[i];  // finds: race
}
kernel void atomics(const device uint* x [[buffer(0)]], device atomic_uint* y [[buffer(1)]],
                    uint t [[thread_index_in_threadgroup]], uint g [[threadgroup_position_in_grid]]) {
  if (t == 0) atomic_store_explicit(&y[g], 0u, memory_order_relaxed);
  threadgroup_barrier(mem_flags::mem_device);
  atomic_fetch_add_explicit(&y[g], x[t], memory_order_relaxed);
}
kernel void atomic_and_plain(const device uint* x [[buffer(0)]], device atomic_uint* y [[buffer(1)]],
                             uint i [[thread_position_in_grid]]) {
  if (i == 0) *(device uint*)y = x[0];
  atomic_fetch_add_explicit(&y[0], x[i], memory_order_relaxed);  // finds: race
}

// ---- bounds ----
kernel void threadgroup_too_short(ARGUMENTS) {
  threadgroup float first[63], second[64];
  first[t] = x[i];  // finds: out of bounds
  second[t] = x[i];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[i] = first[t] + second[t];
}
kernel void read_past_end(ARGUMENTS) {
  y[i] = x[i + 1];  // finds: out of bounds
}
kernel void read_before_start(ARGUMENTS) {
  y[i] = x[int(i) - 1];  // finds: out of bounds
}
kernel void read_far_away(ARGUMENTS) {
  y[i] = x[i + 0x7fffff00];  // finds: out of bounds
}
kernel void write_past_end(ARGUMENTS) {
  y[i * 2] = x[i];  // finds: out of bounds
}
kernel void vector_past_end(ARGUMENTS) {
  y[i] = dot(((const device packed_float4*)(x + i))[0], float4(1.0f));  // finds: out of bounds
}

kernel void thread_array_past_end(ARGUMENTS) {
  float own[4] = {1.0f, 2.0f, 3.0f, 4.0f};
  for (uint n = 0; n < 4; n++) own[n] += x[i];
  y[i] = own[i % 5];  // finds: out of bounds
}

// ---- uninitialised ----
kernel void threadgroup_not_filled(ARGUMENTS) {
  threadgroup float tile[64];
  if (t < 60) tile[t] = x[i];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[i] = tile[t];  // finds: uninitialised
}
kernel void threadgroup_memory_of_the_last_one(ARGUMENTS) {
  threadgroup float tile[64];
  if (g == 0) tile[t] = x[i];
  y[i] = g == 0 ? x[i] : tile[t];  // finds: uninitialised
}
kernel void output_read_first(ARGUMENTS) {
  y[i] += x[i];  // finds: uninitialised
}

kernel void matrix_of_nothing(ARGUMENTS) {
  threadgroup float tile[64];
  simdgroup_float8x8 m;
  simdgroup_load(m, tile);  // finds: uninitialised
  y[i] = m.thread_elements()[0];
}

// ---- alignment ----
kernel void aligned_vector(ARGUMENTS) {
  if (i < 32) ((device float4*)y)[i] = ((const device float4*)x)[i];
}
kernel void packed_vector(ARGUMENTS) {
  if (i < 31) ((device packed_float4*)(y + 1))[i] = ((const device packed_float4*)(x + 1))[i];
}
kernel void misaligned_vector(ARGUMENTS) {
  if (i < 31) y[i] = ((const device float4*)(x + 1))[i].x + ((const device float4*)(x + 1))[i].w;  // finds: misaligned
}
kernel void misaligned_word(ARGUMENTS) {
  y[i] = float(*(const device uint*)((const device uchar*)x + 1));  // finds: misaligned
}
kernel void misaligned_threadgroup(ARGUMENTS) {
  threadgroup float tile[68];
  tile[t] = x[i];
  if (t < 4) tile[64 + t] = x[i];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[i] = dot(*(threadgroup float4*)(tile + 1), float4(1.0f));  // finds: misaligned
}

// ---- divergence ----
kernel void simdgroup_leaves(ARGUMENTS) {
  if (t >= 32) return;
  y[i] = simd_sum(x[i]);
}
kernel void uniform_branch(ARGUMENTS) {
  if (g == 0) threadgroup_barrier(mem_flags::mem_none);
  y[i] = x[i];
}
kernel void barrier_of_some(ARGUMENTS) {
  if (t < 40) threadgroup_barrier(mem_flags::mem_none);  // finds: divergence
  y[i] = x[i];
}
kernel void two_barriers(ARGUMENTS) {
  if (t < 32) {
    threadgroup_barrier(mem_flags::mem_none);  // finds: divergence
  } else {
    threadgroup_barrier(mem_flags::mem_none);  // finds: divergence
  }
  y[i] = x[i];
}
kernel void simd_sum_of_some(ARGUMENTS) {
  float sum = 0.0f;
  if (t % 2) sum = simd_sum(x[i]);           // finds: divergence
  threadgroup_barrier(mem_flags::mem_none);  // finds: divergence
  y[i] = sum;
}
kernel void matrix_of_some(ARGUMENTS) {
  simdgroup_float8x8 m;
  if (lane < 31) simdgroup_load(m, x);  // finds: error
  y[i] = m.thread_elements()[0];
}
kernel void lane_that_left(ARGUMENTS) {
  if (t >= 60) return;
  y[i] = simd_shuffle_xor(x[i], 4);  // finds: error
}
kernel void lane_out_of_range(ARGUMENTS) {
  y[i] = simd_broadcast(x[i], 32);  // finds: error
}

// ---- others ----
kernel void shift_too_far(ARGUMENTS) {
  y[i] = float(1u << t);  // finds: error
}
kernel void division_by_zero(ARGUMENTS) {
  y[i] = float(128u / i);  // finds: error
}
kernel void writes_its_input(ARGUMENTS) {
  ((device float*)x)[i] = 1.0f;  // finds: read-only
  y[i] = x[i];
}
