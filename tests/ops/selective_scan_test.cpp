#include <algorithm>

#include "kernels/base/check.h"
#include "kernels/base/fast_math.h"
#include "kernels/selective_scan/selective_scan_cases.h"
#include "tests/support/cuda.h"

namespace fm::test {
namespace {

// z is the right half of a [B, L, 2 channels] matrix, dt_low, b and c columns of a
// [B, L, directions, rank + 2 n] matrix, as the model lays them out.
struct Problem {
  ScanShape shape;
  int rank;
  Values u, dt, z, bc, a_log, d, dt_bias, d_o, dt_weight;
  bool gated = true;
  bool training = true;    // false: neither y nor states, no backward
  bool in_place = false;   // du in the place of d_o, ddt in that of dt
  bool projected = false;  // dt is dt_weight dt_low, and that product the forward pass's own
                           // where it can be

  explicit Problem(const ScanCase& test)
      : shape(test.shape),
        rank(test.rank),
        u(normals(rows() * shape.channels, 1)),
        dt(normals(rows() * shape.channels, 2, 0.5)),
        z(normals(rows() * 2 * shape.channels, 3)),
        bc(normals(rows() * shape.directions * bc_width(), 4)),
        a_log(normals(std::int64_t{1} * shape.channels * shape.state, 5, 0.2)),
        d(normals(shape.channels, 6, 0.5, 1)),
        dt_bias(normals(shape.channels, 7, 1, -4)),  // delta is 0.002 to 0.1, as after init
        d_o(normals(rows() * shape.channels, 8)),
        dt_weight(normals(std::int64_t{1} * shape.channels * rank, 9, 0.2)) {
    for (std::size_t i = 0; i < a_log.size(); ++i)  // A about -1 to -n
      a_log[i] += std::log(1 + static_cast<double>(i % static_cast<std::size_t>(shape.state)));
  }

  std::int64_t rows() const { return std::int64_t{1} * shape.batch * shape.length; }
  int bc_width() const { return rank + 2 * shape.state; }

  Problem without_gate() const {
    Problem p = *this;
    p.gated = false;
    return p;
  }

  Problem with_chunks(int chunks) const {
    Problem p = *this;
    p.shape.chunks = chunks;
    return p;
  }

  Problem with_projection() const {
    Problem p = *this;
    p.projected = true;
    const int half = shape.channels / shape.directions;
    for (std::int64_t row = 0; row < rows(); ++row)
      for (int c = 0; c < shape.channels; ++c) {
        double& product = p.dt[static_cast<std::size_t>(row * shape.channels + c)] = 0;
        for (int r = 0; r < rank; ++r) {
          const std::int64_t low = (row * shape.directions + c / half) * bc_width() + r;
          product +=
              bc[static_cast<std::size_t>(low)] * dt_weight[static_cast<std::size_t>(c * rank + r)];
        }
      }
    return p;
  }

  template <class T>
  Problem rounded() const {
    Problem p = *this;
    for (Values* values : {&p.u, &p.dt, &p.z, &p.bc, &p.d_o, &p.dt_weight})
      *values = round_to<T>(*values);
    for (Values* values : {&p.a_log, &p.d, &p.dt_bias}) *values = round_to<acc_t<T>>(*values);
    return p.projected ? p.with_projection() : p;
  }
};

// Columns [begin, begin + count) of a matrix; the others must still be poison.
Values columns(const Values& matrix, std::int64_t width, std::int64_t begin, std::int64_t count) {
  Values taken;
  bool others_untouched = true;
  for (std::size_t i = 0; i < matrix.size(); ++i) {
    const std::int64_t column = static_cast<std::int64_t>(i) % width;
    if (column >= begin && column < begin + count) taken.push_back(matrix[i]);
    else others_untouched &= std::isnan(matrix[i]);
  }
  CHECK(others_untouched);
  return taken;
}

// Outputs and gradients.
struct Solved {
  Results forward, gradients;
};

template <class T, class Q>
Solved solve(Q& queue, const Problem& p) {
  using A = acc_t<T>;
  const ScanShape& s = p.shape;
  const std::int64_t count = p.rows() * s.channels, per_state = p.rows() * s.directions;
  const int n = s.state, width = p.bc_width();
  Array<T, Q> u(queue, p.u), dt(queue, p.dt), z(queue, p.z), bc(queue, p.bc), o(queue, count);
  Array<A, Q> a_log(queue, p.a_log), d(queue, p.d), dt_bias(queue, p.dt_bias);
  Array<T, Q> dt_weight(queue, p.dt_weight);
  ScanInputs<T> in = {.u = u,
                      .dt = dt,
                      .z = p.gated ? z + s.channels : nullptr,
                      .b = bc + p.rank,
                      .c = bc + p.rank + n,
                      .u_stride = s.channels,
                      .dt_stride = s.channels,
                      .z_stride = p.gated ? 2 * s.channels : 0,
                      .bc_stride = static_cast<std::int64_t>(s.directions) * width,
                      .bc_direction = width,
                      .a_log = a_log,
                      .d = d,
                      .dt_bias = dt_bias,
                      .dt_low = bc,
                      .dt_weight = dt_weight,
                      .rank = p.rank};
  if (p.projected && scan_projects_dt<T>(queue, s, p.rank)) in.dt = nullptr;
  const auto bytes = [](std::size_t size) { return static_cast<std::int64_t>(size); };
  Bytes<Q> forward_space(queue, bytes(scan_forward_workspace<T>(queue, s)));
  if (!p.training) {
    scan_forward(queue, ScanForward<T>{s, in, o, nullptr, nullptr, forward_space.data()});
    return {{{"o", o.values()}}, {}};
  }
  Array<T, Q> y(queue, count);
  Bytes<Q> states(queue, bytes(scan_states_bytes<T>(queue, s)));
  Bytes<Q> backward_space(queue, bytes(scan_backward_workspace<T>(queue, s)));
  Array<T, Q> d_o(queue, p.d_o), du(queue, count), ddt(queue, count), dz(queue, 2 * count);
  Array<T, Q> dbc(queue, per_state * width);
  Array<A, Q> da_log(queue, std::int64_t{1} * s.channels * n), dd(queue, s.channels);
  Array<A, Q> ddt_bias(queue, s.channels);
  T* const y_at = p.gated ? y + 0 : nullptr;
  scan_forward(queue, ScanForward<T>{s, in, o, y_at, states.data(), forward_space.data()});
  T *const du_at = p.in_place ? d_o : du, *const ddt_at = p.in_place ? dt : ddt;
  in.dt = dt;
  const ScanBackward<T> backward{.shape = s,
                                 .in = in,
                                 .y = y_at,
                                 .states = states.data(),
                                 .d_o = d_o,
                                 .du = du_at,
                                 .ddt = ddt_at,
                                 .dz = p.gated ? dz + s.channels : nullptr,
                                 .db = dbc + p.rank,
                                 .dc = dbc + p.rank + n,
                                 .da_log = da_log,
                                 .dd = dd,
                                 .ddt_bias = ddt_bias,
                                 .workspace = backward_space.data()};
  scan_backward(queue, backward);
  scan_backward_parameters(queue, backward);
  const Values dbc_used = columns(dbc.values(), width, p.rank, 2 * n);
  const auto half = [&](int begin) {
    Values part;
    for (std::size_t i = 0; i < dbc_used.size(); ++i)
      if (static_cast<int>(i % (2 * n)) / n == begin) part.push_back(dbc_used[i]);
    return part;
  };
  Solved solved = {{{"o", o.values()}},
                   {{"du", (p.in_place ? d_o : du).values()},
                    {"ddt", (p.in_place ? dt : ddt).values()},
                    {"db", half(0)},
                    {"dc", half(1)},
                    {"da_log", da_log.values()},
                    {"dd", dd.values()},
                    {"ddt_bias", ddt_bias.values()}}};
  if (p.gated) {
    solved.forward["y"] = y.values();
    solved.gradients["dz"] = columns(dz.values(), 2 * s.channels, s.channels, s.channels);
  }
  return solved;
}

// What check_cuda compares: the two halves of a solution have tolerances of their own.
struct SolveForward {
  template <class T, class Q>
  Results operator()(Q& queue, const Problem& p) const {
    return solve<T>(queue, p).forward;
  }
};
struct SolveGradients {
  template <class T, class Q>
  Results operator()(Q& queue, const Problem& p) const {
    return solve<T>(queue, p).gradients;
  }
};

void expect_solved(const Solved& got, const Solved& want, double forward, double gradients) {
  expect_close(got.forward, want.forward, forward);
  expect_close(got.gradients, want.gradients, gradients);
}

// Places of a gradient in the matrix of its input, zero elsewhere: what central differences of the
// whole matrix give.
Values spread(const Values& part, std::int64_t width, std::int64_t begin, std::int64_t count) {
  Values matrix(part.size() / static_cast<std::size_t>(count) * static_cast<std::size_t>(width));
  for (std::size_t i = 0; i < part.size(); ++i) {
    const auto at = static_cast<std::int64_t>(i);
    matrix[static_cast<std::size_t>(at / count * width + begin + at % count)] = part[i];
  }
  return matrix;
}

void check_gradients(const Problem& p) {
  const Solved solved = solve<double>(cpu_queue(), p);
  const int channels = p.shape.channels, n = p.shape.state, width = p.bc_width();
  const auto check = [&](const std::string& name, Values Problem::*input, const Values& gradient) {
    check_gradient(name, p.*input, gradient, [&](const Values& x) {
      Problem moved = p;
      moved.*input = x;
      moved.training = false;
      return dot(solve<double>(cpu_queue(), moved).forward.at("o"), p.d_o);
    });
  };
  const Results& g = solved.gradients;
  check("u", &Problem::u, g.at("du"));
  check("dt", &Problem::dt, g.at("ddt"));
  if (p.gated) check("z", &Problem::z, spread(g.at("dz"), 2 * channels, channels, channels));
  Values dbc = spread(g.at("db"), width, p.rank, n);
  const Values dc = spread(g.at("dc"), width, p.rank + n, n);
  std::transform(dbc.begin(), dbc.end(), dc.begin(), dbc.begin(), std::plus<>());
  check("b and c", &Problem::bc, dbc);
  check("a_log", &Problem::a_log, g.at("da_log"));
  check("d", &Problem::d, g.at("dd"));
  check("dt_bias", &Problem::dt_bias, g.at("ddt_bias"));
}

// Direction 1 is given direction 0's problem with the tokens in reverse.
Problem mirrored() {
  Problem p({{2, 37, 12, 8, 2}, 3});
  const int half = p.shape.channels / 2, length = p.shape.length;
  // `width` columns from `from` of row t become those from `to` of row L - 1 - t.
  const auto mirror = [&](Values& values, int row_width, int from, int to, int width) {
    for (std::int64_t row = 0; row < p.rows(); ++row) {
      const std::int64_t image = row / length, other = 2 * image * length + length - 1 - row;
      for (int i = 0; i < width; ++i)
        values[static_cast<std::size_t>(other * row_width + to + i)] =
            values[static_cast<std::size_t>(row * row_width + from + i)];
    }
  };
  for (Values* values : {&p.u, &p.dt, &p.d_o}) mirror(*values, 2 * half, 0, half, half);
  mirror(p.z, 4 * half, 2 * half, 3 * half, half);
  mirror(p.bc, 2 * p.bc_width(), 0, p.bc_width(), p.bc_width());
  for (Values* values : {&p.a_log, &p.d, &p.dt_bias})
    std::copy_n(values->begin(), values->size() / 2,
                values->begin() + static_cast<std::ptrdiff_t>(values->size() / 2));
  return p;
}

// `part` 0: direction 0 of an array of tokens; 1: direction 1, its tokens in reverse.
Values direction_of(const Values& values, const ScanShape& s, int part) {
  const std::size_t length = static_cast<std::size_t>(s.length);
  const std::size_t width = values.size() / static_cast<std::size_t>(s.batch) / length;
  Values taken;
  for (std::size_t row = 0; row < static_cast<std::size_t>(s.batch) * length; ++row) {
    const std::size_t image = row / length, t = row % length;
    const std::size_t from = image * length + (part == 0 ? t : length - 1 - t);
    const std::size_t begin = from * width + static_cast<std::size_t>(part) * width / 2;
    taken.insert(taken.end(), values.begin() + static_cast<std::ptrdiff_t>(begin),
                 values.begin() + static_cast<std::ptrdiff_t>(begin + width / 2));
  }
  return taken;
}

void expect_mirrored(const Solved& solved, const ScanShape& s, double tolerance) {
  for (const Results* results : {&solved.forward, &solved.gradients}) {
    for (const auto& [name, values] : *results) {
      if (name == "da_log" || name == "dd" || name == "ddt_bias") {  // no tokens
        const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
        expect_close(name, {values.begin(), middle}, {middle, values.end()}, tolerance);
      } else {
        expect_close(name, direction_of(values, s, 1), direction_of(values, s, 0), tolerance);
      }
    }
  }
}

// Every softplus input is x (dt plus bias) up to a little noise.
Problem with_softplus_input(double x) {
  Problem p({{2, 40, 16, 8, 2}, 8});
  for (double& dt : p.dt) dt *= 0.01;
  for (double& bias : p.dt_bias) bias = x;
  return p;
}
// -11.5 gives a delta of 1e-5; 20 is where softplus changes its branch.
constexpr double kSoftplusInputs[] = {-11.5, 0, 11.2, 20, 20.5};

// Long enough for 7 chunks of at least 28 steps.
Problem chunked_problem() {
  return Problem({{2, 197, 24, 16, 2}, 8});
}
constexpr int kChunkCounts[] = {2, 3, 7};

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("selective_scan: gradients against central differences") {
    check_gradients(Problem({{2, 5, 4, 3, 2}, 2}));
    check_gradients(Problem({{1, 9, 3, 8, 1}, 3}));
    check_gradients(Problem({{1, 8, 4, 2, 2}, 1}));
  }

  TEST_CASE("selective_scan: gradients over several blocks and chunks") {
    const Problem p({{1, 53, 2, 2, 2}, 1});
    check_gradients(p);
    check_gradients(p.with_chunks(3));
    check_gradients(p.without_gate().with_chunks(3));
  }

  TEST_CASE("selective_scan: without a gate o is y") {
    for (const ScanCase& test : {kScanCases[1], kScanCases[3]}) {
      const Problem p(test);
      for (const int chunks : {1, 3}) {
        const Problem q = p.with_chunks(chunks), bare = q.without_gate();
        expect_same_bits({{"o", solve<double>(cpu_queue(), q).forward.at("y")}},
                         solve<double>(cpu_queue(), bare).forward);
        expect_same_bits({{"o", solve<float>(cpu_queue(), q).forward.at("y")}},
                         solve<float>(cpu_queue(), bare).forward);
        expect_close(solve<float>(cpu_queue(), bare.rounded<float>()).gradients,
                     solve<double>(cpu_queue(), bare.rounded<float>()).gradients,
                     kScanGradientTolerance.f32);
      }
    }
  }

  TEST_CASE("selective_scan: gradients on both sides of the softplus threshold") {
    for (const double x : {19.8, 20.5}) {
      Problem p = with_softplus_input(x);
      for (double& a : p.a_log) a -= 3;  // delta A near -1: decays that A has a say in
      check_gradients(p);
    }
  }

  TEST_CASE("selective_scan: float agrees with double") {
    for (const ScanCase& test : kScanCases) {
      INFO("length ", test.shape.length, ", state ", test.shape.state);
      const Problem p = Problem(test).rounded<float>();
      expect_solved(solve<float>(cpu_queue(), p), solve<double>(cpu_queue(), p), kScanTolerance.f32,
                    kScanGradientTolerance.f32);
    }
  }

  TEST_CASE("selective_scan: chunked agrees with recurrent") {
    const Problem p = chunked_problem().rounded<float>();
    CHECK(scan_chunks(cpu_queue(), p.shape) == 1);
    const Solved exact = solve<double>(cpu_queue(), p), single = solve<float>(cpu_queue(), p);
    for (const int chunks : kChunkCounts) {
      const Problem q = p.with_chunks(chunks);
      INFO(chunks, " chunks");
      CHECK(scan_chunks(cpu_queue(), q.shape) == chunks);
      expect_solved(solve<double>(cpu_queue(), q), exact, 1e-13, 1e-12);
      expect_solved(solve<float>(cpu_queue(), q), single, kScanTolerance.f32,
                    kScanGradientTolerance.f32);
    }
  }

  TEST_CASE("selective_scan: more chunks than blocks") {
    for (const int length : {1, 7, 33}) {
      const Problem p({{1, length, 4, 3, 2}, 3});
      expect_solved(solve<double>(cpu_queue(), p.with_chunks(7)), solve<double>(cpu_queue(), p),
                    1e-13, 1e-12);
    }
  }

  TEST_CASE("selective_scan: a direction is the other one with its tokens flipped") {
    const Problem p = mirrored();
    expect_mirrored(solve<double>(cpu_queue(), p), p.shape, 1e-13);
    expect_mirrored(solve<float>(cpu_queue(), p), p.shape, kScanTolerance.f32);
  }

  TEST_CASE("selective_scan: extremes of dt") {
    for (const double x : kSoftplusInputs) {
      INFO("softplus of ", x);
      const Problem p = with_softplus_input(x).rounded<float>();
      expect_solved(solve<float>(cpu_queue(), p), solve<double>(cpu_queue(), p), kScanTolerance.f32,
                    kScanGradientTolerance.f32);
    }
  }

  TEST_CASE("selective_scan: inference gives the same o") {
    Problem p = chunked_problem();
    for (const int chunks : {1, 3}) {
      p.shape.chunks = chunks;
      p.training = true;
      const Results single = {{"o", solve<float>(cpu_queue(), p).forward.at("o")}};
      const Results exact = {{"o", solve<double>(cpu_queue(), p).forward.at("o")}};
      p.training = false;
      expect_same_bits(single, solve<float>(cpu_queue(), p).forward);
      expect_same_bits(exact, solve<double>(cpu_queue(), p).forward);
    }
  }

  TEST_CASE("selective_scan: the same bits with gradients in the places of their operands") {
    for (const int chunks : {1, 3}) {
      Problem p = chunked_problem().with_chunks(chunks);
      const Solved apart = solve<double>(cpu_queue(), p), fast = solve<float>(cpu_queue(), p);
      p.in_place = true;
      expect_same_bits(solve<double>(cpu_queue(), p).gradients, apart.gradients);
      expect_same_bits(solve<float>(cpu_queue(), p).gradients, fast.gradients);
    }
  }

  TEST_CASE("selective_scan: the number of threads does not change a bit") {
    CpuQueue one(1), three(3);
    for (const ScanCase& test : {kScanCases[3], kScanCases[6]}) {
      const Problem p(test);
      const Solved a = solve<float>(one, p), b = solve<float>(three, p);
      expect_same_bits(a.forward, b.forward);
      expect_same_bits(a.gradients, b.gradients);
    }
  }

  TEST_CASE("selective_scan: shapes outside the contract are refused") {
    const ScanForward<float> empty{};
    for (const ScanShape& shape :
         {ScanShape{0, 1, 8, 8, 1}, ScanShape{1, 1, 8, 129, 1}, ScanShape{1, 1, 8, 0, 1},
          ScanShape{1, 1, 7, 8, 2}, ScanShape{1, 1, 6, 8, 3}, ScanShape{1, 1, 8, 8, 1, -1}}) {
      ScanForward<float> p = empty;
      p.shape = shape;
      CHECK_THROWS_AS(scan_forward(cpu_queue(), p), Error);
    }
    scan_check_gate(true, true);
    scan_check_gate(false, false);
    CHECK_THROWS_AS(scan_check_gate(false, true), Error);
  }

  TEST_CASE("fast_math: softplus is right to a few ulp, however small") {
    double worst = 0;
    for (float x = -80; x < 30; x += 0.003f)
      worst = std::max(worst, std::fabs(fast_softplus(x) / fast_softplus(double{x}) - 1));
    CHECK(worst < 4e-7);
    CHECK(std::isnan(fast_softplus(std::numeric_limits<float>::quiet_NaN())));
    CHECK(fast_softplus(200.0f) == 200.0f);
    CHECK(fast_softplus(-200.0f) == 0.0f);
  }
}

#if FM_CUDA
namespace {

void check_both(const Problem& p, CudaQueue& queue = cuda_queue()) {
  check_cuda(p, kScanTolerance, SolveForward{}, queue);
  check_cuda(p, kScanGradientTolerance, SolveGradients{}, queue);
}

// Both lie within the tolerance of the exact values, on either side.
template <class T>
void check_chunked(const Problem& problem) {
  const Problem p = problem.rounded<T>();
  const DType type = dtype_of<T>();
  const Solved recurrent = solve<T>(cuda_queue(), p.with_chunks(1));
  for (const int chunks : kChunkCounts) {
    const Problem q = p.with_chunks(chunks);
    INFO(concat(name_of(type), ", ", chunks, " chunks"));
    CHECK(scan_chunks(cuda_queue(), q.shape) == chunks);
    expect_solved(solve<T>(cuda_queue(), q), recurrent, 2 * kScanTolerance.of(type),
                  2 * kScanGradientTolerance.of(type));
  }
}

template <class T>
void check_in_place(Problem p) {
  p = p.rounded<T>();
  const Results apart = solve<T>(cuda_queue(), p).gradients;
  p.in_place = true;
  expect_same_bits(solve<T>(cuda_queue(), p).gradients, apart);
}

template <class T>
void check_inference(Problem p) {
  p = p.rounded<T>();
  const Results trained = {{"o", solve<T>(cuda_queue(), p).forward.at("o")}};
  p.training = false;
  expect_same_bits(trained, solve<T>(cuda_queue(), p).forward);
}

}  // namespace

TEST_SUITE("gpu") {
  TEST_CASE("selective_scan: CUDA agrees with the CPU") {
    for (ScanCase test : kScanCases) {
      if (small_effort()) test.shape.batch = 1;
      INFO("length ", test.shape.length, ", state ", test.shape.state);
      check_both(Problem(test));
      check_both(Problem(test).without_gate());
    }
  }

  TEST_CASE("selective_scan: CUDA agrees with the CPU at batch 1 and 33") {
    check_both(Problem({{1, 196, 64, 64, 2}, 8}));
    if (small_effort()) return;
    check_both(Problem({{33, 196, 16, 16, 2}, 8}));
  }

  TEST_CASE("selective_scan: CUDA agrees with the CPU where several CTAs share a direction") {
    check_both(Problem({{1, 23, 522, 24, 1}, 3}));   // one strip of states; a tile of 2 channels
    check_both(Problem({{1, 23, 1050, 64, 2}, 8}));  // two strips; an odd number of channels
  }

  // 64 and 128 padded states in 16 bits have a backward kernel of their own on compute
  // capability 9.0: teams without a tile, channels and states that end inside one, and a device
  // that has no such kernel.
  TEST_CASE("selective_scan: CUDA backward with its work split between warps") {
    CudaQueue other = cuda_queue();
    other.limits.compute_capability = 80;
    for (const ScanShape& shape :
         {ScanShape{1, 60, 7, 61, 1}, ScanShape{2, 61, 150, 40, 2}, ScanShape{1, 29, 41, 127, 1},
          ScanShape{1, 197, 64, 64, 2, 3}, ScanShape{1, 90, 24, 128, 2, 2}}) {
      INFO("channels ", shape.channels, ", state ", shape.state, ", chunks ", shape.chunks);
      const Problem p({shape, 8});
      check_cuda(p, kScanGradientTolerance, SolveGradients{});
      check_cuda(p.without_gate(), kScanGradientTolerance, SolveGradients{});
      check_cuda(p, kScanGradientTolerance, SolveGradients{}, other);
      check_cuda(p.without_gate(), kScanGradientTolerance, SolveGradients{}, other);
    }
  }

  TEST_CASE("selective_scan: CUDA chunked agrees with recurrent and with the CPU") {
    const Problem p = chunked_problem();
    check_chunked<f16>(p);
    if (small_effort()) return;
    check_chunked<float>(p);
    check_chunked<bf16>(p);
    for (const int chunks : kChunkCounts) {
      check_both(p.with_chunks(chunks));
      check_both(p.with_chunks(chunks).without_gate());
    }
  }

  // The small cases above run the narrow forward tile; a device of one multiprocessor is never
  // short of work for the wide one.
  TEST_CASE("selective_scan: CUDA agrees with the CPU with the wide tile") {
    CudaQueue queue = cuda_queue();
    queue.limits.multiprocessors = 1;
    for (ScanCase test : kScanCases) {
      if (small_effort()) test.shape.batch = 1;
      INFO("length ", test.shape.length, ", state ", test.shape.state);
      check_cuda(Problem(test), kScanTolerance, SolveForward{}, queue);
      check_cuda(Problem(test).without_gate(), kScanTolerance, SolveForward{}, queue);
    }
    check_cuda(Problem({{2, 61, 272, 32, 1}, 8}), kScanTolerance, SolveForward{}, queue);
  }

  // Ranks that fill the sum and that do not, the narrow tile and the wide one.
  TEST_CASE("selective_scan: CUDA projects dt from its factors") {
    CudaQueue wide = cuda_queue();
    wide.limits.multiprocessors = 1;
    CHECK(scan_projects_dt<f16>(wide, kScanPaper.shape, kScanPaper.rank));
    CHECK(scan_projects_dt<bf16>(wide, kScanPaper.shape, kScanPaper.rank));
    CHECK(scan_projects_dt<f16>(cuda_queue(), {1, 196, 512, 8, 2}, 1));
    CHECK_FALSE(scan_projects_dt<float>(wide, kScanPaper.shape, kScanPaper.rank));
    CHECK_FALSE(scan_projects_dt<f16>(wide, kScanPaper.shape, 9));
    CHECK_FALSE(scan_projects_dt<f16>(wide, {1, 196, 512, 8, 2}, 8));
    const auto check = [&](const ScanCase& test) {
      INFO("length ", test.shape.length, ", state ", test.shape.state, ", rank ", test.rank);
      const Problem p = Problem(test).with_projection();
      check_cuda(p, kScanTolerance, SolveForward{});
      check_cuda(p, kScanTolerance, SolveForward{}, wide);
    };
    for (const ScanCase& test : kScanCases) check(test);
    check({{1, 7, 276, 64, 2}, 8});  // a tile of 10 channels
    check({{2, 197, 22, 32, 1}, 1});
    check({{1, 90, 41, 100, 1}, 5});
    for (const int multiprocessors : {cuda_queue().limits.multiprocessors, 1}) {
      CudaQueue queue = cuda_queue();
      queue.limits.multiprocessors = multiprocessors;
      Problem p = Problem({{2, 197, 40, 64, 2}, 8}).with_projection().rounded<f16>();
      const Results trained = {{"o", solve<f16>(queue, p).forward.at("o")}};
      p.training = false;
      expect_same_bits(trained, solve<f16>(queue, p).forward);
    }
  }

  TEST_CASE("selective_scan: CUDA with the limits of a small device") {
    CudaQueue queue = cuda_queue();
    queue.limits.shared_bytes_per_block = 99 * 1024;
    queue.limits.compute_capability = 86;
    const int batch = small_effort() ? 1 : 2;
    check_both(Problem({{batch, 197, 64, 64, 2}, 8}), queue);
    check_both(Problem({{batch, 197, 64, 64, 2, 3}, 8}), queue);
    check_both(Problem({{1, 60, 32, 128, 1}, 8}), queue);
  }

  TEST_CASE("selective_scan: CUDA, a direction is the other one with its tokens flipped") {
    const Problem p = mirrored();
    expect_mirrored(solve<float>(cuda_queue(), p), p.shape, kScanTolerance.f32);
  }

  TEST_CASE("selective_scan: CUDA at the extremes of dt") {
    if (small_effort()) return;
    for (const double x : kSoftplusInputs) {
      INFO("softplus of ", x);
      check_both(with_softplus_input(x));
    }
  }

  TEST_CASE("selective_scan: CUDA, the same bits with gradients in the places of their operands") {
    for (const int chunks : {1, 3}) {
      const Problem p({{2, 197, 272, 64, 2, chunks}, 8});
      check_in_place<float>(p);
      check_in_place<f16>(p);
    }
    check_in_place<f16>(Problem({{3, 61, 20, 16, 2}, 3}));
  }

  // Exponents past -125 end the polynomial's range.
  TEST_CASE("selective_scan: CUDA where states are forgotten at once") {
    CudaQueue queue = cuda_queue();
    queue.limits.multiprocessors = 1;  // the wide tile
    Problem p({{2, 40, 32, 64, 2}, 8});
    for (double& bias : p.dt_bias) bias += 8;
    check_cuda(p, kScanTolerance, SolveForward{}, queue);
  }

  // Saved as 65504: infinity would be in every gradient.
  TEST_CASE("selective_scan: CUDA where states pass what fp16 holds") {
    for (const int multiprocessors : {cuda_queue().limits.multiprocessors, 1}) {
      CudaQueue queue = cuda_queue();
      queue.limits.multiprocessors = multiprocessors;
      Problem p = Problem({{2, 40, 32, 64, 2}, 8}).without_gate();
      const std::size_t width = static_cast<std::size_t>(p.bc_width());
      for (std::size_t i = 0; i < p.bc.size(); ++i) p.bc[i] = i % width < 72 ? 1 : 1e-5;
      for (double& u : p.u) u = 400;
      for (double& bias : p.dt_bias) bias = 8;
      for (double& a_log : p.a_log) a_log = -20;
      for (double& d_o : p.d_o) d_o = 1e-5;
      for (const auto& [name, values] : solve<f16>(queue, p).gradients) {
        INFO(name);
        CHECK(std::all_of(values.begin(), values.end(), [](double x) { return std::isfinite(x); }));
      }
    }
  }

  TEST_CASE("selective_scan: CUDA inference gives the same o") {
    for (const int chunks : {1, 3}) {
      check_inference<f16>(chunked_problem().with_chunks(chunks));
      if (small_effort()) continue;
      check_inference<float>(chunked_problem().with_chunks(chunks));
      check_inference<bf16>(chunked_problem().with_chunks(chunks));
    }
  }
}
#endif

}  // namespace fm::test
