// Draws the results: win rate with its interval, votes, agreement, bias to a side, raters.

import { ask, find, hideToken, make, say, session } from "./base.js";

const percent = (share) => (share === null ? "–" : `${(100 * share).toFixed(0)}\u00a0%`);
const between = (interval) =>
  interval ? `${(100 * interval[0]).toFixed(0)} to ${percent(interval[1])}` : "–";
const count = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;

const section = (title, ...children) => make("section", {}, make("h2", {}, title), ...children);
const note = (text) => make("p", { class: "note" }, text);

// A bar whose parts are as wide as their counts. Widths are set by script: no style is in markup.
function bar(parts) {
  const shown = parts.filter(([, number]) => number);
  const words = parts.map(([label, number]) => `${label}: ${number}`).join(", ");
  const drawn = make("div", { class: "shares", role: "img", "aria-label": words });
  for (const [, number, kind] of shown) {
    const part = make("span", { class: kind }, String(number));
    part.style.flexGrow = number;
    drawn.append(part);
  }
  return drawn;
}

// An interval on an axis from 0 to 100 %, with a rule at one half.
function axis(value, interval, words) {
  const drawn = make("div", { class: "axis", role: "img", "aria-label": words });
  const line = make("span", { class: "line" });
  const dot = make("span", { class: "dot" });
  line.style.left = `${100 * interval[0]}%`;
  line.style.right = `${100 - 100 * interval[1]}%`;
  dot.style.left = `${100 * value}%`;
  drawn.append(make("span", { class: "half" }), line, dot);
  return make("div", { class: "scale" }, drawn, make("div", { class: "ticks", "aria-hidden": "true" },
    make("span", {}, "0 %"), make("span", {}, "50 %"), make("span", {}, "100 %")));
}

function verdict(found) {
  const [a, b] = found.names;
  const [low, high] = found.interval;
  const ahead = low > 0.5 ? `Raters prefer ${a} to ${b}.` : high < 0.5 ? `Raters prefer ${b} to ${a}.`
    : `These votes do not tell ${a} and ${b} apart.`;
  return make("p", { class: "verdict" }, ahead);
}

function winRate(found) {
  if (found.win_rate === null) return section("Win rate", note("There is no vote yet."));
  const [a, b] = found.names;
  const words = `${a} wins ${percent(found.win_rate)} (95 % interval ${between(found.interval)})`;
  const less = found.skips ? `; left out: ${count(found.skips, "skipped vote")}` : "";
  const legend = make("ul", { class: "legend" },
    ...[[`${a} is better`, "a"], ["Tie", "tie"], [`${b} is better`, "b"]].map(([label, kind], i) =>
      make("li", {}, make("span", { class: `swatch ${kind}`, "aria-hidden": "true" }), label,
        make("strong", {}, ` ${[found.wins, found.ties, found.losses][i]}`))));
  return section("Win rate", verdict(found),
    make("p", { class: "figure" }, make("strong", {}, percent(found.win_rate)),
      ` win rate of ${a}, 95 % interval ${between(found.interval)}`),
    axis(found.win_rate, found.interval, words),
    bar([[a, found.wins, "a"], ["ties", found.ties, "tie"], [b, found.losses, "b"]]), legend,
    note(`A tie counts half for each${less}. ${found.judged} of ${count(found.pairs, "pair")} judged. ` +
      "The interval is Wilson’s, over pairs: several votes on one pair are not independent."),
    skipped(found.skipped));
}

function skipped(reasons) {
  const said = Object.entries(reasons).map(([reason, number]) => `${reason} (${number})`);
  return note(said.length ? `Prompts that were not judged: ${said.join(", ")}.` : "");
}

function agreement(found) {
  const given = found.agreement;
  if (!given) return note("One rater alone: agreement needs two.");
  if (!given.pairs) return note("No pair was judged by two raters yet.");
  const kappa = given.kappa === null ? "is not defined, as all votes are the same" : given.kappa.toFixed(2);
  return make("div", {},
    make("p", { class: "figure" }, `${given.kind} `, make("strong", {}, kappa),
      ` over ${count(given.pairs, "pair")} that several judged`),
    note(`Two raters of one pair choose the same in ${percent(given.agreed)} of the cases. Kappa is 1 where ` +
      "they always do, and 0 where they do as often as by chance."));
}

function side(found) {
  if (found.left === null) return note("No side was chosen yet.");
  const words = `Answer 1 is chosen in ${percent(found.left)} (95 % interval ${between(found.left_interval)})`;
  return make("div", {}, axis(found.left, found.left_interval, words),
    note(`${words} of the votes that are no ties. As sides are drawn at random, an interval without ` +
      "50\u00a0% shows raters who favour a position."));
}

function raters(found) {
  const [a, b] = found.names;
  const heads = ["Rater", "Votes", `${a} better`, "Ties", `${b} better`, "Skipped", `Win rate of ${a}`, "Chose answer 1"];
  const rows = found.raters.map((one) => [
    one.name, one.votes, one.wins, one.ties, one.losses, one.skips,
    one.win_rate === null ? "–" : `${percent(one.win_rate)} (${between(one.interval)})`, percent(one.left),
  ]);
  const table = make("table", {},
    make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))),
    make("tbody", {}, ...rows.map(([name, ...cells]) =>
      make("tr", {}, make("th", { scope: "row" }, name), ...cells.map((cell, i) => make("td", { "data-head": heads[i + 1] }, String(cell)))))));
  return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Raters" }, table);
}

async function show() {
  const found = await ask("results");
  const parts = [winRate(found)];
  if (found.raters.length)
    parts.push(section("Agreement", agreement(found)), section("Bias to a side", side(found)),
      section("Raters", raters(found)));
  find("#gate").hidden = true;
  find("#results").replaceChildren(...parts);
  find("#results").hidden = false;
}

async function begin() {
  const rater = session.rater;
  const state = rater && (await ask(`next?rater=${encodeURIComponent(rater)}`).catch(() => null));
  if (!state?.pair) return show();
  find("#gate").hidden = false;
}

const failed = (error) => say(error.message);
hideToken();
find("#enter").addEventListener("click", () => show().catch(failed));
begin().catch(failed);
