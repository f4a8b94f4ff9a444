// The built-in data set: handwritten-looking digits, drawn rather than loaded.
//
// A digit is a skeleton of pen strokes (curves through given points), its points jittered, then
// scaled, slanted and rotated at random, fitted to a box of about 20 pixels, centred by its mass
// and inked with a round pen, as MNIST's digits are normalised (LeCun et al. 1998). Image i is a
// pure function of (seed, i); all of it is integer arithmetic, so every machine draws the same
// bytes.
#pragma once

#include <cstdint>

namespace fm {

constexpr std::int64_t kDigitSide = 28;
constexpr int kDigitClasses = 10;

// The sets every run uses: train is [0, kDigitsTrain), test the kDigitsTest indices after it.
constexpr std::int64_t kDigitsTrain = 60'000;
constexpr std::int64_t kDigitsTest = 10'000;
constexpr std::uint64_t kDigitsSeed = 1998;

// Draws the images [first, first + count): pixels [count, 28, 28], 0 paper to 255 ink, and labels
// [count], 0 to 9, each of them once in every ten indices from a multiple of ten. About 5
// microseconds an image; ranges may be drawn by several threads.
void draw_digits(std::uint64_t seed, std::int64_t first, std::int64_t count, std::uint8_t* pixels,
                 std::uint8_t* labels);

}  // namespace fm
