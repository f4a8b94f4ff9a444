// One kernel against the three of the CPU.
#include "kernels/patchify/velocity_head_cases.h"

#include "kernels/matmul/matmul.h"
#include "tests/support/cuda.h"

#if FM_CUDA
namespace fm::test {
namespace {

struct Problem {
  PatchShape patches;
  ResidualNormShape norm;
  bool narrow;
  Values x, f, modulation, gate, w, bias;

  Problem(const VelocityHeadCase& c, bool shared, bool narrow_stream)
      : patches(c.patches),
        norm{c.patches.batch, token_count(c.patches), c.width, shared ? 0 : 3 * c.width,
             shared ? 0 : c.width},
        narrow(narrow_stream),
        x(normals(rows() * c.width, 1, 2, 0.5)),
        f(normals(rows() * c.width, 2)),
        modulation(normals(3 * c.width * images(), 3, 0.5)),
        gate(normals(c.width * images(), 4)),
        w(normals(std::int64_t{c.width} * token_width(c.patches), 5)),
        bias(normals(token_width(c.patches), 6)) {}

  std::int64_t rows() const { return std::int64_t{norm.batch} * norm.length; }
  std::int64_t images() const { return norm.gate_stride ? norm.batch : 1; }

  template <class T>
  Problem rounded() const {
    Problem p = *this;
    p.x = narrow ? round_to<T>(x) : round_to<acc_t<T>>(x);
    for (Values* values : {&p.f, &p.modulation, &p.gate, &p.w, &p.bias})
      *values = round_to<T>(*values);
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
    const int width = p.norm.width, out = token_width(p.patches);
    Array<X, Q> x(queue, p.x);
    Array<T, Q> f(queue, p.f), modulation(queue, p.modulation), gate(queue, p.gate);
    Array<T, Q> w(queue, p.w), bias(queue, p.bias);
    Array<acc_t<T>, Q> v(queue, p.rows() * out);
    if constexpr (std::is_same_v<Q, CpuQueue>) {
      Array<T, Q> y(queue, p.rows() * width), tokens(queue, p.rows() * out);
      residual_norm_forward(queue, ResidualNormForward<T, T>{p.norm, x, f, gate, modulation,
                                                             modulation + width, x, y});
      linear_forward(queue, LinearForward<T, T>{{p.rows(), width, out}, y, w, bias, tokens});
      unpatchify(queue, Unpatchify<T, T>{p.patches, tokens, v});
    } else {
      velocity_head_forward(queue,
                            VelocityHeadForward<T, X>{p.norm, p.patches, x, f, gate, modulation,
                                                      modulation + width, w, bias, v});
    }
    return {{"v", v.values()}};
  }
};

}  // namespace

TEST_SUITE("gpu") {
  TEST_CASE("velocity_head: one kernel finds what three of the CPU do") {
    for (const VelocityHeadCase& c : kVelocityHeadCases)
      for (const bool shared : {false, true})
        for (const bool narrow : {false, true}) {
          INFO("width ", c.width, shared ? ", one modulation for all" : "",
               narrow ? ", narrow stream" : "");
          check_cuda(Problem(c, shared, narrow),
                     narrow ? kVelocityHeadNarrowTolerance : kVelocityHeadTolerance, Solve{});
        }
  }

  TEST_CASE("velocity_head: shapes it is not for") {
    CHECK(velocity_head_fits({1, 1, 512, 512, 512}, {1, 4, 2, 2, 2}));
    CHECK(!velocity_head_fits({1, 1, 520, 520, 520}, {1, 4, 2, 2, 2}));
    CHECK(!velocity_head_fits({1, 1, 512, 512, 512}, {1, 5, 2, 2, 2}));
  }
}

}  // namespace fm::test
#endif
