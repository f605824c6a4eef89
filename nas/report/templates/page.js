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
  return filter.value.toLowerCase().split(/[\s,]+/).every(word => wordsOf(id).includes(word));
}

function named(name) {
  return filter.value.toLowerCase().split(/[\s,]+/).every(word => name.includes(word));
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
