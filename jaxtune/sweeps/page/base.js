"use strict";
// What all sections of the page use: its data, elements, numbers, the tooltip, focus and exports.
// Text from the data becomes text nodes and attributes only, so that no model's output is markup.

const data = JSON.parse(document.getElementById("data").textContent);
const SVG = document.getElementById("blank").namespaceURI;
const main = document.querySelector("main");
const tip = document.getElementById("tip");
const state = { metric: data.metric, filter: "", pinned: null, ranges: new Map() };
const drawers = []; // functions that draw a section anew

// Makes an element of HTML; attributes that are functions listen to the event of their name.
function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

// Makes an element of SVG.
function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

// Writes a number for a person: thousands are separated, and small numbers keep their digits.
// `places` is how many follow the point, if not as its size asks.
function show(value, places) {
  if (typeof value !== "number") return value === null || value === undefined ? "–" : String(value);
  if (places !== undefined) return value.toFixed(places);
  const size = Math.abs(value);
  if (Number.isInteger(value)) return size < 1e7 ? value.toLocaleString("en") : short(value);
  if (size >= 1e5 || size < 5e-3) return short(value);
  return value.toFixed(size >= 100 ? 1 : size >= 10 ? 2 : 3);
}

// Writes a number in few characters, as an axis needs it: 12k, 3.2M, 1e-4.
function short(value) {
  if (typeof value !== "number") return String(value);
  const size = Math.abs(value);
  for (const [unit, letter] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (size >= unit) return `${Number((value / unit).toPrecision(3))}${letter}`;
  if (value && size < 1e-3) return Number(value.toPrecision(2)).toExponential().replace("e+", "e");
  return String(Number(value.toPrecision(4)));
}

const signed = (value, places) => (value > 0 ? "+" : "") + show(value, places);
const title = (metric) => data.metrics[metric]?.title ?? metric.replaceAll("_", " ");
const higher = (metric) => data.metrics[metric]?.higher ?? false;
const arrow = (metric) => `${title(metric)} ${higher(metric) ? "↑" : "↓"}`;
const better = (a, b) => (higher(state.metric) ? a > b : a < b);
const color = (index) => `var(--c${index % 10})`;
// There are ten colours: from the eleventh on, lines are dashed and points are rings.
const dash = (index) => ["", "7 3", "2 3"][Math.floor(index / 10) % 3];
const unique = (values) => [...new Set(values)];

// Writes an estimate with its interval, in the digits that the interval tells: "1.23 [1.10, 1.36]".
function estimate(value, write = show) {
  if (!value || value.mean === null) return "–";
  const some = value.count && value.count < value.of ? ` (${value.count} of ${value.of})` : "";
  if (value.low === null) return write(value.mean) + some;
  const digits = 1 - Math.floor(Math.log10(value.high - value.low));
  const places = digits >= 1 && digits <= 5 ? digits : undefined;
  return `${write(value.mean, places)} [${write(value.low, places)}, ${write(value.high, places)}]${some}`;
}

// Returns the estimate of the chosen metric, with finite numbers, or null.
function valueOf(configuration, metric = state.metric) {
  const value = configuration.values[metric];
  return value && value.mean !== null ? value : null;
}

// Returns the configurations that the filter and the ranges of the parallel coordinates leave.
function visible() {
  const ranges = [...state.ranges.values()];
  return filtered().filter((one) => ranges.every((inside) => inside(one)));
}

// Returns those that the filter leaves. Each word must occur in the name, the method or the state, or
// be a comparison such as rank>=4 or test_loss<2.
function filtered() {
  const words = state.filter.toLowerCase().split(/\s+/).filter(Boolean);
  return data.configurations.filter((one) => words.every((word) => matches(one, word)));
}

function matches(configuration, word) {
  const comparison = word.match(/^([^<>=!]+)(<=|>=|!=|<|>|=)(.+)$/);
  if (!comparison) {
    return `${configuration.label} ${configuration.state}`.toLowerCase().includes(word);
  }
  const [, name, sign, wanted] = comparison;
  const found = quantity(configuration, name);
  if (found === undefined) return false;
  const [a, b] = isNaN(wanted) ? [String(found).toLowerCase(), wanted] : [Number(found), Number(wanted)];
  return { "<": a < b, ">": a > b, "<=": a <= b, ">=": a >= b, "=": a === b, "!=": a !== b }[sign];
}

// Finds a setting by its path or its short name, a cost or the mean of a metric; names are in lower case.
function quantity({ settings, costs, values }, name) {
  const named = (key) => key.toLowerCase() === name;
  const find = (known) => Object.keys(known).find(named);
  const path = Object.keys(data.settings).find((one) => named(one) || named(data.settings[one]));
  return settings[path] ?? costs[find(costs)] ?? values[find(values)]?.mean ?? undefined;
}

// Shows one configuration in every picture, and pales the others; null shows all.
function focus(index) {
  const chosen = index ?? state.pinned;
  main.classList.toggle("focusing", chosen !== null);
  for (const mark of main.querySelectorAll("[data-c]"))
    mark.classList.toggle("on", chosen !== null && Number(mark.dataset.c) === chosen);
}

function pin(index) {
  state.pinned = state.pinned === index ? null : index;
  focus(null);
}

function showTip(text, x, y) {
  tip.textContent = text;
  tip.hidden = !text;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - width - 6))}px`;
  tip.style.top = `${y + height + 24 > innerHeight ? y - height - 12 : y + 16}px`;
}

// Makes a choice of one of [value, text], and calls `change` with the value.
function choice(label, options, value, change) {
  const select = make("select", { change: () => change(select.value) });
  for (const [one, text] of options)
    select.append(make("option", { value: one, selected: one === value ? "" : null }, text));
  return make("label", {}, label, select);
}

function toggle(label, checked, change) {
  const box = make("input", { type: "checkbox", change: () => change(box.checked) });
  box.checked = checked;
  return make("label", {}, box, label);
}

function redraw() {
  for (const drawer of drawers) drawer();
  focus(null);
}

// Adds a section with a heading and an entry in the navigation; returns its element.
function section(id, heading, note = "") {
  const element = make("section", { id }, make("h2", {}, heading));
  if (note) element.append(make("p", { class: "note" }, note));
  const name = id[0].toUpperCase() + id.slice(1).replaceAll("-", " ");
  document.querySelector("nav").append(make("a", { href: `#${id}` }, name));
  main.append(element);
  return element;
}

// Adds a figure, which `drawing(width)` draws whenever something changes, and which can be saved.
function figure(element, name, drawing, ...controls) {
  const place = make("div");
  const save = (kind, text) => make("button", { type: "button", click: () =>
    exportPicture(place.querySelector("svg"), name, kind) }, text);
  if (controls.length) element.append(make("div", { class: "controls" }, ...controls));
  element.append(
    make("figure", {}, place, make("figcaption", {}, save("png", "PNG"), save("svg", "SVG"))));
  drawers.push(() => place.replaceChildren(drawing(widthOf(element))));
}

function download(name, content) {
  const link = make("a", { href: URL.createObjectURL(content), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// Saves a picture as it looks now: the page's colours are written into a copy of it.
function exportPicture(svg, name, kind) {
  if (!svg) return; // nothing is drawn
  const copy = svg.cloneNode(true);
  const originals = [svg, ...svg.querySelectorAll("*")];
  [copy, ...copy.querySelectorAll("*")].forEach((element, i) => {
    const style = getComputedStyle(originals[i]);
    for (const key of ["fill", "stroke", "stroke-width", "stroke-dasharray", "opacity", "font",
      "paint-order", "text-anchor"]) element.style.setProperty(key, style.getPropertyValue(key));
  });
  copy.style.background = getComputedStyle(document.body).backgroundColor;
  const text = new XMLSerializer().serializeToString(copy);
  const picture = new Blob([text], { type: "image/svg+xml" });
  if (kind === "svg") return download(`${name}.svg`, picture);
  const image = new Image();
  image.onload = () => {
    const canvas = make("canvas", { width: 2 * image.width, height: 2 * image.height });
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    canvas.toBlob((blob) => download(`${name}.png`, blob));
  };
  image.src = `data:image/svg+xml,${encodeURIComponent(text)}`;
}

// Saves rows of cells as CSV. A text that a spreadsheet would take for a formula begins with a quote.
function exportCsv(name, rows) {
  const cell = (value) => {
    let text = value === null || value === undefined ? "" : String(value);
    if (typeof value === "string" && /^[=+@\t\r-]/.test(text)) text = `'${text}`;
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const lines = rows.map((row) => row.map(cell).join(",") + "\n");
  download(`${name}.csv`, new Blob(lines, { type: "text/csv" }));
}
