#include "apps/divergence.h"

#include <doctest/doctest.h>

#include <limits>

namespace fm::test {
namespace {

StepRecord healthy() {
  StepRecord record{};
  record.step = 41;  // the 42nd
  record.loss = 0.5f;
  record.loss_scale = 65536;
  return record;
}

void expect(const std::string& phrase, const StepRecord& record) {
  INFO(divergence(record));
  CHECK(divergence(record).find(phrase) != std::string::npos);
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("divergence: the loss") {
    CHECK(divergence(healthy()).empty());
    for (const float loss :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      StepRecord record = healthy();
      record.loss = loss;
      expect("the loss of step 42 is not finite", record);
    }
  }

  TEST_CASE("divergence: a gradient that is not finite is forgiven 49 times in a row") {
    StepRecord record = healthy();
    record.grad_norm = std::numeric_limits<float>::infinity();
    record.overflow = 1;
    record.skipped_in_row = 49;
    CHECK(divergence(record).empty());
    record.skipped_in_row = 50;
    expect("50 steps in a row were skipped", record);
    expect("step 42", record);
  }

  TEST_CASE("divergence: the loss scale may fall to 2^-10, not below") {
    StepRecord record = healthy();
    record.loss_scale = 0x1p-10f;
    CHECK(divergence(record).empty());
    record.loss_scale = 0x1p-11f;
    expect("the loss scale fell to 0.000488281 at step 42", record);
  }
}

}  // namespace fm::test
