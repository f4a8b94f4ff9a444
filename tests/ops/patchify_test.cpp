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

// Patches of `shape`, embedded in `width` columns.
struct Embedding {
  PatchShape shape;
  int width;
  Values image, w, bias, position;
  bool narrow = false;  // the stream in the compute type

  Embedding(const PatchShape& s, int columns)
      : shape(s),
        width(columns),
        image(normals(std::int64_t{s.batch} * token_count(s) * token_width(s), 1)),
        w(normals(std::int64_t{columns} * token_width(s), 2)),
        bias(normals(columns, 3)),
        position(normals(std::int64_t{columns} * token_count(s), 4)) {}

  template <class T>
  Embedding rounded() const {
    Embedding p = *this;
    p.image = round_to<T>(image);
    p.w = round_to<T>(w);
    p.bias = round_to<T>(bias);
    p.position = round_to<acc_t<T>>(position);
    return p;
  }
};

struct Embed {
  template <class T, class Q>
  Results operator()(Q& queue, const Embedding& p) const {
    return p.narrow ? solve<T, T>(queue, p) : solve<T, acc_t<T>>(queue, p);
  }
  template <class T, class X, class Q>
  static Results solve(Q& queue, const Embedding& p) {
    const std::int64_t rows = std::int64_t{p.shape.batch} * token_count(p.shape);
    Array<acc_t<T>, Q> image(queue, p.image), position(queue, p.position);
    Array<T, Q> w(queue, p.w), bias(queue, p.bias);
    Array<T, Q> tokens(queue, rows * token_width(p.shape));
    Array<X, Q> x(queue, rows * p.width), x_alone(queue, rows * p.width);
    EmbedPatches<T, X> embed{p.shape, p.width, image, w, bias, position, tokens, x};
    embed_patches(queue, embed);
    embed.tokens = nullptr;
    embed.x = x_alone;
    embed_patches(queue, embed);
    return {{"x", x.values()}, {"x alone", x_alone.values()}, {"tokens", tokens.values()}};
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

  TEST_CASE("embed_patches: the product of the patches, by hand") {
    Embedding p({1, 1, 2, 4, 2}, 4);
    p.image = {1, 2, 5, 6, 3, 4, 7, 8};
    p.w = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 10, 0, 0, 0, 0, 100};
    p.bias = {0.5, 0, 0, 0};
    p.position = {0, 0, 0, 1000, 0, 0, 0, 2000};
    const Results r = Embed{}.operator()<double>(cpu_queue(), p);
    CHECK(r.at("tokens") == Values{1, 2, 3, 4, 5, 6, 7, 8});
    CHECK(r.at("x") == Values{1.5, 2, 30, 1400, 5.5, 6, 70, 2800});
    CHECK(r.at("x alone") == r.at("x"));
  }

  TEST_CASE("embed_patches: float agrees with double") {
    for (const PatchShape& shape : kPatchCases) {
      const Embedding p = Embedding(shape, 20).rounded<float>();
      expect_close(Embed{}.operator()<float>(cpu_queue(), p),
                   Embed{}.operator()<double>(cpu_queue(), p), kEmbedPatchesTolerance.f32);
    }
  }

  TEST_CASE("patchify: a patch that does not divide the image is refused") {
    CHECK_THROWS_AS(solve_double(Problem({1, 1, 28, 28, 3})), Error);
    CHECK_THROWS_AS(check_shape(PatchShape{1, 0, 4, 4, 2}), Error);
    CHECK_THROWS_AS(check_embedding({1, 1, 4, 4, 2}, 6), Error);
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

  TEST_CASE("embed_patches: CUDA agrees with the CPU") {
    CudaQueue filled(0);
    filled.limits.multiprocessors = 1;  // a few tokens fill it: warps take several
    for (const PatchShape& shape : kPatchCases)
      for (const int width : {4, 128, 260})
        for (const bool narrow : {false, true}) {
          Embedding p(shape, width);
          p.narrow = narrow;
          INFO("[", shape.batch, ", ", shape.channels, ", ", shape.height, ", ", shape.width,
               "], patch ", shape.patch, ", width ", width, narrow ? ", narrow stream" : "");
          const Tolerance& tolerance =
              narrow ? kEmbedPatchesNarrowTolerance : kEmbedPatchesTolerance;
          check_cuda(p, tolerance, Embed{});
          check_cuda(p, tolerance, Embed{}, filled);
        }
  }
}
#endif

}  // namespace fm::test
