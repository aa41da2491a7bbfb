// Masks: one map a picture, any area of it by the slider, the verdict beside; a region by hand with its score.

import { ask, code, drop, h, latest, pack, percent, pictureURL, remember, rememberSoon, say, Stopped, unpack, work } from "./common.js";
import { load, Stage } from "./canvas.js";

const WORDS = {
  holds: ["holds", "The region alone still gives the answer, under fills it was not found with too."],
  doubtful: ["doubtful", "Something speaks against this region: read why before you rely on it."],
  fails: ["fails", "The region alone does not give the answer: do not take it for the reason."],
};

export class Masks {
  constructor(panel, about) {
    this.about = about;
    this.models = Object.keys(about.models);
    this.state = { p: about.gallery[0].id, t: "", a: 0.1, both: this.models.length > 1 ? 1 : 0, mode: "found", mask: "", fill: "blur" };
    this.sides = this.models.slice(0, 2).map((name) => this.#side(name));
    this.ticket = 0;
    this.extra = []; // dropped in this session: id and thumbnail
    this.#build(panel);
    this.judge = this.sides.map((side) => latest(() => this.#judged(side)));
    this.score = this.sides.map((side) => latest(() => this.#scored(side)));
  }

  params() { return { ...this.state, both: this.state.both ? 1 : 0 }; }

  async show(params) {
    const s = this.state;
    if (params.p) s.p = params.p;
    s.t = params.t ?? s.t;
    const area = Number(params.a);
    if (area >= 0.01 && area <= 0.9) s.a = area;
    if (params.both !== undefined) s.both = Number(params.both) && this.models.length > 1 ? 1 : 0;
    if (["found", "hand"].includes(params.mode)) s.mode = params.mode;
    if (this.about.fills.includes(params.fill)) s.fill = params.fill;
    s.mask = params.mask ?? s.mask;
    this.#reflect();
    await this.#picture();
  }

  async open(file) {
    try {
      say(`Opening ${file.name} …`);
      const id = await drop(file, this.about.most);
      this.extra = [{ id, name: file.name }, ...this.extra.filter((e) => e.id !== id)].slice(0, 12);
      Object.assign(this.state, { p: id, t: "", mask: "" });
      this.#gallery();
      remember("masks", this.params(), true);
      say("");
      await this.#picture();
    } catch (error) {
      say(error.message, true);
    }
  }

  #side(name) {
    const stage = new Stage(`Picture as ${this.about.models[name].called} sees it`, (cells) => this.#brushed(cells, name));
    stage.onend = () => { this.state.mask = pack(stage.cells); remember("masks", this.params()); };
    const side = {
      name, stage, answer: h("p", { class: "answer" }), bars: h("div", { class: "bars" }),
      verdict: h("div", { class: "verdict" }), seen: h("img", { class: "seen", alt: "", hidden: true }),
    };
    const called = this.about.models[name].called;
    side.root = h("article", { class: "card side" },
      h("h2", {}, called === name ? name : `The ${called} network`), side.answer,
      h("div", { class: "canvas" }, stage.canvas, side.seen), side.bars, side.verdict);
    return side;
  }

  #build(panel) {
    this.thumbs = h("div", { class: "thumbs", role: "group", "aria-label": "Pictures" });
    const file = h("input", { type: "file", accept: "image/*", class: "hidden", id: "file", tabindex: -1, "aria-label": "A picture of your own",
      onchange: () => { if (file.files[0]) this.open(file.files[0]); file.value = ""; } });
    this.target = h("select", { id: "target", onchange: () => this.#retarget(this.target.value) });
    const classes = this.about.models[this.models[0]].classes;
    this.target.append(h("option", { value: "" }, "what the network answers"),
      ...classes.map((name, i) => h("option", { value: String(i) }, name)));
    this.both = h("input", { type: "checkbox", id: "both", onchange: () => { this.state.both = this.both.checked ? 1 : 0; remember("masks", this.params()); this.#reflect(); this.#picture(); } });
    this.area = h("input", { type: "range", id: "area", min: 1, max: 90, step: 1, oninput: () => this.#moved() });
    this.areaText = h("output", { for: "area" });
    this.fill = h("select", { id: "fill", onchange: () => { this.state.fill = this.fill.value; remember("masks", this.params()); this.#all(); } },
      ...this.about.fills.map((f) => h("option", { value: f }, { blur: "a blur of the picture", fade: "grey", mean: "its mean colour", noise: "noise" }[f] || f)));
    this.eye = h("input", { type: "checkbox", id: "eye", onchange: () => this.#all() });
    this.mode = ["found", "hand"].map((m) => h("button", { type: "button", "data-mode": m, "aria-pressed": "false",
      onclick: () => { this.state.mode = m; remember("masks", this.params(), true); this.#reflect(); this.#all(); } },
    m === "found" ? "Region it needs" : "My own region"));
    this.erase = h("button", { type: "button", "aria-pressed": "false", onclick: () => {
      const on = this.erase.getAttribute("aria-pressed") !== "true";
      this.erase.setAttribute("aria-pressed", String(on));
      for (const s of this.sides) s.stage.erase = on;
    } }, "Erase");
    this.width = h("input", { type: "range", id: "width", min: 1, max: 16, value: 5, oninput: () => { for (const s of this.sides) s.stage.width = Number(this.width.value); } });
    this.byHand = h("div", { class: "row" }, this.erase, h("label", { for: "width" }, "Brush"), this.width,
      h("button", { type: "button", onclick: () => this.#fill(0) }, "Clear"),
      h("button", { type: "button", onclick: () => this.#fill("found") }, "Begin with the region"));
    this.byArea = h("div", { class: "row grow" }, h("label", { for: "area" }, "Area"), this.area, this.areaText);
    panel.append(
      h("p", { class: "lead" }, "What does a network need to see? The outlined region is the part of the picture that best keeps its answer when the rest is taken away. Pick a picture, move the area, or paint a region yourself."),
      h("div", { class: "row wide" }, this.thumbs, file,
        h("button", { type: "button", class: "open", onclick: () => file.click() }, "Open a picture …")),
      h("div", { class: "row panel" },
        h("span", { class: "switch", role: "group", "aria-label": "Which region" }, this.mode),
        h("span", { class: "field" }, h("label", { for: "target" }, "Answer"), this.target),
        this.models.length > 1 ? h("span", { class: "field" }, this.both, h("label", { for: "both" }, "both networks")) : null),
      h("div", { class: "row panel" }, this.byArea, this.byHand,
        h("span", { class: "field" }, h("label", { for: "fill" }, "The rest becomes"), this.fill),
        h("span", { class: "field" }, this.eye, h("label", { for: "eye" }, "show it so"))),
      h("div", { class: "sides" }, this.sides.map((s) => s.root)),
      code(() => ask("script", { model: this.models[0], picture: this.state.p, target: this.#wanted(), area: this.state.a })));
    this.#gallery();
    for (const s of this.sides) s.stage.width = 5;
  }

  #gallery() {
    const all = [...this.extra, ...this.about.gallery];
    this.thumbs.replaceChildren(...all.map((entry) => h("button", {
      type: "button", title: entry.name, "aria-label": entry.name, "data-id": entry.id, "aria-pressed": String(entry.id === this.state.p),
      onclick: () => { Object.assign(this.state, { p: entry.id, mask: "" }); remember("masks", this.params(), true); this.#reflect(); this.#picture(); },
    }, h("img", { src: pictureURL(entry.id, this.models[0]), alt: "", loading: "lazy" }))));
  }

  #reflect() {
    const s = this.state;
    for (const b of this.thumbs.children) b.setAttribute("aria-pressed", String(b.dataset.id === s.p));
    for (const b of this.mode) b.setAttribute("aria-pressed", String(b.dataset.mode === s.mode));
    this.both.checked = Boolean(s.both);
    this.target.value = s.t;
    this.fill.value = s.fill;
    this.area.value = Math.round(100 * s.a);
    this.areaText.textContent = `${Math.round(100 * s.a)} % of the picture`;
    this.byArea.hidden = s.mode !== "found";
    this.byHand.hidden = s.mode !== "hand";
    this.sides.forEach((side, i) => {
      side.root.hidden = i > 0 && !s.both;
      side.stage.brush(s.mode === "hand");
    });
  }

  #shown() { return this.sides.filter((_, i) => i === 0 || this.state.both); }
  #wanted() { return this.state.t === "" ? "" : Number(this.state.t); }
  #asked(side) { return { model: side.name, picture: this.state.p, target: this.#wanted() === "" ? side.top ?? "" : this.#wanted() }; }

  #retarget(value) {
    this.state.t = value;
    remember("masks", this.params(), true);
    this.#picture();
  }

  async #picture() {
    const ticket = ++this.ticket;
    try {
      // Shown at once, looked at meanwhile.
      for (const side of this.#shown()) {
        const at = this.state.p;
        if (side.at !== at) {
          side.places = null;
          side.stage.region(null);
          side.verdict.replaceChildren();
          side.bars.replaceChildren();
          const image = await load(pictureURL(at, side.name));
          if (ticket !== this.ticket) return;
          const scale = Math.min(1, this.about.grid / Math.max(image.width, image.height));
          const rows = Math.max(1, Math.round(image.height * scale)), columns = Math.max(1, Math.round(image.width * scale));
          side.stage.grid(rows, columns, this.state.mask ? unpack(this.state.mask, rows * columns) : null);
          side.stage.show(image);
          side.at = at;
          const { top } = await ask("answers", { model: side.name, picture: at });
          if (ticket !== this.ticket) return;
          side.top = top[0].target;
          const truth = this.about.gallery.find((e) => e.id === at)?.target;
          const wrong = truth !== undefined && truth !== null && truth !== top[0].target;
          side.answer.replaceChildren("says ", h("b", {}, top[0].name), ` · ${percent(top[0].p)}`,
            wrong ? h("span", { class: "badge" }, `wrong: it is a ${this.about.models[side.name].classes[truth] ?? truth}`) : "");
        } else if (this.state.mask) side.stage.cells.set(unpack(this.state.mask, side.stage.cells.length));
      }
      for (const side of this.#shown()) {
        const key = side.at + " " + this.#asked(side).target;
        if (side.mapped !== key || !side.places) {
          side.places = null;
          side.root.classList.add("looking");
          const found = await work("map", this.#asked(side), "masks");
          if (ticket !== this.ticket) return;
          const bytes = Uint8Array.from(atob(found.places), (c) => c.charCodeAt(0));
          side.places = new Uint32Array(bytes.buffer);
          [side.rows, side.columns] = found.size;
          side.mapped = key;
        }
        side.root.classList.remove("looking");
        this.#draw(side);
      }
      this.#all();
    } catch (error) {
      if (error instanceof Stopped) return;
      say(error.message, true);
    } finally {
      for (const side of this.sides) side.root.classList.remove("looking");
    }
  }

  #kept(side) {
    const count = Math.max(1, Math.floor(this.state.a * side.places.length + 0.5));
    return side.places.map((place) => (place <= count ? 1 : 0));
  }

  #draw(side) {
    if (side.places) side.stage.region(this.#kept(side), side.rows, side.columns);
  }

  #moved() {
    this.state.a = Number(this.area.value) / 100;
    this.areaText.textContent = `${this.area.value} % of the picture`;
    for (const side of this.#shown()) this.#draw(side);
    rememberSoon("masks", () => this.params());
    this.#all();
  }

  #all() {
    this.sides.forEach((side, i) => {
      if (i > 0 && !this.state.both) return;
      side.seen.hidden = !this.eye.checked;
      side.stage.canvas.hidden = this.eye.checked;
      if (this.state.mode === "found") this.judge[i]();
      else { side.verdict.replaceChildren(); }
      this.score[i]();
    });
  }

  #cells(side) {
    if (this.state.mode === "hand") return side.stage.cells;
    // The region on the brush's own grid: the cells of its pixels.
    const kept = this.#kept(side), { rows, columns } = side.stage;
    return Uint8Array.from({ length: rows * columns }, (_, i) => {
      const r = Math.floor((Math.floor(i / columns) + 0.5) * side.rows / rows), c = Math.floor(((i % columns) + 0.5) * side.columns / columns);
      return kept[r * side.columns + c];
    });
  }

  #brushed(cells, name) {
    for (const side of this.sides) {
      if (side.name !== name && side.stage.cells?.length === cells.length) { side.stage.cells.set(cells); side.stage.draw(); }
    }
    this.sides.forEach((side, i) => { if (i === 0 || this.state.both) this.score[i](); });
  }

  #fill(what) {
    for (const side of this.#shown()) {
      if (what === "found" && side.places) { const kept = this.#found(side); side.stage.cells.set(kept); } else side.stage.cells.fill(0);
      side.stage.draw();
      if (side === this.sides[0]) { this.state.mask = what ? pack(side.stage.cells) : ""; remember("masks", this.params()); }
    }
    this.#all();
  }

  #found(side) {
    const mode = this.state.mode;
    this.state.mode = "found";
    const cells = this.#cells(side);
    this.state.mode = mode;
    return cells;
  }

  async #scored(side) {
    if (!side.stage.image || (this.state.mode === "found" && !side.places)) return;
    const began = performance.now();
    const found = await ask("score", { ...this.#asked(side), mask: pack(this.#cells(side)), fill: this.state.fill, seen: this.eye.checked ? "alone" : undefined });
    this.took = performance.now() - began;
    const name = this.about.models[side.name].classes[this.#asked(side).target] ?? this.#asked(side).target;
    const bar = (label, p) => h("div", { class: "bar" }, h("span", {}, label),
      h("meter", { min: 0, max: 1, value: p ?? 0, "aria-label": label }), h("b", {}, percent(p)));
    side.bars.replaceChildren(h("p", { class: "small" }, `Probability of `, h("b", {}, String(name))),
      bar("whole picture", found.whole), bar(`region alone (${percent(found.area)})`, found.alone), bar("all but the region", found.without));
    if (found.seen) { side.seen.src = found.seen; side.seen.alt = `What ${side.name} is shown`; }
  }

  async #judged(side) {
    if (!side.places) return;
    const found = await ask("verdict", { ...this.#asked(side), area: this.state.a });
    if (this.state.mode !== "found") return;
    const [word, meaning] = WORDS[found.verdict];
    side.verdict.replaceChildren(
      h("p", { class: "word " + found.verdict }, h("b", {}, word), " ", meaning),
      h("ul", {}, found.reasons.map((r) => h("li", {}, r))),
      found.enough ? h("p", { class: "small" }, `The smallest area that is enough: ${percent(found.enough)}. `,
        Math.abs(found.enough - this.state.a) > 0.005 ? h("button", { type: "button", class: "link", onclick: () => { this.area.value = Math.max(1, Math.round(100 * found.enough)); this.#moved(); } }, "Show it") : "") : "");
  }
}
