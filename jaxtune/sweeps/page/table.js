// The table of configurations, which sorts, filters and opens to its seeds.

const columns = []; // {key, title, shown, cell(configuration), sort(configuration), seed(trial)}
const order = { key: "metric", down: null }; // null: the best first
const opened = new Set(); // indices of configurations whose seeds are shown

function listColumns() {
  const chosen = () => state.metric;
  const metric = (key, name, titleOf, shown) => columns.push({ key, title: titleOf, shown,
    cell: (one) => estimate(one.values[name()]), sort: (one) => one.values[name()]?.mean,
    seed: (trial) => show(trial.final[name()]) });
  columns.push({ key: "configuration", title: () => "configuration", shown: true,
    sort: (one) => one.label, seed: (trial) => trial.trial });
  metric("metric", chosen, () => arrow(state.metric), true);
  columns.push({ key: "difference", shown: data.pairs.length > 0,
    title: () => `${title(data.metric)}: difference from ${data.reference ? "the reference" : "the best"}`
      + " (p by Holm)", sort: (one) => pairOf(one.index, data.reference)?.mean,
    cell: writeDifference, seed: () => "" });
  columns.push({ key: "change", title: () => "change from the base", shown: !data.pairs.length,
    cell: (one) => estimate(one.changes[state.metric], signed),
    sort: (one) => one.changes[state.metric]?.mean, seed: (trial) => {
      const [after, before] = [trial.final[state.metric], trial.base[state.metric]];
      return typeof after === "number" && typeof before === "number" ? signed(after - before) : "–";
    } });
  for (const [key, name] of Object.entries(data.costs))
    columns.push({ key, title: () => name, shown: ["trained_parameters", "seconds"].includes(key),
      cell: (one) => show(one.costs[key]), sort: (one) => one.costs[key],
      seed: (trial) => show(trial.costs[key]) });
  columns.push(
    { key: "seeds", title: () => "seeds", shown: false, cell: (one) => show(one.trials.length),
      sort: (one) => one.trials.length, seed: (trial) => show(trial.seed) },
    { key: "deviation", title: () => "standard deviation", shown: false,
      cell: (one) => show(one.values[state.metric]?.deviation),
      sort: (one) => one.values[state.metric]?.deviation, seed: () => "" });
  for (const [key, name] of Object.entries(data.settings))
    columns.push({ key, title: () => name, shown: false, cell: (one) => plain(one.settings[key]),
      sort: (one) => one.settings[key], seed: () => "" });
  for (const name of Object.keys(data.metrics)) metric(name, () => name, () => arrow(name), false);
}

// Writes the paired difference from the reference, by the metric that the report was made for.
function writeDifference(one) {
  if (one.index === data.reference) return data.reference ? "the reference" : "the best";
  const pair = pairOf(one.index, data.reference);
  if (!pair) return "–";
  return estimate(pair, signed) + (pair.p === null ? "" : `, p ${writeP(pair.p)}`);
}

const writeP = (p) => (p < 0.001 ? "< 0.001" : `= ${Number(p.toPrecision(2))}`);

// Compares two cells; what is missing comes last, in both directions.
function compare(a, b, down) {
  if (a === undefined || a === null) return b === undefined || b === null ? 0 : 1;
  if (b === undefined || b === null) return -1;
  const sign = typeof a === "number" && typeof b === "number" ? a - b
    : String(a).localeCompare(String(b), "en", { numeric: true });
  return down ? -sign : sign;
}

function sorted(configurations) {
  const column = columns.find((one) => one.key === order.key);
  const down = order.down ?? higher(state.metric);
  return [...configurations].sort((a, b) => compare(column.sort(a), column.sort(b), down));
}

const shownColumns = () => columns.filter((column) => column.shown);

function headCell(column) {
  const sortedBy = column.key === order.key;
  const down = order.down ?? higher(state.metric);
  const turn = () => {
    order.down = sortedBy ? !down : ["metric", "change"].includes(column.key) && higher(state.metric);
    order.key = column.key;
    redraw();
    document.querySelector("th[aria-sort] button").focus();
  };
  return make("th", { scope: "col", "aria-sort": sortedBy ? (down ? "descending" : "ascending") : null },
    make("button", { type: "button", click: turn, title: "sort by this column" },
      column.title() + (sortedBy ? (down ? " ▾" : " ▴") : "")));
}

const stateOf = ({ state, detail }) => make("span", { class: `state ${state.split(" ")[0]}` },
  detail ? `${state}: ${detail}` : state);

function rowOf(one) {
  const open = opened.has(one.index);
  const expand = make("button", { type: "button", "aria-expanded": open, "data-expand": one.index,
    "aria-label": `seeds of ${one.label}`, click: (event) => {
      event.stopPropagation();
      if (!opened.delete(one.index)) opened.add(one.index);
      redraw();
      document.querySelector(`[data-expand="${one.index}"]`).focus();
    } }, open ? "▾" : "▸");
  const name = make("td", {}, expand, one.label);
  if (one.state !== "finished") name.append(stateOf(one));
  const cells = shownColumns().slice(1).map((column) => make("td", {}, column.cell(one)));
  return make("tr", { "data-c": one.index, mouseenter: () => focus(one.index),
    mouseleave: () => focus(null), click: () => pin(one.index) }, name, ...cells);
}

function seedRows(one) {
  return opened.has(one.index) ? one.trials.map((trial) => {
    const [first, ...rest] = shownColumns().map((column) => make("td", {}, column.seed(trial)));
    if (trial.state !== "finished") first.append(stateOf(trial));
    return make("tr", { class: "seed" }, first, ...rest);
  }) : [];
}

function baseRow(base) {
  const cells = shownColumns().slice(1).map((column) => {
    const name = column.key === "metric" ? state.metric : column.key;
    return make("td", {}, name in data.metrics ? estimate(base.values[name]) : "–");
  });
  return make("tr", { class: "base" }, make("td", {}, base.label), ...cells);
}

// Says whether a base has a value in any column.
function isShown(base) {
  return shownColumns().some(({ key }) => valueOf(base, key === "metric" ? state.metric : key));
}

function drawTable(place, count) {
  const found = sorted(visible());
  count.textContent = `${found.length} of ${data.configurations.length} configurations`
    + (state.ranges.size ? `, in ranges of ${state.ranges.size} parallel coordinates` : "");
  place.replaceChildren(make("table", {},
    make("thead", {}, make("tr", {}, ...shownColumns().map(headCell))),
    make("tbody", {}, ...data.bases.filter(isShown).map(baseRow),
      ...found.flatMap((one) => [rowOf(one), ...seedRows(one)]))));
}

// Exports every trial that the filter leaves, with all its settings, costs and metrics.
function exportTrials() {
  const [settings, costs, metrics] = [data.settings, data.costs, data.metrics].map(Object.keys);
  const rows = [["configuration", "trial", "seed", "state", ...settings, ...costs, ...metrics]];
  for (const one of sorted(visible()))
    for (const trial of one.trials)
      rows.push([one.label, trial.trial, trial.seed, trial.state,
        ...settings.map((key) => one.settings[key]), ...costs.map((key) => trial.costs[key]),
        ...metrics.map((key) => trial.final[key])]);
  exportCsv("trials", rows);
}

function addTable() {
  listColumns();
  const element = section("configurations", "Configurations", data.notes[0]);
  const more = make("details", { class: "no-print" }, make("summary", {}, "More columns"),
    make("div", { class: "controls" }, ...columns.slice(1).map((column) =>
      toggle(column.title(), column.shown, (on) => { column.shown = on; redraw(); }))));
  const count = make("span", { class: "note", id: "count" });
  const save = make("button", { type: "button", click: exportTrials, id: "csv" }, "CSV");
  const place = make("div", { class: "scroll" });
  element.append(make("div", { class: "controls" }, count, save), place, more);
  for (const note of data.notes.slice(1)) element.append(make("p", { class: "note" }, note));
  drawers.push(() => drawTable(place, count));
}
