"use strict";
// What every panel is made of: sliders and buttons with labels, a clock, one line that
// says what is going on. Its plots and handles are in plot.js.
(() => {
  const { made, Plot, Handle } = flowbook;

  class Panel {
    constructor(root, { title, hint }) {
      this.root = root;
      root.setAttribute("role", "group");
      root.setAttribute("aria-label", title);
      made("p", { className: "panel-title", textContent: title }, root);
      made("p", { className: "panel-hint", textContent: hint }, root);
      this.plots = made("div", { className: "panel-plots" }, root);
      this.controls = made("div", { className: "panel-controls" }, root);
      this.status = made("p", { className: "panel-status" }, root);
      this.status.setAttribute("role", "status");
      this.drawn = [];
      new MutationObserver(() => this.redraw()).observe(document.documentElement, {
        attributeFilter: ["data-theme"],
      });
    }
    plot(options) {
      const plot = new Plot(this, options);
      this.drawn.push(plot);
      return plot;
    }
    redraw() {
      for (const plot of this.drawn) plot.redraw();
    }
    say(words) {
      if (this.status.textContent !== words) this.status.textContent = words;
    }
    slider({ label, min, max, step, value, format = String, input }) {
      const row = made("label", { className: "panel-slider" }, this.controls);
      made("span", { textContent: label }, row);
      const range = made("input", { type: "range", min, max, step, value }, row);
      const shown = made("output", {}, row);
      const update = () => {
        shown.textContent = format(range.valueAsNumber);
        range.setAttribute("aria-valuetext", shown.textContent);
      };
      range.addEventListener("input", () => (update(), input(range.valueAsNumber)));
      update();
      range.show = (v) => ((range.value = v), update());
      return range;
    }
    button(label, click) {
      const button = made("button", { type: "button", textContent: label }, this.controls);
      button.addEventListener("click", click);
      return button;
    }
    choice(label, names, change) {
      const row = made("label", { className: "panel-slider" }, this.controls);
      made("span", { textContent: label }, row);
      const select = made("select", {}, row);
      for (const name of names) made("option", { textContent: name }, select);
      select.addEventListener("change", () => change(select.value));
      return select;
    }
    // Buttons above the plots of which one is pressed: `change(k)` when it is the k-th.
    tabs(label, names, change) {
      const row = made("div", { className: "panel-tabs" });
      this.root.insertBefore(row, this.plots);
      row.setAttribute("role", "group");
      row.setAttribute("aria-label", label);
      const press = (button) => {
        for (const b of row.children) b.setAttribute("aria-pressed", b === button);
      };
      names.forEach((name, k) => {
        const button = made("button", { type: "button", textContent: name }, row);
        button.addEventListener("click", () => (press(button), change(k)));
      });
      press(row.firstChild);
    }
    // A clock from 0 to 1 in `seconds`, with its slider and its button. Where the page
    // says `data-starts` it runs again and again while it is seen, until the reader
    // takes it; where reduced motion is asked for it waits to be started.
    clock({ seconds = 4, end = 1, tick }) {
      let t = 0;
      let last = null;
      let rest = 0;
      let watch = null;
      const show = (value) => tick((t = value));
      const taken = () => (watch?.disconnect(), (watch = null));
      const slider = this.slider({
        label: "time t",
        min: 0,
        max: end,
        step: 0.001,
        value: 0,
        format: (v) => v.toFixed(2),
        input: (v) => (taken(), pause(), show(v)),
      });
      const frame = (now) => {
        if (last === null) return;
        const passed = Math.max(0, now - last); // the first frame may be dated before
        const next = Math.min(end, t + passed / 1000 / seconds);
        last = now;
        slider.show(next);
        show(next);
        if (next < end) requestAnimationFrame(frame);
        else if (watch) rest = setTimeout(play, 1500); // a look at the end
        else pause();
      };
      const play = () => {
        if (t >= end) show(0);
        last = performance.now();
        toggle.textContent = "Pause";
        requestAnimationFrame(frame);
      };
      const pause = () => {
        clearTimeout(rest);
        last = null;
        toggle.textContent = "Play";
      };
      const toggle = this.button("Play", () => {
        taken();
        if (last === null) play();
        else pause();
      });
      const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
      if ("starts" in this.root.dataset && !calm) {
        watch = new IntersectionObserver(
          (entries) => (entries.at(-1).isIntersecting ? play() : pause()),
          { threshold: 0.5 },
        );
        watch.observe(this.plots);
      }
      return { play, pause, set: (v) => (taken(), pause(), slider.show(v), show(v)) };
    }
  }

  // `f`, at most once a frame: while something is dragged that is often enough.
  flowbook.once = (f) => {
    let waiting = false;
    return () => {
      if (!waiting) requestAnimationFrame(() => ((waiting = false), f()));
      waiting = true;
    };
  };

  // Build the panel `name` wherever the page has a place for it.
  flowbook.panel = (name, title, hint, build) => {
    for (const root of document.querySelectorAll(`[data-panel="${name}"]`)) {
      const panel = new Panel(root, { title, hint });
      panel.handle = (plot, options) => new Handle(plot, options);
      root.panel = panel;
      build(panel);
    }
  };
})();
