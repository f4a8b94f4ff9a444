// fmbench: times kernels, training steps and sampling, after checking what they compute.
#include "apps/bench/bench_run.h"
#include "apps/program.h"

namespace {

void add_common(CLI::App& app, fm::BenchOptions& o) {
  app.add_option("--device", o.device, "auto, cpu, cuda or cuda:N");
  app.add_option("--dtype", o.dtype,
                 "fp16, bf16 or fp32 on CUDA, fp32 on the CPU; auto: fp16, fp32");
  app.add_option("--threads", o.threads, "CPU threads; 0: one a core");
  app.add_option("--runs", o.runs, "times a row is made of, at the most; 0: the device's default");
  app.add_option("--json", o.report.json, "file to append a JSON line a row to");
  app.add_option("--baseline", o.report.baseline,
                 "such a file of an earlier run: prints ratios, exit code 1 above the threshold");
  app.add_option("--threshold", o.report.threshold, "largest time allowed, of the baseline's");
}

void add_model(CLI::App& app, fm::ModelOptions& o) {
  app.add_option("--backbone", o.backbones, "mamba, transformer, hybrid; several with commas")
      ->delimiter(',');
  app.add_option("--preset", o.preset,
                 "paper, quick or tiny; auto: paper on CUDA, tiny on the CPU");
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Times kernels, training steps and sampling; what computes wrongly gets no time.",
               "fmbench");
  fm::describe(app,
               "fmbench kernels --op selective_scan\n"
               "  fmbench step --backbone transformer --json before.jsonl\n"
               "  fmbench step --backbone transformer --baseline before.jsonl --threshold 1.02\n"
               "  fmbench sample --backbone mamba --batch 1,64\n"
               "  fmbench kernels --markdown > table.md\n"
               "\nfmbench kernels --help lists the flags of kernels; so do step and sample.");
  app.require_subcommand(1);
  fm::BenchOptions common;
  fm::KernelOptions kernels;
  fm::StepOptions step;
  fm::SampleBenchOptions sample;

  CLI::App* const for_kernels = app.add_subcommand(
      "kernels", "each op alone, from cold caches, as a share of what the machine allows");
  for_kernels->add_option("--op", kernels.op, "a folder of kernels/; without it all");
  for_kernels->add_option("--batch", kernels.batch, "images; 0: 256 on CUDA, 8 on the CPU");
  for_kernels->add_flag("--markdown", common.report.markdown, "print the table as Markdown");
  add_common(*for_kernels, common);

  CLI::App* const for_step = app.add_subcommand("step", "the trainer's whole step");
  add_model(*for_step, step);
  for_step->add_option("--batch", step.batch, "images a step; 0: the preset's");
  for_step->add_option("--data", step.data, "auto, digits or a folder of IDX files");
  add_common(*for_step, common);

  CLI::App* const for_sample = app.add_subcommand("sample", "integration of whole batches");
  add_model(*for_sample, sample);
  for_sample->add_option("--batch", sample.batches, "images at a time; several with commas")
      ->delimiter(',');
  for_sample->add_option("--steps", sample.steps, "integration steps");
  for_sample->add_option("--solver", sample.solver, "euler, midpoint, heun or rk4");
  add_common(*for_sample, common);

  return fm::run_program(app, argc, argv, [&] {
    fm::catch_signals();
    if (for_kernels->parsed()) return fm::bench_kernels(common, kernels);
    if (for_step->parsed()) return fm::bench_step(common, step);
    return fm::bench_sample(common, sample);
  });
}
