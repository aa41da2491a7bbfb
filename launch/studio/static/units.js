// Units: a card for every unit of a layer; switched off with a click, and what the classes lose.

import { ask, h, latest, percent, pictureURL, remember, say, Stopped, work } from "./common.js";

const FIRST = 24; // cards, those that the answers rest on most

export class Units {
  constructor(panel, about) {
    this.about = about;
    this.models = Object.keys(about.models).filter((m) => Object.keys(about.models[m].layers).length);
    if (!this.models.length) {
      panel.append(h("p", { class: "lead" }, "Units are shown of networks that give logits and have layers with a map a unit. There is none here."));
      return;
    }
    const layers = Object.keys(about.models[this.models[0]].layers);
    this.state = { model: this.models[0], layer: layers.at(-1), off: "", p: about.gallery[0].id };
    this.changed = latest(() => this.#ablate());
    this.#build(panel);
  }

  params() { return this.state ? { ...this.state } : {}; }

  async show(params) {
    if (!this.state) return;
    const s = this.state;
    if (this.models.includes(params.model)) s.model = params.model;
    const known = Object.keys(this.about.models[s.model].layers);
    s.layer = known.includes(params.layer) ? params.layer : known.includes(s.layer) ? s.layer : known.at(-1);
    s.off = params.off ?? s.off;
    s.p = params.p || s.p;
    this.#reflect();
    await this.#cards();
  }

  #build(panel) {
    this.model = h("select", { id: "units-model", onchange: () => this.#set({ model: this.model.value, off: "" }) },
      this.models.map((m) => h("option", { value: m }, this.about.models[m].called)));
    this.layer = h("select", { id: "units-layer", onchange: () => this.#set({ layer: this.layer.value, off: "" }) });
    this.picture = h("select", { id: "units-picture", onchange: () => this.#set({ p: this.picture.value }) },
      this.about.gallery.map((e) => h("option", { value: e.id }, e.name)));
    this.image = h("img", { class: "seen", alt: "The picture" });
    this.classes = h("div", { class: "effects" });
    this.accuracy = h("div", { class: "effects" });
    this.cards = h("div", { class: "cards" });
    this.more = h("button", { type: "button", class: "measure", hidden: true, onclick: () => { this.all = true; this.#reflect(); } });
    this.off = h("p", { class: "small" });
    panel.append(
      h("p", { class: "lead" }, "What is each unit of the classifier for? A card shows the pictures that a unit answers to most, outlined where it is active. Click cards to switch units off and see the answer, and every class, move. Numbers on a card are log-probability that a class loses or gains, on average, without the unit."),
      h("div", { class: "row panel" },
        h("span", { class: "field" }, h("label", { for: "units-model" }, "Network"), this.model),
        h("span", { class: "field" }, h("label", { for: "units-layer" }, "Layer"), this.layer),
        h("button", { type: "button", onclick: () => this.#set({ off: "" }) }, "All on again")),
      h("div", { class: "ablation" },
        h("aside", { class: "card" },
          h("span", { class: "field" }, h("label", { for: "units-picture" }, "Picture"), this.picture), this.image, this.off,
          h("h2", {}, "This picture"), this.classes, h("h2", {}, "Right answers, class by class"), this.accuracy),
        h("div", {}, this.cards, this.more)));
  }

  #set(change) {
    Object.assign(this.state, change);
    const known = Object.keys(this.about.models[this.state.model].layers);
    if (!known.includes(this.state.layer)) this.state.layer = known.at(-1);
    remember("units", this.params(), true);
    this.#reflect();
    this.#cards();
  }

  #numbers() { return this.state.off ? this.state.off.split(".").map(Number).filter(Number.isInteger) : []; }

  #reflect() {
    const s = this.state;
    this.model.value = s.model;
    this.layer.replaceChildren(...Object.entries(this.about.models[s.model].layers).map(([name, n]) => h("option", { value: name }, `${name}, ${n} units`)));
    this.layer.value = s.layer;
    this.picture.value = s.p;
    this.image.src = pictureURL(s.p, s.model);
    const off = this.#numbers();
    this.off.textContent = off.length ? `Off: ${off.join(", ")}` : "All units are on: click a card to switch one off.";
    const hidden = Math.max(0, this.cards.children.length - FIRST);
    this.more.hidden = this.all || !hidden;
    this.more.textContent = `Show the other ${hidden} units, which matter less`;
    [...this.cards.children].forEach((card, i) => { card.hidden = i >= FIRST && !this.all && !off.includes(Number(card.dataset.unit)); });
    for (const card of this.cards.children) {
      const is = off.includes(Number(card.dataset.unit));
      card.setAttribute("aria-pressed", String(is));
    }
  }

  async #cards() {
    const s = this.state, at = s.model + " " + s.layer;
    try {
      if (this.have !== at) {
        this.cards.replaceChildren();
        const found = await work("cards", { model: s.model, layer: s.layer }, "units");
        if (at !== this.state.model + " " + this.state.layer) return;
        this.have = at;
        this.cards.replaceChildren(...found.cards.map((card) => h("button", {
          type: "button", class: "card unit", "data-unit": card.unit, "aria-pressed": "false",
          onclick: () => {
            const now = new Set(this.#numbers());
            if (!now.delete(card.unit)) now.add(card.unit);
            this.#set({ off: [...now].join(".") });
          },
        }, h("span", { class: "title" }, `unit ${card.unit}`, h("span", { class: "state" })),
        h("img", { src: card.sheet, alt: `Pictures that unit ${card.unit} answers to most` }),
        h("span", { class: "small" }, "without it: ", card.loses.map((l) => `${l.name} ${l.by >= 0 ? "loses" : "gains"} ${Math.abs(l.by).toFixed(2)}`).join(", ")))));
        this.#reflect();
      }
      await this.changed();
    } catch (error) {
      if (!(error instanceof Stopped)) say(error.message, true);
    }
  }

  async #ablate() {
    const s = this.state;
    const found = await ask("ablate", { model: s.model, layer: s.layer, units: this.#numbers(), picture: s.p });
    const rows = (list) => list.map(({ name, before, after }) => h("div", { class: "bar two" + (Math.abs(after - before) > 0.1 ? " meant" : "") },
      h("span", {}, name), h("span", { class: "track", role: "img", "aria-label": `${name}: ${percent(before)} with all units, ${percent(after)} now` },
        h("i", { class: "was", style: `width:${100 * before}%` }), h("i", { class: "is", style: `width:${100 * after}%` })),
      h("b", {}, this.#numbers().length ? `${percent(before)} → ${percent(after)}` : percent(before))));
    this.classes.replaceChildren(...rows(found.classes));
    this.accuracy.replaceChildren(...rows(found.accuracy), h("p", { class: "small" }, `Over ${found.pictures} pictures.`));
  }
}
