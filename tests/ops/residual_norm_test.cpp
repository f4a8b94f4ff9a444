#include "kernels/residual_norm/residual_norm_cases.h"
#include "tests/support/cuda.h"

namespace fm::test {
namespace {

// Rows of `matrix`, `stride` long: the columns [begin, begin + width).
Values columns(const Values& matrix, std::int64_t stride, std::int64_t begin, std::int64_t width) {
  Values part;
  for (std::size_t row = 0; row < matrix.size(); row += static_cast<std::size_t>(stride)) {
    const auto first = matrix.begin() + static_cast<std::ptrdiff_t>(row) + begin;
    part.insert(part.end(), first, first + width);
  }
  return part;
}

struct Problem {
  ResidualNormShape shape;
  bool narrow = false;  // the stream in the compute type
  Values x, f, dy, dout;
  Values modulation, gate;  // a row: shift, scale; gate; each followed by columns of somebody else

  explicit Problem(const ResidualNormShape& s, double mean = 0.5)
      : shape(s),
        x(normals(elements(), 1, 2, mean)),
        f(normals(elements(), 2, 2)),
        dy(normals(elements(), 3, 1, 0.1)),
        dout(normals(elements(), 4)),
        modulation(normals(s.batch * s.modulation_stride, 5, 0.5)),
        gate(normals(s.batch * s.gate_stride, 6)) {}

  std::int64_t elements() const {
    return static_cast<std::int64_t>(shape.batch) * shape.length * shape.width;
  }

  template <class T>
  Problem rounded() const {
    Problem p = *this;
    p.x = narrow ? round_to<T>(x) : round_to<acc_t<T>>(x);
    p.dout = narrow ? round_to<T>(dout) : round_to<acc_t<T>>(dout);
    p.f = round_to<T>(f);
    p.dy = round_to<T>(dy);
    p.modulation = round_to<T>(modulation);
    p.gate = round_to<T>(gate);
    return p;
  }
};

struct Solve {
  template <class T, class Q>
  Results operator()(Q& queue, const Problem& p) const {
    return p.narrow ? solve<T, T>(queue, p) : solve<T, acc_t<T>>(queue, p);
  }

  template <class T, class X, class Q>
  static Results solve(Q& queue, const Problem& p) {
    const std::int64_t count = p.elements(), width = p.shape.width;
    const std::int64_t modulation_stride = p.shape.modulation_stride;
    const std::int64_t gate_stride = p.shape.gate_stride;
    Array<X, Q> x(queue, p.x), out(queue, count), out_in_place(queue, p.x);
    Array<T, Q> f(queue, p.f), gate(queue, p.gate), modulation(queue, p.modulation);
    Array<T, Q> y(queue, count), y_in_place(queue, count), y_alone(queue, count);
    const T *shift = modulation.data(), *scale = modulation.data() + width;
    ResidualNormForward<T, X> forward{p.shape, x, nullptr, nullptr, shift, scale, nullptr, y_alone};
    residual_norm_forward(queue, forward);
    forward = {p.shape, x, f, gate, shift, scale, out, y};
    residual_norm_forward(queue, forward);
    forward.x = forward.out = out_in_place;
    forward.y = y_in_place;
    residual_norm_forward(queue, forward);

    Array<X, Q> dx(queue, p.dout), dx_first(queue, count), dx_alone(queue, p.dout);
    Array<X, Q> dx_in_place(queue, p.dout);
    Array<T, Q> dy(queue, p.dy), df(queue, count), df_first(queue, count);
    Array<T, Q> dmodulation(queue, p.modulation), dmodulation_alone(queue, p.modulation);
    Array<T, Q> dgate(queue, p.gate), dgate_first(queue, p.gate);
    ResidualNormBackward<T, X> backward{.shape = p.shape,
                                        .out = out,
                                        .f = f,
                                        .gate = gate,
                                        .scale = scale,
                                        .dy = dy,
                                        .dx = dx,
                                        .accumulate = true,
                                        .df = df,
                                        .dgate = dgate,
                                        .dshift = dmodulation,
                                        .dscale = dmodulation + width};
    residual_norm_backward(queue, backward);
    backward.out = x;
    backward.f = backward.gate = nullptr;
    backward.df = backward.dgate = nullptr;
    backward.dx = dx_alone;
    backward.dshift = dmodulation_alone;
    backward.dscale = dmodulation_alone + width;
    residual_norm_backward(queue, backward);
    backward.out = out;
    backward.f = f;
    backward.gate = gate;
    backward.df = df_first;
    backward.dgate = dgate_first;
    backward.dx = dx_first;
    backward.accumulate = false;
    residual_norm_backward(queue, backward);

    backward.df = dy;
    backward.dgate = dgate;
    backward.dshift = dmodulation;
    backward.dscale = dmodulation + width;
    backward.dx = dx_in_place;
    backward.accumulate = true;
    residual_norm_backward(queue, backward);

    const Values d = dmodulation.values(), g = dgate.values();
    return {{"out", out.values()},
            {"out in place", out_in_place.values()},
            {"y", y.values()},
            {"y in place", y_in_place.values()},
            {"y alone", y_alone.values()},
            {"dx", dx.values()},
            {"dx first", dx_first.values()},
            {"dx alone", dx_alone.values()},
            {"df", df.values()},
            {"df first", df_first.values()},
            {"df in place", dy.values()},
            {"dx in place", dx_in_place.values()},
            {"dgate", columns(g, gate_stride, 0, width)},
            {"dgate first", columns(dgate_first.values(), gate_stride, 0, width)},
            {"columns beside dgate", columns(g, gate_stride, width, gate_stride - width)},
            {"dshift", columns(d, modulation_stride, 0, width)},
            {"dscale", columns(d, modulation_stride, width, width)},
            {"columns beside dscale",
             columns(d, modulation_stride, 2 * width, modulation_stride - 2 * width)},
            {"dmodulation alone", dmodulation_alone.values()}};
  }
};

Results solve_double(const Problem& p) {
  return Solve{}.operator()<double>(cpu_queue(), p);
}

// What dx, df, dgate, dshift and dscale are the gradients of.
double loss(const Problem& p) {
  const Results r = solve_double(p);
  return dot(r.at("y"), p.dy) + dot(r.at("out"), p.dout);
}

// The gradient of `loss` by the columns [begin, begin + width) of a member of the problem.
void check_columns(const char* name, const Problem& p, Values Problem::*member, std::int64_t stride,
                   std::int64_t begin, const Values& gradient) {
  const std::int64_t width = p.shape.width;
  check_gradient(name, columns(p.*member, stride, begin, width), gradient, [&](const Values& part) {
    Problem moved = p;
    for (std::int64_t b = 0; b < p.shape.batch; ++b)
      std::copy_n(part.begin() + b * width, width, (moved.*member).begin() + b * stride + begin);
    return loss(moved);
  });
}

// One row of modulations and gates for all images, as a stride of 0 and as equal rows.
template <class T, class X, class Q>
void check_shared_rows(Q& queue) {
  const int width = 136, images = 3, length = 7;
  const Values x = normals(images * length * width, 1), f = normals(images * length * width, 2);
  const Values row = normals(3 * width, 3);
  Values rows;
  for (int i = 0; i < images; ++i) rows.insert(rows.end(), row.begin(), row.end());
  const auto solve = [&](const Values& modulation, std::int64_t stride) {
    Array<X, Q> stream(queue, x), out(queue, images * length * width);
    Array<T, Q> branch(queue, f), vectors(queue, modulation), y(queue, images * length * width);
    residual_norm_forward(queue, ResidualNormForward<T, X>{{images, length, width, stride, stride},
                                                           stream,
                                                           branch,
                                                           vectors,
                                                           vectors + width,
                                                           vectors + 2 * width,
                                                           out,
                                                           y});
    return Results{{"out", out.values()}, {"y", y.values()}};
  };
  expect_same_bits(solve(row, 0), solve(rows, 3 * width));
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("residual_norm: one row of modulations for all images") {
    check_shared_rows<double, double>(cpu_queue());
    check_shared_rows<float, float>(cpu_queue());
  }

  TEST_CASE("residual_norm: gradients against central differences") {
    const Problem p({2, 5, 24, 72, 40});
    const Results r = solve_double(p);
    for (const auto& [name, member] : {std::pair{"x", &Problem::x}, std::pair{"f", &Problem::f}})
      check_gradient(name, p.*member, r.at(name == std::string("x") ? "dx" : "df"),
                     [&](const Values& values) {
                       Problem moved = p;
                       moved.*member = values;
                       return loss(moved);
                     });
    check_columns("gate", p, &Problem::gate, 40, 0, r.at("dgate"));
    check_columns("shift", p, &Problem::modulation, 72, 0, r.at("dshift"));
    check_columns("scale", p, &Problem::modulation, 72, 24, r.at("dscale"));
  }

  TEST_CASE("residual_norm: gradients without a branch behind, and without later readers") {
    Problem p({2, 5, 24, 72, 40});
    const auto moved_loss = [&](const char* y, const Values& x) {
      Problem moved = p;
      moved.x = x;
      return dot(solve_double(moved).at(y), p.dy);
    };
    Values dx = solve_double(p).at("dx alone");
    for (std::size_t i = 0; i < dx.size(); ++i) dx[i] -= p.dout[i];
    check_gradient("x alone", p.x, dx, [&](const Values& x) { return moved_loss("y alone", x); });
    check_gradient("x first", p.x, solve_double(p).at("dx first"),
                   [&](const Values& x) { return moved_loss("y", x); });
    std::fill(p.dout.begin(), p.dout.end(), 0.0);
    const Results r = solve_double(p);
    CHECK(r.at("dx first") == r.at("dx"));
    CHECK(r.at("df first") == r.at("df"));
    CHECK(r.at("dgate first") == r.at("dgate"));
  }

  TEST_CASE("residual_norm: out may be x and df dy, and other columns of the modulations stay") {
    const Problem p({3, 5, 16, 64, 24});
    const Results r = solve_double(p);
    CHECK(r.at("out") == r.at("out in place"));
    CHECK(r.at("y") == r.at("y in place"));
    CHECK(r.at("df") == r.at("df in place"));
    CHECK(r.at("dx") == r.at("dx in place"));
    CHECK(r.at("columns beside dgate") == columns(p.gate, 24, 16, 8));
    CHECK(r.at("columns beside dscale") == columns(p.modulation, 64, 32, 32));
  }

  TEST_CASE("residual_norm: a gate of zero lets the stream through") {
    Problem p({2, 3, 8, 16, 8});
    std::fill(p.gate.begin(), p.gate.end(), 0.0);
    const Results r = solve_double(p);
    CHECK(r.at("out") == p.x);
    CHECK(r.at("y") == r.at("y alone"));
  }

  TEST_CASE("residual_norm: without modulation a row has mean 0 and variance 1") {
    Problem p({2, 3, 40, 80, 40});
    std::fill(p.modulation.begin(), p.modulation.end(), 0.0);
    const Values y = solve_double(p).at("y");
    for (std::size_t row = 0; row < y.size(); row += 40) {
      double mean = 0, square = 0;
      for (std::size_t c = 0; c < 40; ++c) {
        mean += y[row + c] / 40;
        square += y[row + c] * y[row + c] / 40;
      }
      CHECK(std::fabs(mean) < 1e-12);
      CHECK(std::fabs(square - 1) < 1e-5);  // eps is 1e-6 of a variance near 8
    }
  }

  TEST_CASE("residual_norm: a constant row gives the shift and finite gradients") {
    Problem p({1, 2, 16, 32, 16});
    std::fill(p.x.begin(), p.x.end(), 3.0);
    std::fill(p.f.begin(), p.f.end(), 0.0);
    const Results r = Solve{}.operator()<float>(cpu_queue(), p.rounded<float>());
    const Values shift = columns(p.rounded<float>().modulation, 32, 0, 16);
    for (std::size_t i = 0; i < 32; ++i) CHECK(r.at("y")[i] == shift[i % 16]);
    for (double dx : r.at("dx")) CHECK(std::isfinite(dx));
  }

  // The mean is held to 2^-24 of 1e4, an error of 3e-4 standard deviations; E[x^2] - mean^2 would
  // be wrong by more than the variance.
  TEST_CASE("residual_norm: float in rows far from zero") {
    const Problem p = Problem({2, 9, 128, 256, 128}, 1e4).rounded<float>();
    const Results got = Solve{}.operator()<float>(cpu_queue(), p);
    expect_close("y", got.at("y"), solve_double(p).at("y"), 1e-3);
  }

  TEST_CASE("residual_norm: float agrees with double") {
    for (const ResidualNormShape& shape : kResidualNormCases) {
      const Problem p = Problem(shape).rounded<float>();
      INFO("[", shape.batch, ", ", shape.length, ", ", shape.width, "]");
      expect_close(Solve{}.operator()<float>(cpu_queue(), p), solve_double(p),
                   kResidualNormTolerance.f32);
    }
  }

  TEST_CASE("residual_norm: the bits do not depend on the number of threads") {
    const Problem p({5, 67, 128, 768, 256});
    CpuQueue one(1), three(3);
    expect_same_bits(Solve{}.operator()<float>(one, p), Solve{}.operator()<float>(three, p));
  }

  TEST_CASE("residual_norm: shapes outside the contract are refused") {
    CHECK_THROWS_AS(solve_double(Problem({1, 1, 12, 24, 16})), Error);
    CHECK_THROWS_AS(check_shape(ResidualNormShape{1, 1, 4104, 8208, 8208}), Error);
    CHECK_THROWS_AS(check_shape(ResidualNormShape{1, 0, 8, 8, 8}), Error);
    CHECK_THROWS_AS(check_shape(ResidualNormShape{0, 1, 8, 8, 8}), Error);
    CHECK_THROWS_AS(check_shape(ResidualNormShape{2, 1, 16, 8, 16}), Error);
    CHECK_THROWS_AS(check_shape(ResidualNormShape{2, 1, 16, 16, 8}), Error);
    CHECK_THROWS_AS(check_shape(ResidualNormShape{2, 1, 16, 0, 16}), Error);
    CHECK_THROWS_AS(check_shape(ResidualNormShape{2, 1, 16, 16, 0}), Error);
    CHECK_NOTHROW(check_shape(ResidualNormShape{2, 1, 16, 0, 0}, true));
  }
}

#if FM_CUDA
TEST_SUITE("gpu") {
  TEST_CASE("residual_norm: one row of modulations for all images, on CUDA") {
    check_shared_rows<float, float>(cuda_queue());
    check_shared_rows<f16, float>(cuda_queue());
    check_shared_rows<bf16, bf16>(cuda_queue());
  }

  TEST_CASE(
      "residual_norm: CUDA agrees with the CPU, the stream in float and in the compute type") {
    for (const ResidualNormShape& shape : kResidualNormCases) {
      for (const bool narrow : {false, true}) {
        INFO("[", shape.batch, ", ", shape.length, ", ", shape.width, "]", narrow ? " narrow" : "");
        Problem p(shape);
        p.narrow = narrow;
        check_cuda(p, kResidualNormTolerance, Solve{});
      }
    }
  }

  TEST_CASE("residual_norm: CUDA in rows far from zero") {
    const Problem p = Problem({2, 9, 128, 256, 128}, 1e4).rounded<float>();
    expect_close("y", Solve{}.operator()<float>(cuda_queue(), p).at("y"), solve_double(p).at("y"),
                 1e-3);
  }
}
#endif

}  // namespace fm::test
