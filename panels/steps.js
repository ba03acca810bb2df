"use strict";
// Chapter `sampling`: a solver's steps against the exact flow, for the marginal field
// of five data points smoothed by σ = 0.3 (`flowbook.velocity`, `flowbook.step` in
// math.js).
flowbook.panel(
  "steps",
  "Touch it: how many steps?",
  "The thin lines are the exact flow, the thick ones what the method makes of it with the " +
    "steps that you give it.",
  (panel) => {
    const DATA = [-1.8, 0.6, -0.6, -1.5, 0.9, 1.4, 1.9, -0.4, 0.1, 0.2];
    const COST = { euler: 1, midpoint: 2, rk4: 4 };
    const path = flowbook.paths.ot(0.3);
    const field = (x, t) => flowbook.velocity(path, DATA, 2, x, t);
    const noise = flowbook.normals(48, 11);
    const starts = Array.from({ length: 24 }, (_, n) => noise.slice(2 * n, 2 * n + 2));
    const exact = starts.map((x) => flowbook.follow(field, x, { steps: 200 }));
    let tracks = [];
    let steps = 4;
    let method = "euler";

    const solve = () => {
      tracks = starts.map((x) => flowbook.follow(field, x, { steps, method }));
      const gaps = tracks.map((track, n) => {
        const [a, b] = [track.at(-1), exact[n].at(-1)];
        return Math.hypot(a[0] - b[0], a[1] - b[1]);
      });
      panel.error = gaps.reduce((sum, gap) => sum + gap, 0) / gaps.length;
      panel.say(
        `${steps * COST[method]} evaluations a point; the ends are ` +
          `${panel.error.toPrecision(2)} off, on average.`,
      );
      panel.redraw();
    };
    panel.plot({
      world: [-3.5, 3.5, -3.2, 2.4],
      aspect: 0.8,
      label: "Trajectories of the exact flow and of the method, from 24 points of noise.",
      draw: (plot, ctx, color) => {
        for (const track of exact) plot.line(track, color.faint, 1);
        for (const track of tracks) {
          plot.line(track, color.path, 2);
          if (steps <= 20) for (const x of track) plot.dot(...x, 2, color.path);
          plot.dot(...track[0], 2.5, color.noise);
          plot.dot(...track.at(-1), 4, color.data);
        }
      },
    });
    panel.choice("method", Object.keys(COST), (name) => ((method = name), solve()));
    panel.slider({
      label: "steps",
      min: 1,
      max: 60,
      step: 1,
      value: steps,
      input: (n) => ((steps = n), solve()),
    });
    solve();
  },
);
