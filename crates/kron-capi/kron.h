/* Kron-LoRA, dW = s*A (x) (B*C), on a frozen linear layer: forward, backward and merge.
 * Generated from crates/kron-capi/src by `KRON_WRITE_HEADER=1 cargo test -p kron-capi --test header`.
 *
 * Threads: any thread may call at any time. Calls on the host share a pool of threads, which the first one
 * makes; RAYON_NUM_THREADS sets its size. kron_set_runner takes threads of the caller's instead.
 *
 * Processes: fork copies no thread of the pool. In a process that was forked after a call on the host, each
 * call computes on the thread that makes it, with the same bits. CUDA does not survive a fork: in a process
 * that was forked after a call on a device, calls on a device return KRON_UNAVAILABLE.
 * A forked process is known by its number. One that has its parent's number, in a new namespace of
 * processes, is not known, and neither is one that was forked by a thread of the pool: it may not call.
 *
 * Many adapters: calls over segments take rows of many adapters by a table of their numbers, and calls over
 * a group several adapters on one X. Calls over segments compute on the host; those over a pool are the same on
 * a device, of many adapters of one shape.
 *
 * Memory: a call writes y, t and workspace; dx, grad and workspace; or w and workspace. Each of these must
 * overlap no other buffer of the call, and the call returns KRON_INVALID if one does. There is no call in
 * place: y is not x, dx is not dy. Buffers that are only read may overlap or be the same. The gaps between
 * rows are not part of a matrix, so x and y may be columns of one matrix. The structs are read before
 * anything is written, and so are arrays of structs and of pointers; a table is a buffer. */

#ifndef KRON_H
#define KRON_H

#include <stddef.h>
#include <stdint.h>

// Number of this interface. A program runs with every library whose kron_abi() returns the number that
// the program was compiled with. It changes with each change to a struct, constant or function of this
// header; an addition leaves it.
#define KRON_ABI 1

// Activations in IEEE 754 binary32.
#define KRON_F32 0

// Activations in IEEE 754 binary16.
#define KRON_F16 1

// Activations in bfloat16.
#define KRON_BF16 2

// The device number of the kernels' emulation on host memory, for tests: no release build has it.
#define KRON_EMULATED -1

// Success.
#define KRON_OK 0

// An argument does not fit; nothing was written.
#define KRON_INVALID 1

// No driver, no such device, or a build without it.
#define KRON_UNAVAILABLE 2

// The device refused or failed.
#define KRON_DEVICE_FAILED 3

// A defect of this library; the outputs are not to be used.
#define KRON_PANICKED 4

// Task of a call on the host: computes part `i`.
typedef void (*KronTask)(void *data, size_t i);

// Runs task(data, i) once for each i below count, on any threads, and returns when all have returned. An i that it
// leaves out is computed by the calling thread.
typedef void (*KronRunner)(size_t count, KronTask task, void *data);

// Key of a dropout mask: the same key gives the same mask in forward and backward.
typedef struct KronKey {
  // The run's seed.
  uint64_t seed;
  // Distinguishes layers and steps under one seed.
  uint64_t offset;
} KronKey;

// The device of a call; a null pointer is the host.
typedef struct KronDevice {
  // The CUDA device's number.
  int32_t device;
  // A CUstream or cudaStream_t of that device's primary context; null is the default stream.
  void *stream;
} KronDevice;

// The adapter: dW = s·A ⊗ (B·C).
typedef struct KronOp {
  // Output width of the layer.
  size_t d_out;
  // Input width of the layer.
  size_t d_in;
  // Rows of A; 0, and a_in 0, is LoRA, whose A is the number 1 and not in theta.
  size_t a_out;
  // Columns of A.
  size_t a_in;
  // Rank of B·C; 0 is one full matrix in their place.
  size_t rank;
  // s, alpha / rank.
  float scale;
  // Probability of dropping an element of X in a call with a key.
  float dropout;
} KronOp;

// Lengths in float32 elements, which suffice for every dtype and for fewer rows.
typedef struct KronSizes {
  // theta and its gradient: [A | B | C].
  size_t theta;
  // T.
  size_t t;
  // Workspace of kron_forward.
  size_t forward;
  // Workspace of kron_backward.
  size_t backward;
  // Workspace of kron_merge, for every band of W's rows.
  size_t merge;
} KronSizes;

// Arguments of kron_forward.
typedef struct KronForward {
  // Type of X and Y: KRON_F32, KRON_F16 or KRON_BF16.
  uint32_t dtype;
  // 0 overwrites Y, 1 adds to it.
  uint32_t accumulate;
  // Rows of X and Y.
  size_t rows;
  // X, rows x d_in.
  const void *x;
  // Elements from one row of X to the next.
  size_t x_stride;
  // Y, rows x d_out.
  void *y;
  // Elements from one row of Y to the next.
  size_t y_stride;
  // [A | B | C].
  const float *theta;
  // T, written; keep it for kron_backward.
  float *t;
  // Scratch.
  float *workspace;
  // Elements of scratch.
  size_t workspace_len;
  // Dropout's key; null in evaluation.
  const struct KronKey *key;
} KronForward;

// Arguments of kron_backward.
typedef struct KronBackward {
  // Type of X, dY and dX.
  uint32_t dtype;
  // 0 overwrites dX, 1 adds to it.
  uint32_t accumulate;
  // Rows of X, dY and dX.
  size_t rows;
  // X of the forward call, rows x d_in.
  const void *x;
  // Elements from one row of X to the next.
  size_t x_stride;
  // dY, rows x d_out.
  const void *dy;
  // Elements from one row of dY to the next.
  size_t dy_stride;
  // dX, rows x d_in; null skips it.
  void *dx;
  // Elements from one row of dX to the next.
  size_t dx_stride;
  // theta of the forward call.
  const float *theta;
  // T of the forward call.
  const float *t;
  // Gradient of theta, always added to.
  float *grad;
  // Scratch.
  float *workspace;
  // Elements of scratch.
  size_t workspace_len;
  // The key of the forward call.
  const struct KronKey *key;
} KronBackward;

// Arguments of kron_merge.
typedef struct KronMerge {
  // Type of W.
  uint32_t dtype;
  // 0 overwrites the rows with dW's, 1 adds dW's to them.
  uint32_t accumulate;
  // Rows in this call.
  size_t rows;
  // The row of the layer's weight that `w` starts with.
  size_t first_row;
  // W's rows, rows x d_in.
  void *w;
  // Elements from one row of W to the next.
  size_t w_stride;
  // [A | B | C].
  const float *theta;
  // Scratch.
  float *workspace;
  // Elements of scratch.
  size_t workspace_len;
} KronMerge;

// An adapter of a call over segments.
typedef struct KronAdapter {
  // Shape, scale and dropout; d_out and d_in are those of all adapters of the call, the rest may differ.
  struct KronOp op;
  // [A | B | C].
  const float *theta;
} KronAdapter;

// Lengths in float32 elements of a call over segments or over a group, which suffice for every dtype and for fewer
// rows.
typedef struct KronManySizes {
  // T.
  size_t t;
  // Workspace of the forward call.
  size_t forward;
  // Workspace of the backward call.
  size_t backward;
} KronManySizes;

// Arguments of kron_forward_segments.
typedef struct KronForwardSegments {
  // Type of X and Y: KRON_F32, KRON_F16 or KRON_BF16.
  uint32_t dtype;
  // 0 overwrites the rows of Y that have an adapter, 1 adds to them.
  uint32_t accumulate;
  // Rows of X and Y, and elements of the table.
  size_t rows;
  // X, rows x d_in.
  const void *x;
  // Elements from one row of X to the next.
  size_t x_stride;
  // Y, rows x d_out; a row without an adapter keeps its bits.
  void *y;
  // Elements from one row of Y to the next.
  size_t y_stride;
  // Number of each row's adapter, in any order; -1 for a row without one.
  const int32_t *table;
  // T, written; keep it for kron_backward_segments.
  float *t;
  // Scratch.
  float *workspace;
  // Elements of scratch.
  size_t workspace_len;
  // Dropout's key, of a mask in which a row has its number in X; null in evaluation.
  const struct KronKey *key;
} KronForwardSegments;

// Arguments of kron_backward_segments.
typedef struct KronBackwardSegments {
  // Type of X, dY and dX.
  uint32_t dtype;
  // 0 overwrites the rows of dX that have an adapter, 1 adds to them.
  uint32_t accumulate;
  // Rows of X, dY and dX, and elements of the table.
  size_t rows;
  // X of the forward call, rows x d_in.
  const void *x;
  // Elements from one row of X to the next.
  size_t x_stride;
  // dY, rows x d_out; a row without an adapter is not read.
  const void *dy;
  // Elements from one row of dY to the next.
  size_t dy_stride;
  // dX, rows x d_in; a row without an adapter keeps its bits. Null skips it.
  void *dx;
  // Elements from one row of dX to the next.
  size_t dx_stride;
  // Table of the forward call.
  const int32_t *table;
  // T of the forward call.
  const float *t;
  // Gradient of each adapter's theta, always added to; null for an adapter without a row is allowed.
  float *const *grads;
  // Scratch.
  float *workspace;
  // Elements of scratch.
  size_t workspace_len;
  // The key of the forward call.
  const struct KronKey *key;
} KronBackwardSegments;

// An adapter of a call over a group.
typedef struct KronTerm {
  // Shape, scale and dropout; d_in is that of all terms, and d_out that of all terms of one output.
  struct KronOp op;
  // [A | B | C].
  const float *theta;
  // Number of the Y that it adds to.
  size_t output;
  // Dropout's key; null in evaluation.
  const struct KronKey *key;
} KronTerm;

// One Y of kron_forward_group.
typedef struct KronGroupY {
  // Y, rows x the output's d_out.
  void *y;
  // Elements from one row of Y to the next.
  size_t y_stride;
  // 0 overwrites Y, 1 adds to it.
  uint32_t accumulate;
} KronGroupY;

// Arguments of kron_forward_group.
typedef struct KronForwardGroup {
  // Type of X and of each Y.
  uint32_t dtype;
  // Rows of X and of each Y.
  size_t rows;
  // X, rows x d_in.
  const void *x;
  // Elements from one row of X to the next.
  size_t x_stride;
  // Y of each output, in the order of their numbers.
  const struct KronGroupY *ys;
  // Number of outputs, one more than the largest of a term.
  size_t outputs;
  // T, written; keep it for kron_backward_group.
  float *t;
  // Scratch.
  float *workspace;
  // Elements of scratch.
  size_t workspace_len;
} KronForwardGroup;

// One dY of kron_backward_group.
typedef struct KronGroupDy {
  // dY, rows x the output's d_out.
  const void *dy;
  // Elements from one row of dY to the next.
  size_t dy_stride;
} KronGroupDy;

// Arguments of kron_backward_group.
typedef struct KronBackwardGroup {
  // Type of X, of each dY and of dX.
  uint32_t dtype;
  // 0 overwrites dX, 1 adds to it.
  uint32_t accumulate;
  // Rows of X, of each dY and of dX.
  size_t rows;
  // X of the forward call, rows x d_in.
  const void *x;
  // Elements from one row of X to the next.
  size_t x_stride;
  // dY of each output, in the order of their numbers.
  const struct KronGroupDy *dys;
  // Number of outputs.
  size_t outputs;
  // dX, rows x d_in, which gets the sum over all terms; null skips it.
  void *dx;
  // Elements from one row of dX to the next.
  size_t dx_stride;
  // T of the forward call.
  const float *t;
  // Gradient of each term's theta, always added to.
  float *const *grads;
  // Scratch.
  float *workspace;
  // Elements of scratch.
  size_t workspace_len;
} KronBackwardGroup;

// Adapters of one shape in a device's memory; adapters of other shapes or ranks are another pool.
typedef struct KronPool {
  // Shape and dropout of all adapters, and their scale where scales is null.
  struct KronOp op;
  // [A | B | C] of each slot, on the device.
  const float *theta;
  // Number of adapters, 1 to 2^30.
  size_t slots;
  // Elements from one slot's theta, or gradient, to the next.
  size_t stride;
  // Scale of each slot, on the device; null for the op's.
  const float *scales;
} KronPool;

// Arguments of kron_forward_pool.
typedef struct KronForwardPool {
  // Type of X and Y: KRON_F32, KRON_F16 or KRON_BF16.
  uint32_t dtype;
  // 0 overwrites the rows of Y that have a slot, 1 adds to them.
  uint32_t accumulate;
  // Rows of X and Y, and elements of the table.
  size_t rows;
  // X, rows x d_in.
  const void *x;
  // Elements from one row of X to the next.
  size_t x_stride;
  // Y, rows x d_out; a row without a slot keeps its bits.
  void *y;
  // Elements from one row of Y to the next.
  size_t y_stride;
  // Slot of each row, in any order, or -1; on the device, read when the kernels run.
  const int32_t *table;
  // T, written, in the order of X's rows; keep it for kron_backward_pool.
  float *t;
  // Scratch.
  float *workspace;
  // Elements of scratch.
  size_t workspace_len;
  // Two numbers, written if there is a row: the rows whose number is neither -1 nor a slot, which count as -1, and
  // the first of these rows, or 2^32 - 1.
  uint32_t *status;
  // Dropout's key, of a mask in which a row has its number in X; null in evaluation.
  const struct KronKey *key;
} KronForwardPool;

// Arguments of kron_backward_pool.
typedef struct KronBackwardPool {
  // Type of X, dY and dX.
  uint32_t dtype;
  // 0 overwrites the rows of dX that have a slot, 1 adds to them.
  uint32_t accumulate;
  // Rows of X, dY and dX, and elements of the table.
  size_t rows;
  // X of the forward call, rows x d_in.
  const void *x;
  // Elements from one row of X to the next.
  size_t x_stride;
  // dY, rows x d_out; a row without a slot is not read.
  const void *dy;
  // Elements from one row of dY to the next.
  size_t dy_stride;
  // dX, rows x d_in; a row without a slot keeps its bits. Null skips it.
  void *dx;
  // Elements from one row of dX to the next.
  size_t dx_stride;
  // Table of the forward call.
  const int32_t *table;
  // T of the forward call.
  const float *t;
  // Gradient of each slot's theta, as far apart as these, always added to; a slot without a row is not read.
  float *grads;
  // Scratch.
  float *workspace;
  // Elements of scratch.
  size_t workspace_len;
  // As in kron_forward_pool.
  uint32_t *status;
  // The key of the forward call.
  const struct KronKey *key;
} KronBackwardPool;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Returns the library's KRON_ABI, to be compared with the header's.
uint32_t kron_abi(void);

// Returns the error of this thread's last call in one sentence, empty after a
// call that succeeded. The text lives until the thread's next call.
const char *kron_last_error(void);

// Sets the runner of this thread's calls on the host, so that they compute on threads of the caller's, such as
// OpenMP's. Null is the library's own pool, as at the beginning. Results have the same bits on any threads. A forked
// process ignores it.
//
// # Safety
// `runner` is null or does what KronRunner says, for as long as it is set.
void kron_set_runner(KronRunner runner);

// Sets a key in device memory, whose numbers are added to those of the key of each of this thread's calls on a
// device, modulo 2⁶⁴. They are read when the call's kernels run, so that each replay of a captured graph can have
// another mask of dropout: change them between replays, and keep them from a step's forward to its backward. Null
// adds nothing, as at the beginning. A call whose own key is null drops nothing.
//
// # Safety
// `key` is null or points to a KronKey in memory of the device of each call that this thread makes, for as long as
// it is set and as work runs that was queued meanwhile, replays included.
int kron_set_device_key(const struct KronKey *key);

// Writes the number of CUDA devices to *count.
//
// # Safety
// `count` is null or points to an int.
int kron_device_count(int *count);

// Writes the lengths of the buffers of a call over `rows` rows to *sizes. They suffice for every call
// over fewer rows too, and never fall as `rows` grows.
//
// The first call of a process on a CUDA device loads its kernels, which takes a while. This function is such a call:
// after it no call on the device loads anything, allocates device memory or waits, so that calls can be captured
// in a graph.
//
// # Safety
// Each pointer is null or points to its struct.
int kron_sizes(const struct KronDevice *device,
               const struct KronOp *op,
               size_t rows,
               struct KronSizes *sizes);

// Computes T = X·Cᵀ, Y (+)= s·(A·T)·Bᵀ.
//
// # Safety
// Each pointer is null or points to its struct, whose own pointers hold the elements that the struct
// describes.
int kron_forward(const struct KronDevice *device,
                 const struct KronOp *op,
                 const struct KronForward *call);

// Adds to θ's gradient, and computes dX (+)= dT·C where dx is not null.
//
// # Safety
// As kron_forward.
int kron_backward(const struct KronDevice *device,
                  const struct KronOp *op,
                  const struct KronBackward *call);

// W (+)= s·A ⊗ (B·C), for a band of W's rows.
//
// # Safety
// As kron_forward.
int kron_merge(const struct KronDevice *device,
               const struct KronOp *op,
               const struct KronMerge *call);

// Writes the lengths of the buffers of calls over segments of at most `rows` rows to *sizes.
//
// # Safety
// Each pointer is null or points to its struct, `adapters` to `count` of them, whose theta holds the elements that
// the op describes.
int kron_segments_sizes(const struct KronDevice *device,
                        const struct KronAdapter *adapters,
                        size_t count,
                        size_t rows,
                        struct KronManySizes *sizes);

// Computes kron_forward for rows of many adapters in one call: the table has the number in `adapters` of each
// row's adapter, or -1. Each row has the bits of a call over the rows of its adapter alone.
//
// On the host alone: a device returns KRON_UNAVAILABLE. A table with a number that is no adapter's returns
// KRON_INVALID; nothing but the workspace is written then.
//
// # Safety
// As kron_segments_sizes, and the pointers of *call hold the elements that it describes.
int kron_forward_segments(const struct KronDevice *device,
                          const struct KronAdapter *adapters,
                          size_t count,
                          const struct KronForwardSegments *call);

// Adds to the gradient of each adapter that has rows, and computes the rows of dX where dx is not null.
//
// Devices and tables are as in kron_forward_segments.
//
// # Safety
// As kron_forward_segments; call->grads points to `count` pointers, each null or to a gradient of its adapter's
// theta.
int kron_backward_segments(const struct KronDevice *device,
                           const struct KronAdapter *adapters,
                           size_t count,
                           const struct KronBackwardSegments *call);

// Writes the lengths of the buffers of calls over a group with at most `rows` rows to *sizes.
//
// # Safety
// Each pointer is null or points to its struct, `terms` to `count` of them, whose theta holds the elements that the
// op describes and whose key is null or points to a KronKey.
int kron_group_sizes(const struct KronDevice *device,
                     const struct KronTerm *terms,
                     size_t count,
                     size_t rows,
                     struct KronManySizes *sizes);

// Computes kron_forward for 1 to 16 adapters on one X, such as those of q, k and v with a Y each, or the terms of a
// sum with one Y.
//
// On the host X is read once, and each Y of neighbouring terms of one a_out is read and written once. On a device X
// is read once above 64 rows by up to seven terms of one a_in and one mask, where that pays; others are computed one
// after the other.
//
// # Safety
// As kron_group_sizes, and the pointers of *call hold the elements that it describes; call->ys points to
// call->outputs structs, in the memory of the host.
int kron_forward_group(const struct KronDevice *device,
                       const struct KronTerm *terms,
                       size_t count,
                       const struct KronForwardGroup *call);

// Adds to the gradient of each term, and computes dX, the sum over all terms, where dx is not null.
//
// # Safety
// As kron_forward_group; call->dys points to call->outputs structs, and call->grads to `count` pointers to
// gradients, both in the memory of the host.
int kron_backward_group(const struct KronDevice *device,
                        const struct KronTerm *terms,
                        size_t count,
                        const struct KronBackwardGroup *call);

// Writes the lengths of the buffers of calls over at most `rows` rows of a pool to *sizes. They suffice for every
// call over fewer rows too. Loads the device's kernels as kron_sizes does.
//
// # Safety
// Each pointer is null or points to its struct, whose own pointers hold the elements that the struct describes.
int kron_pool_sizes(const struct KronDevice *device,
                    const struct KronPool *pool,
                    size_t rows,
                    struct KronManySizes *sizes);

// Computes kron_forward_segments on a device, for the rows of a pool's adapters. The launches depend on the numbers
// of rows and slots alone, so a captured graph can be replayed with other numbers in the table. Each row has the
// bits of a call over the rows of its adapter alone.
//
// A null device returns KRON_INVALID. The table is read on the device: see status in KronForwardPool.
//
// # Safety
// As kron_pool_sizes.
int kron_forward_pool(const struct KronDevice *device,
                      const struct KronPool *pool,
                      const struct KronForwardPool *call);

// Adds to the gradient of each slot that has rows, and computes the rows of dX where dx is not null.
//
// # Safety
// As kron_pool_sizes.
int kron_backward_pool(const struct KronDevice *device,
                       const struct KronPool *pool,
                       const struct KronBackwardPool *call);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* KRON_H */
