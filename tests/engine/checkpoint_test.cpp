#include "engine/io/checkpoint.h"

#include <string>

#include "tests/support/cuda.h"
#include "tests/support/files.h"
#include "tests/support/tensors.h"

namespace fm::test {
namespace {

using Names = std::vector<std::string>;

const Names kNames = {"patch_embed.weight", "blocks.0.mixer.D", "head.bias"};

// A store whose parameters are 2 x 3, each with its own values.
struct Store {
  Context context;
  ParamStore params;

  explicit Store(const Names& names = kNames, std::uint64_t seed = 1, DType type = DType::f32,
                 ParamStore::Use use = ParamStore::Use::inference, const Queue& queue = CpuQueue(1))
      : context(queue, type) {
    for (const std::string& name : names) params.add(name, {2, 3}, init_uniform(1));
    params.materialise(context, use);
    params.initialise(seed);
  }
  Values master() { return test::read(context.queue, params.master()); }
};

// Writes every parameter of a store under each of these prefixes; `extra` tensors are 2 x 3, too.
struct Layout {
  std::string prefix;
  Store& store;
};
std::filesystem::path write_layouts(const std::filesystem::path& path,
                                    const std::vector<Layout>& layouts, const Names& extra = {}) {
  static const float kZeros[6] = {};
  std::vector<TensorToStore> tensors;
  for (const Layout& layout : layouts)
    for (const Parameter& p : layout.store.params.all())
      tensors.push_back({layout.prefix + p.name, DType::f32, {2, 3}, p.master.data});
  for (const std::string& name : extra) tensors.push_back({name, DType::f32, {2, 3}, kZeros});
  write_safetensors(path, tensors);
  return path;
}

// What a store of these names reads from a file.
Values weights_of(const std::filesystem::path& path, Weights weights, const Names& names = kNames) {
  Store store(names, 77);
  read_weights(SafetensorsFile(path), store.params, weights);
  return store.master();
}

}  // namespace

TEST_SUITE("cpu") {
  TEST_CASE("checkpoint: everything written is read back, bit for bit") {
    const TemporaryFolder folder;
    for (const DType type : {DType::f32, DType::f64}) {
      const auto use = ParamStore::Use::training_with_ema;
      Store out(kNames, 1, type, use);
      ParamStore& from = out.params;
      unsigned seed = 5;
      for (const Tensor& flat : {from.m(), from.v(), from.ema()}) {
        Store values(kNames, ++seed, type);
        from.write(flat, values.params.read(values.params.master()));
      }
      write_checkpoint(folder / "a", from, {{"step", "12"}, {"config", "{}"}});
      const SafetensorsFile file(folder / "a");
      CHECK(file.metadata() == Metadata{{"step", "12"}, {"config", "{}"}});
      CHECK(file.tensors().size() == 4 * kNames.size());
      for (const char* prefix : {"model.", "ema.", "optim.m.", "optim.v."})
        for (const std::string& name : kNames) {
          const StoredTensor& stored = file.at(prefix + name);
          CHECK(stored.shape == std::vector<std::int64_t>{2, 3});
          CHECK(stored.type == type);
        }
      Store in(kNames, 99, type, use);
      read_training_state(file, in.params);
      ParamStore& to = in.params;
      CHECK(to.read(to.master()) == from.read(from.master()));
      CHECK(to.read(to.m()) == from.read(from.m()));
      CHECK(to.read(to.v()) == from.read(from.v()));
      CHECK(to.read(to.ema()) == from.read(from.ema()));
      CHECK(to.read(to.ema()) != from.read(from.master()));
    }
  }

  TEST_CASE("checkpoint: a store for inference writes its weights alone") {
    const TemporaryFolder folder;
    Store out;
    write_checkpoint(folder / "a", out.params, {});
    const SafetensorsFile file(folder / "a");
    CHECK(file.tensors().size() == kNames.size());
    CHECK(has_weights(file, out.params, Weights::raw));
    CHECK(!has_weights(file, out.params, Weights::ema));
    CHECK(weights_of(folder / "a", Weights::raw) == out.master());
    Store training(kNames, 1, DType::f32, ParamStore::Use::training);
    expect_fault(Fault::data, "under `optim.m.`; missing: patch_embed.weight",
                 [&] { read_training_state(file, training.params); });
  }

  TEST_CASE("checkpoint: bare and wrapped layouts are read alike") {
    const TemporaryFolder folder;
    Store out;
    for (const char* prefix :
         {"", "model.", "state_dict.", "module.", "net_model.", "_orig_mod.", "state_dict.model.",
          "model._orig_mod.", "module.model.", "state_dict.model._orig_mod.", "a.b.c.d."}) {
      INFO(concat("prefix `", prefix, "`"));
      const auto path = write_layouts(folder / "a", {{prefix, out}});
      CHECK(weights_of(path, Weights::raw) == out.master());
      CHECK(!has_weights(SafetensorsFile(path), out.params, Weights::ema));
      // With the moments of an optimizer beside them, which complete as many names.
      Store moments(kNames, 5);
      const auto both = write_layouts(
          folder / "b", {{prefix, out}, {"optim.m.", moments}, {"optim.v.", moments}});
      CHECK(weights_of(both, Weights::raw) == out.master());
    }
  }

  TEST_CASE("checkpoint: raw weights and the average are told apart by their prefix") {
    const TemporaryFolder folder;
    Store raw, average(kNames, 2);
    struct Pair {
      const char *raw, *average;
    };
    for (const Pair& pair :
         {Pair{"model.", "ema."}, Pair{"", "ema."}, Pair{"net_model.", "ema_model."},
          Pair{"state_dict.model.", "state_dict.model_ema."},
          Pair{"state_dict.net.", "ema.state_dict.net."},
          Pair{"model.", "average_model.module."}}) {
      INFO(concat("`", pair.raw, "` and `", pair.average, "`"));
      const auto path = write_layouts(folder / "a", {{pair.raw, raw}, {pair.average, average}});
      CHECK(has_weights(SafetensorsFile(path), raw.params, Weights::ema));
      CHECK(weights_of(path, Weights::raw) == raw.master());
      CHECK(weights_of(path, Weights::ema) == average.master());
    }
  }

  TEST_CASE("checkpoint: an average alone serves as weights; raw weights alone are no average") {
    const TemporaryFolder folder;
    Store store;
    const auto only_ema = write_layouts(folder / "a", {{"ema.", store}});
    CHECK(weights_of(only_ema, Weights::raw) == store.master());
    CHECK(weights_of(only_ema, Weights::ema) == store.master());
    const auto only_raw = write_layouts(folder / "b", {{"model.", store}});
    expect_fault(Fault::data, "holds no ema weights of this model; it has model.",
                 [&] { weights_of(only_raw, Weights::ema); });
  }

  TEST_CASE("checkpoint: a bare model that owns `model` or `model.x` is not unwrapped") {
    const TemporaryFolder folder;
    for (const Names& names : {Names{"model", "x", "y"}, Names{"model.x", "model.y"},
                               Names{"x", "model.x"}, Names{"x", "y", "model.x", "model"}}) {
      Store store(names, 3);
      for (const char* prefix : {"", "model.", "state_dict.", "state_dict.model."}) {
        INFO(concat(names.size(), " names, prefix `", prefix, "`"));
        CHECK(weights_of(write_layouts(folder / "a", {{prefix, store}}), Weights::raw, names) ==
              store.master());
      }
    }
    // Names under `model.` that complete no more than those at top level do.
    Store one({"x"}, 4);
    CHECK(weights_of(write_layouts(folder / "d", {{"", one}}, {"model.x"}), Weights::raw, {"x"}) ==
          one.master());
    Store store({"x", "y"}, 4);
    CHECK(weights_of(write_layouts(folder / "b", {{"", store}}, {"model.x"}), Weights::raw,
                     {"x", "y"}) == store.master());
    expect_fault(Fault::data, "does not hold this model; unexpected: model", [&] {
      weights_of(write_layouts(folder / "c", {{"", store}}, {"model"}), Weights::raw, {"x", "y"});
    });
  }

  TEST_CASE("checkpoint: what is missing, unexpected and misshapen is listed in one message") {
    const TemporaryFolder folder;
    Store out({"a", "b", "c"});
    const auto path = write_layouts(folder / "file", {{"model.", out}}, {"model.d", "unrelated"});
    Context context(CpuQueue(1), DType::f32);
    ParamStore params;
    params.add("a", {2, 3}, init_constant(0));
    params.add("b", {3, 2}, init_constant(0));
    params.add("c", {6}, init_constant(0));
    params.add("e", {2, 3}, init_constant(0));
    params.materialise(context, ParamStore::Use::inference);
    params.initialise(0);
    expect_fault(Fault::data,
                 "[checkpoint] " + path.string() +
                     " does not hold this model under `model.`; missing: e; unexpected: model.d; "
                     "misshapen: b [2, 3] instead of [3, 2], c [2, 3] instead of [6]",
                 [&] { read_weights(SafetensorsFile(path), params, Weights::raw); });
    CHECK(read(context.queue, params.master()) == Values(4 * 64, 0));  // nothing was half read
  }

  TEST_CASE("checkpoint: long lists are cut, with how many there are") {
    const TemporaryFolder folder;
    Names many = {"first"};
    for (int i = 0; i < 20; ++i) many.push_back(concat("n", i));
    Store one({"first"}), all(many);
    expect_fault(Fault::data, "missing: n0, n1, n2, n3, n4, n5, n6, n7, ... (20 in all)", [&] {
      weights_of(write_layouts(folder / "a", {{"", one}}), Weights::raw, many);
    });
  }

  TEST_CASE("checkpoint: a file of another model, or of nothing, says what it holds") {
    const TemporaryFolder folder;
    Store other({"encoder.weight", "encoder.bias"});
    const auto path = write_layouts(folder / "a", {{"", other}});
    expect_fault(Fault::data, "holds no weights of this model; it has encoder.weight, encoder.bias",
                 [&] { weights_of(path, Weights::raw); });
    write_safetensors(folder / "b", {});
    expect_fault(Fault::data, "it has no tensors", [&] { weights_of(folder / "b", Weights::raw); });
    expect_fault(Fault::data, "", [&] { SafetensorsFile(folder / "none"); });
  }

  TEST_CASE("checkpoint: a name must end at a dot to be under a prefix") {
    const TemporaryFolder folder;
    Store other({"overhead.bias", "repatch_embed.weight"});
    expect_fault(Fault::data, "holds no weights of this model", [&] {
      weights_of(write_layouts(folder / "a", {{"", other}}), Weights::raw);
    });
  }

  TEST_CASE("checkpoint: weights of another floating type are converted") {
    const TemporaryFolder folder;
    Store wide(kNames, 1, DType::f64), narrow;
    write_checkpoint(folder / "a", wide.params, {});
    CHECK(weights_of(folder / "a", Weights::raw) == narrow.master());
    write_checkpoint(folder / "b", narrow.params, {});
    Store in(kNames, 9, DType::f64);
    read_weights(SafetensorsFile(folder / "b"), in.params, Weights::raw);
    CHECK(in.master() == wide.master());
  }
}

#if FM_CUDA
TEST_SUITE("gpu") {
  TEST_CASE("checkpoint: a file of the device reads alike on the CPU, and the other way") {
    const TemporaryFolder folder;
    Store cuda(kNames, 1, DType::f16, ParamStore::Use::training, cuda_queue()), cpu;
    write_checkpoint(folder / "a", cuda.params, {});
    CHECK(weights_of(folder / "a", Weights::raw) == cpu.master());
    write_checkpoint(folder / "b", cpu.params, {});
    Store in(kNames, 9, DType::f16, ParamStore::Use::inference, cuda_queue());
    read_weights(SafetensorsFile(folder / "b"), in.params, Weights::raw);
    CHECK(in.master() == cpu.master());
    CHECK(read(in.context.queue, in.params.compute()) == round_to<f16>(cpu.master()));
  }
}
#endif

}  // namespace fm::test
