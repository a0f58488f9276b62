// What all views use: the data by name, texts, elements, the tooltip, and the one selection.

const data = JSON.parse(document.getElementById("data").textContent);

const states = data.states.map(
  ([key, arch, digest, nbytes, own, shared, cached, modified, error], place) => ({
    place, key, arch, digest, nbytes, own, shared, cached, modified, error,
    short: key.slice(data.architectures[arch][0].length + 1),
    column: null, map: null, from: [], into: [],
  }));
const architectures = data.architectures.map(([name, count, nbytes, own, shared], place) => ({
  name, count, nbytes, own, shared, place,
  states: states.filter((state) => state.arch === place),
}));
const maps = data.maps.map((map) => ({
  name: map.name,
  layers: map.layers.map(([name, dtype, shape, nbytes]) => ({ name, dtype, shape, nbytes })),
  columns: map.states.map((column) => ({ ...column, state: states[column.state] })),
}));
for (const map of maps) {
  for (const column of map.columns) Object.assign(column.state, { column, map });
}
for (const [older, newer, nbytes] of data.links) {
  states[newer].from.push({ older, nbytes });
  if (typeof older === "number") states[older].into.push({ newer, nbytes });
}

const byId = (id) => document.getElementById(id);

// An element with properties, and children: elements, or texts, which are never parsed.
function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name in node && name !== "role" && !name.includes("-")) node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function svg(tag, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

// Bytes in powers of 1,000, as the command line has them.
function bytes(count) {
  if (count === null || count === undefined) return "?";
  let size = count;
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (size < 999.95) return unit === "B" ? `${count} B` : `${size.toFixed(1)} ${unit}`;
    size /= 1000;
  }
  return `${size.toFixed(1)} TB`;
}

// "1,234"; what browsers have for this takes them 70 ms the first time.
const number = (count) => String(count).replace(/\B(?=(\d{3})+$)/g, ",");
const counted = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;
const when = (iso) => (iso ? iso.slice(0, 16).replace("T", " ") : "");

// A relative change: "0.0123", "1.2e-5".
function relative(value) {
  if (value === null) return "not known";
  if (value === 0) return "0";
  return value < 1e-3 || value >= 1e4 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

// The colour of an architecture: its name is always there, too.
const hues = [250, 65, 165, 330, 110, 20, 290, 200];
function colours(arch, node) {
  const hue = hues[arch % hues.length];
  node.style.setProperty("--fill", `light-dark(oklch(0.87 0.065 ${hue}), oklch(0.37 0.06 ${hue}))`);
  node.style.setProperty("--hatch", `light-dark(oklch(0.74 0.09 ${hue}), oklch(0.5 0.075 ${hue}))`);
  node.style.setProperty("--mark", `light-dark(oklch(0.56 0.13 ${hue}), oklch(0.76 0.11 ${hue}))`);
  return node;
}

// A colour of the style as canvas takes it: rgb(...), with light-dark() resolved.
const probe = document.body.appendChild(el("i", { hidden: true }));
function colour(variable) {
  probe.style.color = `var(${variable})`;
  return getComputedStyle(probe).color;
}

const tip = byId("tip");
function showTip(lines, x, y) {
  tip.replaceChildren(...lines.map((line, place) => el("div", {}, place ? line : el("b", {}, line))));
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = Math.min(x + 14, innerWidth - box.width - 8);
  const top = y + 18 + box.height > innerHeight ? y - box.height - 12 : y + 18;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${Math.max(8, top)}px`;
}
const hideTip = () => { tip.hidden = true; };
function withTip(node, lines) {
  node.addEventListener("pointermove", (event) => showTip(lines(), event.clientX, event.clientY));
  node.addEventListener("pointerleave", hideTip);
  node.addEventListener("blur", hideTip);
  node.addEventListener("focus", () => {
    if (!node.matches(":focus-visible")) return;
    const box = node.getBoundingClientRect();
    showTip(lines(), box.left, box.bottom - 14);
  });
}

// One state is selected in all views, or none; all views show which states match the search.
const chosen = { state: null, matches: () => true, count: states.length };
const views = [];
const onChange = (show) => views.push(show);
const changed = () => views.forEach((show) => show());
function select(state) {
  chosen.state = chosen.state === state ? null : state;
  changed();
}

// Scroll a box, and not the page, until a part of it can be seen.
function reveal(box, part) {
  const [outer, inner] = [box.getBoundingClientRect(), part.getBoundingClientRect()];
  if (inner.top < outer.top || inner.bottom > outer.bottom) {
    box.scrollTop += inner.top - outer.top - (outer.height - inner.height) / 2;
  }
}

// What a state has changed: numbers of tensors by mark.
function tally(state) {
  if (state.tally) return state.tally;
  const count = { "=": 0, "~": 0, "+": 0, ".": 0 };
  for (const mark of state.column.marks) count[mark] += 1;
  state.tally = count;
  return count;
}

const nameOf = (place) => (typeof place === "number" ? states[place].key : place);

// A button that selects a state; plain text of one that is not in the report.
function stateLink(place) {
  if (typeof place !== "number") return el("span", {}, place);
  return el("button", {
    type: "button", className: "link", onclick: () => { chosen.state = null; select(states[place]); },
  }, states[place].key);
}

// Of several buttons one is reached by Tab, the others from there by arrow keys.
function roving(box, buttons) {
  buttons.forEach((button, place) => { button.tabIndex = place ? -1 : 0; });
  box.onkeydown = (event) => {
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    const from = buttons.indexOf(document.activeElement);
    if (from < 0 || !(event.key in steps)) return;
    event.preventDefault();
    const next = buttons[(from + steps[event.key] + buttons.length) % buttons.length];
    buttons[from].tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  };
}
