// Kernels for tests/test_roofline.py: one that is as it should be, and others that a gate must refuse.

#define KERNEL extern "C" __global__ void

KERNEL __launch_bounds__(256) wide(const float4* x, float4* y, float factor, int n) {
#pragma unroll 1
  for (int i = blockIdx.x * 256 + threadIdx.x; i < n; i += gridDim.x * 256) {
    const float4 v = x[i];
    y[i] = make_float4(v.x * factor, v.y * factor, v.z * factor, v.w * factor);
  }
}

KERNEL __launch_bounds__(256) narrow(const float* x, float* y, float factor, int n) {
#pragma unroll 1
  for (int i = blockIdx.x * 256 + threadIdx.x; i < n; i += gridDim.x * 256) y[i] = x[i] * factor;
}

// 48 values are alive at a time, in at most 32 registers.
KERNEL __launch_bounds__(1024, 2) spilling(const float* x, float* y, int n) {
  float v[48];
#pragma unroll
  for (int k = 0; k < 48; ++k) v[k] = x[k * n + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int k = 0; k < 48; ++k) y[k * n + threadIdx.x] = v[k] * v[(k * 7 + 5) % 48] + v[(k * 11 + 3) % 48];
}

// Far more arithmetic than its bytes are worth.
KERNEL __launch_bounds__(256) busy(const float4* x, float4* y, int n) {
#pragma unroll 1
  for (int i = blockIdx.x * 256 + threadIdx.x; i < n; i += gridDim.x * 256) {
    float4 v = x[i];
    unsigned h = __float_as_uint(v.x);
#pragma unroll
    for (int k = 0; k < 40; ++k) h = (h ^ h >> 15) + (h << 7 | h >> 22) * (k | 1);
    v.x = __uint_as_float(h);
    y[i] = v;
  }
}

// A division, whose slow path is not counted, and a loop inside of the loop.
KERNEL __launch_bounds__(256) divided(const float4* x, float4* y, int n, int turns) {
#pragma unroll 1
  for (int i = blockIdx.x * 256 + threadIdx.x; i < n; i += gridDim.x * 256) {
    float4 v = x[i];
#pragma unroll 1
    for (int k = 0; k < turns; ++k) v.x = v.x / v.y + v.z;
    y[i] = v;
  }
}
