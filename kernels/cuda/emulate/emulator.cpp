// The emulator's launches, meetings, copies and shared memory: see emulator.h.
#include "emulate/machine.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace emu {
namespace {

/// Returns all kernels, in the order of their registration.
std::vector<Entry> &table() {
  static std::vector<Entry> entries;
  return entries;
}

/// Records a barrier or a wait; returns whether the fault is to be injected there.
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

/// Brings a copy's bytes.
void land(const Copy &c) {
  std::memcpy(c.to, c.from, c.valid);
  std::memset(static_cast<char *>(c.to) + c.valid, 0, c.bytes - c.valid);
}

} // namespace

Register::Register(const char *name, Kernel kernel, uint32_t max_threads) {
  Entry entry;
  entry.name = name;
  entry.kernel = kernel;
  entry.max_threads = max_threads;
  table().push_back(entry);
}

void fail(const char *format, ...) {
  auto &m = machine;
  char text[900];
  va_list list;
  va_start(list, format);
  vsnprintf(text, sizeof text, format, list);
  va_end(list);
  snprintf(m.report->message, sizeof m.report->message, "%s: %s", m.entry->name, text);
  m.failed = true;
  leave();
}

void *shared_array(uint32_t offset, uint32_t bytes, uint32_t index) {
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
  Copy copy;
  copy.to = shared;
  copy.from = global;
  copy.bytes = bytes;
  copy.valid = valid;
  copy.group = f.groups;
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
  Meeting &meeting = self().meeting;
  meeting.what = what;
  meeting.site = site;
  meeting.mask = mask;
  meeting.argument = argument;
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
  Meeting &meeting = self().meeting;
  meeting = Meeting();
  meeting.what = "__syncthreads";
  meeting.site = site;
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
