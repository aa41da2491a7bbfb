// What all tabs share: asking the studio, the address of a state, and making elements.

const token = new URLSearchParams(location.search).get("token") || "";
const headers = { "x-studio-token": token };

export function h(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "class") made.className = value;
    else if (name in made && name !== "list" && typeof value !== "string") made[name] = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((c) => c !== null && c !== undefined));
  return made;
}

export const percent = (p) =>
  p === null || p === undefined ? "–" : p > 0 && p < 0.0005 ? "under 0.1\u00a0%"
    : (100 * p >= 9.95 && 100 * p < 99.5 ? Math.round(100 * p) : (Math.floor(1000 * p + 0.5) / 10)) + " %";

const said = document.getElementById("said");
export function say(text, wrong = false) {
  said.textContent = text || "";
  said.classList.toggle("wrong", wrong);
}

async function refused(response) {
  const text = (await response.text()).trim().slice(0, 300);
  throw new Error(response.status === 403 ? "This page has no token any more: open the address that the studio printed." : text);
}

export async function ask(name, body) {
  const response = await fetch("/api/ask/" + name, { method: "POST", headers, body: JSON.stringify(body) });
  if (!response.ok) await refused(response);
  return response.json();
}

export async function world() {
  const response = await fetch("/api/world", { headers });
  if (!response.ok) await refused(response);
  return response.json();
}

export async function drop(file, most) {
  if (file.size > most) throw new Error(`${file.name} is larger than ${Math.round(most / 2 ** 20)} MiB.`);
  const response = await fetch("/api/pictures", { method: "POST", headers, body: file });
  if (!response.ok) await refused(response);
  return (await response.json()).id;
}

export const pictureURL = (id, model) =>
  `/api/picture/${encodeURIComponent(id)}?model=${encodeURIComponent(model)}&token=${encodeURIComponent(token)}`;

// Long work: its bar stands in the head of the page; Cancel, or the next work of the same tab, ends it.
const running = new Map();
const bar = {
  all: document.getElementById("working"), value: document.getElementById("progress"),
  words: document.getElementById("words"), cancel: document.getElementById("cancel"),
};
bar.cancel.addEventListener("click", () => {
  for (const one of running.values()) one.abort();
  say("Cancelled. Nothing was lost: ask again to start anew.");
});

export class Stopped extends Error {}

export async function work(name, body, lane = name) {
  running.get(lane)?.abort();
  const control = new AbortController();
  running.set(lane, control);
  bar.all.hidden = false;
  try {
    const response = await fetch("/api/long/" + name, {
      method: "POST", headers, body: JSON.stringify(body), signal: control.signal,
    });
    if (!response.ok) await refused(response);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = ""; ;) {
      const { value, done } = await reader.read();
      if (done) throw new Error("The studio does not answer: is it still running?");
      rest += value;
      const lines = rest.split("\n");
      rest = lines.pop();
      for (const line of lines) {
        const news = JSON.parse(line);
        if ("result" in news) return news.result;
        if ("error" in news) throw new Error(news.error);
        if ("progress" in news) {
          bar.value.value = news.progress;
          bar.words.textContent = news.words || "";
        }
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw new Stopped();
    throw error;
  } finally {
    if (running.get(lane) === control) running.delete(lane);
    bar.all.hidden = running.size === 0;
  }
}

// Calls `fn` with the latest of many wishes, one call at a time: a brush asks more often than it is answered.
export function latest(fn) {
  let wish, busy = false;
  return async (...args) => {
    wish = args;
    if (busy) return;
    busy = true;
    while (wish) {
      const now = wish;
      wish = undefined;
      try {
        await fn(...now);
      } catch (error) {
        if (!(error instanceof Stopped)) say(error.message, true);
      }
    }
    busy = false;
  };
}

// The address: #tab?name=value&... . What a tab shows is there, and comes back from there.
export function address() {
  const [tab, query] = location.hash.slice(1).split("?");
  return { tab: tab || "masks", params: Object.fromEntries(new URLSearchParams(query || "")) };
}

let soon;

export function remember(tab, params, fresh = false) {
  clearTimeout(soon);
  const kept = Object.fromEntries(Object.entries(params).filter(([, v]) => v !== "" && v !== null && v !== undefined));
  const hash = "#" + tab + "?" + new URLSearchParams(kept);
  if (hash === location.hash) return;
  history[fresh ? "pushState" : "replaceState"](null, "", location.pathname + location.search + hash);
}

// While a slider moves: a browser writes no more than some addresses a second, and complains of the others.
export function rememberSoon(tab, params) {
  clearTimeout(soon);
  soon = setTimeout(() => remember(tab, params()), 150);
}

export const pack = (cells) => {
  const bytes = new Uint8Array(Math.ceil(cells.length / 8));
  cells.forEach((on, i) => { if (on) bytes[i >> 3] |= 128 >> (i & 7); });
  return btoa(String.fromCharCode(...bytes));
};

export const unpack = (text, length) => {
  const cells = new Uint8Array(length);
  try {
    const bytes = atob(text);
    for (let i = 0; i < length; i++) cells[i] = (bytes.charCodeAt(i >> 3) >> (7 - (i & 7))) & 1;
  } catch { /* an address that was cut off shows nothing */ }
  return cells;
};

export function code(fetchText) {
  const shown = h("pre", { tabindex: 0, "aria-label": "Python" });
  const copy = h("button", { type: "button", onclick: async () => {
    await navigator.clipboard.writeText(shown.textContent);
    say("Copied.");
  } }, "Copy");
  return h("details", { class: "code", ontoggle: async (event) => {
    if (!event.target.open) return;
    try { shown.textContent = (await fetchText()).text; } catch (error) { say(error.message, true); }
  } }, h("summary", {}, "The same in Python"), copy, shown);
}

export function save(canvas, name) {
  canvas.toBlob((blob) => {
    const link = h("a", { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}
