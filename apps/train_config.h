// The settings of a training run, their presets, and where they come from.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "engine/io/fields.h"
#include "models/config.h"
#include "models/trainer.h"

namespace fm {

struct TrainConfig {
  std::int64_t epochs = 50;
  std::int64_t max_steps = 0;
  int batch = 256;
  double lr = 1e-4;
  double weight_decay = 0.01;
  std::vector<double> betas = {0.9, 0.999};
  double grad_clip = 1.0;
  std::int64_t warmup_steps = 0;
  double cooldown = 0;
  double ema_decay = 0;
  std::string dtype = "auto";
  std::string residual = "wide";
  std::uint64_t seed = 0;
  std::string t_sampling = "uniform";
  double class_drop_prob = 0.1;
  std::int64_t log_every = 50;
  std::int64_t ckpt_every = 0;
  std::int64_t sample_every = 0;
  std::int64_t keep_last = 3;

  template <class Self, class Visit>
  static void fields(Self& self, Visit&& visit) {
    visit("epochs", self.epochs, "passes over the data, full batches only");
    visit("max_steps", self.max_steps, "stop after so many steps; 0: by epochs alone");
    visit("batch", self.batch, "images a step");
    visit("lr", self.lr, "learning rate of AdamW");
    visit("weight_decay", self.weight_decay, "decoupled weight decay of matrices");
    visit("betas", self.betas, "AdamW's two decay rates");
    visit("grad_clip", self.grad_clip, "largest global gradient norm; 0: no clipping");
    visit("warmup_steps", self.warmup_steps, "steps over which the learning rate rises from 0");
    visit("cooldown", self.cooldown,
          "share of the steps, at the end, over which the learning rate falls to 0");
    visit("ema_decay", self.ema_decay, "decay of the weights' average, warmed up; 0: no average");
    visit("dtype", self.dtype,
          "fp16, bf16 or fp32 on CUDA, fp32 or fp64 on the CPU; auto: fp16, fp32");
    visit("residual", self.residual, "the residual stream: wide (fp32) or narrow (in dtype)");
    visit("seed", self.seed, "of weights, data order, noise and times");
    visit("t_sampling", self.t_sampling, "distribution of t: uniform or logit-normal");
    visit("class_drop_prob", self.class_drop_prob, "probability of the null label, with --classes");
    visit("log_every", self.log_every, "steps between log rows");
    visit("ckpt_every", self.ckpt_every, "steps between checkpoints; 0: every epoch");
    visit("sample_every", self.sample_every,
          "steps between sample grids; 0: every epoch, -1: none");
    visit("keep_last", self.keep_last, "checkpoints kept; 0: all");
  }
};

// Throws Fault::usage with a sentence that names the field and what would work.
void validate(const TrainConfig&);

// Steps of a run in all.
std::int64_t steps_of(const TrainConfig& config, std::int64_t steps_per_epoch);

// The data set of a run: the source as asked for, and once resolved what was found.
struct DataConfig {
  std::string source = "auto";
  std::string name;
  std::string fingerprint;
  std::int64_t images = 0;

  template <class Self, class Visit>
  static void fields(Self& self, Visit&& visit) {
    visit("source", self.source, "auto, digits or a folder of IDX files");
    visit("name", self.name, "the set's name");
    visit("fingerprint", self.fingerprint, "md5 of its pixels");
    visit("images", self.images, "images of the train split");
  }
};

// A whole configuration: what the tools resolve and write to config.json as {"model", "train",
// "data"}.
struct RunConfig {
  ModelConfig model;
  TrainConfig train;
  DataConfig data;
};

// "paper": the study's model and schedule, which are the defaults. "quick": a smaller model for a
// minute of GPU. "tiny": minutes on two CPU cores. Throws Fault::usage for another name. `backbone`
// chooses the blocks, with the preset's depth.
RunConfig preset(const std::string& name, const std::string& backbone);

// Lays a JSON file over `config`: an object with any of "model", "train", "data", or a bare model
// configuration.
void read_config_file(const std::filesystem::path& path, RunConfig& config);
Json config_json(const RunConfig& config);
void apply_config_json(const Json& json, const std::string& where, RunConfig& config);

// total_steps: of the run, where its cooldown ends; 0: without one.
TrainerSettings trainer_settings(const TrainConfig& config, DType compute, bool graph,
                                 std::int64_t total_steps = 0);

}  // namespace fm
