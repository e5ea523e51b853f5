// Puts the page together.

function addWarnings() {
  const place = make("div", { id: "warnings" });
  for (const text of data.warnings) place.append(make("p", { class: "warning", role: "note" }, text));
  const assumed = Object.entries(data.reproduce.facts).filter(([name]) => isAssumed(name));
  if (assumed.length)
    place.append(make("details", { open: "" }, make("summary", {}, "What was assumed"), listed(assumed)));
  main.append(place);
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
