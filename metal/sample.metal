// The next token of each row of logits: see csrc/ops/sample.cpp for the formula.
//
// No logit is sorted, as on a CPU (csrc/cpu/sample.cpp): what the filters keep is a threshold, and how many of the
// tokens that equal it. Masses are integers, in 2^-43 of the likeliest token's: their sums are the same in any order.
#include "common.h"
#include "params.h"
#include "sample_mass.h"

inline bool is_nan(float x) { return (as_type<uint>(x) & 0x7fffffffu) > 0x7f800000u; }

// The largest of each block of columns, or NaN where a logit is. Otherwise than for the likeliest token, which needs of each block the first
// column that has it, x is kept: penalties, mask and temperature applied, -inf beyond the last token.
//
// A mask is told of by a parameter, for an answer that gets one in its middle must not wait for another kernel.
//
// Bytes: the logits and masks once, and x, 1 MB for the 9B's vocabulary. A threadgroup a block, 243 of them; four
// columns a thread. Time is the launch's own.
template <typename T, bool GREEDY>
[[kernel]] void sample_read(
    device const T* logits [[buffer(0)]], device const bool* allowed [[buffer(1)]],
    device const bool* prompt [[buffer(2)]], device const bool* generated [[buffer(3)]],
    device float* x [[buffer(4)]], device float* largest [[buffer(5)]], device int* first [[buffer(6)]],
    constant SampleParams& p [[buffer(7)]], uint2 threadgroup_ [[threadgroup_position_in_grid]],
    uint thread_ [[thread_index_in_threadgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  const int block = int(threadgroup_.x);
  const int row = int(threadgroup_.y);
  threadgroup float maxima[8];
  threadgroup int columns[8];
  float best = -INFINITY;
  int at = p.N;
  bool broken = false;
  UNROLL
  for (int i = 0; i < 4; i++) {
    const int in_block = int(thread_) + 256 * i;
    const int column = block * MLX_DELTA_SAMPLE_BLOCK + in_block;
    float v = -INFINITY;
    if (column < p.N) {
      const float logit = float(logits[size_t(row) * size_t(p.V) + size_t(column)]);
      v = is_nan(logit) ? -INFINITY : logit;
      broken = broken || is_nan(logit);
      const bool was_generated =
          p.has_generated != 0 && generated[size_t(row) * size_t(p.generated_stride) + size_t(column)];
      if (was_generated || (p.has_prompt != 0 && prompt[size_t(row) * size_t(p.prompt_stride) + size_t(column)])) {
        v = v > 0.0f ? v / p.repetition_penalty : v * p.repetition_penalty;
      }
      if (was_generated) {
        v -= p.presence_penalty;
      }
      if (p.has_allowed != 0 && !allowed[size_t(row) * size_t(p.allowed_stride) + size_t(column)]) {
        v = -INFINITY;
      }
      v = v / p.temperature + 0.0f;  // no -0
    }
    if (!GREEDY) {
      x[(size_t(row) * size_t(p.blocks) + size_t(block)) * MLX_DELTA_SAMPLE_BLOCK + size_t(in_block)] = v;
    }
    if (v > best) {
      best = v;
      at = column;
    }
  }
  const float of_simdgroup = simd_max(best);
  const int first_of_simdgroup = simd_any(broken) ? -1 : simd_min(best == of_simdgroup ? at : p.N);
  if (lane == 0) {
    maxima[simdgroup] = of_simdgroup;
    columns[simdgroup] = first_of_simdgroup;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (thread_ == 0) {
    float whole = of_simdgroup;
    int column = first_of_simdgroup;
    bool any_broken = column < 0;
    for (int i = 1; i < 8; i++) {
      any_broken = any_broken || columns[i] < 0;
      if (maxima[i] > whole || (maxima[i] == whole && columns[i] < column)) {
        whole = maxima[i];
        column = columns[i];
      }
    }
    largest[row * p.blocks + block] = any_broken ? NAN : whole;
    if (GREEDY) {
      first[row * p.blocks + block] = column;
    }
  }
}

#define SAMPLE_SIMDGROUPS 16

// What is kept: columns with more than `least`, and those with as much up to column `last`.
struct Kept {
  float least;
  int last;

  bool has(float x, int column) const thread { return x > least || (x == least && column <= last); }
};

// A row, and the threadgroup that chooses from it.
struct Row {
  device const float* x;
  device float* list;           // a thread's entries lie a threadgroup apart
  threadgroup float* largest;   // of each block
  threadgroup ulong* masses;    // of each block, of what is kept
  threadgroup ulong* sums;      // of each simdgroup
  int blocks;
  float max;
  uint thread_index;
  uint simdgroup;
  uint lane;
};

inline ulong sum_over_lanes(ulong value) {
  UNROLL
  for (ushort apart = 16; apart > 0; apart /= 2) {
    const uint low = simd_shuffle_xor(uint(value), apart);
    const uint high = simd_shuffle_xor(uint(value >> 32), apart);
    value += ulong(high) << 32 | ulong(low);
  }
  return value;
}

inline ulong sum_over_threads(ulong value, const thread Row& row) {
  const ulong of_simdgroup = sum_over_lanes(value);
  threadgroup_barrier(mem_flags::mem_threadgroup);  // the last sums have been read
  if (row.lane == 0) {
    row.sums[row.simdgroup] = of_simdgroup;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  ulong sum = 0;
  for (int i = 0; i < SAMPLE_SIMDGROUPS; i++) {
    sum += row.sums[i];
  }
  return sum;
}

// Fills in the masses of what is kept; their sum.
inline ulong weigh(const thread Row& row, const thread Kept& kept) {
  threadgroup_barrier(mem_flags::mem_threadgroup);  // the last masses have been read
  ulong whole = 0;
  for (int b = int(row.simdgroup); b < row.blocks; b += SAMPLE_SIMDGROUPS) {
    ulong mass = 0;
    if (row.largest[b] >= kept.least) {
      for (int i = int(row.lane); i < MLX_DELTA_SAMPLE_BLOCK; i += 32) {
        const int column = b * MLX_DELTA_SAMPLE_BLOCK + i;
        const float v = row.x[column];
        mass += kept.has(v, column) ? mass_of(v, row.max) : 0;
      }
    }
    mass = sum_over_lanes(mass);
    if (row.lane == 0) {
      row.masses[b] = mass;
      whole += mass;
    }
  }
  return sum_over_threads(whole, row);
}

// Of a thread's `count` entries of the list: how many have this key or a larger one, or their mass.
inline ulong weight_from(uint key, uint count, bool by_mass, const thread Row& row) {
  ulong weight = 0;
  for (uint i = 0; i < count; i++) {
    const float v = row.list[i * 32 * SAMPLE_SIMDGROUPS + row.thread_index];
    if (key_of(v) >= key) {
      weight += by_mass ? mass_of(v, row.max) : 1;
    }
  }
  return sum_over_threads(weight, row);
}

// Keeps the shortest beginning of the order (x descending, columns ascending) that has `limit` tokens, or their mass.
// The last of it is known to have no less than `floor`.
inline void keep_most(thread Kept& kept, ulong limit, float floor, bool by_mass, const thread Row& row) {
  uint count = 0;
  for (int b = 0; b < row.blocks; b++) {
    if (row.largest[b] < floor) {
      continue;
    }
    for (uint i = row.thread_index; i < MLX_DELTA_SAMPLE_BLOCK; i += 32 * SAMPLE_SIMDGROUPS) {
      const int column = b * MLX_DELTA_SAMPLE_BLOCK + int(i);
      const float v = row.x[column];
      if (v >= floor && kept.has(v, column)) {
        row.list[count * 32 * SAMPLE_SIMDGROUPS + row.thread_index] = v;
        count++;
      }
    }
  }
  // The largest key from which on the limit is reached.
  uint low = key_of(floor);
  uint high = key_of(row.max);
  while (low < high) {
    const uint middle = low + (high - low + 1) / 2;
    if (weight_from(middle, count, by_mass, row) >= limit) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const ulong reached = weight_from(low, count, by_mass, row);
  const ulong above = weight_from(low + 1, count, by_mass, row);
  const float least = value_of_key(low);
  const ulong weight = by_mass ? mass_of(least, row.max) : 1;
  const int last = least == kept.least ? kept.last : row.blocks * MLX_DELTA_SAMPLE_BLOCK - 1;
  // Of those that equal it only as many as the limit takes.
  const ulong wanted = weight == 0 ? 0 : (limit - above + weight - 1) / weight;
  int first = reached - above > wanted * weight ? 0 : last;
  int end = last;
  while (first < end) {
    const int middle = (first + end) / 2;
    ulong equal = 0;
    for (int b = 0; b * MLX_DELTA_SAMPLE_BLOCK <= middle; b++) {
      if (row.largest[b] < least) {
        continue;
      }
      for (uint i = row.thread_index; i < MLX_DELTA_SAMPLE_BLOCK; i += 32 * SAMPLE_SIMDGROUPS) {
        const int column = b * MLX_DELTA_SAMPLE_BLOCK + int(i);
        equal += column <= middle && row.x[column] == least ? 1u : 0u;
      }
    }
    if (sum_over_threads(equal, row) >= wanted) {
      end = middle;
    } else {
      first = middle + 1;
    }
  }
  kept.least = least;
  kept.last = end;
}

// No more than the k-th largest x, and close to it: the k-th largest of the blocks' maxima.
inline float floor_of(int k, const thread Row& row, threadgroup float& found) {
  if (k > row.blocks) {
    return -INFINITY;
  }
  for (int b = int(row.thread_index); b < row.blocks; b += 32 * SAMPLE_SIMDGROUPS) {
    const float own = row.largest[b];
    int before = 0;
    for (int i = 0; i < row.blocks; i++) {
      const float other = row.largest[i];
      before += other > own || (other == own && i < b) ? 1 : 0;
    }
    if (before == k - 1) {
      found = own;
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return found;
}

// The token in whose mass lies the point random / 2^64 of all that is kept, laid end to end by column.
inline void draw(ulong random, const thread Row& row, const thread Kept& kept, device int* token) {
  ulong unused;
  ulong rest = product_of(random, weigh(row, kept), unused);
  int block = 0;
  while (rest >= row.masses[block]) {
    rest -= row.masses[block];
    block++;
  }
  if (row.simdgroup != 0) {
    return;
  }
  const int first = block * MLX_DELTA_SAMPLE_BLOCK + int(row.lane) * 32;
  ulong mass = 0;
  for (int column = first; column < first + 32; column++) {
    mass += kept.has(row.x[column], column) ? mass_of(row.x[column], row.max) : 0;
  }
  ulong before = 0;
  for (ushort i = 0; i < 32; i++) {
    const ulong other = ulong(simd_broadcast(uint(mass >> 32), i)) << 32 | ulong(simd_broadcast(uint(mass), i));
    before += i < row.lane ? other : 0;
  }
  if (rest < before || rest - before >= mass) {
    return;
  }
  rest -= before;
  int column = first;
  for (; column < first + 31; column++) {
    const ulong own = kept.has(row.x[column], column) ? mass_of(row.x[column], row.max) : 0;
    if (rest < own) {
      break;
    }
    rest -= own;
  }
  *token = column;
}

// One threadgroup a row. Bytes: of x only the blocks that can matter, for top_k = 20 at most 80 KB at a time; for top_p
// alone all of it, 1 MB. A threshold is found by halving the range of keys that can be it: 32 sums over a list of what
// may matter, some hundred tokens, or most of the vocabulary where top_p alone cuts a flat distribution.
template <bool GREEDY>
[[kernel, max_total_threads_per_threadgroup(32 * SAMPLE_SIMDGROUPS)]] void sample_choose(
    device const float* x [[buffer(0)]], device const float* largest_ [[buffer(1)]],
    device const int* first [[buffer(2)]], device const ulong* random [[buffer(3)]], device float* list [[buffer(4)]],
    device int* tokens [[buffer(5)]], constant SampleParams& p [[buffer(6)]],
    uint2 threadgroup_ [[threadgroup_position_in_grid]], uint thread_ [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float largest[MLX_DELTA_SAMPLE_BLOCKS];
  threadgroup ulong masses[GREEDY ? 1 : MLX_DELTA_SAMPLE_BLOCKS];
  threadgroup ulong sums[SAMPLE_SIMDGROUPS];
  threadgroup float maxima[SAMPLE_SIMDGROUPS];
  threadgroup float found;
  device const float* of_row = largest_ + int(threadgroup_.y) * p.blocks;
  device int* token = tokens + threadgroup_.y;
  float max_of_thread = -INFINITY;
  bool broken = false;
  for (int b = int(thread_); b < p.blocks; b += 32 * SAMPLE_SIMDGROUPS) {
    largest[b] = of_row[b];
    broken = broken || is_nan(of_row[b]);
    max_of_thread = max(max_of_thread, of_row[b]);
  }
  const float max_of_simdgroup = simd_max(max_of_thread);
  const bool any_broken = simd_any(broken);
  if (lane == 0) {
    maxima[simdgroup] = any_broken ? NAN : max_of_simdgroup;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float whole = -INFINITY;
  broken = false;
  for (int i = 0; i < SAMPLE_SIMDGROUPS; i++) {
    broken = broken || is_nan(maxima[i]);
    whole = max(whole, maxima[i]);
  }
  if (broken || whole == -INFINITY) {
    if (thread_ == 0) {
      *token = broken ? -1 : 0;
    }
    return;
  }
  if (GREEDY) {
    if (thread_ == 0) {
      int block = 0;
      while (largest[block] != whole) {
        block++;
      }
      *token = first[int(threadgroup_.y) * p.blocks + block];
    }
    return;
  }
  Row row;
  row.x = x + size_t(threadgroup_.y) * size_t(p.blocks) * MLX_DELTA_SAMPLE_BLOCK;
  row.list = list + size_t(threadgroup_.y) * size_t(p.blocks) * MLX_DELTA_SAMPLE_BLOCK;
  row.largest = largest;
  row.masses = masses;
  row.sums = sums;
  row.blocks = p.blocks;
  row.max = whole;
  row.thread_index = thread_;
  row.simdgroup = simdgroup;
  row.lane = lane;
  Kept kept;
  kept.least = -INFINITY;
  kept.last = p.blocks * MLX_DELTA_SAMPLE_BLOCK - 1;
  if (p.top_k > 0) {
    keep_most(kept, ulong(p.top_k), floor_of(p.top_k, row, found), false, row);
  }
  if (p.cuts_mass != 0) {
    const ulong total = weigh(row, kept);
    const ulong limit = share_of(ulong(p.top_p_high) << 32 | ulong(p.top_p_low), total);
    // All tokens below have, together, less than what top_p leaves out. The 0.01 is for rounding.
    const float floor = whole + precise::log(float(total) * 1.1368683772161603e-13f) + p.log_left_out - 0.01f;
    keep_most(kept, limit, max(kept.least, floor), true, row);
  }
  if (whole + p.log_min_p > kept.least) {
    kept.least = whole + p.log_min_p;
    kept.last = p.blocks * MLX_DELTA_SAMPLE_BLOCK - 1;
  }
  draw(random[threadgroup_.y], row, kept, token);
}
