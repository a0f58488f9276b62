// The table of states, which can be sorted, and the list of findings.

const columns = [
  { title: "State", value: (s) => s.key, show: keyButton },
  { title: "Size", name: "bytes", value: (s) => s.nbytes, show: (s) => bytes(s.nbytes), number: true },
  { title: "Own", name: "own", value: (s) => s.own, show: (s) => (s.own === null ? "" : bytes(s.own)), number: true },
  { title: "Shared", name: "shared", value: (s) => s.shared, show: (s) => (s.shared === null ? "" : bytes(s.shared)), number: true },
  { title: "Changed", name: "changed", value: (s) => (s.column ? tally(s)["~"] : null), show: changedWords, number: true },
];
if (states.some((state) => state.modified)) {
  columns.push({ title: data.timed ? "Saved" : "Last used", value: (s) => s.modified, show: (s) => when(s.modified), date: true });
}
if (states.some((state) => state.cached !== null)) {
  columns.push({ title: "Cached", value: (s) => s.cached, show: (s) => s.cached || "" });
}

const order = { column: columns[0], down: false };
let tableRows = [];

function keyButton(state) {
  return el("button", { type: "button", className: "key", onclick: (event) => { event.stopPropagation(); select(state); } }, state.key);
}

function changedWords(state) {
  if (state.error) return el("span", { className: "bad" }, state.error === "unsigned" ? "unsigned" : "damaged");
  if (!state.column) return "";
  const count = tally(state);
  if (state.column.base === null) return "first";
  return `${number(count["~"])}${count["+"] ? ` + ${number(count["+"])} new` : ""}`;
}

function drawTable() {
  const heads = columns.map((column) => {
    const sorted = order.column === column;
    const button = el("button", { type: "button", onclick: () => sortBy(column) },
      column.title, el("span", { "aria-hidden": "true" }, sorted ? (order.down ? " ↓" : " ↑") : ""));
    return el("th", {
      scope: "col", className: column.number ? "n" : "",
      "aria-sort": sorted ? (order.down ? "descending" : "ascending") : null,
    }, button);
  });
  tableRows = states.map((state) => ({ state, node: tableRow(state) }));
  byId("table").replaceChildren(el("thead", {}, el("tr", {}, ...heads)), el("tbody"));
  sortRows();
}

function tableRow(state) {
  const cells = columns.map((column) => el("td", {
    className: column.number ? "n" : column.date ? "date" : "", [`data-${column.name || "value"}`]: column.value(state),
  }, column.show(state)));
  return el("tr", { onclick: () => select(state), "data-key": state.key }, ...cells);
}

function sortBy(column) {
  order.down = order.column === column ? !order.down : Boolean(column.number);
  order.column = column;
  drawTable();
  const place = columns.indexOf(column);
  byId("table").querySelectorAll("th button")[place].focus();
  markTable();
}

function sortRows() {
  const { value } = order.column;
  const sign = order.down ? -1 : 1;
  // What is not known comes last, whichever way.
  tableRows.sort(({ state: one }, { state: other }) => {
    const [a, b] = [value(one), value(other)];
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * (a < b ? -1 : a > b ? 1 : 0) || one.place - other.place;
  });
  byId("table").tBodies[0].replaceChildren(...tableRows.map(({ node }) => node));
}

function markTable() {
  for (const { state, node } of tableRows) {
    node.hidden = !chosen.matches(state);
    node.classList.toggle("chosen", state === chosen.state);
    node.querySelector(".key").setAttribute("aria-pressed", String(state === chosen.state));
    if (state === chosen.state && !node.hidden) reveal(node.closest(".scroll"), node);
  }
}

function findingItem(finding) {
  const named = finding.states.flatMap((place, at) => [at ? ", " : " of ", stateLink(place)]);
  return el("div", { className: `finding${finding.repaired ? " repaired" : ""}` },
    el("p", {}, el("b", {}, finding.repaired ? "repaired" : finding.kind), `: ${finding.what}`, ...named),
    pairs([["where", finding.path], ["expected", finding.expected], ["found", finding.found],
      [finding.repaired ? "what was done" : "what to do", finding.remedy]]));
}

function showFindings() {
  const parts = states.filter((state) => state.error).map((state) => el("div", { className: "finding" },
    el("p", {}, el("b", {}, "cannot be read"), ": ", stateLink(state.place)), el("p", { className: "muted" }, state.error)));
  for (const state of states.filter((one) => one.column && one.column.unread.length)) {
    parts.push(el("div", { className: "finding" },
      el("p", {}, el("b", {}, "damaged or missing"), ": bytes of ", stateLink(state.place), " or of its base"),
      el("p", { className: "muted" }, `found while tensors were compared: ${someOf(state.column.unread)}`)));
  }
  if (data.findings === null) {
    parts.push(el("p", { className: "empty" }, "No verification was given. ",
      el("code", {}, "mlstate verify --all --json > verify.json"), ", then give the report ", el("code", {}, "--findings verify.json"), "."));
  } else if (data.findings.length) parts.push(...data.findings.map(findingItem));
  else parts.push(el("p", { className: "good" }, "The verification found all as it should be."));
  byId("found").replaceChildren(...parts);
}

function startTables() {
  showFindings();
  if (!states.length) {
    byId("states").querySelector(".scroll").replaceWith(el("p", { className: "empty" },
      "There are no states in this store yet. ", el("code", {}, "mlstate add KEY FILE --store STORE"), " brings weights that you have."));
    return;
  }
  drawTable();
  markTable();
  onChange(markTable);
}
