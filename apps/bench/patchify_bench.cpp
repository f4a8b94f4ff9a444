#include "apps/bench/kernel_bench.h"
#include "kernels/patchify/patchify_cases.h"

namespace fm {
namespace {

std::int64_t elements(const PatchShape& s) {
  return std::int64_t{s.batch} * s.channels * s.height * s.width;
}

// Of values that the compute type can hold, so that nothing is rounded.
Call to_tokens(BenchArrays& a, const PatchShape& s) {
  return a.typed([&]<class T>(auto& queue) {
    const Patchify<acc_t<T>, T> p{s, a.input<acc_t<T>>(elements(s)),
                                  a.output<T>("tokens", elements(s))};
    return [&queue, p] { patchify(queue, p); };
  });
}

Call to_image(BenchArrays& a, const PatchShape& s) {
  return a.typed([&]<class T>(auto& queue) {
    using R = acc_t<T>;
    const Unpatchify<R, R> p{s, a.wide_input<T>(elements(s)), a.output<R>("image", elements(s))};
    return [&queue, p] { unpatchify(queue, p); };
  });
}

constexpr int kEmbedded = 128;  // columns

// As in training: the tokens are kept.
Call embed(BenchArrays& a, const PatchShape& s) {
  return a.typed([&]<class T>(auto& queue) {
    using R = acc_t<T>;
    const std::int64_t length = token_count(s), in = token_width(s);
    const EmbedPatches<T, R> p{.shape = s,
                               .width = kEmbedded,
                               .image = a.input<R>(elements(s)),
                               .w = a.input<T>(kEmbedded * in),
                               .bias = a.input<T>(kEmbedded),
                               .position = a.wide_input<T>(length * kEmbedded),
                               .tokens = a.output<T>("tokens", elements(s)),
                               .x = a.output<R>("x", s.batch * length * kEmbedded)};
    return [&queue, p] { embed_patches(queue, p); };
  });
}

}  // namespace

void bench_patchify(BenchList& list) {
  const PatchShape checked = kPatchCases[2];
  PatchShape timed = kPatchPaper;
  timed.batch = list.scaled(timed.batch);
  const std::string shape =
      concat("b", timed.batch, " ", timed.height, "x", timed.width, " p", timed.patch);
  list.add("patchify", "to tokens", shape, kPatchTolerance, patchify_work(timed, list.compute),
           to_tokens, checked, timed);
  list.add("patchify", "to image", shape, kPatchTolerance,
           patchify_work(timed, acc_dtype(list.compute)), to_image, checked, timed);
  list.add("patchify", "embed", concat(shape, " d", kEmbedded), kEmbedPatchesTolerance,
           embed_patches_work(timed, kEmbedded, list.compute), embed, checked, timed);
}

}  // namespace fm
