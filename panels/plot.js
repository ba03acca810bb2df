"use strict";
// A canvas that knows its scale, and handles that a mouse, a finger or the arrow keys
// move. No library.
(() => {
  const made = (tag, options = {}, parent = null) => {
    const element = Object.assign(document.createElement(tag), options);
    if (parent) parent.append(element);
    return element;
  };

  // The book's colours (chapter `plots`), lighter on a dark page.
  const LIGHT = { noise: "#0072B2", data: "#D55E00", path: "#007A5A", density: "#9B4F8A" };
  const DARK = { noise: "#56B4E9", data: "#F08A4B", path: "#3FBF95", density: "#CC8FBE" };
  const colors = () =>
    document.documentElement.dataset.theme === "dark"
      ? { ...DARK, ink: "#e6e6e6", faint: "#8a8a8a", wrong: "#a8a8a8" }
      : { ...LIGHT, ink: "#1a1a1a", faint: "#767676", wrong: "#555555" };

  // A plot inside a panel: world coordinates [x0, x1, y0, y1], drawn by `draw(plot)`.
  // `aspect` is height / width. Nothing is drawn while it has no size.
  class Plot {
    constructor(panel, { world, aspect, label, draw }) {
      this.world = world;
      this.draw = draw;
      this.box = made("div", { className: "panel-plot" }, panel.plots);
      this.canvas = made("canvas", {}, this.box);
      this.canvas.setAttribute("role", "img");
      this.label = label;
      this.box.style.aspectRatio = `${1 / aspect}`;
      this.handles = [];
      new ResizeObserver(() => this.resize()).observe(this.box);
    }
    set label(text) {
      this.canvas.setAttribute("aria-label", text);
    }
    resize() {
      const { clientWidth: w, clientHeight: h } = this.box;
      const ratio = window.devicePixelRatio || 1;
      this.canvas.width = Math.round(w * ratio);
      this.canvas.height = Math.round(h * ratio);
      this.ctx = this.canvas.getContext("2d");
      this.ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
      this.width = w;
      this.height = h;
      for (const handle of this.handles) handle.place();
      this.redraw();
    }
    redraw() {
      if (!(this.width > 0 && this.height > 0)) return;
      this.ctx.clearRect(0, 0, this.width, this.height);
      this.draw(this, this.ctx, colors());
    }
    px(x, y) {
      const [x0, x1, y0, y1] = this.world;
      return [
        ((x - x0) / (x1 - x0)) * this.width,
        ((y1 - y) / (y1 - y0)) * this.height,
      ];
    }
    at(event) {
      const [x0, x1, y0, y1] = this.world;
      const { left, top, width, height } = this.canvas.getBoundingClientRect();
      return [
        x0 + ((event.clientX - left) / width) * (x1 - x0),
        y1 - ((event.clientY - top) / height) * (y1 - y0),
      ];
    }
    dot(x, y, radius, color) {
      const c = this.ctx;
      c.fillStyle = color;
      c.beginPath();
      c.arc(...this.px(x, y), radius, 0, 2 * Math.PI);
      c.fill();
    }
    line(points, color, width = 2, dash = []) {
      const c = this.ctx;
      c.strokeStyle = color;
      c.lineWidth = width;
      c.setLineDash(dash);
      c.beginPath();
      points.forEach(([x, y], k) => c[k ? "lineTo" : "moveTo"](...this.px(x, y)));
      c.stroke();
      c.setLineDash([]);
    }
    arrow(x, y, u, v, color, width = 2) {
      this.line([[x, y], [x + u, y + v]], color, width);
      const [a, b] = this.px(x + u, y + v);
      const [p, q] = this.px(x, y);
      const angle = Math.atan2(b - q, a - p);
      const c = this.ctx;
      const size = Math.min(4 + 2 * width, Math.hypot(a - p, b - q));
      c.fillStyle = color;
      c.beginPath();
      c.moveTo(a, b);
      for (const turn of [2.7, -2.7])
        c.lineTo(a + size * Math.cos(angle + turn), b + size * Math.sin(angle + turn));
      c.fill();
    }
    text(x, y, words, color, align = "left") {
      const c = this.ctx;
      c.fillStyle = color;
      c.font = "13px system-ui, sans-serif";
      c.textAlign = align;
      const [a, b] = this.px(x, y);
      c.fillText(words, a, b);
    }
  }

  // A point to drag: a button, so that it takes the focus and the arrow keys too.
  class Handle {
    constructor(plot, { x, y, label, move, remove, kind = "data" }) {
      Object.assign(this, { plot, x, y, label, move });
      this.button = made("button", { type: "button", className: `panel-handle ${kind}` });
      plot.box.append(this.button);
      plot.handles.push(this);
      this.button.addEventListener("pointerdown", (event) => {
        this.button.setPointerCapture(event.pointerId);
        event.stopPropagation();
      });
      this.button.addEventListener("pointermove", (event) => {
        if (this.button.hasPointerCapture(event.pointerId)) this.to(...plot.at(event));
      });
      this.button.addEventListener("click", (event) => event.stopPropagation());
      this.button.addEventListener("keydown", (event) => {
        const [x0, x1, y0, y1] = plot.world;
        const [right, up] =
          { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[
            event.key
          ] || [];
        const small = event.shiftKey ? 0.005 : 0.03;
        if (right !== undefined)
          this.to(this.x + right * small * (x1 - x0), this.y + up * small * (y1 - y0));
        else if (remove && ["Delete", "Backspace"].includes(event.key)) remove(this);
        else return;
        event.preventDefault();
      });
      this.place();
    }
    to(x, y) {
      const [x0, x1, y0, y1] = this.plot.world;
      const within = (v, a, b) => Math.min(Math.max(v, a), b);
      const wanted = [within(x, x0, x1), within(y, y0, y1)];
      [this.x, this.y] = this.move(...wanted, this) || wanted;
      this.place();
    }
    place() {
      if (!(this.plot.width > 0)) return;
      const [a, b] = this.plot.px(this.x, this.y);
      this.button.style.translate = `${a}px ${b}px`;
      const where = `${this.x.toFixed(2)}, ${this.y.toFixed(2)}`;
      this.button.setAttribute("aria-label", `${this.label} at ${where}`);
    }
    gone() {
      this.button.remove();
      this.plot.handles.splice(this.plot.handles.indexOf(this), 1);
    }
  }

  Object.assign(flowbook, { made, Plot, Handle });
})();
