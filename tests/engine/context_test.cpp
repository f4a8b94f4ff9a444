#include "engine/context.h"

#include <string>
#include <type_traits>
#include <vector>

#include "engine/tape.h"
#include "kernels/base/cuda_graph.h"
#include "tests/support/cuda.h"
#include "tests/support/files.h"
#include "tests/support/tensors.h"

namespace fm::test {
namespace {

struct NameOf {
  template <class T, class Q>
  std::string operator()(Q&) const {
    return concat(std::is_same_v<Q, CpuQueue> ? "cpu " : "cuda ", name_of(dtype_of<T>()));
  }
};

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("context: work is dispatched on the compute type; query also plans, run does not") {
    Context real(CpuQueue(1), DType::f64, 256), planning(CpuQueue(1), DType::f32);
    CHECK(real.query(NameOf{}) == "cpu fp64");
    CHECK(planning.query(NameOf{}) == "cpu fp32");
    CHECK(real.acc() == DType::f64);
    CHECK(planning.acc() == DType::f32);
    CHECK(planning.planning());
    CHECK(!real.planning());
    int calls = 0;
    real.run([&]<class T>(auto&) { ++calls; });
    CHECK(calls == 1);
    planning.run([&]<class T>(auto&) { ++calls; });
    CHECK(calls == 1);
  }

  TEST_CASE("context: operations that go image by image, at once, together or in two parts") {
    Context context(CpuQueue(1), DType::f32, 4 * 256);
    std::string order;
    const auto operation = [&](const char* name) {
      context.by_images(
          5, [&order, name](int begin, int end) { order += concat(name, begin, "-", end, " "); });
    };
    operation("a");
    CHECK(order == "a0-5 ");
    order.clear();
    context.image_by_image([&] {
      operation("a");
      operation("b");
      CHECK(order.empty());
    });
    CHECK(order == "a0-5 b0-5 ");
    order.clear();
    context.image_by_image([&] {
      void* block = context.arena.take(256);
      operation("a");
      context.part_images_at(3);
      context.arena.give_back(block);
      operation("b");
      CHECK(context.arena.take(256) != block);  // the work that is kept back may still need it
    });
    CHECK(order == "a0-3 b0-3 a3-5 b3-5 ");
    context.arena.reset();

    order.clear();
    CHECK_THROWS_AS(context.image_by_image([&] {
      operation("a");
      fail(Fault::runtime, "stop");
    }),
                    Error);
    operation("b");
    CHECK(order == "b0-5 ");
  }

  TEST_CASE("context: a type that the CPU does not compute in is refused") {
    for (const DType type : {DType::f16, DType::bf16, DType::i32, DType::u8}) {
      const std::string text =
          concat("[dtype] the CPU computes in fp32 or fp64, got ", name_of(type));
      expect_fault(Fault::usage, text, [&] { Context(CpuQueue(1), type); });
      expect_fault(Fault::usage, text, [&] { Context(CpuQueue(1), type, 256); });
    }
  }

  TEST_CASE("context: tensors have the type asked for") {
    Context context(CpuQueue(1), DType::f64, 4096);
    CHECK(context.make({3}).dtype == DType::f64);
    CHECK(context.make({3}, DType::i32).dtype == DType::i32);
    CHECK(context.make({2, 3}).shape == Shape{2, 3});
  }

  TEST_CASE("context: scratch memory is given back at the end of its scope") {
    Context context(CpuQueue(1), DType::f32);
    void* first = nullptr;
    {
      const Scratch a(context, 100), none(context, 0), b(context, 100);
      first = a.data();
      CHECK(none.data() == nullptr);
      CHECK(b.data() != first);
    }
    CHECK(is_empty(context.arena));
    CHECK(Scratch(context, 1).data() == first);
  }

  TEST_CASE("frame: all but the result is released, and the result by the frame around it") {
    Context context(CpuQueue(1), DType::f32);
    const Tensor input = context.make({8});  // of no frame
    Tensor result, inner;
    {
      Frame outer(context);
      context.make({64});
      {
        Frame frame(context);
        context.make({64});
        inner = context.make({64});
        context.make({64});
        frame.keep(inner);
      }
      // Both neighbours of the kept block are free; it is not.
      CHECK(context.arena.take(256) != inner.data);
      CHECK(context.arena.take(256) != inner.data);
      result = context.make({64});
      outer.keep(result);
    }
    // The inner result went with the outer frame; input and result are still there.
    context.arena.give_back(input.data);
    context.arena.give_back(result.data);
    expect_fault(Fault::usage, "not taken", [&] { context.arena.give_back(inner.data); });
  }

  TEST_CASE("frame: a result changed in place stays with whoever made it") {
    Context context(CpuQueue(1), DType::f32);
    {
      Frame outer(context);
      const Tensor x = context.make({64});
      for (int block = 0; block < 3; ++block) {
        Frame frame(context);
        context.make({64});
        frame.keep(x);
      }
      CHECK(context.make({64}).data != x.data);
    }
    CHECK(is_empty(context.arena));
  }

  TEST_CASE("frame: a block's temporaries are reused by the next, its result is not") {
    Context context(CpuQueue(1), DType::f32);
    {
      Frame outer(context);
      for (int block = 0; block < 10; ++block) {
        Frame frame(context);
        context.make({64});
        context.make({64});
        frame.keep(context.make({64}));
      }
      CHECK(context.arena.peak() == 256 * (10 + 2));
    }
    CHECK(is_empty(context.arena));
  }

  TEST_CASE("frame: an adopted result goes with the block that used it up, or is kept again") {
    Context context(CpuQueue(1), DType::f32);
    {
      Frame outer(context);
      const Tensor stream = context.make({64});
      Tensor pending;
      for (int block = 0; block < 10; ++block) {
        Frame frame(context);
        frame.adopt(stream);
        if (pending) frame.adopt(pending);
        context.make({64});
        pending = context.make({64});
        frame.keep(stream);
        frame.keep(pending);
      }
      // The stream, what was pending, a temporary and the block's own result at a time.
      CHECK(context.arena.peak() == 256 * 4);
      CHECK(context.make({64}).data != stream.data);
      CHECK(context.make({64}).data != pending.data);
    }
    CHECK(is_empty(context.arena));
  }

  TEST_CASE("frame: with a tape it releases nothing") {
    Context context(CpuQueue(1), DType::f32);
    Tape tape(context);
    context.tape = &tape;
    Tensor made;
    {
      Frame frame(context);
      made = context.make({64});
    }
    CHECK(context.make({64}).data != made.data);
    context.arena.give_back(made.data);
  }

  TEST_CASE("frame: after a tape inside it, a frame releases again") {
    Context context(CpuQueue(1), DType::f32);
    {
      Frame outer(context);
      {
        Tape tape(context);
        context.tape = &tape;
        Frame inner(context);
      }
      context.tape = nullptr;
      context.make({64});
    }
    CHECK(is_empty(context.arena));
  }

  TEST_CASE("frame: an error inside leaves no block behind") {
    Context context(CpuQueue(1), DType::f32);
    try {
      Frame outer(context);
      context.make({64});
      Frame inner(context);
      context.make({64});
      fail(Fault::runtime, "stop");
    } catch (const Error&) {
    }
    CHECK(is_empty(context.arena));
    context.make({64});  // of no frame again
    CHECK(!is_empty(context.arena));
  }
}

#if FM_CUDA
TEST_SUITE("gpu") {
  TEST_CASE("context: CUDA computes in fp32, fp16 and bf16, and sums in fp32") {
    for (const DType type : {DType::f32, DType::f16, DType::bf16}) {
      Context context(cuda_queue(), type, 256);
      CHECK(context.query(NameOf{}) == concat("cuda ", name_of(type)));
      CHECK(context.acc() == DType::f32);
    }
    expect_fault(Fault::usage, "[dtype] CUDA computes in fp16, bf16 or fp32, got fp64",
                 [&] { Context(cuda_queue(), DType::f64); });
  }

  TEST_CASE("context: a fork sees what was done before it; what comes after waits for both") {
    constexpr std::int64_t kCount = 1 << 24;
    Context context(cuda_queue(), DType::f32, 5 * kCount);
    auto& queue = std::get<CudaQueue>(context.queue);
    const Tensor a = context.make({kCount}, DType::u8), b = context.make({kCount}, DType::u8),
                 c = context.make({kCount}, DType::u8), seen = context.make({2, kCount}, DType::u8);
    const auto work = [&] {
      for (int i = 0; i < 2; ++i) {
        fill_bytes(queue, a.data, 3 + i, a.bytes());
        context.fork_join([&] { fill_bytes(queue, b.data, 5 + i, b.bytes()); },
                          [&] {
                            auto& side = std::get<CudaQueue>(context.queue);
                            CHECK(side.is_beside());
                            copy(side, c.data, a.data, c.bytes());
                          });
        CHECK(!queue.is_beside());
        fill_bytes(queue, a.data, 9, a.bytes());
        fill_bytes(queue, b.data, 9, b.bytes());
        copy(queue, seen.as<std::uint8_t>() + i * kCount, c.data, c.bytes());
      }
    };
    const auto check = [&] {
      std::vector<std::uint8_t> bytes(2 * kCount);
      download(queue, bytes.data(), seen.data, bytes.size());
      for (int i = 0; i < 2; ++i)
        for (std::int64_t j = 0; j < kCount; j += kCount - 1)
          CHECK(bytes[static_cast<std::size_t>(i * kCount + j)] == 3 + i);
    };
    work();
    check();
    fill_bytes(queue, seen.data, 0, seen.bytes());
    const CudaGraph graph(queue, work);
    graph.launch(queue);
    check();
  }
}
#endif

}  // namespace fm::test
