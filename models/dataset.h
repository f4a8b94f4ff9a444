// Data sets: images as 8-bit pixels with labels, and where batches are drawn from them on the
// device.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/buffer.h"

namespace fm {

struct DataSet {
  std::string name;         // "mnist", "digits"
  std::string origin;       // where it came from, for people
  std::string fingerprint;  // md5 of the pixels
  std::int64_t count = 0;
  int channels = 1, size = 28;       // square images
  std::vector<std::uint8_t> pixels;  // [count, channels, size, size]
  std::vector<std::uint8_t> labels;  // [count]

  std::int64_t pixels_per_image() const { return std::int64_t{channels} * size * size; }
};

enum class Split { train, test };

// The built-in set (models/digits.h), drawn on the queue's threads.
DataSet digits_data(CpuQueue& queue, Split split);

// A data set in a queue's memory.
class DeviceData {
 public:
  DeviceData(const Queue& queue, const DataSet& data)
      : pixels_(queue, data.pixels.size()), labels_(queue, data.labels.size()) {
    pixels_.upload_from(data.pixels.data(), data.pixels.size());
    labels_.upload_from(data.labels.data(), data.labels.size());
  }
  const std::uint8_t* pixels() const { return pixels_.as<std::uint8_t>(); }
  const std::uint8_t* labels() const { return labels_.as<std::uint8_t>(); }

 private:
  Buffer pixels_, labels_;
};

// Bounds that any loss on real MNIST can be held against: mean squared error of the velocity,
// pixels in [-1, 1], t uniform.
struct LossBound {
  const char* of;
  double loss;
};
inline constexpr LossBound kMnistLossBounds[] = {
    {"zero output", 1.925},          {"constant global mean", 1.380},
    {"per-pixel mean", 1.269},       {"best per-pixel linear denoiser", 0.607},
    {"best linear denoiser", 0.386}, {"full memorisation of the train set", 0.078},
};

}  // namespace fm
