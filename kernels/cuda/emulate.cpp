// The emulator's scheduler, meetings and shared memory: see emulate.h.
#include "emulate.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <sys/mman.h>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define POISON(p, n) __asan_poison_memory_region(p, n)
#define UNPOISON(p, n) __asan_unpoison_memory_region(p, n)
#else
#define POISON(p, n) ((void)(p), (void)(n))
#define UNPOISON(p, n) ((void)(p), (void)(n))
#endif
#if defined(KRON_TSAN)
#include <sanitizer/tsan_interface.h>
#define RELEASE(p) __tsan_release(p)
#define ACQUIRE(p) __tsan_acquire(p)
#else
#define RELEASE(p) ((void)(p))
#define ACQUIRE(p) ((void)(p))
#endif

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emu {
namespace {

constexpr size_t STACK = 256 << 10;
constexpr uint32_t MAX_THREADS = 1024, MAX_SHARED = 227 << 10, MAX_ARRAYS = 15, RED_ZONE = 64;
constexpr size_t MEMORY = MAX_SHARED + (MAX_ARRAYS + 1) * RED_ZONE;
#if defined(KRON_TSAN)
constexpr size_t CREWS = 3; // see run_block
#else
constexpr size_t CREWS = 1;
#endif
constexpr uint32_t PCT_REDRAW = 32; // one redraw of a warp's priority in so many picks

struct Entry {
  const char *name;
  Kernel kernel;
  uint32_t max_threads;
};
std::vector<Entry> &table() {
  static std::vector<Entry> entries;
  return entries;
}

/// What a fiber waits at.
struct Meeting {
  const char *what;
  Site site;
  uint32_t mask;
  void *argument;
};

struct Copy {
  void *to;
  const void *from;
  uint32_t bytes, valid, group;
};

struct Fiber {
  enum { RUNNABLE, AT_WARP, AT_BLOCK, DONE } state;
  Meeting meeting;
  std::vector<Copy> copies; // not landed yet
  uint32_t groups = 0;      // committed
  uint32_t open = 0;        // copies since the last commit
  uint32_t waited = 0;      // groups known to have landed
  char *stack = nullptr;
#if defined(__x86_64__)
  void *sp = nullptr;
#else
  ucontext_t context;
#endif
  void *fake_stack = nullptr, *tsan = nullptr;
};

struct Warp {
  uint32_t runnable, arrived;
  uint64_t priority;
};

void release(Fiber &f) {
  if (f.stack) munmap(f.stack, STACK);
#if defined(KRON_TSAN)
  if (f.tsan) __tsan_destroy_fiber(f.tsan);
#endif
}

struct Machine {
  const Entry *entry = nullptr;
  const KronParams *params = nullptr;
  KronEmuOptions options{};
  KronEmuReport *report = nullptr;
  uint64_t grid = 0, block_index = 0, random = 0;
  uint32_t block = 0, shared_bytes = 0, taken = 0, arrived = 0, done = 0, current = 0;
  bool failed = false;
  std::vector<Fiber> fibers, crews[CREWS]; // the block's, and those of the blocks before it
  std::vector<Warp> warps;
  std::vector<Site> sites; // of barriers and waits, met since the launch
  char *shared = nullptr;        // the limit and room for red zones
  std::unique_ptr<char[]> syncs; // ThreadSanitizer's names for the block's barrier and, 8 bytes apart, its warps'
  Fiber home; // the caller's own stack
  const void *home_bottom = nullptr;
  size_t home_size = 0;
  ~Machine() {
    if (shared) munmap(shared, MEMORY);
    for (auto &crew : crews)
      for (auto &f : crew) release(f);
  }
};
thread_local Machine machine;

/// Memory; with `at` at that place, so that ThreadSanitizer forgets who has touched it.
char *map(size_t bytes, void *at = nullptr) {
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

/// Leaves `from` and runs `to`; returns when somebody runs `from` again.
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

/// The next fiber to run, or −1.
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

Fiber &self() { return machine.fibers[machine.current]; }

/// Gives the processor away: to another fiber, or home when none can run.
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

void set_runnable(uint32_t thread) {
  machine.fibers[thread].state = Fiber::RUNNABLE;
  machine.warps[thread / 32].runnable |= 1u << (thread % 32);
}
void set_waiting(uint32_t thread, int state) {
  machine.fibers[thread].state = decltype(Fiber::state)(state);
  machine.warps[thread / 32].runnable &= ~(1u << (thread % 32));
}

/// Notes that a barrier or a wait was met; true where a fault is wanted.
bool faulty(const Site &site) {
  auto &m = machine;
  bool seen = false;
  for (const Site &s : m.sites) seen |= s.line == site.line && s.file == site.file;
  if (!seen) m.sites.push_back(site);
  if (!m.options.fault_file || m.options.fault_line != site.line) return false;
  const size_t path = std::strlen(site.file), end = std::strlen(m.options.fault_file);
  if (path < end || std::strcmp(site.file + path - end, m.options.fault_file)) return false;
  ++m.report->faults;
  return true;
}

void land(const Copy &c) {
  std::memcpy(c.to, c.from, c.valid);
  std::memset(static_cast<char *>(c.to) + c.valid, 0, c.bytes - c.valid);
}

void fiber_main() {
  auto &m = machine;
#if defined(__SANITIZE_ADDRESS__)
  const void *bottom;
  size_t size;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
  if (!m.home_bottom) m.home_bottom = bottom, m.home_size = size; // the first fiber is started from home
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
  abort(); // a finished fiber is never run again
}

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

/// Names what the waiting threads wait at, one example per call site.
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

void run_block() {
  auto &m = machine;
  m.taken = m.arrived = m.done = 0;
  const size_t shared = m.shared_bytes + (MAX_ARRAYS + 1) * RED_ZONE;
  // Blocks run one after another, but ThreadSanitizer must not take them for
  // ordered: neighbours have other fibers, and the rest is new to each.
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

} // namespace

Register::Register(const char *name, Kernel kernel, uint32_t max_threads) {
  table().push_back({name, kernel, max_threads});
}

Index thread_index() { return {machine.current}; }
Index block_index() { return {unsigned(machine.block_index)}; }
Index block_dim() { return {machine.block}; }
Index grid_dim() { return {unsigned(machine.grid)}; }

void fail(const char *format, ...) {
  auto &m = machine;
  char text[900];
  va_list list;
  va_start(list, format);
  vsnprintf(text, sizeof text, format, list);
  va_end(list);
  snprintf(m.report->message, sizeof m.report->message, "%s: %s", m.entry->name, text);
  m.failed = true;
  run(self(), m.home, true);
  abort();
}

void *shared_take(uint32_t offset, uint32_t bytes, uint32_t index) {
  auto &m = machine;
  if (offset + bytes > m.shared_bytes)
    fail("the kernel takes %u bytes of shared memory, but was launched with %u", offset + bytes, m.shared_bytes);
  if (index >= MAX_ARRAYS) fail("the kernel takes more than %u arrays of shared memory", MAX_ARRAYS);
  char *start = m.shared + offset + (index + 1) * RED_ZONE;
  UNPOISON(start, bytes);
  return start;
}

void count_bank_conflicts(uint64_t n) { machine.report->bank_conflicts += n; }

void cp_async(void *shared, const void *global, uint32_t bytes, uint32_t valid) {
  Fiber &f = self();
  if (reinterpret_cast<uintptr_t>(shared) % bytes || (valid && reinterpret_cast<uintptr_t>(global) % bytes))
    fail("cp.async of %u bytes to or from an address that is not a multiple of %u", bytes, bytes);
  const Copy copy = {shared, global, bytes, valid, f.groups};
  ++f.open;
  const uint32_t mode = machine.options.async;
  if (mode == EAGER || (mode == COIN && draw() % 2)) land(copy);
  else f.copies.push_back(copy);
}

void cp_async_commit() {
  Fiber &f = self();
  ++f.groups;
  f.open = 0;
}

void cp_async_wait(uint32_t newest, Site site) {
  newest += faulty(site);
  Fiber &f = self();
  if (f.groups <= newest) return;
  f.waited = f.groups - newest;
  size_t kept = 0;
  for (const Copy &c : f.copies)
    if (c.group < f.waited) land(c);
    else f.copies[kept++] = c;
  f.copies.resize(kept);
}

void warp_meet(uint32_t mask, const char *what, Site site, void *argument, Combine combine) {
  auto &m = machine;
  const uint32_t lane = m.current % 32, first = m.current - lane;
  Warp &warp = m.warps[m.current / 32];
  [[maybe_unused]] char *const sync = m.syncs.get() + 8 * (1 + m.current / 32);
  if (!(mask >> lane & 1)) fail("lane %u calls %s at %s:%d with mask %08x, which leaves it out", lane, what, site.file, site.line, mask);
  Fiber &me = self();
  me.meeting = {what, site, mask, argument};
  if (!argument) RELEASE(sync); // only a barrier orders memory
  warp.arrived |= 1u << lane;
  if ((warp.arrived & mask) != mask) {
    set_waiting(m.current, Fiber::AT_WARP);
    yield(false);
    if (!argument) ACQUIRE(sync);
    return;
  }
  void *lanes[32] = {};
  for (uint32_t l = 0; l < 32; ++l) {
    if (!(mask >> l & 1)) continue;
    const Meeting &other = m.fibers[first + l].meeting;
    if (other.site.line != site.line || std::strcmp(other.site.file, site.file) || other.what != what || other.mask != mask)
      fail("lane %u is in %s at %s:%d with mask %08x while lane %u is in %s at %s:%d with mask %08x", lane, what,
           site.file, site.line, mask, l, other.what, other.site.file, other.site.line, other.mask);
    lanes[l] = other.argument;
  }
  combine(lanes);
  warp.arrived &= ~mask;
  for (uint32_t l = 0; l < 32; ++l)
    if (mask >> l & 1) set_runnable(first + l);
  if (!argument) ACQUIRE(sync);
  if (m.options.schedule != FIFO) yield(false);
}

void barrier(Site site) {
  if (faulty(site)) return;
  auto &m = machine;
  Fiber &me = self();
  me.meeting = {"__syncthreads", site, 0, nullptr};
  RELEASE(m.syncs.get());
  set_waiting(m.current, Fiber::AT_BLOCK);
  if (++m.arrived == m.block) {
    for (uint32_t t = 0; t < m.block; ++t) {
      const Site &other = m.fibers[t].meeting.site;
      if (other.line != site.line || std::strcmp(other.file, site.file))
        fail("thread %u is in __syncthreads at %s:%d while thread %u is in the one at %s:%d", m.current, site.file,
             site.line, t, other.file, other.line);
    }
    m.arrived = 0;
    for (uint32_t t = 0; t < m.block; ++t) set_runnable(t);
  }
  yield(false);
  ACQUIRE(m.syncs.get());
}

extern "C" const char *kron_emulate_kernel(uint32_t i) { return i < table().size() ? table()[i].name : nullptr; }

extern "C" Site kron_emulate_site(uint32_t i) { return i < machine.sites.size() ? machine.sites[i] : Site{nullptr, 0}; }

extern "C" int kron_emulate(const char *kernel, const KronParams *params, uint64_t grid, uint32_t block,
                            uint32_t shared, const KronEmuOptions *options, KronEmuReport *report) {
  auto &m = machine;
  report->bank_conflicts = report->faults = 0;
  report->message[0] = 0;
  auto refuse = [&](const char *rule, unsigned long long value) {
    snprintf(report->message, sizeof report->message, "%s: %s, but got %llu", kernel, rule, value);
    return 1;
  };
  m.entry = nullptr;
  for (const Entry &e : table())
    if (!std::strcmp(e.name, kernel)) m.entry = &e;
  if (!m.entry) return refuse("no kernel has this name", 0);
  if (grid < 1 || grid > 0x7fffffff) return refuse("a grid has 1 to 2147483647 blocks", grid);
  if (block < 32 || block > MAX_THREADS || block % 32) return refuse("a block has 32 to 1024 threads, whole warps", block);
  if (block > m.entry->max_threads) return refuse("the block exceeds the kernel's launch bounds", block);
  if (shared > MAX_SHARED) return refuse("a block has at most 232448 bytes of shared memory", shared);
  m.params = params;
  m.options = *options;
  m.report = report;
  m.grid = grid;
  m.block = block;
  m.shared_bytes = shared;
  m.failed = false;
  m.sites.clear();
  m.random = options->seed * 0x9E3779B97F4A7C15ULL + 0x5851F42D4C957F2DULL;
  if (!m.shared) m.shared = map(MEMORY);
  m.sites.reserve(64);
  for (m.block_index = 0; m.block_index < grid && !m.failed; ++m.block_index) run_block();
  ACQUIRE(&m.done);
  UNPOISON(m.shared, MEMORY);
  return m.failed;
}

} // namespace emu
