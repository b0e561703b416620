/* Forward, backward and merge through kron.h against plain loops in double.
 * Usage: check <device>, where "host" is the host. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"

enum { N = 5, AO = 3, AI = 2, BO = 4, CI = 7, R = 2, DO = AO * BO, DI = AI * CI };
enum { PARAMS = AO * AI + R * (BO + CI), XS = DI + 3, YS = DO + 1 };

static const float SCALE = 1.5f;
static float theta[PARAMS], x[N * XS], y[N * YS], dy[N * YS], dx[N * XS], w[DO * DI], grad[PARAMS];
static double delta[DO][DI];

static void close_to(double got, double want, const char *what, int i) {
  if (fabs(got - want) <= 1e-5 * (1.0 + fabs(want))) return;
  fprintf(stderr, "%s[%d] is %g, not %g\n", what, i, got, want);
  exit(1);
}

static const float *a(int i, int j) { return theta + i * AI + j; }
static const float *b(int p, int q) { return theta + AO * AI + p * R + q; }
static const float *c(int q, int k) { return theta + AO * AI + BO * R + q * CI + k; }

/* delta = s * A (x) (B*C), whole. */
static void materialise(void) {
  for (int o = 0; o < DO; o++)
    for (int k = 0; k < DI; k++) {
      double bc = 0;
      for (int q = 0; q < R; q++) bc += (double)*b(o % BO, q) * *c(q, k % CI);
      delta[o][k] = SCALE * *a(o / BO, k / CI) * bc;
    }
}

/* What theta[index] moves the loss sum(dY * Y) by: delta is linear in each factor alone. */
static double slope(int index) {
  float kept = theta[index];
  double loss[2];
  for (int up = 0; up < 2; up++) {
    theta[index] = (float)up;
    materialise();
    loss[up] = 0;
    for (int n = 0; n < N; n++)
      for (int o = 0; o < DO; o++)
        for (int k = 0; k < DI; k++) loss[up] += (double)dy[n * YS + o] * delta[o][k] * x[n * XS + k];
  }
  theta[index] = kept;
  materialise();
  return loss[1] - loss[0];
}

static void agree(const KronDevice *device) {
  KronOp op = {.d_out = DO, .d_in = DI, .a_out = AO, .a_in = AI, .rank = R, .scale = SCALE};
  KronSizes sizes;
  must(kron_sizes(device, &op, N, &sizes), KRON_OK, "kron_sizes");
  if (sizes.theta != PARAMS || sizes.t != N * AI * R) exit(1);
  size_t len = sizes.forward > sizes.backward ? sizes.forward : sizes.backward;
  len = len > sizes.merge ? len : sizes.merge;
  float *workspace = malloc(len * sizeof(float) + 1), *t = malloc(sizes.t * sizeof(float));

  KronForward forward = {.dtype = KRON_F32, .accumulate = 1, .rows = N, .x = x, .x_stride = XS,
                         .y = y, .y_stride = YS, .theta = theta, .t = t,
                         .workspace = workspace, .workspace_len = len};
  float old_y[N * YS], old_dx[N * XS], old_w[DO * DI], old_grad[PARAMS];
  memcpy(old_y, y, sizeof y);
  must(kron_forward(device, &op, &forward), KRON_OK, "kron_forward");
  for (int i = 0; i < N * YS; i++) {
    double want = old_y[i];
    for (int k = 0; k < DI && i % YS < DO; k++) want += delta[i % YS][k] * x[i / YS * XS + k];
    close_to(y[i], want, "y", i);
  }

  KronBackward backward = {.dtype = KRON_F32, .accumulate = 0, .rows = N, .x = x, .x_stride = XS,
                           .dy = dy, .dy_stride = YS, .dx = dx, .dx_stride = XS, .theta = theta,
                           .t = t, .grad = grad, .workspace = workspace, .workspace_len = len};
  memcpy(old_dx, dx, sizeof dx);
  memcpy(old_grad, grad, sizeof grad);
  must(kron_backward(device, &op, &backward), KRON_OK, "kron_backward");
  for (int i = 0; i < N * XS; i++) {
    double want = i % XS < DI ? 0 : old_dx[i];
    for (int o = 0; o < DO && i % XS < DI; o++) want += (double)dy[i / XS * YS + o] * delta[o][i % XS];
    close_to(dx[i], want, "dx", i);
  }
  for (int i = 0; i < PARAMS; i++) close_to(grad[i], old_grad[i] + slope(i), "grad", i);

  KronMerge merge = {.dtype = KRON_F32, .accumulate = 1, .rows = DO - 1, .first_row = 1,
                     .w = w + DI, .w_stride = DI, .theta = theta,
                     .workspace = workspace, .workspace_len = len};
  memcpy(old_w, w, sizeof w);
  must(kron_merge(device, &op, &merge), KRON_OK, "kron_merge");
  for (int i = 0; i < DO * DI; i++)
    close_to(w[i], old_w[i] + (i < DI ? 0 : delta[i / DI][i % DI]), "w", i);

  /* Refusals: each names its argument and writes nothing. */
  memcpy(old_y, y, sizeof y);
  KronForward wrong = forward;
  wrong.dtype = 7;
  must(kron_forward(device, &op, &wrong), KRON_INVALID, "a dtype of 7");
  if (!strstr(kron_last_error(), "dtype has the value 7")) must(-1, 0, "the message of dtype");
  wrong = forward, wrong.x = NULL;
  must(kron_forward(device, &op, &wrong), KRON_INVALID, "x = NULL");
  wrong = forward, wrong.y_stride = DO - 1;
  must(kron_forward(device, &op, &wrong), KRON_INVALID, "a short stride");
  wrong = forward, wrong.rows = (size_t)1 << 62;
  must(kron_forward(device, &op, &wrong), KRON_INVALID, "2^62 rows");
  wrong = forward, wrong.theta = (const float *)((const char *)theta + 1);
  must(kron_forward(device, &op, &wrong), KRON_INVALID, "a crooked pointer");
  must(kron_forward(device, NULL, &forward), KRON_INVALID, "op = NULL");
  must(kron_forward(device, &op, NULL), KRON_INVALID, "call = NULL");
  must(kron_backward(device, &op, NULL), KRON_INVALID, "call = NULL");
  must(kron_merge(device, &op, NULL), KRON_INVALID, "call = NULL");
  merge.first_row = 2;
  must(kron_merge(device, &op, &merge), KRON_INVALID, "rows past the weight's");
  op.a_in = 3;
  must(kron_sizes(device, &op, N, &sizes), KRON_INVALID, "an a_in that does not divide");
  if (memcmp(old_y, y, sizeof y)) must(-1, 0, "a refused call wrote");
  free(workspace), free(t);
}

int main(int argc, char **argv) {
  fill(theta, PARAMS), fill(x, N * XS), fill(y, N * YS), fill(dy, N * YS), fill(dx, N * XS);
  fill(w, DO * DI), fill(grad, PARAMS);
  materialise();
  if (argc != 2) return 2;
  if (kron_abi() != KRON_ABI) return 3;
  KronDevice device = {.device = atoi(argv[1]), .stream = NULL};
  agree(strcmp(argv[1], "host") ? &device : NULL);

  KronDevice absent = {.device = 1 << 20, .stream = NULL};
  KronOp op = {.d_out = DO, .d_in = DI, .rank = R, .scale = 1};
  KronSizes sizes;
  must(kron_sizes(&absent, &op, N, &sizes), KRON_UNAVAILABLE, "a device that is not there");
  int count = -1, status = kron_device_count(&count);
  if (status != KRON_OK) must(status, KRON_UNAVAILABLE, "kron_device_count");
  puts("agrees");
  return 0;
}
