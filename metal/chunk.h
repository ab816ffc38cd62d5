// What the two launches of gated_delta_chunked.metal share: what passes between them, where a sequence begins, and tiles.
#pragma once

#include "common.h"
#include "tile.h"

// What the first launch leaves for the second, per sequence, head and chunk: -W, U, P (its blocks below the diagonal
// and on it), the factors of q and of k of each token, and exp(G_63).
template <int DK, int DV>
struct ChunkLayout {
  enum {
    tokens = 64,
    U = 64 * DK,
    P = U + 64 * DV,
    q_factor = P + 64 * 64,
    k_factor = q_factor + 64,
    decay = k_factor + 64,
    floats = decay + 4
  };
};

// How many tokens come before the first that is there; T: none is. On all lanes of a simdgroup.
inline int padding_of(device const bool* mask, int T, int lane) {
  int found = T;
  for (int t = 0; t < T && found == T; t += 32) {
    found = simd_min(t + lane < T && mask[t + lane] ? t + lane : T);
  }
  return found;
}

// Two neighbours of a row of q, k or v; 0 for a token that is not there, whatever its memory holds. Floats are chosen,
// for a choice between tiles would be one in which lanes differ.
template <typename T>
inline Tile load_tile(device const T* from, bool there, float factor) {
  float first = 0.0f;
  float second = 0.0f;
  if (there) {
    first = float(from[0]) * factor;
    second = float(from[1]) * factor;
  }
  return tile_of(first, second);
}
