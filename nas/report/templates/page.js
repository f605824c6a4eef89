const read = id => JSON.parse(document.getElementById(id).textContent);
const charts = read('charts'), curves = read('curves-data');
const {runs, drawings} = read('details');
const [plot, pick, filter, detail, legend] =
  ['chart', 'cost', 'filter', 'detail', 'legend'].map(id => document.getElementById(id));
const rowsOf = () => document.querySelectorAll('tr[data-places]');
const off = new Set();  // series that the legend has switched off
const zoomed = new Map();  // chart's box -> [[x0, x1], [y0, y1]] as fractions of the whole
let picked = null;

function element(name, text, parent) {
  const made = document.createElement(name);
  made.textContent = text;
  parent?.append(made);
  return made;
}

function shape(name, attributes, parent, text = '') {
  const made = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  parent?.append(made);
  return made;
}

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

function has(text) {
  return filter.value.toLowerCase().split(/[\s,]+/).every(word => text.includes(word));
}
const wanted = id => !filter.value || Boolean(runs[id]) && has(wordsOf(id));

// Axes. A scale maps values to 0..1; a logarithmic one their logarithms.

function short(value) {
  const size = Math.abs(value);
  const units = [[1e9, 'G'], [1e6, 'M'], [1e3, 'k'], [1, ''], [1e-3, 'm'], [1e-6, 'µ'], [1e-9, 'n']];
  const [unit, letter] = units.find(([unit]) => size >= unit) ?? [1, ''];
  return Number((value / unit).toPrecision(6)) + letter;
}

function ticks(low, high, log, most, least = 0) {
  if (log) {
    const all = [1, 2, 5].map(factor => {
      const found = [];
      for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
        found.push(factor * 10 ** power);
      return found.filter(value => low <= value && value <= high);
    });
    const every = all.flat().sort((a, b) => a - b);
    if (every.length >= 2 && every.length <= most) return every;
    const each = Math.ceil(all[0].length / most);
    if (all[0].length >= 2) return all[0].filter((_, i) => i % each === 0);
  }
  const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(least, power * [1, 2, 5, 10].find(factor => factor * power >= rough));
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++)
    found.push(Number((i * step).toPrecision(12)));
  return found;
}

function range(values, log) {
  const turn = log ? Math.log10 : value => value;
  const found = values.map(turn);
  const low = found.reduce((a, b) => Math.min(a, b)), high = found.reduce((a, b) => Math.max(a, b));
  const pad = (high - low) * 0.06 || Math.abs(high) * 0.05 || 0.5;
  return [low - pad, high + pad];
}

function scale(values, log, [from, to]) {
  const turn = log ? Math.log10 : value => value, back = log ? v => 10 ** v : v => v;
  const [least, most] = range(values, log);
  const low = least + from * (most - least), high = least + to * (most - least);
  const at = value => (turn(value) - low) / (high - low);
  return {at, low: back(low), high: back(high), log};
}

// Charts.

function shown(mark) {
  if (off.has(mark.series)) return null;
  if (!filter.value || mark.kind !== 'points') return mark;
  const kept = mark.runs ? mark.runs.map(wanted) : mark.names.map(name => has(name.toLowerCase()));
  const only = list => list && list.filter((_, i) => kept[i]);
  return {...mark, x: only(mark.x), y: only(mark.y), runs: only(mark.runs), names: only(mark.names)};
}

const whole = [[0, 1], [0, 1]];
let clips = 0;

function draw(box, chart) {
  const {width, height} = box.getBoundingClientRect();
  if (!width) return;
  const view = zoomed.get(box) ?? whole;
  const flat = key => chart.marks.flatMap(mark => mark.kind !== 'whiskers' ? mark[key]
    : [mark[key] + mark['d' + key], Math.max(mark[key] - mark['d' + key], mark[key] / 10)]);
  const x = scale(flat('x'), chart.log, view[0]), y = scale(flat('y'), false, view[1]);
  const labels = ticks(y.low, y.high, false, Math.max(2, height / 60));
  const [longest] = labels.map(tick => `${tick}`.length).sort((a, b) => b - a);
  const left = 12 + 7 * (longest ?? 1), right = width - 14, low = height - 40;
  const across = value => left + x.at(value) * (right - left);
  const budgets = rowsOfLabels(chart, across, left, right);
  const high = 26 + 16 * Math.max(0, ...budgets.map(label => label.row + 1));
  const up = value => low - y.at(value) * (low - high);

  const svg = shape('svg', {role: 'img', 'aria-label': `${chart.y} over ${chart.x}`});
  shape('text', {x: 0, y: 12, class: 'title'}, svg, chart.y);
  for (const tick of labels) {
    shape('path', {d: `M${left} ${up(tick)}H${right}`, class: 'grid'}, svg);
    shape('text', {x: left - 6, y: up(tick) + 4, 'text-anchor': 'end'}, svg, tick);
  }
  const most = (right - left) / 55;
  const places = chart.log ? ticks(x.low, x.high, true, most)
    : ticks(x.low, x.high, false, Math.min(most, 6), 1);  // epochs are whole numbers
  for (const tick of places) {
    shape('path', {d: `M${across(tick)} ${high}V${low}`, class: 'grid'}, svg);
    shape('text', {x: across(tick), y: low + 16, 'text-anchor': 'middle'}, svg, short(tick));
  }
  shape('text', {x: right, y: low + 34, 'text-anchor': 'end', class: 'title'}, svg, chart.x);
  const clip = `clip-${clips++}`;
  shape('rect', {x: left - 9, y: high - 9, width: right - left + 18, height: low - high + 18},
    shape('clipPath', {id: clip}, svg));
  const area = shape('g', {'clip-path': `url(#${clip})`}, svg);
  for (const {mark, at, anchor, row} of budgets)
    shape('text', {x: at, y: 26 + 16 * row, 'text-anchor': anchor}, svg, mark.label);
  const targets = [];
  for (const mark of chart.marks.map(shown).filter(Boolean))
    targets.push(...drawMark(mark, area, across, up));
  box.replaceChildren(svg);
  Object.assign(box, {targets, frame: {left, right, low, high}});
}

// The labels of budgets above their lines, in as many rows as it takes.
function rowsOfLabels(chart, across, left, right) {
  const ends = [];
  return chart.marks.filter(mark => mark.label).map(mark => {
    const half = 3.4 * mark.label.length, at = across(mark.x[0]);
    const anchor = at - half < left ? 'start' : at + half > right ? 'end' : 'middle';
    const begin = at - {start: 0, middle: half, end: 2 * half}[anchor];
    let row = ends.findIndex(end => end < begin);
    if (row < 0) row = ends.length;
    ends[row] = begin + 2 * half + 8;
    return {mark, at, anchor, row};
  });
}

// Draws one mark; what the pointer can find of it: {x, y, id, name, text}.
function drawMark(mark, area, across, up) {
  const stroke = {stroke: mark.colour, fill: 'none', 'stroke-dasharray': mark.dash ?? 'none'};
  if (mark.kind === 'line') {
    const places = mark.x.map((value, i) => [across(value), up(mark.y[i])]);
    const path = places.map(([px, py], i) => !i ? `M${px} ${py}`
      : mark.steps ? `H${px}V${py}` : `L${px} ${py}`).join('');
    const strong = mark.run && mark.run === picked;
    shape('path', {d: path, 'stroke-width': strong ? 4 : mark.width, ...stroke}, area);
    if (!mark.name) return [];
    if (places.length === 1)
      shape('circle', {cx: places[0][0], cy: places[0][1], r: 3, fill: mark.colour}, area);
    return places.map(([px, py], i) => ({x: px, y: py, id: mark.run, name: mark.name,
      text: `epoch ${mark.x[i]}: ${Number(mark.y[i].toPrecision(4))}`}));
  }
  if (mark.kind === 'whiskers') {
    const px = across(mark.x), py = up(mark.y);
    const ends = [across(Math.max(mark.x - mark.dx, mark.x / 10)), across(mark.x + mark.dx)];
    const [bottom, top] = [up(mark.y - mark.dy), up(mark.y + mark.dy)];
    shape('path', {class: 'whiskers', ...stroke,
      d: `M${ends[0]} ${py}H${ends[1]}M${px} ${bottom}V${top}`
        + ends.map(end => `M${end} ${py - 4}v8`).join('')
        + [bottom, top].map(end => `M${px - 4} ${end}h8`).join('')}, area);
    return [];
  }
  return mark.x.flatMap((value, i) => {
    const at = {cx: across(value), cy: up(mark.y[i])}, id = mark.runs?.[i];
    const look = !mark.hollow ? {fill: mark.colour, class: 'point'}
      : {stroke: mark.colour, 'stroke-width': 1.7, ...(mark.radius > 9 ? {fill: 'none'} : {class: 'point hollow'})};
    shape('circle', {...at, r: mark.radius, ...look}, area);
    if (id && id === picked && mark.radius < 9)
      shape('circle', {...at, r: mark.radius + 4, 'stroke-width': 2, class: 'picked'}, area);
    return [{x: at.cx, y: at.cy, id, name: mark.names?.[i]}];
  });
}

function nearest(box, event) {
  const frame = box.getBoundingClientRect();
  const px = event.clientX - frame.left, py = event.clientY - frame.top;
  let best = null, least = 18 ** 2;
  for (const target of box.targets ?? []) {
    const away = (target.x - px) ** 2 + (target.y - py) ** 2;
    if (away <= least) [best, least] = [target, away];
  }
  return best;
}

const LINES = 14;  // of a box beside the pointer; the details have the rest

function tip(box, target) {
  box.querySelector('.tip')?.remove();
  if (!target) return;
  const made = element('div', '', box), run = runs[target.id];
  made.className = 'tip';
  element('b', target.name ?? run.title, made);
  if (target.text || run) {
    const place = document.getElementById(target.id)?.querySelector('.place').textContent;
    const lines = run ? run.facts.slice(1).concat(run.choices).map(pair => pair.join(': ')) : [];
    const rest = lines.length > LINES ? [`... and ${lines.length - LINES} more: click`] : [];
    const about = target.text ? [target.text] : [place, ...lines.slice(0, LINES), ...rest];
    element('span', '\n' + about.filter(Boolean).join('\n'), made);
  }
  const {offsetWidth: width, offsetHeight: height} = made;
  const side = target.x + 14 + width > box.clientWidth ? target.x - 14 - width : target.x + 14;
  made.style.left = `${Math.max(0, side)}px`;
  made.style.top = `${Math.max(0, Math.min(target.y - height / 2, box.clientHeight - height))}px`;
}

function watch(box, chart) {
  let start = null;
  const redraw = () => draw(box, chart());
  const fraction = (event, from = whole) => {
    const {left, right, low, high} = box.frame, frame = box.getBoundingClientRect();
    const part = [(event.clientX - frame.left - left) / (right - left),
      (low - event.clientY + frame.top) / (low - high)];
    return part.map((p, i) => from[i][0] + Math.min(1, Math.max(0, p)) * (from[i][1] - from[i][0]));
  };
  const moved = event => Math.hypot(event.clientX - start.clientX, event.clientY - start.clientY) > 6;
  // On a touch screen a drag scrolls the page.
  box.addEventListener('pointerdown', event => { if (event.pointerType === 'mouse') start = event; });
  box.addEventListener('pointermove', event => {
    tip(box, start ? null : nearest(box, event));
    box.querySelector('.zoom')?.remove();
    if (!start || !moved(event)) return;
    const frame = box.getBoundingClientRect();
    const [x, y] = ['X', 'Y'].map(a => Math.min(start['client' + a], event['client' + a]));
    shape('rect', {class: 'zoom', x: x - frame.left, y: y - frame.top,
      width: Math.abs(event.clientX - start.clientX),
      height: Math.abs(event.clientY - start.clientY)}, box.querySelector('svg'));
  });
  box.addEventListener('pointerleave', () => {
    start = null;
    tip(box, null);
    box.querySelector('.zoom')?.remove();
  });
  box.addEventListener('pointerup', event => {
    const dragged = start && moved(event);
    if (dragged) {
      const from = zoomed.get(box) ?? whole, ends = [start, event].map(e => fraction(e, from));
      zoomed.set(box, [0, 1].map(i => ends.map(end => end[i]).sort((a, b) => a - b)));
    }
    start = null;
    if (dragged) return redraw();
    const found = nearest(box, event);
    if (found?.id) choose(found.id, true);
  });
  box.addEventListener('dblclick', () => { zoomed.delete(box); redraw(); });
  new ResizeObserver(redraw).observe(box);
}

const boxes = [[plot, () => charts[pick.value]],
  ...curves.map((chart, i) => [document.getElementById('curves').children[i], () => chart])];
const drawAll = () => boxes.forEach(([box, chart]) => draw(box, chart()));

function drawLegend() {
  legend.replaceChildren();
  for (const [series, label, colour, dash] of charts[pick.value].legend) {
    const button = element('button', '', legend);
    const sign = shape('svg', {viewBox: '0 0 30 12'}, button);
    shape('path', {d: 'M0 6H30', stroke: colour, 'stroke-width': 2, 'stroke-dasharray': dash || 'none'}, sign);
    shape('circle', {cx: 15, cy: 6, r: 5, fill: colour}, sign);
    button.append(label);
    button.setAttribute('aria-pressed', !off.has(series));
    button.addEventListener('click', () => {
      off.has(series) ? off.delete(series) : off.add(series);
      button.setAttribute('aria-pressed', !off.has(series));
      drawAll();
    });
  }
}

function choose(id, scroll) {
  const run = runs[id];
  if (!run) return;
  picked = id;
  for (const other of document.querySelectorAll('tr.picked')) other.classList.remove('picked');
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
  drawAll();
  if (scroll) detail.scrollIntoView({block: 'nearest', behavior: 'smooth'});
}

function select() {
  for (const row of rowsOf()) row.hidden = !wanted(row.id);
  drawAll();
}

function show(cost) {
  zoomed.delete(plot);
  for (const part of document.querySelectorAll('[data-cost]'))
    part.hidden = part.dataset.cost !== cost;
  for (const row of rowsOf()) {
    const place = JSON.parse(row.dataset.places)[cost];
    row.classList.remove('front', 'dominated');
    if (place) row.classList.add(place);
    row.querySelector('.place').textContent = place;
  }
  drawLegend();
  select();
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
for (const row of rowsOf()) {
  row.addEventListener('click', () => choose(row.id));
  row.addEventListener('keydown', event => { if (event.key === 'Enter') choose(row.id); });
}
for (const [box, chart] of boxes) watch(box, chart);
pick.addEventListener('change', () => show(pick.value));
filter.addEventListener('input', select);
show(pick.value);
