// All kernels, as one translation unit for nvcc: one fatbin.  The host build
// compiles the files one by one.
#include "forward.cu"
#include "forward_mma.cu"
#include "backward.cu"
#include "backward_dy_mma.cu"
#include "backward_dx_mma.cu"
#include "merge.cu"
#include "primitives.cu"
