"use strict";
// Chapter `change_of_variables`: X = f(Z) with Z standard normal. Drag the map, see the
// density that it makes: p(x) = Σ π(z)/|f'(z)| over all z with f(z) = x
// (`flowbook.pushed` in math.js), and beside it a histogram of 4,000 samples, which
// knows no formula.
flowbook.panel(
  "map",
  "Touch it: bend the map",
  "Drag the points of the map f, or move them with the arrow keys. Where f is flat the " +
    "density of X = f(Z) piles up; where f turns back, two or three z land on one x.",
  (panel) => {
    const PLACES = [-2, -1, 0, 1, 2];
    const EDGE = 4;
    const BINS = 64;
    const samples = flowbook.normals(4000, 3);
    let curve = null;
    let bars = [];
    let density = [];

    const solve = () => {
      curve = flowbook.curve(handles.map((h) => [h.x, h.y]));
      bars = new Array(BINS).fill(0);
      for (const z of samples) {
        const k = Math.floor(((curve.f(z) + EDGE) / (2 * EDGE)) * BINS);
        if (k >= 0 && k < BINS) bars[k] += BINS / (2 * EDGE * samples.length);
      }
      density = Array.from({ length: 321 }, (_, k) => {
        const x = -EDGE + (2 * EDGE * k) / 320;
        return [x, Math.min(flowbook.pushed(curve, x), 9)];
      });
      const turns = handles.some(
        (h, k) => k > 1 && (h.y - handles[k - 1].y) * (handles[k - 1].y - handles[k - 2].y) < 0,
      );
      const flat = handles.some((h, k) => k && h.y === handles[k - 1].y);
      panel.say(
        flat
          ? "f is constant on an interval: all its mass lands in one point, and X has no density."
          : turns
            ? "f turns back: several z have the same x, and their densities add."
            : "f is one-to-one: each x has one z, and p(x) = π(z)/|f′(z)|.",
      );
      panel.redraw();
    };

    const map = panel.plot({
      world: [-3, 3, -EDGE, EDGE],
      aspect: 0.8,
      label: "The graph of f over z from -3 to 3, and the density of Z below it.",
      draw: (plot, ctx, color) => {
        const grid = Array.from({ length: 121 }, (_, k) => -3 + k / 20);
        const bell = grid.map((z) => [z, -EDGE + 4 * flowbook.normalDensity(z)]);
        plot.line(bell, color.noise);
        plot.line([[-3, 0], [3, 0]], color.faint, 0.5);
        plot.line([[0, -EDGE], [0, EDGE]], color.faint, 0.5);
        if (curve) plot.line(grid.map((z) => [z, curve.f(z)]), color.path, 3);
        plot.text(-2.9, 3.5, "x = f(z)", color.path);
        plot.text(2.9, -3.7, "z", color.ink, "right");
      },
    });
    panel.plot({
      world: [-EDGE, EDGE, 0, 1.25],
      aspect: 0.8,
      label: "The density of X: the formula as a line, a histogram of samples behind it.",
      draw: (plot, ctx, color) => {
        ctx.globalAlpha = 0.3;
        ctx.fillStyle = color.density;
        bars.forEach((height, k) => {
          const [a, top] = plot.px(-EDGE + (2 * EDGE * k) / BINS, height);
          ctx.fillRect(a, top, plot.width / BINS - 1, plot.height - top);
        });
        ctx.globalAlpha = 1;
        plot.line(density, color.density, 2);
        plot.text(-3.9, 1.15, "density of X", color.density);
        plot.text(3.9, 0.04, "x", color.ink, "right");
      },
    });

    const wait = flowbook.once(() => solve());
    const handles = PLACES.map((z) =>
      panel.handle(map, {
        x: z,
        y: z + 0.1 * z * Math.abs(z),
        label: `value of f at z = ${z},`,
        kind: "path",
        move: (_, y) => (wait(), [z, y]),
      }),
    );
    const preset = (label, f) =>
      panel.button(label, () => {
        handles.forEach((h) => h.to(h.x, f(h.x)));
        solve();
      });
    preset("Identity", (z) => z);
    preset("Decreasing", (z) => -z);
    preset("Cube", (z) => (z ** 3) / 2.2);
    preset("Turns back", (z) => z * z - 2);
    panel.curve = () => curve; // for the tests
    solve();
  },
);
