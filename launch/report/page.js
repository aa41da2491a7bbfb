"use strict";
// Sorting, filtering and choosing the view. Cards carry what they are sorted by as data attributes.
(() => {
  const box = document.getElementById("cards");
  const get = (id) => document.getElementById(id);
  // The address follows what is chosen: #sort=effect0:up&zoom=3 opens the page that way.
  const keep = (name, value) => {
    const now = new URLSearchParams(location.hash.slice(1));
    if (value === "") now.delete(name); else now.set(name, value);
    history.replaceState(null, "", String(now) ? "#" + now : location.pathname + location.search);
  };
  // Numbered before anything is sorted, so that a number stays with its picture.
  [...document.querySelectorAll("figure img")].forEach((image, i) => { image.dataset.picture = i; });
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
      if (get("empty")) get("empty").hidden = seen > 0 || cards.length === 0;
    };
    const view = () => { document.body.dataset.view = get("view") ? get("view").value : "both"; };
    const controls = ["sort", "find", "group", "view"].map(get).filter(Boolean);
    const read = () => {
      const wanted = new URLSearchParams(location.hash.slice(1));
      for (const control of controls) {
        const first = control.options ? control.options[0].value : "";
        control.value = wanted.get(control.id) ?? first;
        if (control.options && control.selectedIndex < 0) control.selectedIndex = 0;
      }
    };
    const note = () => {
      for (const control of controls) {
        const first = control.options ? control.options[0].value : "";
        keep(control.id, control.value === first ? "" : control.value);
      }
    };
    const show = () => { sort(); filter(); view(); };
    read();
    for (const control of controls) control.addEventListener("input", () => { show(); note(); });
    addEventListener("hashchange", () => { read(); show(); });
    if (get("clear")) get("clear").addEventListener("click", () => {
      get("find").value = "";
      if (get("group")) get("group").value = "";
      show();
      note();
      get("find").focus();
    });
    // "/" goes to the search, as on many pages.
    addEventListener("keydown", (event) => {
      const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
      if (event.key !== "/" || typing || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      get("find").focus();
    });
    if (get("sort").selectedIndex > 0) sort();
    filter();
    view();
  }
  // A picture opens large: by click, touch or Enter; arrows go on to the next, Escape closes.
  const drawn = () => [...document.querySelectorAll("figure img")];
  if (drawn().length && window.HTMLDialogElement) {
    const make = (kind, words = "") => Object.assign(document.createElement(kind), { textContent: words });
    const dialog = make("dialog"), large = make("img"), line = make("p"), said = make("span");
    const before = make("button", "Previous"), after = make("button", "Next"), shut = make("button", "Close");
    let at = 0;
    dialog.id = "zoom";
    dialog.setAttribute("aria-label", "Picture");
    line.append(before, after, shut, said);
    dialog.append(large, line);
    const open = (place) => {
      const shown = drawn().filter((i) => i.offsetParent);
      if (!shown.length) return;
      at = (place + shown.length) % shown.length;
      large.src = shown[at].src;
      large.alt = shown[at].alt;
      const caption = shown[at].closest("figure").querySelector("figcaption b");
      said.textContent = (caption ? caption.textContent + " · " : "") + (at + 1) + " of " + shown.length;
      if (!dialog.open) { document.body.append(dialog); dialog.showModal(); }
      keep("zoom", shown[at].dataset.picture);
    };
    const asked = () => {
      const wanted = new URLSearchParams(location.hash.slice(1)).get("zoom");
      const place = drawn().filter((i) => i.offsetParent).findIndex((i) => i.dataset.picture === wanted);
      if (place >= 0) open(place); else if (dialog.open) dialog.close();
    };
    before.addEventListener("click", () => open(at - 1));
    after.addEventListener("click", () => open(at + 1));
    shut.addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
    dialog.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft") open(at - 1);
      if (event.key === "ArrowRight") open(at + 1);
    });
    dialog.addEventListener("close", () => { dialog.remove(); keep("zoom", ""); });
    for (const image of drawn()) {
      const here = () => open(drawn().filter((i) => i.offsetParent).indexOf(image));
      image.tabIndex = 0;
      image.setAttribute("role", "button");
      image.addEventListener("click", here);
      image.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        here();
      });
    }
    asked();
    addEventListener("hashchange", asked);
  }
  // On paper nothing opens: what a badge means is printed with it.
  addEventListener("beforeprint", () => {
    for (const one of document.querySelectorAll("details:not([open])")) {
      one.open = true;
      addEventListener("afterprint", () => { one.open = false; }, { once: true });
    }
  });
  // How many pictures the browser could show, for people and for tests that look at the page.
  addEventListener("load", () => {
    const all = [...document.images];
    document.documentElement.dataset.pictures = all.filter((i) => i.complete && i.naturalWidth > 0).length + "/" + all.length;
  });
})();
