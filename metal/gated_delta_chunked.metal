// The gated delta rule over many tokens, in chunks of 64: see csrc/ops/gated_delta.cpp for the formula.
//
// With G_t the sum of log g up to token t of a chunk, and q, k normalised, the tokens of a chunk see each other through
//   L[t, s] = beta_t (k_t . k_s) exp(G_t - G_s), s < t     and     P[t, s] = (q_t . k_s) exp(G_t - G_s), s <= t
// and the state S before the chunk through (I + L)^-1, so that (WY form: Yang et al., arXiv 2412.06464, as the
// flash-linear-attention library computes it)
//   U = (I + L)^-1 (beta v),  W = (I + L)^-1 (beta exp(G) k),  V = U - W S^T                         [64, Dv]
//   y = exp(G) q S^T + P V,   S = exp(G_63) S + V^T (exp(G_63 - G) k)
// Every exponent is a sum of logs of decays over later tokens and never positive: nothing overflows however strong the
// decay is. All of it is float32; (I + L)^-1 is never formed but for its 8x8 diagonal blocks, by forward substitution.
//
// Two launches: one a chunk and head, all at once, for what does not depend on S, and one a head and a few of its value
// columns, chunk after chunk. A token that is masked or past the end has beta = 0, log g = 0 and its q and k read as 0.
// Chunks are counted from where the sequence begins, so that padding on its left does not change a bit of it.
#include "chunk.h"
#include "common.h"
#include "delta.h"
#include "params.h"

// Eight simdgroups. Bytes: q, k twice (norms, products; the second time from the cache) and v once; 64 (DK + DV + 64) 4
// out, 80 KB for the 9B, which the second launch reads from the last-level cache. Work: 72 blocks of L and P, shared
// out so that each simdgroup has 9, then (DK + DV) / 8 columns of 36 blocks. Registers: 16 of sums or 32 of solved
// blocks, about 60. Threadgroup memory: L, 16 KB, and 1.25 KB.
template <typename T, int DK, int DV, bool MASK>
[[kernel, max_total_threads_per_threadgroup(256)]] void gated_delta_wy(
    device const T* q [[buffer(0)]], device const T* k [[buffer(1)]], device const T* v [[buffer(2)]],
    device const T* a [[buffer(3)]], device const T* b [[buffer(4)]], device const float* A_log [[buffer(5)]],
    device const float* dt_bias [[buffer(6)]], device const bool* mask [[buffer(7)]],
    device float* chunks [[buffer(8)]], constant GatedDeltaParams& p [[buffer(9)]],
    uint3 threadgroup_ [[threadgroup_position_in_grid]], uint thread_ [[thread_index_in_threadgroup]],
    uint simdgroup_ [[simdgroup_index_in_threadgroup]], uint lane_ [[thread_index_in_simdgroup]]) {
  typedef ChunkLayout<DK, DV> Layout;
  threadgroup float L[64 * 64];  // -L below the diagonal blocks, the inverses of I + L on them
  threadgroup float log_g[64];   // then G
  threadgroup float beta[64];
  threadgroup float q_inverse[64];  // 1 / |q|; 0: not there
  threadgroup float k_inverse[64];

  const int lane = int(lane_);
  const int simdgroup = int(simdgroup_);
  const int thread_index = int(thread_);
  const int chunk = int(threadgroup_.x);
  const int head = int(threadgroup_.y);
  const int sequence = int(threadgroup_.z);
  const int key_head = head / (p.Hv / p.Hk);
  const int chunk_count = (p.T + 63) / 64;
  const size_t of_sequence = size_t(sequence) * size_t(p.T);
  const int begin = (MASK ? padding_of(mask + of_sequence, p.T, lane) : 0) + chunk * 64;
  const size_t first = of_sequence + size_t(begin);
  const int count = min(64, p.T - begin);
  if (count <= 0) {  // fewer chunks than without padding
    return;
  }
  // From the chunk's first token on indices have 32 bits: of 64, those of one loop take more registers than its sums.
  const uint key_step = uint(p.Hk) * uint(DK);
  const uint value_step = uint(p.Hv) * uint(DV);
  device const T* qc = q + first * size_t(key_step) + size_t(key_head * DK);
  device const T* kc = k + first * size_t(key_step) + size_t(key_head * DK);
  device const T* vc = v + first * size_t(value_step) + size_t(head * DV);
  device float* out =
      chunks + ((size_t(sequence) * size_t(p.Hv) + size_t(head)) * size_t(chunk_count) + size_t(chunk)) *
                   size_t(Layout::floats);

  for (int i = 0; i < 8; i++) {
    const int t = simdgroup * 8 + i;
    float qq = 0.0f;
    float kk = 0.0f;
    const bool there = t < count && (!MASK || mask[first + size_t(t)]);
    if (there) {
      for (int d = lane; d < DK; d += 32) {
        const float of_q = float(qc[uint(t) * key_step + uint(d)]);
        const float of_k = float(kc[uint(t) * key_step + uint(d)]);
        qq += of_q * of_q;
        kk += of_k * of_k;
      }
    }
    qq = simd_sum(qq);
    kk = simd_sum(kk);
    if (lane == i) {
      const size_t value = (first + size_t(t)) * size_t(p.Hv) + size_t(head);
      q_inverse[t] = there ? precise::rsqrt(qq + 1e-6f) * precise::rsqrt(float(DK)) : 0.0f;
      k_inverse[t] = there ? precise::rsqrt(kk + 1e-6f) : 0.0f;
      beta[t] = there ? sigmoid(float(b[value])) : 0.0f;
      log_g[t] = there ? -precise::exp(A_log[head]) * softplus(float(a[value]) + dt_bias[head]) : 0.0f;
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (simdgroup == 0) {
    const float even = log_g[2 * lane];
    const float odd = log_g[2 * lane + 1];
    const float before = simd_prefix_exclusive_sum(even + odd);
    log_g[2 * lane] = before + even;
    log_g[2 * lane + 1] = before + even + odd;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  const Place place = place_of(lane);
  KEEP_LOOP
  for (int of_q = 0; of_q < 2; of_q++) {
    const int block = of_q == 1 ? 7 - simdgroup : simdgroup;
    const int t = block * 8 + place.row;
    const float t_inverse = of_q == 1 ? q_inverse[t] : -beta[t] * k_inverse[t];
    device const T* from = of_q == 1 ? qc : kc;
    const uint row = uint(t) * key_step + uint(place.column);
    const bool there = k_inverse[t] != 0.0f;
    Tile sum[8];
    UNROLL
    for (int j = 0; j < 8; j++) {
      sum[j] = zero_tile();
    }
    KEEP_LOOP
    for (int d = 0; d < DK; d += 8) {
      const Tile left = load_tile(from + (row + uint(d)), there, 1.0f);
      UNROLL
      for (int j = 0; j < 8; j++) {
        if (j <= block) {
          const int s = j * 8 + place.column;  // k transposed: two tokens of one column
          const uint column = uint(s) * key_step + uint(d + place.row);
          const float first_of = k_inverse[s] != 0.0f ? float(kc[column]) : 0.0f;
          const float second_of = k_inverse[s + 1] != 0.0f ? float(kc[column + key_step]) : 0.0f;
          const Tile right = tile_of(first_of, second_of);
          simdgroup_multiply_accumulate(sum[j], left, right, sum[j]);
        }
      }
    }
    UNROLL
    for (int j = 0; j < 8; j++) {
      if (j <= block) {
        UNROLL
        for (int i = 0; i < 2; i++) {
          const int s = j * 8 + place.column + i;
          const bool seen = of_q == 1 ? s <= t : s < t;
          const float factor = seen ? t_inverse * k_inverse[s] * precise::exp(log_g[t] - log_g[s]) : 0.0f;
          const float value = sum[j].thread_elements()[i] * factor;
          if (of_q == 1) {
            out[Layout::P + t * 64 + s] = value;
          } else {
            L[t * 64 + s] = value;
          }
        }
      }
    }
  }
  if (thread_index < 64) {
    const float G = log_g[thread_index];
    out[Layout::q_factor + thread_index] = q_inverse[thread_index] * precise::exp(G);
    out[Layout::k_factor + thread_index] = k_inverse[thread_index] * precise::exp(log_g[63] - G);
    if (thread_index == 63) {
      out[Layout::decay] = precise::exp(G);
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  // Column c of the inverse of a diagonal block: x = e_c - L x, from the top.
  const int corner = (thread_index / 8) * 8 * 65;
  const int c = thread_index % 8;
  float x[8];
  if (thread_index < 64) {
    UNROLL
    for (int t = 0; t < 8; t++) {
      x[t] = t == c ? 1.0f : 0.0f;
      UNROLL
      for (int s = 0; s < 8; s++) {  // bounds that do not depend on t: unrolled whatever the order of passes
        if (s < t) {
          x[t] = fma(L[corner + t * 64 + s], x[s], x[t]);
        }
      }
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (thread_index < 64) {
    UNROLL
    for (int t = 0; t < 8; t++) {
      L[corner + t * 64 + c] = x[t];
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  // X = (I + L)^-1 [-beta exp(G) k | beta v], 16 columns at a time: X_i = (I + L_ii)^-1 (B_i - sum_j<i L_ij X_j).
  KEEP_LOOP
  for (int column = simdgroup * 16; column < DK + DV; column += 8 * 16) {
    simdgroup_barrier(mem_flags::mem_threadgroup);  // or a compiler keeps all of L in registers from turn to turn
    const bool is_key = column < DK;
    device const T* from = is_key ? kc + column : vc + (column - DK);
    device float* to = is_key ? out + column : out + Layout::U + (column - DK);
    const uint step = is_key ? key_step : value_step;
    const int width = is_key ? DK : DV;
    Tile X[8][2];
    UNROLL
    for (int i = 0; i < 8; i++) {
      const int t = i * 8 + place.row;
      const float factor = is_key ? -beta[t] * k_inverse[t] * precise::exp(log_g[t]) : beta[t];
      Tile rest[2];
      UNROLL
      for (int n = 0; n < 2; n++) {
        rest[n] = load_tile(from + (uint(t) * step + uint(n * 8 + place.column)), k_inverse[t] != 0.0f, factor);
      }
      Tile left;
      UNROLL
      for (int j = 0; j < 8; j++) {
        if (j < i) {
          simdgroup_load(left, L + i * 8 * 64 + j * 8, 64);
          UNROLL
          for (int n = 0; n < 2; n++) {
            simdgroup_multiply_accumulate(rest[n], left, X[j][n], rest[n]);
          }
        }
      }
      simdgroup_load(left, L + i * 8 * 65, 64);
      UNROLL
      for (int n = 0; n < 2; n++) {
        simdgroup_multiply(X[i][n], left, rest[n]);
        simdgroup_store(X[i][n], to + i * 8 * width + n * 8, ulong(width));
      }
    }
  }
}

// Eight simdgroups; COLUMNS value columns of one head. A simdgroup keeps the rows DK / 64 of S^T in registers from
// chunk to chunk, publishes them, and takes 8 of the chunk's tokens. Bytes: per chunk -W, P, q and k once per COLUMNS
// value columns, from the last-level cache; U, y and the state once. Threads: 256 DV / COLUMNS a head, 32768 for the
// 9B. Loads in flight: two tiles a multiply of COLUMNS / 8. Registers: 16 of state, 16 of V and y, about 60 at COLUMNS
// = 32. Threadgroup memory: (DK + 64) COLUMNS floats, 24 KB for the 9B. Two barriers a chunk.
template <typename T, int DK, int DV, int COLUMNS, bool MASK>
[[kernel, max_total_threads_per_threadgroup(256)]] void gated_delta_chunks(
    device const T* q [[buffer(0)]], device const T* k [[buffer(1)]], device const float* chunks [[buffer(2)]],
    device const float* state [[buffer(3)]], device const bool* mask [[buffer(4)]], device T* y [[buffer(5)]],
    device float* new_state [[buffer(6)]], constant GatedDeltaParams& p [[buffer(7)]],
    uint3 threadgroup_ [[threadgroup_position_in_grid]], uint thread_ [[thread_index_in_threadgroup]],
    uint simdgroup_ [[simdgroup_index_in_threadgroup]], uint lane_ [[thread_index_in_simdgroup]]) {
  typedef ChunkLayout<DK, DV> Layout;
  const int blocks = (DK + 63) / 64;  // of 8 rows of S^T a simdgroup
  const int tiles = COLUMNS / 8;
  threadgroup float S[DK * COLUMNS];
  threadgroup float V[64 * COLUMNS];

  const int simdgroup = int(simdgroup_);
  const int head = int(threadgroup_.y);
  const int sequence = int(threadgroup_.z);
  const int column = int(threadgroup_.x) * COLUMNS;
  const int key_head = head / (p.Hv / p.Hk);
  const int chunk_count = (p.T + 63) / 64;
  const int lane = int(lane_);
  const Place place = place_of(lane);
  const uint key_step = uint(p.Hk) * uint(DK);
  const size_t of_sequence = size_t(sequence) * size_t(p.T);
  const size_t sequence_head = size_t(sequence) * size_t(p.Hv) + size_t(head);
  const size_t of_state = sequence_head * size_t(DV * DK) + size_t(column * DK);

  Tile rows[blocks][tiles];
  UNROLL
  for (int m = 0; m < blocks; m++) {
    const int d = (simdgroup + 8 * m) * 8;
    UNROLL
    for (int n = 0; n < tiles; n++) {
      if (d < DK) {
        simdgroup_load(rows[m][n], state + of_state + size_t(n * 8 * DK + d), ulong(DK), ulong2(0, 0), true);
      }
    }
  }
  const int padding = MASK ? padding_of(mask + of_sequence, p.T, lane) : 0;
  for (int i = int(thread_); i < padding * COLUMNS; i += 256) {
    const size_t token = of_sequence + size_t(i / COLUMNS);
    y[(token * size_t(p.Hv) + size_t(head)) * size_t(DV) + size_t(column + i % COLUMNS)] = T(0.0f);
  }
  for (int chunk = 0; padding + chunk * 64 < p.T; chunk++) {
    device const float* of_chunk =
        chunks + (sequence_head * size_t(chunk_count) + size_t(chunk)) * size_t(Layout::floats);
    device const float* k_factor = of_chunk + Layout::k_factor;
    const int begin = padding + chunk * 64;
    const size_t first = of_sequence + size_t(begin);
    UNROLL
    for (int m = 0; m < blocks; m++) {
      const int d = (simdgroup + 8 * m) * 8;
      UNROLL
      for (int n = 0; n < tiles; n++) {
        if (d < DK) {
          simdgroup_store(rows[m][n], S + d * COLUMNS + n * 8, ulong(COLUMNS));
        }
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    const int t = simdgroup * 8 + place.row;
    const float q_factor = of_chunk[Layout::q_factor + t];
    const size_t of_keys = first * size_t(key_step) + size_t(key_head * DK);
    const uint of_q = uint(t) * key_step + uint(place.column);
    Tile value[tiles];
    Tile seen[tiles];
    Tile left;
    Tile right;
    UNROLL
    for (int n = 0; n < tiles; n++) {
      simdgroup_load(value[n], of_chunk + Layout::U + simdgroup * 8 * DV + column + n * 8, ulong(DV));
      seen[n] = zero_tile();
    }
    KEEP_LOOP
    for (int d = 0; d < DK; d += 8) {
      simdgroup_load(left, of_chunk + simdgroup * 8 * DK + d, ulong(DK));
      const Tile query = load_tile(q + of_keys + (of_q + uint(d)), q_factor != 0.0f, q_factor);
      UNROLL
      for (int n = 0; n < tiles; n++) {
        simdgroup_load(right, S + d * COLUMNS + n * 8, ulong(COLUMNS));
        simdgroup_multiply_accumulate(value[n], left, right, value[n]);
        simdgroup_multiply_accumulate(seen[n], query, right, seen[n]);
      }
    }
    UNROLL
    for (int n = 0; n < tiles; n++) {
      simdgroup_store(value[n], V + simdgroup * 8 * COLUMNS + n * 8, ulong(COLUMNS));
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    KEEP_LOOP
    for (int j = 0; j <= simdgroup; j++) {
      simdgroup_load(left, of_chunk + Layout::P + simdgroup * 8 * 64 + j * 8, 64);
      UNROLL
      for (int n = 0; n < tiles; n++) {
        simdgroup_load(right, V + j * 8 * COLUMNS + n * 8, ulong(COLUMNS));
        simdgroup_multiply_accumulate(seen[n], left, right, seen[n]);
      }
    }
    if (begin + t < p.T) {
      device T* out = y + ((first + size_t(t)) * size_t(p.Hv) + size_t(head)) * size_t(DV) + size_t(column);
      UNROLL
      for (int n = 0; n < tiles; n++) {
        out[n * 8 + place.column] = T(seen[n].thread_elements()[0]);
        out[n * 8 + place.column + 1] = T(seen[n].thread_elements()[1]);
      }
    }
    const float decay = of_chunk[Layout::decay];
    UNROLL
    for (int m = 0; m < blocks; m++) {
      const int d = (simdgroup + 8 * m) * 8;
      if (d < DK) {
        UNROLL
        for (int n = 0; n < tiles; n++) {
          rows[m][n].thread_elements()[0] *= decay;
          rows[m][n].thread_elements()[1] *= decay;
        }
        KEEP_LOOP
        for (int j = 0; j < 8; j++) {
          const int s = j * 8 + place.column;  // k transposed: two tokens of one column
          device const T* kc = k + of_keys;
          const uint of_k = uint(s) * key_step + uint(d + place.row);
          const float factor[2] = {k_factor[s], k_factor[s + 1]};
          const float first_of = factor[0] != 0.0f ? float(kc[of_k]) * factor[0] : 0.0f;
          const float second_of = factor[1] != 0.0f ? float(kc[of_k + key_step]) * factor[1] : 0.0f;
          left = tile_of(first_of, second_of);
          UNROLL
          for (int n = 0; n < tiles; n++) {
            simdgroup_load(right, V + j * 8 * COLUMNS + n * 8, ulong(COLUMNS));
            simdgroup_multiply_accumulate(rows[m][n], left, right, rows[m][n]);
          }
        }
      }
    }
  }
  UNROLL
  for (int m = 0; m < blocks; m++) {
    const int d = (simdgroup + 8 * m) * 8;
    UNROLL
    for (int n = 0; n < tiles; n++) {
      if (d < DK) {
        simdgroup_store(rows[m][n], new_state + of_state + size_t(n * 8 * DK + d), ulong(DK), ulong2(0, 0), true);
      }
    }
  }
}
