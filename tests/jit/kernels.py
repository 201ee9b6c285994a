"""Small kernels, and made-up results of compiling them."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from stof_onnx.jit.job import CompiledKernel, CompileJob, Resources

IMPORT_PATH = [*sys.path, str(Path(__file__).parents[2])]
"""Where another process finds what this one has imported: the tests, too, but behind the package
that is tested."""

SCALE = """
extern "C" __global__ void scale(float* data, int count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) data[i] *= FACTOR;
}
"""

# 100 floats of static shared memory; a called function with a stack frame; a second kernel,
# which has no shared memory.
SHARED = """
__device__ __noinline__ float pick(float x, int n) {
  float row[32];
  for (int i = 0; i < 32; ++i) row[i] = x * i;
  return row[n & 31];
}
extern "C" __global__ void shared(float* out, int n) {
  __shared__ float tile[100];
  tile[n % 100] = out[n];
  __syncthreads();
  out[n] = pick(tile[1], n);
}
extern "C" __global__ void plain(float* out, int n) { out[n] = pick(out[0], n); }
"""

# 64 values that live through a loop: they don't fit into 40 registers.
SPILLING = """
extern "C" __global__ void spilling(float* out, const float* in, int n) {
  float row[64];
  for (int i = 0; i < 64; ++i) row[i] = in[i * n + threadIdx.x];
  for (int step = 0; step < n; ++step) {
#pragma unroll
    for (int i = 0; i < 64; ++i) row[i] = row[i] * row[(i * 7 + 3) % 64] + in[step];
  }
#pragma unroll
  for (int i = 0; i < 64; ++i) out[i * n + threadIdx.x] = row[i];
}
"""

MMA = """
extern "C" __global__ void mma(float* c, const unsigned* a) {
  const int t = threadIdx.x;
  float d[4] = {0, 0, 0, 0};
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[t]), "r"(a[t + 32]), "r"(a[t + 64]), "r"(a[t + 96]), "r"(a[t + 128]),
        "r"(a[t + 160]));
  for (int i = 0; i < 4; ++i) c[4 * t + i] = d[i];
}
"""


def scale_job(architecture: str = "sm_80", factor: str = "2.0f") -> CompileJob:
    """A kernel that compiles in some 50 ms; another factor is another kernel."""
    source = f"#define FACTOR {factor}\n{SCALE}"
    return CompileJob(source, "scale", architecture)


def made_up_kernel(name: str = "scale", log: str = "said nothing") -> CompiledKernel:
    """A kernel that nobody compiled, with a key of the right form."""
    key = hashlib.sha256(name.encode()).hexdigest()
    resources = Resources(40, 1024, 0, 8, 16)
    image = bytes(range(256)) * 4
    return CompiledKernel(image, "cubin", name, "sm_80", resources, log, "NVRTC 13.0.1", key)
