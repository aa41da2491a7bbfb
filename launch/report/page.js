"use strict";
// Sorting, filtering and choosing the view. Cards carry what they are sorted by as data attributes.
(() => {
  const box = document.getElementById("cards");
  const get = (id) => document.getElementById(id);
  if (box && get("sort")) {
    const cards = [...box.children];
    const value = (card, key) => {
      const raw = card.dataset[key];
      if (key === "name" || key === "target") return raw;
      return raw === "" || raw === undefined ? null : Number(raw);
    };
    const sort = () => {
      const [key, way] = get("sort").value.split(":");
      const sign = way === "down" ? -1 : 1;
      const order = (a, b) => {
        const x = value(a, key), y = value(b, key);
        if (x === null || y === null) return (x === null) - (y === null);
        const by = typeof x === "string" ? x.localeCompare(y) : x - y;
        return sign * by || value(a, "order") - value(b, "order");
      };
      box.append(...cards.slice().sort(order));
    };
    const filter = () => {
      const words = get("find").value.toLowerCase().trim();
      const group = get("group") ? get("group").value : "";
      let seen = 0;
      for (const card of cards) {
        const text = (card.dataset.name + " " + card.dataset.target).toLowerCase();
        card.hidden = !text.includes(words) || (group !== "" && card.dataset.group !== group);
        seen += card.hidden ? 0 : 1;
      }
      get("count").value = seen === 1 ? "1 picture" : seen + " pictures";
    };
    const view = () => { document.body.dataset.view = get("view") ? get("view").value : "both"; };
    // #sort=effect0:up&find=cat opens the page that way.
    for (const [key, wanted] of new URLSearchParams(location.hash.slice(1))) {
      const control = ["sort", "find", "group", "view"].includes(key) ? get(key) : null;
      if (control) control.value = wanted;
    }
    get("sort").addEventListener("change", sort);
    get("find").addEventListener("input", filter);
    if (get("group")) get("group").addEventListener("change", filter);
    if (get("view")) get("view").addEventListener("change", view);
    if (get("sort").selectedIndex > 0) sort();
    filter();
    view();
  }
  // How many pictures the browser could show, for people and for tests that look at the page.
  addEventListener("load", () => {
    const all = [...document.images];
    document.documentElement.dataset.pictures = all.filter((i) => i.complete && i.naturalWidth > 0).length + "/" + all.length;
  });
})();
