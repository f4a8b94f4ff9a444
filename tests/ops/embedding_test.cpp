#include "kernels/embedding/embedding_cases.h"
#include "tests/support/cuda.h"

namespace fm::test {
namespace {

struct Problem {
  EmbeddingShape shape;
  Values t, labels, table, x, dy;

  explicit Problem(const EmbeddingShape& s)
      : shape(s),
        table(normals((s.classes + 1) * s.width, 2)),
        x(normals(s.batch * s.width, 3)),
        dy(normals(s.batch * s.width, 4)) {
    for (int b = 0; b < s.batch; ++b) {
      t.push_back((b + 0.37) / s.batch);
      labels.push_back(b * 7 % (s.classes + 3) - 1);  // -1 and two beyond the table among them
    }
  }

  template <class T>
  Problem rounded() const {
    Problem p = *this;
    p.t = round_to<acc_t<T>>(t);
    p.table = round_to<T>(table);
    p.x = round_to<T>(x);
    p.dy = round_to<T>(dy);
    return p;
  }
};

struct Solve {
  template <class T, class Q>
  Results operator()(Q& queue, const Problem& p) const {
    const auto [batch, width, classes] = p.shape;
    Array<acc_t<T>, Q> t(queue, p.t);
    Array<acc_t<T>, Q> dtable(queue, (classes + 1) * width);
    Array<std::int32_t, Q> labels(queue, p.labels);
    Array<T, Q> table(queue, p.table), x(queue, p.x), dy(queue, p.dy);
    Array<T, Q> wave(queue, batch * width), y(queue, batch * width);
    sinusoid_embedding(queue, SinusoidEmbedding<T>{batch, width, 1000, t, wave});
    label_forward(queue, LabelForward<T>{batch, width, classes, labels, table, x, y});
    label_forward(queue, LabelForward<T>{batch, width, classes, labels, table, x, x});
    label_backward(queue, LabelBackward<T>{batch, width, classes, labels, dy, dtable});
    return {{"sinusoid", wave.values()},
            {"y", y.values()},
            {"y in place", x.values()},
            {"dtable", dtable.values()}};
  }
};

Results solve_double(const Problem& p) {
  return Solve{}.operator()<double>(cpu_queue(), p);
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("sinusoid_embedding: values by hand") {
    Problem p({2, 4, 0});
    p.t = {0, 0.25};
    const Values want{0,
                      0,
                      1,
                      1,
                      std::sin(250.0),
                      std::sin(2.5),
                      std::cos(250.0),
                      std::cos(2.5)};  // frequencies 1 and 10000^(-1/2)
    expect_close("sinusoid", solve_double(p).at("sinusoid"), want, 1e-14);
  }

  TEST_CASE("label_embedding: gradients against central differences") {
    const Problem p({11, 8, 3});
    const Results r = solve_double(p);
    check_gradient("table", p.table, r.at("dtable"), [&](const Values& table) {
      Problem moved = p;
      moved.table = table;
      return dot(solve_double(moved).at("y"), p.dy);
    });
    check_gradient("x", p.x, p.dy, [&](const Values& x) {  // dy itself, as the header says
      Problem moved = p;
      moved.x = x;
      return dot(solve_double(moved).at("y"), p.dy);
    });
  }

  TEST_CASE("label_embedding: labels outside the table are the null label; unused rows get zero") {
    Problem p({5, 4, 3});
    p.labels = {-1, 3, 4, 1000000, 1};
    const Results r = solve_double(p);
    for (std::size_t c = 0; c < 4; ++c) {
      for (std::size_t b = 0; b < 4; ++b)
        CHECK(r.at("y")[b * 4 + c] == p.x[b * 4 + c] + p.table[3 * 4 + c]);
      CHECK(r.at("y")[4 * 4 + c] == p.x[4 * 4 + c] + p.table[1 * 4 + c]);
      CHECK(r.at("dtable")[0 * 4 + c] == 0);
      CHECK(r.at("dtable")[1 * 4 + c] == p.dy[4 * 4 + c]);
      CHECK(r.at("dtable")[2 * 4 + c] == 0);
      CHECK(r.at("dtable")[3 * 4 + c] == p.dy[c] + p.dy[4 + c] + p.dy[8 + c] + p.dy[12 + c]);
    }
  }

  TEST_CASE("embedding: float agrees with double") {
    for (const EmbeddingShape& shape : kEmbeddingCases) {
      const Problem p = Problem(shape).rounded<float>();
      INFO("[", shape.batch, ", ", shape.width, "]");
      const Results got = Solve{}.operator()<float>(cpu_queue(), p);
      expect_close(got, solve_double(p), kEmbeddingTolerance.f32);
      CHECK(got.at("y") == got.at("y in place"));
    }
  }

  TEST_CASE("embedding: shapes outside the contract are refused") {
    CHECK_THROWS_AS(solve_double(Problem({2, 7, 1})), Error);
    CHECK_THROWS_AS(check_label_shape(1, 8, -1), Error);
  }
}

#if FM_CUDA
TEST_SUITE("gpu") {
  TEST_CASE("embedding: CUDA agrees with the CPU") {
    for (const EmbeddingShape& shape : kEmbeddingCases) {
      INFO("[", shape.batch, ", ", shape.width, "]");
      check_cuda(Problem(shape), kEmbeddingTolerance, Solve{});
    }
  }
}
#endif

}  // namespace fm::test
