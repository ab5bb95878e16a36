"""How a report looks on screens of any width, in the dark and on paper; its script."""

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1f2328; --faint: #59636e;
  --line: #d8dee4; --soft: #f6f8fa; --mark: #0969da; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15181d; --ink: #e4e8ed; --faint: #a0a9b4; --line: #333a43;
    --soft: #1d2128; --mark: #6cb0ff; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); max-width: 78rem; margin: 1.5rem auto 4rem;
  padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .8rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; padding-bottom: .2rem;
  border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
p { margin: .3rem 0; }
.verdict { border-left: .3rem solid var(--mark); background: var(--soft);
  padding: .6rem 1rem; font-size: 1.05rem; }
.figure { overflow-x: auto; margin: 1rem 0; }
img { max-width: 100%; height: auto; display: block; margin: 0 auto;
  background: #fff; padding: .5rem; border: 1px solid var(--line);
  border-radius: .4rem; }
pre { background: var(--soft); padding: .8rem; white-space: pre-wrap;
  font-size: .82rem; }
details { margin: .8rem 0; border: 1px solid var(--line); border-radius: .4rem;
  padding: .1rem .8rem; }
details[open] { padding-bottom: .8rem; }
summary { cursor: pointer; padding: .35rem 0; font-weight: 600; }
:is(summary, button):focus-visible { outline: 2px solid var(--mark); }
.notes { color: var(--faint); font-size: .9rem; }
dl { font-size: .9rem; }
dt { font-weight: 600; margin-top: .4rem; }
dd { margin: 0; color: var(--faint); }
.wide { overflow-x: auto; margin-top: .6rem; }
table { border-collapse: collapse; font-size: .82rem; overflow-wrap: normal;
  font-variant-numeric: tabular-nums; }
th, td { padding: .22rem .45rem; text-align: right; vertical-align: bottom; }
td { white-space: nowrap; }
td.text { white-space: normal; }
td.long { overflow-wrap: anywhere; min-width: 9rem; }
th:first-child, td:first-child, .text { text-align: left; }
thead th { background: var(--soft); padding: 0; font-weight: 600;
  border-bottom: 1px solid var(--line); }
th button { all: unset; box-sizing: border-box; cursor: pointer; width: 100%;
  padding: .35rem .45rem; }
th button[title] { text-decoration: underline dotted var(--faint);
  text-underline-offset: .2em; }
th[aria-sort="ascending"] button::after { content: " \\25B4"; }
th[aria-sort="descending"] button::after { content: " \\25BE"; }
.rows tbody tr:nth-child(even) { background: var(--soft); }
.facts { margin: .8rem 0; }
.facts th { text-align: left; font-weight: 600; width: 12rem; vertical-align: top; }
.facts td { text-align: left; white-space: normal; }
@media screen and (max-width: 1000px) {
  table { font-size: .75rem; }
  th, td { padding: .2rem .28rem; }
  th button { padding: .3rem .28rem; }
}
@media screen and (max-width: 720px) {
  table { font-size: .82rem; }
  body { margin-top: 1rem; padding: 0 .75rem; }
  .figure img { max-width: none; width: max(100%, calc(.75 * var(--width))); }
  .facts th, .facts td { display: block; width: auto; padding: .1rem .3rem; }
  .rows :is(table, tbody) { display: block; }
  .rows thead { display: block; }
  .rows thead tr { display: flex; flex-wrap: wrap; gap: .3rem; padding: .3rem 0; }
  .rows thead th { border: 1px solid var(--line); border-radius: .3rem; }
  .rows th button { padding: .15rem .45rem; text-decoration: none; }
  .rows tbody tr { display: grid; padding: .4rem .3rem;
    grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr));
    gap: .05rem .8rem; border-bottom: 1px solid var(--line); }
  .rows td { min-width: 0; display: flex; justify-content: space-between; gap: .5rem;
    padding: 0; text-align: right; white-space: normal; }
  .rows td::before { content: attr(data-label); color: var(--faint);
    text-align: left; overflow-wrap: normal; }
  .rows td:first-child { grid-column: 1 / -1; font-weight: 600;
    justify-content: flex-start; }
  .rows td:first-child::before, .rows td:empty { display: none; }
  .rows td.long { grid-column: 1 / -1; }
}
@media print {
  :root { color-scheme: light; --paper: #fff; --ink: #000; --faint: #444;
    --line: #bbb; --soft: #fff; }
  body { font-size: 10pt; margin: 0; max-width: none; }
  table { font-size: 7pt; }
  th, td, th button { padding: .1rem .2rem; }
  thead { display: table-header-group; }
  tr, img { break-inside: avoid; }
  h2, h3, summary { break-after: avoid; }
  details { border: 0; padding: 0; }
}
"""


SCRIPT = """
const value = (row, column) => {
  const cell = row.cells[column], text = cell.textContent.trim();
  if (text === "") return [2, ""];
  if (cell.classList.contains("text")) return [1, text];
  return [0, Number(text.replace("inf", "Infinity"))];
};
const compare = (a, b) =>
  a[0] !== b[0] ? a[0] - b[0]
  : a[0] === 1 ? a[1].localeCompare(b[1], "en", {numeric: true})
  : a[1] < b[1] ? -1 : a[1] > b[1] ? 1 : 0;
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const body = head.closest("table").tBodies[0];
    const keyed = [...body.rows].map((row) => [value(row, head.cellIndex), row]);
    keyed.sort(([a], [b]) => (a[0] === 2 || b[0] === 2 || up ? 1 : -1) * compare(a, b));
    body.append(...keyed.map(([, row]) => row));
  });
}
const folded = () => [...document.querySelectorAll("details:not([open])")];
let opened = [];
addEventListener("beforeprint", () => {
  opened = folded();
  for (const each of opened) each.open = true;
});
addEventListener("afterprint", () => {
  for (const each of opened) each.open = false;
});
"""
