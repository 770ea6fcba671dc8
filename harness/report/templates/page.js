"use strict";
(() => {
  const all = (where, what) => Array.from(where.querySelectorAll(what));
  const one = (id) => document.getElementById(id);

  // Theme: the reader's system decides until the button is pressed.
  const theme = one("theme");
  const dark = () => {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  };
  const keep = (value) => {
    try { localStorage.setItem("theme", value); } catch { /* a page from a disk may not keep */ }
  };
  const kept = () => {
    try { return localStorage.getItem("theme"); } catch { return null; }
  };
  const told = () => {
    theme.textContent = dark() ? "Light" : "Dark";
    theme.setAttribute("aria-label", dark() ? "Light colours" : "Dark colours");
  };
  if (["light", "dark"].includes(kept())) document.documentElement.dataset.theme = kept();
  theme.hidden = false;
  theme.addEventListener("click", () => {
    document.documentElement.dataset.theme = dark() ? "light" : "dark";
    keep(document.documentElement.dataset.theme);
    told();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", told);
  told();

  // Sorting: what has no value stays last, whichever way.
  const value = (row, place, kind) => {
    const cell = row.cells[place];
    if (kind === "text") return cell.textContent.trim();
    return cell.dataset.value === "" ? null : Number(cell.dataset.value);
  };
  const sort = (head) => {
    const table = head.closest("table"), body = table.tBodies[0], kind = head.dataset.sort;
    const first = head.dataset.first || "ascending";
    const other = first === "ascending" ? "descending" : "ascending";
    const way = head.getAttribute("aria-sort") === first ? other : first;
    all(table, "th[aria-sort]").forEach((each) => each.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", way);
    const sign = way === "ascending" ? 1 : -1, place = head.cellIndex;
    const keyed = Array.from(body.rows, (row) => [value(row, place, kind), row]);
    keyed.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      return sign * (kind === "text" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
    });
    body.append(...keyed.map(([, row]) => row));
  };
  all(document, "th[data-sort]").forEach((head) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sort(head));
  });

  // Filters.
  const form = one("filters"), said = form.querySelector("output");
  const boards = all(document, "section.board"), others = all(document, "figure[data-task], section.pictures, details.origin");
  const rowsOf = new Map(boards.map((board) => [board, all(board, "tr[data-model]")]));
  const total = all(document, ".standings tr[data-model]").length;
  const entries = new Map(all(document, "nav [data-for]").map((each) => [each.dataset.for, each]));
  const lower = new Map();
  const textOf = (node, more) => {
    if (!lower.has(node)) lower.set(node, `${node.querySelector("th")?.textContent ?? node.dataset.model} ${more}`.toLowerCase());
    return lower.get(node);
  };
  const filter = () => {
    const words = form.text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const { task, dataset, family, registers, pairs } = form.elements;
    const place = (node) => (!task.value || node.dataset.task === task.value) && (!dataset.value || node.dataset.dataset === dataset.value);
    const spoken = (node, where) => words.length === 0 || words.every((word) => textOf(node, `${where.dataset.task} ${where.dataset.dataset}`).includes(word));
    let shown = 0, anything = false;
    for (const board of boards) {
      let kept = 0;
      const here = place(board);
      for (const row of rowsOf.get(board)) {
        const fits = here && spoken(row, board) && (!family.value || row.dataset.family === family.value) &&
          (!registers.checked || Number(row.dataset.registers) > 0) && (!pairs.checked || "pair" in row.dataset);
        row.hidden = !fits;
        kept += fits;
        if (fits && row.closest(".standings")) shown += 1;
      }
      for (const table of all(board, ".pairs")) table.closest(".scroll").hidden = all(table, "tbody tr:not([hidden])").length === 0;
      board.hidden = kept === 0;
      anything ||= kept > 0;
      const entry = entries.get(board.id);
      if (entry) entry.hidden = kept === 0;
    }
    for (const node of others) {
      node.hidden = !(place(node) && spoken(node, node) && (!family.value || !node.dataset.family || node.dataset.family === family.value));
    }
    one("nothing").hidden = anything;
    said.textContent = shown === total ? `${total} rows` : `${shown} of ${total} rows`;
  };
  form.hidden = false;
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(filter));
  filter();

  // Records and pictures come up in a dialog; without a script their links lead to them.
  const dialog = one("dialog"), body = one("dialog-body");
  const open = (title, content, wide) => {
    one("dialog-title").textContent = title;
    body.replaceChildren(...content);
    dialog.classList.toggle("wide", wide);
    dialog.showModal();
    dialog.scrollTop = 0;
  };
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => body.replaceChildren());
  document.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    const link = event.target.closest("a.record, a.picture");
    if (!link) return;
    if (link.matches(".record")) {
      const origin = one(link.getAttribute("href").slice(1));
      const copies = Array.from(origin.children).slice(1).map((each) => each.cloneNode(true));
      open(origin.querySelector("summary").textContent, copies, false);
    } else {
      const picture = link.querySelector("img").cloneNode(), file = document.createElement("p"), to = document.createElement("a");
      to.href = link.getAttribute("href");
      to.textContent = "the file, not reduced";
      file.append(to);
      open(link.closest("figure").querySelector("figcaption").textContent, [picture, file], true);
    }
    event.preventDefault();
  });
})();
