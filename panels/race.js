"use strict";
// Chapter `comparison`: the straight (OT) and the diffusion (VP) path side by side,
// from the same noise to the same data: exact marginal flows (`flowbook.velocity` in
// math.js).
flowbook.panel(
  "race",
  "Touch it: two ways to the same data",
  "The same noise, the same five data points. Move the clock: OT moves all the time, VP " +
    "waits and hurries at the end. The way of one point is dashed in both.",
  (panel) => {
    const DATA = [-1.8, 0.6, -0.6, -1.5, 0.9, 1.4, 1.9, -0.4, 0.1, 0.2];
    const COUNT = 120;
    const END = 0.98;
    const STEPS = 160;
    const noise = flowbook.normals(2 * COUNT, 5);
    let time = 0;
    const length = (track) =>
      track.slice(1).reduce(
        (sum, x, k) => sum + Math.hypot(x[0] - track[k][0], x[1] - track[k][1]),
        0,
      );
    const runs = { OT: flowbook.paths.ot(), VP: flowbook.paths.vp() };
    const tracks = {};
    const detour = {};
    for (const [name, path] of Object.entries(runs)) {
      const field = (x, t) => flowbook.velocity(path, DATA, 2, x, t);
      tracks[name] = Array.from({ length: COUNT }, (_, n) =>
        flowbook.follow(field, noise.slice(2 * n, 2 * n + 2), { steps: STEPS, t1: END }),
      );
      const straight = tracks[name].map((track) => {
        const [a, b] = [track[0], track.at(-1)];
        return Math.hypot(a[0] - b[0], a[1] - b[1]);
      });
      const total = tracks[name].reduce((sum, track) => sum + length(track), 0);
      detour[name] = total / straight.reduce((sum, s) => sum + s, 0);
    }
    panel.detour = detour; // for the tests
    panel.tracks = tracks;
    for (const name of Object.keys(runs))
      panel.plot({
        world: [-2.9, 2.9, -2.6, 2.6],
        aspect: 0.9,
        label: `Points of noise on the ${name} path, with their ways.`,
        draw: (plot, ctx, color) => {
          const k = Math.round((time / END) * STEPS);
          ctx.globalAlpha = 0.9;
          for (const track of tracks[name].slice(0, 40)) plot.line(track, color.path, 1.3);
          ctx.globalAlpha = 0.85;
          for (const track of tracks[name]) plot.dot(...track[k], 2.5, color.noise);
          ctx.globalAlpha = 1;
          for (let n = 0; n < DATA.length; n += 2) plot.dot(DATA[n], DATA[n + 1], 5, color.data);
          plot.line(tracks[name][7], color.ink, 2, [6, 4]);
          plot.dot(...tracks[name][7][k], 5, color.ink);
          plot.text(-2.8, 2.3, name, color.ink);
        },
      });
    panel.clock({
      seconds: 5,
      end: END,
      tick: (t) => {
        time = t;
        panel.redraw();
      },
    });
    panel.say(
      `Length of the way over the straight distance: OT ${detour.OT.toFixed(2)}, ` +
        `VP ${detour.VP.toFixed(2)}.`,
    );
  },
);
