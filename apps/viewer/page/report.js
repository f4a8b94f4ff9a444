// The report of a comparison, built from report.json as fmcompare writes it. A section whose data
// is missing is left out; a backbone keeps its colour everywhere. Sections with curves and bars:
// report_figures.js.

const GB = 1e-9;
const DASH = "\u2013";

function buildReport(root, report) {
  const backbones = report.backbones ?? [];
  const candidates = report.decision?.candidates ?? [];
  const colours = colourOfBackbones(backbones);
  const page = {
    report,
    backbones,
    candidates,
    passes: new Map(candidates.map((one) => [one.name, one.passes])),
    published: new Map((report.published?.rows ?? []).map((row) => [row.name, row])),
    colour: (name) => colours.get(name) ?? "var(--ink-soft)",
  };
  root.querySelector(".masthead").append(facts([
    report.data && `${report.data.name}, ${number(report.data.train_images, 9)} training images`,
    report.preset && `preset ${report.preset}`,
    report.seeds?.length > 0 &&
      `seed${report.seeds.length > 1 ? "s" : ""} ${report.seeds.join(", ")}`,
    (report.devices ?? []).join(", "),
    report.date,
    report.version && `fm ${report.version}`,
  ]));
  const parts = [decisionPart, samplesPart, viewerPart, publishedPart, lossPart, speedPart,
    stepsPart, sweepPart, memorisedPart, judgePart, protocolPart];
  for (const part of parts) {
    const node = part(page);
    if (node) root.append(node);
  }
}

// --- pieces ----------------------------------------------------------------------------------

function section(title, lede, ...content) {
  const shown = content.flat(Infinity).filter(Boolean);
  if (shown.length === 0) return null;
  return el("section", { class: "report-section" },
    el("h2", {}, title), lede && el("p", { class: "lede" }, lede), shown);
}

function facts(texts) {
  return el("div", { class: "report-meta" },
    texts.filter(Boolean).map((text) => el("span", {}, text)));
}

function backboneName(page, backbone) {
  return [keyColour(page.colour(backbone.name)), backbone.label];
}

function badge(passes) {
  if (passes === null || passes === undefined) return null;
  return el("span", { class: `badge ${passes ? "good" : "bad"}` },
    passes ? "passes the bar" : "fails the bar");
}

// `stacked`: on a phone each row becomes a card.
function plainTable(heads, rows, { stacked = false } = {}) {
  if (stacked)
    for (const row of rows) [...row.children].forEach((cell, i) => (cell.dataset.head = heads[i]));
  return scrolling(el("table", { class: stacked ? "plain stacked" : "plain" },
    el("thead", {}, el("tr", {}, heads.map((head) => el("th", { scope: "col" }, head)))),
    el("tbody", {}, rows)));
}

function rowOf(head, ...cells) {
  return el("tr", {}, el("th", { scope: "row" }, head), cells);
}

// A cell; `below` is said in small print.
function cell(content, below) {
  return el("td", {}, content, below && el("small", {}, below));
}

function amount(text, below) {
  const node = cell(text, below);
  node.classList.add("amount");
  return node;
}

// mean, with its spread over seeds where there is one
function stat(value, scale = 1, digits = 3) {
  if (!value || !Number.isFinite(value.mean)) return DASH;
  const spread = Number.isFinite(value.sd) ? ` \u00b1 ${number(value.sd * scale, 2)}` : "";
  return number(value.mean * scale, digits) + spread;
}

// Losses are compared digit by digit.
function loss(value, decimals = 3) {
  return Number.isFinite(value) ? value.toFixed(decimals) : DASH;
}

function lossStat(value, decimals) {
  if (!value) return DASH;
  const spread = Number.isFinite(value.sd) ? ` \u00b1 ${loss(value.sd, decimals)}` : "";
  return loss(value.mean, decimals) + spread;
}

// --- sections --------------------------------------------------------------------------------

function decisionPart(page) {
  const decision = page.report.decision;
  if (!decision) return null;
  const standings = {
    winner: "wins",
    eliminated: "eliminated",
    worse: "higher loss",
    slower: "slower",
    higher_loss: "higher loss",
    more_memory: "more memory",
  };
  const resampled = (page.report.seeds ?? []).length > 1;
  const heads = ["", "Samples", "Loss", "A step", "Peak memory", "Standing"];
  if (resampled) heads.push("Wins, seeds resampled");
  const rows = page.candidates.map((one) => {
    const row = rowOf(backboneName(page, one),
      cell(badge(one.passes)),
      amount(loss(one.loss)),
      amount(`${number(one.step_ms)} ms`),
      amount(`${number(one.peak_memory_bytes * GB)} GB`),
      cell(standings[one.standing] ?? DASH, one.reason),
      resampled && amount(Number.isFinite(one.wins) ? `${number(100 * one.wins)} %` : DASH));
    row.dataset.standing = one.standing;
    return row;
  });
  const rule = decision.rule ?? [];
  return el("section", { class: "decision-part", "aria-label": "Decision" },
    el("div", { class: "decision" },
      el("strong", {}, decision.sentence),
      decision.certainty && el("p", { class: "note" }, decision.certainty)),
    rows.length > 0 && plainTable(heads, rows, { stacked: true }),
    rule.length > 0 && el("details", {},
      el("summary", {}, "The rule, fixed before the first run"),
      el("ol", { class: "note" }, rule.map((line) => el("li", {}, line.replace(/^\d+\. /, ""))))));
}

function samplesPart(page) {
  const figures = page.backbones
    .filter((one) => isPicture(one.grid) || one.failed)
    .map((one) => el("figure", {},
      el("h3", {}, backboneName(page, one), badge(page.passes.get(one.name))),
      isPicture(one.grid) && el("img",
        { src: one.grid, width: 242, height: 242, alt: `64 samples of ${one.label}` }),
      el("figcaption", { class: "note" }, one.failed ??
        `Fr\u00e9chet distance ${stat(one.frechet)}, ${stat(one.recognised, 100)} % recognised`)));
  return section("Samples", "64 samples of each backbone, from the same noise.",
    figures.length > 0 && el("div", { class: "samples" }, figures));
}

function viewerPart(page) {
  const viewer = page.report.viewer;
  if (!viewer?.sets?.length) return null;
  const root = el("div");
  const node = section("From noise to digits", describeIntegration(viewer), root);
  const shown = viewer.sets.flatMap((set) => set.backbones);
  new TrajectoryViewer(root, viewer, {
    colours: colourOfBackbones([...page.backbones, ...shown]),
    ownsKeyboard: false,
  });
  return node;
}

function publishedPart(page) {
  const published = page.report.published;
  if (!published) return null;
  const said = (value, unit = "") => {
    if (value === undefined || value === null) return "not published";
    return `published ${typeof value === "number" ? number(value) : value}${unit}`;
  };
  const verdict = (backbone) => {
    const judged = (backbone.runs ?? []).filter((run) => !run.failed);
    const passed = judged.filter((run) => run.passes).length;
    if (judged.length === 0) return DASH;
    if (passed === 0) return "not digits";
    return passed === judged.length ? "digits" : `digits in ${passed} of ${judged.length} runs`;
  };
  const rows = page.backbones.map((one) => {
    const row = page.published.get(one.name) ?? {};
    return rowOf(backboneName(page, one),
      amount(`${number(one.params / 1e6)} M`, said(row.params && row.params / 1e6, " M")),
      amount(lossStat(one.half_loss, 4), said(row.half_loss && loss(row.half_loss))),
      amount(`${stat(one.step_ms)} ms`, said(row.step_ms, " ms")),
      amount(`${stat(one.peak_memory_bytes, GB)} GB`, said(row.memory_gb, " GB")),
      amount(`${stat(one.wall_s, 1 / 60)} min`, said(row.minutes, " min")),
      cell(verdict(one), said(row.samples)));
  });
  const heads = ["", "Parameters", "Half the loss, last epoch", "A step", "Peak memory",
    "Whole training", "Samples"];
  const side = (name, text) => el("dd", {}, el("small", {}, name), text ?? DASH);
  const disagreements = (page.report.disagreements ?? []).map((one) => el("div", {},
    el("dt", {}, one.claim),
    side("published", one.published),
    side("measured", one.measured),
    one.note && el("dd", { class: "note" }, one.note)));
  return section("Published and measured",
    published.decision && `The study decided: ${published.decision}`,
    plainTable(heads, rows, { stacked: true }),
    disagreements.length > 0 && [
      el("h3", {}, "Where the study cannot be taken at its word"),
      el("dl", { class: "disagreements" }, disagreements),
    ]);
}

function memorisedPart(page) {
  const said = (nearest) => nearest.note ??
    `${nearest.copies} of ${nearest.count} are copies; median distance ` +
    `${number(nearest.median)}, of real test digits ${number(nearest.median_real)}`;
  const figures = page.backbones
    .filter((one) => isPicture(one.nearest?.image))
    .map((one) => el("figure", {},
      el("h3", {}, backboneName(page, one)),
      el("img", { src: one.nearest.image,
        alt: `Samples of ${one.label} above their nearest training images` }),
      el("figcaption", { class: "note" }, said(one.nearest))));
  return section("Is it memory?", "Samples above, below each its nearest training image.",
    figures.length > 0 && el("div", { class: "samples" }, figures));
}

// Every run of every backbone.
function allRuns(page) {
  return page.backbones.flatMap((backbone) =>
    (backbone.runs ?? []).map((run) => ({
      run,
      head: [...backboneName(page, backbone), el("small", {}, `seed ${run.seed}`)],
    })));
}

function judgePart(page) {
  const judge = page.report.judge;
  if (!judge?.marks?.length) return null;
  const marks = judge.marks;
  const anchor = (name, text) => rowOf(name, cell(), marks.map((mark) => amount(text(mark))));
  const rows = allRuns(page).map(({ run, head }) => rowOf(head,
    cell(run.failed ? null : badge(run.passes), run.failed),
    marks.map(({ name }) => {
      const mark = (run.marks ?? []).find((other) => other.name === name);
      return amount(number(mark?.value), mark && `margin ${number(mark.margin, 2)}`);
    })));
  const read = Number.isFinite(judge.classifier_accuracy) &&
    `Its classifier reads ${number(100 * judge.classifier_accuracy, 4)} % of the test split right.`;
  return section("The judge", [judge.rule, read].filter(Boolean).join(" "), plainTable(
    ["", `${number(judge.count, 9)} samples`, ...marks.map((mark) => mark.name)],
    [
      anchor("Real digits", (mark) => number(mark.real)),
      anchor("Noise", (mark) => number(mark.noise)),
      anchor("The bar", (mark) => `${mark.at_least ? "\u2265" : "\u2264"} ${number(mark.bar)}`),
      ...rows,
    ]));
}

function protocolPart(page) {
  const protocol = page.report.protocol ?? [];
  const heads = ["", "Loss", "Half of it", "On the test split", "A step", "Peak memory",
    "Training", "Device"];
  const rows = allRuns(page).map(({ run, head }) => rowOf(head,
    amount(loss(run.loss), run.failed),
    amount(loss(run.half_loss, 4)),
    amount(loss(run.held_out)),
    amount(`${number(run.step_ms)} ms`, `90th percentile ${number(run.step_p90_ms)}`),
    amount(`${number(run.peak_memory_bytes * GB)} GB`),
    amount(`${number(run.wall_s / 60)} min`),
    cell(run.device ?? DASH)));
  return section("Protocol and runs", "One data set, schedule and evaluation for all.",
    protocol.length > 0 && facts(protocol.map(([name, value]) => `${name} ${value}`)),
    rows.length > 0 && plainTable(heads, rows));
}
