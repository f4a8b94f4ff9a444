#include "kernels/layernorm/layernorm_cases.h"
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
  LayerNormShape shape;  // a modulation row: shift, scale, then columns of somebody else
  Values x, modulation, dy, dx_before;

  explicit Problem(const LayerNormShape& s, double mean = 0.5)
      : shape(s),
        x(normals(elements(), 1, 2, mean)),
        modulation(normals(s.batch * s.modulation_stride, 2, 0.5)),
        dy(normals(elements(), 3, 1, 0.1)),
        dx_before(normals(elements(), 4)) {}

  std::int64_t elements() const {
    return static_cast<std::int64_t>(shape.batch) * shape.length * shape.width;
  }

  template <class T>
  Problem rounded() const {
    Problem p = *this;
    p.x = round_to<acc_t<T>>(x);
    p.modulation = round_to<T>(modulation);
    p.dy = round_to<T>(dy);
    p.dx_before = round_to<acc_t<T>>(dx_before);
    return p;
  }
};

struct Solve {
  template <class T, class Q>
  Results operator()(Q& queue, const Problem& p) const {
    const std::int64_t count = p.elements(), stride = p.shape.modulation_stride;
    const int width = p.shape.width;
    Array<acc_t<T>, Q> x(queue, p.x), dx(queue, count), dx_added(queue, p.dx_before);
    Array<T, Q> modulation(queue, p.modulation), y(queue, count), dy(queue, p.dy);
    Array<T, Q> dmodulation(queue, p.modulation);
    const T* scale = modulation + width;
    layernorm_forward(queue, LayerNormForward<T>{p.shape, x, modulation, scale, y});
    LayerNormBackward<T> backward{p.shape, x,     scale,       dy,
                                  dx,      false, dmodulation, dmodulation + width};
    layernorm_backward(queue, backward);
    backward.dx = dx_added;
    backward.accumulate = true;
    layernorm_backward(queue, backward);
    const Values d = dmodulation.values();
    return {{"y", y.values()},
            {"dx", dx.values()},
            {"dx added", dx_added.values()},
            {"dshift", columns(d, stride, 0, width)},
            {"dscale", columns(d, stride, width, width)},
            {"columns of others", columns(d, stride, 2 * width, stride - 2 * width)}};
  }
};

Results solve_double(const Problem& p) {
  return Solve{}.operator()<double>(cpu_queue(), p);
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("layernorm: gradients against central differences") {
    const Problem p({2, 5, 24, 72});
    const Results r = solve_double(p);
    check_gradient("x", p.x, r.at("dx"), [&](const Values& x) {
      Problem moved = p;
      moved.x = x;
      return dot(solve_double(moved).at("y"), p.dy);
    });
    const auto of_modulation = [&](std::int64_t begin) {
      return [&p, begin](const Values& part) {
        Problem moved = p;
        for (std::int64_t b = 0; b < p.shape.batch; ++b)
          std::copy_n(part.begin() + b * p.shape.width, p.shape.width,
                      moved.modulation.begin() + b * p.shape.modulation_stride + begin);
        return dot(solve_double(moved).at("y"), p.dy);
      };
    };
    const int width = p.shape.width;
    check_gradient("shift", columns(p.modulation, p.shape.modulation_stride, 0, width),
                   r.at("dshift"), of_modulation(0));
    check_gradient("scale", columns(p.modulation, p.shape.modulation_stride, width, width),
                   r.at("dscale"), of_modulation(width));
  }

  TEST_CASE("layernorm: accumulate adds to dx, and other columns of the modulations stay") {
    const Problem p({3, 4, 16, 64});
    const Results r = solve_double(p);
    Values sum = r.at("dx");
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += p.dx_before[i];
    expect_close("dx added", r.at("dx added"), sum, 1e-15);
    CHECK(r.at("columns of others") == columns(p.modulation, 64, 32, 32));
  }

  TEST_CASE("layernorm: without modulation a row has mean 0 and variance 1") {
    Problem p({2, 3, 40, 80});
    std::fill(p.modulation.begin(), p.modulation.end(), 0.0);
    const Values y = solve_double(p).at("y");
    for (std::size_t row = 0; row < y.size(); row += 40) {
      double mean = 0, square = 0;
      for (std::size_t c = 0; c < 40; ++c) {
        mean += y[row + c] / 40;
        square += y[row + c] * y[row + c] / 40;
      }
      CHECK(std::fabs(mean) < 1e-12);
      CHECK(std::fabs(square - 1) < 1e-5);  // eps is 1e-6 of a variance near 4
    }
  }

  TEST_CASE("layernorm: a constant row gives the shift and finite gradients") {
    Problem p({1, 2, 16, 32});
    std::fill(p.x.begin(), p.x.end(), 3.0);
    const Results r = Solve{}.operator()<float>(cpu_queue(), p.rounded<float>());
    const Values shift = columns(p.rounded<float>().modulation, 32, 0, 16);
    for (std::size_t i = 0; i < 32; ++i) CHECK(r.at("y")[i] == shift[i % 16]);
    for (double dx : r.at("dx")) CHECK(std::isfinite(dx));
  }

  // The mean is held to 2^-24 of 1e4, an error of 3e-4 standard deviations; E[x^2] - mean^2 would
  // be wrong by more than the variance.
  TEST_CASE("layernorm: float in rows far from zero") {
    const Problem p = Problem({2, 9, 128, 256}, 1e4).rounded<float>();
    const Results got = Solve{}.operator()<float>(cpu_queue(), p);
    expect_close("y", got.at("y"), solve_double(p).at("y"), 1e-3);
  }

  TEST_CASE("layernorm: float agrees with double") {
    for (const LayerNormShape& shape : kLayerNormCases) {
      const Problem p = Problem(shape).rounded<float>();
      INFO("[", shape.batch, ", ", shape.length, ", ", shape.width, "]");
      expect_close(Solve{}.operator()<float>(cpu_queue(), p), solve_double(p),
                   kLayerNormTolerance.f32);
    }
  }

  TEST_CASE("layernorm: the bits do not depend on the number of threads") {
    const Problem p({5, 67, 128, 768});
    CpuQueue one(1), three(3);
    expect_same_bits(Solve{}.operator()<float>(one, p), Solve{}.operator()<float>(three, p));
  }

  TEST_CASE("layernorm: shapes outside the contract are refused") {
    CHECK_THROWS_AS(Solve{}.operator()<double>(cpu_queue(), Problem({1, 1, 12, 24})), Error);
    CHECK_THROWS_AS(check_shape(LayerNormShape{1, 1, 4104, 8208}), Error);
    CHECK_THROWS_AS(check_shape(LayerNormShape{1, 0, 8, 8}), Error);
    CHECK_THROWS_AS(check_shape(LayerNormShape{2, 1, 16, 8}), Error);
  }
}

#if FM_CUDA
TEST_SUITE("gpu") {
  TEST_CASE("layernorm: CUDA agrees with the CPU") {
    for (const LayerNormShape& shape : kLayerNormCases) {
      INFO("[", shape.batch, ", ", shape.length, ", ", shape.width, "]");
      check_cuda(Problem(shape), kLayerNormTolerance, Solve{});
    }
  }

  TEST_CASE("layernorm: CUDA in rows far from zero") {
    const Problem p = Problem({2, 9, 128, 256}, 1e4).rounded<float>();
    expect_close("y", Solve{}.operator()<float>(cuda_queue(), p).at("y"), solve_double(p).at("y"),
                 1e-3);
  }
}
#endif

}  // namespace fm::test
