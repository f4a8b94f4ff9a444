// Multi-head attention. Source: Vaswani et al. 2017, section 3.2.2.
#include "engine/ops/attention.h"
#include "models/layers/linear_layer.h"
#include "models/layers/mixer.h"

namespace fm {

Mixer make_attention_mixer(ParamStore& params, const std::string& name, const ModelConfig& config) {
  const int d = config.d_model, heads = config.heads;
  const LinearLayer qkv(params, name + ".qkv", d,
                        3 * d);  // rows: q of every head, k of every head, v of every head
  const LinearLayer proj(params, name + ".proj", d, d);
  return [qkv, proj, heads](Context& context, const Tensor& x) {
    return proj(context, attention(context, qkv(context, x), heads));
  };
}

}  // namespace fm
