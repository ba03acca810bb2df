"use strict";
// Chapter `paths`: what σ_min does near t = 1, for the straight path to two data points
// on the line. The field's slope there is that of its linear part,
// σ̇/σ = (σ_min - 1)/σ_t; its size at t = 1 is about 1/σ_min (`flowbook.paths.ot` in
// math.js).
flowbook.panel(
  "end",
  "Touch it: the last moment",
  "Make σₘᵢₙ smaller: the density at t = 1 turns into two spikes, the field's slope grows " +
    "like 1/σₘᵢₙ, and the solver needs shorter steps to follow it.",
  (panel) => {
    const DATA = [-1, 1];
    const starts = Array.from({ length: 14 }, (_, k) => -1.95 + 0.3 * k);
    let power = -1;
    let sigma = 0.1;
    let tracks = [];
    let euler = [];

    const solve = () => {
      sigma = 10 ** power;
      const path = flowbook.paths.ot(sigma);
      const field = (x, t) => flowbook.velocity(path, DATA, 1, x, t);
      // steps that shrink with 1 - t + σ_min, so that the fine end is followed too
      const grid = [0];
      while (grid.at(-1) < 1)
        grid.push(Math.min(1, grid.at(-1) + 0.04 * path.sigma(grid.at(-1))));
      tracks = starts.map((x) => {
        const track = [[0, x]];
        for (let k = 1; k < grid.length; k++) {
          const h = grid[k] - grid[k - 1];
          track.push([grid[k], flowbook.step.rk4(field, [track.at(-1)[1]], grid[k - 1], h)[0]]);
        }
        return track;
      });
      euler = starts.map((x) =>
        flowbook.follow(field, [x], { steps: 20, method: "euler" }).map(([y], k) => [k / 20, y]),
      );
      panel.slope = path.dsigma(1) / path.sigma(1);
      const off = euler.map((track, n) => Math.abs(track.at(-1)[1] - tracks[n].at(-1)[1]));
      panel.say(
        `Slope at t = 1: ${panel.slope.toPrecision(3).replace("-", "−")}. Euler with 20 steps (dashed) ends ` +
          `up to ${Math.max(...off).toPrecision(2)} off, ` +
          `${(Math.max(...off) / sigma).toPrecision(2)} times σₘᵢₙ.`,
      );
      panel.redraw();
    };
    panel.plot({
      world: [0.7, 1.01, -1.9, 1.9],
      aspect: 0.9,
      label: "Trajectories over t from 0.7 to 1: exact ones and Euler's.",
      draw: (plot, ctx, color) => {
        for (const track of tracks) plot.line(track, color.path, 2);
        for (const track of euler) plot.line(track, color.wrong, 1.2, [5, 4]);
        for (const x of DATA) plot.dot(1, x, 5, color.data);
        plot.text(0.71, -1.8, "t = 0.7", color.ink);
        plot.text(0.99, -1.8, "t = 1", color.ink, "right");
      },
    });
    panel.plot({
      world: [-2, 2, 0, 2.2],
      aspect: 0.9,
      label: "The density at t = 1: two bells of width σₘᵢₙ about the data points.",
      draw: (plot, ctx, color) => {
        const grid = Array.from({ length: 801 }, (_, k) => -2 + k / 200);
        const bell = (x) =>
          DATA.reduce((sum, d) => sum + flowbook.normalDensity((x - d) / sigma), 0) /
          (DATA.length * sigma);
        plot.line(grid.map((x) => [x, bell(x)]), color.density, 2);
        plot.text(-1.9, 2.05, "p₁", color.density);
      },
    });
    panel.slider({
      label: "σₘᵢₙ",
      min: -3,
      max: -0.3,
      step: 0.05,
      value: power,
      format: (v) => (10 ** v).toPrecision(2),
      input: (v) => ((power = v), solve()),
    });
    solve();
  },
);
