// The pictures of a metric: against any axis, against costs, over the steps, and with all settings.

const varying = () => Object.keys(data.settings);
const isNumber = (value) => typeof value === "number";
const nameOf = (key) => data.settings[key] ?? data.costs[key] ?? title(key);
const xOf = (one, key) => one.settings[key] ?? one.costs[key];

// Says what a point shows, for the tooltip.
function describe(one) {
  const costs = Object.entries(data.costs).filter(([key]) => one.costs[key] !== undefined)
    .map(([key, name]) => `${name}: ${show(one.costs[key])}`);
  const seeds = `${one.trials.length} ${one.trials.length === 1 ? "seed" : "seeds"}`;
  return [one.label, `${title(state.metric)}: ${estimate(valueOf(one))}, ${seeds}`, ...costs].join("\n");
}

// Draws an estimate in the colour of a number: its interval, its seeds as small dots and its mean.
function drawPoint(to, one, x, key) {
  const [value, stroke] = [valueOf(one), color(key)];
  const mark = draw("g", { "data-c": one.index });
  if (value.low !== null)
    mark.append(draw("path", { stroke, "stroke-width": 1.4, fill: "none",
      d: `M${x - 4} ${to.y(value.low)}h8m-4 0V${to.y(value.high)}m-4 0h8` }));
  if (one.trials.length > 1)
    for (const trial of one.trials)
      if (isNumber(trial.final[state.metric]))
        mark.append(draw("circle", { cx: x + 7, cy: to.y(trial.final[state.metric]), r: 1.8,
          fill: stroke, opacity: 0.5 }));
  mark.append(draw("circle", { cx: x, cy: to.y(value.mean), r: 4.2, stroke, "stroke-width": 1.6,
    fill: key < 10 ? stroke : "var(--paper)" }));
  to.group.append(mark);
  return { x, y: to.y(value.mean), text: describe(one), index: one.index };
}

// All values that the vertical axis must hold: means, intervals and seeds; the base, where it is near.
function extent(configurations) {
  const ys = configurations.flatMap((one) => {
    const { mean, low, high } = valueOf(one);
    return [mean, low ?? mean, high ?? mean,
      ...one.trials.map((trial) => trial.final[state.metric]).filter(isNumber)];
  });
  const base = data.bases.length === 1 ? data.bases[0].values[state.metric]?.mean : undefined;
  const [low, high] = [Math.min(...ys), Math.max(...ys)];
  const near = isNumber(base) && Math.max(high, base) - Math.min(low, base) <= 1.8 * (high - low);
  return { ys: near ? [...ys, base] : ys, base: near ? base : null };
}

function drawBase(to, base) {
  if (base === null) return;
  to.group.append(
    draw("line", { class: "rule", x1: to.left, x2: to.right, y1: to.y(base), y2: to.y(base) }),
    draw("text", { class: "faint small halo", x: to.right - 4, y: to.y(base) - 5,
      "text-anchor": "end" }, "base (untuned)"));
}

const plain = (value) => value === undefined ? "–" : String(value);
const settingOf = (one, key) => (key === "method" ? one.method : plain(one.settings[key]));
const empty = () => make("p", { class: "note" }, "Nothing to show: no configuration has such values.");

function addAgainst() {
  const axes = [...varying(), ...Object.keys(data.costs)];
  if (!axes.length) return;
  const element = section("axes", "Metric against an axis",
    "Points are means, bars 95 % intervals, small dots single seeds. Lines join configurations that "
    + "differ in the horizontal axis alone, and in a learning rate that was chosen for each.");
  const splits = [["", "none"], ["method", "method"], ...varying().map((key) => [key, nameOf(key)])];
  const view = { x: data.axis ?? axes[0], color: "method", facet: "", logX: true, logY: false };
  const set = (key) => (value) => { view[key] = value; redraw(); };
  figure(element, "metric-against-axis", (width) => drawAgainst(width, view),
    choice("horizontal", axes.map((key) => [key, nameOf(key)]), view.x, set("x")),
    choice("colours", splits.slice(1), view.color, set("color")),
    choice("panels", splits, view.facet, set("facet")),
    toggle("log x", view.logX, set("logX")), toggle("log y", view.logY, set("logY")));
}

function drawAgainst(width, view) {
  const shown = visible().filter((one) => valueOf(one) && xOf(one, view.x) !== undefined);
  if (!shown.length) return empty();
  const facets = [...groupBy(shown, (one) => (view.facet ? settingOf(one, view.facet) : ""))];
  const across = Math.min(facets.length, Math.max(1, Math.floor(width / 330)));
  const [wide, high] = [width / across, facets.length > 1 ? 280 : 380];
  const below = Math.ceil(facets.length / across) * high;
  const key = colorKey(shown, view);
  const colors = unique(shown.map((one) => settingOf(one, key)));
  const entries = colors.map((name, i) => ({ name: key === "method" ? name : `${nameOf(key)}: ${name}`,
    color: i }));
  const without = visible().filter((one) => valueOf(one)).length - shown.length;
  if (without) entries.push({ name: `${without} without ${nameOf(view.x)} are not drawn` });
  const svg = picture(width, below, arrow(state.metric));
  const { ys, base } = extent(shown);
  const targets = [];
  facets.forEach(([name, members], i) => {
    const box = { left: (i % across) * wide, top: Math.floor(i / across) * high, width: wide, height: high };
    const to = panel(svg, box, { xs: shown.map((one) => xOf(one, view.x)), ys, xTitle: nameOf(view.x),
      yTitle: arrow(state.metric), x: { log: view.logX, room: 0.1 }, y: { log: view.logY },
      heading: view.facet ? `${nameOf(view.facet)}: ${name}` : "" });
    drawBase(to, base);
    targets.push(...drawLines(to, members, view.x, (one) => colors.indexOf(settingOf(one, key))));
  });
  legend(svg, entries, width, below + 4);
  return hover(svg, targets);
}

// Returns what the colours stand for: the choice, or, where all have one value of it, what varies.
function colorKey(shown, view) {
  const varies = (key) => unique(shown.map((one) => settingOf(one, key))).length > 1;
  // A rate that was chosen for each goes with the other settings, and changes along a line.
  const chosen = (key) => key === "optim.learning_rate" && shown.some((one) => one.ownRate);
  const others = varying().filter((key) => key !== view.x && !chosen(key));
  return [view.color, ...others].find(varies) ?? view.color;
}

// Draws the lines of a panel, each through configurations that are alike but for the axis.
function drawLines(to, members, axis, colorOf) {
  // A learning rate that was chosen for a configuration goes with its other settings.
  const differs = (one, key) => key !== axis && !(one.ownRate && key === "optim.learning_rate");
  const others = (one) => JSON.stringify([one.method, ...varying().map((key) =>
    differs(one, key) ? one.settings[key] : null)]);
  const lines = [...groupBy(members, axis in data.costs ? (one) => one.index : others).values()];
  return lines.flatMap((line, i) => {
    // Lines stand side by side, so that intervals do not hide each other.
    const beside = lines.length <= 16 && !(axis in data.costs) ? Math.min(9, 60 / lines.length) : 0;
    const shift = beside * (i - (lines.length - 1) / 2);
    const ordered = [...line].sort((a, b) => compare(xOf(a, axis), xOf(b, axis), false));
    const key = colorOf(line[0]);
    const points = ordered.map((one) => [to.x(xOf(one, axis)) + shift, to.y(valueOf(one).mean)]);
    to.group.append(draw("path", { d: path(points), stroke: color(key), "stroke-width": 1.8,
      "stroke-dasharray": dash(key), fill: "none" }));
    return ordered.map((one, j) => drawPoint(to, one, points[j][0], key));
  });
}

function addPareto() {
  const varies = (key) => unique(data.configurations.map((one) => one.costs[key])).length > 1;
  const known = Object.entries(data.costs);
  const costs = known.some(([key]) => varies(key)) ? known.filter(([key]) => varies(key)) : known;
  if (!costs.length) return;
  const element = section("pareto", "Quality against cost",
    "The dotted line is the Pareto front: no configuration is better at the same or a lower cost. FLOPs "
    + "are those of the updates' matrix products, forward and backward, padding included. Memory is what "
    + "the trial's training takes alone: the base, its own weights and moments, and what a step works in.");
  const view = { x: costs[0][0], logX: true, logY: false };
  const set = (key) => (value) => { view[key] = value; redraw(); };
  figure(element, "pareto", (width) => drawPareto(width, view), choice("cost", costs, view.x, set("x")),
    toggle("log x", view.logX, set("logX")), toggle("log y", view.logY, set("logY")));
}

// Returns the configurations that none beats at the same or a lower cost, cheapest first.
function front(configurations, cost) {
  const cheap = [...configurations].sort((a, b) => a.costs[cost] - b.costs[cost]
    || (better(valueOf(a).mean, valueOf(b).mean) ? -1 : 1));
  return cheap.filter((one, i) =>
    cheap.slice(0, i).every((other) => better(valueOf(one).mean, valueOf(other).mean)));
}

function drawPareto(width, view) {
  const shown = visible().filter((one) => valueOf(one) && isNumber(one.costs[view.x]));
  if (!shown.length) return empty();
  const methods = unique(data.configurations.map((one) => one.method));
  const { ys, base } = extent(shown);
  const svg = picture(width, 440, `${arrow(state.metric)} against ${data.costs[view.x]}`);
  const to = panel(svg, { left: 0, top: 0, width, height: 400 }, { ys, yTitle: arrow(state.metric),
    xs: shown.map((one) => one.costs[view.x]), xTitle: data.costs[view.x],
    x: { log: view.logX, own: false, room: 0.12 }, y: { log: view.logY } });
  drawBase(to, base);
  const best = front(shown, view.x);
  const place = (one) => [to.x(one.costs[view.x]), to.y(valueOf(one).mean)];
  const stairs = best.flatMap((one, i) => i ? [[place(one)[0], place(best[i - 1])[1]], place(one)] : [place(one)]);
  if (best.length > 1) to.group.append(draw("path", { class: "front", d: path(stairs) }));
  const targets = shown.map((one) =>
    drawPoint(to, one, place(one)[0], methods.indexOf(one.method)));
  nameFront(to, best, place);
  legend(svg, methods.map((name, i) => ({ name, color: i })), width, 404);
  return hover(svg, targets);
}

// Writes the names of the front beside its points, where they touch no other name.
function nameFront(to, best, place) {
  const taken = [];
  for (const one of best) {
    const [x, y] = place(one);
    const wide = 0.9 * lengthOf(one.label);
    const left = x + 12 + wide < to.right ? x + 12 : x - 12 - wide;
    const free = taken.every((box) => left > box.left + box.wide || left + wide < box.left
      || Math.abs(box.y - y) > 14);
    if (!free || left < to.left) continue;
    taken.push({ left, wide, y });
    to.group.append(draw("text", { class: "small halo", x: left, y: y - 6, "data-c": one.index }, one.label));
  }
}
