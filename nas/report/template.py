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
select, input, th button { font: inherit; color: inherit; }
.controls { display: flex; flex-wrap: wrap; gap: .4rem 1.5rem; }
select, input { background: var(--raised); border: 1px solid var(--line); border-radius: 4px;
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
tbody tr[tabindex] { cursor: pointer; }
tbody tr:focus-visible { outline: 2px solid var(--accent); outline-offset: -2px; }
#detail { border: 1px solid var(--line); border-radius: 6px; padding: .2rem 1rem 1rem;
  margin: .8rem 0; }
#detail .pair { display: flex; flex-wrap: wrap; gap: 1rem 2rem; align-items: flex-start;
  overflow-x: auto; }
#detail svg { flex: 1 1 26rem; min-width: 26rem; max-width: 42rem; }
#detail dl { display: grid; grid-template-columns: fit-content(11rem) minmax(8rem, 1fr);
  gap: .1rem .9rem; margin: 0; font-size: .875rem; }
#detail dt { color: var(--soft); } #detail dd { margin: 0; overflow-wrap: anywhere; }
#curves { height: 19rem; }
.choices td { background: color-mix(in srgb, var(--accent) calc(var(--share) * .7), transparent);
  text-align: center; }
.choices thead th { font-weight: 600; } .choices tbody th { font-weight: 400; }
tr.picked td { background: color-mix(in srgb, var(--accent) 22%, transparent); }
pre { background: var(--raised); border-radius: 6px; padding: .7rem; overflow-x: auto;
  font-size: .8125rem; margin: .5rem 0; }
#chart text, #curves text { fill: var(--ink) !important; }
#chart .xgrid, #chart .ygrid, #curves .xgrid, #curves .ygrid { stroke: var(--line) !important; }
#chart .hoverlayer path { fill: var(--raised) !important; stroke: var(--soft) !important; }
"""

SCRIPT = """
const charts = JSON.parse(document.getElementById('charts').textContent);
const plot = document.getElementById('chart');
const pick = document.getElementById('cost');
const settings = {responsive: true, displayModeBar: false};
// On a touch screen a drag must scroll the page, not zoom the chart.
const dragmode = matchMedia('(pointer: coarse)').matches ? false : 'zoom';

const {runs, drawings} = JSON.parse(document.getElementById('details').textContent);
const searched = JSON.parse(document.getElementById('curves-data').textContent);
const filter = document.getElementById('filter');
const detail = document.getElementById('detail');
const rowsOf = () => document.querySelectorAll('tr[data-places]');

// A row's own text, and the choices that only its details hold; found when a filter first asks.
const words = new Map();

function wordsOf(id) {
  if (!words.has(id)) {
    const {facts, choices, arch} = runs[id];
    const drawn = (drawings[arch] ?? '').replace(/<[^>]*>/g, ' ');
    const given = facts.concat(choices).map(pair => pair.join('='));
    const text = document.getElementById(id).textContent;
    words.set(id, [text, ...given, drawn].join(' ').toLowerCase());
  }
  return words.get(id);
}

function wanted(id) {
  if (!filter.value || !runs[id]) return !filter.value;
  return filter.value.toLowerCase().split(/[\\s,]+/).every(word => wordsOf(id).includes(word));
}

function named(name) {
  return filter.value.toLowerCase().split(/[\\s,]+/).every(word => name.includes(word));
}

function filtered(trace) {
  if (!filter.value || !trace.customdata && trace.meta !== 'bare') return trace;
  const kept = trace.customdata ? trace.customdata.map(wanted) : trace.text.map(named);
  const only = list => list.filter((_, i) => kept[i]);
  return {...trace, x: only(trace.x), y: only(trace.y), text: trace.text && only(trace.text),
    customdata: trace.customdata && only(trace.customdata)};
}

function draw() {
  const {data, layout} = charts[pick.value];
  Plotly.react(plot, data.map(filtered), {...layout, dragmode}, settings);
  for (const row of rowsOf()) row.hidden = !wanted(row.id);
}

function element(name, text, parent) {
  const made = document.createElement(name);
  made.textContent = text;
  parent?.append(made);
  return made;
}

function choose(id) {
  const run = runs[id];
  if (!run) return;
  for (const other of document.querySelectorAll('.picked')) other.classList.remove('picked');
  document.getElementById(id)?.classList.add('picked');
  detail.replaceChildren();
  element('h2', run.title, detail);
  const pair = element('div', '', detail);
  pair.className = 'pair';
  const list = element('dl', '', pair);
  for (const [name, value] of run.facts.concat(drawings[run.arch] ? [] : run.choices)) {
    element('dt', name, list);
    element('dd', value, list);
  }
  // Made by this report, of text that it has escaped.
  if (drawings[run.arch]) pair.insertAdjacentHTML('beforeend', drawings[run.arch]);
  element('pre', run.commands, detail);
  detail.hidden = false;
}

function show(cost) {
  draw();
  for (const part of document.querySelectorAll('[data-cost]'))
    part.hidden = part.dataset.cost !== cost;
  for (const row of document.querySelectorAll('[data-places]')) {
    const place = JSON.parse(row.dataset.places)[cost];
    row.classList.remove('front', 'dominated');
    if (place) row.classList.add(place);
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
filter.addEventListener('input', draw);
for (const row of rowsOf()) {
  row.addEventListener('click', () => choose(row.id));
  row.addEventListener('keydown', event => { if (event.key === 'Enter') choose(row.id); });
}
show(pick.value);
plot.on('plotly_click', event => {
  if (!event.points[0].customdata) return;
  choose(event.points[0].customdata);
  detail.scrollIntoView({block: 'nearest', behavior: 'smooth'});
});
if (searched) {
  const {grid} = searched.layout;
  const narrow = innerWidth < 640;
  if (narrow) document.getElementById('curves').style.height = 14 * grid.columns + 'rem';
  const turned = {...grid, rows: grid.columns, columns: 1, ygap: 0.35};
  Plotly.newPlot('curves', searched.data, {...searched.layout, grid: narrow ? turned : grid,
    legend: {...searched.layout.legend, y: narrow ? -0.1 : -0.25}}, settings);
}
"""
