#include "apps/bench/kernel_bench.h"
#include "kernels/attention/attention_cases.h"

namespace fm {
namespace {

std::int64_t width(const AttentionShape& s) {
  return std::int64_t{s.heads} * s.head_dim;
}
std::int64_t tokens(const AttentionShape& s) {
  return std::int64_t{s.batch} * s.length;
}

Call forward(BenchArrays& a, const AttentionShape& s) {
  return a.typed([&]<class T>(auto& queue) {
    const std::int64_t count = tokens(s) * width(s);
    const AttentionForward<T> p{s, a.input<T>(3 * count), a.output<T>("o", count),
                                a.output<acc_t<T>>("lse", tokens(s) * s.heads)};
    return [&queue, p] { attention_forward(queue, p); };
  });
}

Call backward(BenchArrays& a, const AttentionShape& s) {
  return a.typed([&]<class T>(auto& queue) {
    const std::int64_t count = tokens(s) * width(s);
    const AttentionForward<T> saved{s, a.input<T>(3 * count), a.scratch<T>(count),
                                    a.scratch<acc_t<T>>(tokens(s) * s.heads)};
    attention_forward(queue, saved);
    const AttentionBackward<T> p{s,
                                 saved.qkv,
                                 saved.o,
                                 saved.lse,
                                 a.input<T>(count),
                                 a.output<T>("d_qkv", 3 * count),
                                 a.workspace(attention_backward_workspace<T>(s))};
    return [&queue, p] { attention_backward(queue, p); };
  });
}

void add(BenchList& list, const AttentionShape& timed) {
  const AttentionShape checked{2, 197, 3, timed.head_dim};
  const std::string shape =
      concat("b", timed.batch, " h", timed.heads, " L", timed.length, " d", timed.head_dim);
  list.add("attention", "forward", shape, kAttentionForwardTolerance,
           attention_forward_work(timed, list.compute), forward, checked, timed);
  list.add("attention", "backward", shape, kAttentionBackwardTolerance,
           attention_backward_work(timed, list.compute), backward, checked, timed);
}

}  // namespace

void bench_attention(BenchList& list) {
  AttentionShape paper = kAttentionPaper;
  paper.batch = list.scaled(paper.batch);
  add(list, paper);
  if (!list.more_shapes) return;
  for (const AttentionShape& shape : kAttentionTimed) add(list, shape);
}

}  // namespace fm
