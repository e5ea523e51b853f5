// Puts the page together.

function addWarnings() {
  const place = make("div", { id: "warnings" });
  if (data.warnings.length) place.append(makeWarnings());
  const assumed = Object.entries(data.reproduce.facts).filter(([name]) => isAssumed(name));
  if (assumed.length)
    place.append(make("details", { open: "" }, make("summary", {}, "What was assumed"), listed(assumed)));
  main.append(place);
}

// Lists the warnings by their first sentences; each opens to the rest of it, and on paper all do.
function makeWarnings() {
  const items = data.warnings.map((text) => {
    const [first] = text.match(/^.+?[.](?= ([A-Z]|\S+=))|.+/s);
    const rest = text.slice(first.length).trim();
    return make("details", { class: "warning" }, make("summary", {}, make("span", {}, first)),
      rest ? make("p", {}, rest) : null);
  });
  const openAll = (open) => items.forEach((item) => { item.open = open; });
  const all = make("button", { type: "button", class: "no-print", "aria-expanded": "false",
    click: () => {
      const open = !items.every((item) => item.open);
      openAll(open);
      all.textContent = open ? "fold" : "read all";
      all.setAttribute("aria-expanded", String(open));
    } }, "read all");
  let before = [];
  addEventListener("beforeprint", () => { before = items.map((item) => item.open); openAll(true); });
  addEventListener("afterprint", () => items.forEach((item, i) => { item.open = before[i]; }));
  const count = `${items.length} ${items.length === 1 ? "warning" : "warnings"}`;
  return make("div", { role: "region", "aria-label": "warnings" },
    make("h2", {}, `${count} about this comparison `, all), ...items);
}

function addControls() {
  const bar = document.querySelector("header .controls");
  const names = Object.keys(data.metrics).map((name) => [name, arrow(name)]);
  const filter = make("input", { type: "search", id: "filter", placeholder: "filter, like rank>=4",
    "aria-label": "filter configurations", input: () => { state.filter = filter.value; redraw(); } });
  const theme = make("button", { type: "button", id: "theme", title: "dark or light",
    "aria-label": "dark or light", click: () => setTheme(!isDark()) }, "◐");
  bar.append(choice("metric", names, state.metric, (value) => { state.metric = value; redraw(); }),
    filter, theme);
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.target.matches("input, select")) return;
    event.preventDefault();
    filter.focus();
  });
}

const isDark = () => document.documentElement.dataset.theme === "dark";

function setTheme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
}

// Follows the system's theme, and is light on paper.
function followTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)");
  setTheme(system.matches);
  system.addEventListener("change", () => setTheme(system.matches));
  let before = false;
  addEventListener("beforeprint", () => { before = isDark(); setTheme(false); });
  addEventListener("afterprint", () => setTheme(before));
}

// Draws anew when the width has changed.
function followWidth() {
  let width = innerWidth;
  let waiting = 0;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(redraw, 120);
  });
}

followTheme();
addWarnings();
addControls();
for (const add of [addTable, addAgainst, addPareto, addCurves, addTuning, addParallel, addMatrix, addHeat,
  addSamples, addTables, addReproduce]) add();
followWidth();
redraw();
