#include "models/flops.h"

#include <doctest/doctest.h>

#include "models/flow_model.h"

namespace fm::test {

TEST_SUITE("cpu") {
  // Every weight that a token meets is one multiplication and one addition.
  TEST_CASE("flops: a token's products are twice the weights it meets") {
    for (const char* kind : {"mamba", "attention"}) {
      INFO(kind);
      ModelConfig config;
      config.blocks = {kind};
      double weights = 0;
      const FlowModel model(config);
      for (const Parameter& p : model.params().all()) {
        const bool token_wise = p.name.find("mixer") != std::string::npos ||
                                p.name.find("mlp") != std::string::npos ||
                                p.name == "patch_embed.weight" || p.name == "head.weight";
        const bool product =
            p.name.find("proj") != std::string::npos || p.name.find("weight") != std::string::npos;
        const bool convolution = p.name.find("conv") != std::string::npos;
        if (token_wise && product && !convolution && p.shape.rank() > 1)
          weights += static_cast<double>(p.shape.count());
      }
      const Flops f = forward_flops(config);
      CHECK(f.projections == doctest::Approx(2 * config.tokens() * weights));
      CHECK((f.scan > 0) == (config.blocks[0] == "mamba"));
    }
  }

  TEST_CASE("flops: attention grows with the square of the tokens, the scan with the tokens") {
    ModelConfig coarse, fine;
    coarse.blocks = fine.blocks = {"mamba", "attention"};
    coarse.patch = 4, fine.patch = 2;
    const Flops a = forward_flops(coarse), b = forward_flops(fine);
    CHECK(b.attention == 16 * a.attention);
    CHECK(b.scan == 4 * a.scan);
    CHECK(a.attention == 4.0 * 49 * 49 * 128);
    CHECK(a.scan == 7.0 * 49 * 512 * 64);
    CHECK(step_flops(fine, 2) == 6 * b.total());
  }
}

}  // namespace fm::test
