#include "cpu/runtime/threads.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <mutex>
#include <new>
#include <set>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#ifdef __APPLE__
#include <sys/sysctl.h>
#endif
#ifdef __linux__
#include <sched.h>
#endif

namespace mlx_delta::cpu {
namespace {

// Long enough to span the gap between two kernels of a token (10-50 us in MLX's scheduler), short enough that an idle
// process does not hold a core.
constexpr int kSpins = 4000;

constexpr int kMaxThreads = 256;

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb");  // yield is a no-op on most cores
#endif
}

int physical_cores() {
#if defined(__APPLE__)
  // The efficiency cores would be the last to finish every kernel.
  int count = 0;
  size_t size = sizeof(count);
  for (const char* name : {"hw.perflevel0.physicalcpu", "hw.physicalcpu"})
    if (sysctlbyname(name, &count, &size, nullptr, 0) == 0 && count > 0) return count;
#elif defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) {
    std::set<std::pair<int, int> > cores;  // (package, core): hyperthreads share one
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (!CPU_ISSET(cpu, &allowed)) continue;
      const std::string topology = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
      int package = 0, core = cpu;
      std::ifstream(topology + "physical_package_id") >> package;
      std::ifstream(topology + "core_id") >> core;
      cores.emplace(package, core);
    }
    if (!cores.empty()) return int(cores.size());
  }
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

int configured_threads() {
  const char* text = std::getenv("MLX_DELTA_THREADS");
  if (!text || !*text) return physical_cores();
  const char* end = text + std::strlen(text);
  int wanted = 0;
  const auto [rest, error] = std::from_chars(text, end, wanted);
  if (error != std::errc{} || rest != end || wanted < 1 || wanted > kMaxThreads)
    throw std::invalid_argument("MLX_DELTA_THREADS: expected a number from 1 to " + std::to_string(kMaxThreads) +
                                ", found '" + text + "'");
  return wanted;
}

struct alignas(64) Pool {
  static constexpr uint64_t kOpen = uint64_t{1} << 31;  // below it: how many workers are in the job; above: its number

  // Held for the length of a job. Taken without waiting: a second stream runs its job alone instead.
  std::atomic_flag taken = ATOMIC_FLAG_INIT;
  const Work* work = nullptr;
  int64_t count = 0, grain = 0, parts = 1;
  int workers = 0;
  alignas(64) std::atomic<uint64_t> state{0};
  alignas(64) std::atomic<uint32_t> number{0};  // the job's number again, to sleep on
  alignas(64) std::atomic<int64_t> next{0};

  void take_pieces() {
    int64_t first = next.load(std::memory_order_relaxed);
    while (first < count) {
      const int64_t last = std::min(count, first + std::max(grain, (count - first) / parts));
      if (!next.compare_exchange_weak(first, last, std::memory_order_relaxed)) continue;
      (*work)(first, last);
      first = next.load(std::memory_order_relaxed);
    }
  }

  // A worker joins a job only while it is open, so that nobody waits for one that the system has not scheduled.
  void serve() {
    uint32_t seen = 0;
    for (;;) {
      for (int spins = 0; uint32_t(state.load(std::memory_order_relaxed) >> 32) == seen; ++spins) {
        if (spins < kSpins)
          relax();
        else
          number.wait(seen, std::memory_order_relaxed);
      }
      uint64_t now = state.load(std::memory_order_relaxed);
      seen = uint32_t(now >> 32);
      while ((now & kOpen) && uint32_t(now >> 32) == seen) {
        if (!state.compare_exchange_weak(now, now + 1, std::memory_order_acquire)) continue;
        take_pieces();
        state.fetch_sub(1, std::memory_order_release);
        break;
      }
    }
  }

  void run(int64_t items, int64_t piece, int64_t part, const Work& what) {
    work = &what;
    count = items;
    grain = piece;
    parts = part;
    next.store(0, std::memory_order_relaxed);
    const uint32_t job = number.load(std::memory_order_relaxed) + 1;
    state.store((uint64_t{job} << 32) | kOpen, std::memory_order_release);
    number.store(job, std::memory_order_release);
    number.notify_all();
    take_pieces();
    state.fetch_and(~kOpen, std::memory_order_relaxed);
    while ((state.load(std::memory_order_acquire) & (kOpen - 1)) != 0) relax();
  }

  void start() {
    workers = thread_count() - 1;
    for (int i = 0; i < workers; ++i) std::thread([this] { serve(); }).detach();
  }
};

// Never destroyed: workers may be asleep in it when the process exits, and then simply end with it.
std::atomic<Pool*> pool{nullptr};
std::mutex pool_mutex;

// A forked child has none of the workers, and its copy of the pool may be in the middle of a job.
void forget_pool_in_child() {
  pool.store(nullptr, std::memory_order_relaxed);
  new (&pool_mutex) std::mutex;
}

Pool& get_pool() {
  if (Pool* ready = pool.load(std::memory_order_acquire)) return *ready;
  const std::lock_guard lock(pool_mutex);
  if (Pool* ready = pool.load(std::memory_order_acquire)) return *ready;
  static const int registered = pthread_atfork(nullptr, nullptr, forget_pool_in_child);
  (void)registered;
  Pool* fresh = new Pool;
  fresh->start();
  pool.store(fresh, std::memory_order_release);
  return *fresh;
}

struct Scratch {
  void* data[kScratchSlots] = {};
  size_t size[kScratchSlots] = {};
  ~Scratch() {
    for (void* p : data) std::free(p);
  }
};

}  // namespace

int thread_count() {
  static const int count = configured_threads();
  return count;
}

void run_parallel(int64_t count, int64_t grain, int64_t parts, const Work& work) {
  Pool& p = get_pool();
  if (p.workers == 0 || p.taken.test_and_set(std::memory_order_acquire)) return work(0, count);
  p.run(count, grain, parts, work);
  p.taken.clear(std::memory_order_release);
}

void* scratch(int slot, size_t bytes) {
  thread_local Scratch mine;
  if (mine.size[slot] < bytes) {
    std::free(mine.data[slot]);
    mine.size[slot] = (bytes + bytes / 4 + 4095) / 4096 * 4096;
    mine.data[slot] = std::aligned_alloc(4096, mine.size[slot]);
    if (!mine.data[slot]) {
      mine.size[slot] = 0;
      throw std::bad_alloc();
    }
  }
  return mine.data[slot];
}

}  // namespace mlx_delta::cpu
