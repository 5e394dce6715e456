"use strict";
// A click on a column's head sorts by it, a second one the other way round; #sort=2 sorts by the third when loaded.
const number = (text) => parseFloat(text.replace(/[,+]/g, ""));

function sort(table, column, descending) {
  const key = (row) => row.cells[column].textContent.trim();
  const compare = (one, other) => {
    const [a, b] = [number(key(one)), number(key(other))];
    if (Number.isNaN(a) !== Number.isNaN(b)) return Number.isNaN(a) ? 1 : -1; // what is missing comes last
    return (Number.isNaN(a) ? key(one).localeCompare(key(other), "en", {numeric: true}) : a - b) * (descending ? -1 : 1);
  };
  table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
  [...table.tHead.rows[0].cells].forEach((head, index) => {
    if (index === column) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  });
}

const asked = /^#sort=(\d+)$/.exec(location.hash);
for (const table of document.querySelectorAll(".sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () =>
    sort(table, column, head.getAttribute("aria-sort") === "ascending")));
  if (asked && asked[1] < heads.length) sort(table, Number(asked[1]), false);
}

// The legend hides and shows the lines of an experiment, and those of single runs.
for (const box of document.querySelectorAll("[data-series]")) {
  const update = () => box.closest(".curves").querySelectorAll(`.series-${box.dataset.series}`).forEach((line) => {
    const boxes = [...box.closest(".legend").querySelectorAll("[data-series]")];
    const hides = (other) => !other.checked && line.classList.contains(`series-${other.dataset.series}`);
    line.classList.toggle("hidden", boxes.some(hides));
  });
  box.addEventListener("change", update);
  update(); // a reloaded page keeps its boxes
}

// A table as CSV: numbers without separators of thousands, mean and standard deviation in two columns.
const spread = /^([-+\d.,]+) ± ([\d.]+)$/;

function cellAsCsv(text) {
  if (text === "–") return "";
  if (/^[-+]?\d[\d,]*(\.\d+)?$/.test(text)) return text.replace(/[,+]/g, "");
  const safe = /^[=+\-@]/.test(text) ? `'${text}` : text; // a spreadsheet would run it as a formula
  return /[",\n]/.test(safe) ? `"${safe.replace(/"/g, '""')}"` : safe;
}

function asCsv(table) {
  const rows = [...table.rows].map((row) => [...row.cells].map((cell) => cell.textContent.trim().replace(/\s+/g, " ")));
  const isSpread = rows[0].map((_, column) => rows.some((row) => spread.test(row[column])));
  return rows.map((row, index) => row.flatMap((text, column) => {
    if (!isSpread[column]) return [text];
    const parts = spread.exec(text);
    if (parts) return [parts[1], parts[2]];
    return [text, index === 0 ? `standard deviation of ${text}` : ""];
  }).map(cellAsCsv).join(",")).join("\n") + "\n";
}

async function copy(text, bar) {
  const said = bar.querySelector("[role=status]");
  bar.querySelector("textarea")?.remove();
  try {
    await navigator.clipboard.writeText(text);
    said.textContent = "copied";
  } catch { // no clipboard: older browsers, or not allowed
    const area = document.createElement("textarea");
    Object.assign(area, {value: text, readOnly: true});
    area.setAttribute("aria-label", "the table as CSV");
    bar.append(area);
    area.select();
    if (document.execCommand("copy")) {
      area.remove();
      said.textContent = "copied";
    } else {
      said.textContent = "press Ctrl+C to copy the selected text";
    }
  }
}

for (const table of document.querySelectorAll("table[data-title]")) {
  const bar = document.createElement("div");
  bar.className = "copy";
  const button = document.createElement("button");
  Object.assign(button, {type: "button", textContent: "Copy as CSV"});
  button.setAttribute("aria-label", `Copy as CSV: ${table.dataset.title}`);
  const said = document.createElement("span");
  said.setAttribute("role", "status");
  bar.append(button, said);
  button.addEventListener("click", () => copy(asCsv(table), bar));
  table.parentElement.after(bar);
}

// What is wider than the screen scrolls, also by the arrow keys.
const areas = new ResizeObserver((entries) => entries.forEach(({target}) => {
  if (target.scrollWidth > target.clientWidth) {
    target.tabIndex = 0;
    target.setAttribute("role", "region");
    target.setAttribute("aria-label", target.firstElementChild.dataset.title ?? "table");
  } else {
    ["tabindex", "role", "aria-label"].forEach((name) => target.removeAttribute(name));
  }
}));
document.querySelectorAll(".scroll").forEach((area) => areas.observe(area));

let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details.run:not([open])")];
  closed.forEach((run) => { run.open = true; });
});
addEventListener("afterprint", () => closed.forEach((run) => { run.open = false; }));
