// Proofs fold, and open when something in them is asked for. This runs before the page
// is drawn, so that nothing jumps; without it every proof is open.
(() => {
  const KEY = "proofs";
  let choice = null;
  try {
    choice = localStorage.getItem(KEY);
  } catch {}
  const asked = () => decodeURIComponent(location.hash.slice(1));

  const fold = (proof) => {
    const wanted = asked() && (proof.id === asked() || proof.querySelector(`[id="${CSS.escape(asked())}"]`));
    if (choice !== "open" && proof.classList.contains("long") && !wanted) proof.open = false;
  };
  new MutationObserver((changes, watch) => {
    for (const { addedNodes } of changes)
      for (const node of addedNodes)
        if (node.matches?.("details.fold")) fold(node);
        else node.querySelectorAll?.("details.fold").forEach(fold);
    if (document.readyState !== "loading") watch.disconnect();
  }).observe(document, { childList: true, subtree: true });

  const reveal = () => {
    const target = document.getElementById(asked());
    const around = target?.closest("details");
    if (!around || around.open) return;
    for (let d = around; d; d = d.parentElement.closest("details")) d.open = true;
    target.scrollIntoView();
  };
  addEventListener("hashchange", reveal);

  // A link to the proof that one has just folded does not change the hash.
  addEventListener("click", (event) => {
    const link = event.target.closest?.("a[href*='#']");
    if (link && link.href === location.href) setTimeout(reveal);
  });

  addEventListener("beforeprint", () => {
    document.querySelectorAll("details").forEach((d) => (d.open = true));
  });

  addEventListener("DOMContentLoaded", () => {
    document.querySelectorAll("details.fold").forEach(fold);
    reveal();
    const first = document.querySelector("details.fold.long");
    const heading = document.querySelector("article h1");
    if (!first || !heading) return;
    const button = document.createElement("button");
    button.className = "all-proofs";
    button.type = "button";
    const say = () => (button.textContent = choice === "open" ? "Fold long proofs" : "Open all proofs");
    button.addEventListener("click", () => {
      choice = choice === "open" ? "folded" : "open";
      try {
        localStorage.setItem(KEY, choice);
      } catch {}
      document.querySelectorAll("details.fold.long").forEach((d) => (d.open = choice === "open"));
      say();
    });
    say();
    heading.after(button);
  });
})();
