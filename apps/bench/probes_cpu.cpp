#include <cstring>
#include <fstream>
#include <string>

#include "apps/bench/probes.h"
#include "kernels/base/parallel_for.h"
#include "kernels/base/simd.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fm {
namespace {

constexpr std::size_t kLine = 64;
constexpr std::int64_t kPiecesAThread = 8;  // of a probe: evens out cores of different speed
constexpr std::int64_t kCopyPiece = 1 << 18;

#if FM_SANITIZE
constexpr int kChains = 2;
#else
// Two units with a latency of four or five cycles need ten chains to be kept busy.
constexpr int kChains = 10;
#endif

// Of vectors of floats of one width: the probes below are compiled for the widest there is.
template <int kBytes>
struct Vector {
  typedef float type __attribute__((vector_size(kBytes)));
  typedef std::int32_t bits __attribute__((vector_size(kBytes)));
  static constexpr int kLanes = kBytes / static_cast<int>(sizeof(float));
};

template <int kBytes>
__attribute__((always_inline)) inline float multiply_adds(std::int64_t rounds) {
  using V = typename Vector<kBytes>::type;
  V sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = V{} + static_cast<float>(i);
  const V factor = V{} + 0.999f, step = V{} + 0.001f;
  for (std::int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) sums[i] = sums[i] * factor + step;
  }
  float sum = 0;
  for (int i = 0; i < kChains; ++i)
    for (int lane = 0; lane < Vector<kBytes>::kLanes; ++lane) sum += sums[i][lane];
  return sum;
}

constexpr int kExponentials = 1024;  // stay in the first-level cache
constexpr int kInterleaved = 4;      // polynomials at a time: a chain of one would wait for itself

// 2^-x as cheaply as float's precision allows: no check of the range, the nearest integer by adding
// 1.5 * 2^23, Taylor's polynomial of degree 5 on [-1/2, 1/2] (error 3e-6), the exponent by an
// integer addition.
template <int kBytes>
__attribute__((always_inline)) inline float exponentials(std::int64_t rounds) {
  using V = typename Vector<kBytes>::type;
  using Bits = typename Vector<kBytes>::bits;
  constexpr int kVectors = kExponentials / Vector<kBytes>::kLanes;
  const V magic = V{} + 12582912.0f;
  V x[kVectors];
  for (int i = 0; i < kVectors; ++i) x[i] = V{} + 0.5f;
  constexpr float kTerms[] = {9.61812911e-3f, 5.55041087e-2f, 0.240226507f, 0.693147181f, 1.0f};
  for (std::int64_t r = 0; r < rounds; ++r) {
    for (int i = 0; i < kVectors; i += kInterleaved) {
      V shifted[kInterleaved], part[kInterleaved], p[kInterleaved];
#pragma GCC unroll 8
      for (int k = 0; k < kInterleaved; ++k) shifted[k] = magic - x[i + k];
#pragma GCC unroll 8
      for (int k = 0; k < kInterleaved; ++k) part[k] = (magic - shifted[k]) - x[i + k];
#pragma GCC unroll 8
      for (int k = 0; k < kInterleaved; ++k) p[k] = V{} + 1.33335581e-3f;
#pragma GCC unroll 8
      for (const float term : kTerms)
#pragma GCC unroll 8
        for (int k = 0; k < kInterleaved; ++k) p[k] = p[k] * part[k] + term;
#pragma GCC unroll 8
      for (int k = 0; k < kInterleaved; ++k) x[i + k] = (V)((Bits)p[k] + ((Bits)shifted[k] << 23));
    }
  }
  return x[rounds % kVectors][0];
}

struct Unit {
  float (*multiply_adds)(std::int64_t rounds);
  float (*exponentials)(std::int64_t rounds);
  int lanes;
};

float baseline_multiply_adds(std::int64_t rounds) {
  return multiply_adds<16>(rounds);
}
float baseline_exponentials(std::int64_t rounds) {
  return exponentials<16>(rounds);
}
#if defined(__x86_64__) && !FM_SANITIZE
__attribute__((target("avx2,fma"))) float avx2_multiply_adds(std::int64_t rounds) {
  return multiply_adds<32>(rounds);
}
__attribute__((target("avx2,fma"))) float avx2_exponentials(std::int64_t rounds) {
  return exponentials<32>(rounds);
}
__attribute__((target("avx512f"))) float avx512_multiply_adds(std::int64_t rounds) {
  return multiply_adds<64>(rounds);
}
__attribute__((target("avx512f"))) float avx512_exponentials(std::int64_t rounds) {
  return exponentials<64>(rounds);
}
#endif

Unit widest_unit() {
#if defined(__x86_64__) && !FM_SANITIZE
  if (__builtin_cpu_supports("avx512f")) return {avx512_multiply_adds, avx512_exponentials, 16};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return {avx2_multiply_adds, avx2_exponentials, 8};
#endif
  return {baseline_multiply_adds, baseline_exponentials, 4};
}

// probe(rounds) on every thread; returns how often.
double on_every_thread(CpuQueue& queue, std::int64_t rounds, void* sink,
                       float (*probe)(std::int64_t)) {
  const std::int64_t pieces = kPiecesAThread * queue.threads();
  constexpr std::int64_t kFloats = kSinkBytes / sizeof(float);
  parallel_for(queue, pieces, 1, [&](std::int64_t piece, std::int64_t) {
    static_cast<float*>(sink)[piece % kFloats] = probe(rounds);
  });
  return static_cast<double>(rounds) * static_cast<double>(pieces);
}

FM_SIMD void shrink(float* x, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) x[i] *= 0.999f;
}

}  // namespace

void probe_copy(CpuQueue& queue, void* to, const void* from, std::size_t bytes) {
  parallel_for(queue, static_cast<std::int64_t>(bytes), kCopyPiece,
               [&](std::int64_t begin, std::int64_t end) {
                 std::memcpy(static_cast<std::byte*>(to) + begin,
                             static_cast<const std::byte*>(from) + begin,
                             static_cast<std::size_t>(end - begin));
               });
}

void probe_update(CpuQueue& queue, void* memory, std::size_t bytes) {
  parallel_for(queue, static_cast<std::int64_t>(bytes / sizeof(float)), kCopyPiece / 4,
               [&](std::int64_t begin, std::int64_t end) {
                 shrink(static_cast<float*>(memory) + begin, end - begin);
               });
}

double probe_fma(CpuQueue& queue, std::int64_t rounds, void* sink) {
  const Unit unit = widest_unit();
  return 2.0 * kChains * unit.lanes * on_every_thread(queue, rounds, sink, unit.multiply_adds);
}

double probe_exponential(CpuQueue& queue, std::int64_t rounds, void* sink) {
  return kExponentials * on_every_thread(queue, rounds, sink, widest_unit().exponentials);
}

double probed_clock_mhz(CpuQueue&, const void*) {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.starts_with("cpu MHz")) return std::strtod(line.c_str() + line.find(':') + 1, nullptr);
  return 0;
}

void evict(CpuQueue& queue, const void* from, std::size_t bytes) {
  parallel_for(queue, static_cast<std::int64_t>((bytes + kLine - 1) / kLine), 4096,
               [&](std::int64_t begin, std::int64_t end) {
                 const char* memory = static_cast<const char*>(from);
                 for (std::int64_t line = begin; line < end; ++line) {
                   [[maybe_unused]] const char* at =
                       memory + static_cast<std::size_t>(line) * kLine;
#if defined(__x86_64__)
                   _mm_clflush(at);
#elif defined(__aarch64__)
                   asm volatile("dc civac, %0" ::"r"(at) : "memory");
#endif
                 }
               });
}

}  // namespace fm
