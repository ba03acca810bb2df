"use strict";
// Films: `flowbook.plots.film` (chapter `plots`) leaves a sprite sheet on the page;
// this plays it, and lets the reader stop, move and slow it. With `data-loop` it begins
// again when it is over. Without a script the last frame is shown.
(() => {
  const calm = matchMedia("(prefers-reduced-motion: reduce)");

  const play = (film) => {
    const { frames, columns, rows, seconds } = Object.fromEntries(
      Object.entries(film.dataset).map(([key, value]) => [key, Number(value)]),
    );
    const sheet = film.querySelector(".film-sheet");
    const bar = document.createElement("div");
    bar.className = "film-bar";
    bar.innerHTML =
      '<button type="button" aria-label="Play"></button>' +
      `<input type="range" min="0" max="${frames - 1}" step="1" aria-label="Frame">` +
      '<select aria-label="Speed"><option value="0.25">¼ ×</option>' +
      '<option value="0.5">½ ×</option><option value="1" selected>1 ×</option>' +
      '<option value="2">2 ×</option></select>';
    const [button, range, speed] = bar.children;
    film.append(bar);
    film.classList.add("film-on");
    const loop = "loop" in film.dataset;
    const end = loop ? frames * (1 + 1.5 / seconds) : frames; // a look at the last frame

    let position = frames - 1; // the last frame, as without a player
    let last = null;

    const show = (value) => {
      position = value;
      const k = Math.min(frames - 1, Math.floor(position));
      const share = (n, of) => (of > 1 ? (100 * n) / (of - 1) : 0);
      const x = share(k % columns, columns);
      const y = share(Math.floor(k / columns), rows);
      sheet.style.backgroundPosition = `${x}% ${y}%`;
      range.value = k;
      range.setAttribute("aria-valuetext", `${k + 1} of ${frames}`);
    };
    const running = (on) => {
      last = on ? performance.now() : null;
      button.setAttribute("aria-label", on ? "Pause" : "Play");
      bar.classList.toggle("running", on);
      if (on) requestAnimationFrame(step);
    };
    const step = (now) => {
      if (last === null) return;
      const passed = Math.max(0, now - last) / 1000;
      last = now;
      show(position + (passed * speed.value * frames) / seconds);
      if (position >= end && loop) show(0);
      if (position >= end) running(false);
      else requestAnimationFrame(step);
    };
    const start = () => {
      if (position >= frames - 1) show(0);
      running(true);
    };

    // By itself when it comes into sight, once, or as long as it is seen; never where
    // reduced motion is asked for, and never against the reader.
    const seen = new IntersectionObserver(
      (entries) => {
        const there = entries.at(-1).isIntersecting;
        if (!there && last !== null) running(false);
        if (!there) return;
        if (!loop) seen.disconnect();
        if (!calm.matches) start();
      },
      { threshold: 0.6 },
    );
    const taken = () => seen.disconnect();
    button.addEventListener("click", () => {
      taken();
      if (last === null) start();
      else running(false);
    });
    range.addEventListener("input", () => {
      taken();
      running(false);
      show(range.valueAsNumber);
    });
    show(position);
    seen.observe(sheet);
  };

  document.querySelectorAll("figure.film").forEach(play);
})();
