// The matrix of differences, heat maps, samples side by side, tables, and how to reproduce the sweep.

const MOST_COMPARED = 40; // rows of the matrix
const LONG_CELL = 48; // characters, from which a column of a table wraps

function addMatrix() {
  if (!data.pairs.length) return;
  const element = section("differences", "Differences between configurations",
    `The row's ${title(data.metric)} minus the column's, paired by seed and, where there are scores by `
    + "example, by example. Green is better. A star says p < 0.05 after Holm's correction.");
  figure(element, "differences", drawMatrix);
}

function drawMatrix(width) {
  const compared = new Set(data.pairs.flatMap((pair) => [pair.a, pair.b]));
  const all = visible().filter((one) => compared.has(one.index));
  const shown = all.slice(0, MOST_COMPARED);
  if (shown.length < 2) return empty();
  const left = all.length === shown.length ? ""
    : `The first ${shown.length} of ${all.length} configurations are shown; filter to see others.`;
  const cells = shown.map((a) => shown.map((b) => pairOf(a.index, b.index)));
  const most = Math.max(...cells.flat().map((pair) => Math.abs(pair?.mean ?? 0))) || 1;
  const labels = shown.map((one, i) => `${i + 1}  ${one.label}`);
  const svg = cellsPicture(width, labels, shown.map((_, i) => String(i + 1)), (row, column) => {
    const pair = cells[row][column];
    if (!pair) return null;
    const hue = pair.mean > 0 === higher(data.metric) ? "var(--good)" : "var(--bad)";
    return { fill: `color-mix(in oklab, ${hue} ${6 + 60 * Math.abs(pair.mean) / most}%, var(--paper))`,
      text: signed(pair.mean) + (pair.p !== null && pair.p < 0.05 ? " *" : ""),
      tip: describePair(pair, shown[row].label, shown[column].label) };
  }, "differences between configurations");
  return left ? make("div", {}, svg, make("p", { class: "note" }, left)) : svg;
}

function describePair(pair, a, b) {
  const p = pair.p === null ? "no p" : `p ${writeP(pair.p)} (Holm)`;
  const chance = pair.better === null ? "" : `\nprobability that ${a} is better: ${show(pair.better)}`;
  return `${a} minus ${b}: ${estimate(pair, signed)}, ${p}${chance}\n${pair.varied}`;
}

// Finds the comparison of a with b, which is kept once for both orders.
function pairOf(a, b) {
  const found = pairs.get(`${a} ${b}`);
  if (found || !pairs.has(`${b} ${a}`)) return found;
  const turned = pairs.get(`${b} ${a}`);
  const minus = (value) => (value === null ? null : 0 - value);
  return { ...turned, mean: minus(turned.mean), low: minus(turned.high), high: minus(turned.low),
    better: turned.better === null ? null : 1 - turned.better };
}

const pairs = new Map(data.pairs.map((pair) => [`${pair.a} ${pair.b}`, pair]));

// Draws a table of coloured cells; `cell(row, column)` gives {fill, text, tip} or null.
function cellsPicture(width, rows, columns, cell, label) {
  const left = Math.min(Math.max(...rows.map(lengthOf)) + 14, width * 0.45);
  const longest = Math.min(100, Math.max(...columns.map(lengthOf)));
  const fitting = (room) => Math.max(13, Math.min(76, (width - left - room) / columns.length));
  const turned = longest + 3 > fitting(6); // names that are wider than a cell stand aslant
  const room = turned ? 0.75 * longest + 4 : 6;
  const wide = fitting(room);
  const high = Math.max(18, Math.min(34, wide));
  const top = turned ? 0.75 * longest + 12 : 22;
  const svg = picture(left + columns.length * wide + room, top + rows.length * high + 6, label);
  columns.forEach((name, i) => {
    const x = left + (i + 0.5) * wide;
    svg.append(draw("text", { class: "faint", x, y: top - 7, "text-anchor": turned ? "start" : "middle",
      transform: turned ? `rotate(-45 ${x} ${top - 7})` : null }, cut(name, 100)));
  });
  const targets = [];
  rows.forEach((name, row) => {
    const y = top + row * high;
    svg.append(draw("text", { x: left - 8, y: y + high / 2 + 4, "text-anchor": "end" },
      cut(name, left - 10)));
    columns.forEach((_, column) => {
      const found = cell(row, column);
      if (!found) return;
      const x = left + column * wide;
      svg.append(draw("rect", { class: "cell", x, y, width: wide, height: high, fill: found.fill }));
      if (lengthOf(found.text) < wide + 2)
        svg.append(draw("text", { class: "small", x: x + wide / 2, y: y + high / 2 + 4,
          "text-anchor": "middle" }, found.text));
      targets.push({ x: x + wide / 2, y: y + high / 2, text: found.tip });
    });
  });
  return hover(svg, targets);
}

// Heat maps appear where the data hold them: {title, note, rows, columns, values}, and maybe unit,
// group, choices, shades (default the values), their range, and notes. Maps of one group share a place, where a reader chooses one.
function addHeat() {
  if (!data.heat.length) return;
  const element = section("heat", "Heat maps");
  const nameOf = (map) => map.group ?? map.title;
  for (const name of unique(data.heat.map(nameOf))) {
    const maps = data.heat.filter((map) => nameOf(map) === name);
    const chosen = { ...maps[0].choices };
    const values = (key) => unique(maps.map((map) => map.choices[key])).map((value) => [value, value]);
    const controls = Object.keys(chosen).filter((key) => values(key).length > 1).map((key) =>
      choice(key, values(key), chosen[key], (value) => { chosen[key] = value; redraw(); }));
    const current = () => maps.find((map) => Object.keys(chosen).every((key) =>
      map.choices[key] === chosen[key]));
    element.append(make("h3", {}, name), make("p", { class: "note" }, maps[0].note ?? ""));
    figure(element, name.replace(/\W+/g, "-"), (width) => drawHeat(width, current()), ...controls);
  }
}

function drawHeat(width, map) {
  if (!map) return empty();
  const shades = map.shades ?? map.values;
  const numbers = shades.flat().filter(isNumber);
  const [low, high] = map.range ?? [Math.min(...numbers), Math.max(...numbers)];
  return cellsPicture(width, map.rows, map.columns, (row, column) => {
    const value = map.values[row][column];
    if (!isNumber(value)) return null;
    const share = high > low ? (shades[row][column] - low) / (high - low) : 0;
    const note = map.notes?.[row][column];
    return { fill: `color-mix(in oklab, var(--accent) ${Math.round(4 + 60 * share)}%, var(--paper))`,
      text: short(Number.isInteger(value) ? value : Number(value.toPrecision(3))),
      tip: `${map.rows[row]}, ${map.columns[column]}: ${short(value)} ${map.unit ?? ""}`
        + (note ? `\n${note}` : "") };
  }, map.title);
}

// Marks how a text differs from its reference: words that it adds, and words that it lacks.
function marked(text, reference) {
  const [a, b] = [text, reference].map((one) => (one.match(/\S+\s*/g) ?? []).slice(0, 500));
  const same = (i, j) => i < a.length && j < b.length && a[i].trim() === b[j].trim();
  const common = lengths(a, b, same);
  const runs = []; // [tag, words], where neighbours have other tags
  const put = (tag, word) => runs.at(-1)?.[0] === tag ? runs.at(-1)[1].push(word) : runs.push([tag, [word]]);
  let [i, j] = [0, 0];
  while (i < a.length || j < b.length) {
    if (same(i, j)) put("span", a[i++]) && j++;
    else if (j === b.length || (i < a.length && common[i + 1][j] >= common[i][j + 1])) put("mark", a[i++]);
    else put("del", b[j++]);
  }
  return runs.flatMap(([tag, words]) => [make(tag, {}, words.join("").trimEnd()), " "]);
}

// Returns the length of the longest common part of a from i on and b from j on, for every i and j.
function lengths(a, b, same) {
  const found = Array.from({ length: a.length + 1 }, () => new Array(b.length + 1).fill(0));
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      found[i][j] = same(i, j) ? found[i + 1][j + 1] + 1 : Math.max(found[i + 1][j], found[i][j + 1]);
  return found;
}

function addSamples() {
  if (!data.samples.length) return;
  const element = section("samples", "Samples", "The base and the best configuration of each method on "
    + "the same examples. Words that the reference lacks are marked, and its missing words crossed out.");
  let current = 0;
  const cards = make("div", { class: "cards" });
  const names = data.samples.map((sample, i) => [String(i), `${i + 1}: ${sample.where.split("/").pop()}`]);
  const go = (index) => {
    current = (index + data.samples.length) % data.samples.length;
    chooser.querySelector("select").value = String(current);
    redraw();
  };
  const chooser = choice("example", names, "0", (value) => go(Number(value)));
  element.append(make("div", { class: "controls" }, chooser,
    make("button", { type: "button", click: () => go(current - 1) }, "previous"),
    make("button", { type: "button", click: () => go(current + 1), id: "next" }, "next")), cards);
  drawers.push(() => {
    const { prompt, references, answers } = data.samples[current];
    const card = (name, ...text) => make("div", { class: "card" }, make("h3", {}, name),
      make("p", {}, ...text));
    const first = card("prompt", prompt);
    first.classList.add("wide");
    cards.replaceChildren(first, card("reference", references.join("\n")),
      ...answers.map(({ name, text }) => card(name, ...marked(text, references[0] ?? ""))));
  });
}

// The part of a heading that the navigation has room for: "Classes" of "Classes of rank=4,seed=0".
const brief = (heading) => heading.split(" of ")[0].toLowerCase().replace(/\W+/g, "-");

function addTables() {
  for (const [heading, { header, rows }] of Object.entries(data.tables)) {
    const prose = header.map((_, i) => rows.some((cells) => cells[i].length > LONG_CELL));
    const line = (tag, cells) => make("tr", {}, ...cells.map((cell, i) =>
      make(tag, prose[i] ? { class: "prose" } : {}, cell)));
    const table = make("div", { class: "scroll" }, make("table", {}, make("thead", {},
      line("th", header)), make("tbody", {}, ...rows.map((cells) => line("td", cells)))));
    if (heading.startsWith("Comparisons"))
      document.getElementById("differences")?.append(make("details", {}, make("summary", {},
        `${heading}: tests, effect sizes and seeds needed`), table));
    else section(brief(heading), heading).append(table);
  }
}

// What was assumed when a sweep was made of a data file alone stands above everything else.
const isAssumed = (name) => name.startsWith("assumed ");

function listed(entries) {
  return make("dl", {}, ...entries.flatMap(([name, value]) =>
    [make("dt", {}, name), make("dd", {}, value)]));
}

function addReproduce() {
  const { facts, hashes, config } = data.reproduce;
  const element = section("reproduce", "To reproduce it");
  element.append(listed(Object.entries(facts).filter(([name]) => !isAssumed(name))));
  for (const [name, text] of Object.entries(config)) {
    const copy = make("button", { type: "button", class: "no-print",
      click: () => download(name, new Blob([text])) }, "save");
    element.append(make("h3", {}, `${name} `, copy), make("pre", { tabindex: 0 }, text));
  }
  if (Object.keys(hashes).length)
    element.append(make("details", {}, make("summary", {}, "Hashes (SHA-256)"),
      listed(Object.entries(hashes))));
}
