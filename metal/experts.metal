// The experts of 1 to 16 tokens, and the shared one: see csrc/ops/experts.cpp for the formula. Two launches: gate and up
// with SwiGLU, then down with the weighted sum and the residual.
//
// Both are qmm's products of one row of x: a row of weights of one expert against one token, in the same order whatever
// tokens there are beside it.
#include "common.h"
#include "dequant.h"
#include "params.h"
#include "qmm_multiply.h"

// Which pair of a token and an expert is `place`-th by expert. Pairs of one expert are threadgroups next to each other,
// so that all but the first find its weights in the cache.
inline uint pair_at(
    device const uint* experts, uint pairs, uint place, threadgroup uint* found, uint thread_index, uint threads) {
  for (uint i = thread_index; i < pairs; i += threads) {
    const uint mine = experts[i];
    uint before = 0;
    for (uint j = 0; j < pairs; j++) {
      const uint other = experts[j];
      before += other < mine || (other == mine && j < i) ? 1 : 0;
    }
    if (before == place) {
      *found = i;
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return *found;
}

// silu(gate x) * (up x) of a simdgroup's two rows of either matrix, F of gate and G of up; on lanes of r < 2.
template <typename F, typename G, int K, int SIMDGROUPS, typename T>
inline float gated_rows(const thread Chosen& chosen, const thread Work<T>& work, float eps) {
  float total[4];
  float f_squares[1];
  float g_squares[1];
  if (is_same_v<F, G>) {
    multiply<F, None, 2, 1, 4, K, SIMDGROUPS, true>(total, f_squares, g_squares, chosen, work, false);
  } else {
    multiply<F, G, 2, 1, 4, K, SIMDGROUPS, true>(total, f_squares, g_squares, chosen, work, false);
  }
  float value = sum_over_lanes(total, work.lane);
  float square = sum_over_lanes(f_squares, work.lane);
  if (!is_same_v<F, G>) {
    const float of_up = sum_over_lanes(g_squares, work.lane);
    square = work.lane < 16 ? square : of_up;
  }
  value *= precise::rsqrt(square / float(K) + eps);
  return silu(value) * simd_shuffle_xor(value, ushort(16));
}

// inner [M, stride]: of each token what its experts, and then the shared one, have between their products, one behind
// the other from multiples of 8 on.
//
// Bytes: gate and up of every chosen expert once. x and norm come from the cache, once a threadgroup. Threads: 32 for
// two rows of either matrix.
template <typename T, int K, int SIMDGROUPS, typename F, typename G, typename SF, typename SG>
[[kernel, max_total_threads_per_threadgroup(32 * SIMDGROUPS)]] void experts_gate_up(
    device const T* x [[buffer(0)]], device const uint* experts [[buffer(1)]], device const float* norm [[buffer(2)]],
    device const uchar* w0 [[buffer(3)]], device const uchar* s0 [[buffer(4)]], device const uchar* b0 [[buffer(5)]],
    device const uchar* w1 [[buffer(6)]], device const uchar* s1 [[buffer(7)]], device const uchar* b1 [[buffer(8)]],
    device const uchar* w2 [[buffer(9)]], device const uchar* s2 [[buffer(10)]], device const uchar* b2 [[buffer(11)]],
    device const uchar* w3 [[buffer(12)]], device const uchar* s3 [[buffer(13)]], device const uchar* b3 [[buffer(14)]],
    device float* inner [[buffer(15)]], constant ExpertsParams& p [[buffer(16)]],
    uint2 threadgroup_ [[threadgroup_position_in_grid]], uint simdgroup_ [[simdgroup_index_in_threadgroup]],
    uint lane_ [[thread_index_in_simdgroup]]) {
  typedef Tiling<K, 1, SIMDGROUPS> Tiles;
  const bool any_staged = AffineRows<F, 0, 2>::present || AffineRows<G, 0, 2>::present ||
                          AffineRows<SF, 0, 2>::present || AffineRows<SG, 0, 2>::present;
  threadgroup float4 staged[any_staged ? int(Tiles::values) : 1];
  threadgroup float sums[any_staged ? int(Tiles::blocks) : 1];
  threadgroup float squares[any_staged ? int(Tiles::blocks) : 1];
  threadgroup uint found;
  Work<T> work;
  work.x = x;
  work.norm = norm;
  work.staged = staged;
  work.sums = sums;
  work.squares = squares;
  work.thread_index = simdgroup_ * 32 + lane_;
  work.lane = lane_;
  const uint pairs = uint(p.M * p.k);
  const bool shared = threadgroup_.x >= pairs;
  uint pair = threadgroup_.x;
  if (!shared && p.M > 1) {
    pair = pair_at(experts, pairs, pair, &found, work.thread_index, 32 * SIMDGROUPS);
  }
  const uint token = shared ? pair - pairs : pair / uint(p.k);
  const uint slot = shared ? uint(p.k) : pair % uint(p.k);
  work.first_row = token;
  work.last_row = token;
  const int first = int(threadgroup_.y * uint(SIMDGROUPS) + simdgroup_) * 2;
  const int rows = shared ? p.shared_rows : p.rows;
  work.idle = first >= rows;
  const uint row = uint(min(first, rows - 2));
  Chosen chosen;
  float value;
  if (shared) {
    chosen.first = segment_of(w2, s2, b2);
    chosen.second = segment_of(w3, s3, b3);
    chosen.row = row;
    value = gated_rows<SF, SG, K, SIMDGROUPS>(chosen, work, p.eps);
  } else {
    chosen.first = segment_of(w0, s0, b0);
    chosen.second = segment_of(w1, s1, b1);
    chosen.row = min(experts[pair], uint(p.E - 1)) * uint(p.rows) + row;
    value = gated_rows<F, G, K, SIMDGROUPS>(chosen, work, p.eps);
  }
  const uint at = row + lane_ / 8;  // that this lane has, if it has one
  if (!work.idle && lane_ % 8 == 0 && lane_ < 16 && int(at) >= first) {
    inner[token * uint(p.stride) + slot * uint((p.rows + 7) / 8 * 8) + at] = value;
  }
}

// Four rows of down, and a token's experts: those at `first` and after it, whose weights are at `first_weight`.
struct Down {
  Segment matrix;
  uint row;
  uint rows;  // of an expert
  uint last_expert;
  device const uint* experts;
  device const float* weights;
  uint first;
  uint first_weight;

  uint row_of(uint place) const thread { return min(experts[first + place], last_expert) * rows + row; }

  // A wrong expert must show.
  float weight_of(uint place) const thread {
    const float weight = weights[first_weight + place];
    return experts[first + place] <= last_expert ? weight : NAN;
  }
};

// Four rows of one matrix against what one token has for it.
template <typename F, int K, int SIMDGROUPS>
inline float down_rows(const thread Chosen& chosen, const thread Work<float>& work) {
  float total[4];
  float squares[1];
  float none[1];
  multiply<F, None, 4, 1, 4, K, SIMDGROUPS, false>(total, squares, none, chosen, work, false);
  return sum_over_lanes(total, work.lane);
}

// The same of 512 columns, whose blocks are half as many as there are lanes: each half takes two rows.
template <typename F, int K, int SIMDGROUPS>
inline float down_rows_by_halves(const thread Chosen& chosen, const thread Work<float>& work) {
  typedef AffineRows<F, 0, 2> Rows;
  typedef Tiling<K, 1, SIMDGROUPS> Tiles;
  const uint block = work.lane % 16;
  Chosen own = chosen;
  own.row += work.lane / 16 * 2;
  typename Rows::Held held;
  Rows::template load<2, K>(held, own, block);
  Sums sums;
  if (work.thread_index < 32) {  // 512 columns are what a simdgroup stages
    stage<F, 1, K, false, SIMDGROUPS>(work, 0, 0, sums);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float partial[2] = {};
  float total[2] = {};
  Rows::template multiply<F, Tiles, 1, 2>(partial, held, work, block, 0);
  const float of_block[1] = {work.sums[block]};
  Rows::template finish<1, 2>(total, partial, held, of_block);
  return sum_over_lanes<16>(total, work.lane);
}

// Experts of I columns whose blocks fill a simdgroup's lanes, or do so two side by side.
template <typename F, int I, int CHOSEN>
struct FillLanes {
  enum {
    value = AffineRows<F, 0, 4>::present && CHOSEN * I % 1024 == 0 && (I % 1024 == 0 || I == 512)
  };
};

// sum + the weighted sum over a token's experts, in their order, for row lane / 8: one expert after the other.
template <typename F, int I, int CHOSEN, int SIMDGROUPS, bool FILL_LANES>
struct ExpertsSum {
  static float of(float sum, const thread Down& down, const thread Work<float>& of_token) {
    Work<float> work = of_token;
    Chosen chosen;
    chosen.first = down.matrix;
    chosen.second = down.matrix;
    KEEP_LOOP
    for (uint i = 0; i < uint(CHOSEN); i++) {
      chosen.row = down.row_of(i);
      work.x = of_token.x + i * uint((I + 7) / 8 * 8);
      sum = fma(down.weight_of(i), down_rows<F, I, SIMDGROUPS>(chosen, work), sum);
      threadgroup_barrier(mem_flags::mem_threadgroup);  // before x of the next takes its place
    }
    return sum;
  }
};

// The same sums, of lanes that are all busy: the experts' x is one row of CHOSEN I columns, staged as such.
template <typename F, int I, int CHOSEN, int SIMDGROUPS>
struct ExpertsSum<F, I, CHOSEN, SIMDGROUPS, true> {
  static float of(float from, const thread Down& down, const thread Work<float>& work) {
    typedef AffineRows<F, 0, 4> Rows;
    typedef Tiling<CHOSEN * I, 1, SIMDGROUPS> Tiles;
    const uint blocks = I / 32;  // of an expert
    const int lanes = I == 512 ? 16 : 32;
    const uint turns_each = I == 512 ? 1 : I / 1024;
    const uint turns_of_tile = uint(Tiles::blocks) / 32;
    Chosen chosen;
    chosen.first = down.matrix;
    chosen.second = down.matrix;
    Sums sums;
    float total[4] = {};
    // Of two side by side a lane has row lane % 16 / 4.
    float sum = lanes == 16 ? simd_shuffle(from, ushort(work.lane % 16 / 4 * 8)) : from;
    KEEP_LOOP
    for (uint turn = 0; turn < uint(CHOSEN * I / 1024); turn++) {
      const uint tile = turn / turns_of_tile;
      const uint block = turn * 32 + work.lane;
      const uint of_tile = block - tile * uint(Tiles::blocks);
      typename Rows::Held held;
      chosen.row = down.row_of(block / blocks);
      Rows::template load<4, I>(held, chosen, block % blocks);
      if (turn % turns_of_tile == 0) {
        if (int(Tiles::count) > 1) {
          threadgroup_barrier(mem_flags::mem_threadgroup);
        }
        stage<F, 1, CHOSEN * I, false, SIMDGROUPS>(work, tile, 0, sums);
        threadgroup_barrier(mem_flags::mem_threadgroup);
      }
      float partial[4] = {};
      Rows::template multiply<F, Tiles, 1, 4>(partial, held, work, of_tile, 0);
      const float of_block[1] = {work.sums[of_tile]};
      Rows::template finish<1, 4>(total, partial, held, of_block);
      if ((turn + 1) % turns_each == 0) {
        const uint place = (turn + 1 - turns_each) * 32 / blocks;
        const float own = sum_over_lanes<lanes>(total, work.lane);
        if (lanes == 16) {
          const float other = simd_shuffle_xor(own, ushort(16));
          const bool first = work.lane < 16;
          sum = fma(down.weight_of(place), first ? own : other, sum);
          sum = fma(down.weight_of(place + 1), first ? other : own, sum);
        } else {
          sum = fma(down.weight_of(place), own, sum);
        }
        UNROLL
        for (int r = 0; r < 4; r++) {
          total[r] = 0.0f;
        }
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);  // before x of the shared one takes its place
    return lanes == 16 ? simd_shuffle(sum, ushort(work.lane / 8 * 4)) : sum;
  }
};

// y = x + the weighted sum over a token's experts, in their order, and the shared one.
//
// Bytes: down of every chosen expert once; inner comes from the cache. Threads: 32 for four rows.
template <typename T, int I, int CHOSEN, int SHARED_I, int SIMDGROUPS, typename F, typename SF>
[[kernel, max_total_threads_per_threadgroup(32 * SIMDGROUPS)]] void experts_down(
    device const T* x [[buffer(0)]], device const uint* experts [[buffer(1)]],
    device const float* weights [[buffer(2)]], device const float* inner [[buffer(3)]],
    device const uchar* w0 [[buffer(4)]], device const uchar* s0 [[buffer(5)]], device const uchar* b0 [[buffer(6)]],
    device const uchar* w1 [[buffer(7)]], device const uchar* s1 [[buffer(8)]], device const uchar* b1 [[buffer(9)]],
    device T* y [[buffer(10)]], constant ExpertsParams& p [[buffer(11)]],
    uint2 threadgroup_ [[threadgroup_position_in_grid]], uint simdgroup_ [[simdgroup_index_in_threadgroup]],
    uint lane_ [[thread_index_in_simdgroup]]) {
  const bool fill_lanes = FillLanes<F, I, CHOSEN>::value;
  typedef Tiling<fill_lanes ? CHOSEN * I : I, 1, SIMDGROUPS> Tiles;
  typedef Tiling<SHARED_I, 1, SIMDGROUPS> SharedTiles;
  const bool present = AffineRows<F, 0, 4>::present;
  const bool shared_present = AffineRows<SF, 0, 4>::present;
  const int own_values = present ? int(Tiles::values) : 1;
  const int shared_values = shared_present ? int(SharedTiles::values) : 1;
  const int own_blocks = present ? int(Tiles::blocks) : 1;
  const int shared_blocks = shared_present ? int(SharedTiles::blocks) : 1;
  const int values = own_values > shared_values ? own_values : shared_values;
  const int blocks = own_blocks > shared_blocks ? own_blocks : shared_blocks;
  threadgroup float4 staged[values];
  threadgroup float sums[blocks];
  const uint token = threadgroup_.x;
  const int first = int(threadgroup_.y * uint(SIMDGROUPS) + simdgroup_) * 4;
  const uint row = uint(min(first, p.rows - 4));
  Work<float> work;
  work.x = inner + token * uint(p.stride);
  work.norm = weights;
  work.staged = staged;
  work.sums = sums;
  work.squares = sums;
  work.first_row = 0;
  work.last_row = 0;
  work.thread_index = simdgroup_ * 32 + lane_;
  work.lane = lane_;
  work.idle = first >= p.rows;
  Down down;
  down.matrix = segment_of(w0, s0, b0);
  down.row = row;
  down.rows = uint(p.rows);
  down.last_expert = uint(p.E) - 1;
  down.experts = experts;
  down.weights = weights;
  down.first = token * uint(CHOSEN);
  down.first_weight = token * uint(CHOSEN + 1);
  const uint at = token * uint(p.rows) + row + lane_ / 8;
  float sum = ExpertsSum<F, I, CHOSEN, SIMDGROUPS, fill_lanes>::of(float(x[at]), down, work);
  Chosen chosen;
  chosen.first = segment_of(w1, s1, b1);
  chosen.second = chosen.first;
  chosen.row = row;
  work.x += CHOSEN * ((I + 7) / 8 * 8);
  const bool by_halves = shared_present && SHARED_I == 512;
  const float of_shared = by_halves ? down_rows_by_halves<SF, SHARED_I, SIMDGROUPS>(chosen, work)
                                    : down_rows<SF, SHARED_I, SIMDGROUPS>(chosen, work);
  sum = fma(weights[down.first_weight + CHOSEN], of_shared, sum);
  if (!work.idle && lane_ % 8 == 0 && int(row + lane_ / 8) >= first) {
    y[at] = T(sum);
  }
}
