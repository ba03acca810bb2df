// Hover or focus a link to a theorem, an equation, a term, a reference or a function,
// and see it beside the link. The previews of a page are a script, loaded when first
// asked for: so they work without a server. Escape closes. A finger follows the link
// instead.
(() => {
  const root = new URL(document.documentElement.dataset.content_root || "./", location.href).href;
  const WAIT = 180; // ms: long enough not to flicker under a passing pointer
  const tip = document.createElement("div");
  tip.id = "preview";
  tip.className = "preview";
  tip.setAttribute("role", "tooltip");
  tip.hidden = true;
  let current = null;
  let timer = 0;
  const loading = new Map();

  // The page and the name that a link leads to, if it is a page of this book.
  const target = (link) => {
    const url = new URL(link.href, location.href);
    const page = url.origin + url.pathname;
    const inside = page.startsWith(root) || url.href.startsWith(root);
    if (!inside || !url.hash || !page.endsWith(".html")) return null;
    const path = decodeURIComponent(page.slice(root.length));
    return { doc: path.replace(/\.html$/, ""), id: decodeURIComponent(url.hash.slice(1)) };
  };

  const load = (doc) => {
    if (!loading.has(doc))
      loading.set(
        doc,
        new Promise((resolve) => {
          const script = document.createElement("script");
          script.src = `${root}_static/previews/${doc}.js`;
          script.onload = script.onerror = resolve;
          document.head.append(script);
        }),
      );
    return loading.get(doc).then(() => window.pressPreviews?.[doc]);
  };

  const place = (link) => {
    const at = link.getClientRects()[0];
    const room = document.documentElement.clientWidth;
    const left = Math.max(8, Math.min(at.left, room - tip.offsetWidth - 8));
    const below = at.bottom + tip.offsetHeight + 12 < innerHeight || at.top < tip.offsetHeight + 12;
    tip.style.left = `${left + scrollX}px`;
    tip.style.top = `${scrollY + (below ? at.bottom + 6 : at.top - tip.offsetHeight - 6)}px`;
  };

  const show = async (link) => {
    const { doc, id } = target(link);
    current = link;
    const html = (await load(doc))?.[id];
    if (!html || current !== link) return;
    tip.innerHTML = html; // written by the build from the book's own pages
    tip.hidden = false;
    if (!tip.isConnected) document.body.append(tip);
    const formulas = [...tip.querySelectorAll(".math")];
    if (formulas.length && window.MathJax?.typesetPromise) {
      tip.style.visibility = "hidden";
      await MathJax.startup.promise;
      await MathJax.typesetPromise(formulas);
      tip.style.visibility = "";
    }
    if (current !== link) return;
    link.setAttribute("aria-describedby", tip.id);
    place(link);
  };

  const hide = () => {
    clearTimeout(timer);
    current?.removeAttribute("aria-describedby");
    current = null;
    tip.hidden = true;
    window.MathJax?.typesetClear?.([tip]);
  };

  const soon = (action) => {
    clearTimeout(timer);
    timer = setTimeout(action, WAIT);
  };

  const enter = (event) => {
    if (event.pointerType && event.pointerType !== "mouse") return;
    const link = event.target;
    if (link === current) return clearTimeout(timer);
    soon(() => {
      hide();
      show(link);
    });
  };
  const leave = (event) => event.pointerType !== "touch" && soon(hide);

  addEventListener("DOMContentLoaded", () => {
    for (const link of document.querySelectorAll("article a[href*='#']:not(.headerlink)")) {
      if (!target(link) || link.closest("nav")) continue;
      link.removeAttribute("title"); // the tooltip for pages without scripts
      link.addEventListener("pointerenter", enter);
      link.addEventListener("pointerleave", leave);
      link.addEventListener("focus", (e) => link.matches(":focus-visible") && enter(e));
      link.addEventListener("blur", hide);
    }
    // One may move onto the preview, to read or to scroll it.
    tip.addEventListener("pointerenter", () => clearTimeout(timer));
    tip.addEventListener("pointerleave", leave);
    addEventListener("keydown", (e) => e.key === "Escape" && hide());
    addEventListener("click", hide);
  });
})();
