#include <optional>

#include "engine/ops/rmsnorm_linear.h"
#include "engine/ops/selective_scan.h"
#include "engine/tape.h"
#include "tests/support/expect.h"
#include "tests/support/files.h"
#include "tests/support/tensors.h"

namespace fm::test {
namespace {

constexpr std::int64_t kBatch = 2, kLength = 19, kChannels = 6, kOut = 5;
constexpr int kRank = 2, kState = 3, kDirections = 2;

// The second half of a mixer, from u, low and z (the last columns of xz) on; and what comes back
// where the gradient of its result is the result itself. The gate is the scan's part, or its
// reader's.
Results half_mixer(DType type, bool gated_late) {
  Context context(CpuQueue(1), type, std::size_t{1} << 20);
  ParamStore params;
  const auto add = [&](const char* name, const Shape& shape) {
    return &params.add(name, shape, init_uniform(0.5));
  };
  const Parameter* dt_proj = add("dt_proj", {kDirections, kChannels / kDirections, kRank});
  const Parameter* dt_bias = add("dt_bias", {kChannels});
  const Parameter* a_log = add("A_log", {kChannels, kState});
  const Parameter* d = add("D", {kChannels});
  const Parameter* norm = add("norm", {kChannels});
  const Parameter* proj = add("proj", {kOut, kChannels});
  params.materialise(context, ParamStore::Use::training);
  params.initialise(1);

  Tape tape(context);
  context.tape = &tape;
  Results results;
  const auto input = [&](const char* name, const Shape& shape, unsigned seed) {
    const Tensor x = tensor_of(context, shape, type, normals(shape.count(), seed));
    tape.record(
        {"input", x, {}, [&, name, x] { results[name] = read(context.queue, tape.gradient(x)); }});
    return x;
  };
  const Tensor xz = input("dxz", {kBatch, kLength, 2 * kChannels}, 1);
  const Tensor u = input("du", {kBatch, kLength, kChannels}, 2);
  const Tensor low = input("dlow", {kBatch * kLength, kDirections, kRank + 2 * kState}, 3);
  const std::optional<Columns> z = Columns(xz, kChannels, kChannels), none;
  const Tensor o = selective_scan(context, {.u = u,
                                            .z = gated_late ? none : z,
                                            .low = low,
                                            .rank = kRank,
                                            .state = kState,
                                            .directions = kDirections,
                                            .dt_proj = dt_proj,
                                            .dt_bias = dt_bias,
                                            .a_log = a_log,
                                            .d = d});
  const Tensor y = rmsnorm_linear(context, o, *norm, *proj, gated_late ? z : none);
  results["y"] = read(context.queue, y);
  tape.record({"loss", {}, {}, [&] {
                 write(context.queue, tape.target(y).gradient, results["y"]);
                 // The columns of xz that are not z belong to nobody here.
                 const Tensor dxz = tape.parts(xz);
                 write(context.queue, dxz, Values(static_cast<std::size_t>(dxz.count())));
               }});
  tape.backward();
  for (const Parameter& p : params.all()) results[p.name] = read(context.queue, p.gradient);
  return results;
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("the gate may be the scan's part, or that of the norm and product that read it") {
    const Results exact = half_mixer(DType::f64, false);
    expect_close(half_mixer(DType::f64, true), exact, 1e-12);
    expect_close(half_mixer(DType::f32, false), exact, 1e-5);
    expect_close(half_mixer(DType::f32, true), exact, 1e-5);
    double squares = 0;  // of z's gradient
    for (const double x : exact.at("dxz")) squares += x * x;
    CHECK(squares > 1e-4);
  }
}

}  // namespace fm::test
