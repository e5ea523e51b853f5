// Shows one pair after another, and sends what the rater chooses. What cannot be sent is sent again
// until the server has it: the same vote twice is one vote.

import { ask, find, hideToken, say, session } from "./base.js";

const SECTIONS = ["welcome", "judging", "finished"];
const KEYS = { ArrowLeft: "left", 1: "left", ArrowRight: "right", 2: "right", t: "tie", s: "skip" };
const SAID = {
  left: "Answer 1 chosen.", right: "Answer 2 chosen.", tie: "Tie.", skip: "Skipped.",
  undo: "Your latest vote is taken back.",
};
let state = null; // what the server said last: see voting.state
let busy = false;

function open(section) {
  for (const name of SECTIONS) find(`#${name}`).hidden = name !== section;
  find("#who").hidden = section === "welcome";
}

function welcome() {
  open("welcome");
  find("#name").value = session.rater;
  find("#name").focus();
}

// Shows a state, and moves the focus to its heading, so that a screen reader goes on from there.
function show(next, announced = "") {
  state = next;
  const { pair, done, total, skipped } = next;
  find("#who strong").textContent = session.rater;
  for (const button of document.querySelectorAll(".undo")) button.disabled = next.latest === null;
  open(pair ? "judging" : "finished");
  find("#reason").value = "";
  if (pair) {
    find("#heading").textContent = `Pair ${done + 1} of ${total}`;
    Object.assign(find("#progress"), { max: total, value: done });
    find("#prompt").textContent = pair.prompt;
    for (const side of ["left", "right"]) {
      find(`#${side}`).textContent = pair[side] || "(empty answer)";
      find(`#${side}`).classList.toggle("faint", !pair[side]);
    }
  } else {
    const less = skipped ? `, ${skipped} of which you skipped` : "";
    find("#finished-text").textContent = `Thank you. You have seen all ${total} pairs${less}.`;
  }
  find("#status").textContent = announced;
  scrollTo(0, 0);
  find(pair ? "#heading" : "#finished-title").focus({ preventScroll: true });
}

const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

// Asks until the server answers. One request at a time: what is pressed meanwhile is no vote.
async function patiently(path, body) {
  for (let pause = 500; ; pause = Math.min(2 * pause, 5000)) {
    try {
      const answer = await ask(path, body);
      say("");
      return answer;
    } catch (error) {
      if (error.status && error.status !== 503) throw error;
      say(`${error.message} Nothing is lost: this is tried again until it works.`);
      await wait(pause);
    }
  }
}

async function send(path, body, announced) {
  if (busy) return;
  busy = true;
  find("#judging").setAttribute("aria-busy", "true");
  try {
    show(await patiently(path, body), announced);
  } catch (error) {
    await recover(error);
  } finally {
    busy = false;
    find("#judging").removeAttribute("aria-busy");
  }
}

// Says what was refused, and shows what the server has.
async function recover(error) {
  if (error.status === 404) welcome();
  if (error.status === 409) show(await patiently(`next?rater=${encodeURIComponent(session.rater)}`));
  say(error.message);
}

function vote(choice) {
  if (!state?.pair || find("#judging").hidden) return;
  const reason = find("#reason").value;
  send("vote", { rater: session.rater, pair: state.pair.number, choice, reason }, SAID[choice]);
}

function undo() {
  if (!state || state.latest === null || !find("#welcome").hidden) return;
  send("undo", { rater: session.rater, pair: state.latest }, SAID.undo);
}

async function join(name) {
  const answer = await patiently("join", { rater: name });
  session.rater = answer.rater;
  show(answer);
}

function pressed(event) {
  if (event.target.id === "reason" && ["Escape", "Enter"].includes(event.key)) find("#heading").focus();
  const typing = event.target.matches("input, textarea, select");
  const modified = event.ctrlKey || event.metaKey || event.altKey;
  if (typing || modified || event.repeat || !find("#keys").checked || find("#judging").hidden) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (KEYS[key]) vote(KEYS[key]);
  else if (key === "u") undo();
  else if (key === "r") find("#reason").focus();
  else return;
  event.preventDefault();
}

hideToken();
document.addEventListener("keydown", pressed);
for (const element of document.querySelectorAll("[data-choice]"))
  element.addEventListener("click", (event) => {
    const selecting = element.matches(".answer") && String(getSelection());
    const again = event.detail > 1; // of a double click, which is no vote on the next pair
    if (!selecting && !again) vote(element.dataset.choice);
  });
for (const button of document.querySelectorAll(".undo")) button.addEventListener("click", undo);
// A vote that is still being sent belongs to the rater who gave it.
find("#leave").addEventListener("click", () => busy || welcome());
find("#name-form").addEventListener("submit", (event) => {
  event.preventDefault();
  join(find("#name").value).catch((error) => say(error.message));
});
if (session.rater) join(session.rater).catch((error) => { welcome(); say(error.message); });
else welcome();
