// The generator: a wall of samples, concepts brushed in and out, what else that changes, directions.

import { ask, code, h, latest, pack, percent, remember, rememberSoon, save, say, Stopped, work } from "./common.js";
import { load, Stage } from "./canvas.js";

const COUNT = 16;
// A change of shares, in percentage points.
const points = (change) => {
  if (change === null) return "–";
  const tenths = Math.round(1000 * change);
  return `${tenths < 0 ? "−" : "+"}${(Math.abs(tenths) / 10).toFixed(1)} points`;
};

export class Generator {
  constructor(panel, about) {
    if (!about.generator) {
      panel.append(h("p", { class: "lead" }, "There is no generator here. Start the studio with --generator=NAME, or without --model, for the embedded one."));
      return;
    }
    this.about = about.generator;
    this.layers = Object.keys(this.about.layers);
    this.state = { first: 0, pick: 0, layer: this.layers[0], concept: this.about.concepts.at(-1), n: 8, way: "out", level: 2, steps: [], moves: {}, held: "" };
    this.undone = [];
    this.painted = latest(() => this.#paint());
    this.#build(panel);
  }

  params() {
    if (!this.about) return {};
    const s = this.state;
    return { ...s, steps: s.steps.length ? JSON.stringify(s.steps) : "", moves: Object.keys(s.moves).length ? JSON.stringify(s.moves) : "" };
  }

  async show(params) {
    if (!this.about) return;
    const s = this.state, within = (v, low, high) => Number.isFinite(Number(v)) && Number(v) >= low && Number(v) <= high;
    if (params.first !== undefined && within(params.first, 0, 2 ** 31 - 17)) s.first = Number(params.first);
    if (params.pick !== undefined && within(params.pick, 0, COUNT - 1)) s.pick = Number(params.pick);
    if (this.layers.includes(params.layer)) s.layer = params.layer;
    if (this.about.concepts.includes(params.concept)) s.concept = params.concept;
    if (params.n && within(params.n, 1, 32)) s.n = Number(params.n);
    if (["in", "out"].includes(params.way)) s.way = params.way;
    if (params.level && within(params.level, 0.5, 4)) s.level = Number(params.level);
    try {
      s.steps = params.steps ? JSON.parse(params.steps) : [];
      s.moves = params.moves ? JSON.parse(params.moves) : {};
    } catch { say("This address is cut off: the painting is not in it.", true); }
    s.held = params.held ?? "";
    this.#reflect();
    try {
      await this.#wall();
      if (!this.known?.[s.layer]) await this.#units();
      for (const step of s.steps) if (!this.known[step.layer]) await this.#units(step.layer);
      if (Object.keys(s.moves).length) await this.#directions();
      await this.painted();
    } catch (error) {
      if (!(error instanceof Stopped)) say(error.message, true);
    }
  }

  #build(panel) {
    const s = this.state;
    this.stage = new Stage("The sample that is painted on", () => {});
    this.stage.light = true;
    this.stage.width = 2;
    this.stage.onend = () => this.#stroke();
    this.after = h("canvas", { role: "img", "aria-label": "The sample as it was" });
    this.wall = h("div", { class: "wall", role: "group", "aria-label": "Samples" });
    this.concepts = h("span", { class: "switch wrap", role: "group", "aria-label": "Concept" }, this.about.concepts.map((name) => h("button", {
      type: "button", "data-name": name, onclick: () => this.#set({ concept: name }) }, name)));
    this.ways = h("span", { class: "switch", role: "group", "aria-label": "In or out" }, ["out", "in"].map((way) => h("button", {
      type: "button", "data-way": way, onclick: () => this.#set({ way }) }, way === "out" ? "Brush out" : "Brush in")));
    this.layer = h("select", { id: "layer", onchange: () => this.#set({ layer: this.layer.value }) },
      this.layers.map((name) => h("option", { value: name }, `${name}, ${this.about.layers[name][0]} × ${this.about.layers[name][1]} places`)));
    this.n = h("select", { id: "n", onchange: () => this.#set({ n: Number(this.n.value) }) }, [1, 2, 4, 8, 16, 32].map((n) => h("option", { value: String(n) }, n === 1 ? "the best unit" : `the best ${n} units`)));
    this.level = h("input", { type: "range", id: "level", min: 0.5, max: 4, step: 0.5, oninput: () => { s.level = Number(this.level.value); rememberSoon("generator", () => this.params()); } });
    this.size = h("input", { type: "range", id: "size", min: 1, max: 8, value: 2, oninput: () => { this.stage.width = Number(this.size.value); } });
    this.units = h("p", { class: "small" });
    this.undo = h("button", { type: "button", onclick: () => this.#undo() }, "Undo");
    this.redo = h("button", { type: "button", onclick: () => this.#redo() }, "Redo");
    this.bars = h("div", { class: "effects" });
    this.measured = h("div", { class: "effects" });
    this.sliders = h("div", { class: "sliders" });
    panel.append(
      h("p", { class: "lead" }, "Which units of the generator draw what? Pick a concept and brush over the sample: its units are switched off, or on, there and nowhere else, in all sixteen samples at once. The bars show what that does to every other concept."),
      h("div", { class: "row panel" }, this.ways, this.concepts,
        h("span", { class: "field" }, h("label", { for: "n" }, "with"), this.n),
        h("span", { class: "field" }, h("label", { for: "layer" }, "of"), this.layer)),
      h("div", { class: "row panel" },
        h("span", { class: "field" }, h("label", { for: "size" }, "Brush"), this.size),
        h("span", { class: "field" }, h("label", { for: "level" }, "Strength in"), this.level),
        h("button", { type: "button", onclick: () => { this.stage.cells.fill(1); this.#stroke(); } }, "Everywhere"),
        this.undo, this.redo,
        h("button", { type: "button", onclick: () => { this.undone = []; this.#put([]); } }, "Clear"),
        h("button", { type: "button", onclick: () => this.#strip() }, "Save the strip"),
        h("button", { type: "button", onclick: () => { this.#set({ first: s.first + COUNT }, true); this.#again(); } }, "Other samples")),
      h("div", { class: "painting" },
        h("div", { class: "column" },
          h("article", { class: "card" }, h("div", { class: "pair" },
            h("figure", {}, this.after, h("figcaption", {}, "before")),
            h("figure", {}, this.stage.canvas, h("figcaption", {}, h("b", {}, "after"), h("span", {}, "brush here")))), this.units),
          h("article", { class: "card" }, h("h2", {}, "What the strokes do"),
            h("p", { class: "small" }, "Share of the picture that shows each concept, mean of the sixteen samples, before and after."), this.bars,
            h("button", { type: "button", class: "measure", onclick: () => this.#measure() }, "Hold the last stroke against random units"), this.measured)),
        h("div", { class: "column" },
          h("article", { class: "card" }, h("h2", {}, "All samples, after"), this.wall),
          this.about.directions ? h("article", { class: "card" }, h("h2", {}, "Directions"),
            h("p", { class: "small" }, "Move all samples along an attribute. Held ones stay as they are: what they share with it is taken out."),
            h("button", { type: "button", class: "measure", onclick: () => this.#directions() }, "Find the directions"), this.sliders) : null)),
      code(() => ask("painted_script", this.#asked())));
    this.stage.brush(true);
  }

  #asked() {
    const s = this.state;
    return { first: s.first, count: COUNT, steps: s.steps, moves: s.moves, held: s.held ? s.held.split("|") : [] };
  }

  #set(change, fresh = false) {
    const layer = this.state.layer;
    Object.assign(this.state, change);
    remember("generator", this.params(), fresh);
    this.#reflect();
    if (this.state.layer !== layer && !this.known?.[this.state.layer]) this.#units().catch((e) => { if (!(e instanceof Stopped)) say(e.message, true); });
  }

  #reflect() {
    const s = this.state;
    for (const b of this.concepts.children) b.setAttribute("aria-pressed", String(b.dataset.name === s.concept));
    for (const b of this.ways.children) b.setAttribute("aria-pressed", String(b.dataset.way === s.way));
    this.layer.value = s.layer;
    this.n.value = String(s.n);
    this.level.value = s.level;
    this.level.disabled = s.way === "out";
    this.undo.disabled = !s.steps.length;
    this.redo.disabled = !this.undone.length;
    const [rows, columns] = this.about.layers[s.layer];
    if (this.stage.rows !== rows) this.stage.grid(rows, columns);
    const chosen = this.#chosen();
    this.units.textContent = chosen ? `Units ${chosen.join(", ")} of ${s.layer}, those that best match “${s.concept}” where they are active.` : "Finding out which unit draws what …";
  }

  #chosen() { return this.known?.[this.state.layer]?.ranked[this.state.concept].slice(0, this.state.n); }

  async #units(layer = this.state.layer) {
    this.known ||= {};
    this.known[layer] = await work("units", { layer }, "generator");
    this.#reflect();
  }

  async #wall() {
    const s = this.state;
    if (this.have === s.first) return;
    const found = await ask("wall", { first: s.first, count: COUNT });
    this.before = await load(found.sheet);
    this.shares = found.shares;
    this.have = s.first;
    this.now = this.before;
    this.#draw();
  }

  async #again() { try { await this.#wall(); await this.painted(); } catch (e) { say(e.message, true); } }

  async #paint() {
    const began = performance.now();
    if (!this.state.steps.length && !Object.keys(this.state.moves).length) {
      this.now = this.before;
      this.#draw();
      this.#effects(this.shares, this.shares);
      return;
    }
    const found = await ask("paint", this.#asked());
    this.took = performance.now() - began;
    this.now = await load(found.sheet);
    this.#draw();
    this.#effects(found.before, found.after);
  }

  #cut(sheet, index) {
    const [height, width] = this.about.size;
    const made = new OffscreenCanvas(width, height);
    made.getContext("2d").drawImage(sheet, (index % 4) * width, Math.floor(index / 4) * height, width, height, 0, 0, width, height);
    return made;
  }

  #draw() {
    const was = this.#cut(this.before, this.state.pick);
    this.after.width = was.width * 4;
    this.after.height = was.height * 4;
    this.after.getContext("2d").drawImage(was, 0, 0, this.after.width, this.after.height);
    this.stage.show(this.#cut(this.now, this.state.pick));
    this.wall.replaceChildren(...Array.from({ length: COUNT }, (_, i) => {
      const canvas = h("canvas", { width: 128, height: 128 });
      canvas.getContext("2d").drawImage(this.#cut(this.now, i), 0, 0, 128, 128);
      return h("button", { type: "button", "aria-label": `Sample ${this.state.first + i}`, "aria-pressed": String(i === this.state.pick),
        onclick: () => { this.#set({ pick: i }, true); this.#draw(); } }, canvas);
    }));
  }

  #effects(before, after) {
    const mean = (rows, c) => rows.reduce((sum, row) => sum + row[c], 0) / rows.length;
    this.bars.replaceChildren(...this.about.concepts.map((name, c) => {
      const was = mean(before, c), is = mean(after, c);
      return h("div", { class: "bar two" + (name === this.state.concept ? " meant" : "") }, h("span", {}, name),
        h("span", { class: "track", role: "img", "aria-label": `${name}: ${percent(was)} before, ${percent(is)} after` },
          h("i", { class: "was", style: `width:${100 * was}%` }), h("i", { class: "is", style: `width:${100 * is}%` })),
        h("b", {}, `${percent(was)} → ${percent(is)}`));
    }));
  }

  #stroke() {
    const units = this.#chosen();
    const s = this.state;
    if (!units) { this.stage.cells.fill(0); say("The units of this layer are being found: brush again in a moment."); return; }
    if (!this.stage.cells.some(Boolean)) return;
    const step = { layer: s.layer, concept: s.concept, units, level: s.way === "in" ? s.level : 0, mask: pack(this.stage.cells) };
    this.stage.cells.fill(0);
    this.undone = [];
    this.#put([...s.steps, step].slice(-40));
  }

  #put(steps) {
    this.state.steps = steps;
    this.measured.replaceChildren();
    remember("generator", this.params());
    this.#reflect();
    this.painted();
  }

  #undo() { if (this.state.steps.length) { this.undone.push(this.state.steps.at(-1)); this.#put(this.state.steps.slice(0, -1)); } }
  #redo() { if (this.undone.length) this.#put([...this.state.steps, this.undone.pop()]); }

  async #measure() {
    const step = this.state.steps.at(-1);
    if (!step) { say("Brush over the sample first: there is no stroke to measure."); return; }
    try {
      const found = await work("effects", { step }, "generator");
      const widest = Math.max(...["low", "high", "random_low", "random_high"].flatMap((k) => found[k].map((v) => Math.abs(v ?? 0))), 0.01);
      const at = (v) => `${50 + (48 * (v ?? 0)) / widest}%`;
      this.measured.replaceChildren(
        h("p", { class: "small" }, `Change of each concept's share over ${found.samples} new samples; the line is its 95 % interval, the grey band what ${found.controls} random sets of as many units do at the same place.`),
        ...found.concepts.map((name, c) => {
          const far = (found.p[c] ?? 1) <= 2.01 / (1 + found.controls) && (found.change[c] < found.random_low[c] || found.change[c] > found.random_high[c]);
          const range = (low, high) => `left:${at(low)};width:calc(${at(high)} - ${at(low)})`;
          return h("div", { class: "bar two" + (name === step.concept ? " meant" : "") }, h("span", {}, name),
            h("span", { class: "track diverging", role: "img", "aria-label": `${name}: ${points(found.change[c])}` },
              h("i", { class: "band", style: range(found.random_low[c], found.random_high[c]) }),
              h("i", { class: "line", style: range(found.low[c], found.high[c]) }),
              h("i", { class: "dot", style: `left:${at(found.change[c])}` })),
            h("b", {}, points(found.change[c])),
            h("em", {}, far ? "beyond chance" : "within chance"));
        }));
    } catch (error) {
      if (!(error instanceof Stopped)) say(error.message, true);
    }
  }

  async #directions() {
    if (this.found) return;
    try {
      this.found = await work("directions", {}, "generator");
    } catch (error) {
      if (!(error instanceof Stopped)) say(error.message, true);
      return;
    }
    const held = new Set(this.state.held ? this.state.held.split("|") : []);
    this.sliders.previousSibling.hidden = true;
    this.sliders.replaceChildren(...this.found.names.map((name, i) => {
      const id = `move-${i}`, shown = h("output", { for: id }, String(this.state.moves[name] || 0));
      return h("div", { class: "move" }, h("label", { for: id }, name),
        h("input", { type: "range", id, min: -4, max: 4, step: 0.25, value: this.state.moves[name] || 0, oninput: (event) => {
          const value = Number(event.target.value);
          shown.textContent = String(value);
          if (value) this.state.moves[name] = value; else delete this.state.moves[name];
          rememberSoon("generator", () => this.params());
          this.painted();
        } }), shown,
        h("label", { class: "hold" }, h("input", { type: "checkbox", checked: held.has(name), "aria-label": `hold ${name}`, onchange: (event) => {
          if (event.target.checked) held.add(name); else held.delete(name);
          this.state.held = [...held].join("|");
          remember("generator", this.params());
          this.painted();
        } }), "hold"));
    }));
  }

  #strip() {
    const side = 128, canvas = h("canvas", { width: 8 * side, height: 4 * side + 24 });
    const pen = canvas.getContext("2d");
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    for (let i = 0; i < 8; i++) {
      pen.drawImage(this.#cut(this.before, i), i * side, 0, side, side);
      pen.drawImage(this.#cut(this.now, i), i * side, side, side, side);
      pen.drawImage(this.#cut(this.before, 8 + i), i * side, 2 * side + 24, side, side);
      pen.drawImage(this.#cut(this.now, 8 + i), i * side, 3 * side + 24, side, side);
    }
    save(canvas, `samples-${this.state.first}.png`);
    say("Saved: the samples before, and below each of them after.");
  }
}
