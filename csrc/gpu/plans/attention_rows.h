// The launches of attention_rows on a GPU. Inputs: projection, q_norm, k_norm, each part's keys, each part's values
// [, positions]; outputs: y, each part's keys, each part's values.
#pragma once

#include <algorithm>
#include <climits>
#include <cstdint>
#include <string>
#include <vector>

#include "gpu/launch.h"
#include "gpu/plans/attention.h"
#include "gpu/plans/attention_prepare.h"
#include "gpu/plans/kv_rows.h"
#include "params.h"

namespace mlx_delta::gpu {

// A sequence with keys and values of its own.
struct AttentionRowsPart {
  int first;  // its tokens are the rows [first, first + T)
  int T;
  int offset;  // tokens before
  int S;
};

struct AttentionRowsShape {
  std::string type;
  bool eight_bits;  // keys and values
  int Hq;
  int Hkv;
  int D;
  int rows;
  float rope_theta;
  int rope_dim;
  std::array<int, 3> rope_sections;
  float eps;
  float scale;
  int positions;  // index of the input, or -1
  std::vector<AttentionRowsPart> parts;
};

namespace attention_rows {

// The parts [first, last), as many as a kernel has buffers for, or fewer: the launches before attention's own, that,
// and what follows. q, partial: scratch of theirs.
struct Launches {
  Launch prepare, attend, combine;
  std::vector<int64_t> scratch_bytes;
};

inline Launches of_parts(const AttentionRowsShape& shape, int first, int last, Buffer q, Buffer partial) {
  constexpr int kMost = MLX_DELTA_ATTENTION_SEQUENCES;
  const auto part = [&](int i) -> const AttentionRowsPart& { return shape.parts[size_t(i)]; };
  const int parts = int(shape.parts.size());
  const int rows = part(last - 1).first + part(last - 1).T - part(first).first;
  const int tile = head_tile(shape.Hq / shape.Hkv), heads = shape.Hq / tile;
  AttentionPrepareRowsParams of_prepare{shape.rows,
                                        shape.positions >= 0,
                                        shape.Hq,
                                        shape.Hkv,
                                        shape.rope_dim / 2,
                                        {shape.rope_sections[0], shape.rope_sections[1], shape.rope_sections[2]},
                                        shape.eps,
                                        {},
                                        {},
                                        {},
                                        {}};
  set_frequencies(of_prepare, shape.rope_theta, shape.rope_dim);
  const int most_splits = ceil_div(attention::kThreadgroups, heads);
  AttentionRowsParams of_attention{
      shape.Hq, shape.Hkv, 2 * (shape.Hq + shape.Hkv) * shape.D, most_splits, 1, shape.scale, {}, {}, {}};
  std::vector<Buffer> caches;
  for (const int of : {1, 1 + parts})  // keys, values
    for (int i = 0; i < kMost; ++i) caches.push_back({Buffer::output, of + std::min(first + i, last - 1)});
  for (int i = 0; i < kMost; ++i) {
    const bool is_one = first + i < last;  // else no row is of it, and its buffers are another's
    const AttentionRowsPart& of = part(is_one ? first + i : last - 1);
    of_prepare.first[i] = of_attention.first[i] = is_one ? of.first : INT_MAX;
    of_prepare.offset[i] = of_attention.offset[i] = of.offset;
    of_prepare.S[i] = of_attention.S[i] = of.S;
    const int splits = std::min(most_splits, ceil_div(of.offset + of.T, MLX_DELTA_LEAST_SPLIT_ROWS));
    of_attention.splits = std::max(of_attention.splits, splits);
  }
  const std::string cached = cached_type(shape.type, shape.eight_bits), D = std::to_string(shape.D);
  Launches all{
      {"attention_rows",
       "attention_prepare_rows",
       {shape.type, cached, D},
       {{Buffer::input, 0}, {Buffer::input, 1}, {Buffer::input, 2}, optional_input(shape.positions), q},
       bytes_of(of_prepare),
       {shape.Hq + 2 * shape.Hkv, rows, 1},
       {32, 1, 1}},
      {"attention_rows",
       "attention_rows",
       {shape.type, cached, D, std::to_string(tile), std::to_string(attention::kSimdgroups)},
       {q, partial},
       bytes_of(of_attention),
       {of_attention.splits, heads, rows},
       {32 * attention::kSimdgroups, 1, 1}},
      {"attention_rows",
       "attention_combine_rows",
       {shape.type, D},
       {{Buffer::input, 0}, partial, {Buffer::output, 0}},
       bytes_of(of_attention),
       {shape.Hq, rows, 1},
       {shape.D, 1, 1}},
      {int64_t(rows) * shape.Hq * shape.D * 4, int64_t(rows) * shape.Hq * of_attention.splits * (shape.D + 2) * 4}};
  for (Launch* launch : {&all.prepare, &all.attend})
    launch->buffers.insert(launch->buffers.end(), caches.begin(), caches.end());
  return all;
}

}  // namespace attention_rows

inline Plan plan(const AttentionRowsShape& shape) {
  check_cached_head_dim("attention_rows", shape.D, shape.eight_bits);
  const int parts = int(shape.parts.size());
  Plan plan;
  std::vector<attention_rows::Launches> groups;
  for (int first = 0; first < parts; first += MLX_DELTA_ATTENTION_SEQUENCES) {
    const int scratch = int(plan.scratch_bytes.size());  // of its own, so that groups need not wait for one another
    groups.push_back(attention_rows::of_parts(shape, first, std::min(first + MLX_DELTA_ATTENTION_SEQUENCES, parts),
                                              {Buffer::scratch, scratch}, {Buffer::scratch, scratch + 1}));
    plan.scratch_bytes.insert(plan.scratch_bytes.end(), groups.back().scratch_bytes.begin(),
                              groups.back().scratch_bytes.end());
  }
  for (const auto of :
       {&attention_rows::Launches::prepare, &attention_rows::Launches::attend, &attention_rows::Launches::combine})
    for (const attention_rows::Launches& group : groups) plan.launches.push_back(group.*of);
  for (int i = 0; i < 2 * parts; ++i) plan.in_place.push_back({1 + i, 3 + i, true});
  return plan;
}

}  // namespace mlx_delta::gpu
