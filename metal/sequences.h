// Sequences that have arrays of their own, each a buffer of a launch.
#pragma once

#include "common.h"

// The buffer of sequence i.
template <typename P, int N>
inline P of_sequence(uint i, const thread P (&buffers)[N]) {
  P found = buffers[0];
  UNROLL
  for (uint j = 1; j < N; j++) {
    found = i == j ? buffers[j] : found;
  }
  return found;
}

// Of 8 sequences, the one that a row is of; first: which row the first of each is.
inline uint sequence_of(int row, constant const int* first) {
  uint i = 0;
  UNROLL
  for (int next = 1; next < 8; next++) {
    i += row >= first[next] ? 1u : 0u;
  }
  return i;
}
