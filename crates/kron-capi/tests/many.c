/* Calls over segments and over groups through kron.h, against single calls on the host. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"

enum { N = 9, DO = 12, DI = 14, XS = DI + 3, YS = DO + 1, ADAPTERS = 4, FLOATS = 1 << 14 };

/* Two of one shape, a LoRA, and a full inner factor that no row has. */
static const KronOp ops[ADAPTERS] = {
    {.d_out = DO, .d_in = DI, .a_out = 3, .a_in = 2, .rank = 2, .scale = 1.5f},
    {.d_out = DO, .d_in = DI, .a_out = 3, .a_in = 2, .rank = 2, .scale = -0.5f},
    {.d_out = DO, .d_in = DI, .rank = 3, .scale = 0.25f},
    {.d_out = DO, .d_in = DI, .a_out = 4, .a_in = 7, .scale = 2.0f},
};
static const int32_t table[N] = {2, -1, 0, 1, 1, 2, -1, 0, 2};

static float theta[ADAPTERS][256], grad[ADAPTERS][256], want_grad[ADAPTERS][256];
static float x[N * XS], y[N * YS], dy[N * YS], dx[N * XS], want_y[N * YS], want_dx[N * XS];
static float t[FLOATS], workspace[FLOATS];

static void says(int status, int want, const char *text) {
  must(status, want, text);
  if (strstr(kron_last_error(), text)) return;
  fprintf(stderr, "the message is not \"%s\" but \"%s\"\n", text, kron_last_error());
  exit(1);
}

static void same(const void *got, const void *want, size_t bytes, const char *what) {
  if (!memcmp(got, want, bytes)) return;
  fprintf(stderr, "%s differs\n", what);
  exit(1);
}

/* Forward and backward of one adapter over its rows, into the rows of want_y, want_dx and its want_grad. */
static void one(int adapter) {
  static float xs[N * DI], ys[N * DO], dys[N * DO], dxs[N * DI];
  int rows[N], n = 0;
  for (int i = 0; i < N; i++)
    if (table[i] == adapter) rows[n++] = i;
  for (int i = 0; i < n; i++) {
    memcpy(xs + i * DI, x + rows[i] * XS, DI * sizeof(float));
    memcpy(ys + i * DO, want_y + rows[i] * YS, DO * sizeof(float));
    memcpy(dys + i * DO, dy + rows[i] * YS, DO * sizeof(float));
  }
  KronForward forward = {.dtype = KRON_F32, .accumulate = 1, .rows = n, .x = xs, .x_stride = DI, .y = ys,
                         .y_stride = DO, .theta = theta[adapter], .t = t, .workspace = workspace,
                         .workspace_len = FLOATS};
  must(kron_forward(NULL, &ops[adapter], &forward), KRON_OK, "kron_forward");
  KronBackward backward = {.dtype = KRON_F32, .rows = n, .x = xs, .x_stride = DI, .dy = dys, .dy_stride = DO,
                           .dx = dxs, .dx_stride = DI, .theta = theta[adapter], .t = t,
                           .grad = want_grad[adapter], .workspace = workspace, .workspace_len = FLOATS};
  must(kron_backward(NULL, &ops[adapter], &backward), KRON_OK, "kron_backward");
  for (int i = 0; i < n; i++) {
    memcpy(want_y + rows[i] * YS, ys + i * DO, DO * sizeof(float));
    memcpy(want_dx + rows[i] * XS, dxs + i * DI, DI * sizeof(float));
  }
}

static void start(void) {
  fill(y, N * YS), fill(dx, N * XS);
  for (int i = 0; i < ADAPTERS; i++) fill(grad[i], 256);
  memcpy(want_y, y, sizeof y), memcpy(want_dx, dx, sizeof dx), memcpy(want_grad, grad, sizeof grad);
}

static void segments(void) {
  KronAdapter adapters[ADAPTERS];
  for (int i = 0; i < ADAPTERS; i++) adapters[i] = (KronAdapter){.op = ops[i], .theta = theta[i]};
  KronManySizes sizes;
  must(kron_segments_sizes(NULL, adapters, ADAPTERS, N, &sizes), KRON_OK, "kron_segments_sizes");
  if (sizes.t != N * 7 * 3 || sizes.forward > FLOATS || sizes.backward > FLOATS) must(-1, 0, "the sizes");
  start();
  for (int i = 0; i < 3; i++) one(i);
  KronForwardSegments forward = {.dtype = KRON_F32, .accumulate = 1, .rows = N, .x = x, .x_stride = XS, .y = y,
                                 .y_stride = YS, .table = table, .t = t, .workspace = workspace,
                                 .workspace_len = sizes.forward};
  float *grads[ADAPTERS] = {grad[0], grad[1], grad[2], NULL};
  KronBackwardSegments backward = {.dtype = KRON_F32, .rows = N, .x = x, .x_stride = XS, .dy = dy,
                                   .dy_stride = YS, .dx = dx, .dx_stride = XS, .table = table, .t = t,
                                   .grads = grads, .workspace = workspace, .workspace_len = sizes.backward};
  must(kron_forward_segments(NULL, adapters, ADAPTERS, &forward), KRON_OK, "kron_forward_segments");
  must(kron_backward_segments(NULL, adapters, ADAPTERS, &backward), KRON_OK, "kron_backward_segments");
  same(y, want_y, sizeof y, "y of segments");
  same(dx, want_dx, sizeof dx, "dx of segments");
  same(grad, want_grad, sizeof grad, "the gradients of segments");

  /* Refusals write nothing. */
  int32_t wrong_table[N];
  memcpy(wrong_table, table, sizeof table);
  KronForwardSegments wrong = forward;
  wrong.table = wrong_table;
  const int32_t hostile[] = {ADAPTERS, -2, INT32_MAX, INT32_MIN};
  for (int i = 0; i < 4; i++) {
    wrong_table[4] = hostile[i];
    says(kron_forward_segments(NULL, adapters, ADAPTERS, &wrong), KRON_INVALID, "for row 4, but a row has an adapter from 0 to 3, or -1");
    KronBackwardSegments back = backward;
    back.table = wrong_table;
    says(kron_backward_segments(NULL, adapters, ADAPTERS, &back), KRON_INVALID, "for row 4");
  }
  says(kron_forward_segments(NULL, adapters, 0, &forward), KRON_INVALID, "the pool has no adapter");
  says(kron_forward_segments(NULL, NULL, ADAPTERS, &forward), KRON_INVALID, "adapters has a null pointer");
  says(kron_forward_segments(NULL, adapters, (size_t)1 << 62, &forward), KRON_INVALID, "memory has at most");
  says(kron_forward_segments(NULL, adapters, ADAPTERS, NULL), KRON_INVALID, "call has a null pointer");
  wrong = forward, wrong.table = NULL;
  says(kron_forward_segments(NULL, adapters, ADAPTERS, &wrong), KRON_INVALID, "table has a null pointer");
  wrong = forward, wrong.table = (const int32_t *)((const char *)table + 1);
  says(kron_forward_segments(NULL, adapters, ADAPTERS, &wrong), KRON_INVALID, "its elements have 4 bytes");
  wrong = forward, wrong.dtype = 7;
  says(kron_forward_segments(NULL, adapters, ADAPTERS, &wrong), KRON_INVALID, "dtype has the value 7");
  wrong = forward, wrong.rows = (size_t)1 << 62;
  says(kron_forward_segments(NULL, adapters, ADAPTERS, &wrong), KRON_INVALID, "memory has at most");
  wrong = forward, wrong.workspace_len = 20;
  says(kron_forward_segments(NULL, adapters, ADAPTERS, &wrong), KRON_INVALID, "workspace has");
  wrong = forward, wrong.table = (const int32_t *)workspace;
  says(kron_forward_segments(NULL, adapters, ADAPTERS, &wrong), KRON_INVALID, "a buffer that the call writes overlaps");
  wrong = forward, wrong.t = theta[1];
  says(kron_forward_segments(NULL, adapters, ADAPTERS, &wrong), KRON_INVALID, "a buffer that the call writes overlaps");
  wrong = forward, wrong.y = x;
  says(kron_forward_segments(NULL, adapters, ADAPTERS, &wrong), KRON_INVALID, "y has memory of x");
  KronBackwardSegments back = backward;
  float *missing[ADAPTERS] = {grad[0], NULL, grad[2], NULL}, *twice[ADAPTERS] = {grad[0], grad[0] + 1, grad[2], NULL};
  back.grads = missing;
  says(kron_backward_segments(NULL, adapters, ADAPTERS, &back), KRON_INVALID, "grad has 0 elements");
  back.grads = twice;
  says(kron_backward_segments(NULL, adapters, ADAPTERS, &back), KRON_INVALID, "grad has memory of grad");
  back.grads = NULL;
  says(kron_backward_segments(NULL, adapters, ADAPTERS, &back), KRON_INVALID, "grads has a null pointer");
  adapters[2].op.d_in = DI + 1;
  says(kron_forward_segments(NULL, adapters, ADAPTERS, &forward), KRON_INVALID, "adapter 2 is");
  adapters[2] = (KronAdapter){.op = ops[2]};
  says(kron_forward_segments(NULL, adapters, ADAPTERS, &forward), KRON_INVALID, "theta has a null pointer");
  adapters[2] = (KronAdapter){.op = ops[2], .theta = theta[2]};
  KronDevice device = {.device = 0};
  says(kron_forward_segments(&device, adapters, ADAPTERS, &forward), KRON_UNAVAILABLE, "on the host alone");
  says(kron_backward_segments(&device, adapters, ADAPTERS, &backward), KRON_UNAVAILABLE, "on the host alone");
  says(kron_segments_sizes(&device, adapters, ADAPTERS, N, &sizes), KRON_UNAVAILABLE, "on the host alone");
  says(kron_segments_sizes(NULL, adapters, ADAPTERS, N, NULL), KRON_INVALID, "sizes has a null pointer");
  same(y, want_y, sizeof y, "y of a refused call");
  same(dx, want_dx, sizeof dx, "dx of a refused call");
  same(grad, want_grad, sizeof grad, "a gradient of a refused call");
}

/* Two terms of one shape with a Y each: the sums have the order of single calls, dX but for its last rounding. */
static void group(void) {
  static float ys[2][N * DO], want_ys[2][N * DO], dys[2][N * DO];
  KronTerm terms[2];
  KronGroupY outputs[2];
  KronGroupDy gradients[2];
  for (int i = 0; i < 2; i++) {
    fill(ys[i], N * DO), fill(dys[i], N * DO);
    memcpy(want_ys[i], ys[i], sizeof ys[i]);
    terms[i] = (KronTerm){.op = ops[i], .theta = theta[i], .output = i};
    outputs[i] = (KronGroupY){.y = ys[i], .y_stride = DO, .accumulate = 1};
    gradients[i] = (KronGroupDy){.dy = dys[i], .dy_stride = DO};
  }
  KronManySizes sizes;
  must(kron_group_sizes(NULL, terms, 2, N, &sizes), KRON_OK, "kron_group_sizes");
  if (sizes.t != 2 * N * 2 * 2 || sizes.forward > FLOATS || sizes.backward > FLOATS) must(-1, 0, "the sizes");
  start();
  for (int i = 0; i < 2; i++) {
    KronForward forward = {.dtype = KRON_F32, .accumulate = 1, .rows = N, .x = x, .x_stride = XS,
                           .y = want_ys[i], .y_stride = DO, .theta = theta[i], .t = t, .workspace = workspace,
                           .workspace_len = FLOATS};
    must(kron_forward(NULL, &ops[i], &forward), KRON_OK, "kron_forward");
    KronBackward backward = {.dtype = KRON_F32, .accumulate = i, .rows = N, .x = x, .x_stride = XS,
                             .dy = dys[i], .dy_stride = DO, .dx = want_dx, .dx_stride = XS, .theta = theta[i],
                             .t = t, .grad = want_grad[i], .workspace = workspace, .workspace_len = FLOATS};
    must(kron_backward(NULL, &ops[i], &backward), KRON_OK, "kron_backward");
  }
  KronForwardGroup forward = {.dtype = KRON_F32, .rows = N, .x = x, .x_stride = XS, .ys = outputs, .outputs = 2,
                              .t = t, .workspace = workspace, .workspace_len = sizes.forward};
  float *grads[2] = {grad[0], grad[1]};
  KronBackwardGroup backward = {.dtype = KRON_F32, .rows = N, .x = x, .x_stride = XS, .dys = gradients,
                                .outputs = 2, .dx = dx, .dx_stride = XS, .t = t, .grads = grads,
                                .workspace = workspace, .workspace_len = sizes.backward};
  must(kron_forward_group(NULL, terms, 2, &forward), KRON_OK, "kron_forward_group");
  must(kron_backward_group(NULL, terms, 2, &backward), KRON_OK, "kron_backward_group");
  same(ys, want_ys, sizeof ys, "the outputs of a group");
  same(grad, want_grad, sizeof grad, "the gradients of a group");
  for (int i = 0; i < N * XS; i++) {
    double apart = (double)dx[i] - want_dx[i];
    if (apart > 1e-5 || apart < -1e-5 || (i % XS >= DI && apart != 0)) must(-1, 0, "dx of a group");
  }

  memcpy(want_ys, ys, sizeof ys), memcpy(want_dx, dx, sizeof dx);
  forward.outputs = 1;
  says(kron_forward_group(NULL, terms, 2, &forward), KRON_INVALID, "outputs has the value 1, but the group has 2");
  forward.outputs = 2, outputs[1].y = ys[0];
  says(kron_forward_group(NULL, terms, 2, &forward), KRON_INVALID, "y has memory of y");
  outputs[1].y = ys[1], outputs[1].y_stride = DO - 1;
  says(kron_forward_group(NULL, terms, 2, &forward), KRON_INVALID, "y has a stride of 11");
  outputs[1].y_stride = DO, outputs[1].accumulate = 2;
  says(kron_forward_group(NULL, terms, 2, &forward), KRON_INVALID, "accumulate has the value 2");
  outputs[1].accumulate = 1, forward.ys = NULL;
  says(kron_forward_group(NULL, terms, 2, &forward), KRON_INVALID, "ys has a null pointer");
  backward.dys = NULL;
  says(kron_backward_group(NULL, terms, 2, &backward), KRON_INVALID, "dys has a null pointer");
  backward.dys = gradients, grads[1] = NULL;
  says(kron_backward_group(NULL, terms, 2, &backward), KRON_INVALID, "grad has a null pointer");
  grads[1] = theta[0];
  says(kron_backward_group(NULL, terms, 2, &backward), KRON_INVALID, "grad has memory of theta");
  grads[1] = grad[1], gradients[1].dy = dx;
  says(kron_backward_group(NULL, terms, 2, &backward), KRON_INVALID, "dx has memory of dy");
  says(kron_forward_group(NULL, terms, 17, &forward), KRON_INVALID, "terms has 17 elements, but a group has 1 to 16");
  says(kron_forward_group(NULL, terms, 0, &forward), KRON_INVALID, "the group has 0 terms");
  says(kron_forward_group(NULL, NULL, 2, &forward), KRON_INVALID, "terms has a null pointer");
  terms[1].output = 2;
  says(kron_forward_group(NULL, terms, 2, &forward), KRON_INVALID, "output 1 has no term");
  terms[1].output = SIZE_MAX;
  says(kron_forward_group(NULL, terms, 2, &forward), KRON_INVALID, "has no term");
  same(ys, want_ys, sizeof ys, "y of a refused call");
  same(dx, want_dx, sizeof dx, "dx of a refused call");
}

int main(void) {
  for (int i = 0; i < ADAPTERS; i++) fill(theta[i], 256);
  fill(x, N * XS), fill(dy, N * YS);
  segments();
  group();
  puts("agrees");
  return 0;
}
