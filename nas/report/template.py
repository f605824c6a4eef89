"""Style and behaviour of report.html; the content comes from `nas.report.page`."""

# A browser enforces what the page promises: nothing is fetched from anywhere.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)

CSS = """
:root { color-scheme: light dark; --ink: #1c2733; --soft: #5d6b7a; --line: #dbe1e8;
  --paper: #ffffff; --raised: #f4f6f9; --accent: #1f6fb2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9ef; --soft: #9aa7b5; --line: #333d49;
  --paper: #14191f; --raised: #1f262e; --accent: #6fb2ea; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: .2rem 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 1.8rem 0 .5rem; }
p { margin: .3rem 0; } .soft { color: var(--soft); font-size: .875rem; }
select, th button { font: inherit; color: inherit; }
select { background: var(--raised); border: 1px solid var(--line); border-radius: 4px;
  padding: .15rem .4rem; max-width: 100%; }
#chart { height: min(28rem, 75vh); }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap; }
th { background: var(--raised); }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
td { border-top: 1px solid var(--line); font-variant-numeric: tabular-nums; }
.text { text-align: left; } .wrap { white-space: pre-wrap; overflow-wrap: anywhere; }
tr.front td { font-weight: 600; } tr.dominated td { color: var(--soft); }
tr.picked td { background: color-mix(in srgb, var(--accent) 22%, transparent); }
pre { background: var(--raised); border-radius: 6px; padding: .7rem; overflow-x: auto;
  font-size: .8125rem; margin: .5rem 0; }
#chart text { fill: var(--ink) !important; }
#chart .xgrid, #chart .ygrid { stroke: var(--line) !important; }
#chart .hoverlayer path { fill: var(--raised) !important; stroke: var(--soft) !important; }
"""

SCRIPT = """
const charts = JSON.parse(document.getElementById('charts').textContent);
const plot = document.getElementById('chart');
const pick = document.getElementById('cost');
const settings = {responsive: true, displayModeBar: false};
// On a touch screen a drag must scroll the page, not zoom the chart.
const dragmode = matchMedia('(pointer: coarse)').matches ? false : 'zoom';

function show(cost) {
  Plotly.react(plot, charts[cost].data, {...charts[cost].layout, dragmode}, settings);
  for (const part of document.querySelectorAll('[data-cost]'))
    part.hidden = part.dataset.cost !== cost;
  for (const row of document.querySelectorAll('[data-places]')) {
    const place = JSON.parse(row.dataset.places)[cost];
    row.className = place;
    row.querySelector('.place').textContent = place;
  }
}

function sortBy(header) {
  const order = header.getAttribute('aria-sort') === 'ascending' ? 'descending' : 'ascending';
  for (const other of header.parentNode.children) other.removeAttribute('aria-sort');
  header.setAttribute('aria-sort', order);
  const body = header.closest('table').tBodies[0];
  const sign = order === 'ascending' ? 1 : -1;
  const key = row => {
    const cell = row.cells[header.cellIndex];
    return cell.dataset.value ?? cell.textContent;
  };
  const compare = (a, b) => a.localeCompare(b, undefined, {numeric: true});
  const numbers = (a, b) => a === '' || b === '' ? (a === '') - (b === '') : sign * (a - b);
  const numeric = header.classList.contains('number');
  const rows = [...body.rows].sort((a, b) =>
    numeric ? numbers(key(a), key(b)) : sign * compare(key(a), key(b)));
  body.append(...rows);
}

for (const header of document.querySelectorAll('th'))
  header.querySelector('button')?.addEventListener('click', () => sortBy(header));
pick.addEventListener('change', () => show(pick.value));
show(pick.value);
plot.on('plotly_click', event => {
  const row = document.getElementById(event.points[0].customdata);
  for (const other of document.querySelectorAll('.picked')) other.classList.remove('picked');
  row?.classList.add('picked');
  row?.scrollIntoView({block: 'center', behavior: 'smooth'});
});
"""
