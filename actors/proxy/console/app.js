// The page: which view is shown, asking for it every two seconds, who is logged in, and actions with a confirmation.
// The token is kept here, in memory, and nowhere else: a reload logs out.

import { count, h, show } from "./dom.js";
import { does as keyDoes, keys } from "./keys.js";
import { barriers, clients, cluster, elections, leases, load, locks, queues, semaphores, services } from "./views.js";

const VIEWS = { cluster, keys, locks, semaphores, elections, queues, barriers, services, leases, clients, load };
const GROUPS = [["", ["cluster", "keys"]], ["Coordination", ["locks", "semaphores", "elections", "queues", "barriers", "services"]], ["Processes", ["leases", "clients", "load"]]];
const EVERY_MS = 2000;
const PATIENCE_MS = 15000;

const at = (id) => document.getElementById(id);
const main = at("view"), dialog = at("dialog"), toast = at("toast");

let token = "";
let user = "";
let known = null; // the last answer about the cluster
let shown = null; // { view, data } that is on the screen
let round = 0; // a refresh that is not the newest changes nothing
let timer = 0;
let refreshed = 0;

// --- asking ----------------------------------------------------------------------------------------------------------

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Values of parameters are percent-encoded already: they stand for bytes. */
const query = (given) => Object.entries(given).map(([name, value]) => `${name}=${value}`).join("&");

async function ask(path, options = {}) {
  const headers = { ...(options.headers || {}), ...(token ? { authorization: token } : {}) };
  const signal = options.signal || AbortSignal.timeout(PATIENCE_MS);
  const answer = await fetch(path, { cache: "no-store", credentials: "omit", redirect: "error", ...options, headers, signal });
  if (answer.ok) return answer;
  const text = await answer.text();
  let message = text.trim() || answer.statusText;
  try {
    message = JSON.parse(text).message || message;
  } catch {} // not JSON: the text is the message
  throw new Refused(answer.status, message);
}

const api = async (view, given = {}) => (await ask(`console/api/${view}?${query(given)}`)).json();

const send = async (path, told, signal) =>
  (await ask(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(told), signal })).json();

/** Give each JSON line of an answer to `take`, as it comes. */
async function stream(view, given, take, signal) {
  const answer = await ask(`console/api/${view}?${query(given)}`, { signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ; ) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) take(JSON.parse(line));
  }
}

// --- what is shown ---------------------------------------------------------------------------------------------------

function route() {
  const [name, given] = location.hash.replace(/^#\//, "").split("?");
  return { name: name in VIEWS ? name : "cluster", given: new URLSearchParams(given || "") };
}

/** The view whose link was last brought to the middle of the row of views, which is wider than a narrow window. */
let placed = "";

function drawBar(error) {
  const bad = error && !(error instanceof Refused);
  at("cluster-name").textContent = known ? known.cluster : "";
  const state = at("state");
  const alarms = known ? known.alarms.length : 0;
  const [text, kind] = bad ? ["The proxy does not answer", "bad"]
    : error && error.status === 503 ? ["No member answers", "bad"]
    : !known ? ["", ""]
    : !known.leader ? ["No leader", "bad"]
    : alarms ? [`${alarms} ${alarms === 1 ? "alarm" : "alarms"}`, "bad"]
    : ["Healthy", "good"];
  state.textContent = text;
  state.className = `state ${kind}`;
  at("who").textContent = user;
  at("log-out").hidden = !token;
  drawFreshness();
  const links = GROUPS.map(([group, names]) => [group ? h("h2", {}, group) : null, names.map((name) =>
    h("a", { href: `#/${name}`, "aria-current": name === route().name ? "page" : null, title: `${VIEWS[name].title} (${keyOf(name)})` }, VIEWS[name].title))]);
  show(at("nav"), links);
  if (placed !== route().name) {
    placed = route().name;
    placeLink();
  }
  document.title = [kind === "bad" ? `(!) ${VIEWS[route().name].title}` : VIEWS[route().name].title, known ? known.cluster : "", "RayKeeper"].filter(Boolean).join(" \u00b7 ");
}

/** Brings the present view's link to the middle of the row of views; in a window of another width it is elsewhere. */
function placeLink() {
  const nav = at("nav"), current = nav.querySelector("[aria-current]");
  if (current) nav.scrollLeft = current.offsetLeft - (nav.clientWidth - current.offsetWidth) / 2;
}

function drawFreshness() {
  const old = Math.round((Date.now() - refreshed) / 1000);
  at("freshness").textContent = !refreshed ? "" : old < 5 ? "live" : `${count(old)} s old`;
}

const keyOf = (name) => "1234567890-"[Object.keys(VIEWS).indexOf(name)];

function redraw() {
  if (shown) show(main, shown.view.render(shown.data));
}

async function refresh() {
  clearTimeout(timer);
  const mine = ++round;
  const { name, given } = route();
  const view = VIEWS[name];
  if (shown && shown.view !== view && shown.view.leave) shown.view.leave();
  let failure = null;
  try {
    const found = await api("cluster");
    const data = await view.load(api, found, given);
    if (mine !== round) return;
    [known, user, refreshed] = [found, found.user, Date.now()];
    const fresh = !shown || shown.view !== view;
    shown = { view, data };
    redraw();
    if (fresh) main.scrollTo(0, 0);
  } catch (error) {
    if (mine !== round) return;
    failure = error;
    if (error.status === 401) return drawLogin(token ? "Please log in again: the token is not good any more." : "");
    if (error.status === 503) known = known && { ...known, leader: 0 };
    if (!shown || shown.view !== view || error.status === 403) {
      shown = null;
      show(main, h("div", { class: "head" }, h("h1", {}, view.title)), h("p", { class: `notice ${error.status === 403 ? "" : "bad"}` }, said(error)));
    }
  } finally {
    if (mine === round) {
      drawBar(failure);
      if (!main.querySelector(".login")) timer = setTimeout(refresh, document.hidden ? 5 * EVERY_MS : EVERY_MS);
    }
  }
}

function said(error) {
  if (error.status === 403) return "This user may not see that.";
  if (error instanceof Refused) return `${error.message}. Trying again.`;
  return "The proxy does not answer. Trying again.";
}

// --- logging in ------------------------------------------------------------------------------------------------------

function drawLogin(message) {
  [token, user, shown] = ["", "", null];
  const field = (label, name, type, hint) => h("label", {}, label, h("input", { name, type, autocomplete: hint, required: true, spellcheck: "false" }));
  show(main, h("form", { class: "login sheet detail", "data-form": "log-in" },
    h("h1", {}, "Log in"), h("p", { class: "soft" }, "The users of this cluster are those of its keys."),
    field("Name", "name", "text", "username"), field("Password", "password", "password", "current-password"),
    message ? h("p", { class: "bad", role: "alert" }, message) : null, h("button", {}, "Log in")));
  if (!main.contains(document.activeElement)) main.querySelector("input").focus();
}

async function logIn(fields) {
  try {
    token = (await send("v3/auth/authenticate", fields)).token;
  } catch (error) {
    drawLogin(error instanceof Refused ? error.message.replace("etcdserver: ", "") : said(error));
    return;
  }
  show(main);
  refresh();
}

// --- actions ---------------------------------------------------------------------------------------------------------

const ACTIONS = {
  "move-leader": (told) => ({ title: `Let ${told.name} lead?`, text: "The leader hands over as soon as this member has caught up. Writes wait for a moment.", label: "Move the leader", told: { member: told.member } }),
  "add-member": () => ({ title: "Add a member?", text: "It is started where the cluster finds room, gets a copy of all data, and votes once it has caught up. That may take a while.", label: "Add a member", told: { learner: false }, danger: false }),
  "remove-member": (told) => ({ title: `Remove ${told.name} for good?`, text: "It leaves the configuration, and its process is ended. The cluster then bears fewer losses. It cannot come back under its name.", label: `Remove ${told.name}`, told: { member: told.member }, danger: true }),
  compact: (told) => ({ title: "Compact the history?", text: "Revisions before this one can be neither read nor watched any more.", label: "Compact", told: {}, danger: true, number: ["revision", "Revision", told.revision] }),
  "revoke-lease": (told) => ({ title: `Revoke lease ${told.lease}?`, text: "All keys that hang on it are deleted, and locks that it holds are lost, at once.", label: "Revoke", told, danger: true }),
  release: (told) => ({ title: `Release ${told.kind} ${told.name}?`, text: `The one that ${told.who}, with token ${told.token}, loses its place as if its process had died; the next in line has it. If it still works, only fencing by the token stops it.`, label: "Release", told: { kind: told.kind, path: told.path, token: told.token }, danger: true }),
};

/** Ask whether an action is meant; `Cancel` has the focus. */
function confirm(name, told) {
  const asked = ACTIONS[name](told);
  const input = asked.number && h("label", {}, asked.number[1], h("input", { name: asked.number[0], type: "number", min: "1", max: asked.number[2], required: true, value: asked.number[2] }));
  const cancel = h("button", { type: "button", "data-does": "close" }, "Cancel");
  const error = h("p", { class: "error", role: "alert", hidden: true });
  const go = h("button", { class: asked.danger ? "danger" : "" }, asked.label);
  const form = h("form", {}, h("h2", { id: "dialog-title" }, asked.title), h("p", {}, asked.text), input || null, error, h("div", { class: "buttons" }, cancel, go));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    go.disabled = true;
    const numbers = Object.fromEntries([...new FormData(form)].map(([field, value]) => [field, Number(value)]));
    try {
      await send(`console/api/act/${name}`, { ...asked.told, ...numbers }, new AbortController().signal);
      dialog.close();
      say(`Done: ${asked.label}.`);
      refresh();
    } catch (failed) {
      error.textContent = failed instanceof Refused ? failed.message : "The proxy does not answer: it is not known whether this was done.";
      error.hidden = go.disabled = false;
    }
  });
  dialog.replaceChildren(form);
  dialog.showModal();
  cancel.focus();
}

let toasting = 0;
function say(text) {
  clearTimeout(toasting);
  [toast.textContent, toast.hidden] = [text, false];
  toasting = setTimeout(() => (toast.hidden = true), 4000);
}

function help() {
  const pair = (key, text) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, text)];
  dialog.replaceChildren(h("h2", { id: "dialog-title" }, "Keys of the keyboard"),
    h("dl", {}, Object.keys(VIEWS).map((name) => pair(keyOf(name), VIEWS[name].title)), pair("/", "a prefix of keys"), pair("\u2191 \u2193", "in the tree: the next key"), pair("\u2192 \u2190", "in the tree: open, close"), pair("t", "light, dark, or as the system says"), pair("Esc", "close")),
    h("div", { class: "buttons" }, h("button", { type: "button", "data-does": "close" }, "Close")));
  dialog.showModal();
}

// --- what the user does ----------------------------------------------------------------------------------------------

const tools = { api, stream, redraw };
const DOES = { ...keyDoes, close: () => dialog.close(), ...Object.fromEntries(Object.keys(ACTIONS).map((name) => [name, (told) => confirm(name, told)])) };
const FORMS = { "log-in": logIn, prefix: keyDoes.prefix };

document.addEventListener("click", (event) => {
  const element = event.target.closest("[data-does]");
  if (!element) return;
  Promise.resolve(DOES[element.dataset.does](JSON.parse(element.dataset.told || "{}"), tools)).catch((error) => say(said(error)));
});
document.addEventListener("submit", (event) => {
  const name = event.target.dataset.form;
  if (!name) return;
  event.preventDefault();
  FORMS[name](Object.fromEntries(new FormData(event.target)), tools);
});
document.addEventListener("keydown", (event) => {
  if (event.target.getAttribute("role") === "treeitem" && event.key.startsWith("Arrow")) return walk(event);
  if (event.ctrlKey || event.metaKey || event.altKey || dialog.open || event.target.matches("input")) return;
  const name = Object.keys(VIEWS).find((each) => keyOf(each) === event.key);
  if (name) location.hash = `#/${name}`;
  else if (event.key === "?") help();
  else if (event.key === "t") theme();
  else if (event.key === "/" && at("prefix")) at("prefix").focus();
  else return;
  event.preventDefault();
});

function walk(event) {
  const items = [...document.querySelectorAll('[role="treeitem"]')];
  const here = items.indexOf(event.target);
  const open = event.target.getAttribute("aria-expanded");
  if (event.key === "ArrowDown" && items[here + 1]) items[here + 1].focus();
  else if (event.key === "ArrowUp" && items[here - 1]) items[here - 1].focus();
  else if ((event.key === "ArrowRight" && open === "false") || (event.key === "ArrowLeft" && open === "true")) event.target.click();
  event.preventDefault();
}

const THEMES = ["", "light", "dark"];
function theme() {
  const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme || "") + 1) % THEMES.length];
  if (next) document.documentElement.dataset.theme = next;
  else delete document.documentElement.dataset.theme;
  say(`Theme: ${next || "as the system says"}.`);
}

at("theme").addEventListener("click", theme);
at("help").addEventListener("click", help);
at("log-out").addEventListener("click", () => {
  clearTimeout(timer);
  round += 1;
  drawLogin("");
  drawBar(null);
});
addEventListener("hashchange", () => {
  drawBar(null);
  refresh();
});
addEventListener("resize", placeLink);
document.addEventListener("visibilitychange", () => document.hidden || refresh());
setInterval(drawFreshness, 1000);
drawBar(null);
refresh();
