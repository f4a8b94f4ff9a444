// Many small images as one picture, laid out as torchvision's make_grid does.
#pragma once

#include <cstdint>

#include "engine/io/png.h"

namespace fm {

struct ImageGrid {
  std::int64_t count, channels, height, width;
  const float* images;       // [count, channels, height, width], -1 black to 1 white
  std::int64_t per_row = 8;  // images a row; fewer images make a narrower picture
  std::int64_t padding = 2;  // black pixels around and between the images
};

// Values beyond [-1, 1] are clamped, NaN is black. 1 channel gives grey, 3 give RGB; of 2 the first
// is shown as grey, of 4 the first three as RGB. 64 digits of 28 x 28 make 242 x 242; one image
// alone stays as it is, without padding.
Image image_grid(const ImageGrid& grid);

}  // namespace fm
