// The only file that sees Metal.
#include "gpu/metal.h"

#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <unordered_map>

#include "mlx/allocator.h"
#include "mlx/backend/metal/device.h"

namespace mlx_delta::gpu {
namespace {

namespace mx = mlx::core;

constexpr int64_t kAlignment = 16;  // of what a kernel loads at once

// A kernel is compiled once a process: MLX keeps libraries by their name, which says which text was compiled, and a
// launch of a known kernel costs one look-up. MLX frees no pipeline before the process ends.
MTL::ComputePipelineState* pipeline(mx::metal::Device& device, const Launch& launch) {
  static std::mutex mutex;
  static std::unordered_map<std::string, MTL::ComputePipelineState*> known;
  const std::string name = launch.kernel();
  const std::lock_guard lock(mutex);
  MTL::ComputePipelineState*& found = known[name];
  if (!found) {
    MTL::Library* library = device.get_library(launch.library(), [&launch] { return launch.source(); });
    found = device.get_kernel(name, library);
    const auto threads = NS::UInteger(launch.threads[0] * launch.threads[1] * launch.threads[2]);
    const NS::UInteger most = found->maxTotalThreadsPerThreadgroup();
    if (threads > most) {
      found = nullptr;
      throw std::runtime_error(name + ": threads of a threadgroup: expected at most " + std::to_string(most) +
                               " on this GPU, found " + std::to_string(threads));
    }
  }
  return found;
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
            std::vector<mx::array>& scratch, mx::metal::Device& device, mx::metal::CommandEncoder& encoder) {
  encoder.set_compute_pipeline_state(pipeline(device, launch));
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

std::function<bool()> encode(const Plan& plan, const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs,
                             const mx::Stream& stream) {
  mx::metal::Device& device = mx::metal::device(stream.device);
  mx::metal::CommandEncoder& encoder = mx::metal::get_command_encoder(stream);
  std::vector<mx::array> scratch;
  for (const int64_t bytes : plan.scratch_bytes) scratch.push_back(temporary(encoder, bytes));

  std::vector<mx::array> aligned = inputs;
  for (mx::array& input : aligned) {
    if (input.offset() % kAlignment == 0) continue;  // a view may begin anywhere
    std::vector<mx::array> copy{temporary(encoder, int64_t(input.nbytes()))};
    encode(plan_copy({Buffer::input, 0}, {Buffer::output, 0}, int64_t(input.nbytes()), "uchar"), {input}, copy, scratch,
           device, encoder);
    input = copy.front();
  }
  for (const Launch& launch : plan.launches) encode(launch, aligned, outputs, scratch, device, encoder);
  return [running = running(encoder.get_command_buffer())] { return running->done(); };
}

}  // namespace mlx_delta::gpu
