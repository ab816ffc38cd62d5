// When a state may be updated in place.
//
// MLX says yes (array::is_donatable) if nothing but the op holds the array, and nothing but the array its memory. But
// every evaluation also holds what it reads, and all but one of what it writes, until it has run. While tokens are
// pipelined, the last token's work is in flight when the next one is put on the stream, so MLX would say no, and every
// token would copy its states and the whole KV cache. Work that is in flight on the same stream runs before ours and
// is no reason to copy: here it is told apart from somebody who still needs the memory.
#pragma once

#include <functional>
#include <vector>

#include "mlx/array.h"
#include "mlx/stream.h"

namespace mlx_delta {

namespace mx = mlx::core;

// Notes what MLX holds of the states among an evaluation's inputs and outputs, given by index. `done` says whether the
// evaluation has run: MLX's holds end after that, never before. Called in that evaluation, with the inputs it was
// given.
void note_in_flight(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs,
                    const std::vector<int>& state_inputs, const std::vector<int>& state_outputs, mx::Stream stream,
                    std::function<bool()> done);

// Whether an evaluation on `stream` may write over its input `in`. If so, `in` holds its memory alone from then on.
bool can_take_over(const mx::array& in, mx::Stream stream);

// Says of a CPU evaluation that it runs when the stream gets there, for what it holds of states: inputs and
// outputs by index.
void note_states(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs,
                 const std::vector<int>& state_inputs, const std::vector<int>& state_outputs, mx::Stream stream);

// First thing in the eval of a primitive that donates. Each of its outputs holds the inputs, so none of them would
// count as donatable; MLX drops them all right after this eval, and this drops the siblings' now.
void release_sibling_inputs(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs);

// out takes over in's buffer if nobody else needs it; otherwise gets a copy of it (made when the stream reaches it).
void donate_or_copy(const mx::array& in, mx::array& out, mx::Stream stream);

}  // namespace mlx_delta
