#include "models/nearest.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/base/check.h"
#include "kernels/base/parallel_for.h"
#include "kernels/base/simd.h"

namespace fm {
namespace {

constexpr std::int64_t kGrain = 2000;  // images of the data set a thread takes at a time
constexpr int kLanes = 16;             // running sums: as many on every processor

// In pixels of 0 to 255.
FM_SIMD float squared_distance(const std::uint8_t* image, const float* sample,
                               std::int64_t pixels) {
  float lanes[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= pixels; i += kLanes)
    for (int j = 0; j < kLanes; ++j) {
      const float d = static_cast<float>(image[i + j]) - sample[i + j];
      lanes[j] += d * d;
    }
  float sum = 0;
  for (; i < pixels; ++i) {
    const float d = static_cast<float>(image[i]) - sample[i];
    sum += d * d;
  }
  for (const float lane : lanes) sum += lane;
  return sum;
}

}  // namespace

std::vector<NearestImage> nearest_images(CpuQueue& queue, const DataSet& data,
                                         const std::vector<float>& samples) {
  const std::int64_t pixels = data.pixels_per_image();
  const auto count = static_cast<std::int64_t>(samples.size()) / pixels;
  FM_CHECK(data.count > 0 && count * pixels == static_cast<std::int64_t>(samples.size()),
           "[nearest] samples must be whole images of ", pixels, " pixels, got ", samples.size(),
           " values");
  std::vector<float> scaled(samples.size());
  std::transform(samples.begin(), samples.end(), scaled.begin(),
                 [](float x) { return (std::clamp(x, -1.0f, 1.0f) + 1) * 127.5f; });
  const std::int64_t pieces = (data.count + kGrain - 1) / kGrain;
  const NearestImage none{-1, std::numeric_limits<double>::infinity()};
  std::vector<NearestImage> found(static_cast<std::size_t>(pieces * count), none);
  parallel_for(queue, data.count, kGrain, [&](std::int64_t begin, std::int64_t end) {
    NearestImage* best = found.data() + begin / kGrain * count;
    for (std::int64_t image = begin; image < end; ++image)
      for (std::int64_t s = 0; s < count; ++s) {
        const double d = squared_distance(data.pixels.data() + image * pixels,
                                          scaled.data() + s * pixels, pixels);
        if (d < best[s].distance) best[s] = {image, d};
      }
  });
  std::vector<NearestImage> nearest(static_cast<std::size_t>(count), none);
  for (std::size_t i = 0; i < found.size(); ++i) {
    NearestImage& best = nearest[i % nearest.size()];
    if (found[i].distance < best.distance) best = found[i];
  }
  for (NearestImage& best : nearest) best.distance = std::sqrt(best.distance) / 127.5;
  return nearest;
}

}  // namespace fm
