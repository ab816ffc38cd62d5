// The threads that share one kernel's work: one a physical core, the calling thread among them.
//
// Nothing here is compiled per instruction set, and no call allocates once the pool and its scratch have grown.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mlx_delta::cpu {

// How many threads a parallel_for may use: MLX_DELTA_THREADS, or the physical cores this process may run on.
// Throws std::invalid_argument if the variable is not a number from 1 to 256.
int thread_count();

// A range [first, last) of work items, for any callable that outlives the call: no std::function, no allocation.
class Work {
 public:
  template <typename F>
  explicit Work(const F& f)
      : object_(&f),
        call_([](const void* object, int64_t first, int64_t last) { (*static_cast<const F*>(object))(first, last); }) {}
  void operator()(int64_t first, int64_t last) const { call_(object_, first, last); }

 private:
  const void* object_;
  void (*call_)(const void*, int64_t, int64_t);
};

// Calls work for pieces of [0, count): each 1 / parts of what is left of it, but at least `grain` items.
void run_parallel(int64_t count, int64_t grain, int64_t parts, const Work& work);

// Calls f(first, last) for pieces of [0, count) of `grain` items until all are done, on all threads: whoever is free
// takes the next piece, so a core that others disturb does not hold the rest up. Serial when the pool is taken (by
// another stream, or by the caller's own caller) and when there is only one piece.
template <typename F>
void parallel_for(int64_t count, int64_t grain, const F& f) {
  if (count <= grain)
    f(int64_t{0}, count);
  else
    run_parallel(count, grain, count, Work(f));
}

// The same in pieces that shrink to `least`: each is half of a thread's share of what is left, so that memory is read
// in long runs and yet all threads are done at once (with pieces of one size, half a piece is waited for).
template <typename F>
void parallel_for_shrinking(int64_t count, int64_t least, const F& f) {
  if (count <= least)
    f(int64_t{0}, count);
  else
    run_parallel(count, least, 2 * int64_t(thread_count()), Work(f));
}

// This thread's scratch number `slot`, at least `bytes` large, on a cache line; valid until the slot is asked for
// again.
inline constexpr int kScratchSlots = 7;
void* scratch(int slot, size_t bytes);

template <typename T>
T* scratch_of(int slot, int64_t count) {
  return static_cast<T*>(scratch(slot, size_t(count) * sizeof(T)));
}

}  // namespace mlx_delta::cpu
