// Runs a kernel: a fiber a thread, one threadgroup at a time, each simdgroup lane by lane until every lane waits or has
// returned.
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "launch.h"

#ifndef __x86_64__
#error "the fiber switch is written for x86-64"
#endif

// Half types are rounded by these where the processor cannot; a compiler's own runtime may lack them.
extern "C" __attribute__((weak)) __bf16 __truncsfbf2(float value) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  const bool nan = (bits & 0x7fffffff) > 0x7f800000;
  const uint16_t rounded = nan ? uint16_t(bits >> 16 | 64) : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  return __builtin_bit_cast(__bf16, rounded);
}
extern "C" __attribute__((weak)) __bf16 __truncdfbf2(double value) { return __truncsfbf2(float(value)); }

// Saves the callee-saved registers on this stack, and continues on another.
asm(R"(.text
.type msl_switch,@function
msl_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmp *%rcx
)");
extern "C" void msl_switch(void** save, void* to);

namespace msl {

Fiber* current;
Simdgroup simdgroups[kMaxThreads / kSimdWidth];
Grid grid;
Launch* launch;
uint64_t threadgroup_serial;
uint32_t threadgroup_barriers[2];

namespace {

constexpr size_t kStack = 128 << 10;
constexpr size_t kGuard = 4 << 10;

Fiber fibers[kMaxThreads];
char* stacks;
void* scheduler;
bool stopped;

void add_finding(Kind kind, uint32_t site, uint32_t other_site, const char* buffer, int64_t offset, const char* format,
                 va_list arguments) {
  char message[sizeof(Finding::message)];
  vsnprintf(message, sizeof(message), format, arguments);
  for (uint32_t i = 0; i < launch->findings_count; i++) {
    const Finding& f = launch->findings[i];
    if (f.kind == kind && f.site == site && !strcmp(f.buffer, buffer) && (site || !strcmp(f.message, message))) return;
  }
  if (launch->findings_count == kMaxFindings) return;
  Finding& f = launch->findings[launch->findings_count++];
  f = {kind, site, other_site, {}, {}, offset, {}, {}};
  if (current) {
    memcpy(f.threadgroup, current->builtins.threadgroup_in_grid, sizeof(f.threadgroup));
    memcpy(f.thread, current->builtins.thread_in_threadgroup, sizeof(f.thread));
  }
  snprintf(f.buffer, sizeof(f.buffer), "%s", buffer);
  memcpy(f.message, message, sizeof(message));
}

void run_entry() {
  launch->entry(launch->arguments);
  current->state = kExited;
  msl_switch(&current->stack_pointer, scheduler);
  __builtin_unreachable();
}

// A stack that run_entry starts on, as msl_switch would have left it: six registers and where to go.
void prepare(uint32_t index) {
  Fiber& fiber = fibers[index];
  void** top = reinterpret_cast<void**>(stacks + (index + 1) * (kStack + kGuard));
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(run_entry);
  for (int i = 0; i < 6; i++) *--top = nullptr;
  fiber.stack_pointer = top;
  fiber.state = kReady;
  fiber.exchanges = 0;
}

bool same_place(const Site& a, const Site& b) {
  return a.line == b.line && a.column == b.column && !strcmp(a.file, b.file) && !strcmp(a.operation, b.operation);
}

// Whether all the threads [first, last) wait in one place, as those must that meet in a barrier or a simd operation.
bool converged(uint32_t first, uint32_t last, State state, const char* scope, bool may_have_exited) {
  uint32_t witness = first;
  while (fibers[witness].state != state) witness++;
  const Site& there = fibers[witness].site;
  for (uint32_t i = first; i < last; i++) {
    const Fiber& fiber = fibers[i];
    if (fiber.state == kExited && may_have_exited) continue;
    if (fiber.state == state && same_place(fiber.site, there)) continue;
    current = &fibers[i];
    if (fiber.state == kExited) {
      report(kDivergence, 0, 0, "", 0, "in a %s: this thread returned, while thread %u waits in %s at %s:%d:%d", scope,
             witness, there.operation, there.file, there.line, there.column);
    } else {
      report(kDivergence, 0, 0, "", 0,
             "in a %s: this thread waits in %s at %s:%d:%d, while thread %u waits in %s at %s:%d:%d", scope,
             fiber.site.operation, fiber.site.file, fiber.site.line, fiber.site.column, witness, there.operation,
             there.file, there.line, there.column);
    }
    return false;
  }
  return true;
}

// Lets the waiting threads [first, last) go on, and counts what kinds of memory the barrier they were in ordered.
void let_go(uint32_t first, uint32_t last, uint32_t* barriers) {
  uint32_t flags = ~0u;
  for (uint32_t i = first; i < last; i++) {
    if (fibers[i].state == kExited) continue;
    flags &= fibers[i].memory_flags;
    fibers[i].state = kReady;
  }
  barriers[0] += flags & 1;
  barriers[1] += flags >> 1 & 1;
}

// Runs one simdgroup's threads [first, last) until each has returned or waits for its threadgroup.
bool run_simdgroup(uint32_t index, uint32_t first, uint32_t last) {
  Simdgroup& group = simdgroups[index];
  for (;;) {
    bool waits = false;
    for (uint32_t step = 0; step < last - first; step++) {
      Fiber& fiber = fibers[launch->reverse ? last - 1 - step : first + step];
      if (fiber.state == kReady) {
        current = &fiber;
        msl_switch(&scheduler, fiber.stack_pointer);
        if (stopped) return false;
        checker_resumed();
        if (fiber.state == kExited) group.live &= ~(1u << fiber.builtins.lane);
      }
      waits |= fiber.state == kWaitsForSimdgroup;
    }
    if (!waits) return true;
    if (!converged(first, last, kWaitsForSimdgroup, "simdgroup", true)) return false;
    let_go(first, last, group.barriers);
    group.active = group.live;
    group.reduced = false;
  }
}

bool run_threadgroup(uint32_t threads) {
  const uint32_t groups = (threads + kSimdWidth - 1) / kSimdWidth;
  for (uint32_t i = 0; i < threads; i++) prepare(i);
  for (uint32_t i = 0; i < groups; i++) {
    const uint32_t lanes = threads - i * kSimdWidth;
    simdgroups[i].live = lanes < kSimdWidth ? (1u << lanes) - 1 : ~0u;
    simdgroups[i].barriers[0] = simdgroups[i].barriers[1] = 0;
  }
  for (;;) {
    for (uint32_t step = 0; step < groups; step++) {
      const uint32_t index = launch->reverse ? groups - 1 - step : step;
      const uint32_t first = index * kSimdWidth;
      const uint32_t last = first + kSimdWidth < threads ? first + kSimdWidth : threads;
      if (!run_simdgroup(index, first, last)) return false;
    }
    uint32_t waiting = 0;
    for (uint32_t i = 0; i < threads; i++) waiting += fibers[i].state == kWaitsForThreadgroup;
    if (waiting == 0) return true;
    if (!converged(0, threads, kWaitsForThreadgroup, "threadgroup", false)) return false;
    let_go(0, threads, threadgroup_barriers);
  }
}

// Sets what the threads of the threadgroup at `at` see, and returns how many there are: fewer at the edge of the grid.
uint32_t enter_threadgroup(const uint32_t at[3]) {
  for (int i = 0; i < 3; i++) {
    const uint32_t left = grid.threads[i] - at[i] * grid.dispatched_size[i];
    grid.threadgroup_size[i] = left < grid.dispatched_size[i] ? left : grid.dispatched_size[i];
  }
  uint32_t n = 0;
  for (uint32_t z = 0; z < grid.threadgroup_size[2]; z++) {
    for (uint32_t y = 0; y < grid.threadgroup_size[1]; y++) {
      for (uint32_t x = 0; x < grid.threadgroup_size[0]; x++, n++) {
        Builtins& b = fibers[n].builtins;
        const uint32_t thread[3] = {x, y, z};
        for (int i = 0; i < 3; i++) {
          b.thread_in_threadgroup[i] = thread[i];
          b.threadgroup_in_grid[i] = at[i];
          b.thread_in_grid[i] = at[i] * grid.dispatched_size[i] + thread[i];
        }
        b.index = n;
        b.lane = n % kSimdWidth;
        b.simdgroup = n / kSimdWidth;
      }
    }
  }
  return n;
}

void run_grid() {
  const uint32_t* count = grid.threadgroups;
  const uint64_t total = uint64_t(count[0]) * count[1] * count[2];
  for (uint64_t step = 0; step < total; step++) {
    const uint64_t i = launch->reverse ? total - 1 - step : step;
    const uint32_t at[3] = {uint32_t(i % count[0]), uint32_t(i / count[0] % count[1]),
                            uint32_t(i / count[0] / count[1])};
    const uint32_t threads = enter_threadgroup(at);
    threadgroup_serial++;
    threadgroup_barriers[0] = threadgroup_barriers[1] = 0;
    forget_threadgroup_memory();
    if (!run_threadgroup(threads)) return;
  }
}

}  // namespace

void wait(State kind, const Site& site, uint32_t memory_flags) {
  current->state = kind;
  current->site = site;
  current->memory_flags = memory_flags;
  msl_switch(&current->stack_pointer, scheduler);
}

void report(Kind kind, uint32_t site, uint32_t other_site, const char* buffer, int64_t offset, const char* format,
            ...) {
  va_list arguments;
  va_start(arguments, format);
  add_finding(kind, site, other_site, buffer, offset, format, arguments);
  va_end(arguments);
}

void stop() {
  stopped = true;
  msl_switch(&current->stack_pointer, scheduler);
  __builtin_unreachable();
}

void fail(const Site& site, const char* format, ...) {
  char message[sizeof(Finding::message)];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message, sizeof(message), format, arguments);
  va_end(arguments);
  if (site.line) {
    report(kError, 0, 0, "", 0, "%s at %s:%d:%d", message, site.file, site.line, site.column);
  } else {
    report(kError, 0, 0, "", 0, "%s", message);
  }
  stop();
}

// Runs `what`; the caller has checked it. Its findings are in it afterwards.
extern "C" void msl_launch(Launch* what) {
  launch = what;
  stopped = false;
  current = nullptr;
  for (int i = 0; i < 3; i++) {
    grid.threads[i] = what->threads[i];
    grid.dispatched_size[i] = what->threadgroup[i];
    grid.threadgroups[i] = (what->threads[i] + what->threadgroup[i] - 1) / what->threadgroup[i];
  }
  const size_t threads = size_t(what->threadgroup[0]) * what->threadgroup[1] * what->threadgroup[2];
  const size_t bytes = threads * (kStack + kGuard);
  stacks = static_cast<char*>(
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (stacks == MAP_FAILED || !place_buffers()) {
    report(kError, 0, 0, "", 0, "no memory for %zu threads and %u buffers", threads, what->count);
    return;
  }
  for (size_t i = 0; i < threads; i++) mprotect(stacks + i * (kStack + kGuard), kGuard, PROT_NONE);
  checker_begin();
  run_grid();
  current = nullptr;
  checker_end();
  release_buffers(true);
  munmap(stacks, bytes);
  launch = nullptr;
}

}  // namespace msl
