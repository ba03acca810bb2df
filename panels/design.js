"use strict";
// Chapter `paths`: a path is two curves, α_t and σ_t. Drag them; the exact marginal
// flow for three data points on the line follows (`flowbook.velocity` in math.js).
flowbook.panel(
  "design",
  "Touch it: design a path",
  "Drag the curves α (how much data) and σ (how much noise), or take one of the book's. " +
    "The trajectories of the marginal flow follow.",
  (panel) => {
    const ALPHA = [0, 0.15, 0.4, 0.65, 1]; // where one takes hold of α, and of σ: never
    const SIGMA = [0, 0.25, 0.5, 0.75, 1]; // of both in one place
    const DATA = [-1.5, 0.4, 1.5];
    const END = 0.995;
    const STEPS = 120;
    const LOW = 0.02; // σ stays positive: at 0 the field has no finite value
    const starts = Array.from({ length: 21 }, (_, k) => -2.5 + k / 4);
    let tracks = [];
    let path = null;
    let named = "OT";

    const drawn = () => {
      const curve = (row) => flowbook.curve(row.map((h) => [h.x, h.y]));
      const [a, s] = [curve(alphas), curve(sigmas)];
      return { alpha: a.f, dalpha: a.df, sigma: s.f, dsigma: s.df };
    };
    const solve = () => {
      const book = { OT: () => flowbook.paths.ot(LOW), VP: () => flowbook.paths.vp(), cosine: () => flowbook.paths.cosine() };
      path = named === "your own" ? drawn() : book[named]();
      const field = (x, t) => flowbook.velocity(path, DATA, 1, x, t);
      const [a0, s0] = [path.alpha(0), path.sigma(0)];
      tracks = starts.map((x) => flowbook.follow(field, [x], { steps: STEPS, t1: END }));
      const off = tracks.some((track) => !track.every(([x]) => Number.isFinite(x)));
      panel.say(
        off
          ? "Some trajectories left the finite numbers: let σ fall less steeply."
          : `α₀ = ${a0.toFixed(3)}, σ₀ = ${s0.toFixed(3)}: ` +
              (Math.abs(a0) < 0.005 && Math.abs(s0 - 1) < 0.005
                ? "the path starts in N(0, 1)."
                : "the path does not start in N(0, 1)."),
      );
      panel.redraw();
    };
    const wait = flowbook.once(() => solve());

    const curves = panel.plot({
      world: [-0.05, 1.05, -0.1, 1.5],
      aspect: 0.8,
      label: "α and σ as curves over t from 0 to 1.",
      draw: (plot, ctx, color) => {
        if (!path) return;
        const grid = Array.from({ length: 101 }, (_, k) => k / 100);
        plot.line([[0, 0], [1, 0]], color.faint, 0.5);
        plot.line(grid.map((t) => [t, path.alpha(t)]), color.data, 3);
        plot.line(grid.map((t) => [t, path.sigma(t)]), color.noise, 3);
        plot.text(0.02, 1.4, "σ: noise", color.noise);
        plot.text(0.98, 1.4, "α: data", color.data, "right");
      },
    });
    panel.plot({
      world: [0, 1.03, -3, 3],
      aspect: 0.8,
      label: "Trajectories over t of 21 starting points, to three data points.",
      draw: (plot, ctx, color) => {
        for (const track of tracks)
          plot.line(track.map(([x], k) => [(k * END) / STEPS, x]), color.path, 1.2);
        for (const x of DATA) plot.dot(1, x, 5, color.data);
        plot.text(0.5, -2.85, "t", color.ink, "center");
      },
    });
    const row = (times, kind, name, f, low) =>
      times.map((t) =>
        panel.handle(curves, {
          x: t,
          y: f(t),
          kind,
          label: `${name} at t = ${t},`,
          move: (_, y) => {
            named = select.value = "your own";
            wait();
            return [t, Math.min(Math.max(y, low), 1.5)];
          },
        }),
      );
    const select = panel.choice("path", ["OT", "VP", "cosine", "your own"], (name) => {
      const of = { OT: flowbook.paths.ot(LOW), VP: flowbook.paths.vp(), cosine: flowbook.paths.cosine() }[name];
      if (of) {
        ALPHA.forEach((t, k) => alphas[k].to(t, of.alpha(t)));
        SIGMA.forEach((t, k) => sigmas[k].to(t, of.sigma(t)));
      }
      named = select.value = name;
      solve();
    });
    const line = flowbook.paths.ot(LOW);
    const alphas = row(ALPHA, "data", "α", line.alpha, -0.1);
    const sigmas = row(SIGMA, "noise", "σ", line.sigma, LOW);
    solve();
  },
);
