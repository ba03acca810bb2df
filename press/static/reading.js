// Long proofs, code that one looks up, and checks in a row fold. Each opens when something
// in it is asked for, and all of a kind by a switch that is remembered. This runs before
// the page is drawn, so that nothing jumps; without it, and on paper, all stands open.
(() => {
  const remembered = (key) => {
    try {
      return localStorage.getItem(key);
    } catch {}
  };
  const remember = (key, choice) => {
    try {
      localStorage.setItem(key, choice);
    } catch {}
  };
  const kind = (key, all, what) => ({ key, all, what, choice: remembered(key) });
  const proofs = kind("proofs", "open", "details.fold.long");
  const code = kind("code", "all", "details.code, details.checks");
  const KINDS = [proofs, code];
  const FOLDS = KINDS.map((k) => k.what).join();

  const asked = () => document.getElementById(decodeURIComponent(location.hash.slice(1)));

  // The folds around a target; for the mark of exported code those in the cell below it.
  const holding = (target) => {
    const found = [...(target?.closest(".exported")?.nextElementSibling?.querySelectorAll("details.code") ?? [])];
    for (let d = target?.closest("details"); d; d = d.parentElement.closest("details")) found.push(d);
    return found;
  };

  const fold = (details) => {
    const { choice, all } = KINDS.find((k) => details.matches(k.what));
    details.open = choice === all || holding(asked()).includes(details);
  };

  const button = (text, action) => {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = text;
    made.addEventListener("click", action);
    return made;
  };
  const choose = (k, choice) => {
    k.choice = choice;
    remember(k.key, choice);
    document.querySelectorAll(k.what).forEach((d) => (d.open = choice === k.all));
  };

  const ofProofs = () => {
    const say = () => (made.textContent = proofs.choice === "open" ? "Fold long proofs" : "Open all proofs");
    const made = button("", () => {
      choose(proofs, proofs.choice === "open" ? "folded" : "open");
      say();
    });
    made.className = "all-proofs";
    say();
    return made;
  };

  const ofCode = () => {
    const group = document.createElement("span");
    group.className = "code-switch";
    group.setAttribute("role", "group");
    group.setAttribute("aria-label", "Code");
    const choices = ["essential", "all"].map((choice) => [choice, button(choice, () => press(choice))]);
    const press = (choice) => {
      choose(code, choice);
      say();
    };
    const say = () => {
      for (const [choice, b] of choices) b.setAttribute("aria-pressed", (choice === "all") === (code.choice === "all"));
    };
    group.append("code: ", ...choices.map(([, b]) => b));
    say();
    return group;
  };

  const fill = (place) => {
    if (place.childElementCount) return;
    if ("code" in place.dataset) place.append(ofCode());
    if ("proofs" in place.dataset) place.append(ofProofs());
  };

  const each = (root, what, action) => {
    if (root.matches?.(what)) action(root);
    root.querySelectorAll?.(what).forEach(action);
  };
  new MutationObserver((changes, watch) => {
    for (const { addedNodes } of changes)
      for (const node of addedNodes) {
        each(node, FOLDS, fold);
        each(node, "article .switches", fill);
      }
    if (document.readyState !== "loading") watch.disconnect();
  }).observe(document, { childList: true, subtree: true });

  const reveal = () => {
    const shut = holding(asked()).filter((d) => !d.open);
    shut.forEach((d) => (d.open = true));
    if (shut.length) asked().scrollIntoView();
  };
  addEventListener("hashchange", reveal);

  // A link to what one has just folded does not change the hash.
  addEventListener("click", (event) => {
    const link = event.target.closest?.("a[href*='#']");
    if (link && link.href === location.href) setTimeout(reveal);
  });

  let shut = [];
  addEventListener("beforeprint", () => {
    shut = [...document.querySelectorAll("details:not([open])")];
    shut.forEach((d) => (d.open = true));
  });
  addEventListener("afterprint", () => shut.forEach((d) => (d.open = false)));

  // The copy button of a cell in pieces takes all of them.
  const copyWhole = (input, k) => {
    input.id ||= `cell-in-pieces-${k}`;
    for (const b of input.querySelectorAll(".copybtn")) b.dataset.clipboardTarget = `#${input.id}`;
  };

  addEventListener("DOMContentLoaded", () => {
    each(document, "article .switches", fill);
    document.querySelectorAll(FOLDS).forEach(fold);
    reveal();
    document.querySelectorAll(".cell.divided > .cell_input").forEach(copyWhole);
  });
})();
