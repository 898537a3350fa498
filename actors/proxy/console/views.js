// The views, each made of one answer of the API: what it asks for, and what it shows of the answer.

import { button, bytes, count, duration, h, since, spark, table } from "./dom.js";

const head = (title, text, ...actions) =>
  h("div", { class: "head" }, h("h1", {}, title), h("div", { class: "actions row" }, actions), text ? h("p", {}, text) : null);
const empty = (text) => h("div", { class: "empty" }, h("p", {}, text));
const mono = (text) => h("span", { class: "mono data" }, text);

// --- the cluster -----------------------------------------------------------------------------------------------------

const speeds = []; // writes a second, the last minute or so
let last = null; // { revision, at }

function speed(revision) {
  const at = performance.now() / 1000;
  if (last && revision >= last.revision && at > last.at + 0.5) speeds.push((revision - last.revision) / (at - last.at));
  if (!last || at > last.at + 0.5) last = { revision, at };
  if (speeds.length > 45) speeds.shift();
  return speeds.length ? speeds[speeds.length - 1] : 0;
}

const ROLES = { leader: "good", follower: "soft", learner: "soft", candidate: "warn", "pre-candidate": "warn" };

function spare(number) {
  if (number < 0) return ["none", "too few members serve: no writes"];
  return [count(number), number === 0 ? "one more loss stops writes" : `${number === 1 ? "member" : "members"}, and still write`];
}

function figures(found) {
  const leader = found.members.find((each) => each.id === found.leader);
  const now = speed(found.revision);
  const figure = (name, value, small, kind) => h("div", {}, h("dt", {}, name), h("dd", { class: kind }, value, small ? h("small", {}, small) : null));
  const [can, why] = spare(found.spare);
  return h("dl", { class: "figures" },
    figure("Leader", leader ? leader.name : "none", leader ? `for ${duration(found.leading_for)}` : "an election is under way", leader ? null : "bad"),
    figure("Can lose", can, why, found.spare < 0 ? "bad" : null),
    figure("Term", count(found.term)),
    figure("Revision", count(found.revision), `history from ${count(Math.max(1, found.compact_revision))}`),
    h("div", {}, h("dt", {}, "Writes a second"), h("dd", {}, now >= 10 ? count(Math.round(now)) : now.toFixed(1), spark(speeds.length > 1 ? speeds : [0, 0]))),
    figure("Client processes", count(found.sessions), "with a session"));
}

/** Since when a member has its role, or is lost; and for how long the leader has not heard from it, if that is long. */
function standing(member) {
  const role = member.lost_since ? ["lost for ", since(member.lost_since)] : member.role_for ? [`for ${duration(member.role_for)}`] : [];
  const quiet = !member.lost_since && member.role !== "leader" && member.silent_for !== null && member.silent_for >= 2;
  return [role.length ? h("small", {}, role) : null, quiet ? h("small", {}, `silent for ${duration(member.silent_for)}`) : null];
}

function memberActions(found, member) {
  if (!found.acts) return [];
  const leads = member.id === found.leader;
  const move = !leads && member.voter && !member.why_not_serving ? button("Lead", "move-leader", { member: member.id, name: member.name }) : null;
  return [move, button("Remove", "remove-member", { member: member.id, name: member.name })];
}

const KINDS = { lost: "bad", alarm: "bad", election: "warn", back: "good", "alarm over": "good" };

function events(told) {
  if (told.error) return h("p", { class: "notice" }, told.error);
  if (!told.events.length) return empty("Nothing has happened yet.");
  const line = (each) => h("li", { "data-key": each.number }, since(each.at, " ago"), h("span", { class: `dot ${KINDS[each.kind] || "soft"}` }, each.kind), h("span", { class: "data" }, each.text));
  return h("div", { class: "sheet" }, h("ul", { class: "events" }, told.events.slice(0, 30).map(line)));
}

export const cluster = {
  title: "Cluster",
  async load(api, known) {
    const told = await api("events").catch((error) => (error.status === 403 ? { error: "The events are for users with the role root." } : Promise.reject(error)));
    return { found: known, told };
  },
  render({ found, told }) {
    const lags = (member) => h("span", { class: member.lag > 1000 ? "warn" : null }, count(member.lag));
    const dash = (value, write) => (value === undefined ? "\u2014" : write(value));
    const low = (member) => (member.free_bytes && member.free_bytes < found.reserve_bytes * 2 ? "bad" : null);
    const columns = [
      ["Member", "", (each) => [h("strong", {}, each.name), h("small", {}, `id ${each.id}`)]],
      ["Role", "", (each) => [h("span", { class: `dot ${each.why_not_serving ? "bad" : ROLES[each.role] || "bad"}`, title: each.why_not_serving || null }, each.role), standing(each)]],
      ["Node", "", (each) => [h("span", { class: "keep" }, each.address || "\u2014"), each.pid ? h("small", { class: "keep" }, `pid ${each.pid}`) : null]],
      ["Term", "number", (each) => dash(each.term, count)],
      ["Applied", "number", (each) => (each.applied_index === undefined ? "\u2014" : [count(each.applied_index), h("small", {}, `commit ${count(each.commit_index)}`)])],
      ["Lag", "number", (each) => (each.lag === undefined ? "\u2014" : [lags(each), each.lag_seconds >= 1 ? h("small", {}, duration(each.lag_seconds)) : null])],
      ["Data", "number", (each) => (each.db_size === undefined ? "\u2014" : [bytes(each.db_size), h("small", {}, `${bytes(each.db_size_in_use)} in use`)])],
      ["Free disk", "number", (each) => (each.free_bytes ? h("span", { class: low(each) }, bytes(each.free_bytes)) : "\u2014")],
    ];
    if (found.acts) columns.push(["", "does", (each) => memberActions(found, each)]);
    const add = found.acts ? [button("Compact history", "compact", { revision: found.revision }), button("Add a member", "add-member")] : [];
    return [
      head("Cluster", null, add),
      figures(found),
      found.alarms.length ? h("ul", { class: "alarms", "aria-label": "Alarms" }, found.alarms.map((each) => h("li", {}, each))) : null,
      h("h2", {}, "Members"),
      h("div", { class: "sheet" }, table(columns, found.members, { key: (each) => each.id })),
      h("h2", {}, "What has happened"),
      events(told),
    ];
  },
};

// --- who holds, who waits --------------------------------------------------------------------------------------------

/** A process: its Ray actor or program, and where it runs. */
function process(each) {
  if (!each || !each.pid) return h("span", { class: "soft" }, "an unknown process");
  const name = each.actor ? `actor ${each.actor}` : each.program || `session ${each.session}`;
  const where = [`pid ${each.pid} on ${each.host}`, each.address, each.user ? `user ${each.user}` : ""].filter(Boolean);
  return [h("span", { class: "data" }, name), h("small", { class: "data" }, where.join(", "))];
}

function ray(each) {
  const said = [each.task ? h("span", { class: "data" }, each.task) : null, each.job ? h("small", {}, `job ${each.job}`) : null];
  return each.task || each.job ? said : "\u2014";
}

function participants(item, words, acts) {
  const rows = [...item.holders.map((each) => ({ ...each, role: words.holds })), ...item.waiters.map((each) => ({ ...each, role: words.waits }))];
  const releasable = acts && ["lock", "rwlock", "semaphore", "election"].includes(item.kind);
  const columns = [
    ["", "wide", (each) => [h("span", { class: each.stuck ? "dot bad" : "" }, each.role), each.what ? h("small", { class: "data" }, each.what) : null]],
    ["Process", "wide", (each) => [process(each), each.stuck ? h("small", { class: "bad" }, `stuck: ${each.stuck}`) : null]],
    ["Task, job", "", ray],
    ["Since", "number", (each) => since(each.since)],
    ["Lease", "number", (each) => (each.ttl ? [`${duration(each.remaining)} left`, h("small", {}, `of ${duration(each.ttl)}`)] : "\u2014")],
    ["Token", "number", (each) => each.token],
  ];
  if (releasable) columns.push(["", "does", (each) => button("Release", "release", { kind: item.kind, path: item.path, token: each.token, name: item.name, who: each.role })]);
  return table(columns, rows, { key: (each) => each.token, mark: (each) => (each.stuck ? "stuck" : null) });
}

const sizes = { semaphore: (n) => `limit ${n}`, barrier: (n) => `${n} ${n === 1 ? "party" : "parties"}`, queue: (n) => `${count(n)} ${n === 1 ? "item" : "items"}` };

function listOf(name, title, text, words, none) {
  return {
    title,
    load: (api, known) => api(name).then((found) => ({ found, acts: known.acts })),
    render({ found, acts }) {
      const items = found[name];
      const stuck = items.filter((each) => each.stuck).length;
      const sheets = items.map((item) =>
        h("section", { class: item.stuck ? "sheet stuck-sheet" : "sheet", "data-key": `${item.kind} ${item.path}` },
          h("div", { class: "caption" }, h("strong", { class: "mono data" }, item.name),
            item.kind === "rwlock" ? h("span", { class: "soft" }, "readers and writers") : null,
            sizes[item.kind] ? h("span", { class: "soft" }, sizes[item.kind](item.size)) : null,
            h("span", { class: "soft" }, words.counts(item)),
            item.stuck ? h("span", { class: "dot bad" }, "stuck") : null),
          item.holders.length + item.waiters.length ? participants(item, words, acts) : null,
          item.more ? h("p", { class: "more" }, "and more, which are not shown") : null));
      return [
        head(title, text, stuck ? h("span", { class: "dot bad" }, `${stuck} stuck`) : null),
        items.length ? sheets : empty(none),
        items.length >= found.most ? h("p", { class: "more" }, `Only the first ${found.most} names are shown.`) : null,
      ];
    },
  };
}

const both = (a, b) => (item) => [`${item.holders.length} ${a}`, item.waiters.length ? `${item.waiters.length} ${b}` : ""].filter(Boolean).join(", ");
const line = { holds: "holds", waits: "waits", counts: both("held", "waiting") };

export const locks = listOf("locks", "Locks", "Who holds each lock, and who waits for it, in order.", line, "No lock is held.");
export const semaphores = listOf("semaphores", "Semaphores", "Who holds a place, and who waits for one.", line, "No semaphore is held.");
export const elections = listOf("elections", "Elections", "Who leads, and who would lead next.", { holds: "leads", waits: "candidate", counts: both("leader", "candidates") }, "There is no election.");
export const queues = listOf("queues", "Queues", "Items, who has claimed some, and which workers wait.", { holds: "claimed", waits: "worker waits", counts: both("claimed", "workers waiting") }, "No queue is in use.");
export const barriers = listOf("barriers", "Barriers", "Who has arrived, of how many.", { holds: "", waits: "has arrived", counts: (item) => `${item.waiters.length} arrived` }, "Nobody waits at a barrier.");
export const services = listOf("services", "Services", "What is registered, by topic, and by which process.", { holds: "serves", waits: "", counts: (item) => `${item.holders.length} registered` }, "No service is registered.");

// --- leases and clients ----------------------------------------------------------------------------------------------

let open = ""; // the lease whose keys are shown

export const leases = {
  title: "Leases",
  async load(api, known, query) {
    open = query.get("id") || "";
    const [found, one] = await Promise.all([api("leases"), open ? api("lease", { id: open }).catch(() => null) : null]);
    return { found, one, acts: known.acts };
  },
  render({ found, one, acts }) {
    const columns = [
      ["Lease", "", (each) => h("a", { href: `#/leases?id=${each.id}`, class: "mono" }, each.id)],
      ["Process", "wide", (each) => [process(each.client), each.stuck ? h("small", { class: "bad" }, `stuck: ${each.stuck}`) : null]],
      ["Task, job", "", (each) => ray({ task: each.task, job: each.client ? each.client.job : "" })],
      ["Since", "number", (each) => since(each.since)],
      ["Ends in", "number", (each) => [duration(each.remaining), h("small", {}, `of ${duration(each.ttl)}`)]],
    ];
    if (acts) columns.push(["", "does", (each) => button("Revoke", "revoke-lease", { lease: each.id })]);
    const hanging = (key) => h("li", {}, key.path ? h("a", { class: "mono data", href: `#/keys?key=${encodeURIComponent(key.path)}` }, key.key) : [h("span", { class: "soft" }, `${key.kind} `), mono(key.key)]);
    const detail = one && h("section", { class: "sheet detail" }, h("h2", { class: "mono" }, one.id),
      h("p", { class: "soft" }, one.key_count === 0 ? "No key hangs on it." : `${count(one.key_count)} ${one.key_count === 1 ? "key hangs" : "keys hang"} on it, and ${one.key_count === 1 ? "goes" : "go"} when it ends:`),
      h("ul", {}, one.keys.map(hanging)), one.key_count > one.keys.length ? h("p", { class: "soft" }, "and more") : null);
    const gone = open && !one ? h("p", { class: "notice" }, `The lease ${open} has ended.`) : null;
    return [
      head("Leases", "Those that end first come first. A client keeps its leases alive every third of their time."),
      detail, gone,
      found.leases.length ? h("div", { class: "sheet" }, table(columns, found.leases, { key: (each) => each.id, mark: (each) => (each.stuck ? "stuck" : null) }),
        found.total > found.leases.length ? h("p", { class: "more" }, `${found.leases.length} of ${count(found.total)} leases`) : null) : empty("There is no lease."),
    ];
  },
};

const rate = (value) => (value >= 100 ? count(Math.round(value)) : value.toFixed(1));

function rates(first, cell, wide = "wide") {
  return [[first, wide, cell],
    ["Puts", "number", (each) => rate(each.puts)], ["Gets", "number", (each) => rate(each.gets)],
    ["Watch events", "number", (each) => rate(each.events)], ["Bytes", "number", (each) => bytes(each.bytes)]];
}

export const load = {
  title: "Load",
  load: (api) => api("load"),
  render(found) {
    const prefix = (each) => [h("span", { class: "mono data" }, each.prefix || "(keys without a slash)"), each.reserved ? h("small", {}, "locks, queues and the like") : null];
    const slow = (each) => h("li", {}, since(each.at, " ago"), h("span", { class: "warn" }, `${each.took.toFixed(2)} s`), h("span", { class: "data" }, `${each.member}: ${each.what}`));
    const sheet = (columns, rows, none) => (rows.length ? h("div", { class: "sheet" }, table(columns, rows)) : empty(none));
    return [
      head("Load", "A second, on average over the last five: the heaviest clients and prefixes."),
      found.silent.length ? h("p", { class: "notice bad" }, `No answer from ${found.silent.join(", ")}: what it serves is missing here.`) : null,
      h("h2", {}, "Clients"), sheet(rates("Process", (each) => (each.client ? process(each.client) : each.source)), found.clients, "No client asks for anything."),
      h("h2", {}, "Prefixes"), sheet(rates("Prefix", prefix), found.prefixes, "No key is read or written."),
      h("h2", {}, "Slow requests of late"),
      found.slow.length ? h("div", { class: "sheet" }, h("ul", { class: "events" }, found.slow.map(slow))) : empty("None took more than 100 ms."),
    ];
  },
};

export const clients = {
  title: "Clients",
  load: (api) => api("clients"),
  render(found) {
    const columns = [
      ["Process", "wide", process],
      ["Job", "", (each) => each.job || "\u2014"],
      ["Session", "", (each) => [mono(each.session), each.open ? null : h("small", { class: "warn" }, "has ended")]],
      ["Leases", "number", (each) => count(each.leases)],
      ["Connected", "number", (each) => since(each.since)],
    ];
    const cut = found.total > found.clients.length || found.more;
    return [
      head("Clients", "The processes that have a session, or leases that they made: those with the most leases first."),
      found.clients.length ? h("div", { class: "sheet" }, table(columns, found.clients, { key: (each) => each.session }),
        cut ? h("p", { class: "more" }, `${found.clients.length} of ${count(found.total)}${found.more ? " and more" : ""}`) : null) : empty("No process has a session."),
    ];
  },
};
