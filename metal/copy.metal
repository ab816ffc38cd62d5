// A buffer's copy, for an op that updates part of an array that somebody else still holds.
#include "common.h"
#include "params.h"

// Bytes: each word once in, once out. A thread a word: neighbours together fill whole cache lines. One load in flight a
// thread, two registers: as many threads as words keep the bus busy.
template <typename W>
[[kernel]] void copy_words(
    device const W* from [[buffer(0)]], device W* to [[buffer(1)]], constant CopyParams& p [[buffer(2)]],
    uint i [[thread_position_in_grid]]) {
  if (int(i) < p.words) {
    to[i] = from[i];
  }
}
