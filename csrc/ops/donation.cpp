#include "ops/donation.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "ops/evaluation.h"

namespace mlx_delta {
namespace {

struct Hold {
  mx::Stream stream;
  std::function<bool()> done;
};

// By memory. An entry outlives its memory at most as work that is done, which counts for nothing: each token moves its
// states to holders of their own, so old entries are never looked up again, and are swept out.
struct Holds {
  std::mutex mutex;
  std::unordered_map<const void*, std::vector<Hold>> of;
  size_t many = 0;  // entries from which on to sweep: so many that sweeping costs a few steps for each that was added

  void add(const mx::array& a, mx::Stream stream, const std::function<bool()>& done) {
    if (of.size() > many) {
      for (auto entry = of.begin(); entry != of.end();) entry = prune(entry->second) == 0 ? of.erase(entry) : ++entry;
      many = 2 * of.size() + 64;
    }
    std::vector<Hold>& holds = of[a.data_shared_ptr().get()];
    prune(holds);
    holds.push_back({stream, done});
  }

  static size_t prune(std::vector<Hold>& holds) {
    std::erase_if(holds, [](const Hold& hold) { return hold.done(); });
    return holds.size();
  }
};

Holds& holds() {
  static Holds& all = *new Holds;  // never destroyed: streams may outlive static objects
  return all;
}

}  // namespace

void note_in_flight(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs,
                    const std::vector<int>& state_inputs, const std::vector<int>& state_outputs, mx::Stream stream,
                    std::function<bool()> done) {
  const std::lock_guard lock(holds().mutex);
  for (int i : state_inputs) holds().add(inputs[size_t(i)], stream, done);
  // MLX evaluates one of the outputs, the one that has these inputs, and holds the others.
  for (int i : state_outputs)
    if (&outputs[size_t(i)].inputs() != &inputs) holds().add(outputs[size_t(i)], stream, done);
}

bool can_take_over(const mx::array& in, mx::Stream stream) {
  if (in.offset() != 0 || !in.flags().row_contiguous) return false;
  if (in.is_donatable()) return true;
  const auto& memory = in.data_shared_ptr();
  if (!memory->is_owned()) return false;
  const std::lock_guard lock(holds().mutex);
  const auto found = holds().of.find(memory.get());
  if (found == holds().of.end()) return false;
  Holds::prune(found->second);            // what is done may let go of the memory by that
  const long users = memory.use_count();  // before: what is in flight after this was so when they were counted
  const auto in_flight = std::count_if(found->second.begin(), found->second.end(),
                                       [stream](const Hold& hold) { return hold.stream == stream && !hold.done(); });
  if (users - in_flight > 1) return false;
  // Nobody else needs the memory. Whether somebody else has the array only MLX knows, and it tells of arrays whose
  // memory nobody holds: so the memory moves to a holder of its own, and those in flight keep an empty one.
  const_cast<mx::array&>(in).set_data(mx::allocator::Data(std::move(*memory)));
  return in.is_donatable();
}

void note_states(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs,
                 const std::vector<int>& state_inputs, const std::vector<int>& state_outputs, mx::Stream stream) {
  const auto ran = std::make_shared<std::atomic<bool>>(false);
  run_on(stream, [ran] { *ran = true; });
  note_in_flight(inputs, outputs, state_inputs, state_outputs, stream, [ran] { return ran->load(); });
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

}  // namespace mlx_delta
