/* Calls in forked processes: none hangs, and each gives the bits of the parent.
 * Usage: fork <device> <children> <rows>, where "host" is the host. */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kron.h"

/* Enough rows of this layer make several partitions in every pass. */
enum { D = 256, A = 8, R = 16, MAX_ROWS = 512, PARAMS = A * A + R * (D / A + D / A) };

static float theta[PARAMS], x[MAX_ROWS * D];
static KronDevice place;
static const KronDevice *device;
static size_t rows;
static volatile sig_atomic_t done;

static void fail(const char *what) {
  fprintf(stderr, "%s: %s\n", what, kron_last_error());
  _exit(1);
}

static float *floats(size_t len) {
  float *memory = calloc(len + 1, sizeof(float));
  if (!memory) fail("calloc");
  return memory;
}

/* FNV-1a of the outputs of all passes. */
static uint64_t compute(void) {
  KronOp op = {.d_out = D, .d_in = D, .a_out = A, .a_in = A, .rank = R, .scale = 1.5f, .dropout = 0.25f};
  KronKey key = {.seed = 3, .offset = 4};
  KronSizes sizes;
  if (kron_sizes(device, &op, rows, &sizes) != KRON_OK) fail("kron_sizes");
  float *y = floats(rows * D), *dx = floats(rows * D), *w = floats(D * D), *t = floats(sizes.t);
  float *grad = floats(sizes.theta), *forth = floats(sizes.forward), *back = floats(sizes.backward);
  float *merged = floats(sizes.merge);
  KronForward forward = {.rows = rows, .x = x, .x_stride = D, .y = y, .y_stride = D, .theta = theta, .t = t,
                         .workspace = forth, .workspace_len = sizes.forward, .key = &key};
  if (kron_forward(device, &op, &forward) != KRON_OK) fail("kron_forward");
  KronBackward backward = {.rows = rows, .x = x, .x_stride = D, .dy = y, .dy_stride = D, .dx = dx,
                           .dx_stride = D, .theta = theta, .t = t, .grad = grad, .workspace = back,
                           .workspace_len = sizes.backward, .key = &key};
  if (kron_backward(device, &op, &backward) != KRON_OK) fail("kron_backward");
  KronMerge merge = {.accumulate = 1, .rows = D, .w = w, .w_stride = D, .theta = theta,
                     .workspace = merged, .workspace_len = sizes.merge};
  if (kron_merge(device, &op, &merge) != KRON_OK) fail("kron_merge");
  const float *outputs[] = {y, dx, w, t, grad};
  const size_t lens[] = {rows * D, rows * D, (size_t)D * D, sizes.t, sizes.theta};
  uint64_t hash = 14695981039346656037u;
  for (int i = 0; i < 5; i++)
    for (size_t k = 0; k < lens[i] * sizeof(float); k++)
      hash = (hash ^ ((const unsigned char *)outputs[i])[k]) * 1099511628211u;
  free(y), free(dx), free(w), free(t), free(grad), free(forth), free(back), free(merged);
  return hash;
}

static void *thread(void *hash) {
  *(uint64_t *)hash = compute();
  return NULL;
}

static void *busy(void *unused) {
  while (!done) compute();
  return unused;
}

/* Threads of a forked process call too. */
static uint64_t in_threads(void) {
  pthread_t threads[3];
  uint64_t hashes[3];
  for (int i = 0; i < 3; i++)
    if (pthread_create(&threads[i], NULL, thread, &hashes[i])) fail("pthread_create");
  for (int i = 0; i < 3; i++) pthread_join(threads[i], NULL);
  return hashes[0] == hashes[1] && hashes[1] == hashes[2] ? hashes[0] : 0;
}

/* What a forked process computes; a call that hangs is ended by its alarm. */
static uint64_t forked(uint64_t (*work)(void)) {
  int ends[2], status;
  uint64_t hash = 0;
  if (pipe(ends)) fail("pipe");
  pid_t child = fork();
  if (child < 0) fail("fork");
  if (child == 0) {
    alarm(60);
    hash = work();
    if (write(ends[1], &hash, sizeof hash) != sizeof hash) fail("write");
    _exit(0);
  }
  close(ends[1]);
  if (read(ends[0], &hash, sizeof hash) != sizeof hash) hash = 0;
  close(ends[0]);
  if (waitpid(child, &status, 0) != child || status != 0) {
    fprintf(stderr, "a child ended with status %#x\n", (unsigned)status);
    exit(1);
  }
  return hash;
}

static uint64_t grandchild(void) { return forked(compute); }

int main(int argc, char **argv) {
  if (argc != 4) return 2;
  unsigned state = 1;
  for (int i = 0; i < PARAMS; i++) theta[i] = (float)((state = state * 1664525u + 1013904223u) >> 8) / (1 << 24);
  for (int i = 0; i < MAX_ROWS * D; i++) x[i] = (float)((state = state * 1664525u + 1013904223u) >> 8) / (1 << 24);
  place.device = atoi(argv[1]);
  device = strcmp(argv[1], "host") ? &place : NULL;
  rows = (size_t)atoi(argv[3]) < MAX_ROWS ? (size_t)atoi(argv[3]) : MAX_ROWS;

  uint64_t before = forked(compute); /* this process has not called yet */
  uint64_t want = compute();
  pthread_t other;
  if (device == NULL && pthread_create(&other, NULL, busy, NULL)) fail("pthread_create");
  uint64_t (*const works[])(void) = {compute, in_threads, grandchild};
  for (int i = 0; i < atoi(argv[2]); i++) {
    uint64_t got = forked(works[i % 3]);
    if (got != want) {
      fprintf(stderr, "child %d has %016llx, not %016llx\n", i, (unsigned long long)got, (unsigned long long)want);
      return 1;
    }
  }
  done = 1;
  if (device == NULL) pthread_join(other, NULL);
  if (before != want || compute() != want) {
    fprintf(stderr, "the bits before and after the forks differ\n");
    return 1;
  }
  puts("agrees");
  return 0;
}
