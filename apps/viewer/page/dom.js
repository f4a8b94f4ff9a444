// Small helpers that every script of a page shares. Text only ever enters the document as text
// nodes and attribute values, never as markup: names and sentences in the data are not trusted.

// el("button", {class: "chip", "aria-pressed": "true", onclick: f}, "text", otherElement)
// A property that is null or undefined and a child that is nothing (null, false, "") are left out;
// functions become event listeners.
function el(tag, properties = {}, ...children) {
  const svg = el.svgTags.has(tag);
  const node = svg
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined) continue;
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child));
  return node;
}
el.svgTags = new Set([
  "svg", "g", "path", "line", "rect", "circle", "text", "tspan", "filter", "feComponentTransfer",
  "feFuncR", "feFuncG", "feFuncB",
]);

// A backbone's name -> the CSS colour that stands for it everywhere on the page, by order of first
// appearance; page colours are --series-0 to --series-7.
function colourOfBackbones(backbones) {
  const names = [...new Set(backbones.map((backbone) => backbone.name))];
  return new Map(names.map((name, i) => [name, `var(--series-${i % 8})`]));
}

function keyColour(colour) {
  return el("span", { class: "key-colour", style: `--colour: ${colour}` });
}

function isPicture(uri) {
  return typeof uri === "string" && uri.startsWith("data:image/png;base64,");
}

// Up to `digits` significant digits, thousands apart, a dash for a number that does not exist.
function number(value, digits = 3) {
  if (typeof value !== "number" || !Number.isFinite(value)) return "\u2013";
  if (value !== 0 && (Math.abs(value) < 1e-4 || Math.abs(value) >= 1e15))
    return value.toExponential(digits - 1);
  return value.toLocaleString("en", { maximumSignificantDigits: digits }).replaceAll(",", "\u202f");
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}
