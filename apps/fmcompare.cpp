// fmcompare: trains backbones under one protocol, judges their samples, and decides by rule.
#include <iostream>

#include "apps/compare/compare_run.h"
#include "apps/compare/report_files.h"
#include "apps/compare/token_sweep.h"
#include "apps/environment.h"
#include "apps/flags.h"
#include "apps/program.h"

namespace {

struct Options {
  std::string preset = "auto";
  std::vector<std::string> backbones = {"mamba", "transformer", "hybrid"};
  int seeds = 0;
  double class_share = 0;
  bool no_viewer = false, dry_run = false;
  fm::CompareRequest request;
};

// Flags beat the preset, which beats the defaults.
void resolve(Options& o, const fm::Flags<fm::ModelConfig>& model,
             const fm::Flags<fm::TrainConfig>& train,
             const fm::Flags<fm::EvaluationConfig>& evaluation) {
  if (o.preset == "auto") {
    const fm::Queue queue = fm::make_queue(o.request.device, o.request.threads);
    o.preset = std::holds_alternative<fm::CpuQueue>(queue) ? "tiny" : "quick";
  }
  fm::Comparison& c = o.request.comparison = fm::comparison_preset(o.preset, o.backbones);
  FM_CHECK(o.seeds >= 0, "[compare] seeds must be 0 (the preset's) or more, got ", o.seeds);
  FM_CHECK(o.class_share >= 0 && o.class_share <= 1,
           "[compare] class_share must be 0 (the preset's) to 1, got ", o.class_share);
  if (o.seeds > 0) c.seeds = o.seeds;
  if (o.class_share > 0) c.class_share = o.class_share;
  c.viewer = !o.no_viewer;
  fm::TrainConfig asked{.epochs = 0};
  train.given(asked);
  for (fm::Contender& one : c.contenders) {
    model.given(one.config.model);
    // Who asks for epochs wants all of them, whatever limit of steps a preset has.
    if (asked.epochs > 0) one.config.train.max_steps = 0;
    train.given(one.config.train);
  }
  evaluation.given(c.evaluation);
  if (o.request.out.empty())
    o.request.out = std::filesystem::path("runs") / ("compare-" + o.preset);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Compares backbones: trains, judges, measures, decides by a rule fixed in advance.",
               "fmcompare");
  fm::describe(app,
               "fmcompare run --preset quick --out runs/compare\n"
               "  fmcompare run --preset paper --out runs/paper --only mamba:2\n"
               "  fmcompare run --backbones mamba,transformer,attention*2+mamba*6 --seeds 2\n"
               "  fmcompare report runs/paper\n"
               "  fmcompare sweep --tokens 49,196,784,3136 --out runs/paper\n"
               "\nfmcompare run --help lists the flags of run; so do report and sweep.");
  app.require_subcommand(1);

  Options o;
  fm::CompareRequest& r = o.request;
  CLI::App* const run = app.add_subcommand(
      "run",
      "train each backbone with each seed, evaluate it, write the report; goes on where it "
      "was stopped");
  run->add_option("--preset", o.preset,
                  "paper (the study's, 3 seeds), quick (two minutes of a GPU) or tiny (ten minutes "
                  "of two cores); auto: quick on CUDA, tiny on the CPU");
  run->add_option("--backbones", o.backbones,
                  "mamba, transformer, hybrid, or blocks as in attention*2+mamba*6; with commas")
      ->delimiter(',');
  run->add_option("--seeds", o.seeds, "seeds 0 to this less one; 0: the preset's");
  run->add_option("--only", r.only,
                  "one run of the set: BACKBONE:SEED, or BACKBONE:classes for the viewer's");
  run->add_option("--out", r.out, "the comparison's folder")->default_str("runs/compare-<preset>");
  run->add_option("--data", r.data, "auto, digits or a folder of IDX files");
  run->add_flag("--download", r.download, "fetch MNIST into the cache first");
  run->add_flag("--no-viewer", o.no_viewer, "leave out the class-conditional runs");
  run->add_option("--class-share", o.class_share,
                  "of the others' steps that class-conditional runs are trained for; 0: the "
                  "preset's");
  run->add_flag("--allow-unequal", r.allow_unequal,
                "compare models whose parameters differ by more than 10 %");
  run->add_flag("--overwrite", r.overwrite, "do every run anew");
  run->add_flag("--again", r.again, "evaluate finished runs anew");
  run->add_option("--device", r.device, "auto, cpu, cuda or cuda:N");
  run->add_option("--threads", r.threads, "CPU threads; 0: one a core");
  run->add_flag("--dry-run", o.dry_run, "print what would be done; train nothing");
  const fm::Flags<fm::EvaluationConfig> evaluation(*run, "Evaluation");
  const fm::Flags<fm::TrainConfig> train(*run, "Training", {"seed"});
  const fm::Flags<fm::ModelConfig> model(*run, "Model", {"blocks", "image", "channels", "classes"});

  std::filesystem::path folder;
  CLI::App* const report = app.add_subcommand(
      "report", "rebuild the report from run folders; needs no weights and trains nothing");
  report->add_option("folder", folder, "the comparison's folder, with runs in its runs/")
      ->required();

  fm::SweepRequest s;
  CLI::App* const sweep = app.add_subcommand(
      "sweep", "time and memory of training and sampling against the number of tokens");
  sweep->add_option("--backbones", s.backbones, "as of run")->delimiter(',');
  sweep->add_option("--tokens", s.tokens, "numbers of tokens, squares; with commas")
      ->delimiter(',');
  sweep->add_option("--preset", s.preset,
                    "whose models: paper, quick or tiny; auto: paper on CUDA, "
                    "tiny on the CPU");
  sweep->add_option("--tokens-per-step", s.tokens_per_step,
                    "batches are as large as this allows; 0: the preset's batch at its tokens");
  sweep->add_option("--steps", s.steps, "steps timed; 0: 20 on CUDA, 3 on the CPU");
  sweep->add_option("--sample-steps", s.sample_steps,
                    "Euler steps of the image whose time is taken");
  sweep->add_option("--out", s.out, "folder to write to; a comparison's gets it into its report");
  sweep->add_option("--device", s.device, "auto, cpu, cuda or cuda:N");
  sweep->add_option("--dtype", s.dtype,
                    "fp16, bf16 or fp32 on CUDA, fp32 or fp64 on the CPU; auto: fp16, fp32");
  sweep->add_option("--threads", s.threads, "CPU threads; 0: one a core");

  return fm::run_program(app, argc, argv, [&] {
    fm::catch_signals();
    if (report->parsed()) {
      fm::print_report(fm::write_report(folder), std::cout);
      return 0;
    }
    if (sweep->parsed()) return fm::run_sweep(s);
    resolve(o, model, train, evaluation);
    if (!o.dry_run) return fm::run_comparison(r);
    fm::describe_comparison(r);
    return 0;
  });
}
