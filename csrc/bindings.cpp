// The Python module: what its ops bind (ops/binding.h), and what tests and benches ask about kernels and plans.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>

#include "cpu/kernels.h"
#include "cpu/runtime/threads.h"
#include "decode_tokens.h"
#include "gpu/metal.h"
#include "gpu/sources.h"
#include "ops/binding.h"
#include "ops/evaluation.h"
#include "ops/primitive.h"

using namespace mlx_delta;

NB_MODULE(_core, m) {
  m.doc() = "Fused operations of Qwen3.5 as MLX primitives. Use mlx_delta.ops, which documents them.";
  // MLX's types (array, Dtype, Stream, Device) are registered by its own extension, in the same nanobind domain.
  nb::module_::import_("mlx.core");
  m.attr("DECODE_TOKENS") = kDecodeTokens;
  define_bindings(m);

  m.def("cpu_isa", [] { return cpu::kernels().isa; }, "The instruction set that the CPU kernels use.");
  m.def("cpu_isas", &cpu::available_isas, "Those that this machine runs, best first; MLX_DELTA_ISA forces one.");
  m.def("built_cpu_isas", &cpu::built_isas, "All that the extension was built for.");
  m.def("cpu_threads", &cpu::thread_count, "Threads of a kernel: the physical cores, or MLX_DELTA_THREADS.");
  m.def("use_cpu_isa", &cpu::use_isa, "isa"_a, "For tests: use another from now on.");
  m.def(
      "multiply_add", [](int64_t steps) { return cpu::kernels().multiply_add(steps); }, "steps"_a,
      "Float32 vector multiply-adds on all threads: how many operations it was.");

  nb::class_<gpu::Launch>(m, "Launch", "One kernel launch of a plan.")
      .def_prop_ro("kernel", &gpu::Launch::kernel, "The kernel's name in source.")
      .def_ro("file", &gpu::Launch::file, "Of metal/<file>.metal.")
      .def_prop_ro("source", &gpu::Launch::source,
                   "The very text that Metal compiles, of a library with this kernel alone.")
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
  m.def("launches", &launches_of, "results"_a,
        "The launches of what unevaluated arrays still need, of each kernel one, and those of the host's copies.");
  nb::class_<gpu::Compiled>(m, "Compiled", "What came of a kernel; times in ms, the library's for all that share it.")
      .def_ro("kernel", &gpu::Compiled::kernel)
      .def_ro("library_ms", &gpu::Compiled::library_ms)
      .def_ro("pipeline_ms", &gpu::Compiled::pipeline_ms)
      .def_ro("most_threads", &gpu::Compiled::most_threads, "Of a threadgroup.")
      .def_ro("simd_width", &gpu::Compiled::simd_width)
      .def_ro("threadgroup_bytes", &gpu::Compiled::threadgroup_bytes)
      .def_ro("log", &gpu::Compiled::log, "What the compiler had to say of the library.");
  m.def("library_source", &gpu::library_source, "launches"_a,
        "The text of the library that has the kernels of launches, all of one file and each another.");
  m.def("compile_kernels", &gpu::compile, "launches"_a, nb::call_guard<nb::gil_scoped_release>(),
        "Compile the kernels of launches of one file, those that are not there yet, as one library on the GPU.");
  m.def("kernels_compiled_late", &gpu::compiled_late,
        "Kernels compiled because a launch found them missing, since the process began.");
  m.def(
      "metal_source", [](const std::string& file) { return gpu::metal_source(file); }, "file"_a,
      "The flattened text of metal/<file>.metal.");
  m.def(
      "metal_files",
      [] {
        std::vector<std::string> files;
        for (const auto& [file, text] : gpu::metal_sources()) files.push_back(file);
        return files;
      },
      "Those of metal_source.");

  m.def("set_poison_outputs", &set_poison_outputs, "on"_a,
        "For tests: fill every output with NaN before its kernel runs.");
}
