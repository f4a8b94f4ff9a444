#include "engine/tensor.h"

#include "tests/support/files.h"

namespace fm::test {

TEST_SUITE("cpu") {
  TEST_CASE("shape: extents, counts, rows, equality, text") {
    const Shape none, vector{5}, cube{2, 3, 4}, flat{6, 0};
    CHECK(none.rank() == 0);
    CHECK(none.count() == 1);
    CHECK(none.rows() == 1);
    CHECK(vector.rows() == 1);
    CHECK(cube.rank() == 3);
    CHECK(cube[1] == 3);
    CHECK(cube.back() == 4);
    CHECK(cube.count() == 24);
    CHECK(cube.rows() == 6);
    CHECK(flat.count() == 0);
    CHECK(flat.rows() == 0);
    CHECK(Shape{1 << 20, 1 << 20}.count() == std::int64_t{1} << 40);
    CHECK(cube == Shape{2, 3, 4});
    CHECK(cube != Shape{2, 3, 4, 1});
    CHECK(cube != Shape{2, 4, 3});
    CHECK(none != Shape{1});
    CHECK(concat(none, " ", vector, " ", cube) == "[] [5] [2, 3, 4]");
  }

  TEST_CASE("shape: five dimensions and negative extents are refused") {
    expect_fault(Fault::usage, "[shape] at most 4 dimensions, got 5", [] { Shape{1, 2, 3, 4, 5}; });
    expect_fault(Fault::usage, "[shape] extents must not be negative, got -7", [] {
      Shape{2, -7};
    });
  }

  TEST_CASE("tensor: bytes, type and views") {
    double memory[12] = {};
    const Tensor t{memory, {3, 4}, DType::f64};
    CHECK(t.count() == 12);
    CHECK(t.bytes() == 96);
    CHECK(Tensor{memory, {3, 4}, DType::bf16}.bytes() == 24);
    CHECK(t);
    CHECK(!Tensor{});
    CHECK(t.as<double>() == memory);
    CHECK(concat(t) == "[3, 4] fp64");
    expect_fault(Fault::usage, "[tensor] asked for fp32, got [3, 4] fp64", [&] { t.as<float>(); });
    expect_fault(Fault::usage, "[tensor] asked for fp16, got [3, 4] fp64", [&] { t.as<f16>(); });

    const Tensor view = t.view({2, 6});
    CHECK(view.data == t.data);
    CHECK(view.shape == Shape{2, 6});
    CHECK(view.dtype == DType::f64);
    expect_fault(Fault::usage, "[view] the number of elements must stay, got [3, 4] as [3, 5]",
                 [&] {
                   t.view({3, 5});
                 });
  }

  TEST_CASE("columns: a part of a wider tensor, and the same part of its gradient") {
    float memory[20] = {}, other[20] = {};
    const Tensor whole{memory, {2, 10}, DType::f32}, gradient{other, {2, 10}, DType::f32};
    const Columns part(whole, 3, 4);
    CHECK(part.as<float>() == memory + 3);
    CHECK(part.stride() == 10);
    CHECK(part.width == 4);
    CHECK(part.in(gradient).as<float>() == other + 3);
    CHECK(part.in(gradient).width == 4);
    CHECK(Columns(whole, 0, 10).width == 10);
    CHECK(Columns(whole, 9, 1).begin == 9);
    expect_fault(Fault::usage, "[columns] 7 to 11 must lie within [2, 10] fp32",
                 [&] { Columns(whole, 7, 4); });
    expect_fault(Fault::usage, "[columns] -1 to 3", [&] { Columns(whole, -1, 4); });
    expect_fault(Fault::usage, "[columns] 2 to 2", [&] { Columns(whole, 2, 0); });
  }
}

}  // namespace fm::test
