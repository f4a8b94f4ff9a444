// One image of a batch and its contract, for both backends.
#pragma once

#include <algorithm>

#include "kernels/base/check.h"
#include "kernels/flow/flow_sample.h"
#include "kernels/image_batch/image_batch.h"

namespace fm {

// How far the image at place b of a step's batch moves: each way in [-max_shift, max_shift], all
// equally likely to within 2^-32.
struct ImageShift {
  int down, right;
};
FM_HOST_DEVICE int shift_of(std::uint32_t word, int max_shift) {
  const auto ways = static_cast<std::uint64_t>(2 * max_shift + 1);
  return static_cast<int>(word * ways >> 32) - max_shift;
}
FM_HOST_DEVICE ImageShift image_shift(int max_shift, std::uint64_t seed, std::uint64_t step,
                                      int b) {
  const Random4 words = random4(flow_key(seed, stream::shift, step, b), 0);
  return {shift_of(words.x0, max_shift), shift_of(words.x1, max_shift)};
}

template <class R>
void check_image_batch(const ImageBatch<R>& p) {
  FM_CHECK(p.batch > 0 && p.images >= p.batch && p.images <= std::int64_t{1} << 32,
           "[image_batch] the data set must hold between one batch and 2^32 images, got batch ",
           p.batch, " of ", p.images);
  FM_CHECK(p.channels > 0 && p.height > 0 && p.width > 0,
           "[image_batch] images must have channels, height and width, got [", p.channels, ", ",
           p.height, ", ", p.width, "]");
  FM_CHECK(p.max_shift >= 0 && p.max_shift < std::min(p.height, p.width),
           "[image_batch] max_shift must leave a part of the image, got ", p.max_shift, " for ",
           p.height, " x ", p.width);
}

}  // namespace fm
