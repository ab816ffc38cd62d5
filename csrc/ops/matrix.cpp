#include "ops/matrix.h"

#include <sstream>

#include "ops/binding.h"
#include "ops/checks.h"
#include "ops/evaluation.h"
#include "ops/inputs.h"

namespace mlx_delta {

Matrix Matrix::plain(mx::array weight) {
  check_rank("Matrix", "weight", weight, 2, "[N, K]");
  check_float("Matrix", "weight", weight);
  const int rows = weight.shape(0), cols = weight.shape(1);
  return {std::move(weight), std::nullopt, std::nullopt, 0, 0, rows, cols};
}

Matrix Matrix::affine(mx::array weight, mx::array scales, mx::array biases, int bits, int group_size) {
  if (bits < 2 || bits > 8 || bits == 7) fail("Matrix", "bits", "2, 3, 4, 5, 6 or 8", std::to_string(bits));
  if (group_size != 32 && group_size != 64 && group_size != 128)
    fail("Matrix", "group_size", "32, 64 or 128", std::to_string(group_size));
  check_rank("Matrix", "weight", weight, 2, "uint32 [N, K * bits / 32]");
  check_same_dtype("Matrix", "weight", weight, mx::uint32);
  check_rank("Matrix", "scales", scales, 2, "[N, K / group_size]");
  check_float("Matrix", "scales", scales);
  check_same_dtype("Matrix", "biases", biases, scales.dtype());
  const int rows = weight.shape(0), cols = scales.shape(1) * group_size;
  check_shape("Matrix", "weight", weight, {rows, cols * bits / 32});
  check_shape("Matrix", "scales", scales, {rows, cols / group_size});
  check_shape("Matrix", "biases", biases, {rows, cols / group_size});
  return {std::move(weight), std::move(scales), std::move(biases), bits, group_size, rows, cols};
}

int64_t Matrix::nbytes() const {
  return int64_t(weight.nbytes()) + (quantized() ? int64_t(scales->nbytes() + biases->nbytes()) : 0);
}

std::string Matrix::repr() const {
  std::ostringstream out;
  out << "Matrix([" << rows << ", " << cols << "], ";
  if (quantized())
    out << bits << " bits, group " << group_size << ")";
  else
    out << describe(weight).substr(0, describe(weight).find(' ')) << ")";
  return out.str();
}

std::vector<mx::array> Matrix::inputs(mx::Stream stream) const {
  if (!quantized()) return {contiguous(weight, stream)};
  return {contiguous(weight, stream), contiguous(*scales, stream), contiguous(*biases, stream)};
}

cpu::MatrixView Matrix::view(const mx::array* in) const {
  if (!quantized()) return {in[0].data<void>(), nullptr, nullptr, kernel_dtype(in[0].dtype()), 0, 0, rows, cols};
  return {in[0].data<void>(),
          in[1].data<void>(),
          in[2].data<void>(),
          kernel_dtype(in[1].dtype()),
          bits,
          group_size,
          rows,
          cols};
}

namespace {

const Binding binding([](nb::module_& m) {
  nb::class_<Matrix>(m, "Matrix", "A weight matrix [rows, cols]: plain, or affine-quantized in MLX's packing.")
      .def_static("plain", &Matrix::plain, "weight"_a, "From float weight [N, K].")
      .def_static("affine", &Matrix::affine, "weight"_a, "scales"_a, "biases"_a, "bits"_a, "group_size"_a,
                  "From packed uint32 weight [N, K * bits / 32], scales and biases [N, K / group_size].")
      .def_ro("weight", &Matrix::weight)
      .def_ro("scales", &Matrix::scales)
      .def_ro("biases", &Matrix::biases)
      .def_ro("bits", &Matrix::bits, "Bits of a quantized value; 0: plain.")
      .def_ro("group_size", &Matrix::group_size, "Columns that share a scale and a bias; 0: plain.")
      .def_ro("rows", &Matrix::rows)
      .def_ro("cols", &Matrix::cols)
      .def_prop_ro("nbytes", &Matrix::nbytes, "Bytes of weight, scales and biases.")
      .def("__repr__", &Matrix::repr);
});

}  // namespace
}  // namespace mlx_delta
