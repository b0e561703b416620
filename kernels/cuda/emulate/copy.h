// Host half of ptx/copy.cuh.
#pragma once
#include "emulate/kernel.h"

inline void cp_async16(void *shared, const void *global, bool valid) {
  emu::cp_async(shared, global, 16, valid ? 16 : 0);
}
inline void cp_async_commit() { emu::cp_async_commit(); }
template <int NEWEST> inline void cp_async_wait(KRON_SITE) { emu::cp_async_wait(NEWEST, site); }
