#include "ops/inputs.h"

#include "mlx/ops.h"
#include "ops/checks.h"
#include "ops/primitive.h"

namespace mlx_delta {

namespace {

bool known_contiguous(const mx::array& a) {
  if (a.has_primitive()) return dynamic_cast<const Primitive*>(&a.primitive()) != nullptr;
  return a.status() != mx::array::Status::unscheduled && a.flags().row_contiguous;
}

}  // namespace

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

}  // namespace mlx_delta
