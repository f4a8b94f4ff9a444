#include "models/flops.h"

namespace fm {
namespace {

constexpr double kSinusoid = 256;    // width of the time's sinusoid (layers/embeddings.cpp)
constexpr double kScanPerState = 7;  // see the head of flops.h
constexpr int kModulations = 3;      // shift, scale and gate of a part

void add_mamba(Flops& f, const ModelConfig& c) {
  const double tokens = c.tokens(), d = c.d_model, channels = c.scanned_channels(),
               rank = c.dt_rank(), states = c.d_state;
  f.projections += 2 * tokens * d * 2 * channels;                // in: x and z
  f.projections += 2 * tokens * channels * (rank + 2 * states);  // x to dt, B and C, a direction
  f.projections += 2 * tokens * channels * rank;                 // dt
  f.projections += 2 * tokens * channels * d;                    // out
  f.convolution += 2 * tokens * channels * c.d_conv;
  f.scan += kScanPerState * tokens * channels * states;
  f.condition += 2 * d * kModulations * d;
}

void add_attention(Flops& f, const ModelConfig& c) {
  const double tokens = c.tokens(), d = c.d_model;
  f.projections += 2 * tokens * d * 4 * d;             // q, k, v and out
  f.projections += 2 * tokens * d * 3 * c.mlp_hidden;  // SwiGLU
  f.attention += 2 * 2 * tokens * tokens * d;
  f.condition += 2 * d * 2 * kModulations * d;  // two parts: attention and SwiGLU
}

}  // namespace

Flops forward_flops(const ModelConfig& c) {
  Flops f;
  const double tokens = c.tokens(), d = c.d_model;
  f.projections = 2 * 2 * tokens * c.token_width() * d;  // patches in, velocities out
  f.condition = 2 * kSinusoid * 4 * d + 2 * 4 * d * d + 2 * d * 2 * d;
  for (const std::string& block : c.blocks)
    block == "mamba" ? add_mamba(f, c) : add_attention(f, c);
  return f;
}

}  // namespace fm
