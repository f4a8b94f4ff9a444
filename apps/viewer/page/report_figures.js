// The report's sections with curves and bars: loss, speed and memory, quality against steps,
// tokens.

// A curve of a backbone in its colour.
function curve(page, backbone, points) {
  return { label: backbone.label, colour: page.colour(backbone.name), points };
}

function distinct(values) {
  return [...new Set(values)];
}

function ascending(values) {
  return distinct(values).sort((a, b) => a - b);
}

// Of ascending numbers those that stand at least `ratio` above the last one that was kept.
function spacedOut(values, ratio) {
  const kept = [];
  for (const value of values) if (!kept.length || value >= ratio * kept.at(-1)) kept.push(value);
  return kept;
}

function charts(...shown) {
  return el("div", { class: "charts" }, shown);
}

function lossPart(page) {
  const drawn = page.backbones.filter((one) => one.curve?.loss?.length);
  const by = drawn.every((one) => one.curve.epochs?.every(Number.isFinite)) ? "epoch" : "step";
  const training = drawn.map((one) =>
    curve(page, one, one.curve.loss.map((value, i) => [one.curve[`${by}s`][i], value])));
  const bins = page.backbones
    .filter((one) => one.loss_bins?.test?.length)
    .map((one) => curve(page, one, one.loss_bins.test.map((value, i) => [(i + 0.5) / 10, value])));
  return section("Loss",
    "Mean squared error of the velocity; the study\u2019s own figure is half of it.",
    charts(
      lineChart({
        title: "Training",
        series: training,
        x: { label: by },
        y: { label: "loss, mean over seeds", log: true },
      }),
      lineChart({
        title: "By time",
        series: bins,
        dots: true,
        x: { label: "t, from noise (0) to data (1)", ticks: [0.05, 0.25, 0.45, 0.65, 0.85] },
        y: { label: "loss on the test split", zero: true },
      })));
}

function speedPart(page) {
  const bars = (figure, scale, publishedAs) => page.backbones.map((one) => {
    const value = one[figure];
    return {
      label: one.label,
      colour: page.colour(one.name),
      value: value && value.mean * scale,
      low: value && value.min * scale,
      high: value && value.max * scale,
      published: page.published.get(one.name)?.[publishedAs],
    };
  });
  const timed = page.backbones.filter((one) => one.latency?.length);
  const batches = ascending(timed.flatMap((one) => one.latency.map((row) => row.batch)));
  const sampling = (title, key, unit) => lineChart({
    title,
    series: timed.map((one) => curve(page, one, one.latency.map((row) => [row.batch, row[key]]))),
    dots: true,
    x: { label: "batch", log: true, ticks: batches },
    y: { label: unit, log: true },
  });
  return section("Speed and memory",
    "A training step is the whole step, optimizer included, over the last 100 steps; " +
      "the study\u2019s is forward and backward.",
    charts(
      barChart({ title: "A training step", unit: "ms", bars: bars("step_ms", 1, "step_ms") }),
      barChart({
        title: "Peak memory",
        unit: "GB",
        bars: bars("peak_memory_bytes", GB, "memory_gb"),
      }),
      sampling("Sampling, latency", "ms", "ms a batch, noise to pictures"),
      sampling("Sampling, throughput", "images_per_s", "images a second")),
    workTable(page));
}

// What a step costs in operations, and how fast they go.
function workTable(page) {
  const rows = page.backbones.filter((one) => one.flops).map((one) => rowOf(
    backboneName(page, one),
    amount(`${number(one.flops.forward / 1e9)} GFLOP`),
    amount(`${number(one.flops.step / 1e12)} TFLOP`),
    amount(`${number(100 * one.flops.scan_share)} %`),
    amount(stat(one.images_per_s)),
    amount(one.step_ms ? number(one.flops.step / one.step_ms.mean / 1e9) : DASH),
    amount(`${stat(one.step_p90_ms)} ms`)));
  const heads = ["", "Forward, an image", "A step", "of it the scan", "Images a second, training",
    "TFLOP a second", "90th percentile of a step"];
  return rows.length > 0 && plainTable(heads, rows, { stacked: true });
}

// Quality against steps, a solver at a time.
function stepsPart(page) {
  const points = page.backbones.flatMap((one) => one.steps_quality ?? []);
  const solvers = distinct(points.map((point) => point.solver));
  if (solvers.length === 0) return null;
  const real = page.report.judge?.frechet_real;
  const chart = (solver, title, key, scale, y) => {
    const steps = ascending(points.filter((at) => at.solver === solver).map((at) => at.steps));
    const series = page.backbones.map((one) => curve(page, one, (one.steps_quality ?? [])
      .filter((at) => at.solver === solver && at[key] !== null)
      .map((at) => [at.steps, at[key] * scale])));
    if (key === "frechet" && real > 0)
      series.push({
        label: "real digits",
        colour: "var(--ink-soft)",
        dashed: true,
        points: steps.map((at) => [at, real]),
      });
    return lineChart({
      title, series, dots: true, x: { label: "steps", log: true, ticks: steps }, y,
    });
  };
  const shown = charts();
  const show = (solver) => {
    for (const chip of chips)
      chip.setAttribute("aria-pressed", String(chip.textContent === solver));
    shown.replaceChildren(...[
      chart(solver, "Fr\u00e9chet distance", "frechet", 1,
        { label: "to the test split, lower is better", log: true }),
      chart(solver, "Recognised", "recognised", 100,
        { label: "% of samples the classifier is sure of", zero: true }),
    ].filter(Boolean));
  };
  const chips = solvers.map((solver) =>
    el("button", { class: "chip", type: "button", onclick: () => show(solver) }, solver));
  show(solvers[0]);
  return section("Quality against steps", "How few steps are enough, and what another solver buys.",
    solvers.length > 1 &&
      el("div", { class: "chips", role: "group", "aria-label": "Solver" }, chips),
    shown);
}

function sweepPart(page) {
  const sweep = page.report.sweep;
  if (!sweep?.rows?.length) return null;
  const names = distinct(sweep.rows.map((row) => row.backbone));
  const colours = colourOfBackbones([...page.backbones, ...names.map((name) => ({ name }))]);
  const label = (name) => page.backbones.find((one) => one.name === name)?.label ?? name;
  const tokens = spacedOut(ascending(sweep.rows.map((row) => row.tokens)), 1.9);
  const chart = (title, key, scale, unit) => lineChart({
    title,
    series: names.map((name) => ({
      label: label(name),
      colour: colours.get(name),
      points: sweep.rows
        .filter((row) => row.backbone === name && Number.isFinite(row[key]))
        .map((row) => [row.tokens, row[key] * scale]),
    })),
    dots: true,
    x: { label: "tokens", log: true, ticks: tokens },
    y: { label: unit, log: true },
  });
  const figures = charts(
    chart("A training step", "us_per_image", 1, "\u00b5s an image"),
    chart("Sampling", "latency_ms", 1, "ms, one image"),
    chart("Memory of training", "bytes_per_image", 1e-6, "MB an image") ??
      chart("Peak memory", "peak_memory_bytes", GB, "GB"));
  figures.classList.add("narrow");
  const failed = sweep.rows.filter((row) => row.failed).map((row) =>
    `${label(row.backbone)}, ${number(row.tokens, 9)} tokens: ${row.failed}.`);
  return section("More tokens",
    sweep.device && `On ${sweep.device}: does the advantage widen with the number of tokens?`,
    figures,
    sweep.sentences?.length > 0 &&
      el("div", { class: "lede" }, sweep.sentences.map((line) => el("p", {}, line))),
    sweep.crossovers?.length > 0 && crossoverTable(sweep.crossovers, label),
    failed.length > 0 && el("p", { class: "note" }, failed.join(" ")));
}

// From how many tokens on one backbone is so many times as fast as another: a row a pair and what
// is timed, a column a ratio.
function crossoverTable(crossovers, label) {
  const timed = { step_ms: "a training step", latency_ms: "sampling one image" };
  const title = (one) =>
    `${label(one.faster)} against ${label(one.slower)}, ${timed[one.of] ?? one.of}`;
  const ratios = ascending(crossovers.map((one) => one.ratio));
  const rows = distinct(crossovers.map(title)).map((name) => rowOf(name, ratios.map((ratio) => {
    const one = crossovers.find((other) => title(other) === name && other.ratio === ratio);
    const found = Number.isFinite(one?.tokens);
    return cell(found ? `${number(one.tokens)} tokens` : "not in this range");
  })));
  const heads = ratios.map((ratio) =>
    ratio === 1 ? "as fast, from" : `${number(ratio)} times as fast, from`);
  return plainTable(["", ...heads], rows, { stacked: true });
}
