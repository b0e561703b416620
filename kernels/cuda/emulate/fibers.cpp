// Fibers: their stacks, the switch between them, the schedule, and a block from start to end.
#include "emulate/machine.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <utility>

namespace emu {

thread_local Machine machine;

namespace {

void release(Fiber &f) {
  if (f.stack) munmap(f.stack, STACK);
#if defined(KRON_TSAN)
  if (f.tsan) __tsan_destroy_fiber(f.tsan);
#endif
}

} // namespace

Machine::~Machine() {
  if (shared) munmap(shared, MEMORY);
  for (auto &crew : crews)
    for (auto &f : crew) release(f);
}

Index thread_index() { return {machine.current}; }
Index block_index() { return {unsigned(machine.block_index)}; }
Index block_dim() { return {machine.block}; }
Index grid_dim() { return {unsigned(machine.grid)}; }

char *map(size_t bytes, void *at) {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (at ? MAP_FIXED : 0);
  void *memory = mmap(at, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (memory == MAP_FAILED) abort();
  return static_cast<char *>(memory);
}

uint64_t draw() { // xorshift64*
  uint64_t &s = machine.random;
  s ^= s >> 12, s ^= s << 25, s ^= s >> 27;
  return (s * 0x2545F4914F6CDD1DULL) >> 16;
}

namespace {

#if defined(__x86_64__)
extern "C" void kron_emu_switch(void **save, void *load);
asm(R"(.text
.globl kron_emu_switch
.hidden kron_emu_switch
kron_emu_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
)");
#endif

/// Leaves `from` and runs `to`; returns once another fiber runs `from` again.
void run(Fiber &from, Fiber &to, [[maybe_unused]] bool from_ends) {
#if defined(__SANITIZE_ADDRESS__)
  const bool to_home = &to == &machine.home;
  __sanitizer_start_switch_fiber(from_ends ? nullptr : &from.fake_stack, to_home ? machine.home_bottom : to.stack,
                                 to_home ? machine.home_size : STACK);
#endif
#if defined(KRON_TSAN)
  __tsan_switch_to_fiber(to.tsan, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__x86_64__)
  kron_emu_switch(&from.sp, to.sp);
#else
  swapcontext(&from.context, &to.context);
#endif
#if defined(__SANITIZE_ADDRESS__)
  const void *bottom;
  size_t size;
  __sanitizer_finish_switch_fiber(from.fake_stack, &bottom, &size);
#endif
}

/// Returns the next fiber to run, or −1.
int pick() {
  auto &m = machine;
  const int warps = int(m.warps.size());
  int best = -1;
  switch (m.options.schedule) {
  case FIFO:
    for (int w = 0; w < warps; ++w)
      if (m.warps[w].runnable) return w * 32 + __builtin_ctz(m.warps[w].runnable);
    return -1;
  case REVERSE:
    for (int w = warps - 1; w >= 0; --w)
      if (m.warps[w].runnable) return w * 32 + 31 - __builtin_clz(m.warps[w].runnable);
    return -1;
  case RANDOM: {
    uint32_t count = 0;
    for (auto &w : m.warps) count += __builtin_popcount(w.runnable);
    if (!count) return -1;
    uint32_t k = uint32_t(draw() % count);
    for (int w = 0; w < warps; ++w)
      for (uint32_t bits = m.warps[w].runnable; bits; bits &= bits - 1)
        if (k-- == 0) return w * 32 + __builtin_ctz(bits);
    return -1;
  }
  default:
    for (int w = 0; w < warps; ++w)
      if (m.warps[w].runnable && (best < 0 || m.warps[w].priority > m.warps[best].priority)) best = w;
    if (best < 0) return -1;
    if (draw() % PCT_REDRAW == 0) m.warps[best].priority = draw();
    return best * 32 + __builtin_ctz(m.warps[best].runnable);
  }
}

} // namespace

void yield(bool ends) {
  auto &m = machine;
  Fiber &from = self();
  const int next = m.failed ? -1 : pick();
  if (next == int(m.current) && !ends) return;
  if (next >= 0) {
    m.current = uint32_t(next);
    run(from, m.fibers[next], ends);
  } else {
    run(from, m.home, ends);
  }
}

void leave() {
  run(self(), machine.home, true);
  abort();
}

void set_runnable(uint32_t thread) {
  machine.fibers[thread].state = Fiber::RUNNABLE;
  machine.warps[thread / 32].runnable |= 1u << (thread % 32);
}
void set_waiting(uint32_t thread, Fiber::State state) {
  machine.fibers[thread].state = state;
  machine.warps[thread / 32].runnable &= ~(1u << (thread % 32));
}

namespace {

/// The bottom of every fiber's stack: runs the kernel as one thread.
void fiber_main() {
  auto &m = machine;
#if defined(__SANITIZE_ADDRESS__)
  const void *bottom;
  size_t size;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
  if (!m.home_bottom) m.home_bottom = bottom, m.home_size = size; // home starts the first fiber
#endif
  ACQUIRE(&m.params);
  m.entry->kernel(*m.params);
  Fiber &f = self();
  if (f.open || f.waited < f.groups)
    fail("thread %u of block %llu exits with a cp.async that it never waited for", m.current,
         (unsigned long long)m.block_index);
  set_waiting(m.current, Fiber::DONE);
  ++m.done;
  RELEASE(&m.done);
  yield(true);
  abort(); // a finished fiber never runs again
}

/// Gives a fiber its stack and sets it to the start of `fiber_main`.
void prepare(Fiber &f) {
  if (!f.stack) {
    f.stack = map(STACK);
#if defined(KRON_TSAN)
    f.tsan = __tsan_create_fiber(0);
#endif
  }
  UNPOISON(f.stack, STACK);
  f.copies.clear();
  f.groups = f.open = f.waited = 0;
#if defined(__x86_64__)
  void **top = reinterpret_cast<void **>(f.stack + STACK);
  *--top = nullptr; // return address of fiber_main, and the ABI's alignment
  *--top = reinterpret_cast<void *>(&fiber_main);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  f.sp = top;
#else
  getcontext(&f.context);
  f.context.uc_stack.ss_sp = f.stack;
  f.context.uc_stack.ss_size = STACK;
  makecontext(&f.context, fiber_main, 0);
#endif
}

/// Reports the meetings that threads still wait at, with one thread for each call site.
void report_deadlock() {
  auto &m = machine;
  char text[900];
  int n = snprintf(text, sizeof text, "deadlock in block %llu: %u of %u threads have exited",
                   (unsigned long long)m.block_index, m.done, m.block);
  Site last{};
  for (uint32_t t = 0; t < m.block && n < 700; ++t) {
    const Fiber &f = m.fibers[t];
    if (f.state == Fiber::DONE || (f.meeting.site.file == last.file && f.meeting.site.line == last.line)) continue;
    last = f.meeting.site;
    n += snprintf(text + n, sizeof text - n, "; thread %u waits in %s at %s:%d", t, f.meeting.what, last.file, last.line);
  }
  snprintf(m.report->message, sizeof m.report->message, "%s: %s", m.entry->name, text);
  m.failed = true;
}

} // namespace

void run_block() {
  auto &m = machine;
  m.arrived = m.done = 0;
  const size_t shared = m.shared_bytes + (MAX_ARRAYS + 1) * RED_ZONE;
  // Blocks run one after another, but ThreadSanitizer must not consider them
  // ordered: neighbouring blocks have different fibers and new memory.
  std::swap(m.fibers, m.crews[m.block_index % CREWS]);
  if (m.fibers.size() < m.block) m.fibers.resize(m.block);
  m.syncs.reset(new char[8 * (1 + MAX_THREADS / 32)]);
#if defined(KRON_TSAN)
  map(shared, m.shared);
#endif
  UNPOISON(m.shared, MEMORY);
  std::memset(m.shared, 0xff, shared); // NaN in every format
  POISON(m.shared, MEMORY);
  m.warps.assign(m.block / 32, Warp{});
  for (auto &w : m.warps) w.priority = draw();
  for (uint32_t t = 0; t < m.block; ++t) prepare(m.fibers[t]), set_runnable(t);
#if defined(KRON_TSAN)
  m.home.tsan = __tsan_get_current_fiber();
#endif
  RELEASE(&m.params);
  m.current = uint32_t(pick());
  run(m.home, m.fibers[m.current], false);
  if (!m.failed && m.done < m.block) report_deadlock();
  std::swap(m.fibers, m.crews[m.block_index % CREWS]);
}

} // namespace emu
