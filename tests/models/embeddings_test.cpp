#include "models/layers/embeddings.h"

#include <cmath>
#include <set>

#include "tests/support/expect.h"

namespace fm::test {

TEST_SUITE("cpu") {
  TEST_CASE("position table: sines and cosines of the row, then of the column") {
    // Two frequencies: 1 and 10000^(-1/2).
    const std::vector<double> table = position_table(8, 3);
    REQUIRE(table.size() == 9 * 8);
    for (int row = 0; row < 3; ++row) {
      for (int column = 0; column < 3; ++column) {
        const double want[8] = {
            std::sin(row),    std::sin(0.01 * row),    std::cos(row),    std::cos(0.01 * row),
            std::sin(column), std::sin(0.01 * column), std::cos(column), std::cos(0.01 * column)};
        for (int i = 0; i < 8; ++i) {
          INFO("row ", row, ", column ", column, ", feature ", i);
          CHECK(table[static_cast<std::size_t>((row * 3 + column) * 8 + i)] ==
                doctest::Approx(want[i]).epsilon(1e-14));
        }
      }
    }
  }

  TEST_CASE("position table: the study's 196 positions are all different, and of one length") {
    constexpr int kWidth = 128;
    const std::vector<double> table = position_table(kWidth, 14);
    REQUIRE(table.size() == 196 * kWidth);
    std::set<std::vector<float>> seen;
    for (auto row = table.begin(); row != table.end(); row += kWidth) {
      seen.insert(std::vector<float>(row, row + kWidth));
      double square = 0;
      for (int i = 0; i < kWidth; ++i) square += row[i] * row[i];
      CHECK(square == doctest::Approx(kWidth / 2));
    }
    CHECK(seen.size() == 196);
  }
}

}  // namespace fm::test
