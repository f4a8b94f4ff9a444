// Line and bar charts as SVG, drawn to the width they get, so that their text keeps its size on a
// phone; and the figures behind them as a table.

const kChartHeight = 280;
const kMargin = { top: 14, right: 14, bottom: 42, left: 52 };

// Ticks of an axis over [low, high]: steps of 1, 2 or 5 times a power of ten; on a log axis round
// numbers themselves, as many as there is room for.
function ticks(low, high, log, room) {
  const found = [];
  if (log) {
    for (const factors of [[1, 1.5, 2, 3, 5, 7], [1, 2, 5], [1, 3], [1]]) {
      found.length = 0;
      for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); ++power)
        for (const factor of factors) {
          const tick = factor * 10 ** power;
          if (tick >= low * 0.999 && tick <= high * 1.001) found.push(tick);
        }
      if (found.length <= room) break;
    }
    if (found.length > 1) return found;
    found.length = 0;
  }
  const rough = (high - low) / room || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-9; tick += step)
    found.push(Math.abs(tick) < step * 1e-9 ? 0 : tick);
  return found;
}

function scaleOf(values, log, from, to, { includeZero = false, padding = 0 } = {}) {
  let low = Math.min(...values);
  let high = Math.max(...values);
  if (includeZero && !log) low = Math.min(low, 0);
  if (low === high) [low, high] = log ? [low / 2, high * 2] : [low - 0.5, high + 0.5];
  const warp = log ? Math.log : (x) => x;
  const room = (warp(high) - warp(low)) * padding;
  const [a, b] = [warp(low) - (includeZero && low === 0 && !log ? 0 : room), warp(high) + room];
  const unwarp = log ? Math.exp : (x) => x;
  const scale = (x) => from + ((warp(x) - a) / (b - a)) * (to - from);
  scale.low = unwarp(a);
  scale.high = unwarp(b);
  return scale;
}

// Redraws `draw(width)` into a box of fixed height whenever the box's width changes.
function drawnToWidth(height, draw) {
  const box = el("div", { class: "chart-box", style: `height: ${height}px` });
  let drawn = 0;
  new ResizeObserver(() => {
    const width = Math.floor(box.clientWidth);
    if (width === drawn || width < 50) return;
    drawn = width;
    box.replaceChildren(...[draw(width)].flat());
  }).observe(box);
  return box;
}

// series: [{label, colour, points: [[x, y], ...], dashed}]; points that are no numbers, or not
// positive on a log axis, are left out. x, y: {label, log, zero, ticks}. One point shows as a dot.
// null where there is nothing to draw.
function lineChart({ title, series, x, y, dots = false }) {
  const shown = series
    .map((one) => ({ ...one, points: one.points.filter(([a, b]) =>
      Number.isFinite(a) && Number.isFinite(b) && (!x.log || a > 0) && (!y.log || b > 0)) }))
    .filter((one) => one.points.length > 0);
  if (shown.length === 0) return null;
  const all = shown.flatMap((one) => one.points);
  const formatX = (value) => number(value, 6);
  const formatY = (value) => number(value, 3);

  const box = drawnToWidth(kChartHeight, (width) => {
    const right = width - kMargin.right;
    const bottom = kChartHeight - kMargin.bottom;
    const toX = scaleOf(all.map((p) => p[0]), x.log, kMargin.left, right,
      { includeZero: x.zero, padding: dots ? 0.03 : 0 });
    const toY = scaleOf(all.map((p) => p[1]), y.log, bottom, kMargin.top,
      { includeZero: y.zero, padding: 0.06 });
    const xs = x.ticks ?? ticks(toX.low, toX.high, x.log, width / 80);
    const ys = ticks(toY.low, toY.high, y.log, 6);
    const svg = el("svg", { width, height: kChartHeight, role: "img",
      "aria-label": `${title}: ${shown.map((one) => one.label).join(", ")}` });
    for (const tick of ys)
      svg.append(
        el("line", { class: "grid", x1: kMargin.left, x2: right, y1: toY(tick), y2: toY(tick) }),
        el("text", { x: kMargin.left - 8, y: toY(tick), class: "tick end" }, formatY(tick)));
    for (const tick of xs)
      svg.append(el("text", { x: toX(tick), y: bottom + 18, class: "tick middle" }, formatX(tick)));
    svg.append(
      el("line", { class: "axis", x1: kMargin.left, x2: right, y1: bottom, y2: bottom }),
      el("text", { x: (kMargin.left + right) / 2, y: kChartHeight - 6, class: "tick middle" },
        x.label));
    for (const one of shown) {
      const path = one.points.map(([a, b], i) =>
        `${i ? "L" : "M"}${toX(a).toFixed(1)} ${toY(b).toFixed(1)}`).join("");
      svg.append(el("path", { class: one.dashed ? "line dashed" : "line", d: path,
        style: `stroke: ${one.colour}` }));
      if (dots || one.points.length === 1)
        for (const [a, b] of one.points)
          svg.append(
            el("circle", { cx: toX(a), cy: toY(b), r: 3.5, style: `fill: ${one.colour}` }));
    }
    return [svg, ...pointer(svg, width, shown, toX, toY, x, formatX, formatY)];
  });
  return el("figure", { class: "chart" },
    el("figcaption", {}, el("h3", {}, title), el("span", { class: "note" }, y.label)),
    el("div", { class: "chart-legend" },
      shown.map((one) => el("span", {}, keyColour(one.colour), one.label))),
    box,
    numbersTable(shown, x, formatX, formatY));
}

// A rule that follows the pointer and a box that says what the curves are there.
function pointer(svg, width, series, toX, toY, x, formatX, formatY) {
  const rule = el("line", { class: "rule", y1: kMargin.top, y2: kChartHeight - kMargin.bottom,
    visibility: "hidden" });
  const tip = el("div", { class: "chart-tip", "aria-hidden": "true" });
  svg.append(rule);
  const xs = [...new Set(series.flatMap((one) => one.points.map((p) => p[0])))];
  const nearest = (points, at) => points.reduce((best, point) =>
    Math.abs(toX(point[0]) - at) < Math.abs(toX(best[0]) - at) ? point : best);
  svg.addEventListener("pointermove", (event) => {
    const at = event.clientX - svg.getBoundingClientRect().left;
    const value = nearest(xs.map((a) => [a]), at)[0];
    rule.setAttribute("x1", toX(value));
    rule.setAttribute("x2", toX(value));
    rule.setAttribute("visibility", "visible");
    tip.replaceChildren(el("b", {}, `${x.label} ${formatX(value)}`), ...series.map((one) => {
      const [a, b] = nearest(one.points, toX(value));
      if (Math.abs(toX(a) - toX(value)) > 12) return null;
      return el("span", {}, keyColour(one.colour), ` ${one.label} ${formatY(b)}`);
    }).filter(Boolean));
    tip.style.left = `${clamp(toX(value) + 12, 0, width - 180)}px`;
    tip.dataset.shown = "true";
  });
  svg.addEventListener("pointerleave", () => {
    rule.setAttribute("visibility", "hidden");
    tip.dataset.shown = "false";
  });
  return [tip];
}

// The figures that a chart shows, some twenty of a long curve.
function numbersTable(series, x, formatX, formatY) {
  const xs = [...new Set(series.flatMap((one) => one.points.map((p) => p[0])))];
  xs.sort((a, b) => a - b);
  const every = Math.ceil(xs.length / 20);
  const shown = xs.filter((_, i) => i % every === 0 || i === xs.length - 1);
  return el("details", {}, el("summary", {}, "Numbers"), scrolling(el("table", { class: "plain" },
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, x.label),
      series.map((one) => el("th", { scope: "col" }, one.label)))),
    el("tbody", {}, shown.map((at) => el("tr", {}, el("th", { scope: "row" }, formatX(at)),
      series.map((one) => {
        const point = one.points.find((p) => p[0] === at);
        return el("td", {}, point ? formatY(point[1]) : "\u2013");
      })))))));
}

// bars: [{label, colour, value, low, high, published}] as horizontal bars from zero; low to high is
// a whisker, `published` a hollow bar below. null where there is nothing to draw.
function barChart({ title, unit, bars }) {
  const shown = bars.filter((bar) => Number.isFinite(bar.value));
  if (shown.length === 0) return null;
  const withPublished = shown.some((bar) => Number.isFinite(bar.published));
  const rowHeight = withPublished ? 62 : 46;
  const height = shown.length * rowHeight + 8;
  const largest = Math.max(...shown.flatMap((bar) =>
    [bar.value, bar.high, bar.published].filter(Number.isFinite)));
  const box = drawnToWidth(height, (width) => {
    const toX = (value) => (value / largest) * (width - 84); // room for the number behind it
    const svg = el("svg", { width, height, role: "img", "aria-label": `${title}: ` +
      shown.map((bar) => `${bar.label} ${number(bar.value)} ${unit}`).join(", ") });
    shown.forEach((bar, i) => svg.append(...barRow(bar, i * rowHeight, toX)));
    return svg;
  });
  return el("figure", { class: "chart" },
    el("figcaption", {}, el("h3", {}, title), el("span", { class: "note" },
      unit + (withPublished ? "; hollow: published, on an RTX 3060" : ""))),
    box);
}

function barRow(bar, top, toX) {
  const amount = (value, x, y, kind) =>
    el("text", { x: x + 8, y, class: `tick ${kind}` }, number(value));
  const middle = top + 29;
  let end = toX(bar.value);
  const marks = [
    el("text", { x: 0, y: top + 12, class: "bar-name" }, bar.label),
    el("rect",
      { x: 0, y: top + 20, width: end, height: 18, rx: 3, style: `fill: ${bar.colour}` }),
  ];
  if (Number.isFinite(bar.high) && bar.high > bar.low) {
    const [low, high] = [toX(bar.low), toX(bar.high)];
    end = Math.max(end, high);
    marks.push(el("path", { class: "whisker",
      d: `M${low} ${middle}H${high}M${high} ${middle - 5}v10M${low} ${middle - 5}v10` }));
  }
  marks.push(amount(bar.value, end, middle, "measured"));
  if (Number.isFinite(bar.published)) {
    const width = toX(bar.published);
    marks.push(
      el("rect", { class: "hollow", x: 0.75, y: top + 42, width: Math.max(width - 1.5, 1),
        height: 9, rx: 2, style: `stroke: ${bar.colour}` }),
      amount(bar.published, width, top + 47, "published"));
  }
  return marks;
}

// A box that scrolls sideways on its own, so that a wide table does not widen the page.
function scrolling(table) {
  return el("div", { class: "scrolling", tabindex: 0, role: "region", "aria-label": "Table" },
    table);
}
