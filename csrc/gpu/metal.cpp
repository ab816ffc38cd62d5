// The only file that sees Metal.
#include "gpu/metal.h"

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <stdexcept>
#include <string>
#include <unordered_map>

#include "mlx/allocator.h"
#include "mlx/backend/metal/device.h"

namespace mlx_delta::gpu {
namespace {

namespace mx = mlx::core;

constexpr int64_t kAlignment = 16;  // of what a kernel loads at once

// By name. They live as long as the process: streams may outlive static objects.
struct Pipelines {
  std::shared_mutex mutex;
  std::unordered_map<std::string, NS::SharedPtr<MTL::ComputePipelineState>> of;
  std::atomic<int> late{0};

  MTL::ComputePipelineState* find(const std::string& name) {
    const std::shared_lock lock(mutex);
    const auto found = of.find(name);
    return found == of.end() ? nullptr : found->second.get();
  }
};

Pipelines& pipelines() {
  static Pipelines& all = *new Pipelines;
  return all;
}

std::string message(const NS::Error* error) { return error ? error->localizedDescription()->utf8String() : ""; }

// The same on every macOS, whatever its own defaults are: the language of macOS 14, NaN and infinity as they are, and
// of a function that has two precisions the precise one, unless a kernel says otherwise.
NS::SharedPtr<MTL::CompileOptions> compile_options() {
  auto options = NS::TransferPtr(MTL::CompileOptions::alloc()->init());
  options->setLanguageVersion(MTL::LanguageVersion3_1);
  options->setFastMathEnabled(false);
  if (NS::ProcessInfo::processInfo()->isOperatingSystemAtLeastVersion({15, 0, 0})) {
    options->setMathMode(MTL::MathModeSafe);
    options->setMathFloatingPointFunctions(MTL::MathFloatingPointFunctionsPrecise);
  }
  return options;
}

class Stopwatch {
 public:
  double ms() const { return std::chrono::duration<double, std::milli>(Clock::now() - start_).count(); }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point start_ = Clock::now();
};

NS::SharedPtr<MTL::ComputePipelineState> compile(MTL::Device* device, MTL::Library* library, const Launch& launch) {
  const std::string name = launch.kernel();
  auto function = NS::TransferPtr(library->newFunction(NS::String::string(name.c_str(), NS::ASCIIStringEncoding)));
  if (!function) throw std::runtime_error(name + ": expected a kernel of that name in its library, found none");
  NS::Error* error = nullptr;
  auto pipeline = NS::TransferPtr(device->newComputePipelineState(function.get(), &error));
  if (!pipeline) throw std::runtime_error(name + ": Metal refuses the kernel: " + message(error));
  const auto threads = NS::UInteger(launch.threads[0] * launch.threads[1] * launch.threads[2]);
  if (const NS::UInteger most = pipeline->maxTotalThreadsPerThreadgroup(); threads > most)
    throw std::runtime_error(name + ": threads of a threadgroup: expected at most " + std::to_string(most) +
                             " on this GPU, found " + std::to_string(threads));
  return pipeline;
}

MTL::ComputePipelineState* pipeline(const Launch& launch) {
  const std::string name = launch.kernel();
  if (MTL::ComputePipelineState* found = pipelines().find(name)) return found;
  compile(std::vector<Launch>{launch});
  pipelines().late++;
  return pipelines().find(name);
}

MTL::Size size(const std::array<int, 3>& dims) {
  return MTL::Size(NS::UInteger(dims[0]), NS::UInteger(dims[1]), NS::UInteger(dims[2]));
}

mx::array temporary(mx::metal::CommandEncoder& encoder, int64_t bytes) {
  mx::array memory(mx::Shape{int((bytes + 7) / 8)}, mx::uint64, nullptr, {});
  memory.set_data(mx::allocator::malloc(memory.nbytes()));
  encoder.add_temporary(memory);
  return memory;
}

void encode(const Launch& launch, const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs,
            std::vector<mx::array>& scratch, mx::metal::CommandEncoder& encoder) {
  encoder.set_compute_pipeline_state(pipeline(launch));
  int at = 0;
  for (const Buffer& buffer : launch.buffers) {
    const auto index = size_t(buffer.index);
    if (buffer.role == Buffer::input)
      encoder.set_input_array(inputs[index], at++);
    else
      encoder.set_output_array(buffer.role == Buffer::output ? outputs[index] : scratch[index], at++);
  }
  encoder.set_vector_bytes(launch.params, at);
  encoder.dispatch_threadgroups(size(launch.threadgroups), size(launch.threads));
}

// A command buffer that has not run, as far as one has looked. It is kept no longer than that: for as long as somebody
// keeps a command buffer, Metal may keep what MLX holds for it.
class Running {
 public:
  explicit Running(MTL::CommandBuffer* buffer) : buffer_(NS::RetainPtr(buffer)) {}

  bool is(const MTL::CommandBuffer* buffer) {
    const std::lock_guard lock(mutex_);
    return buffer_.get() == buffer;
  }

  bool done() {
    const std::lock_guard lock(mutex_);
    if (buffer_ && buffer_->status() >= MTL::CommandBufferStatusCompleted) buffer_.reset();
    return !buffer_;
  }

 private:
  std::mutex mutex_;
  NS::SharedPtr<MTL::CommandBuffer> buffer_;
};

// Of a buffer that many launches share, one.
std::shared_ptr<Running> running(MTL::CommandBuffer* buffer) {
  thread_local std::weak_ptr<Running> last;  // streams and their encoders belong to a thread
  std::shared_ptr<Running> found = last.lock();
  if (!found || !found->is(buffer)) last = found = std::make_shared<Running>(buffer);
  return found;
}

}  // namespace

std::vector<Compiled> compile(const std::vector<Launch>& launches) {
  std::vector<Launch> missing;
  for (const Launch& launch : launches)
    if (!pipelines().find(launch.kernel())) missing.push_back(launch);
  if (missing.empty()) return {};
  const auto pool = NS::TransferPtr(NS::AutoreleasePool::alloc()->init());
  MTL::Device* device = mx::metal::device(mx::Device::gpu).mtl_device();
  const std::string text = library_source(missing);
  const Stopwatch of_library;
  NS::Error* error = nullptr;
  const auto library = NS::TransferPtr(
      device->newLibrary(NS::String::string(text.c_str(), NS::ASCIIStringEncoding), compile_options().get(), &error));
  if (!library)
    throw std::runtime_error("metal/" + missing.front().file + ".metal: Metal refuses the text: " + message(error));
  const double library_ms = of_library.ms();
  std::vector<Compiled> done;
  for (const Launch& launch : missing) {
    const Stopwatch of_pipeline;
    const auto pipeline = compile(device, library.get(), launch);
    done.push_back({launch.kernel(), library_ms, of_pipeline.ms(), int(pipeline->maxTotalThreadsPerThreadgroup()),
                    int(pipeline->threadExecutionWidth()), int(pipeline->staticThreadgroupMemoryLength()),
                    message(error)});
    const std::unique_lock lock(pipelines().mutex);
    pipelines().of.try_emplace(launch.kernel(), pipeline);
  }
  return done;
}

int compiled_late() { return pipelines().late; }

std::function<bool()> encode(const Plan& plan, const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs,
                             const mx::Stream& stream) {
  mx::metal::CommandEncoder& encoder = mx::metal::get_command_encoder(stream);
  std::vector<mx::array> scratch;
  for (const int64_t bytes : plan.scratch_bytes) scratch.push_back(temporary(encoder, bytes));

  std::vector<mx::array> aligned = inputs;
  for (mx::array& input : aligned) {
    if (input.offset() % kAlignment == 0) continue;  // a view may begin anywhere
    std::vector<mx::array> copy{temporary(encoder, int64_t(input.nbytes()))};
    encode(plan_copy({Buffer::input, 0}, {Buffer::output, 0}, int64_t(input.nbytes()), "uchar"), {input}, copy, scratch,
           encoder);
    input = copy.front();
  }
  for (const Launch& launch : plan.launches) encode(launch, aligned, outputs, scratch, encoder);
  return [running = running(encoder.get_command_buffer())] { return running->done(); };
}

}  // namespace mlx_delta::gpu
