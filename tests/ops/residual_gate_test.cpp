#include "kernels/residual_gate/residual_gate_cases.h"
#include "tests/support/cuda.h"

namespace fm::test {
namespace {

struct Problem {
  ResidualGateShape shape;
  Values x, f, gate, dout;  // gate: the first width columns of [B, modulation_stride]

  explicit Problem(const ResidualGateShape& s)
      : shape(s),
        x(normals(elements(), 1)),
        f(normals(elements(), 2, 2)),
        gate(normals(s.batch * s.modulation_stride, 3)),
        dout(normals(elements(), 4, 1, 0.1)) {}

  std::int64_t elements() const {
    return static_cast<std::int64_t>(shape.batch) * shape.length * shape.width;
  }

  template <class T>
  Problem rounded() const {
    Problem p = *this;
    p.x = round_to<acc_t<T>>(x);
    p.f = round_to<T>(f);
    p.gate = round_to<T>(gate);
    p.dout = round_to<acc_t<T>>(dout);
    return p;
  }
};

struct Solve {
  template <class T, class Q>
  Results operator()(Q& queue, const Problem& p) const {
    const std::int64_t count = p.elements();
    Array<acc_t<T>, Q> x(queue, p.x), out(queue, count), dout(queue, p.dout);
    Array<T, Q> f(queue, p.f), gate(queue, p.gate), df(queue, count), dgate(queue, p.gate);
    residual_gate_forward(queue, ResidualGateForward<T>{p.shape, x, f, gate, out});
    residual_gate_forward(queue, ResidualGateForward<T>{p.shape, x, f, gate, x});
    residual_gate_backward(queue, ResidualGateBackward<T>{p.shape, dout, f, gate, df, dgate});
    return {{"out", out.values()},
            {"out in place", x.values()},
            {"df", df.values()},
            {"dgate", gates(dgate.values(), p.shape, true)},
            {"columns of others", gates(dgate.values(), p.shape, false)}};
  }

  // The gates of a matrix of modulations, or the columns that are not gates.
  static Values gates(const Values& matrix, const ResidualGateShape& s, bool wanted) {
    Values part;
    for (std::size_t i = 0; i < matrix.size(); ++i)
      if ((static_cast<std::int64_t>(i) % s.modulation_stride < s.width) == wanted)
        part.push_back(matrix[i]);
    return part;
  }
};

Results solve_double(const Problem& p) {
  return Solve{}.operator()<double>(cpu_queue(), p);
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("residual_gate: gradients against central differences") {
    const Problem p({2, 7, 16, 32});
    const Results r = solve_double(p);
    check_gradient("f", p.f, r.at("df"), [&](const Values& f) {
      Problem moved = p;
      moved.f = f;
      return dot(solve_double(moved).at("out"), p.dout);
    });
    check_gradient("gate", Solve::gates(p.gate, p.shape, true), r.at("dgate"),
                   [&](const Values& gate) {
                     Problem moved = p;
                     for (int b = 0; b < p.shape.batch; ++b)
                       std::copy_n(gate.begin() + b * p.shape.width, p.shape.width,
                                   moved.gate.begin() + b * p.shape.modulation_stride);
                     return dot(solve_double(moved).at("out"), p.dout);
                   });
    check_gradient("x", p.x, p.dout, [&](const Values& x) {  // dout itself, as the header says
      Problem moved = p;
      moved.x = x;
      return dot(solve_double(moved).at("out"), p.dout);
    });
  }

  TEST_CASE("residual_gate: out may be x, and other columns of the modulations stay") {
    const Problem p({3, 5, 24, 72});
    const Results r = solve_double(p);
    CHECK(r.at("out") == r.at("out in place"));
    CHECK(r.at("columns of others") == Solve::gates(p.gate, p.shape, false));
  }

  TEST_CASE("residual_gate: a gate of zero lets the residual through") {
    Problem p({2, 3, 8, 8});
    std::fill(p.gate.begin(), p.gate.end(), 0.0);
    CHECK(solve_double(p).at("out") == p.x);
  }

  TEST_CASE("residual_gate: float agrees with double") {
    for (const ResidualGateShape& shape : kResidualGateCases) {
      const Problem p = Problem(shape).rounded<float>();
      INFO("[", shape.batch, ", ", shape.length, ", ", shape.width, "]");
      expect_close(Solve{}.operator()<float>(cpu_queue(), p), solve_double(p),
                   kResidualGateTolerance.f32);
    }
  }

  TEST_CASE("residual_gate: shapes outside the contract are refused") {
    CHECK_THROWS_AS(solve_double(Problem({1, 1, 12, 24})), Error);
    CHECK_THROWS_AS(check_shape(ResidualGateShape{0, 1, 8, 8}), Error);
    CHECK_THROWS_AS(check_shape(ResidualGateShape{2, 1, 16, 8}), Error);
  }
}

#if FM_CUDA
TEST_SUITE("gpu") {
  TEST_CASE("residual_gate: CUDA agrees with the CPU") {
    for (const ResidualGateShape& shape : kResidualGateCases) {
      INFO("[", shape.batch, ", ", shape.length, ", ", shape.width, "]");
      check_cuda(Problem(shape), kResidualGateTolerance, Solve{});
    }
  }
}
#endif

}  // namespace fm::test
