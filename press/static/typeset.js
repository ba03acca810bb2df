// MathJax, from this site: only the parts that the book needs, and a page at a time in
// pieces, what one sees first: a long page stays usable while its formulas are set.
(() => {
  const LONG = 35; // ms: a piece of work after which the page may answer
  const PATIENCE = 2000; // ms: then a text shows its formulas as they are written
  const rest = () => new Promise((resolve) => setTimeout(resolve));

  // Lines break elsewhere once formulas are set: what one sees first waits for that.
  const { classList } = document.documentElement;
  classList.add("typesetting");
  const show = () => classList.remove("typesetting");
  setTimeout(show, PATIENCE);

  const typeset = async () => {
    const all = [...document.querySelectorAll(".math")];
    const near = (e) => {
      const box = e.getBoundingClientRect();
      return box.bottom > -200 && box.top < innerHeight + 200;
    };
    const seen = all.filter(near);
    const later = all.filter((e) => !seen.includes(e));
    if (seen.length) await MathJax.typesetPromise(seen);
    await document.fonts.ready;
    requestAnimationFrame(() => requestAnimationFrame(show)); // not while they move
    let touched = false;
    for (const kind of ["wheel", "touchstart", "keydown", "pointerdown"])
      addEventListener(kind, () => (touched = true), { once: true, passive: true });
    let many = 4;
    for (let i = 0; i < later.length; ) {
      await rest();
      const start = performance.now();
      await MathJax.typesetPromise(later.slice(i, i + many));
      i += many;
      many = performance.now() - start > LONG ? Math.max(1, many >> 1) : Math.min(16, many + 1);
    }
    // Formulas above have pushed down what the address asks for.
    const asked = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (asked && !touched) asked.scrollIntoView();
    reach();
  };

  // A formula wider than the page scrolls in its box: let the arrow keys do that, too.
  let due = 0;
  const reach = () => {
    cancelAnimationFrame(due); // many folds at once ask for this once
    due = requestAnimationFrame(look);
  };
  const look = () => {
    for (const box of document.querySelectorAll("article :is(div.math, p, pre, table, .output, .pst-scrollable-table-container)"))
      if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
      else if (box.getAttribute("tabindex") === "0") box.removeAttribute("tabindex");
  };
  addEventListener("resize", reach);
  addEventListener("load", reach);
  addEventListener("toggle", reach, true);

  const given = window.MathJax ?? {};
  window.MathJax = {
    ...given,
    loader: { load: ["core", "input/tex", "output/chtml", "a11y/assistive-mml"] },
    startup: { typeset: false, pageReady: typeset },
  };
})();
