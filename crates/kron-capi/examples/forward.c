/* One Kron-LoRA layer through kron.h: y += s * (A (x) B*C) * x, on the host, and where theta's gradient goes.
 *
 *   cargo build --release -p kron-capi
 *   cc -I crates/kron-capi crates/kron-capi/examples/forward.c -L target/release -lkron_capi -o forward
 *   LD_LIBRARY_PATH=target/release ./forward
 */
#include <stdio.h>
#include <stdlib.h>

#include "kron.h"

enum { ROWS = 2, D_OUT = 12, D_IN = 8 };

/* Every call returns a status, and kron_last_error the sentence that belongs to it. */
static void check(int status) {
  if (status == KRON_OK) return;
  fprintf(stderr, "%s\n", kron_last_error());
  exit(1);
}

static float *floats(size_t len, float value) {
  float *data = malloc(len * sizeof(float));
  if (!data) exit(1);
  for (size_t i = 0; i < len; i++) data[i] = value;
  return data;
}

int main(void) {
  /* A layer of 12 x 8, A of 3 x 2, rank 2: B is 4 x 2 and C is 2 x 4. */
  KronOp op = {.d_out = D_OUT, .d_in = D_IN, .a_out = 3, .a_in = 2, .rank = 2, .scale = 0.5f};
  KronSizes sizes;
  check(kron_sizes(NULL, &op, ROWS, &sizes)); /* NULL is the host */

  float *theta = floats(sizes.theta, 1), *t = floats(sizes.t, 0), *grad = floats(sizes.theta, 0);
  float *x = floats(ROWS * D_IN, 1), *y = floats(ROWS * D_OUT, 10), *dy = floats(ROWS * D_OUT, 1);
  size_t len = sizes.forward > sizes.backward ? sizes.forward : sizes.backward;
  float *workspace = floats(len, 0);

  KronForward forward = {.dtype = KRON_F32, .accumulate = 1, .rows = ROWS, .x = x, .x_stride = D_IN,
                         .y = y, .y_stride = D_OUT, .theta = theta, .t = t,
                         .workspace = workspace, .workspace_len = len};
  check(kron_forward(NULL, &op, &forward));
  /* All factors are 1: T = 4, U = 2 * 4 = 8, and y = 10 + 0.5 * 2 * 8. */
  printf("y[0] = %g\n", y[0]);

  KronBackward backward = {.dtype = KRON_F32, .rows = ROWS, .x = x, .x_stride = D_IN,
                           .dy = dy, .dy_stride = D_OUT, .theta = theta, .t = t, .grad = grad,
                           .workspace = workspace, .workspace_len = len}; /* dx is NULL: not wanted */
  check(kron_backward(NULL, &op, &backward));
  /* dA = sum of dU * T over rows and ranks: 2 * 2 * (0.5 * 4) * 4. */
  printf("dA[0] = %g\n", grad[0]);

  free(theta), free(t), free(grad), free(x), free(y), free(dy), free(workspace);
  return 0;
}
