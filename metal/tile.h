// 8x8 tiles of float, spread over a simdgroup, for what is more than a plain load: a conversion or a row that is not
// there.
#pragma once

#include "common.h"

typedef simdgroup_matrix<float, 8, 8> Tile;

// A lane holds two neighbours of one row, elements (row, column) and (row, column + 1). This is the layout of Apple's
// GPUs that MLX's kernels rely on too.
struct Place {
  int row;
  int column;
};

inline Place place_of(int lane) {
  const int quad = lane / 4;
  Place place;
  place.row = (quad & 4) + (lane / 2) % 4;
  place.column = (quad & 2) * 2 + (lane % 2) * 2;
  return place;
}

inline Tile tile_of(float first, float second) {
  Tile tile;
  tile.thread_elements()[0] = first;
  tile.thread_elements()[1] = second;
  return tile;
}

inline Tile zero_tile() { return tile_of(0.0f, 0.0f); }
