#include "engine/ops/velocity_head.h"

#include "engine/ops/linear.h"
#include "engine/ops/patchify.h"
#include "kernels/patchify/velocity_head.h"

namespace fm {
namespace {

#if FM_CUDA
// One kernel, where no gradient is wanted; null data where the shape is not for
// it.
Tensor in_one(Context& context, const Residual& stream, const Columns& shift, const Columns& scale,
              const Parameter& w, const Parameter& b, const PatchShape& patches) {
  if (context.tape || !stream.pending || !std::holds_alternative<CudaQueue>(context.queue))
    return {};
  const auto& [f, gate] = *stream.pending;
  const std::int64_t images = stream.x.shape[0];
  const auto image_stride = [&](const Columns& columns) {  // 0: one row is every image's
    return columns.of.shape[0] < images ? 0 : columns.stride();
  };
  const ResidualNormShape norm{.batch = static_cast<int>(images),
                               .length = static_cast<int>(stream.x.shape[1]),
                               .width = static_cast<int>(stream.x.shape[2]),
                               .modulation_stride = image_stride(shift),
                               .gate_stride = image_stride(gate)};
  if (!velocity_head_fits(norm, patches)) return {};
  const Tensor v =
      context.make({images, patches.channels, patches.height, patches.width}, context.acc());
  context.run([&]<class T>(auto& queue) {
    if constexpr (std::is_same_v<std::decay_t<decltype(queue)>, CudaQueue>) {
      const auto head = [&]<class X>() {
        velocity_head_forward(queue, VelocityHeadForward<T, X>{.norm = norm,
                                                               .patches = patches,
                                                               .x = stream.x.as<X>(),
                                                               .f = f.as<T>(),
                                                               .gate = gate.as<T>(),
                                                               .shift = shift.as<T>(),
                                                               .scale = scale.as<T>(),
                                                               .w = w.compute.as<T>(),
                                                               .bias = b.compute.as<T>(),
                                                               .v = v.as<acc_t<T>>()});
      };
      if (context.stream() == dtype_of<T>()) head.template operator()<T>();
      else head.template operator()<acc_t<T>>();
    }
  });
  return v;
}
#endif

}  // namespace

Tensor velocity_head(Context& context, Residual stream, const Columns& shift, const Columns& scale,
                     const Parameter& w, const Parameter& b, int channels, int size, int patch) {
#if FM_CUDA
  const PatchShape patches{static_cast<int>(stream.x.shape[0]), channels, size, size, patch};
  if (const Tensor v = in_one(context, stream, shift, scale, w, b, patches)) return v;
#endif
  const Tensor m = residual_norm(context, stream, shift, scale);
  return unpatchify(context, linear(context, m, w, &b, true), channels, size, patch);
}

}  // namespace fm
