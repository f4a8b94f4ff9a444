#include "engine/ops/patchify.h"

#include "engine/tape.h"
#include "kernels/patchify/patchify.h"

namespace fm {

Tensor patchify(Context& context, const Tensor& image, int patch) {
  FM_CHECK(image.shape.rank() == 4 && patch > 0 && image.shape[2] % patch == 0 &&
               image.shape[3] % patch == 0,
           "[patchify] the patch must divide the image, got patch ", patch, ", image ", image);
  const PatchShape shape{static_cast<int>(image.shape[0]), static_cast<int>(image.shape[1]),
                         static_cast<int>(image.shape[2]), static_cast<int>(image.shape[3]), patch};
  const std::int64_t length = image.shape[2] / patch * (image.shape[3] / patch);
  const Tensor tokens = context.make({image.shape[0], length, image.shape[1] * patch * patch});
  context.run([&]<class T>(auto& queue) {
    patchify(queue, Patchify<acc_t<T>, T>{shape, image.as<acc_t<T>>(), tokens.as<T>()});
  });
  if (context.tape) context.tape->constant(tokens);
  return tokens;
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
