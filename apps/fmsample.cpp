// fmsample: draws samples from a checkpoint.
#include <iostream>

#include "apps/program.h"
#include "apps/sample_run.h"
#include "apps/viewer/viewer_run.h"

int main(int argc, char** argv) {
  CLI::App app("Samples a flow-matching checkpoint by integrating its velocity field from noise.",
               "fmsample");
  fm::describe(app,
               "fmsample --ckpt runs/hybrid --n 64 --out digits.png\n"
               "  fmsample --ckpt runs/hybrid --solver heun --steps 20 --trajectory frames\n"
               "  fmsample --ckpt runs/mamba runs/hybrid --cfg-scale 2 --viewer digits.html\n"
               "  fmsample --ckpt runs/hybrid --info");
  fm::SampleOptions o;
  bool info = false;
  app.add_option("--ckpt", o.checkpoints,
                 "checkpoint file, or a run folder (its latest); several for --viewer")
      ->required();
  app.add_option("--weights", o.weights, "raw or ema; auto: ema where present");
  const auto count = app.add_option("--n", o.count, "images");
  app.add_option("--steps", o.steps, "integration steps");
  app.add_option("--solver", o.solver, "euler, midpoint, heun or rk4");
  app.add_option("--seed", o.seed, "of the noise; image i's depends on (seed, i) alone");
  const auto noise = app.add_option(
      "--noise", o.noise, "safetensors file with a tensor noise [N, C, H, W], instead of --seed");
  app.add_option("--label", o.label,
                 "class to draw, or all (image i: label i mod classes); without it the null label");
  app.add_option("--cfg-scale", o.cfg_scale, "guidance: v_null + s (v_label - v_null)");
  const auto out = app.add_option("--out", o.out, "PNG grid to write");
  const auto tensor =
      app.add_option("--save-tensor", o.save_tensor,
                     "safetensors file to write: samples [N, C, H, W], not clamped");
  const auto trajectory = app.add_option(
      "--trajectory", o.trajectory, "folder to write: a grid a step and trajectory.safetensors");
  app.add_option("--viewer", o.viewer,
                 "page to write instead: all checkpoints' trajectories, digit by digit where they "
                 "have classes, to look at in a browser")
      ->excludes(count, noise, out, tensor, trajectory);
  app.add_option("--viewer-noises", o.viewer_noises, "noises to choose from in the page");
  app.add_option("--config", o.config, "JSON model configuration, for a checkpoint without one");
  app.add_flag("--info", info, "print what the checkpoint holds; sample nothing");
  app.add_option("--device", o.device, "auto, cpu, cuda or cuda:N");
  app.add_option("--dtype", o.dtype,
                 "fp16, bf16 or fp32 on CUDA, fp32 or fp64 on the CPU; auto: fp16, fp32");
  app.add_option("--threads", o.threads, "CPU threads; 0: one a core");
  app.add_option("--batch", o.batch, "images at a time");

  return fm::run_program(app, argc, argv, [&] {
    fm::catch_signals();
    if (info) fm::print_checkpoint_info(o);
    else if (!o.viewer.empty()) fm::run_viewer(o);
    else fm::run_sampling(o);
    return 0;
  });
}
