// Axes, panels and the nearest point of a picture.

// Makes a scale: values to pixels from `low` to `high`, with its ticks as [value, text].
function scale(values, low, high, { log = false, own = false, room = 0.06 } = {}) {
  if (values.some((value) => typeof value !== "number")) return categories(values, low, high);
  const positive = log && values.every((value) => value > 0);
  const to = positive ? Math.log10 : (value) => value;
  let [first, last] = [to(Math.min(...values)), to(Math.max(...values))];
  const wide = (last - first || Math.abs(last) || 1) * room;
  [first, last] = [first - wide, last + wide];
  const at = (value) => low + ((to(value) - first) / (last - first)) * (high - low);
  const most = Math.max(2, Math.floor(Math.abs(high - low) / 70));
  let ticks = positive ? decades(first, last, most) : steps(first, last, most);
  const few = unique(values).sort((a, b) => a - b);
  if ((own && few.length <= 10) || ticks.length < 2) ticks = few;
  return { at, ticks: apart(ticks, at).map((value) => [value, short(value)]) };
}

// Leaves out ticks that would touch the one before them.
function apart(ticks, at) {
  let last = -Infinity;
  return ticks.filter((value) => {
    const fits = Math.abs(at(value) - last) >= 26;
    if (fits) last = at(value);
    return fits;
  });
}

function categories(values, low, high) {
  const found = unique(values).sort((a, b) => compare(a, b, false));
  const at = (value) => low + ((found.indexOf(value) + 0.5) / found.length) * (high - low);
  return { at, ticks: found.map((value) => [value, short(value)]) };
}

function steps(first, last, most) {
  const raw = (last - first) / most;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= raw);
  const ticks = [];
  for (let i = Math.ceil(first / step); i * step <= last; i++) ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
}

function decades(first, last, most) {
  const ticks = [];
  const factors = last - first < 0.6 * most ? [1, 2, 5] : [1];
  for (let power = Math.floor(first); power <= last; power++)
    for (const factor of factors) {
      const place = power + Math.log10(factor);
      if (place >= first && place <= last) ticks.push(Number((factor * 10 ** power).toPrecision(12)));
    }
  return ticks;
}

// Makes an empty picture of the width that its section has.
function picture(width, height, label) {
  return draw("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", tabindex: 0,
    "aria-label": `${label}. The arrow keys go from point to point.` });
}

const widthOf = (element) => Math.max(280, Math.min(Math.floor(element.getBoundingClientRect().width), 1280));

// Draws the frame of one panel, {left, top, width, height}, and returns its scales and its group.
function panel(svg, box, { xs, ys, xTitle, yTitle, x = {}, y = {}, heading = "" }) {
  const bottom = box.top + box.height - 40;
  const top = box.top + (heading ? 24 : 8);
  const yScale = scale(ys, bottom, top, y);
  const left = box.left + 28 + Math.max(...yScale.ticks.map(([, text]) => lengthOf(text)));
  const right = box.left + box.width - 12;
  const xScale = scale(xs, left, right, { own: true, ...x });
  const group = draw("g");
  for (const [value, text] of yScale.ticks) {
    const height = yScale.at(value);
    group.append(
      draw("line", { class: "grid", x1: left, x2: right, y1: height, y2: height }),
      draw("text", { class: "faint", x: left - 6, y: height + 4, "text-anchor": "end" }, text));
  }
  const room = (right - left) / xScale.ticks.length - 4;
  for (const [value, text] of xScale.ticks)
    group.append(draw("text", { class: "faint", x: xScale.at(value), y: bottom + 17,
      "text-anchor": "middle" }, cut(text, room)));
  const middle = (top + bottom) / 2;
  group.append(
    draw("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }),
    draw("text", { x: (left + right) / 2, y: bottom + 34, "text-anchor": "middle" }, xTitle),
    draw("text", { x: box.left + 12, y: middle, "text-anchor": "middle",
      transform: `rotate(-90 ${box.left + 12} ${middle})` }, cut(yTitle, bottom - top)));
  if (heading) group.append(
    draw("text", { class: "strong", x: left, y: box.top + 14 }, cut(heading, 0.9 * (right - left))));
  svg.append(group);
  return { x: xScale.at, y: yScale.at, group, left, right, top, bottom };
}

// Measures a text, in pixels, as the pictures write it.
function lengthOf(text) {
  return pen.measureText(text).width;
}

const pen = make("canvas").getContext("2d");
pen.font = '12px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif';

// Shortens a text to at most so many pixels.
function cut(text, pixels) {
  if (lengthOf(text) <= pixels) return text;
  let kept = text.length - 1;
  while (kept > 1 && lengthOf(`${text.slice(0, kept)}…`) > pixels) kept--;
  return `${text.slice(0, kept)}…`;
}

// Draws the names of colours, {name, color}, from `top` on, in as many lines as needed, and ends the
// picture there. A name without a colour is a note.
function legend(svg, entries, width, top) {
  let [x, y] = [8, top + 12];
  for (const { name, color: key, index } of entries) {
    const text = cut(name, width - 40);
    const wide = 34 + lengthOf(text);
    if (x + wide > width && x > 8) [x, y] = [8, y + 19];
    svg.append(draw("g", { "data-c": index },
      draw("line", { x1: x, x2: x + 18, y1: y - 4, y2: y - 4, "stroke-width": 3,
        ...(isNumber(key) ? { stroke: color(key), "stroke-dasharray": dash(key) } : {}) }),
      draw("text", { x: x + 23, y }, text)));
    x += wide + 6;
  }
  svg.setAttribute("viewBox", `0 0 ${width} ${y + 12}`);
  svg.setAttribute("height", y + 12);
}

// Groups items by the text or number that `key` gives, in the order of their first appearance.
function groupBy(items, key) {
  const groups = new Map();
  for (const item of items) groups.set(key(item), [...(groups.get(key(item)) ?? []), item]);
  return groups;
}

const path = (points) => "M" + points.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L");

// Names the nearest target {x, y, text, index} under the pointer, or the one that the arrow keys reach.
// With `along`, the nearest in x counts first, as on curves.
function hover(svg, targets, along = false) {
  const cursor = draw("circle", { class: "cursor", r: 7, visibility: "hidden" });
  svg.append(cursor);
  let current = -1;
  const go = (index) => {
    current = index;
    const target = targets[index];
    cursor.setAttribute("visibility", target ? "visible" : "hidden");
    if (!target) return leave();
    cursor.setAttribute("cx", target.x);
    cursor.setAttribute("cy", target.y);
    focus(target.index ?? null);
    const frame = svg.getBoundingClientRect();
    const ratio = frame.width / svg.viewBox.baseVal.width;
    showTip(target.text, frame.left + target.x * ratio, frame.top + target.y * ratio);
  };
  const leave = () => {
    cursor.setAttribute("visibility", "hidden");
    current = -1;
    showTip("");
    focus(null);
  };
  svg.addEventListener("pointermove", (event) => go(nearest(svg, targets, event, along)));
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("blur", leave);
  svg.addEventListener("click", () => targets[current] && pin(targets[current].index ?? null));
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") leave();
    if (event.key === "Enter" && targets[current]) pin(targets[current].index ?? null);
    if (!step || !targets.length) return;
    event.preventDefault();
    go((current + step + targets.length) % targets.length);
  });
  return svg;
}

function nearest(svg, targets, event, along) {
  const frame = svg.getBoundingClientRect();
  const ratio = svg.viewBox.baseVal.width / frame.width;
  const [x, y] = [(event.clientX - frame.left) * ratio, (event.clientY - frame.top) * ratio];
  let [best, least] = [-1, along ? Infinity : 900];
  targets.forEach((target, i) => {
    const distance = (along ? 9 : 1) * (target.x - x) ** 2 + (target.y - y) ** 2;
    if (distance < least) [best, least] = [i, distance];
  });
  return best;
}
