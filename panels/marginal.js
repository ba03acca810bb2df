"use strict";
// Chapter `marginal`: put data points anywhere, and the exact marginal flow of the
// straight path carries noise onto them. Formulas: `flowbook.weights`,
// `flowbook.velocity` in math.js.
flowbook.panel(
  "marginal",
  "Touch it: your own data",
  "Click or tap to add a data point (at most 30), drag one to move it, press Delete on " +
    "one to remove it. Hover over the plane for the arrows at that place and time.",
  (panel) => {
    const MOST = 30;
    const COUNT = 300;
    const STEPS = 60;
    const END = 0.99; // with σ_min = 0.01 the last hundredth is still smooth
    const path = flowbook.paths.ot(0.01);
    const noise = flowbook.normals(2 * COUNT, 7);
    const handles = [];
    let tracks = [];
    let time = 0;
    let probe = null;

    const data = () => handles.flatMap((h) => [h.x, h.y]);
    const field = (x, t) => flowbook.velocity(path, data(), 2, x, t);

    const solve = () => {
      tracks = [];
      if (!handles.length) {
        panel.say("The flow needs at least one data point: click in the plane.");
        return panel.redraw();
      }
      const points = data();
      const frozen = (x, t) => flowbook.velocity(path, points, 2, x, t);
      for (let n = 0; n < COUNT; n++)
        tracks.push(
          flowbook.follow(frozen, noise.slice(2 * n, 2 * n + 2), { steps: STEPS, t1: END }),
        );
      const many = handles.length > 1 ? `${handles.length} data points` : "one data point";
      panel.say(`${COUNT} points of noise on their way to ${many}.`);
      panel.redraw();
    };

    // between two stored states a straight line will do
    const place = (track, t) => {
      const s = Math.min((t / END) * STEPS, STEPS - 1e-9);
      const k = Math.floor(s);
      return track[k].map((v, i) => v + (s - k) * (track[k + 1][i] - v));
    };

    const draw = (plot, ctx, color) => {
      ctx.globalAlpha = 0.25;
      for (const track of tracks.slice(0, 40)) plot.line(track, color.path, 1);
      ctx.globalAlpha = 0.8;
      for (const track of tracks) plot.dot(...place(track, time), 2, color.noise);
      ctx.globalAlpha = 1;
      if (probe && handles.length) arrows(plot, color);
    };

    const arrows = (plot, color) => {
      const t = Math.min(time, END);
      const shares = flowbook.weights(path, data(), 2, probe, t);
      handles.forEach((h, n) => {
        if (shares[n] < 0.002) return;
        plot.ctx.globalAlpha = 0.6;
        const [dx, dy] = [h.x - probe[0], h.y - probe[1]];
        plot.line([probe, [h.x, h.y]], color.data, 1 + 9 * shares[n]);
        plot.ctx.globalAlpha = 1;
        const percent = `${Math.round(100 * shares[n])} %`;
        plot.text(probe[0] + 0.6 * dx, probe[1] + 0.6 * dy, percent, color.ink);
      });
      const [u, v] = field(probe, t);
      plot.arrow(...probe, (1 - t) * u, (1 - t) * v, color.path, 4);
      plot.dot(...probe, 4, color.ink);
    };

    const plot = panel.plot({
      world: [-3, 3, -2.2, 2.2],
      aspect: 2.2 / 3,
      label: "Points of noise, the data points, and the ways between them.",
      draw,
    });

    const wait = flowbook.once(() => solve());
    const add = (x, y) => {
      if (handles.length >= MOST) return panel.say(`${MOST} data points are the most.`);
      if (!(Number.isFinite(x) && Number.isFinite(y))) return;
      const label = `data point ${handles.length + 1}`;
      handles.push(panel.handle(plot, { x, y, label, move: wait, remove }));
      solve();
    };
    const remove = (handle) => {
      handles.splice(handles.indexOf(handle), 1);
      handle.gone();
      solve();
    };
    plot.box.addEventListener("click", (event) => add(...plot.at(event)));
    plot.box.addEventListener("pointermove", (event) => {
      probe = event.pointerType === "touch" ? null : plot.at(event);
      plot.redraw();
    });
    plot.box.addEventListener("pointerleave", () => ((probe = null), plot.redraw()));

    panel.clock({ end: END, tick: (t) => ((time = t), panel.redraw()) });
    panel.button("Add a point", () => {
      const [x, y] = flowbook.normals(2, handles.length + 50);
      add(1.2 * x, 0.9 * y);
    });
    panel.button("Start again", () => {
      while (handles.length) handles.pop().gone();
      for (const [x, y] of [[-1.6, 0.9], [1.4, 1.1], [0.4, -1.3]]) add(x, y);
    });
    panel.add = add; // for the tests
    for (const [x, y] of [[-1.6, 0.9], [1.4, 1.1], [0.4, -1.3]]) add(x, y);
  },
);
