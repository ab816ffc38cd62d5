// What a primitive's eval_cpu needs: outputs, the data of its inputs, and its kernel put on the stream.
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "cpu/runtime/threads.h"
#include "cpu/types.h"
#include "mlx/array.h"
#include "mlx/backend/cpu/encoder.h"

namespace mlx_delta {

namespace mx = mlx::core;

// Fills every new output with NaN bits (0xFF) before its kernel runs, so that an element that a kernel forgets shows.
void set_poison_outputs(bool on);

void allocate(mx::array& out);

// The rows of `a` made of its last `dims` dimensions, for a CPU kernel. Those that have one stride are read where they
// are; of anything else the stream makes a copy first.
cpu::Rows rows_of(const mx::array& a, int dims, mx::Stream stream);

cpu::DType kernel_dtype(mx::Dtype dtype);

template <typename F>
void run_on(mx::Stream stream, F&& kernel) {
  mx::cpu::get_command_encoder(stream).dispatch(std::forward<F>(kernel));
}

// While it lives, kernels that this thread would put on a stream are given to `take` instead.
class RecordedCalls {
 public:
  using Take = std::function<void(void (*kernel)(), cpu::DType type, const void* arguments, size_t bytes)>;
  explicit RecordedCalls(Take take);
  ~RecordedCalls();
  RecordedCalls(const RecordedCalls&) = delete;
  RecordedCalls& operator=(const RecordedCalls&) = delete;

  // Whether there is one, which has taken the call.
  static bool taken(void (*kernel)(), cpu::DType type, const void* arguments, size_t bytes);

 private:
  Take take_;
};

// Runs a kernel of the table (cpu/kernels.h) on activations of `dtype`, when the stream reaches it. Throws here if
// MLX_DELTA_THREADS is wrong: the stream's thread cannot.
template <typename Args>
void run_kernel(mx::Stream stream, void (*kernel)(cpu::DType, const Args&), mx::Dtype dtype, const Args& args) {
  cpu::thread_count();
  const cpu::DType type = kernel_dtype(dtype);
  if (RecordedCalls::taken(reinterpret_cast<void (*)()>(kernel), type, &args, sizeof(args))) return;
  run_on(stream, [kernel, type, args] { kernel(type, args); });
}

// Bool masks and raw pointers of optional inputs.
template <typename T>
const T* data_or_null(const std::vector<mx::array>& inputs, int index) {
  return index < 0 ? nullptr : inputs[size_t(index)].data<T>();
}

}  // namespace mlx_delta
