// The search: it knows the book's parts (sections, statements, terms, functions) by
// name and by their text, and works without a server. `_static/search-data.js` is
// written by the build (press/ext/press_finish.py).
(() => {
  const MOST = 40;
  const AROUND = 110; // characters of an excerpt on either side of the find
  // How much a name counts: what explains comes before what lists.
  const KINDS = { section: 1, statement: 1.15, term: 1.05, code: 0.75, exercise: 0.6 };
  const LISTS = /^(ledger|bibliography|changelog|glossary|nbs\/slips|api\/index)/;
  const USES = /^(check|wrong on purpose)|at work/i; // sections that use a thing
  const SAID = { statement: "", section: "", term: "Glossary", code: "API", exercise: "" };

  const plain = (text) =>
    text
      .normalize("NFKD")
      .replace(/[\u0300-\u036f]/g, "")
      .toLowerCase()
      .replace(/[‐-–—]/g, "-");
  const split = (text) => plain(text).match(/[\p{L}\p{N}]+/gu) ?? [];
  const stem = (word) => (word.length > 3 ? word.replace(/(ies|es|s|ing|ed)$/, "") : word);
  const words = (text) => split(text).map(stem);
  const bare = (title) => title.replace(/^(\d+|[A-Z]) · /, "");

  // How well a name fits: 10 the very words, 0 not at all.
  const fit = (asked, title) => {
    const has = words(title);
    if (!has.length) return 0;
    const phrase = ` ${asked.join(" ")} `;
    const whole = ` ${has.join(" ")} `;
    if (whole === phrase) return 10;
    if (whole.startsWith(phrase)) return 7.5 + asked.length / has.length;
    if (whole.includes(phrase)) return 6 + asked.length / has.length;
    const shared = asked.filter((w) => has.includes(w)).length;
    if (shared === asked.length) return 4 + shared / has.length;
    return (2 * shared) / asked.length;
  };

  const prepare = ([pages, rows]) => {
    const tops = new Set();
    return rows.map(([page, id, kind, title, names, text]) => {
      const top = kind === "section" && !tops.has(page);
      tops.add(page);
      const has = words(text);
      return { page, id, kind, title, names, text, top, has, chapter: pages[page] };
    });
  };

  const score = (part, asked) => {
    const titles = [bare(part.title), ...part.names];
    if (part.kind === "statement") {
      const inside = part.title.match(/\((.*)\)\s*$/);
      const number = part.title.replace(/\s*\(.*$/, "");
      titles.push(number, ...(inside ? [inside[1]] : []));
    }
    if (part.kind === "code") titles.push(part.title.split(".").pop());
    const named = Math.max(...titles.map((title) => fit(asked, title)));
    const whole = ` ${part.has.join(" ")} `;
    const times = whole.split(` ${asked.join(" ")} `).length - 1;
    const all = asked.every((w) => part.has.includes(w) || titles.some((t) => words(t).includes(w)));
    if (!all) return 0;
    const told = 1.2 * Math.log2(1 + times) + (20 * times) / (200 + part.has.length);
    const kind = KINDS[part.kind] * (LISTS.test(part.page) ? 0.4 : 1) * (USES.test(part.title) ? 0.8 : 1);
    return kind * (named + (part.top && named > 5 ? 1 : 0) + told);
  };

  const find = (parts, query) => {
    const asked = words(query);
    if (!asked.length) return [];
    const rate = (terms) => parts.map((part) => ({ part, rank: score(part, terms) }));
    let found = rate(asked).filter((r) => r.rank > 0);
    if (!found.length && asked.length > 1) {
      const single = asked.map((word) => rate([word]));
      found = parts.map((part, i) => ({ part, rank: single.reduce((sum, r) => sum + r[i].rank, 0) }));
      found = found.filter((r) => r.rank > 0);
    }
    return found.sort((a, b) => b.rank - a.rank).slice(0, MOST);
  };

  // Some words around the first find; a formula is taken whole or not at all.
  const excerpt = (text, query) => {
    const pieces = text.split(/(\\\(.*?\\\)|\\\[.*?\\\])/);
    const first = split(query)[0] ?? "";
    let best = 0;
    let at = 0;
    pieces.some((piece, i) => {
      const here = plain(piece).indexOf(first);
      if (i % 2 === 0 && here >= 0) [best, at] = [i, here];
      return i % 2 === 0 && here >= 0;
    });
    const line = document.createElement("p");
    line.className = "context";
    let left = 2 * AROUND;
    const from = Math.max(0, at - AROUND);
    const cut = from ? pieces[best].indexOf(" ", from) : 0;
    if (best || cut > 0) line.append("… ");
    for (let i = best; i < pieces.length && left > 0; i++) {
      let piece = i === best ? pieces[i].slice(Math.max(0, cut)) : pieces[i];
      if (i % 2) {
        const formula = document.createElement("span");
        formula.className = "math";
        formula.textContent = piece.replace(/^\\\[/, "\\(").replace(/\\\]$/, "\\)");
        line.append(formula);
        left -= 12;
      } else {
        const rest = piece.length - left;
        if (rest > 0) piece = `${piece.slice(0, left).replace(/\s\S*$/, "")} …`;
        mark(line, piece, split(query));
        left -= piece.length + Math.max(0, rest);
      }
    }
    return line;
  };

  const mark = (line, text, asked) => {
    const any = asked.map((w) => stem(w)).join("|");
    for (const [i, piece] of text.split(new RegExp(`\\b((?:${any})[\\p{L}\\p{N}]*)`, "giu")).entries()) {
      if (i % 2) {
        const found = document.createElement("mark");
        found.textContent = piece;
        line.append(found);
      } else line.append(piece);
    }
  };

  const line = ({ part }, query) => {
    const item = document.createElement("li");
    const link = document.createElement("a");
    link.href = `${part.page}.html#${encodeURIComponent(part.id)}`;
    const name = part.kind === "term" ? part.title : bare(part.title) || part.title;
    link.append(...typed(part.top ? part.title : name));
    item.append(link);
    const where = part.top ? "" : [SAID[part.kind], part.chapter].filter(Boolean).join(" · ");
    if (where) {
      const place = document.createElement("span");
      place.className = "place";
      place.textContent = where;
      item.append(place);
    }
    if (part.text) item.append(excerpt(part.text, query));
    return item;
  };

  const typed = (title) =>
    title.split(/(\\\(.*?\\\))/).map((piece, i) => {
      if (i % 2 === 0) return piece;
      const formula = document.createElement("span");
      formula.className = "math";
      formula.textContent = piece;
      return formula;
    });

  addEventListener("DOMContentLoaded", async () => {
    const query = new URLSearchParams(location.search).get("q")?.trim() ?? "";
    const out = document.getElementById("search-results");
    for (const field of document.querySelectorAll('input[name="q"]')) field.value = query;
    if (!query || !out || !window.pressSearch) return;
    const found = find(prepare(window.pressSearch), query);
    const summary = document.createElement("p");
    summary.className = "search-summary";
    summary.setAttribute("role", "status");
    summary.textContent = found.length
      ? `${found.length}${found.length === MOST ? " or more" : ""} places for “${query}”, the likeliest first.`
      : `Nothing in this book matches “${query}”.`;
    const list = document.createElement("ol");
    list.className = "search";
    list.append(...found.map((f) => line(f, query)));
    out.replaceChildren(summary, list);
    await window.MathJax?.startup?.promise;
    const formulas = [...list.querySelectorAll(".math")];
    if (formulas.length) await window.MathJax?.typesetPromise?.(formulas);
  });
})();
