#include "engine/ops/linear.h"

#include "engine/tape.h"
#include "tests/support/expect.h"
#include "tests/support/files.h"
#include "tests/support/tensors.h"

namespace fm::test {

TEST_SUITE("cpu") {
  TEST_CASE("grouped linear: two layers read their own columns of every group") {
    constexpr std::int64_t kRows = 6, kGroups = 2, kWidth = 5;
    Context context(CpuQueue(1), DType::f64, std::size_t{1} << 20);
    ParamStore params;
    const Parameter& left = params.add("left", {kGroups, 3, 2}, init_uniform(1));
    const Parameter& right = params.add("right", {kGroups, 4, 3}, init_uniform(1));
    params.materialise(context, ParamStore::Use::training);
    params.initialise(1);
    const Values input = normals(kRows * kGroups * kWidth, 3);
    const auto products = [&](const Tensor& x) {
      return std::vector<Tensor>{grouped_linear(context, x, 0, left),
                                 grouped_linear(context, x, 2, right)};
    };
    // Half the sum of squares, so that the gradient of a product is the product.
    const auto loss = [&](const Values& at) {
      context.arena.reset();
      double sum = 0;
      for (const Tensor& y :
           products(tensor_of(context, {kRows, kGroups, kWidth}, DType::f64, at))) {
        const Values values = read(context.queue, y);
        sum += dot(values, values) / 2;
      }
      return sum;
    };

    Tape tape(context);
    context.tape = &tape;
    const Tensor x = tensor_of(context, {kRows, kGroups, kWidth}, DType::f64, input);
    Values dx;
    tape.record({"input", x, {}, [&] { dx = read(context.queue, tape.gradient(x)); }});
    const std::vector<Tensor> outputs = products(x);
    CHECK(outputs[1].shape == Shape{kRows, kGroups, 4});
    const Values y = read(context.queue, outputs[1]), w = read(context.queue, right.master);
    for (std::int64_t row = 0; row < kRows; ++row)
      for (std::int64_t g = 0; g < kGroups; ++g)
        for (std::int64_t o = 0; o < 4; ++o) {
          double want = 0;
          for (std::int64_t i = 0; i < 3; ++i)
            want += input[std::size_t((row * kGroups + g) * kWidth + 2 + i)] *
                    w[std::size_t((g * 4 + o) * 3 + i)];
          CHECK(y[std::size_t((row * kGroups + g) * 4 + o)] == doctest::Approx(want));
        }
    tape.record({"loss", {}, {}, [&] {
                   for (const Tensor& out : outputs)
                     write(context.queue, tape.target(out).gradient, read(context.queue, out));
                 }});
    tape.backward();
    context.tape = nullptr;
    check_gradient("x", input, dx, loss, 1e-6, 60);
    for (const Parameter* p : {&left, &right})
      check_gradient(p->name, read(context.queue, p->master), read(context.queue, p->gradient),
                     [&](const Values& moved) {
                       write(context.queue, p->master, moved);
                       return loss(input);
                     });
  }

  TEST_CASE("linear: operands that do not fit are refused by name") {
    Context context(CpuQueue(1), DType::f32);
    ParamStore params;
    const Parameter& w = params.add("head.weight", {3, 5}, init_constant(0));
    const Parameter& g = params.add("x_proj", {2, 3, 4}, init_constant(0));
    params.materialise(context, ParamStore::Use::inference);
    expect_fault(Fault::usage,
                 "[linear] x's last dimension must be head.weight's second, got x [2, 4] fp32, w "
                 "[3, 5]",
                 [&] {
                   linear(context, context.make({2, 4}), w, nullptr);
                 });
    expect_fault(Fault::usage, "[linear]", [&] {
      linear(context, context.make({2, 4}), g, nullptr);
    });
    expect_fault(Fault::usage,
                 "[grouped_linear] x must be [rows, groups, width] and hold columns 3 to 7, got x "
                 "[6, 2, 6] fp32, w [2, 3, 4]",
                 [&] {
                   grouped_linear(context, context.make({6, 2, 6}), 3, g);
                 });
    expect_fault(Fault::usage, "[grouped_linear]", [&] {
      grouped_linear(context, context.make({6, 3, 6}), 0, g);
    });
    CHECK(linear(context, context.make({2, 7, 5}), w, nullptr).shape == Shape{2, 7, 3});
    CHECK(linear(context, context.make({2, 5}), w, nullptr).shape == Shape{2, 3});
  }
}

}  // namespace fm::test
