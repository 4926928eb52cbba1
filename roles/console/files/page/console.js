// Shows what the collector has written (state.json, charts.json, runs.json). No library, nothing from another host.

const SVG = "http://www.w3.org/2000/svg";
const WORDS = { ok: "well", standby: "stopped on purpose", unknown: "not known", warning: "look at it", critical: "broken" };
const LATE_S = 10;

// The document ------------------------------------------------------------------------------------------------------

function make(space, tag, attributes, children) {
  const node = space ? document.createElementNS(space, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}
const h = (tag, attributes, ...children) => make(null, tag, attributes, children);
const s = (tag, attributes, ...children) => make(SVG, tag, attributes, children);
const byId = (id) => document.getElementById(id);
const keyOf = (node) => (node.nodeType === 1 ? node.getAttribute("data-key") : null);

// Makes `old` like `fresh` in place: what has the focus keeps it, what was unfolded stays so, a screen reader hears only what is new.
function morph(old, fresh) {
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName || keyOf(old) !== keyOf(fresh)) {
    old.replaceWith(fresh);
    return;
  }
  if (old.nodeType !== 1) {
    if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue;
    return;
  }
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name) && name !== "open" && name !== "id") old.removeAttribute(name);
  fill(old, [...fresh.childNodes]);
}

function fill(parent, wanted) {
  const keyed = new Map([...parent.childNodes].filter(keyOf).map((node) => [keyOf(node), node]));
  wanted.forEach((fresh, place) => {
    const there = parent.childNodes[place];
    const match = keyed.get(keyOf(fresh));
    if (match && match !== there) parent.insertBefore(match, there ?? null);
    const old = match ?? there;
    if (!old) parent.append(fresh);
    else if (!match && keyOf(old)) parent.insertBefore(fresh, old);
    else morph(old, fresh);
  });
  while (parent.childNodes.length > wanted.length) parent.lastChild.remove();
}
const show = (id, ...nodes) => fill(byId(id), nodes.flat(Infinity).filter((node) => node !== null && node !== undefined && node !== false));

const mark = (state) => h("span", { class: "mark", "data-state": state, role: "img", "aria-label": WORDS[state] ?? state });
const chip = (text, kind) => h("span", { class: "chip", "data-kind": kind }, text);
const empty = (text) => h("p", { class: "empty" }, text);

function table(columns, rows, caption) {
  const cell = (tag, content, column) => h(tag, { class: column.number ? "n" : null, scope: tag === "th" ? "col" : null }, content);
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h("table", { class: columns.length > 4 ? "wide" : null }, h("thead", {}, h("tr", {}, columns.map((column) => cell("th", column.title, column)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map((content, place) => cell("td", content, columns[place])))))));
}

// Words ----------------------------------------------------------------------------------------------------------------

const utc = (seconds) => new Date(seconds * 1000).toISOString();
const clock = (seconds) => `${utc(seconds).slice(11, 19)} UTC`;
const percent = (share) => `${Math.round(share * 100)} %`;

function span(seconds) {
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${(seconds / 3600).toFixed(1)} h` : `${Math.round(seconds / 86400)} days`;
}
function number(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size >= 1e9) return `${(value / 1e9).toFixed(2)} G`;
  if (size >= 1e6) return `${(value / 1e6).toFixed(2)} M`;
  if (size >= 1e4) return `${(value / 1e3).toFixed(1)} k`;
  return size >= 100 || Number.isInteger(value) ? String(Math.round(value)) : value.toPrecision(3).replace(/\.?0+$/, "");
}
const UNITS = { percentunit: (v) => percent(v), s: (v) => (v < 1 ? `${number(v * 1000)} ms` : `${number(v)} s`), ops: (v) => `${number(v)}/s`, reqps: (v) => `${number(v)}/s`, Bps: (v) => `${number(v)}B/s`, bytes: (v) => `${number(v)}B` };
const figure = (value, unit) => (value === null || value === undefined ? "–" : (UNITS[unit] ?? number)(value));

// Now ------------------------------------------------------------------------------------------------------------------

function tile(key, title, state, big, small) {
  return h("div", { class: "tile", "data-state": state, "data-key": key }, h("dt", {}, title), h("dd", {}, big), h("dd", {}, small ?? ""));
}

function tiles(state) {
  const { traffic, trading } = state;
  const client = traffic.client;
  const firing = state.alerts.filter((alert) => alert.state === "firing");
  const pending = state.alerts.length - firing.length;
  const hosts = state.tiers.flatMap((tier) => tier.hosts);
  const well = hosts.filter((host) => host.state === "ok" || host.state === "standby").length;
  const rate = Object.values(traffic.rates).reduce((sum, value) => sum + value, 0);
  const orders = trading.orders.reduce((sum, stack) => sum + stack.value, 0);
  const held = trading.leases.filter((lease) => lease.holders.length);
  const colours = [...new Set(held.flatMap((lease) => lease.holders.map((holder) => holder.colour)))];
  const targets = hosts.flatMap((host) => host.targets);
  const answer = targets.filter((target) => target.state === "ok").length;
  return [
    tile("live", "Live slot", client.answers ? "ok" : "critical", client.answers ? client.colour || "answers" : "does not answer",
      client.answers ? `release ${client.release}, ${client.ms} ms` : client.problem),
    tile("vip", "Virtual address", traffic.holder ? "ok" : "unknown", traffic.holder || "not known", `${traffic.vip}, ${number(rate)} requests/s`),
    tile("lease", "Trading", !trading.known ? "unknown" : ["critical", "warning", "unknown"].find((one) => trading.leases.some((lease) => lease.state === one)) ?? "ok",
      !trading.known ? "not known" : `${held.length} of ${trading.leases.length} held`, colours.length ? `by slot ${colours.join(" and ")}` : "no lease is held"),
    tile("orders", "Active orders", "ok", trading.known ? number(orders) : "–", trading.orders.map((stack) => `${stack.name.replace(/_/g, " ")} ${stack.value}`).join(", ")),
    tile("hosts", "Hosts", well === hosts.length ? "ok" : "critical", `${well} of ${hosts.length} well`, `${answer} of ${targets.filter((target) => target.state !== "standby").length} targets answer`),
    tile("alerts", "Alerts", firing.some((alert) => alert.severity === "critical") ? "critical" : firing.length ? "warning" : "ok", `${firing.length} firing`, pending ? `${pending} pending` : "none pending"),
  ];
}

function underWay(state) {
  const run = state.trading.run;
  if (!run) return null;
  return h("p", { class: "problem", "data-state": "unknown", "data-key": "run" }, mark("standby"), h("b", {}, "A change is under way"), h("span", {}, `${run.playbook} by ${run.by}, for ${span(run.age)}`));
}

function problems(state) {
  if (!state.problems.length) return h("p", { class: "fine" }, "Nothing is wrong.");
  return h("ul", { class: "problems" }, state.problems.map((problem) =>
    h("li", { class: "problem", "data-state": problem.state, "data-key": `${problem.where} ${problem.what}` }, mark(problem.state), h("b", {}, problem.where), h("span", {}, problem.what))));
}

// Topology -------------------------------------------------------------------------------------------------------------

function chipsOf(host, state) {
  const chips = [];
  if (state.traffic.holder === host.name) chips.push(chip("virtual address", "holds"));
  if (host.leads) chips.push(chip(host.leads, "holds"));
  for (const lease of state.trading.leases) {
    for (const holder of lease.holders) if (holder.host === host.name) chips.push(chip(`trades ${lease.placement}`, "holds"));
  }
  for (const slot of state.slots) if (slot.host === host.name) chips.push(chip(`${slot.colour} ${slot.state}`, slot.state === "ready" ? slot.colour : "warning"));
  for (const unit of host.units) if (unit.state === "critical" || unit.state === "warning") chips.push(chip(`${unit.service} ${unit.what}`, unit.state));
  const gateway = host.units.find((unit) => unit.service === "gateway");
  if (gateway && gateway.state === "ok") chips.push(chip("active", "holds"));
  if (gateway && gateway.state === "standby") chips.push(chip("stands by"));
  return chips;
}

function meters(load) {
  const bar = (title, share) => h("span", {}, share === null || share === undefined ? `${title} –` : title, h("meter", { min: 0, max: 1, low: 0.8, high: 0.9, optimum: 0, value: share ?? 0, title: share === null || share === undefined ? "not known" : percent(share), "aria-label": title }));
  return h("span", { class: "load" }, bar("CPU", load.cpu), bar("RAM", load.memory), bar("disk", load.disk));
}

function hostCard(host, state) {
  const chips = chipsOf(host, state);
  return h("details", { class: "host", "data-state": host.state, "data-key": host.name, "data-host": host.name },
    h("summary", {}, h("span", { class: "name" }, mark(host.state), host.name), chips.length ? h("span", { class: "chips" }, chips) : null, meters(host.load)),
    h("ul", { class: "more" },
      h("li", {}, h("span", {}, host.address), h("span", {}, `zone ${host.zone}`)),
      host.units.map((unit) => h("li", {}, mark(unit.state), h("span", {}, unit.service), h("span", {}, unit.what))),
      host.targets.map((target) => h("li", {}, mark(target.state), h("span", {}, `scrape of ${target.job}`), h("span", {}, target.instance.split(":").pop()))),
      host.load.clock !== null && host.load.clock !== undefined ? h("li", {}, h("span", {}, "clock offset"), h("span", {}, `${number(host.load.clock * 1000)} ms`)) : null));
}

function tiersOf(state) {
  return state.tiers.map((tier) => h("div", { class: "tier", "data-tier": tier.name, "data-key": tier.name },
    h("h3", {}, tier.title, tier.name === "load_balancers" ? chip(`${state.traffic.vip} · ${state.traffic.names.join(" · ")}`) : null),
    h("div", { class: "hosts" }, tier.hosts.map((host) => hostCard(host, state)))));
}

// Trading, alerts, ages, versions ----------------------------------------------------------------------------------

function tradingOf(state) {
  const { leases, processes, orders } = state.trading;
  if (!state.trading.known) return empty("No agent tells the state of trading.");
  const placements = table([{ title: "placement" }, { title: "held by" }, { title: "epoch", number: true }], leases.map((lease) => [
    [mark(lease.state), lease.placement],
    lease.holders.length ? lease.holders.map((holder) => `${holder.host} ${holder.colour}`).join(", ") : lease.revoked ? "nobody, revoked" : lease.state === "unknown" ? "not known" : "nobody",
    lease.epoch === null ? "–" : String(lease.epoch)]), "Leases");
  const running = table([{ title: "process" }, { title: "state" }], processes.map((process) => [[mark(process.value ? "ok" : "standby"), process.name], process.value ? "runs" : "stopped"]), "Processes");
  const stacks = table([{ title: "stack" }, { title: "active orders", number: true }], orders.map((stack) => [stack.name, String(stack.value)]), "Orders");
  const slots = table([{ title: "host" }, { title: "slot" }, { title: "release" }, { title: "state" }], state.slots.map((slot) => [slot.host, chip(slot.colour, slot.colour), slot.release, [mark(slot.state === "ready" ? "ok" : slot.state === "draining" ? "warning" : "critical"), slot.state]]), "Slots");
  return [["Leases", placements], ["Slots", slots], ["Processes", running], ["Orders", stacks]].map(([title, body]) => h("div", { class: "card", "data-key": title }, h("h3", {}, title), body));
}

// A path in the repository, or an address: only an address can be followed.
const runbook = (place) => (place.startsWith("https://") ? h("a", { href: place, rel: "noreferrer" }, "runbook") : h("small", {}, `(${place})`));

function alertsOf(state) {
  if (state.source.problem) return empty("Not known: Prometheus does not answer.");
  if (!state.alerts.length) return empty("No alert is pending or firing.");
  return table([{ title: "alert" }, { title: "state" }, { title: "where" }, { title: "what" }, { title: "since" }], state.alerts.map((alert) => [
    [mark(alert.state === "firing" ? (alert.severity === "critical" ? "critical" : "warning") : "standby"), alert.name],
    `${alert.state}, ${alert.severity}`, alert.where, [alert.summary, alert.runbook ? [" ", runbook(alert.runbook)] : null], alert.since.slice(0, 19).replace("T", " ")]), "Alerts");
}

function agesOf(state) {
  if (!state.ages.length) return empty("Nothing that this site measures has an age yet.");
  return table([{ title: "what" }, { title: "where" }, { title: "age", number: true }], state.ages.map((age) => [[mark(age.state), age.title], age.where, age.unit === "s" ? span(age.value) : `${number(age.value)} ${age.unit}`]), "Ages");
}

function versionsOf(state) {
  if (!state.versions.length) return empty("Not known.");
  const differs = (what) => state.versions.filter((version) => version.what === what).length > 1;
  return h("div", { class: "card" }, table([{ title: "what" }, { title: "version" }, { title: "hosts" }], state.versions.map((version) => [[mark(differs(version.what) ? "warning" : "ok"), version.what], version.version, version.hosts.join(", ")]), "Versions"));
}

// Charts ---------------------------------------------------------------------------------------------------------------

const WIDE = 460, TALL = 150, LEFT = 46, LOW = 18, HIGH = 6;
let charts = null;
const cursors = new Map(); // by panel: the index of the point that is read

function scaleOf(panel) {
  const values = panel.series.flatMap((one) => one.points).filter((value) => value !== null);
  let low = Math.min(0, ...values), high = Math.max(0, ...values);
  if (low === high) high = low + 1;
  const step = 10 ** Math.floor(Math.log10((high - low) / 3));
  const nice = [1, 2, 5, 10].map((factor) => factor * step).find((size) => (high - low) / size <= 4);
  return { low: Math.floor(low / nice) * nice, high: Math.ceil(high / nice) * nice, nice };
}

function pathOf(points, x, y) {
  let path = "", on = false;
  points.forEach((value, place) => {
    if (value === null) { on = false; return; }
    path += `${on ? "L" : "M"}${x(place).toFixed(1)} ${y(value).toFixed(1)}`;
    if (!on && points[place + 1] == null) path += "h1"; // a point alone is seen, too
    on = true;
  });
  return path;
}

function lines(panel) {
  const count = panel.series[0].points.length;
  const { low, high, nice } = scaleOf(panel);
  const x = (place) => LEFT + (place / (count - 1)) * (WIDE - LEFT - 6);
  const y = (value) => HIGH + (1 - (value - low) / (high - low)) * (TALL - HIGH - LOW);
  const ticks = [];
  for (let value = low; value <= high + nice / 2; value += nice) ticks.push(value);
  const at = cursors.get(panel.title);
  const time = (place) => utc(charts.start + place * charts.step).slice(11, 16);
  return s("svg", { viewBox: `0 0 ${WIDE} ${TALL}`, role: "img", tabindex: "0", "data-panel": panel.title, "aria-label": `${panel.title}: ${panel.series.map((one) => `${one.name} ${figure(last(one.points), panel.unit)}`).join(", ")}. Arrow keys read the values.` },
    ticks.map((value) => [s("line", { class: "grid", x1: LEFT, x2: WIDE - 6, y1: y(value), y2: y(value) }), s("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, figure(value, panel.unit))]),
    [0, 0.25, 0.5, 0.75, 1].map((share) => s("text", { x: x(share * (count - 1)), y: TALL - 4, "text-anchor": share === 0 ? "start" : share === 1 ? "end" : "middle" }, time(share * (count - 1)))),
    panel.series.map((one, place) => s("path", { class: `line c${(place % 8) + 1}`, d: pathOf(one.points, x, y) })),
    at === undefined ? null : s("line", { class: "cursor", x1: x(at), x2: x(at), y1: HIGH, y2: TALL - LOW }));
}

const last = (points) => points.findLast((value) => value !== null) ?? null;

function strips(panel) {
  return h("div", { class: "strip", role: "list" }, panel.series.map((one) => {
    const count = one.points.length, now = last(one.points.slice(-2));
    const parts = [];
    one.points.forEach((value, place) => {
      const kind = value === null ? null : value >= 1 ? "good" : "bad";
      const before = parts.at(-1);
      if (before && before.kind === kind) before.to = place + 1;
      else parts.push({ kind, from: place, to: place + 1 });
    });
    const label = now === null ? "unknown" : now >= 1 ? "ok" : "critical";
    return [h("span", { class: "name", role: "listitem" }, mark(label), one.name),
      s("svg", { viewBox: `0 0 ${count} 16`, preserveAspectRatio: "none", role: "img", "aria-label": `${one.name}: ${WORDS[label]}` },
        parts.filter((part) => part.kind).map((part) => s("rect", { class: part.kind, x: part.from, width: part.to - part.from, y: part.kind === "good" ? 5 : 0, height: part.kind === "good" ? 6 : 16 })))];
  }));
}

function legendOf(panel) {
  const at = cursors.get(panel.title);
  return h("ul", { class: "legend" }, panel.series.map((one, place) => h("li", {}, s("svg", { viewBox: "0 0 22 8", "aria-hidden": "true" }, s("line", { class: `line c${(place % 8) + 1}`, x1: 0, x2: 22, y1: 4, y2: 4 })), h("span", {}, one.name), h("b", {}, figure(at === undefined ? last(one.points) : one.points[at], panel.unit)))));
}

function panelOf(panel) {
  const at = cursors.get(panel.title);
  let body;
  if (panel.problem) body = empty(`Prometheus does not answer: ${panel.problem}`);
  else if (!panel.series.length) body = h("p", { class: "empty" }, "No figures yet. Wanted: ", panel.wants.map((want, place) => [place ? ", " : "", h("code", {}, want)]));
  else body = panel.kind === "stat" ? strips(panel) : [lines(panel), legendOf(panel)];
  return h("figure", { class: "card panel", "data-key": panel.title }, h("h3", {}, panel.title, at === undefined ? null : h("small", {}, clock(charts.start + at * charts.step))), body);
}

function showCharts() {
  if (!charts) return;
  byId("charts-span").textContent = `the last ${span(charts.end - charts.start)}, until ${clock(charts.end)}`;
  show("panels", charts.panels.map(panelOf));
}

function readAt(svg, place) {
  const title = svg.getAttribute("data-panel");
  if (place === null) cursors.delete(title);
  else cursors.set(title, Math.max(0, Math.min(Math.round(place), Math.round((charts.end - charts.start) / charts.step))));
  showCharts();
}

byId("panels").addEventListener("pointermove", (event) => {
  const svg = event.target.closest("svg[data-panel]");
  if (!svg) return;
  const box = svg.getBoundingClientRect();
  const share = ((event.clientX - box.left) / box.width * WIDE - LEFT) / (WIDE - LEFT - 6);
  readAt(svg, share * (charts.end - charts.start) / charts.step);
});
byId("panels").addEventListener("pointerout", (event) => {
  const svg = event.target.closest("svg[data-panel]");
  if (svg && !svg.contains(event.relatedTarget)) readAt(svg, null);
});
byId("panels").addEventListener("keydown", (event) => {
  const svg = event.target.closest("svg[data-panel]");
  const count = charts ? Math.round((charts.end - charts.start) / charts.step) : 0;
  const at = svg ? cursors.get(svg.getAttribute("data-panel")) ?? count : 0;
  const places = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: count, Escape: null };
  if (!svg || !(event.key in places)) return;
  event.preventDefault();
  readAt(svg, places[event.key]);
});
byId("panels").addEventListener("focusout", (event) => event.target.matches("svg[data-panel]") && readAt(event.target, null));

// Runs -----------------------------------------------------------------------------------------------------------------

const RUN_WIDE = 1100, RUN_TALL = 110, LANE = 14;

function timeline(run) {
  const count = Math.max(run.seconds.length * run.second, ...run.events.map((event) => event.s), 1);
  const x = (second) => 34 + (second / count) * (RUN_WIDE - 80);
  const lanes = [];
  const marks = run.events.map((event, place) => {
    const text = `${place + 1} ${event.what}`.slice(0, 36), wide = text.length * 6.2 + 10, turned = x(event.s) + wide > RUN_WIDE;
    const from = turned ? x(event.s) - wide : x(event.s);
    let lane = lanes.findIndex((end) => end <= from);
    if (lane < 0) lane = lanes.length;
    const crowded = lane >= 8;
    if (crowded) lane = 7;
    lanes[lane] = Math.max(lanes[lane] ?? 0, from + wide);
    return { event, text: crowded ? "" : text, turned, lane };
  });
  const top = 6 + lanes.length * LANE, bottom = top + RUN_TALL;
  const most = Math.max(1, ...run.seconds.map(([ok, failed]) => ok + failed));
  const slowest = Math.max(1, ...run.seconds.map(([, , p99]) => p99 ?? 0));
  const wide = Math.max(0.7, (x(run.second) - x(0)) * 0.9);
  const size = (value) => (value / most) * (RUN_TALL - 8);
  const step = [1, 2, 5, 10, 30, 60, 120, 300, 600, 1800].find((one) => count / one <= 12) ?? 3600;
  const ticks = [];
  for (let second = 0; second <= count; second += step) ticks.push(second);
  const gap = run.gap;
  return s("svg", { class: "timeline", viewBox: `0 0 ${RUN_WIDE} ${bottom + 20}`, role: "img", "aria-label": `${run.operation}: ${run.requests} requests, ${run.failed} failed, longest gap ${run.longest_gap_ms} ms` },
    gap ? s("rect", { class: "gap", x: x(gap.at), y: top, width: Math.max(1, x(gap.seconds) - x(0)), height: RUN_TALL }) : null,
    run.seconds.map(([ok, failed], place) => [
      s("rect", { class: "bar", x: x(place * run.second), y: bottom - size(ok), width: wide, height: size(ok) }),
      failed ? s("rect", { class: "bad", x: x(place * run.second), y: bottom - size(ok) - Math.max(2, size(failed)), width: wide, height: Math.max(2, size(failed)) }) : null]),
    s("path", { class: "line p99", d: pathOf(run.seconds.map(([, , p99]) => p99), (place) => x((place + 0.5) * run.second), (value) => bottom - (value / slowest) * (RUN_TALL - 8)) }),
    s("line", { class: "grid", x1: 34, x2: RUN_WIDE - 46, y1: bottom, y2: bottom }),
    ticks.map((second) => s("text", { x: x(second), y: bottom + 14, "text-anchor": "middle" }, span(second))),
    s("text", { x: 0, y: top + 10 }, `${number(most)}/s`), s("text", { x: RUN_WIDE - 42, y: top + 10 }, `${number(slowest)} ms`), s("text", { x: RUN_WIDE - 42, y: top + 23 }, "p99"),
    marks.map(({ event, text, turned, lane }) => s("g", {}, s("line", { class: "mark-line", x1: x(event.s), x2: x(event.s), y1: 6 + lane * LANE, y2: bottom }),
      text ? s("text", { x: x(event.s) + (turned ? -3 : 3), y: 16 + lane * LANE, "text-anchor": turned ? "end" : "start" }, text) : null)));
}

function runOf(run) {
  const state = { passed: "ok", succeeded: "ok", running: "standby" }[run.outcome] ?? "critical";
  const cell = (title, value) => h("span", {}, h("small", {}, title), value ?? "–");
  const more = [run.problems.length ? h("ul", {}, run.problems.map((problem) => h("li", {}, mark("critical"), " ", problem))) : null];
  if (run.seconds.length) more.push(h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Timeline of ${run.operation}` }, timeline(run)));
  if (run.events.length) more.push(table([{ title: "", number: true }, { title: "after", number: true }, { title: "host" }, { title: "what" }], run.events.map((event, place) => [String(place + 1), `${event.s.toFixed(1)} s`, event.host, event.what]), "Events"));
  return h("details", { class: "run", "data-key": run.id },
    h("summary", {}, mark(state), h("span", {}, h("b", {}, run.operation), h("small", {}, run.outcome)), cell("started", `${run.started.slice(0, 19).replace("T", " ")} UTC`), cell("took", run.duration_s === null ? "–" : span(run.duration_s)),
      cell("requests", run.requests === null ? "–" : number(run.requests)), cell("failed", run.failed === null ? "–" : String(run.failed)), cell("longest gap", run.longest_gap_ms === null ? "–" : `${run.longest_gap_ms} ms`)),
    h("div", { class: "more" }, more));
}

// The loop -------------------------------------------------------------------------------------------------------------

// Not relative to the page's address, which may hold a password that a browser does not let a request repeat.
const address = (name) => new URL(`data/${name}.json`, `${location.origin}/`);

async function ask(name) {
  const answer = await fetch(address(name), { cache: "no-store", signal: AbortSignal.timeout(4000) });
  if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
  return { document: await answer.json(), served: Date.parse(answer.headers.get("date")) / 1000 };
}

let state = null;
let stateAge = () => Infinity;
let trouble = "";

function told(error) {
  return error.name === "TimeoutError" ? "no answer within 4 s" : error.message;
}

function showAge() {
  const age = stateAge();
  const late = age > Math.max(LATE_S, 5 * (state?.period ?? 2));
  const text = !state ? trouble && `The page has no state: ${trouble}.` : late ? `This is the state of ${clock(state.at)}, ${span(age)} ago. ${trouble ? `The server does not answer: ${trouble}.` : "The collector on the monitoring host does not write a new one."}` : "";
  byId("stale").hidden = !text;
  if (byId("stale").textContent !== text) byId("stale").textContent = text;
  document.body.toggleAttribute("data-stale", late && Boolean(state));
  byId("age").textContent = state ? `${clock(state.at)}, ${span(Math.max(0, age))} ago` : "";
  const verdict = !state || late ? "unknown" : state.verdict;
  const count = state?.problems.length ?? 0;
  const words = { ok: "All is well", unknown: "Not known", warning: `${count} to look at`, critical: `${count} ${count === 1 ? "problem" : "problems"}` }[verdict];
  const badge = byId("verdict");
  if (badge.dataset.state !== verdict || badge.textContent !== words) {
    badge.dataset.state = verdict;
    badge.replaceChildren(mark(verdict), words);
    byId("icon").setAttribute("href", `icon-${verdict}.svg`);
    document.title = `${{ ok: "", unknown: "? ", warning: "▲ ", critical: "■ " }[verdict]}${state?.site ?? "Platform"}${verdict === "ok" ? "" : `: ${words}`}`;
  }
}

function showState() {
  byId("site").textContent = state.site;
  show("tiles", tiles(state));
  show("run-now", underWay(state));
  show("problems", problems(state));
  show("tiers", tiersOf(state));
  show("trading-body", tradingOf(state));
  show("alerts-body", alertsOf(state));
  show("ages-body", agesOf(state));
  show("versions-body", versionsOf(state));
}

async function every(seconds, action) {
  for (;;) {
    await action();
    await new Promise((resolve) => setTimeout(resolve, 1000 * seconds()));
  }
}

async function refreshState() {
  try {
    const { document: found, served } = await ask("state");
    const fetched = performance.now();
    const before = served - found.at; // by the server's clock alone: the reader's may be wrong
    state = found;
    stateAge = () => before + (performance.now() - fetched) / 1000;
    trouble = "";
    showState();
  } catch (error) {
    trouble = told(error);
  }
  showAge();
}

async function refreshCharts() {
  try {
    charts = (await ask("charts")).document;
    showCharts();
  } catch (error) {
    if (!charts) show("panels", empty(`No charts: ${told(error)}`));
  }
}

async function refreshRuns() {
  try {
    const { runs } = (await ask("runs")).document;
    show("runs-body", runs.length ? runs.map(runOf) : empty("No run has left its report here yet."));
  } catch (error) {
    if (!byId("runs-body").childElementCount) show("runs-body", empty(`No runs: ${told(error)}`));
  }
}

const THEMES = ["system", "light", "dark"];
function setTheme(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  byId("theme").textContent = `Theme: ${theme}`;
  try { localStorage.setItem("theme", theme); } catch { /* a browser that keeps nothing */ }
}
let theme = "system";
try { theme = localStorage.getItem("theme") ?? theme; } catch { /* as above */ }
setTheme(THEMES.includes(theme) ? theme : "system");
byId("theme").addEventListener("click", () => {
  theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  setTheme(theme);
});

setInterval(showAge, 1000);
every(() => state?.period ?? 2, refreshState);
every(() => 15, refreshCharts);
every(() => 15, refreshRuns);
