// What every op shares: argument checks whose errors name the argument, inputs made contiguous, outputs allocated or
// donated, and a Primitive base. An op's file then holds its shapes, its Primitive and nothing else.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cpu/threads.h"
#include "cpu/types.h"
#include "gpu/launch.h"
#include "mlx/array.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/primitives.h"
#include "mlx/utils.h"

namespace mlx_delta {

namespace mx = mlx::core;

// ---- checks: all raise std::invalid_argument (ValueError in Python): "op: argument: expected ..., found ..."

[[noreturn]] void fail(const char* op, const char* argument, const std::string& expected, const std::string& found);

// "float32 [2, 3]"
std::string describe(const mx::array& a);

// A dimension of -1 accepts any size.
void check_shape(const char* op, const char* argument, const mx::array& a, const mx::Shape& expected);
void check_rank(const char* op, const char* argument, const mx::array& a, int rank, const char* dims);
void check_float(const char* op, const char* argument, const mx::array& a);
void check_same_dtype(const char* op, const char* argument, const mx::array& a, mx::Dtype expected);
void check_positive(const char* op, const char* argument, double value);

// ---- graph building

// Ops run on MLX's default device, as MLX's own do, unless the caller names a stream: the GPU of a Mac, else the CPU.
bool on_gpu(const mx::Stream& stream);

// `a` laid end to end, which is how kernels read all inputs but those of sliced(). Adds a node only where the layout is
// not known to be so already.
mx::array contiguous(const mx::array& a, mx::Stream stream);

// An input that prefill slices from wider rows: a CPU kernel reads it where it is, by rows_of(); for a GPU it is made
// contiguous.
mx::array sliced(const mx::array& a, mx::Stream stream);

// Small parameters (norm weights, gates, convolution taps) reach the kernels as contiguous float32.
mx::array float_parameter(const mx::array& a, mx::Stream stream);

// Checks [B, T] bool or int and returns it as contiguous bool.
mx::array token_mask(const char* op, const mx::array& mask, int B, int T, mx::Stream stream);

// ---- evaluation

// Base of our primitives: outputs are always row-contiguous.
class Primitive : public mx::Primitive {
 public:
  Primitive(const char* name, mx::Stream stream) : mx::Primitive(stream), name_(name) {}
  const char* name() const override { return name_; }
  // What a GPU does for this op: a pure function of the arguments' shapes and dtypes.
  virtual gpu::Plan plan(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs) const = 0;
  void eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;
  // The inputs that a later op may want to take over: states that this one only reads.
  virtual std::vector<int> state_inputs() const { return {}; }

 private:
  const char* name_;
};

// Fills every new output with NaN bits (0xFF) before its kernel runs, so that an element that a kernel forgets shows.
void set_poison_outputs(bool on);

void allocate(mx::array& out);

// The rows of `a` made of its last `dims` dimensions, for a CPU kernel. Those that have one stride are read where they
// are; of anything else the stream makes a copy first.
cpu::Rows rows_of(const mx::array& a, int dims, mx::Stream stream);

// Says of a CPU evaluation that it runs when the stream gets there, for what it holds of states (ops/donation.h):
// inputs and outputs by index.
void note_states(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs,
                 const std::vector<int>& state_inputs, const std::vector<int>& state_outputs, mx::Stream stream);

// First thing in the eval of a primitive that donates. Each of its outputs holds the inputs, so none of them would
// count as donatable; MLX drops them all right after this eval, and this drops the siblings' now.
void release_sibling_inputs(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs);

// out takes over in's buffer if nobody else needs it; otherwise gets a copy of it (made when the stream reaches it).
void donate_or_copy(const mx::array& in, mx::array& out, mx::Stream stream);

cpu::DType kernel_dtype(mx::Dtype dtype);

// "float", "half" or "bfloat"
std::string metal_type(mx::Dtype dtype);

// The plan of an op's result that has not been evaluated, and the inputs that it speaks of. For tests.
std::pair<gpu::Plan, std::vector<mx::array>> plan_of(const mx::array& result);

template <typename F>
void run_on(mx::Stream stream, F&& kernel) {
  mx::cpu::get_command_encoder(stream).dispatch(std::forward<F>(kernel));
}

// Runs a kernel of the table (cpu/kernels.h) on activations of `dtype`, when the stream reaches it. Throws here if
// MLX_DELTA_THREADS is wrong: the stream's thread cannot.
template <typename Args>
void run_kernel(mx::Stream stream, void (*kernel)(cpu::DType, const Args&), mx::Dtype dtype, const Args& args) {
  cpu::thread_count();
  run_on(stream, [kernel, type = kernel_dtype(dtype), args] { kernel(type, args); });
}

// Bool masks and raw pointers of optional inputs.
template <typename T>
const T* data_or_null(const std::vector<mx::array>& inputs, int index) {
  return index < 0 ? nullptr : inputs[size_t(index)].data<T>();
}

// Appends an optional input; its index, or -1.
inline int push_optional(std::vector<mx::array>& inputs, const std::optional<mx::array>& a) {
  if (!a) return -1;
  inputs.push_back(*a);
  return int(inputs.size()) - 1;
}

}  // namespace mlx_delta
