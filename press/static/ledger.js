// The ledger, filtered: by chapter, by words, by kind of row. Without a script the
// whole ledger stands there.
addEventListener("DOMContentLoaded", () => {
  const article = document.querySelector("article section");
  const chapters = [...article.querySelectorAll(":scope > section")];
  const make = (tag, set) => Object.assign(document.createElement(tag), set);

  const form = make("form", { className: "ledger-filter" });
  form.setAttribute("role", "search");
  form.setAttribute("aria-label", "Filter the ledger");
  const field = (label, control) => {
    const box = make("div", { className: "field" });
    control.id = `ledger-${label.toLowerCase()}`;
    box.append(make("label", { textContent: label, htmlFor: control.id }), control);
    form.append(box);
    return control;
  };
  const words = field("Words", make("input", { type: "search", autocomplete: "off" }));
  const chapter = field("Chapter", make("select", {}));
  chapter.append(make("option", { value: "", textContent: "all chapters" }));
  for (const [i, section] of chapters.entries()) {
    const heading = section.querySelector("h2").cloneNode(true);
    heading.querySelector(".headerlink")?.remove();
    chapter.append(make("option", { value: String(i), textContent: heading.textContent.trim() }));
  }
  const kind = field("Show", make("select", {}));
  const KINDS = [
    ["", "everything"],
    ["✓", "checks that held"],
    ["✗", "wrong on purpose, rejected"],
    ["no", "statements without a check"],
  ];
  for (const [value, textContent] of KINDS) kind.append(make("option", { value, textContent }));
  const count = make("p", { className: "ledger-count" });
  count.setAttribute("role", "status");
  form.append(count);
  chapters[0].before(form);

  const plain = (text) => text.toLowerCase();
  const filter = () => {
    const asked = plain(words.value).split(/\s+/).filter(Boolean);
    let rows = 0;
    let statements = 0;
    for (const [i, section] of chapters.entries()) {
      const here = chapter.value === "" || chapter.value === String(i);
      const blocks = section.querySelectorAll(":scope > section");
      let shown = 0;
      for (const block of blocks.length ? blocks : [section]) {
        const head = plain([...block.children].filter((e) => !e.querySelector("table")).map((e) => e.textContent).join(" "));
        let kept = 0;
        for (const row of block.querySelectorAll("tbody tr")) {
          const text = `${head} ${plain(row.textContent)}`;
          const fits = asked.every((w) => text.includes(w));
          const right = kind.value === "" || row.textContent.trim().startsWith(kind.value);
          row.hidden = !(here && fits && right);
          if (!row.hidden) kept++;
        }
        const bare = !block.querySelector("tbody tr");
        const alone = bare && here && (kind.value === "" || kind.value === "no") && asked.every((w) => head.includes(w));
        block.hidden = !kept && !alone;
        rows += kept;
        if (!block.hidden) (shown++, head.includes("hypotheses.") && statements++);
      }
      section.hidden = !shown;
    }
    count.textContent = `${statements} statements, ${rows} rows`;
  };
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  filter();
});
