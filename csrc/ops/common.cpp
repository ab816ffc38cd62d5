#include "ops/common.h"

#include <atomic>
#include <cstring>
#include <sstream>
#include <stdexcept>

#include "gpu/metal.h"
#include "mlx/allocator.h"
#include "mlx/ops.h"
#include "ops/donation.h"

namespace mlx_delta {
namespace {

std::atomic<bool> poison_outputs{false};

std::string show(const mx::Shape& shape) {
  std::ostringstream out;
  out << "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    out << (i ? ", " : "");
    if (shape[i] < 0)
      out << "any";
    else
      out << shape[i];
  }
  out << "]";
  return out.str();
}

std::string show(mx::Dtype dtype) {
  std::ostringstream out;
  out << dtype;
  const std::string text = out.str();  // "mlx.core.float32" or "float32", by version
  return text.substr(text.rfind('.') + 1);
}

bool known_contiguous(const mx::array& a) {
  if (a.has_primitive()) return dynamic_cast<const Primitive*>(&a.primitive()) != nullptr;
  return a.status() != mx::array::Status::unscheduled && a.flags().row_contiguous;
}

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

void fail(const char* op, const char* argument, const std::string& expected, const std::string& found) {
  throw std::invalid_argument(std::string(op) + ": " + argument + ": expected " + expected + ", found " + found);
}

std::string describe(const mx::array& a) { return show(a.dtype()) + " " + show(a.shape()); }

void check_shape(const char* op, const char* argument, const mx::array& a, const mx::Shape& expected) {
  bool same = a.ndim() == expected.size();
  for (size_t i = 0; same && i < expected.size(); ++i) same = expected[i] < 0 || a.shape(int(i)) == expected[i];
  if (!same) fail(op, argument, "shape " + show(expected), describe(a));
}

void check_rank(const char* op, const char* argument, const mx::array& a, int rank, const char* dims) {
  if (int(a.ndim()) != rank || a.size() == 0) fail(op, argument, std::string("non-empty ") + dims, describe(a));
}

void check_float(const char* op, const char* argument, const mx::array& a) {
  if (a.dtype() != mx::float32 && a.dtype() != mx::float16 && a.dtype() != mx::bfloat16)
    fail(op, argument, "float32, float16 or bfloat16", describe(a));
}

void check_same_dtype(const char* op, const char* argument, const mx::array& a, mx::Dtype expected) {
  if (a.dtype() != expected) fail(op, argument, show(expected), describe(a));
}

void check_positive(const char* op, const char* argument, double value) {
  if (!(value > 0)) fail(op, argument, "a positive number", std::to_string(value));
}

bool on_gpu(const mx::Stream& stream) { return stream.device == mx::Device::gpu; }

mx::array contiguous(const mx::array& a, mx::Stream stream) {
  return known_contiguous(a) ? a : mx::contiguous(a, false, stream);
}

mx::array sliced(const mx::array& a, mx::Stream stream) { return on_gpu(stream) ? contiguous(a, stream) : a; }

mx::array float_parameter(const mx::array& a, mx::Stream stream) {
  return contiguous(a.dtype() == mx::float32 ? a : mx::astype(a, mx::float32, stream), stream);
}

mx::array token_mask(const char* op, const mx::array& mask, int B, int T, mx::Stream stream) {
  check_shape(op, "mask", mask, {B, T});
  if (!mx::issubdtype(mask.dtype(), mx::integer) && mask.dtype() != mx::bool_)
    fail(op, "mask", "bool (true: a real token)", describe(mask));
  return contiguous(mask.dtype() == mx::bool_ ? mask : mx::astype(mask, mx::bool_, stream), stream);
}

void Primitive::eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  release_sibling_inputs(inputs, outputs);
  gpu::Plan todo = plan(inputs, outputs);
  for (const gpu::InPlace& place : todo.in_place) {
    const mx::array& in = inputs[size_t(place.input)];
    mx::array& out = outputs[size_t(place.output)];
    if (can_take_over(in, stream()))
      out.copy_shared_buffer(in);
    else if (place.copy)
      todo.launches.insert(todo.launches.begin(),
                           gpu::plan_copy({gpu::Buffer::input, place.input}, {gpu::Buffer::output, place.output},
                                          int64_t(out.nbytes())));
  }
  for (mx::array& out : outputs)  // not poisoned: work in flight may be the last to use recycled memory
    if (!out.data_shared_ptr()) out.set_data(mx::allocator::malloc(out.nbytes()));
  std::vector<int> states;
  for (const gpu::InPlace& place : todo.in_place) states.push_back(place.output);
  note_in_flight(inputs, outputs, state_inputs(), states, stream(), gpu::encode(todo, inputs, outputs, stream()));
}

void note_states(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs,
                 const std::vector<int>& state_inputs, const std::vector<int>& state_outputs, mx::Stream stream) {
  const auto ran = std::make_shared<std::atomic<bool>>(false);
  run_on(stream, [ran] { *ran = true; });
  note_in_flight(inputs, outputs, state_inputs, state_outputs, stream, [ran] { return ran->load(); });
}

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

void release_sibling_inputs(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  for (mx::array& out : outputs)
    if (&out.inputs() != &inputs && !out.is_tracer()) out.inputs().clear();
}

void donate_or_copy(const mx::array& in, mx::array& out, mx::Stream stream) {
  if (can_take_over(in, stream)) {
    out.copy_shared_buffer(in);
    return;
  }
  allocate(out);
  run_on(stream,
         [from = in.data<char>(), to = out.data<char>(), bytes = out.nbytes()] { std::memcpy(to, from, bytes); });
}

cpu::DType kernel_dtype(mx::Dtype dtype) {
  return dtype == mx::float32 ? cpu::DType::f32 : dtype == mx::float16 ? cpu::DType::f16 : cpu::DType::bf16;
}

std::string metal_type(mx::Dtype dtype) {
  return dtype == mx::float32 ? "float" : dtype == mx::float16 ? "half" : "bfloat";
}

std::pair<gpu::Plan, std::vector<mx::array>> plan_of(const mx::array& result) {
  const auto* primitive = result.has_primitive() ? dynamic_cast<const Primitive*>(&result.primitive()) : nullptr;
  if (!primitive) throw std::invalid_argument("plan: expected an unevaluated result of one of mlx_delta's ops");
  return {primitive->plan(result.inputs(), result.outputs()), result.inputs()};
}

}  // namespace mlx_delta
