#include <algorithm>

#include "apps/bench/kernel_bench.h"
#include "kernels/matmul/matmul.h"
#include "kernels/patchify/patchify_cases.h"
#include "kernels/patchify/velocity_head_cases.h"

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

// As in sampling, with a modulation an image. The CPU has no such kernel: there, what it fuses.
Call velocity_head(BenchArrays& a, const VelocityHeadCase& c) {
  return a.typed([&]<class T, class Q>(Q& queue) -> Call {
    using R = acc_t<T>;
    const PatchShape& patches = c.patches;
    const ResidualNormShape norm{patches.batch, token_count(patches), c.width, 2 * c.width,
                                 c.width};
    const std::int64_t rows = std::int64_t{norm.batch} * norm.length, out = token_width(patches);
    const R* const x = a.wide_input<T>(rows * c.width);
    const T* const f = a.input<T>(rows * c.width);
    const T* const gate = a.input<T>(norm.batch * c.width);
    const T* const shift = a.input<T>(2 * norm.batch * c.width);
    const T* const scale = shift + c.width;
    const T* const w = a.input<T>(c.width * out, {.deviation = 0.1});
    const T* const bias = a.input<T>(out);
    R* const v = a.output<R>("v", elements(patches));
    if constexpr (std::is_same_v<Q, CudaQueue>) {
      const VelocityHeadForward<T, R> p{norm, patches, x, f, gate, shift, scale, w, bias, v};
      return [&queue, p] { velocity_head_forward(queue, p); };
    } else {
      T* const y = a.scratch<T>(rows * c.width);
      T* const tokens = a.scratch<T>(rows * out);
      R* const sum = a.scratch<R>(rows * c.width);
      const ResidualNormForward<T, R> first{norm, x, f, gate, shift, scale, sum, y};
      const LinearForward<T, T> second{
          {.rows = rows, .in = c.width, .out = static_cast<int>(out)}, y, w, bias, tokens};
      const Unpatchify<T, R> third{patches, tokens, v};
      return [&queue, first, second, third] {
        residual_norm_forward(queue, first);
        linear_forward(queue, second);
        unpatchify(queue, third);
      };
    }
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
  VelocityHeadCase sampled = kVelocityHeadPaper;
  sampled.patches.batch = std::max(1, list.batch / 4);  // of 256: 64
  list.add("patchify", "velocity head",
           concat("b", sampled.patches.batch, " ", timed.height, "x", timed.width, " p",
                  timed.patch, " d", sampled.width),
           kVelocityHeadTolerance, velocity_head_work(sampled, list.compute), velocity_head,
           kVelocityHeadCases[1], sampled);
}

}  // namespace fm
