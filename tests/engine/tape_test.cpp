#include "engine/tape.h"

#include <string>

#include "engine/ops/activation.h"
#include "engine/ops/linear.h"
#include "tests/support/expect.h"
#include "tests/support/files.h"
#include "tests/support/tensors.h"

namespace fm::test {
namespace {

// A context with a tape, on one thread.
struct Recorder {
  Context context;
  Tape tape;
  explicit Recorder(DType type = DType::f64)
      : context(CpuQueue(1), type, std::size_t{1} << 20), tape(context) {
    context.tape = &tape;
  }
  Tensor of(const Shape& shape, const Values& values) {
    return tensor_of(context, shape, context.compute, values);
  }
  void set(const Tape::Target& target, double value) {
    Values values = read(context.queue, target.gradient);
    for (double& x : values) x = target.accumulate ? x + value : value;
    write(context.queue, target.gradient, values);
  }
  // Makes x an output, so that its gradient can be seen, and put away in `into`, before it goes.
  void watch(const Tensor& x, Values& into) {
    tape.record(
        {"watch", x, {}, [this, x, &into] { into = read(context.queue, tape.gradient(x)); }});
  }
};

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("tape: last operation first; nothing is left to do a second time") {
    Recorder r;
    std::string order;
    for (const char* name : {"a", "b", "c"})
      r.tape.record({name, r.context.make({1}), {}, [&order, name] { order += name; }});
    CHECK(r.tape.size() == 3);
    r.tape.backward();
    CHECK(order == "cba");
    CHECK(r.tape.size() == 0);
    r.tape.backward();
    CHECK(order == "cba");
  }

  TEST_CASE("tape: the first writer of a gradient overwrites, later ones add") {
    Recorder r;
    const Tensor x = r.of({2, 3}, Values(6, 0));
    Values gradient;
    r.watch(x, gradient);
    std::vector<bool> accumulates;
    std::vector<void*> places;
    for (const double share : {1.0, 10.0, 100.0})
      r.tape.record({"reader", r.context.make({1}), {}, [&, share] {
                       const Tape::Target target = r.tape.target(x);
                       CHECK(target.gradient.shape == x.shape);
                       CHECK(target.gradient.dtype == x.dtype);
                       accumulates.push_back(target.accumulate);
                       places.push_back(target.gradient.data);
                       r.set(target, share);
                     }});
    r.tape.backward();
    CHECK(accumulates == std::vector<bool>{false, true, true});
    CHECK(places[0] == places[1]);
    CHECK(places[0] == places[2]);
    CHECK(gradient == Values(6, 111));
  }

  TEST_CASE("tape: a gradient is seen in the shape of the view that asks") {
    Recorder r;
    const Tensor x = r.of({2, 6}, Values(12, 0));
    Shape seen;
    r.tape.record({"maker", x, {}, [&] { seen = r.tape.gradient(x.view({3, 4})).shape; }});
    r.tape.record({"reader", r.context.make({1}), {}, [&] {
                     CHECK(r.tape.target(x.view({4, 3})).gradient.shape == Shape{4, 3});
                     const Tape::Target again = r.tape.target(x);
                     CHECK(again.accumulate);
                     CHECK(again.gradient.shape == x.shape);
                   }});
    r.tape.backward();
    CHECK(seen == Shape{3, 4});
  }

  TEST_CASE("tape: parts share one gradient, whoever asks first") {
    Recorder r;
    const Tensor x = r.of({1, 4}, Values(4, 0));
    Values gradient;
    r.watch(x, gradient);
    for (const std::int64_t half : {0, 1})
      r.tape.record({"half", r.context.make({1}), {}, [&, half] {
                       const Columns part = Columns(x, 2 * half, 2).in(r.tape.parts(x));
                       for (int i = 0; i < 2; ++i) part.as<double>()[i] = 5.0 + double(half);
                     }});
    r.tape.backward();
    CHECK(gradient == Values{5, 5, 6, 6});
  }

  TEST_CASE("tape: a gradient that nobody wrote is an error that names the value's shape") {
    Recorder r;
    const Tensor x = r.of({2, 3}, Values(6, 0));
    Values unseen;
    r.watch(x, unseen);
    expect_fault(Fault::usage, "[tape] no gradient has reached [2, 3] fp64",
                 [&] { r.tape.backward(); });
  }

  TEST_CASE("tape: handing over moves a gradient, once, between values of one size and type") {
    Recorder r;
    const Tensor x = r.of({4}, Values(4, 0)), y = r.of({2, 2}, Values(4, 0)),
                 larger = r.of({5}, Values(5, 0)), other = r.context.make({4}, DType::f32);
    Values gradient;
    r.watch(x, gradient);
    r.tape.record({"residual", y, {}, [&] {
                     const std::string text = "[tape] a gradient is handed over once";
                     expect_fault(Fault::usage, text, [&] { r.tape.hand_over(y, larger); });
                     expect_fault(Fault::usage, text, [&] { r.tape.hand_over(y, other); });
                     expect_fault(Fault::usage, text, [&] { r.tape.hand_over(larger, x); });
                     r.tape.hand_over(y, x);
                     expect_fault(Fault::usage, text, [&] { r.tape.hand_over(y, x); });
                     expect_fault(Fault::usage, "no gradient", [&] { r.tape.gradient(y); });
                     CHECK(r.tape.target(x).accumulate);
                   }});
    r.tape.record({"reader", r.context.make({1}), {}, [&] { r.set(r.tape.target(y), 7); }});
    r.tape.backward();
    CHECK(gradient == Values(4, 7));
  }

  TEST_CASE("tape: constants want no gradient, until the tape is done") {
    Recorder r;
    const Tensor image = r.context.make({4}), x = r.context.make({4});
    r.tape.constant(image);
    CHECK(!r.tape.wants(image));
    CHECK(!r.tape.wants(image.view({2, 2})));
    CHECK(r.tape.wants(x));
    r.tape.backward();
    CHECK(r.tape.wants(image));
  }

  TEST_CASE("tape: outputs, what was saved and gradients are released as soon as they are used") {
    Recorder r;
    const Tensor input = r.context.make({64});
    Tensor x = input;
    for (int i = 0; i < 4; ++i) {
      const Tensor saved = r.context.make({64}), y = r.context.make({64});
      const bool first = i == 0, last = i == 3;
      r.tape.record({"op", y, {saved}, [&r, x, y, first, last] {
                       if (last) r.set(r.tape.target(y), 1);
                       if (!first) r.set(r.tape.target(x), 1);
                     }});
      x = y;
    }
    const std::size_t before = r.context.arena.peak();
    CHECK(before == input.bytes() * (1 + 2 * 4));
    r.tape.backward();
    // Beside what the forward pass left, an output's gradient and its operand's at a time.
    CHECK(r.context.arena.peak() == before + 2 * input.bytes());
    r.context.arena.give_back(input.data);  // which is no operation's output
    CHECK(is_empty(r.context.arena));
  }

  TEST_CASE("tape: what was dropped stands elsewhere when it is read again, and goes once") {
    Recorder r;
    const Tensor x = r.of({2, 3}, Values(6, 0));
    Tensor again, other;
    r.tape.record({"maker", x, {}, [&] {
                     CHECK(r.tape.gradient(x).shape == x.shape);
                     CHECK(r.tape.value(x).data == nullptr);
                   }});
    r.tape.record({"last reader", {}, {}, [&] {
                     CHECK(read(r.context.queue, r.tape.value(x)) == Values(6, 4));
                     r.tape.release(x);
                     const Tensor free = r.context.make(x.shape);
                     CHECK(free.data == again.data);
                     r.context.arena.give_back(free.data);
                   }});
    r.tape.record({"reader", {}, {}, [&] {
                     const Tensor now = r.tape.value(x.view({3, 2}));
                     CHECK(now.data == again.data);
                     CHECK(now.shape == Shape{3, 2});
                     r.set(r.tape.target(x), 1);
                   }});
    r.tape.drop(x, [&](const Tensor& to) {
      again = to;
      write(r.context.queue, to, Values(6, 4));
    });
    r.tape.record({"taker", {}, {}, [&] { other = r.context.make(x.shape); }});
    const Tensor later = r.of({2, 3}, Values(6, 9));
    CHECK(later.data == x.data);
    r.tape.record({"later", later, {}, [&] {
                     CHECK(read(r.context.queue, r.tape.value(later)) == Values(6, 9));
                   }});
    r.tape.backward();
    CHECK(other.data == x.data);
    CHECK(again.data != x.data);
    r.context.arena.give_back(other.data);
    CHECK(is_empty(r.context.arena));
  }

  TEST_CASE("tape: a value with three readers gets the sum of their gradients") {
    Recorder r;
    ParamStore params;
    params.add("a", {4, 3}, init_uniform(1));
    params.add("b", {4, 3}, init_uniform(1));
    params.add("c", {2, 3}, init_uniform(1));
    params.materialise(r.context, ParamStore::Use::training);
    params.initialise(1);
    const Values input = normals(15, 3);

    const auto products = [&](const Tensor& x) {
      std::vector<Tensor> outputs;
      for (const Parameter& p : params.all()) outputs.push_back(linear(r.context, x, p, nullptr));
      return outputs;
    };
    // Half the sum of squares, so that the gradient of a product is the product.
    const auto loss = [&](const Values& at) {
      r.context.arena.reset();
      double sum = 0;
      for (const Tensor& y : products(r.of({5, 3}, at))) {
        const Values values = read(r.context.queue, y);
        sum += dot(values, values) / 2;
      }
      return sum;
    };

    const Tensor x = r.of({5, 3}, input);
    Values dx;
    r.watch(x, dx);
    const std::vector<Tensor> outputs = products(x);
    r.tape.record({"loss", {}, {}, [&] {
                     for (const Tensor& y : outputs)
                       write(r.context.queue, r.tape.target(y).gradient, read(r.context.queue, y));
                   }});
    r.tape.backward();
    CHECK(is_empty(r.context.arena));
    r.context.tape = nullptr;
    check_gradient("x", input, dx, loss);
    for (const Parameter& p : params.all())
      check_gradient(p.name, read(r.context.queue, p.master), read(r.context.queue, p.gradient),
                     [&](const Values& moved) {
                       write(r.context.queue, p.master, moved);
                       return loss(input);
                     });
  }

  TEST_CASE("tape: what nobody waits for is put off to the next operation that leaves room") {
    Recorder r;
    std::string order;
    const auto operation = [&](const char* name, bool room) {
      const Tensor y = r.context.make({32});
      const auto work = [&order, name] { order += name; };
      r.tape.record({name,
                     y,
                     {},
                     [&r, &order, y, room, work, name] {
                       if (room) r.tape.beside(work);
                       else work();
                       void* const read = r.tape.value(y).data;
                       r.tape.later({read}, [&order, &r, name, read] {
                         order += std::string("(") + name + ")";
                         const Scratch scratch(r.context, 1);
                         CHECK(scratch.data() != read);
                       });
                     },
                     room});
      return y;
    };
    operation("a", false);
    operation("b", true);
    const Tensor dropped = r.context.make({32});
    r.tape.drop(dropped, [&](const Tensor& again) {
      order += "r";
      r.context.run([&]<class T>(auto& queue) { fill_bytes(queue, again.data, 0, again.bytes()); });
    });
    operation("c", false);
    operation("d", true);
    operation("e", false);
    r.tape.backward();
    // d's own is put off as well; a has no room to wait for.
    CHECK(order == "ed(e)rcb(d)(c)(b)a(a)");
  }

  TEST_CASE("tape: put-off work finds what it reads unchanged") {
    Recorder r;
    double seen = 0;
    const Tensor room = r.context.make({4});
    r.tape.record({"room", room, {}, [&] { r.tape.beside([] {}); }, true});
    const Tensor x = r.of({4}, Values(4, 3));
    r.tape.record(
        {"x", x, {}, [&] { r.tape.later({x.data}, [&] { seen = read(r.context.queue, x)[0]; }); }});
    r.tape.record({"after x", r.of({4}, Values(4, 5)), {}, [] {}});
    const Tensor again = r.context.make({4});
    r.tape.record({"again", again, {}, [] {}});
    r.tape.drop(again, [&](const Tensor& y) { write(r.context.queue, y, Values(4, 7)); });
    r.tape.backward();
    CHECK(seen == 3);
    CHECK(is_empty(r.context.arena));
  }

  TEST_CASE("tape: an operation that cannot add refuses an operand with another reader") {
    Recorder r;
    const Tensor x = r.of({8}, Values(8, 1));
    const Tensor a = silu(r.context, x), b = silu(r.context, x);
    r.tape.record({"loss", {}, {}, [&] {
                     r.set(r.tape.target(a), 1);
                     r.set(r.tape.target(b), 1);
                   }});
    expect_fault(Fault::usage, "[silu] x must have no other use", [&] { r.tape.backward(); });
  }
}

}  // namespace fm::test
