#include "kernels/selective_scan/selective_scan_cases.h"
#include "tests/support/cuda.h"

namespace fm::test {
namespace {

// z is the right half of rows of 2 channels.
struct Problem {
  int rows, channels;
  Values y, z;

  Problem(int r, int c) : rows(r), channels(c), y(normals(r * c, 1)), z(normals(2 * r * c, 2, 3)) {}

  template <class T>
  Problem rounded() const {
    Problem p = *this;
    for (Values* values : {&p.y, &p.z}) *values = round_to<T>(*values);
    return p;
  }
};

struct Solve {
  template <class T, class Q>
  Results operator()(Q& queue, const Problem& p) const {
    Array<T, Q> y(queue, p.y), z(queue, p.z), o(queue, p.rows * p.channels);
    scan_gate(queue, ScanGate<T>{.rows = p.rows,
                                 .channels = p.channels,
                                 .y = y,
                                 .z = z + p.channels,
                                 .z_stride = 2 * p.channels,
                                 .o = o});
    return {{"o", o.values()}};
  }
};

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("selective_scan: the gate alone is y silu(z)") {
    const Problem p(7, 12);
    const Values o = Solve{}.operator()<double>(cpu_queue(), p).at("o");
    for (int row = 0; row < p.rows; ++row)
      for (int c = 0; c < p.channels; ++c) {
        const double z = p.z[static_cast<std::size_t>((2 * row + 1) * p.channels + c)];
        const auto at = static_cast<std::size_t>(row * p.channels + c);
        CHECK(o[at] == doctest::Approx(p.y[at] * z / (1 + std::exp(-z))).epsilon(1e-14));
      }
  }
}

#if FM_CUDA
TEST_SUITE("gpu") {
  TEST_CASE("selective_scan: CUDA's gate alone agrees with the CPU") {
    for (const auto& [rows, channels] : {std::pair{9, 1}, {33, 40}, {700, 512}, {5, 515}})
      check_cuda(Problem(rows, channels), kScanTolerance, Solve{});
  }
}
#endif

}  // namespace fm::test
