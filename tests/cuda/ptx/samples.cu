// Kernels that show the executor of this folder one thing each, and kernels with faults that it must find.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cassert>
#include <cstdint>

#define KERNEL extern "C" __global__ void

constexpr unsigned kAll = 0xFFFFFFFFu;

__device__ __forceinline__ int thread_number() { return blockIdx.x * blockDim.x + threadIdx.x; }

// A struct by value: 64 bytes with an array that is indexed at run time.
struct Affine {
  const float* x;
  float* y;
  long long n;
  float scale, shift;
  int order[8];
};

KERNEL affine(Affine p) {
  for (long long i = thread_number(); i < p.n; i += (long long)gridDim.x * blockDim.x)
    p.y[i] = p.x[i] * p.scale + p.shift + p.order[i & 7];
}

KERNEL grid_of_three_dimensions(unsigned* out) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] =
      blockIdx.x | blockIdx.y << 4 | blockIdx.z << 8 | threadIdx.x << 12 | threadIdx.y << 16 | threadIdx.z << 20;
}

// Tables: in constant memory, in global memory, and of bytes.
__constant__ float kLevels[16] = {-2.733f, -2.069f, -1.618f, -1.256f, -.942f, -.657f, -.388f, -.128f,
                                  .128f,   .388f,   .657f,   .942f,   1.256f, 1.618f, 2.069f, 2.733f};
__device__ const unsigned kPowers[8] = {1, 10, 100, 1000, 10000, 100000, 1000000, 10000000};
__device__ const uint8_t kBytes[12] = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 9};
__device__ unsigned calls;

KERNEL tables(const uint8_t* codes, float* y, unsigned* z, int n) {
  const int i = thread_number();
  if (i < n) {
    y[i] = kLevels[codes[i] & 15];
    z[i] = kPowers[codes[i] >> 5] + kBytes[codes[i] % 12];
    atomicAdd(&calls, 1u);
  }
}

KERNEL read_calls(unsigned* out) { *out = calls; }

// Registers that the compiler must keep in local memory, and calls that it must not expand.
__device__ __noinline__ unsigned mix(unsigned a, unsigned b) { return a * 2654435761u ^ (b >> 3); }

struct Pair {
  unsigned a;
  unsigned long long b;
};

__device__ __noinline__ Pair twice(Pair p, unsigned add) {
  if (add & 1) return {p.a + add, p.b};
  return {mix(p.a, add), p.b * 2};
}

KERNEL local_array(const unsigned* x, unsigned* y, int n) {
  const int i = thread_number();
  if (i >= n) return;
  unsigned held[16];
#pragma unroll 1
  for (int k = 0; k < 16; ++k) held[(k * 5) & 15] = x[i] + k;
#pragma unroll 1
  for (int k = 0; k < 16; ++k) held[x[i] + k & 15] ^= held[(k + 3) & 15];
  unsigned sum = 0;
#pragma unroll 1
  for (int k = 0; k < 16; ++k) sum = mix(sum, held[(x[i] >> 4) + k & 15]);
  const Pair p = twice({sum, x[i]}, x[i]);
  y[i] = p.a + (unsigned)p.b;
}

KERNEL collatz(const unsigned* x, unsigned* steps, int n) {
  const int i = thread_number();
  if (i >= n) return;
  unsigned v = x[i], count = 0;
  while (v != 1) {
    v = v & 1 ? 3 * v + 1 : v >> 1;
    ++count;
  }
  steps[i] = count;
}

KERNEL jump_table(const unsigned* x, unsigned* y, int n) {
  const int i = thread_number();
  if (i >= n) return;
  unsigned v = x[i];
  switch (v % 9) {
    case 0:
      v = v * 3 + 1;
      break;
    case 1:
      v = __brev(v);
      break;
    case 2:
      v = v / 7;
      break;
    case 3:
      v ^= 0x5A5A;
      break;
    case 4:
      v = __popc(v);
      break;
    case 5:
      v = v << 3 | v >> 29;
      break;
    case 6:
      v = ~v;
      break;
    case 7:
      v = v % 1000;
      break;
    default:
      v -= 17;
      break;
  }
  y[i] = v;
}

KERNEL histogram(const uint8_t* x, unsigned* counts, int n) {
  __shared__ unsigned held[256];
  for (int k = threadIdx.x; k < 256; k += blockDim.x) held[k] = 0;
  __syncthreads();
  for (int i = thread_number(); i < n; i += gridDim.x * blockDim.x) atomicAdd(&held[x[i]], 1u);
  __syncthreads();
  for (int k = threadIdx.x; k < 256; k += blockDim.x)
    if (held[k]) atomicAdd(&counts[k], held[k]);
}

// out: max, min, or, and, xor, exchanged, counter with wrap, compare-and-swap; sum as float
KERNEL atomics(const int* x, int* out, float* sum, unsigned* order, int n) {
  const int i = thread_number();
  if (i >= n) return;
  atomicMax(&out[0], x[i]);
  atomicMin(&out[1], x[i]);
  atomicOr(&out[2], x[i]);
  atomicAnd(&out[3], x[i]);
  atomicXor(&out[4], x[i]);
  atomicExch(&out[5], x[i]);
  order[i] = atomicInc(reinterpret_cast<unsigned*>(&out[6]), 99u);
  atomicCAS(&out[7], -1, x[i]);
  atomicAdd(sum, (float)(x[i] & 15));
}

KERNEL warp(const unsigned* x, unsigned* out, int n) {  // n: a multiple of the block
  const int i = thread_number(), lane = threadIdx.x & 31;
  const unsigned v = x[i];
  int k = 0;
  auto put = [&](unsigned value) { out[n * k++ + i] = value; };
  put(__shfl_xor_sync(kAll, v, 5));
  put(__shfl_up_sync(kAll, v, 3));
  put(__shfl_down_sync(kAll, v, 7, 16));
  put(__shfl_sync(kAll, v, v & 31));
  put(__ballot_sync(kAll, v & 4));
  put(__any_sync(kAll, v == x[0]) | __all_sync(kAll, v < 200) << 1);
  put(__reduce_max_sync(kAll, v));
  put(__reduce_add_sync(kAll, v));
  put(__reduce_xor_sync(kAll, v));
  put(__match_any_sync(kAll, v & 3));
  if (lane < 20) {
    const unsigned half = __ballot_sync(0xFFFFF, v & 1);
    put(half + __shfl_sync(0xFFFFF, v, 19));
  }
}

KERNEL block_sum(const float* x, float* sums, int* counts, int n) {
  extern __shared__ float held[];
  const int i = thread_number(), t = threadIdx.x;
  held[t] = i < n ? x[i] : 0.0f;
  __syncthreads();
  for (int half = blockDim.x / 2; half; half >>= 1) {
    if (t < half) held[t] += held[t + half];
    __syncthreads();
  }
  if (t == 0) sums[blockIdx.x] = held[0];
  const int positive = __syncthreads_count(i < n && x[i] > 0);
  const int any = __syncthreads_or(i < n && x[i] > 3), all = __syncthreads_and(i < n);
  if (t == 0) counts[blockIdx.x] = positive * 4 + any * 2 + all;
}

// Every block waits for the one before it: decoupled look-back in its simplest form.
KERNEL chain(const unsigned* x, unsigned* running, unsigned* flag) {
  __shared__ unsigned before;
  if (threadIdx.x == 0) {
    const int b = blockIdx.x;
    volatile unsigned* seen = flag;
    if (b)
      while (seen[b - 1] == 0) {
      }
    before = b ? running[b - 1] : 0;
    running[b] = before + x[b];
    __threadfence();
    seen[b] = 1;
  }
  __syncthreads();
}

// out has one row of n for each result, in the order of the test's list
KERNEL integers(const unsigned* a, const unsigned* b, const unsigned* c, unsigned* out, int n) {
  const int i = thread_number();
  if (i >= n) return;
  const unsigned x = a[i], y = b[i], z = c[i];
  const int s = (int)x, t = (int)y;
  const unsigned long long w = (unsigned long long)x << 32 | y, v = (unsigned long long)z << 32 | x;
  int k = 0;
  auto put = [&](unsigned value) { out[n * k++ + i] = value; };
  auto wide = [&](unsigned long long value) {
    put((unsigned)value);
    put((unsigned)(value >> 32));
  };
  unsigned r, q;
  wide((unsigned long long)x * y);
  wide((long long)s * t + (long long)v);
  put(__umulhi(x, y));
  put(__mulhi(s, t));
  wide(__umul64hi(w, v));
  wide(__mul64hi((long long)w, (long long)v));
  wide(w * v + w);
  wide(w << (z & 63));
  wide(w >> (z & 63));
  wide((unsigned long long)((long long)w >> (z & 63)));
  put(x << (z & 31) | s >> (z & 31));
  asm("shl.b32 %0, %1, %2;" : "=r"(r) : "r"(x), "r"(z & 63));
  put(r);
  asm("shr.s32 %0, %1, %2;" : "=r"(r) : "r"(x), "r"(z & 63));
  put(r);
  put(__funnelshift_l(x, y, z));
  put(__funnelshift_r(x, y, z));
  put(__funnelshift_lc(x, y, z & 63));
  put(__funnelshift_rc(x, y, z & 63));
  asm("lop3.b32 %0, %1, %2, %3, 0x1B;" : "=r"(r) : "r"(x), "r"(y), "r"(z));
  put(r);
  put(__byte_perm(x, y, 0x6240));
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(x), "r"(y), "r"(z));
  put(r);
  asm("bfe.u32 %0, %1, %2, %3;" : "=r"(r) : "r"(x), "r"(z & 31), "r"(y & 31));
  put(r);
  asm("bfe.s32 %0, %1, %2, %3;" : "=r"(r) : "r"(x), "r"(z & 31), "r"(y & 31));
  put(r);
  asm("bfi.b32 %0, %1, %2, %3, %4;" : "=r"(r) : "r"(x), "r"(y), "r"(z & 31), "r"(z >> 8 & 31));
  put(r);
  asm("bfind.u32 %0, %1;" : "=r"(r) : "r"(x));
  put(r);
  asm("bfind.s32 %0, %1;" : "=r"(r) : "r"(x));
  put(r);
  put(__clz(s) * 64 + __clzll((long long)v));
  put(__popc(x) * 128 + __popcll(w));
  put(__brev(x));
  put(__ffs(s));
  put(min(s, t) ^ max(s, t));
  put(min(x, y) ^ max(x, y));
  put(abs(s) + (s < t ? -s : t));
  put(y ? x / y + x % y : 0);
  put(t ? s / t - s % t : 0);
  put((unsigned)(uint8_t)x + (unsigned)(int8_t)y + (unsigned)(int16_t)z);
  asm("{.reg .pred p, q; setp.lt.s32 p, %1, 0; setp.gt.and.u32 q, %2, %3, p; selp.u32 %0, 1, 2, q;}"
      : "=r"(r)
      : "r"(x), "r"(y), "r"(z));
  asm("{.reg .pred p, q; setp.eq.u32 p, %1, %1; setp.le.xor.s32 p|q, %2, %3, !p; selp.u32 %0, 4, 0, p;"
      " @q add.u32 %0, %0, 8;}"
      : "=r"(q)
      : "r"(x), "r"(y), "r"(z));
  put(r + q);
  asm("set.ge.u32.s32 %0, %1, %2;" : "=r"(r) : "r"(x), "r"(y));
  put(r);
  asm("add.cc.u32 %0, %2, %3; addc.u32 %1, %3, %4;" : "=&r"(r), "=r"(q) : "r"(x), "r"(y), "r"(z));
  put(r ^ q);
  asm("sub.cc.u32 %0, %2, %3; subc.u32 %1, %4, %2;" : "=&r"(r), "=&r"(q) : "r"(x), "r"(y), "r"(z));
  put(r ^ q);
  asm("sub.cc.u32 %0, %2, %3; addc.u32 %1, %4, %2;" : "=&r"(r), "=&r"(q) : "r"(x), "r"(y), "r"(z));
  put(r ^ q);
  asm("add.cc.u32 %0, %2, %3; subc.u32 %1, %4, %2;" : "=&r"(r), "=&r"(q) : "r"(x), "r"(y), "r"(z));
  put(r ^ q);
  const unsigned __int128 dividend = static_cast<unsigned __int128>(w) << 63 | v;
  wide(y ? static_cast<uint64_t>(dividend / (v | 1)) : 0);
  wide(y ? static_cast<uint64_t>(dividend % (w | 1)) : 0);
  put(__dp4a(x, y, z));
  asm("cvt.sat.u8.s32 %0, %1;" : "=r"(r) : "r"(s >> 20));
  put(r);
}

KERNEL floats(const float* a, const float* b, const float* c, const unsigned* bits, unsigned* out, int n) {
  const int i = thread_number();
  if (i >= n) return;
  const float x = a[i], y = b[i], z = c[i];
  const unsigned u = bits[i];
  int k = 0;
  auto put = [&](unsigned value) { out[n * k++ + i] = value; };
  auto real = [&](float value) { put(__float_as_uint(value)); };
  float r;
  real(x + y);
  real(x - y);
  real(x * y);
  real(__fmaf_rn(x, y, z));
  real(__fdiv_rn(x, y));
  real(__fsqrt_rn(fabsf(x)));
  real(__frcp_rn(y));
  real(-x);
  real(fminf(x, y));
  real(fmaxf(x, y));
  put(__float2int_rn(x));
  put(__float2int_rz(x));
  put(__float2int_rd(x));
  put(__float2int_ru(x));
  put(__float2uint_rn(x));
  put(__float2uint_rz(x));
  put((unsigned)__float2ll_rn(x));
  real(rintf(x));
  real(floorf(x));
  real(__int2float_rn((int)u));
  real(__int2float_rz((int)u));
  real(__uint2float_rn(u));
  real(__uint2float_rz(u));
  real(__ull2float_rn((unsigned long long)u << 20 | u));
  put(__half_as_ushort(__float2half_rn(x)));
  put(__bfloat16_as_ushort(__float2bfloat16_rn(x)));
  real(__half2float(__ushort_as_half((unsigned short)u)));
  real(__bfloat162float(__ushort_as_bfloat16((unsigned short)u)));
  const __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
  put(*reinterpret_cast<const unsigned*>(&pair));
  put((x < y) | (x <= y) << 1 | (x == y) << 2 | (x != y) << 3 | !(x < y) << 4 | isnan(x) << 5);
  asm("cvt.sat.f32.f32 %0, %1;" : "=f"(r) : "f"(x));
  real(r);
  asm("mul.ftz.f32 %0, %1, %2;" : "=f"(r) : "f"(x), "f"(y));
  real(r);
}

// Arithmetic on pairs of 16-bit numbers, and on doubles.
KERNEL halves(const unsigned* a, const unsigned* b, const unsigned* c, unsigned* out, double* sums, int n) {
  const int i = thread_number();
  if (i >= n) return;
  int k = 0;
  auto put = [&](auto value) { out[n * k++ + i] = *reinterpret_cast<const unsigned*>(&value); };
  const auto x = reinterpret_cast<const __half2*>(a)[i], y = reinterpret_cast<const __half2*>(b)[i];
  const auto z = reinterpret_cast<const __half2*>(c)[i];
  const auto p = reinterpret_cast<const __nv_bfloat162*>(a)[i], q = reinterpret_cast<const __nv_bfloat162*>(b)[i];
  const auto r = reinterpret_cast<const __nv_bfloat162*>(c)[i];
  put(__hadd2(x, y));
  put(__hmul2(x, y));
  put(__hfma2(x, y, z));
  put(__hadd2(p, q));
  put(__hmul2(p, q));
  put(__hfma2(p, q, r));
  const double s = (double)a[i], t = (double)(int)b[i];
  sums[i] = (s + t) * t - s / 3;
}

// Vectors of every width, with hints; copies n bytes, a multiple of 16, and a tail.
KERNEL copy(const unsigned char* x, unsigned char* y, int n) {
  const int i = thread_number();
  const uint4* in = reinterpret_cast<const uint4*>(x);
  uint4* out = reinterpret_cast<uint4*>(y);
  if (i < n / 16) {
    if (i % 3 == 0) {
      __stcs(out + i, __ldcs(in + i));
    } else if (i % 3 == 1) {
      uint4 v;
      asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                   : "l"(in + i));
      __stcg(out + i, v);
    } else {
      reinterpret_cast<uint2*>(out + i)[0] = __ldg(reinterpret_cast<const uint2*>(in + i));
      reinterpret_cast<unsigned short*>(out + i)[4] = reinterpret_cast<const unsigned short*>(in + i)[4];
      reinterpret_cast<unsigned short*>(out + i)[5] = reinterpret_cast<const unsigned short*>(in + i)[5];
      for (int k = 12; k < 16; ++k) reinterpret_cast<unsigned char*>(out + i)[k] = x[16 * i + k];
    }
  }
  if (i < n % 16) y[n / 16 * 16 + i] = x[n / 16 * 16 + i];
}

KERNEL bank_conflicts(unsigned* y, int stride) {
  __shared__ unsigned held[32 * 32];
  held[threadIdx.x * stride % 1024] = threadIdx.x;
  __syncwarp();
  y[threadIdx.x] = held[threadIdx.x * stride % 1024];
}

// Faults, one for each value of `which`; 0 has none.
KERNEL faults(float* x, int n, int which) {
  __shared__ float held[64];
  __shared__ float never[64];
  const int t = threadIdx.x, lane = t & 31;
  if (t >= n) return;
  if (which == 1) x[t + 1] = 1;                                // past the end
  if (which == 2) *reinterpret_cast<float2*>(x + 1) = {1, 2};  // misaligned
  if (which == 3) x[t] = never[63 - t];                        // not written
  if (which == 4 || which == 5) {
    held[t] = x[t];
    if (which == 4) __syncwarp();  // of the warp only
    x[t] = held[which == 4 ? t ^ 32 : t ^ 1];
  }
  if (which == 6 && lane < 16) x[t] = __shfl_sync(kAll, x[t], 3);     // half of the mask never comes
  if (which == 7 && lane < 16) x[t] = __shfl_sync(0xFFFF, x[t], 20);  // from outside the mask
  if (which == 8) x[t] = __shfl_sync(0xFFFF, x[t], 3);                // lanes outside their own mask
  if (which == 9) {                                                   // a barrier after an exit
    if (t == 5) return;
    __syncthreads();
  }
  if (which == 10) {  // different barriers
    if (t < 32)
      asm volatile("bar.sync 0;" ::: "memory");
    else
      asm volatile("{ bar.sync 0; nanosleep.u32 1; }" ::: "memory");
  }
  if (which == 11) {  // waits for what no one does
    volatile float* seen = x;
    while (seen[0] == 0) {
    }
  }
  if (which == 12) {  // never ends
    for (unsigned k = 0;; k += 2)
      if (k == (t | 1)) {
        x[t] = 0;
        break;
      }
  }
  if (which == 13) asm volatile("trap;");
  if (which == 14) assert(n == 0);
  if (which == 15) x[0] = t;  // all to one place
  if (which == 16) {          // read, then written by others
    held[t] = x[t];
    __syncthreads();
    x[t] = held[t ^ 32];
    held[t] = 0;
  }
  if (which == 17) asm volatile("{ .reg .b64 q; mov.b64 q, 0; st.global.u32 [q], 0; }");
  if (which == 18) {  // past shared memory
    float* p = held + 1000 * which;
    *reinterpret_cast<volatile float*>(p + t) = 1;
  }
  if (which == 19) asm volatile("bar.sync 1, 96;" ::: "memory");                        // too few ever come
  if (which == 20) asm volatile("fence.proxy.async; cp.async.wait_all;" ::: "memory");  // not known here
}
