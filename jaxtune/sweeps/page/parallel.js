// Parallel coordinates, whose axes take ranges that filter the whole page.

function addParallel() {
  if (data.configurations.length < 2) return;
  const element = section("parallel", "Parallel coordinates",
    "A line is a configuration; the darker (in the dark theme: the lighter), the better. "
    + "Hover over a line, or click on it to keep it. Drag along an axis to keep a range of it, here and "
    + "everywhere on this page; with the keyboard, move the ends of an axis by the arrow keys.");
  const clear = make("button", { type: "button", id: "clear-ranges",
    click: () => { state.ranges.clear(); redraw(); } }, "clear ranges");
  drawers.push(() => { clear.disabled = !state.ranges.size; });
  figure(element, "parallel-coordinates", drawParallel, clear);
}

// Lists the axes: what varies, the costs, and the chosen metric at the right.
function coordinates(shown) {
  const keys = [...varying(), ...Object.keys(data.costs)];
  const axes = keys.map((key) => ({ key, name: nameOf(key), value: (one) => xOf(one, key) ?? "none" }));
  if (unique(shown.map((one) => one.method)).length > 1 && !varying().includes("method.name"))
    axes.unshift({ key: "method", name: "method", value: (one) => one.method });
  const { metric } = state;
  axes.push({ key: metric, name: arrow(metric), value: (one) => valueOf(one, metric)?.mean ?? "none" });
  return axes.filter((axis, i) => i === axes.length - 1 || unique(shown.map(axis.value)).length > 1);
}

function drawParallel(width) {
  const shown = filtered().filter((one) => valueOf(one));
  if (!shown.length) return empty();
  const axes = coordinates(shown);
  const gap = Math.max(92, (width - 110) / Math.max(1, axes.length - 1));
  const [whole, height] = [gap * (axes.length - 1) + 110, 330];
  const svg = picture(whole, height, "parallel coordinates");
  const scales = axes.map(({ value }) => {
    const values = shown.map(value);
    const numbers = values.filter(isNumber);
    const wide = numbers.length === values.length && Math.max(...numbers) > 20 * Math.min(...numbers);
    return scale(values, height - 20, 50, { log: wide, own: true, room: 0.03 });
  });
  const means = shown.map((one) => valueOf(one).mean);
  const [low, high] = [Math.min(...means), Math.max(...means)];
  const kept = new Set(visible().map((one) => one.index));
  // Lines outside of a range are pale, and below the others.
  const ordered = [...shown].sort((a, b) => kept.has(a.index) - kept.has(b.index));
  const targets = ordered.flatMap((one) => {
    const share = high > low ? (valueOf(one).mean - low) / (high - low) : 1;
    const points = axes.map(({ value }, i) => [40 + i * gap, scales[i].at(value(one))]);
    const inside = kept.has(one.index);
    svg.append(draw("path", { d: path(points), fill: "none", "stroke-width": 2,
      class: inside ? null : "outside", "data-c": inside ? one.index : null,
      stroke: ramp(higher(state.metric) ? share : 1 - share) }));
    return inside ? points.map(([x, y]) => ({ x, y, text: describe(one), index: one.index })) : [];
  });
  axes.forEach(({ name }, i) => drawCoordinate(svg, 40 + i * gap, name, scales[i], [i, gap, height]));
  hover(svg, targets);
  axes.forEach((axis, i) => addRange(svg, axis, 40 + i * gap, stopsOf(axis, scales[i], shown)));
  if (whole <= width) return svg;
  svg.style.maxWidth = "none";
  return make("div", { class: "scroll" }, svg);
}

function drawCoordinate(svg, x, name, { at, ticks }, [i, gap, height]) {
  svg.append(draw("line", { class: "axis", x1: x, x2: x, y1: 50, y2: height - 20, "stroke-width": 1.5 }),
    draw("text", { class: "strong small", x: x - 30, y: i % 2 && gap < 150 ? 34 : 16 },
      cut(name, (gap < 150 ? 1.9 : 1) * gap)));
  for (const [value, text] of ticks)
    svg.append(draw("text", { class: "small halo", x: x + 6, y: at(value) + 4 }, cut(text, gap)));
}

const ramp = (share) => `color-mix(in oklab, var(--high) ${Math.round(100 * share)}%, var(--low))`;

// Lists the values of an axis as {value, y}, from the bottom of the picture to its top.
function stopsOf(axis, { at }, shown) {
  return unique(shown.map(axis.value)).map((value) => ({ value, y: at(value) })).sort((a, b) => b.y - a.y);
}

// Keeps the configurations from one stop of an axis to another one, or all of them.
function setRange(axis, stops, first, last) {
  const [low, high] = [stops[first].value, stops[last].value];
  const inside = (one) => compare(low, axis.value(one), false) <= 0 && compare(axis.value(one), high, false) <= 0;
  if (first === 0 && last === stops.length - 1) state.ranges.delete(axis.key);
  else state.ranges.set(axis.key, Object.assign(inside, { low, high }));
  redraw();
}

// Returns the numbers of the first and the last stop that the range of an axis holds.
function rangeOf(axis, stops) {
  const range = state.ranges.get(axis.key);
  if (!range) return [0, stops.length - 1];
  const held = stops.map(({ value }, i) => i).filter((i) => compare(range.low, stops[i].value, false) <= 0
    && compare(stops[i].value, range.high, false) <= 0);
  return held.length ? [held[0], held.at(-1)] : [0, stops.length - 1];
}

// Draws the range of an axis with its two ends, and takes a new one from pointer and keyboard.
function addRange(svg, axis, x, stops) {
  const [first, last] = rangeOf(axis, stops);
  const [top, bottom] = [stops[last].y - 6, stops[first].y + 6];
  const bar = draw("rect", { class: "range", x: x - 5, width: 10, y: top, height: bottom - top,
    visibility: state.ranges.has(axis.key) ? "visible" : "hidden" });
  const zone = draw("rect", { class: "zone", x: x - 13, width: 26, y: 40, height: 280, "data-axis": axis.key });
  const ends = [[first, "lowest", bottom], [last, "highest", top]].map(([stop, name, y], i) => {
    const move = (to) => {
      const limit = i ? Math.max(to, first) : Math.min(to, last);
      setRange(axis, stops, ...(i ? [first, limit] : [limit, last]));
      document.querySelectorAll(`[data-end="${CSS.escape(axis.key)}"]`)[i].focus();
    };
    return draw("rect", { class: "end", x: x - 7, width: 14, y: y - 3, height: 6, rx: 2, tabindex: 0,
      role: "slider", "aria-label": `${name} ${axis.name} that is kept`, "aria-orientation": "vertical",
      "aria-valuemin": 0, "aria-valuemax": stops.length - 1, "aria-valuenow": stop,
      "aria-valuetext": short(stops[stop].value), "data-end": axis.key, keydown: (event) => {
        const to = { ArrowUp: stop + 1, ArrowRight: stop + 1, ArrowDown: stop - 1, ArrowLeft: stop - 1,
          Home: 0, End: stops.length - 1, Escape: i ? stops.length - 1 : 0 }[event.key];
        if (to === undefined) return;
        event.preventDefault();
        event.stopPropagation();
        move(Math.min(Math.max(to, 0), stops.length - 1));
      } });
  });
  followPointer(svg, zone, bar, (from, to) => {
    const held = stops.map((_, i) => i).filter((i) => stops[i].y >= from && stops[i].y <= to);
    if (held.length) setRange(axis, stops, held[0], held.at(-1));
    else setRange(axis, stops, 0, stops.length - 1);
  });
  svg.append(bar, zone, ...ends);
}

// Draws a range while the pointer is dragged, and calls `done` with its upper and its lower end.
function followPointer(svg, zone, bar, done) {
  const heightOf = (event) => {
    const frame = svg.getBoundingClientRect();
    return (event.clientY - frame.top) * svg.viewBox.baseVal.height / frame.height;
  };
  let began = null;
  const ends = (event) => [Math.min(began, heightOf(event)), Math.max(began, heightOf(event))];
  const listen = (name, act) => zone.addEventListener(name, (event) => {
    event.stopPropagation();
    act(event);
  });
  listen("click", () => {});
  listen("pointerdown", (event) => {
    zone.setPointerCapture(event.pointerId);
    began = heightOf(event);
  });
  listen("pointermove", (event) => {
    if (began === null) return;
    const [from, to] = ends(event);
    bar.setAttribute("visibility", "visible");
    bar.setAttribute("y", from);
    bar.setAttribute("height", to - from);
  });
  listen("pointerup", (event) => {
    if (began === null) return;
    const [from, to] = ends(event);
    began = null;
    done(...(to - from < 4 ? [0, 0] : [from, to])); // a click alone takes the range away
  });
  listen("pointercancel", () => { began = null; redraw(); });
}
