"use strict";
// A click on a column's head sorts by it, a second one the other way round; #sort=2 sorts by the third when loaded.
const table = document.querySelector(".sortable");
const heads = [...table.tHead.rows[0].cells];

function sort(column, descending) {
  const key = (row) => row.cells[column].textContent.trim();
  const number = (text) => parseFloat(text.replace(/[,+]/g, ""));
  const compare = (one, other) => {
    const [a, b] = [number(key(one)), number(key(other))];
    if (Number.isNaN(a) !== Number.isNaN(b)) return Number.isNaN(a) ? 1 : -1; // what is missing comes last
    return (Number.isNaN(a) ? key(one).localeCompare(key(other), "en", {numeric: true}) : a - b) * (descending ? -1 : 1);
  };
  table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
  heads.forEach((head, index) => {
    if (index === column) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  });
}

heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () =>
  sort(column, head.getAttribute("aria-sort") === "ascending")));
const asked = /^#sort=(\d+)$/.exec(location.hash);
if (asked && asked[1] < heads.length) sort(Number(asked[1]), false);

addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((run) => { run.open = true; }));
