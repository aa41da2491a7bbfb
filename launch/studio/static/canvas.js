// A picture that can be painted on: region, outline, brush by mouse, touch and keyboard.

const SIDE = 640; // px inside; the page shows it smaller

export class Stage {
  // `onbrush(cells)` is called while a brush moves; `label` names the canvas for those who do not see it.
  constructor(label, onbrush) {
    this.canvas = document.createElement("canvas");
    this.canvas.width = this.canvas.height = SIDE;
    this.canvas.setAttribute("role", "img");
    this.name = label;
    this.canvas.setAttribute("aria-label", label);
    this.brushing = false;
    this.erase = false;
    this.width = 3;
    this.cursor = null;
    this.onbrush = onbrush;
    const at = (event) => {
      const box = this.canvas.getBoundingClientRect();
      return [
        ((event.clientX - box.left) / box.width) * this.columns,
        ((event.clientY - box.top) / box.height) * this.rows,
      ];
    };
    let last = null;
    this.canvas.addEventListener("pointerdown", (event) => {
      if (!this.brushing || event.button > 0) return;
      event.preventDefault();
      this.canvas.setPointerCapture?.(event.pointerId);
      last = at(event);
      this.onstart?.();
      this.#stroke(last, last);
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (!this.brushing) return;
      const now = at(event);
      this.cursor = now;
      if (last) { this.#stroke(last, now); last = now; } else this.draw();
    });
    const end = () => { if (last) { last = null; this.onend?.(); } };
    this.canvas.addEventListener("pointerup", end);
    this.canvas.addEventListener("pointercancel", end);
    this.canvas.addEventListener("pointerleave", () => { if (!last) { this.cursor = null; this.draw(); } });
    this.canvas.addEventListener("keydown", (event) => {
      if (!this.brushing) return;
      const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (move) {
        const far = event.shiftKey ? 4 : 1;
        const [x, y] = this.cursor || [this.columns / 2, this.rows / 2];
        this.cursor = [
          Math.min(this.columns - 0.5, Math.max(0.5, x + far * move[0])),
          Math.min(this.rows - 0.5, Math.max(0.5, y + far * move[1])),
        ];
      } else if (event.key === " " || event.key === "Enter") {
        this.cursor ||= [this.columns / 2, this.rows / 2];
        this.onstart?.();
        this.#stroke(this.cursor, this.cursor);
        this.onend?.();
      } else return;
      event.preventDefault();
      this.draw();
    });
  }

  brush(on) {
    this.brushing = on;
    this.canvas.tabIndex = on ? 0 : -1;
    this.canvas.setAttribute("role", on ? "application" : "img");
    this.canvas.setAttribute("aria-label", on
      ? this.name + ". Arrow keys move the brush, space paints, shift moves farther." : this.name);
    this.canvas.classList.toggle("brush", on);
    this.draw();
  }

  grid(rows, columns, cells) {
    this.rows = rows;
    this.columns = columns;
    this.cells = cells || new Uint8Array(rows * columns);
  }

  show(image) {
    this.image = image;
    const ratio = image.height / image.width;
    this.canvas.width = ratio > 1 ? Math.round(SIDE / ratio) : SIDE;
    this.canvas.height = ratio > 1 ? SIDE : Math.round(SIDE * ratio);
    this.canvas.style.aspectRatio = `${image.width} / ${image.height}`;
    // Enlarged once: every step of a slider and of a brush draws it anew.
    this.large = new OffscreenCanvas(this.canvas.width, this.canvas.height);
    const pen = this.large.getContext("2d");
    pen.imageSmoothingQuality = "high";
    pen.drawImage(image, 0, 0, this.large.width, this.large.height);
    this.draw();
  }

  // Cells that are kept, on any grid; null shows the plain picture.
  region(kept, rows, columns) {
    this.kept = kept && { cells: kept, rows, columns };
    this.draw();
  }

  draw() {
    const pen = this.canvas.getContext("2d");
    const { width, height } = this.canvas;
    pen.clearRect(0, 0, width, height);
    if (!this.image) return;
    pen.drawImage(this.large, 0, 0);
    const kept = this.brushing && !this.only ? { cells: this.cells, rows: this.rows, columns: this.columns } : this.kept;
    if (kept && (kept.cells.some(Boolean) || !this.brushing)) {
      if (!this.light) this.#shade(pen, kept);
      this.#outline(pen, kept);
    }
    if (this.brushing && this.cursor) {
      pen.beginPath();
      pen.lineWidth = 3;
      pen.strokeStyle = "#111";
      const [x, y] = this.cursor;
      const r = Math.max(4, (this.width / 2) * (width / this.columns));
      pen.arc((x * width) / this.columns, (y * height) / this.rows, r, 0, 7);
      pen.stroke();
      pen.lineWidth = 1.5;
      pen.strokeStyle = "#fff";
      pen.stroke();
    }
  }

  #shade(pen, { cells, rows, columns }) {
    const veil = new ImageData(columns, rows), words = new Uint32Array(veil.data.buffer);
    // Alpha 190, blue 30, green 26, red 24, in the order of the bytes of a pixel.
    for (let i = 0; i < words.length; i++) words[i] = cells[i] ? 0 : 0xbe1e1a18;
    const small = new OffscreenCanvas(columns, rows);
    small.getContext("2d").putImageData(veil, 0, 0);
    pen.imageSmoothingEnabled = columns >= 48;
    pen.drawImage(small, 0, 0, this.canvas.width, this.canvas.height);
  }

  #outline(pen, { cells, rows, columns }) {
    const { width, height } = this.canvas;
    const x = (c) => (c * width) / columns, y = (r) => (r * height) / rows;
    const at = (r, c) => r >= 0 && c >= 0 && r < rows && c < columns && cells[r * columns + c];
    pen.beginPath();
    // Runs and not single edges: a long line is drawn faster than its parts.
    for (let r = 0; r <= rows; r++) {
      for (let c = 0, from = -1; c <= columns; c++) {
        const edge = c < columns && !!at(r, c) !== !!at(r - 1, c);
        if (edge && from < 0) from = c;
        else if (!edge && from >= 0) { pen.moveTo(x(from), y(r)); pen.lineTo(x(c), y(r)); from = -1; }
      }
    }
    for (let c = 0; c <= columns; c++) {
      for (let r = 0, from = -1; r <= rows; r++) {
        const edge = r < rows && !!at(r, c) !== !!at(r, c - 1);
        if (edge && from < 0) from = r;
        else if (!edge && from >= 0) { pen.moveTo(x(c), y(from)); pen.lineTo(x(c), y(r)); from = -1; }
      }
    }
    pen.lineCap = "round";
    pen.strokeStyle = "rgba(16,16,16,.8)";
    pen.lineWidth = 8;
    pen.stroke();
    pen.strokeStyle = "#ffb000";
    pen.lineWidth = 4.5;
    pen.stroke();
  }

  #stroke(from, to) {
    const steps = Math.max(1, Math.ceil(2 * Math.hypot(to[0] - from[0], to[1] - from[1])));
    const r = this.width / 2;
    for (let s = 0; s <= steps; s++) {
      const cx = from[0] + ((to[0] - from[0]) * s) / steps, cy = from[1] + ((to[1] - from[1]) * s) / steps;
      for (let row = Math.max(0, Math.floor(cy - r)); row < Math.min(this.rows, cy + r); row++) {
        for (let col = Math.max(0, Math.floor(cx - r)); col < Math.min(this.columns, cx + r); col++) {
          const inside = Math.hypot(col + 0.5 - cx, row + 0.5 - cy) <= r || (Math.floor(cx) === col && Math.floor(cy) === row);
          if (inside) this.cells[row * this.columns + col] = this.erase ? 0 : 1;
        }
      }
    }
    this.draw();
    this.onbrush?.(this.cells);
  }
}

export const load = (url) => new Promise((resolve, reject) => {
  const image = new Image();
  image.onload = () => resolve(image);
  image.onerror = () => reject(new Error("This picture could not be loaded: drop it in again."));
  image.src = url;
});
