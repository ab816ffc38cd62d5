// Rows of x in threadgroup memory, for the affine rows of qmm: as floats, times the norm, and times what the fields of
// packed weights lack (see factor_of).
#pragma once

#include "dequant.h"

// A thread stages 16 values at a time: in all 512 columns a simdgroup, and M rows share them. A core has 60 KB, so it
// holds 24 simdgroups' worth and more. `each` columns of every block of 32 are staged together: all of them, or half
// and then half where a simdgroup's 32 blocks would not have room.
template <int K, int M, int SIMDGROUPS>
struct Tiling {
  enum {
    columns = 512 * SIMDGROUPS / M,
    each = columns >= 1024 ? 32 : 16,
    halves = 32 / each,
    all = K < 32 ? 1 : K / 32,  // of affine rows K is a multiple of 32
    blocks = all < columns / each ? all : columns / each,
    count = (all + blocks - 1) / blocks,
    values = each / 4 * M * blocks  // float4
  };
};

// What a simdgroup works on. T is x's type.
template <typename T>
struct Work {
  device const T* x;
  device const float* norm;
  // Of a block of a tile, what is staged: columns 4 j .. 4 j + 3 of row m at (each / 4 m + j) blocks + block.
  threadgroup float4* staged;
  threadgroup float* sums;     // row m, block b: at m blocks + b
  threadgroup float* squares;  // likewise, of x itself
  uint first_row;              // of x
  uint last_row;               // rows beyond it are computed, from this one, and not stored
  uint thread_index;
  uint lane;
  bool idle;  // no rows of weights are left for it, and it only helps to stage
};

// The sums of a block's columns so far.
struct Sums {
  float sum;
  float square;
};

// Half `half` of the tile's blocks, or all where blocks are staged whole. Two lanes share a block then, in turns of 8
// columns: each goes on with the sums where the other ended, for they have the order of the columns. `sums`: of the
// thread's block after the half before.
template <typename F, int M, int K, bool NORM, int SIMDGROUPS, typename T>
inline void stage(const thread Work<T>& work, uint tile, int half, thread Sums& sums) {
  typedef Tiling<K, M, SIMDGROUPS> Tiles;
  const uint lanes = uint(Tiles::each) / 16;  // that share a block
  const uint tile_blocks = uint(Tiles::blocks);
  const uint items = lanes * M * tile_blocks;
  const uint lane = work.thread_index % lanes;
  const uint m = M == 1 ? 0 : work.thread_index / lanes / tile_blocks;
  const uint block = work.thread_index / lanes - m * tile_blocks;
  const uint of_x = uint(tile) * tile_blocks + block;
  const bool there =
      (items == 32 * SIMDGROUPS || work.thread_index < items) && (K / 32 % tile_blocks == 0 || of_x < uint(K / 32));
  const uint column = min(of_x, uint(K / 32 - 1)) * 4;  // in units of 8 columns
  const uint row = min(work.first_row + m, work.last_row) * uint(K / 8);
  if (half == 0) {
    sums.sum = 0.0f;
    sums.square = 0.0f;
  }
  KEEP_LOOP
  for (uint i = 0; i < 2; i++) {
    const uint eight = lanes == 2 ? 2 * i + lane : 2 * uint(half) + i;  // of the block's four
    float v[8];
    float scale[8] = {};
    load8_at(work.x, row + column + eight, v);
    if (NORM) {
      load8_at(work.norm, column + eight, scale);
    }
    UNROLL
    for (uint turn = 0; turn < lanes; turn++) {
      if (lanes == 2 && i + turn > 0) {
        sums.sum = simd_shuffle_xor(sums.sum, ushort(1));
        sums.square = NORM ? simd_shuffle_xor(sums.square, ushort(1)) : 0.0f;
      }
      UNROLL
      for (int e = 0; e < 8; e++) {
        if (NORM) {
          sums.square = fma(v[e], v[e], sums.square);
          sums.sum = fma(v[e], scale[e], sums.sum);
        } else {
          sums.sum += v[e];
        }
      }
    }
    UNROLL
    for (int e = 0; e < 8; e++) {
      v[e] = (NORM ? v[e] * scale[e] : v[e]) * factor_of<int(F::bits)>(e);
    }
    if (there) {
      const uint at = (m * (uint(Tiles::each) / 4) + (lanes == 2 ? 2 * eight : 2 * i)) * tile_blocks + block;
      work.staged[at] = float4(v[0], v[1], v[2], v[3]);
      work.staged[at + tile_blocks] = float4(v[4], v[5], v[6], v[7]);
    }
  }
  if (there && lane + 1 == lanes && half + 1 == int(Tiles::halves)) {
    work.sums[m * tile_blocks + block] = sums.sum;
    if (NORM) {
      work.squares[m * tile_blocks + block] = sums.square;
    }
  }
}
