// nanobind: the signature and one line on each op. The specs are in csrc/ops/*.h and python/mlx_delta/ops/*.py.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include "cpu/kernels.h"
#include "cpu/threads.h"
#include "decode_tokens.h"
#include "ops/attention.h"
#include "ops/attention_mlx.h"
#include "ops/attention_prepare.h"
#include "ops/conv1d.h"
#include "ops/delta_mixer.h"
#include "ops/embedding.h"
#include "ops/fit_affine.h"
#include "ops/gated_delta.h"
#include "ops/gated_norm.h"
#include "ops/memory.h"
#include "ops/moments.h"
#include "ops/qmm.h"
#include "ops/qmm_mlx.h"
#include "ops/sample.h"
#include "ops/sample_mlx.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace mlx_delta;

NB_MODULE(_core, m) {
  m.doc() = "Fused operations of Qwen3.5 as MLX primitives. Use mlx_delta.ops, which documents them.";
  // MLX's types (array, Dtype, Stream, Device) are registered by its own extension, in the same nanobind domain.
  nb::module_::import_("mlx.core");

  m.attr("DECODE_TOKENS") = kDecodeTokens;

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

  m.def("qmm", &qmm, "x"_a, "segments"_a, nb::kw_only(), "norm"_a = nb::none(), "eps"_a = 1e-6f,
        "residual"_a = nb::none(), "activation"_a = nb::none(), "stream"_a = nb::none());
  m.def("embedding", &embedding, "tokens"_a, "table"_a, "dtype"_a, nb::kw_only(), "stream"_a = nb::none());
  m.def("conv1d", &conv1d, "x"_a, "weight"_a, "state"_a = nb::none(), nb::kw_only(), "mask"_a = nb::none(),
        "stream"_a = nb::none());
  m.def("gated_delta", &gated_delta, "q"_a, "k"_a, "v"_a, "a"_a, "b"_a, "A_log"_a, "dt_bias"_a, "state"_a = nb::none(),
        nb::kw_only(), "mask"_a = nb::none(), "stream"_a = nb::none());
  m.def("gated_norm", &gated_norm, "y"_a, "z"_a, "norm"_a, nb::kw_only(), "eps"_a = 1e-6f, "stream"_a = nb::none());
  m.def("delta_mixer", &delta_mixer, "projection"_a, "conv_weight"_a, "A_log"_a, "dt_bias"_a, "norm"_a,
        "conv_state"_a.none(), "delta_state"_a.none(), nb::kw_only(), "key_heads"_a, "key_dim"_a, "eps"_a = 1e-6f,
        "mask"_a = nb::none(), "stream"_a = nb::none());
  m.def(
      "attention_prepare",
      [](const mx::array& projection, const mx::array& q_norm, const mx::array& k_norm, const mx::array& keys,
         const mx::array& values, int offset, float rope_theta, int rope_dim, std::array<int, 3> rope_sections,
         float eps, const std::optional<mx::array>& positions, mx::StreamOrDevice stream) {
        return attention_prepare(projection, q_norm, k_norm, keys, values, offset,
                                 {rope_theta, rope_dim, rope_sections}, eps, positions, stream);
      },
      "projection"_a, "q_norm"_a, "k_norm"_a, "keys"_a, "values"_a, nb::kw_only(), "offset"_a, "rope_theta"_a,
      "rope_dim"_a, "rope_sections"_a, "eps"_a = 1e-6f, "positions"_a = nb::none(), "stream"_a = nb::none());
  m.def("attention", &attention, "q"_a, "projection"_a, "keys"_a, "values"_a, nb::kw_only(), "length"_a, "scale"_a,
        "start"_a = nb::none(), "stream"_a = nb::none());

  const auto def_sample = [&m](const char* name, auto op, const char* doc) {
    m.def(
        name,
        [op](const mx::array& logits, const std::optional<mx::array>& random, float temperature, int top_k,
             double top_p, double min_p, const std::optional<mx::array>& allowed,
             const std::optional<mx::array>& prompt, const std::optional<mx::array>& generated, float presence_penalty,
             float repetition_penalty, std::optional<int> vocab_size, mx::StreamOrDevice stream) {
          const SampleFilters filters{temperature, top_k, top_p, min_p, presence_penalty, repetition_penalty};
          return op(logits, random, filters, {allowed, prompt, generated}, vocab_size, stream);
        },
        "logits"_a, "random"_a = nb::none(), nb::kw_only(), "temperature"_a = 1.0f, "top_k"_a = 0, "top_p"_a = 1.0,
        "min_p"_a = 0.0, "allowed"_a = nb::none(), "prompt"_a = nb::none(), "generated"_a = nb::none(),
        "presence_penalty"_a = 0.0f, "repetition_penalty"_a = 1.0f, "vocab_size"_a = nb::none(),
        "stream"_a = nb::none(), doc);
  };
  def_sample("sample", &sample, "");
  def_sample("sample_mlx", &sample_mlx, "For tests: what sample is on a GPU, anywhere.");

  m.def("fit_affine", &fit_affine, "weight"_a, "importance"_a, "bits"_a, "group_size"_a, "feedback"_a = nb::none(),
        "order"_a = nb::none(), nb::call_guard<nb::gil_scoped_release>(),
        "Quantize an evaluated matrix by weighted least squares.");

  m.def("add_moments", &add_moments, "sums"_a, "x"_a, "y"_a = nb::none(), nb::call_guard<nb::gil_scoped_release>(),
        "Add x^T x to the upper triangle of an evaluated array, or y^T x to all of it, in place.");
  m.def("factor_moments", &factor_moments, "sums"_a, "order"_a, "factor"_a, "damping"_a,
        nb::call_guard<nb::gil_scoped_release>(), "Factor moments into U D U^T in place; returns D.");
  m.def("solve_moments", &solve_moments, "values"_a, "upper"_a, "diagonal"_a, "order"_a,
        nb::call_guard<nb::gil_scoped_release>(), "Multiply by the inverse of factored moments, in place.");

  m.def("cpu_isa", [] { return cpu::kernels().isa; }, "The instruction set that the CPU kernels use.");
  m.def("cpu_isas", &cpu::available_isas, "Those that this machine runs, best first; MLX_DELTA_ISA forces one.");
  m.def("cpu_threads", &cpu::thread_count, "Threads of a kernel: the physical cores, or MLX_DELTA_THREADS.");
  m.def("use_cpu_isa", &cpu::use_isa, "isa"_a, "For tests: use another from now on.");
  m.def("use_huge_pages", &use_huge_pages, "a"_a, "Back an evaluated array by huge pages; whether that worked.");
  m.def(
      "multiply_add", [](int64_t steps) { return cpu::kernels().multiply_add(steps); }, "steps"_a,
      "Float32 vector multiply-adds on all threads: how many operations it was.");
  m.def("read_all", &read_all, "a"_a, "Read an evaluated array once on all threads; a checksum.");

  nb::class_<gpu::Launch>(m, "Launch", "One kernel launch of a plan.")
      .def_prop_ro("kernel", &gpu::Launch::kernel, "The kernel's name in source.")
      .def_prop_ro("source", &gpu::Launch::source, "The very text that MLX compiles.")
      .def_prop_ro("library", &gpu::Launch::library, "The name under which MLX keeps it compiled; has its hash.")
      .def_prop_ro(
          "buffers",
          [](const gpu::Launch& launch) {
            static constexpr const char* kRoles[] = {"input", "output", "scratch"};
            std::vector<std::pair<std::string, int>> buffers;
            for (const gpu::Buffer& b : launch.buffers) buffers.emplace_back(kRoles[b.role], b.index);
            return buffers;
          },
          "(role, index) of the buffers at 0, 1, ..; params come next.")
      .def_prop_ro("params",
                   [](const gpu::Launch& launch) { return nb::bytes(launch.params.data(), launch.params.size()); })
      .def_ro("threadgroups", &gpu::Launch::threadgroups)
      .def_ro("threads", &gpu::Launch::threads, "Of a threadgroup.");
  nb::class_<gpu::Plan>(m, "Plan", "What a GPU does for an op.")
      .def_ro("launches", &gpu::Plan::launches)
      .def_ro("scratch_bytes", &gpu::Plan::scratch_bytes)
      .def_prop_ro(
          "in_place",
          [](const gpu::Plan& plan) {
            std::vector<std::tuple<int, int, bool>> result;
            for (const gpu::InPlace& i : plan.in_place) result.emplace_back(i.output, i.input, i.copy);
            return result;
          },
          "(output, input, copy): outputs that take over an input's memory; copy: only part of it is written.");
  m.def("plan", &plan_of, "result"_a, "The plan of an op's unevaluated result, and the inputs it speaks of.");
  m.def(
      "metal_source", [](const std::string& file) { return gpu::metal_source(file).text; }, "file"_a,
      "The flattened text of metal/<file>.metal.");

  m.def(
      "qmm_mlx",
      [](const mx::array& x, const std::vector<Matrix>& segments, const std::optional<mx::array>& norm, float eps,
         const std::optional<mx::array>& residual, const std::optional<std::string>& activation,
         mx::StreamOrDevice stream) {
        return qmm_mlx(x, segments, norm, eps, residual, activation.has_value(), mx::to_stream(stream));
      },
      "x"_a, "segments"_a, nb::kw_only(), "norm"_a = nb::none(), "eps"_a = 1e-6f, "residual"_a = nb::none(),
      "activation"_a = nb::none(), "stream"_a = nb::none(), "For tests: what qmm of many rows is on a GPU, anywhere.");
  m.def(
      "attention_mlx",
      [](const mx::array& q, const mx::array& projection, const mx::array& keys, const mx::array& values, int length,
         float scale, const std::optional<mx::array>& start, mx::StreamOrDevice stream) {
        return attention_mlx(q, projection, keys, values, length, scale, start, mx::to_stream(stream));
      },
      "q"_a, "projection"_a, "keys"_a, "values"_a, nb::kw_only(), "length"_a, "scale"_a, "start"_a = nb::none(),
      "stream"_a = nb::none(), "For tests: what attention of many tokens is on a GPU, anywhere.");

  m.def("set_poison_outputs", &set_poison_outputs, "on"_a,
        "For tests: fill every output with NaN before its kernel runs.");
}
