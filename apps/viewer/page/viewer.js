// The trajectory viewer: the same noise carried to a picture by several backbones, step by step.
//
// data: {image, channels, solver, steps, times: [steps + 1], velocity_range, sets: [{kind, title,
// cfg_scale, rows: [{label?, noise}], backbones: [{name, label, states, velocities, obeys?}]}]}.
// `states` is a PNG of rows.length x (steps + 1) cells of image x image pixels, row by row, column
// k the picture after k steps; `velocities` the same with `steps` columns, column k the velocity
// that leads from picture k to k + 1, 0 to 255 for -velocity_range to velocity_range.

const kStripFrames = 11; // frames a film strip shows: what a phone is wide enough for
const kPlayMs = 3000; // a whole play, noise to picture

function describeIntegration(data) {
  const solver = data.solver.charAt(0).toUpperCase() + data.solver.slice(1);
  return `The same noise, carried to a picture by each backbone\u2019s velocity field: ` +
    `${data.steps} ${solver} step${data.steps === 1 ? "" : "s"} from t = 0 (noise) to ` +
    "t = 1 (data).";
}

// Up to four pictures stand side by side; more make rows of one length.
function columnsOf(count) {
  return Math.ceil(count / Math.ceil(count / 4));
}

class TrajectoryViewer {
  // colours: backbone name -> CSS colour. ownsKeyboard: the page is this viewer and nothing else;
  // otherwise keys that scroll a page are left alone unless the focus is inside.
  constructor(root, data, { colours, ownsKeyboard }) {
    this.root = root;
    this.data = data;
    this.colours = colours;
    this.ownsKeyboard = ownsKeyboard;
    this.visible = ownsKeyboard;
    this.choice = { set: 0, label: null, noise: 0, step: data.steps };
    this.pictures = new Map(); // URI -> decoded image
    this.timer = null;
    root.classList.add("viewer");
    root.dataset.ready = "false";
    root.replaceChildren(velocityFilters(), ...this.buildSets());
    this.body = root.appendChild(el("div", { class: "viewer" }));
    this.chooseSet(0);
    document.addEventListener("keydown", (event) => this.onKey(event));
    if (!ownsKeyboard)
      new IntersectionObserver((entries) => (this.visible = entries.at(-1).isIntersecting), {
        threshold: 0.3,
      }).observe(root);
  }

  get set() {
    return this.data.sets[this.choice.set];
  }
  get labels() {
    return [...new Set(this.set.rows.map((row) => row.label).filter((x) => x !== undefined))];
  }
  get noises() {
    return [...new Set(this.set.rows.map((row) => row.noise))];
  }
  rowOf(label, noise) {
    return this.set.rows.findIndex(
      (row) => row.noise === noise && (label === null || row.label === label));
  }

  // --- what the reader chooses ---------------------------------------------------------------

  chooseSet(index) {
    this.stop();
    const labels = this.data.sets[index].rows.map((row) => row.label);
    this.choice.set = index;
    if (labels[0] === undefined) this.choice.label = null;
    else if (!labels.includes(this.choice.label)) this.choice.label = labels[0];
    if (!this.noises.includes(this.choice.noise)) this.choice.noise = this.noises[0];
    this.setTabs.forEach((tab, i) => tab.setAttribute("aria-pressed", String(i === index)));
    this.build();
    this.draw(); // the words, so that nothing moves when the pictures come
    this.load();
  }
  chooseLabel(label) {
    if (!this.labels.includes(label)) return;
    this.choice.label = label;
    this.draw();
  }
  chooseNoise(noise) {
    if (!this.noises.includes(noise)) return;
    this.choice.noise = noise;
    this.draw();
  }
  chooseStep(step) {
    this.choice.step = clamp(step, 0, this.data.steps);
    this.draw();
  }

  play() {
    if (this.choice.step === this.data.steps) this.chooseStep(0);
    this.playButton.textContent = "Pause";
    this.timer = setInterval(() => {
      this.chooseStep(this.choice.step + 1);
      if (this.choice.step === this.data.steps) this.stop();
    }, clamp(kPlayMs / this.data.steps, 40, 400));
  }
  stop() {
    clearInterval(this.timer);
    this.timer = null;
    if (this.playButton) this.playButton.textContent = "Play";
  }
  togglePlay() {
    if (this.timer === null) this.play();
    else this.stop();
  }

  onKey(event) {
    if (!this.visible || event.ctrlKey || event.metaKey || event.altKey) return;
    const target = event.target;
    if (target.matches("textarea, select, input:not([type=range])")) return;
    const mine = this.ownsKeyboard || this.root.contains(document.activeElement);
    const onSlider = target === this.slider;
    const move = (by) => {
      this.stop();
      this.chooseStep(this.choice.step + by);
    };
    const nextNoise = (by) => {
      const at = this.noises.indexOf(this.choice.noise) + by;
      this.chooseNoise(this.noises.at(at % this.noises.length));
    };
    if (event.key === "ArrowLeft") move(-1);
    else if (event.key === "ArrowRight") move(1);
    else if (mine && event.key === "Home") move(-this.data.steps);
    else if (mine && event.key === "End") move(this.data.steps);
    else if (mine && !onSlider && event.key === "ArrowUp") nextNoise(-1);
    else if (mine && !onSlider && event.key === "ArrowDown") nextNoise(1);
    else if (mine && event.key === " " && !target.matches("button, a, summary")) this.togglePlay();
    else if (/^[0-9]$/.test(event.key)) return this.chooseLabel(Number(event.key));
    else return;
    event.preventDefault();
  }

  // --- the document --------------------------------------------------------------------------

  buildSets() {
    this.setTabs = this.data.sets.map((set, i) =>
      el("button", { class: "chip", type: "button", onclick: () => this.chooseSet(i) },
        set.title));
    if (this.setTabs.length < 2) return [];
    return [el("div", { class: "chips", role: "group", "aria-label": "What to choose by" },
      this.setTabs)];
  }

  build() {
    const { image } = this.data;
    const canvas = (name) =>
      el("canvas", { width: image, height: image, role: "img", "data-of": name });

    this.noisePicture = canvas("noise");
    this.noiseButtons = this.noises.map((noise) =>
      el("button", { type: "button", "aria-label": `Noise ${noise}`,
        onclick: () => this.chooseNoise(noise) },
        el("canvas", { width: image, height: image })));
    this.noiseName = el("span", { class: "viewer-caption" });

    this.labelButtons = this.labels.map((label) =>
      el("button", { class: "chip", type: "button", "data-label": label,
        onclick: () => this.chooseLabel(label) }, String(label)));

    this.time = el("p", { class: "viewer-time" }, el("i", {}, "t"), " = ", el("span"));
    this.slider = el("input", { type: "range", min: 0, max: this.data.steps, step: 1,
      "aria-label": "Step", oninput: () => {
        this.stop();
        this.chooseStep(Number(this.slider.value));
      } });
    this.playButton = el("button", { class: "chip", type: "button", "data-play": "",
      onclick: () => this.togglePlay() }, "Play");
    const stepButton = (by, sign, name) => el("button", { class: "chip", type: "button",
      "aria-label": name, onclick: () => {
        this.stop();
        this.chooseStep(this.choice.step + by);
      } }, sign);
    this.stepName = el("h3");

    this.cards = this.set.backbones.map((backbone) => {
      const state = canvas(backbone.name);
      const velocity = canvas(backbone.name + " velocity");
      const frame = el("div",
        { class: "viewer-velocity", "data-grey": String(this.data.channels !== 3) }, velocity);
      state.classList.add("viewer-picture");
      return { backbone, state, velocity, frame,
        node: el("figure", { class: "viewer-card" }, this.nameOf(backbone, "h3"), state, frame) };
    });
    this.noisePicture.classList.add("viewer-picture");

    this.strips = this.set.backbones.map((backbone) => this.buildStrip(backbone));

    const range = number(this.data.velocity_range);
    this.body.replaceChildren(...[
      this.labels.length > 0 && el("div", { class: "viewer-choice" },
        el("span", { class: "viewer-caption" }, "Digit"),
        el("div", { class: "chips viewer-digits", role: "group", "aria-label": "Digit" },
          this.labelButtons)),
      el("div", { class: "viewer-stage" },
        el("div", { class: "viewer-panel" }, el("h3", {}, "Shared noise"), this.noisePicture,
          el("div", { class: "viewer-noises", role: "group", "aria-label": "Noise" },
            this.noiseButtons),
          this.noiseName),
        el("div", { class: "viewer-panel viewer-step" }, this.stepName, this.time, this.slider,
          el("div", { class: "viewer-ends viewer-caption" },
            el("span", {}, "noise"), el("span", {}, "data")),
          el("div", { class: "viewer-buttons" }, stepButton(-1, "\u2190", "One step back"),
            this.playButton, stepButton(1, "\u2192", "One step on")),
          this.set.cfg_scale !== 1 && el("p", { class: "viewer-caption" },
            `guidance ${number(this.set.cfg_scale)}`),
          el("div", { class: "viewer-legend viewer-caption" },
            el("span", {}, "Lower pictures: the velocity field"),
            el("div", {},
              `darker \u2212${range}`, el("span", { class: "scale" }), `+${range} brighter`))),
        el("div", { class: "viewer-cards", style: `--columns: ${columnsOf(this.cards.length)}` },
          this.cards.map((card) => card.node))),
      el("div", { class: "viewer-strips" }, this.strips.map((strip) => strip.node)),
      el("p", { class: "viewer-keys" }, ...this.keyHints()),
    ].filter(Boolean));
  }

  nameOf(backbone, tag) {
    return el(tag, {}, keyColour(this.colours.get(backbone.name)), el("span", {}, backbone.label));
  }

  buildStrip(backbone) {
    const { image, steps } = this.data;
    const frames = Math.min(steps + 1, kStripFrames);
    const gap = Math.ceil(image / 14);
    const canvas = el("canvas", { width: frames * (image + gap) - gap, height: image, role: "img",
      "aria-label": `${backbone.label}, from noise to picture` });
    const stepOf = (frame) => Math.round((frame * steps) / (frames - 1));
    const strip = el("div", { class: "viewer-frames", style: `--frames: ${frames}` }, canvas);
    strip.addEventListener("click", (event) => {
      const box = strip.getBoundingClientRect();
      const frame = Math.floor(((event.clientX - box.left) / box.width) * frames);
      this.stop();
      this.chooseStep(stepOf(clamp(frame, 0, frames - 1)));
    });
    const obeys = Number.isFinite(backbone.obeys) && el("small", { class: "viewer-caption" },
      `${number(100 * backbone.obeys)} % read as the digit asked for`);
    return { backbone, canvas, strip, frames, gap, stepOf,
      node: el("div", { class: "viewer-strip" },
        el("div", {}, this.nameOf(backbone, "span"), obeys), strip) };
  }

  keyHints() {
    const hints = [["\u2190 \u2192", " step  "], ["space", " play  "]];
    if (this.labels.length > 0) hints.push(["0\u20139", " digit  "]);
    if (this.noises.length > 1) hints.push(["\u2191 \u2193", " noise"]);
    return hints.flatMap(([key, what]) => [el("kbd", {}, key), what]);
  }

  // --- pictures ------------------------------------------------------------------------------

  async load() {
    const set = this.set;
    this.root.dataset.ready = "false";
    const wanted = set.backbones.flatMap((backbone) => [backbone.states, backbone.velocities]);
    await Promise.all(wanted.map(async (uri) => {
      if (!isPicture(uri) || this.pictures.has(uri)) return;
      const picture = new Image();
      picture.src = uri;
      await picture.decode();
      this.pictures.set(uri, picture);
    }));
    if (set !== this.set) return;
    this.draw();
    this.root.dataset.ready = "true";
  }

  drawCell(canvas, uri, row, column, left = 0) {
    const { image } = this.data;
    const picture = this.pictures.get(uri);
    if (picture)
      canvas.getContext("2d").drawImage(
        picture, column * image, row * image, image, image, left, 0, image, image);
  }

  draw() {
    const { label, noise, step } = this.choice;
    const { steps, times } = this.data;
    const row = this.rowOf(label, noise);
    const what = label === null ? `noise ${noise}` : `digit ${label}, noise ${noise}`;
    const when = `step ${step} of ${steps}, t = ${times[step].toFixed(2)}`;

    const first = this.set.backbones[0];
    this.drawCell(this.noisePicture, first.states, row, 0);
    this.noisePicture.setAttribute("aria-label", `Noise ${noise}, where every backbone starts`);
    this.noises.forEach((other, i) => {
      const button = this.noiseButtons[i];
      button.setAttribute("aria-pressed", String(other === noise));
      this.drawCell(button.firstChild, first.states, this.rowOf(label, other), 0);
    });
    this.noiseName.textContent = this.data.seed === undefined
      ? `noise ${noise}` : `seed ${this.data.seed}, image ${noise}`;
    this.labelButtons.forEach((button) =>
      button.setAttribute("aria-pressed", String(Number(button.dataset.label) === label)));

    this.stepName.textContent = `Step ${step} of ${steps}`;
    this.time.lastChild.textContent = times[step].toFixed(2);
    this.slider.value = step;
    this.slider.setAttribute("aria-valuetext", when);

    for (const { backbone, state, velocity, frame } of this.cards) {
      this.drawCell(state, backbone.states, row, step);
      state.setAttribute("aria-label", `${backbone.label}, ${what}, ${when}`);
      // At the end there is nowhere left to go: the last velocity stays, faded.
      this.drawCell(velocity, backbone.velocities, row, Math.min(step, steps - 1));
      velocity.setAttribute("aria-label", `Velocity field of ${backbone.label}, ${what}, ${when}`);
      frame.dataset.arrived = String(step === steps);
    }
    for (const { backbone, canvas, strip, frames, gap, stepOf } of this.strips) {
      const cell = this.data.image + gap;
      for (let frame = 0; frame < frames; ++frame)
        this.drawCell(canvas, backbone.states, row, stepOf(frame), frame * cell);
      strip.style.setProperty("--marker-width", `${(100 * this.data.image) / canvas.width}%`);
      strip.style.setProperty("--marker-left",
        `${(100 * cell * Math.round((step * (frames - 1)) / steps)) / canvas.width}%`);
    }
  }
}

// Grey to a diverging scale, blue through the ground's own shade to red, as SVG filters: the
// pictures stay what they are, the style sheet chooses by colour scheme.
function velocityFilters() {
  const scale = (id, colours) => {
    const table = (at) =>
      colours.map((colour) => (parseInt(colour.slice(at, at + 2), 16) / 255).toFixed(4)).join(" ");
    return el("filter", { id, "color-interpolation-filters": "sRGB" },
      el("feComponentTransfer", {},
        el("feFuncR", { type: "table", tableValues: table(1) }),
        el("feFuncG", { type: "table", tableValues: table(3) }),
        el("feFuncB", { type: "table", tableValues: table(5) })));
  };
  return el("svg", { class: "viewer-filters", "aria-hidden": "true" },
    scale("velocity-on-light", ["#2166ac", "#92c5de", "#f7f7f7", "#f4a582", "#b2182b"]),
    scale("velocity-on-dark", ["#8fd0ff", "#2f7fc1", "#14181d", "#c8512e", "#ffb48a"]));
}
