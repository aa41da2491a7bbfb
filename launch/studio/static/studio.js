// The frame: tabs, the address, and what happens when a picture is dropped anywhere.

import { address, remember, say, world } from "./common.js";
import { Masks } from "./masks.js";
import { Generator } from "./generator.js";
import { Units } from "./units.js";

const names = ["masks", "generator", "units"];
const tabs = Object.fromEntries(names.map((n) => [n, document.getElementById("tab-" + n)]));
const panels = Object.fromEntries(names.map((n) => [n, document.getElementById(n)]));
const made = {};
let about, current;

async function show(name, params) {
  if (!names.includes(name)) name = "masks";
  current = name;
  for (const n of names) {
    tabs[n].setAttribute("aria-selected", String(n === name));
    tabs[n].tabIndex = n === name ? 0 : -1;
    panels[n].hidden = n !== name;
  }
  document.title = { masks: "Masks", generator: "Generator", units: "Units" }[name] + " · perturb studio";
  say("");
  try {
    made[name] ||= new { masks: Masks, generator: Generator, units: Units }[name](panels[name], about);
    await made[name].show(params);
  } catch (error) {
    say(error.message, true);
  }
}

for (const n of names) {
  tabs[n].addEventListener("click", () => {
    remember(n, made[n]?.params?.() || {}, true);
    show(n, made[n]?.params?.() || {});
  });
  tabs[n].addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    const next = names[(names.indexOf(n) + by + names.length) % names.length];
    tabs[next].focus();
    tabs[next].click();
  });
}

addEventListener("popstate", () => { const { tab, params } = address(); show(tab, params); });

addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dragging"); });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dragging"); });
addEventListener("drop", async (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  const file = event.dataTransfer?.files?.[0];
  if (!file) return;
  if (current !== "masks") await show("masks", made.masks?.params?.() || {});
  made.masks.open(file);
});

try {
  about = await world();
  const { tab, params } = address();
  await show(tab, params);
} catch (error) {
  say(error.message, true);
}
