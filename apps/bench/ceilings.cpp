#include "apps/bench/ceilings.h"

#include <algorithm>
#include <chrono>

#include "apps/bench/probes.h"
#include "kernels/base/ticks.h"
#include "kernels/matmul/matmul.h"

namespace fm {
namespace {

constexpr std::size_t kKilobyte = 1024, kMegabyte = 1024 * kKilobyte;
constexpr std::size_t kCpuCopies[] = {256,       4 * kKilobyte, 64 * kKilobyte,
                                      kMegabyte, 4 * kMegabyte, 16 * kMegabyte};
constexpr std::size_t kCudaCopies[] = {4 * kKilobyte,  256 * kKilobyte, 2 * kMegabyte,
                                       8 * kMegabyte,  16 * kMegabyte,  32 * kMegabyte,
                                       64 * kMegabyte, 256 * kMegabyte, 512 * kMegabyte};
constexpr int kCopyRuns = 20, kRateRuns = 20;
constexpr double kProbeMs = 1;  // long against the clock's grain and a launch

double milliseconds_of(Queue& queue, const Call& call) {
  return std::visit(
      [&](auto& q) {
        synchronize(q);
        const auto start = std::chrono::steady_clock::now();
        call();
        synchronize(q);
        return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
            .count();
      },
      queue);
}

// Operations a second at the best of a few runs; probe(rounds) enqueues and returns how many.
template <class Probe>
double best_rate(Queue& queue, Probe&& probe) {
  double operations = 0;
  std::int64_t rounds = 16;
  const Call call = [&operations, &rounds, &probe] { operations = probe(rounds); };
  call();
  while (milliseconds_of(queue, call) < kProbeMs) rounds *= 2;
  double best = 0;
  for (int run = 0; run < kRateRuns; ++run)
    best = std::max(best, operations / milliseconds_of(queue, call) * 1e3);
  return best;
}

std::vector<CopyPoint> copy_curve(Queue& queue, CallTimer& time) {
  const bool cuda = !std::holds_alternative<CpuQueue>(queue);
  std::vector<std::size_t> sizes(std::begin(kCpuCopies), std::end(kCpuCopies));
  if (cuda) sizes.assign(std::begin(kCudaCopies), std::end(kCudaCopies));
  std::vector<CopyPoint> curve;
  for (const std::size_t bytes : sizes) {
    std::deque<Buffer> buffers;
    for (int i = 0; i < 2; ++i) buffers.emplace_back(queue, bytes).zero();
    void* const to = buffers[0].data();
    const void* const from = buffers[1].data();
    double best = 0;
    const auto consider = [&](const Call& call) {
      const double seconds = time(call, buffers).fastest_ms * 1e-3;
      best = best > 0 ? std::min(best, seconds) : seconds;
    };
    consider([&queue, to, from, bytes] {
      std::visit([&](auto& q) { probe_copy(q, to, from, bytes); }, queue);
    });
    consider([&queue, to, from, bytes] {
      std::visit([&](auto& q) { copy(q, to, from, bytes); }, queue);
    });
    if (auto* cpu = std::get_if<CpuQueue>(&queue))
      consider([cpu, to, bytes] { probe_update(*cpu, to, bytes); });
    curve.push_back({2.0 * static_cast<double>(bytes), best});
  }
  return curve;
}

double matrix_rate(Queue& queue, DType compute) {
  BenchArrays arrays(queue, compute, compute);
  const bool cuda = !std::holds_alternative<CpuQueue>(queue);
  const LinearShape shape = cuda ? LinearShape{4096, 4096, 4096} : LinearShape{512, 512, 512};
  const Call multiply = arrays.typed([&]<class T>(auto& q) {
    const LinearForward<T, T> p{
        shape, arrays.input<T>(shape.rows * shape.in),
        arrays.input<T>(std::int64_t{shape.out} * shape.in, {.deviation = 0.02}), nullptr,
        arrays.scratch<T>(shape.rows * shape.out)};
    return [&q, p] { linear_forward(q, p); };
  });
  return best_rate(queue, [&](std::int64_t rounds) {
    for (std::int64_t i = 0; i < rounds; ++i) multiply();
    return static_cast<double>(rounds) * 2 * static_cast<double>(shape.rows) * shape.in * shape.out;
  });
}

}  // namespace

double Ceilings::copy_seconds(double bytes) const {
  if (bytes <= copy.front().bytes) return copy.front().seconds;
  for (std::size_t i = 1; i < copy.size(); ++i) {
    if (bytes > copy[i].bytes) continue;
    const CopyPoint &a = copy[i - 1], &b = copy[i];
    return a.seconds + (b.seconds - a.seconds) * (bytes - a.bytes) / (b.bytes - a.bytes);
  }
  return bytes / copy_rate();
}

Ceilings measure_ceilings(Queue& queue, DType compute) {
  Ceilings c;
  c.shared_units = std::holds_alternative<CpuQueue>(queue);
  CallTimer time(queue, kCopyRuns, 100);
  c.copy = copy_curve(queue, time);
  const Buffer sink(queue, kSinkBytes);
  std::visit(
      [&](auto& q) {
        c.flops = best_rate(queue,
                            [&](std::int64_t rounds) { return probe_fma(q, rounds, sink.data()); });
        c.specials = best_rate(
            queue, [&](std::int64_t rounds) { return probe_exponential(q, rounds, sink.data()); });
      },
      queue);
  // Where there are no matrix units a product cannot beat the multiply-adds it is made of, but a
  // library may fall short of them.
  c.matrix_flops = std::max(matrix_rate(queue, compute), c.flops);
  return c;
}

double measure_clock_mhz(Queue& queue) {
  constexpr std::int64_t kRounds = 4096;  // milliseconds on a GPU
  const Buffer sink(queue, kSinkBytes);
  return std::visit(
      [&](auto& q) {
        probe_fma(q, kRounds, sink.data());
        return probed_clock_mhz(q, sink.data());
      },
      queue);
}

Json to_json(const Ceilings& c) {
  Json json;
  json["copy_gb_per_s"] = c.copy_rate() * 1e-9;
  json["shortest_copy_us"] = c.copy.front().seconds * 1e6;
  json["fma_tflops"] = c.flops * 1e-12;
  json["ex2_tera_per_s"] = c.specials * 1e-12;
  json["matrix_tflops"] = c.matrix_flops * 1e-12;
  return json;
}

Floor floor_of(const Work& work, const Ceilings& c) {
  const double memory = c.copy_seconds(work.bytes), fma = work.flops / c.flops;
  const double special = work.specials / c.specials, matrix = work.matrix_flops / c.matrix_flops;
  Floor floor{memory, work.bytes / c.copy_rate() < memory / 2 ? "launch" : "memory"};
  const auto at_least = [&floor](double seconds, const char* limit) {
    if (seconds > floor.seconds) floor = {seconds, limit};
  };
  if (c.shared_units) {
    at_least(fma + special + matrix, "arithmetic");
  } else {
    at_least(fma, "fma");
    at_least(special, "ex2");
    at_least(matrix, "matrix");
  }
  return floor;
}

}  // namespace fm
