// fmtrain: trains a flow-matching model.
#include "apps/flags.h"
#include "apps/program.h"
#include "apps/train_checkpoint.h"
#include "apps/train_run.h"

namespace {

struct Options {
  std::string backbone = "mamba", preset = "paper", config_file, data = "auto", profile;
  bool dry_run = false, no_graph = false;
  fm::TrainRequest request;
};

// Flags beat --config, which beats the checkpoint that is resumed, or the preset, which beats the
// defaults.
fm::RunConfig resolve(const CLI::App& app, const Options& options,
                      const std::filesystem::path& checkpoint,
                      const fm::Flags<fm::ModelConfig>& model,
                      const fm::Flags<fm::TrainConfig>& train) {
  fm::RunConfig config = checkpoint.empty() ? fm::preset(options.preset, options.backbone)
                                            : fm::training_config(fm::SafetensorsFile(checkpoint));
  if (!options.config_file.empty()) fm::read_config_file(options.config_file, config);
  if (app.count("--backbone"))
    config.model.blocks =
        fm::backbone_blocks(options.backbone, static_cast<int>(config.model.blocks.size()));
  if (app.count("--data")) config.data.source = options.data;
  model.given(config.model);
  // Who asks for epochs wants all of them, whatever limit of steps a preset or a checkpoint has.
  if (app.count("--epochs")) config.train.max_steps = 0;
  train.given(config.train);
  return config;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Trains a Mamba, Transformer or hybrid backbone by conditional flow matching.",
               "fmtrain");
  fm::describe(app,
               "fmtrain --backbone hybrid --out runs/hybrid --epochs 10\n"
               "  fmtrain --preset tiny --backbone mamba --device cpu --out runs/tiny\n"
               "  fmtrain --out runs/hybrid --resume latest");
  Options o;
  fm::TrainRequest& r = o.request;
  app.add_option("--backbone", o.backbone, "mamba, transformer or hybrid");
  app.add_option(
      "--preset", o.preset,
      "paper (the study's), quick (a smaller model) or tiny (minutes on two CPU cores); a "
      "resume has its checkpoint's settings instead");
  app.add_option("--data", o.data, "auto, digits or a folder of IDX files");
  app.add_flag("--download", r.download, "fetch MNIST into the cache first");
  app.add_option("--out", r.out, "run folder; a resumed run stays in its own")
      ->default_str("runs/<backbone>");
  app.add_flag("--overwrite", r.overwrite, "start anew in a folder that is not empty");
  app.add_option("--resume", r.resume,
                 "go on from a checkpoint, a run folder, or the latest of --out");
  app.add_option("--device", r.device, "auto, cpu, cuda or cuda:N");
  app.add_option("--threads", r.threads, "CPU threads; 0: one a core");
  app.add_flag("--no-graph", o.no_graph, "launch a step's kernels one by one (same bits)");
  app.add_option("--profile", o.profile,
                 "START:STEPS: opens the profiler's window for these steps, which run without the "
                 "graph (same bits); see tools/profile.sh");
  app.add_option("--config", o.config_file, "JSON file with model and train settings");
  app.add_flag("--dry-run", o.dry_run, "print what would be done and what it needs; train nothing");
  const fm::Flags<fm::TrainConfig> train(app, "Training");
  const fm::Flags<fm::ModelConfig> model(app, "Model", {"image", "channels"});

  return fm::run_program(app, argc, argv, [&] {
    FM_CHECK(!r.overwrite || r.resume.empty(),
             "[train] --overwrite and --resume exclude one another");
    const std::filesystem::path runs = "runs";
    if (r.resume == "latest") {
      if (r.out.empty()) r.out = runs / o.backbone;
      r.checkpoint = fm::RunFolder(r.out).latest_checkpoint().value_or("");
    } else if (!r.resume.empty()) {
      r.checkpoint = fm::resolve_checkpoint(r.resume);
      if (r.out.empty()) r.out = fm::run_of(r.checkpoint);
    }
    r.graph = !o.no_graph;
    r.profile = fm::profile_steps(o.profile);
    r.config = resolve(app, o, r.checkpoint, model, train);
    if (r.out.empty()) r.out = runs / fm::backbone_name(r.config.model.blocks);
    if (o.dry_run) {
      fm::describe_training(r);
      return 0;
    }
    fm::catch_signals();
    return fm::run_training(r);
  });
}
