"use strict";
// Chapter `overview`: the chapter's ring of five Gaussians, and the four steps of the
// idea on one clock: lines, their mean arrow, the field of all mean arrows, its flow.
// Formulas: `flowbook.weights`, `flowbook.velocity`, `flowbook.widened` in math.js.
flowbook.panel(
  "idea",
  "Touch it: four steps, one clock",
  "Choose a step, then press Play or move the time. In step 2 the pointer moves the " +
    "place; so does a tap, a drag, or the arrow keys once the green point has the focus.",
  (panel) => {
    const COUNT = 240;
    const STEPS = 60;
    const SHOWN = 60; // of the lines and ways; all points are shown
    const LATE = 0.97; // from here on the lines through a place all end beside it
    const path = flowbook.paths.ot();
    const ring = [0, 1, 2, 3, 4].flatMap((k) => {
      const angle = (2 * Math.PI * k) / 5;
      return [2 * Math.cos(angle), 2 * Math.sin(angle)];
    });
    const mixture = flowbook.widened(path, 0.25);
    const field = (x, t) => flowbook.velocity(mixture, ring, 2, x, t);
    const noise = flowbook.normals(2 * COUNT, 11);
    const spread = flowbook.normals(2 * COUNT, 12);
    const data = spread.map((z, i) => ring[i % 10] + 0.25 * z); // the five in turn
    const pair = (values, n) => [values[2 * n], values[2 * n + 1]];
    const all = Array.from({ length: COUNT }, (_, n) => n);
    const ways = all.map((n) => flowbook.follow(field, pair(noise, n), { steps: STEPS }));
    const grid = [];
    for (let x = -3.9; x < 4; x += 0.6)
      for (let y = -2.4; y < 2.5; y += 0.6) grid.push([x, y]);
    let step = 0;
    let time = 0;
    let place = null; // a handle, in step 2 only

    const onLine = (n, t) =>
      [0, 1].map((i) => t * data[2 * n + i] + (1 - t) * noise[2 * n + i]);
    const onWay = (n, t) => {
      const k = Math.min(Math.floor(t * STEPS), STEPS - 1);
      const [a, b] = [ways[n][k], ways[n][k + 1]];
      return a.map((v, i) => v + (t * STEPS - k) * (b[i] - v));
    };
    const hue = (color) =>
      time === 0 ? color.noise : time === 1 ? color.data : color.path;

    const ends = (plot, color, last) => {
      for (const n of all.slice(0, SHOWN)) {
        plot.dot(...pair(noise, n), 2, color.noise);
        plot.dot(...last(n), 2, color.data);
      }
    };
    const lines = (plot, ctx, color) => {
      ctx.globalAlpha = 0.35;
      for (const n of all.slice(0, SHOWN))
        plot.line([pair(noise, n), pair(data, n)], color.path, 1);
      ctx.globalAlpha = 0.6;
      ends(plot, color, (n) => pair(data, n));
      ctx.globalAlpha = 0.9;
      for (const n of all) plot.dot(...onLine(n, time), 2.5, hue(color));
    };
    const through = (plot, ctx, color) => {
      const t = Math.min(time, LATE);
      const here = [place.x, place.y];
      const shares = flowbook.weights(path, data, 2, here, t);
      for (const n of all) {
        if (shares[n] < 0.001) continue;
        const end = pair(data, n);
        const start = here.map((v, i) => (v - t * end[i]) / (1 - t));
        ctx.globalAlpha = Math.min(0.9, 0.1 + 15 * shares[n]);
        plot.line([start, end], color.path, 1);
        plot.dot(...start, 2.5, color.noise);
        plot.dot(...end, 2.5, color.data);
      }
      ctx.globalAlpha = 1;
      const arrow = field(here, t).map((v) => (1 - t) * v);
      plot.arrow(...here, ...arrow, color.ink, 4);
    };
    const arrows = (plot, ctx, color) => {
      for (const [x, y] of grid) {
        const [u, v] = field([x, y], time);
        const scale = Math.min(0.15, 0.5 / Math.hypot(u, v)); // none longer than 0.5
        plot.arrow(x, y, scale * u, scale * v, color.path, 1.3);
      }
    };
    const flow = (plot, ctx, color) => {
      ctx.globalAlpha = 0.35;
      for (const n of all.slice(0, SHOWN)) plot.line(ways[n], color.path, 1);
      ctx.globalAlpha = 0.6;
      ends(plot, color, (n) => ways[n].at(-1));
      ctx.globalAlpha = 0.9;
      for (const n of all) plot.dot(...onWay(n, time), 2.5, hue(color));
    };
    const pictures = [lines, through, arrows, flow];
    const draw = (plot, ctx, color) => {
      pictures[step](plot, ctx, color);
      ctx.globalAlpha = 1;
    };

    const said = () => {
      const t = Math.min(time, LATE);
      if (step === 0)
        return "Each noise point goes straight to a data point drawn for it. The lines cross.";
      if (step === 2)
        return "The mean arrow at every place, at this time: a field. No arrow is drawn longer than 0.5.";
      if (step === 3)
        return "Each point follows the field. No two ever meet, and at each time the cloud is spread as in step 1.";
      const [u, v] = field([place.x, place.y], t);
      return (
        `Lines that pass here at t = ${t.toFixed(2)}, the likelier the stronger. Their mean ` +
        `velocity is (${u.toFixed(2)}, ${v.toFixed(2)}), drawn 1 − t times as long.`
      );
    };
    let soon = 0; // the words wait until nothing moves
    const show = () => {
      clearTimeout(soon);
      soon = setTimeout(() => panel.say(said()), 200);
      panel.redraw();
    };

    panel.tabs("step", ["1 Lines", "2 Mean arrow", "3 Field", "4 Flow"], (k) => {
      place?.gone();
      step = k;
      place = null;
      if (k === 1) {
        const [x, y, label] = [0.5, 0, "the place"];
        const move = () => once();
        place = panel.handle(plot, { x, y, label, move, kind: "path" });
        if (time < 0.05 || time > LATE) clock.set(0.4);
      }
      show();
    });
    const once = flowbook.once(show);
    const plot = panel.plot({
      world: [-4.2, 4.2, -2.8, 2.8],
      aspect: 2 / 3,
      label: "The step that was chosen, at the time that the clock shows.",
      draw,
    });
    for (const event of ["pointermove", "click"])
      plot.box.addEventListener(event, (e) => {
        if (event === "click" || e.pointerType === "mouse") place?.to(...plot.at(e));
      });
    const clock = panel.clock({ tick: (t) => ((time = t), show()) });
    Object.assign(panel, { onLine, onWay, place: () => place, count: COUNT }); // for the tests
    panel.say(said());
  },
);
