// Learning curves, and how rates were chosen.

function addCurves() {
  const trials = data.configurations.flatMap((one) => one.trials);
  const keys = unique(trials.flatMap((trial) => Object.keys(trial.curves)));
  if (!keys.length) return;
  const element = section("curves", "Learning curves",
    "Means over the seeds that logged a step; bands reach from the lowest to the highest seed.");
  const first = ["train_reward", "train_loss"].find((key) => keys.includes(key)) ?? keys[0];
  const view = { key: first, smooth: 0, log: false, most: 10 };
  const set = (key) => (value) => { view[key] = value; redraw(); };
  const slider = make("input", { type: "range", min: 0, max: 0.95, step: 0.05, value: 0, id: "smooth",
    input: () => set("smooth")(Number(slider.value)) });
  figure(element, "learning-curves", (width) => drawCurves(width, view),
    choice("curve", keys.map((key) => [key, title(key)]), view.key, set("key")),
    choice("show", [["10", "the 10 best"], ["1000", "all"]], "10", (value) => set("most")(Number(value))),
    make("label", {}, "smoothing", slider), toggle("log y", false, set("log")));
}

// Averages seeds: [step, mean, lowest, highest] of every step that the longest seed logged.
function meanCurve(trials, key, smoothing) {
  const seeds = trials.map((trial) => new Map(smoothed(trial.curves[key] ?? [], smoothing)));
  const steps = unique(seeds.flatMap((seed) => [...seed.keys()])).sort((a, b) => a - b);
  return steps.map((step) => {
    const values = seeds.map((seed) => seed.get(step)).filter(isNumber);
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    return [step, mean, Math.min(...values), Math.max(...values)];
  });
}

// Averages exponentially, without the bias towards the first value.
function smoothed(points, share) {
  let [sum, weight] = [0, 0];
  return points.filter(([, value]) => isNumber(value)).map(([step, value]) => {
    [sum, weight] = [share * sum + value, share * weight + 1];
    return [step, sum / weight];
  });
}

function drawCurves(width, view) {
  const best = visible().sort((a, b) =>
    compare(valueOf(a)?.mean, valueOf(b)?.mean, higher(state.metric)));
  const lines = best.slice(0, view.most)
    .map((one) => [one, meanCurve(one.trials, view.key, view.smooth)])
    .filter(([, points]) => points.length);
  if (!lines.length) return empty();
  const all = lines.flatMap(([, points]) => points);
  const entries = lines.map(([one]) => ({ name: one.label, color: one.index, index: one.index }));
  const svg = picture(width, 380, title(view.key));
  const to = panel(svg, { left: 0, top: 0, width, height: 360 }, { xs: all.map(([step]) => step),
    ys: all.flatMap(([, , low, high]) => [low, high]), xTitle: "step", yTitle: title(view.key),
    x: { own: false, room: 0.01 }, y: { log: view.log } });
  const targets = lines.flatMap(([one, points]) => drawCurve(to, one, points, view.key));
  legend(svg, entries, width, 364);
  return hover(svg, targets, true);
}

function drawCurve(to, one, points, key) {
  const at = (place) => points.map((point) => [to.x(point[0]), to.y(point[place])]);
  const mark = draw("g", { "data-c": one.index });
  if (one.trials.length > 1)
    mark.append(draw("path", { d: `${path([...at(2), ...at(3).reverse()])}Z`, fill: color(one.index),
      opacity: 0.13 }));
  mark.append(draw("path", { d: path(at(1)), stroke: color(one.index), "stroke-width": 1.7, fill: "none",
    "stroke-dasharray": dash(one.index) }));
  to.group.append(mark);
  if (points.length === 1) mark.append(draw("circle", { cx: at(1)[0][0], cy: at(1)[0][1], r: 3,
    fill: color(one.index) }));
  return points.map(([step, mean], i) => ({ x: at(1)[i][0], y: at(1)[i][1], index: one.index,
    text: `${one.label}\nstep ${step}: ${title(key)} ${show(mean)}` }));
}

// Draws how a sweep chose the learning rates of its configurations, if it did.
function addTuning() {
  if (!data.tuning.length) return;
  const edges = data.tuning.filter((one) => one.at_edge).map((one) => one.name);
  const element = section("rates", "Learning rates", "Mean validation loss of every rate that was tried, "
    + "with seeds of its own; a ring is around the chosen one. "
    + (edges.length ? `At the edge, so that a better one may lie beyond: ${edges.join("; ")}.` : ""));
  figure(element, "learning-rates", drawTuning);
}

function drawTuning(width) {
  const lines = data.tuning.map(({ name, rates, losses, chosen }, i) => ({ name, color: i, chosen,
    points: rates.map((rate, j) => [rate, losses[j]]).filter(([, loss]) => isNumber(loss)) }));
  const svg = picture(width, 320, "validation loss against the learning rate");
  const all = lines.flatMap(({ points }) => points);
  const to = panel(svg, { left: 0, top: 0, width, height: 320 }, { xs: all.map(([rate]) => rate),
    ys: all.map(([, loss]) => loss), xTitle: "learning rate", yTitle: "validation loss", x: { log: true } });
  const targets = lines.flatMap(({ name, color: index, chosen, points }) => {
    const stroke = color(index);
    const places = points.map(([rate, loss]) => [to.x(rate), to.y(loss)]);
    to.group.append(draw("path", { d: path(places), stroke, fill: "none", "stroke-width": 1.6,
      "stroke-dasharray": dash(index) }));
    return points.map(([rate, loss], i) => {
      const [x, y] = places[i];
      to.group.append(draw("circle", { cx: x, cy: y, r: rate === chosen ? 6 : 2.5, stroke,
        "stroke-width": 2, fill: rate === chosen ? "none" : stroke }));
      return { x, y, text: `${name}\nlearning rate ${short(rate)}: validation loss ${show(loss)}` };
    });
  });
  legend(svg, lines, width, 324);
  return hover(svg, targets);
}
