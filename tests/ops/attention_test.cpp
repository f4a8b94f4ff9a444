#include "kernels/attention/attention_cases.h"
#include "tests/support/cuda.h"
#include "tests/support/files.h"

namespace fm::test {
namespace {

struct Problem {
  AttentionShape shape;
  Values qkv, d_o;

  explicit Problem(const AttentionShape& s, double scale = 1)
      : shape(s), qkv(normals(3 * count(s), 1, scale)), d_o(normals(count(s), 2)) {}

  static std::int64_t count(const AttentionShape& s) {
    return static_cast<std::int64_t>(s.batch) * s.length * s.heads * s.head_dim;
  }
  std::int64_t count() const { return count(shape); }
  std::int64_t rows() const { return count() / shape.head_dim; }

  template <class T>
  Problem rounded() const {
    Problem p = *this;
    p.qkv = round_to<T>(qkv);
    p.d_o = round_to<T>(d_o);
    return p;
  }
};

// Part 0, 1 or 2 (q, k or v) of an array [B, L, 3, H, hd].
Values part_of(const AttentionShape& s, const Values& qkv, std::size_t part) {
  const std::size_t width = static_cast<std::size_t>(s.heads) * s.head_dim;
  Values values;
  for (std::size_t at = part * width; at < qkv.size(); at += 3 * width)
    values.insert(values.end(), qkv.begin() + at, qkv.begin() + at + width);
  return values;
}

// One head of one image of [B, L, H, hd], and the problem of that head alone.
Values head_of(const AttentionShape& s, const Values& x, int image, int head) {
  Values values;
  for (int row = 0; row < s.length; ++row) {
    const auto at =
        x.begin() +
        ((static_cast<std::int64_t>(image) * s.length + row) * s.heads + head) * s.head_dim;
    values.insert(values.end(), at, at + s.head_dim);
  }
  return values;
}
Problem head_of(const Problem& p, int image, int head) {
  Problem alone({1, p.shape.length, 1, p.shape.head_dim});
  alone.d_o = head_of(p.shape, p.d_o, image, head);
  for (std::size_t part = 0; part < 3; ++part) {
    const Values x = head_of(p.shape, part_of(p.shape, p.qkv, part), image, head);
    const std::size_t dim = static_cast<std::size_t>(p.shape.head_dim);
    for (std::size_t i = 0; i < x.size(); ++i)
      alone.qkv[(i / dim * 3 + part) * dim + i % dim] = x[i];
  }
  return alone;
}

struct Forward {
  template <class T, class Q>
  Results operator()(Q& queue, const Problem& p) const {
    Array<T, Q> qkv(queue, p.qkv), o(queue, p.count());
    Array<acc_t<T>, Q> lse(queue, p.rows());
    attention_forward(queue, AttentionForward<T>{p.shape, qkv, o, lse});
    return {{"o", o.values()}, {"lse", lse.values()}};
  }
};

struct Backward {
  template <class T, class Q>
  Results operator()(Q& queue, const Problem& p) const {
    Array<T, Q> qkv(queue, p.qkv), d_o(queue, p.d_o), o(queue, p.count());
    Array<T, Q> d_qkv(queue, 3 * p.count());
    Array<acc_t<T>, Q> lse(queue, p.rows());
    Bytes<Q> workspace(queue, static_cast<std::int64_t>(attention_backward_workspace<T>(p.shape)));
    attention_forward(queue, AttentionForward<T>{p.shape, qkv, o, lse});
    attention_backward(queue,
                       AttentionBackward<T>{p.shape, qkv, o, lse, d_o, d_qkv, workspace.data()});
    const Values d = d_qkv.values();
    return {{"dq", part_of(p.shape, d, 0)},
            {"dk", part_of(p.shape, d, 1)},
            {"dv", part_of(p.shape, d, 2)}};
  }
};

template <class Check>
void for_each_case(Check&& check) {
  for (const int length : kAttentionLengths)
    for (const int head_dim : kAttentionHeadDims) check({2, length, 3, head_dim});
  for (const AttentionShape& shape : kAttentionMoreCases) check(shape);
}

// v the same in every token: o is that v whatever the weights, so rows of the softmax sum to one.
template <class T, class Q>
void check_constant_v(Q& queue, double tolerance) {
  Problem p = Problem({2, 197, 3, 16}).rounded<T>();
  const std::size_t width = 48, token = 3 * width;
  for (std::size_t at = token; at < p.qkv.size(); at += token)
    std::copy_n(p.qkv.begin() + 2 * width, width, p.qkv.begin() + at + 2 * width);
  expect_close("o", Forward{}.operator()<T>(queue, p).at("o"), part_of(p.shape, p.qkv, 2),
               tolerance);
}

// All tokens equal: every weight is 1 / L, so that lse = q k / sqrt(hd) + log L, o = v and nothing
// flows to q; what flows to v is the mean of d_o.
template <class T, class Q>
void check_equal_tokens(Q& queue, double tolerance) {
  Problem p = Problem({1, 196, 2, 24}).rounded<T>();
  const std::size_t token = 3 * 48;
  for (std::size_t at = token; at < p.qkv.size(); at += token)
    std::copy_n(p.qkv.begin(), token, p.qkv.begin() + at);
  const Results r = Forward{}.operator()<T>(queue, p);
  const Results d = Backward{}.operator()<T>(queue, p);
  expect_close("o", r.at("o"), part_of(p.shape, p.qkv, 2), tolerance);
  Values lse, mean(p.d_o.size());
  for (std::size_t h = 0; h < 2; ++h) {
    double product = 0;
    for (std::size_t i = 0; i < 24; ++i)
      product += p.qkv[h * 24 + i] * p.qkv[48 + h * 24 + i] / std::sqrt(24.0);
    lse.insert(lse.end(), 196, product + std::log(196.0));
  }
  for (std::size_t i = 0; i < mean.size(); ++i)
    for (std::size_t j = i % 48; j < mean.size(); j += 48) mean[i] += p.d_o[j] / 196;
  expect_close("lse", r.at("lse"), lse, tolerance);
  expect_close("dv", d.at("dv"), mean, 2 * tolerance);
  CHECK(dot(d.at("dq"), d.at("dq")) <= tolerance * tolerance * dot(p.d_o, p.d_o));
}

// Scores up to about +-80, as far as float's exp reaches: no overflow, no NaN, right all the same.
// Nearly all weight is on one key, where d_o v - sum(d_o o) cancels and the rounding of o is what
// remains: the gradients get twice their usual tolerance, 4 times that of o.
template <class T, class Q>
void check_large_scores(Q& queue, double tolerance, int length = 197) {
  Problem p = Problem({1, length, 2, 16}).rounded<T>();
  for (std::size_t at = 0; at < p.qkv.size(); at += 96)
    for (std::size_t i = 0; i < 64; ++i) p.qkv[at + i] *= 4;
  // One query whose scores are all near -80: padded keys, whose score would be 0, must not count.
  for (std::size_t at = 32; at < p.qkv.size(); at += 96) p.qkv[at] = 20;
  p.qkv[0] = -16;
  expect_close(Forward{}.operator()<T>(queue, p), Forward{}.operator()<double>(cpu_queue(), p),
               tolerance);
  expect_close(Backward{}.operator()<T>(queue, p), Backward{}.operator()<double>(cpu_queue(), p),
               4 * tolerance);
}

template <class T, class Q>
void check_without_lse(Q& queue) {
  const Problem p = Problem({2, 33, 2, 16}).rounded<T>();
  Array<T, Q> qkv(queue, p.qkv), o(queue, p.count());
  attention_forward(queue, AttentionForward<T>{p.shape, qkv, o, nullptr});
  expect_same_bits({{"o", o.values()}}, {{"o", Forward{}.operator()<T>(queue, p).at("o")}});
}

template <class T, class Q>
void check_refusals(Q& queue) {
  for (const int head_dim : {20, 136, 0})
    expect_fault(
        Fault::usage,
        concat("[attention] head_dim must be a multiple of 8, at most 128, got ", head_dim,
               " (qkv: [64, 196, 3, 8, ", head_dim, "] ", name_of(dtype_of<T>()), ")"),
        [&] {
          attention_forward(queue, AttentionForward<T>{{64, 196, 8, head_dim}, {}, {}, {}});
        });
  expect_fault(Fault::usage, "[attention] batch, length and heads must be positive", [&] {
    attention_backward(queue, AttentionBackward<T>{{4, 0, 8, 16}, {}, {}, {}, {}, {}, {}});
  });
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("attention: gradient against central differences") {
    const Problem p({2, 7, 2, 8});
    const Results r = Backward{}.operator()<double>(cpu_queue(), p);
    const std::size_t width = 16;
    for (const char* name : {"dq", "dk", "dv"}) {
      const std::size_t part = name[1] == 'q' ? 0 : name[1] == 'k' ? 1 : 2;
      check_gradient(name, part_of(p.shape, p.qkv, part), r.at(name), [&](const Values& x) {
        Problem moved = p;
        for (std::size_t i = 0; i < x.size(); ++i)
          moved.qkv[(i / width * 3 + part) * width + i % width] = x[i];
        return dot(Forward{}.operator()<double>(cpu_queue(), moved).at("o"), p.d_o);
      });
    }
  }

  TEST_CASE("attention: float agrees with double") {
    for_each_case([](const AttentionShape& shape) {
      const Problem p = Problem(shape).rounded<float>();
      INFO(shape.batch, " ", shape.length, " ", shape.heads, " ", shape.head_dim);
      expect_close(Forward{}.operator()<float>(cpu_queue(), p),
                   Forward{}.operator()<double>(cpu_queue(), p), kAttentionForwardTolerance.f32);
      expect_close(Backward{}.operator()<float>(cpu_queue(), p),
                   Backward{}.operator()<double>(cpu_queue(), p), kAttentionBackwardTolerance.f32);
    });
  }

  TEST_CASE("attention: constant v, equal tokens, large scores") {
    check_constant_v<double>(cpu_queue(), 1e-12);
    check_constant_v<float>(cpu_queue(), kAttentionForwardTolerance.f32);
    check_equal_tokens<double>(cpu_queue(), 1e-12);
    check_equal_tokens<float>(cpu_queue(), kAttentionForwardTolerance.f32);
    check_large_scores<float>(cpu_queue(), kAttentionForwardTolerance.f32);
  }

  TEST_CASE("attention: the number of threads changes no bit") {
    const Problem p = Problem({2, 196, 3, 16}).rounded<float>();
    CpuQueue one(1), three(3);
    expect_same_bits(Forward{}.operator()<float>(one, p), Forward{}.operator()<float>(three, p));
    expect_same_bits(Backward{}.operator()<float>(one, p), Backward{}.operator()<float>(three, p));
  }

  TEST_CASE("attention: a head sees nothing of other heads and images") {
    const Problem p = Problem({2, 33, 3, 24}).rounded<float>(), alone = head_of(p, 1, 2);
    const Results d = Backward{}.operator()<float>(cpu_queue(), p);
    for (const auto& [name, want] : Backward{}.operator()<float>(cpu_queue(), alone))
      expect_same_bits({{name, head_of(p.shape, d.at(name), 1, 2)}}, {{name, want}});
  }

  TEST_CASE("attention: lse may be null; shapes outside the contract are refused") {
    check_without_lse<double>(cpu_queue());
    check_without_lse<float>(cpu_queue());
    check_refusals<float>(cpu_queue());
    check_refusals<double>(cpu_queue());
  }
}

#if FM_CUDA
TEST_SUITE("gpu") {
  TEST_CASE("attention: CUDA agrees with the CPU") {
    for_each_case([](AttentionShape shape) {
      if (small_effort()) shape.batch = shape.heads = 1;
      INFO(shape.batch, " ", shape.length, " ", shape.heads, " ", shape.head_dim);
      check_cuda(Problem(shape), kAttentionForwardTolerance, Forward{});
      check_cuda(Problem(shape), kAttentionBackwardTolerance, Backward{});
    });
  }

  TEST_CASE("attention: CUDA, queries spread over several blocks have the same bits") {
    CudaQueue filled(0);
    filled.limits.multiprocessors = 1;  // one head fills it, and its queries stay together
    for (const int length : {1, 77, 196, 224})
      for (const int head_dim : {8, 16, 32}) {
        INFO(length, " ", head_dim);
        const Problem p = Problem({2, length, 3, head_dim}).rounded<f16>();
        expect_same_bits(Forward{}.operator()<f16>(cuda_queue(), p),
                         Forward{}.operator()<f16>(filled, p));
      }
    check_large_scores<f16>(filled, kAttentionForwardTolerance.f16);
  }

  TEST_CASE("attention: CUDA, the backward where a head does not fit into shared memory") {
    CudaQueue small(0);
    small.limits.shared_bytes_per_block = 16 * 1024;
    const int images = small_effort() ? 1 : 2, heads = small_effort() ? 1 : 3;
    for (const int length : kAttentionLengths)
      for (const int head_dim : {8, 16, 24, 32}) {
        INFO(length, " ", head_dim);
        check_cuda(Problem({images, length, heads, head_dim}), kAttentionBackwardTolerance,
                   Backward{}, small);
      }
    if (small_effort()) return;
    check_large_scores<f16>(small, kAttentionForwardTolerance.f16);
    check_large_scores<bf16>(small, kAttentionForwardTolerance.bf16);
  }

  TEST_CASE("attention: CUDA, blocks that walk several heads") {
    CudaQueue few(0);
    few.limits.multiprocessors = 1;
    const int images = small_effort() ? 1 : 3;
    for (const int length : {1, 7, 196, 197, 224, 256})
      for (const int head_dim : {8, 16, 24, 32}) {
        INFO(length, " ", head_dim);
        check_cuda(Problem({images, length, 3, head_dim}), kAttentionBackwardTolerance, Backward{},
                   few);
      }
    if (small_effort()) return;
    check_large_scores<f16>(few, kAttentionForwardTolerance.f16);
    check_large_scores<bf16>(few, kAttentionForwardTolerance.bf16);
  }

  TEST_CASE("attention: CUDA, constant v, equal tokens, large scores") {
    if (small_effort()) return;
    const Tolerance& tolerance = kAttentionForwardTolerance;
    check_constant_v<float>(cuda_queue(), tolerance.f32);
    check_constant_v<f16>(cuda_queue(), tolerance.f16);
    check_constant_v<bf16>(cuda_queue(), tolerance.bf16);
    check_equal_tokens<float>(cuda_queue(), tolerance.f32);
    check_equal_tokens<f16>(cuda_queue(), tolerance.f16);
    check_equal_tokens<bf16>(cuda_queue(), tolerance.bf16);
    check_large_scores<float>(cuda_queue(), tolerance.f32);
    check_large_scores<f16>(cuda_queue(), tolerance.f16);
    check_large_scores<bf16>(cuda_queue(), tolerance.bf16);
    check_large_scores<f16>(cuda_queue(), tolerance.f16, 500);  // keys in stages
    check_large_scores<bf16>(cuda_queue(), tolerance.bf16, 500);
  }

  TEST_CASE("attention: CUDA, lse may be null; shapes outside the contract are refused") {
    check_without_lse<float>(cuda_queue());
    check_without_lse<f16>(cuda_queue());
    check_refusals<float>(cuda_queue());
    check_refusals<bf16>(cuda_queue());
  }

  TEST_CASE("attention: CUDA, a long sequence in memory that grows with its length") {
    if (small_effort()) return;
    const AttentionShape shape{4, 4096, 8, 16};
    const Problem p = Problem(shape).rounded<f16>();
    CudaQueue queue(0);
    const Results r = Forward{}.operator()<f16>(queue, p), d = Backward{}.operator()<f16>(queue, p);
    CHECK(queue.memory().peak() < std::size_t{1} << 27);

    const int image = 3, head = 5;
    const Problem alone = head_of(p, image, head);
    expect_close("o", head_of(shape, r.at("o"), image, head),
                 Forward{}.operator()<double>(cpu_queue(), alone).at("o"),
                 kAttentionForwardTolerance.f16);
    for (const auto& [name, want] : Backward{}.operator()<double>(cpu_queue(), alone))
      expect_close(name, head_of(shape, d.at(name), image, head), want,
                   kAttentionBackwardTolerance.f16);
  }
}
#endif

}  // namespace fm::test
