/* Random numbers and checks of the C tests. */
#include <stdio.h>
#include <stdlib.h>

#include "kron.h"

static float number(void) {
  static unsigned state = 1;
  state = state * 1664525u + 1013904223u;
  return (float)(state >> 8) / (1 << 23) - 1.0f;
}

static void fill(float *to, int len) {
  for (int i = 0; i < len; i++) to[i] = number();
}

static void must(int status, int want, const char *what) {
  if (status == want && (status == KRON_OK) == (kron_last_error()[0] == 0)) return;
  fprintf(stderr, "%s: status %d, not %d: %s\n", what, status, want, kron_last_error());
  exit(1);
}
