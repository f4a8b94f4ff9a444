#include "engine/io/image_grid.h"

#include <algorithm>

#include "kernels/base/check.h"

namespace fm {
namespace {

std::uint8_t to_byte(float value) {
  const float scaled = (value + 1) * 127.5f + 0.5f;
  if (!(scaled > 0)) return 0;  // NaN too
  return static_cast<std::uint8_t>(std::min(scaled, 255.0f));
}

}  // namespace

Image image_grid(const ImageGrid& grid) {
  FM_CHECK(grid.count >= 1 && grid.channels >= 1 && grid.channels <= 4 && grid.height >= 1 &&
               grid.width >= 1,
           "[image_grid] images must be [N, 1 to 4, H, W], got [", grid.count, ", ", grid.channels,
           ", ", grid.height, ", ", grid.width, "]");
  FM_CHECK(grid.per_row >= 1 && grid.padding >= 0,
           "[image_grid] per_row must be at least 1 and padding at least 0, got ", grid.per_row,
           " and ", grid.padding);
  const std::int64_t padding = grid.count == 1 ? 0 : grid.padding;
  const std::int64_t columns = std::min(grid.per_row, grid.count);
  const std::int64_t rows = (grid.count + columns - 1) / columns;
  Image picture;
  picture.channels = grid.channels >= 3 ? 3 : 1;
  picture.width = columns * (grid.width + padding) + padding;
  picture.height = rows * (grid.height + padding) + padding;
  picture.pixels.resize(
      static_cast<std::size_t>(picture.width * picture.height * picture.channels));

  const std::int64_t plane = grid.height * grid.width;
  for (std::int64_t i = 0; i < grid.count; ++i) {
    const float* image = grid.images + i * grid.channels * plane;
    const std::int64_t top = i / columns * (grid.height + padding) + padding;
    const std::int64_t left = i % columns * (grid.width + padding) + padding;
    for (std::int64_t y = 0; y < grid.height; ++y) {
      std::uint8_t* out =
          picture.pixels.data() + ((top + y) * picture.width + left) * picture.channels;
      for (std::int64_t x = 0; x < grid.width; ++x)
        for (int c = 0; c < picture.channels; ++c)
          *out++ = to_byte(image[c * plane + y * grid.width + x]);
    }
  }
  return picture;
}

}  // namespace fm
