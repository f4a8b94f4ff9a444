#include "kernels/patchify/patchify_cases.h"
#include "tests/support/cuda.h"

namespace fm::test {
namespace {

struct Problem {
  PatchShape shape;
  Values image, tokens;

  explicit Problem(const PatchShape& s)
      : shape(s), image(normals(elements(), 1)), tokens(normals(elements(), 2)) {}

  std::int64_t elements() const {
    return static_cast<std::int64_t>(shape.batch) * shape.channels * shape.height * shape.width;
  }

  template <class T>
  Problem rounded() const {
    Problem p = *this;
    p.image = round_to<T>(image);
    p.tokens = round_to<acc_t<T>>(tokens);
    return p;
  }
};

struct Solve {
  template <class T, class Q>
  Results operator()(Q& queue, const Problem& p) const {
    Array<acc_t<T>, Q> image(queue, p.image), tokens(queue, p.tokens);
    Array<T, Q> patches(queue, p.elements());
    Array<acc_t<T>, Q> picture(queue, p.elements());
    patchify(queue, Patchify<acc_t<T>, T>{p.shape, image, patches});
    unpatchify(queue, Unpatchify<acc_t<T>, acc_t<T>>{p.shape, tokens, picture});
    return {{"tokens", patches.values()}, {"image", picture.values()}};
  }
};

Results solve_double(const Problem& p) {
  return Solve{}.operator()<double>(cpu_queue(), p);
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("patchify: the order of a token's elements") {
    Problem p({1, 2, 2, 4, 2});
    for (std::size_t i = 0; i < 16; ++i) p.image[i] = static_cast<double>(i);
    const Values want{0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15};
    CHECK(solve_double(p).at("tokens") == want);
  }

  TEST_CASE("patchify and unpatchify: inverse and adjoint of one another") {
    for (const PatchShape& shape : kPatchCases) {
      const Problem p(shape);
      INFO("[", shape.batch, ", ", shape.channels, ", ", shape.height, ", ", shape.width,
           "], patch ", shape.patch);
      const Results r = solve_double(p);
      Problem back = p;
      back.tokens = r.at("tokens");
      back.image = r.at("image");
      const Results again = solve_double(back);
      CHECK(again.at("image") == p.image);
      CHECK(again.at("tokens") == p.tokens);
      const double left = dot(r.at("tokens"), p.tokens), right = dot(p.image, r.at("image"));
      CHECK(std::fabs(left - right) <= 1e-10 * static_cast<double>(p.elements()));
    }
  }

  TEST_CASE("patchify: float agrees with double") {
    for (const PatchShape& shape : kPatchCases) {
      const Problem p = Problem(shape).rounded<float>();
      expect_close(Solve{}.operator()<float>(cpu_queue(), p), solve_double(p), kPatchTolerance.f32);
    }
  }

  TEST_CASE("patchify: a patch that does not divide the image is refused") {
    CHECK_THROWS_AS(solve_double(Problem({1, 1, 28, 28, 3})), Error);
    CHECK_THROWS_AS(check_shape(PatchShape{1, 0, 4, 4, 2}), Error);
  }
}

#if FM_CUDA
TEST_SUITE("gpu") {
  TEST_CASE("patchify: CUDA agrees with the CPU") {
    for (const PatchShape& shape : kPatchCases) {
      INFO("[", shape.batch, ", ", shape.channels, ", ", shape.height, ", ", shape.width,
           "], patch ", shape.patch);
      check_cuda(Problem(shape), kPatchTolerance, Solve{});
    }
  }
}
#endif

}  // namespace fm::test
