#include "engine/ops/patchify.h"

#include "engine/ops/linear.h"
#include "engine/tape.h"
#include "kernels/patchify/patchify.h"

namespace fm {

Tensor embed_patches(Context& context, const Tensor& image, int patch, const Parameter& w,
                     const Parameter& b, const Tensor& position) {
  FM_CHECK(image.shape.rank() == 4 && patch > 0 && image.shape[2] % patch == 0 &&
               image.shape[3] % patch == 0,
           "[embed_patches] the patch must divide the image, got patch ", patch, ", image ", image);
  const PatchShape shape{static_cast<int>(image.shape[0]), static_cast<int>(image.shape[1]),
                         static_cast<int>(image.shape[2]), static_cast<int>(image.shape[3]), patch};
  const std::int64_t batch = image.shape[0], length = token_count(shape), in = token_width(shape);
  FM_CHECK(w.shape.rank() == 2 && w.shape[1] == in && position.shape == (Shape{length, w.shape[0]}),
           "[embed_patches] w must be [d, ", in, "] and the positions [", length, ", d], got ",
           w.shape, " and ", position);
  const Tensor x = context.make({batch, length, w.shape[0]}, context.stream());
  // What the weights' gradient reads.
  const Tensor tokens = context.tape ? context.make({batch, length, in}) : Tensor{};
  context.run([&]<class T>(auto& queue) {
    const auto embed = [&]<class X>() {
      embed_patches(queue, EmbedPatches<T, X>{.shape = shape,
                                              .width = static_cast<int>(w.shape[0]),
                                              .image = image.as<acc_t<T>>(),
                                              .w = w.compute.as<T>(),
                                              .bias = b.compute.as<T>(),
                                              .position = position.as<acc_t<T>>(),
                                              .tokens = tokens ? tokens.as<T>() : nullptr,
                                              .x = x.as<X>()});
    };
    if (context.stream() == dtype_of<T>()) embed.template operator()<T>();
    else embed.template operator()<acc_t<T>>();
  });
  if (context.tape) {
    context.tape->constant(tokens);
    record_linear(context, tokens, w, &b, x);
  }
  return x;
}

Tensor unpatchify(Context& context, const Tensor& tokens, int channels, int size, int patch) {
  const std::int64_t side = size / patch;
  FM_CHECK(tokens.shape.rank() == 3 && tokens.shape[1] == side * side &&
               tokens.shape[2] == channels * patch * patch,
           "[unpatchify] tokens must be [B, ", side * side, ", ", channels * patch * patch,
           "], got ", tokens);
  const PatchShape shape{static_cast<int>(tokens.shape[0]), channels, size, size, patch};
  const Tensor image = context.make({tokens.shape[0], channels, size, size}, context.acc());
  context.run([&]<class T>(auto& queue) {
    using A = acc_t<T>;
    unpatchify(queue, Unpatchify<A, A>{shape, tokens.as<A>(), image.as<A>()});
  });
  if (context.tape) {
    context.tape->record(
        {"unpatchify", image, {}, [&context, shape, tokens, image] {
           const Tape::Target target = context.tape->target(tokens);
           FM_CHECK(!target.accumulate, "[unpatchify] the tokens must have no other use");
           context.run([&]<class T>(auto& queue) {
             using A = acc_t<T>;
             patchify(queue, Patchify<A, A>{shape, context.tape->gradient(image).as<A>(),
                                            target.gradient.as<A>()});
           });
         }});
  }
  return image;
}

}  // namespace fm
