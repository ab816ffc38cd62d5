#include "ops/evaluation.h"

#include <atomic>
#include <cstring>

#include "mlx/allocator.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"

namespace mlx_delta {

namespace {

std::atomic<bool> poison_outputs{false};
thread_local RecordedCalls* recording = nullptr;

// The elements from one row of the last `dims` dimensions to the next, if that is one number and rows are contiguous.
std::optional<int64_t> row_stride(const mx::array& a, int dims) {
  const int rank = int(a.ndim());
  int64_t size = 1;  // of a row
  for (int axis = rank - 1; axis >= rank - dims; --axis) {
    if (a.shape(axis) != 1 && a.strides(axis) != size) return std::nullopt;
    size *= a.shape(axis);
  }
  std::optional<int64_t> stride;
  int64_t next = 0;  // the stride of the next dimension outwards
  for (int axis = rank - dims - 1; axis >= 0; --axis) {
    if (a.shape(axis) == 1) continue;
    if (!stride) stride = next = a.strides(axis);
    if (a.strides(axis) != next) return std::nullopt;
    next *= a.shape(axis);
  }
  return stride.value_or(size);
}

}  // namespace

void set_poison_outputs(bool on) { poison_outputs = on; }

void allocate(mx::array& out) {
  out.set_data(mx::allocator::malloc(out.nbytes()));
  if (poison_outputs) std::memset(out.data<char>(), 0xff, out.nbytes());
}

cpu::Rows rows_of(const mx::array& a, int dims, mx::Stream stream) {
  if (const std::optional<int64_t> stride = row_stride(a, dims)) return {a.data<void>(), *stride};
  mx::array copy = mx::contiguous(a, false, stream);  // evaluated here: this is an evaluation already
  std::vector<mx::array> outputs{copy};
  copy.primitive().eval_cpu({a}, outputs);
  mx::cpu::get_command_encoder(stream).add_temporary(copy);
  return {copy.data<void>(), *row_stride(copy, dims)};
}

RecordedCalls::RecordedCalls(Take take) : take_(std::move(take)) { recording = this; }

RecordedCalls::~RecordedCalls() { recording = nullptr; }

bool RecordedCalls::taken(void (*kernel)(), cpu::DType type, const void* arguments, size_t bytes) {
  if (!recording) return false;
  recording->take_(kernel, type, arguments, bytes);
  return true;
}

cpu::DType kernel_dtype(mx::Dtype dtype) {
  return dtype == mx::float32 ? cpu::DType::f32 : dtype == mx::float16 ? cpu::DType::f16 : cpu::DType::bf16;
}

}  // namespace mlx_delta
