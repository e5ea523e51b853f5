// What both pages use. Text from the server becomes text nodes only, so that no model's output is
// ever markup.

const csrf = document.querySelector("meta[name=csrf]").content;

export const find = (selector) => document.querySelector(selector);

// The rater's name belongs to the tab: two people can judge in two tabs of one browser.
export const session = {
  get rater() { return sessionStorage.getItem("rater") ?? ""; },
  set rater(name) { sessionStorage.setItem("rater", name); },
};

// The address was opened with its secret token, which the cookie holds now: it need not be seen.
export function hideToken() {
  if (location.search) history.replaceState(null, "", location.pathname);
}

// Asks the server: a GET, or with a body a POST. Throws an Error; its `status` is HTTP's, 0 where the
// server did not answer.
export async function ask(path, body) {
  const post = { method: "POST", body: JSON.stringify(body) };
  const headers = { "Content-Type": "application/json", "X-CSRF-Token": csrf };
  let response, content;
  try {
    response = await fetch(`/api/${path}`, body ? { ...post, headers } : {});
    content = await response.json();
  } catch {
    throw Object.assign(new Error("The server does not answer."), { status: 0 });
  }
  if (!response.ok) throw Object.assign(new Error(sentence(content.error)), { status: response.status });
  return content;
}

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export function say(message) {
  const place = find("#alert");
  if (place.textContent !== message) place.textContent = message;
  place.hidden = !message;
}

const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}.`;
