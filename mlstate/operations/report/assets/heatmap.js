// The heat map on a canvas that has the size of its window: only what can be seen is drawn.

const heat = byId("heat");
const canvas = byId("canvas");
const ROW = 17;
const grid = { cells: null, rows: [], columns: [], cell: 20, left: 200, top: 96, row: 0, column: 0, active: false };

const currentMap = () => maps[Number(byId("map").value)];

// The finest rows that can all be seen at once; the coarsest if none can.
function fittingLevel(map) {
  const count = (level) => new Set(map.layers.map((layer) => rowName(layer.name, level))).size;
  return ["tensor", "module", "block"].find((level) => count(level) <= 28) || "block";
}

function showMap() {
  grid.cells = cellsOf(currentMap(), byId("level").value);
  filterMap();
}

function filterMap() {
  if (!grid.cells) return;
  const wanted = byId("layer-search").value.toLowerCase();
  const touched = byId("touched").checked;
  const { rows, columns } = grid.cells;
  grid.rows = [...rows.keys()].filter((row) =>
    (!touched || rows[row].touched) && rows[row].name.toLowerCase().includes(wanted));
  grid.columns = [...columns.keys()].filter((place) => chosen.matches(columns[place].state));
  grid.row = Math.min(grid.row, Math.max(0, grid.rows.length - 1));
  grid.column = Math.min(grid.column, Math.max(0, grid.columns.length - 1));
  measureMap();
}

function measureMap() {
  if (!grid.cells) return;
  const width = heat.clientWidth;
  const context = canvas.getContext("2d");
  context.font = "12px system-ui, sans-serif";
  const longest = Math.max(60, ...grid.rows.slice(0, 400).map((row) =>
    context.measureText(grid.cells.rows[row].name).width));
  grid.left = Math.round(Math.min(longest + 14, width * (width < 500 ? 0.42 : 0.38)));
  grid.cell = Math.min(110, Math.max(7, (width - grid.left - 100) / Math.max(1, grid.columns.length)));
  grid.top = grid.cell >= 13 ? headHeight(context) : 6;
  const wide = grid.left + grid.cell * grid.columns.length + (grid.cell >= 13 ? 96 : 4);
  const high = grid.top + ROW * Math.max(1, grid.rows.length) + 4;
  byId("sizer").style.width = `${Math.max(wide, 1)}px`;
  byId("sizer").style.height = `${high}px`;
  heat.style.height = `${Math.min(high + 2, 560)}px`;
  heat.setAttribute("aria-label",
    `Heat map: ${counted(grid.rows.length, "row")} of layers against ${counted(grid.columns.length, "state")}`);
  drawMap();
}

// The names of states stand at 45 degrees.
function headHeight(context) {
  const longest = Math.max(0, ...grid.columns.map((place) =>
    context.measureText(grid.cells.columns[place].state.short).width));
  return Math.round(Math.min(138, longest + 6) * Math.SQRT1_2) + 22;
}

let asked = false;
function drawMap() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => { asked = false; paint(); });
}

function paint() {
  const [width, height] = [heat.clientWidth, heat.clientHeight];
  const scale = devicePixelRatio || 1;
  if (!width || !grid.cells) return;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  context.clearRect(0, 0, width, height);
  const paints = Object.fromEntries(["--panel", "--text", "--muted", "--equal", "--new", "--unknown", "--accent"]
    .map((name) => [name, colour(name)]));
  const first = Math.floor(heat.scrollTop / ROW);
  const last = Math.min(grid.rows.length, first + Math.ceil((height - grid.top) / ROW) + 1);
  paintCells(context, paints, first, last, width);
  paintNames(context, paints, first, last);
  paintHeads(context, paints, width);
  if (!grid.rows.length || !grid.columns.length) {
    context.fillStyle = paints["--muted"];
    context.fillText("nothing fits", 4, 14);
  }
}

const leftOf = (at) => grid.left + at * grid.cell - heat.scrollLeft;
const topOf = (at) => grid.top + at * ROW - heat.scrollTop;

function paintCells(context, paints, first, last, width) {
  const gap = grid.cell > 10 ? 1.5 : 0.5;
  const { kind, value, columns } = grid.cells;
  const from = Math.max(0, Math.floor(heat.scrollLeft / grid.cell));
  const to = Math.min(grid.columns.length, from + Math.ceil((width - grid.left) / grid.cell) + 1);
  for (let at = first; at < last; at += 1) {
    for (let place = from; place < to; place += 1) {
      const cell = grid.rows[at] * columns.length + grid.columns[place];
      if (kind[cell] === KIND.absent) continue;
      context.fillStyle = kind[cell] === KIND.equal ? paints["--equal"]
        : kind[cell] === KIND.fresh ? (columns[grid.columns[place]].base === null ? paints["--equal"] : paints["--new"])
          : kind[cell] === KIND.unknown ? paints["--unknown"] : rampColour(value[cell]);
      const [x, y] = [leftOf(place), topOf(at)];
      context.fillRect(x, y, grid.cell - gap, ROW - 1.5);
      if (kind[cell] === KIND.unknown) paintStripe(context, paints, x, y, grid.cell - gap);
    }
  }
  const selected = grid.columns.findIndex((place) => columns[place].state === chosen.state);
  context.strokeStyle = paints["--accent"];
  context.lineWidth = 2;
  if (selected >= 0) {
    context.strokeRect(leftOf(selected) - 1.5, topOf(0) - 1.5, grid.cell + 1.5, grid.rows.length * ROW + 1);
  }
  if (grid.active && grid.rows.length) {
    context.strokeStyle = paints["--text"];
    context.strokeRect(leftOf(grid.column) - 1, topOf(grid.row) - 1, grid.cell + 0.5, ROW + 0.5);
  }
}

// A diagonal through a cell of which only is known that it changed: colour is not all that tells.
function paintStripe(context, paints, x, y, width) {
  context.strokeStyle = paints["--panel"];
  context.lineWidth = 1.5;
  context.beginPath();
  context.moveTo(x, y + ROW - 1.5);
  context.lineTo(x + width, y);
  context.stroke();
}

function shortened(context, text, room) {
  if (context.measureText(text).width <= room) return text;
  let kept = Math.max(1, Math.floor(text.length * room / context.measureText(text).width) - 1);
  while (kept > 1 && context.measureText(`…${text.slice(-kept)}`).width > room) kept -= 1;
  return `…${text.slice(-kept)}`;
}

function paintNames(context, paints, first, last) {
  context.fillStyle = paints["--panel"];
  context.fillRect(0, 0, grid.left - 3, heat.clientHeight);
  context.font = "12px system-ui, sans-serif";
  context.textBaseline = "middle";
  context.textAlign = "right";
  for (let at = first; at < last; at += 1) {
    context.fillStyle = grid.active && at === grid.row ? paints["--text"] : paints["--muted"];
    const name = shortened(context, grid.cells.rows[grid.rows[at]].name, grid.left - 12);
    context.fillText(name, grid.left - 9, topOf(at) + ROW / 2 - 1);
  }
}

function paintHeads(context, paints, width) {
  context.fillStyle = paints["--panel"];
  context.fillRect(0, 0, width, grid.top - 3);
  if (grid.cell < 13) return;
  context.textAlign = "left";
  for (let place = 0; place < grid.columns.length; place += 1) {
    const { state } = grid.cells.columns[grid.columns[place]];
    const x = leftOf(place) + grid.cell / 2;
    if (x < grid.left - 4 || x > width + 8) continue;
    context.save();
    context.translate(x, grid.top - 8);
    context.rotate(-Math.PI / 4);
    context.font = `${state === chosen.state ? "600 " : ""}12px system-ui, sans-serif`;
    context.fillStyle = state === chosen.state ? paints["--accent"] : paints["--text"];
    context.fillText(shortened(context, state.short, 138), 0, 0);
    context.restore();
  }
}

// The cell below a point of the window, as places in the rows and columns that are shown.
function cellAt(event) {
  const box = heat.getBoundingClientRect();
  const [x, y] = [event.clientX - box.left, event.clientY - box.top];
  const column = Math.floor((x - grid.left + heat.scrollLeft) / grid.cell);
  const row = Math.floor((y - grid.top + heat.scrollTop) / ROW);
  const inside = x >= grid.left && column >= 0 && column < grid.columns.length;
  return { column: inside ? column : -1, row: y >= grid.top && row < grid.rows.length ? row : -1 };
}

const linesAt = ({ row, column }) => cellLines(grid.cells, grid.rows[row], grid.columns[column]);

function mapKey(event) {
  const steps = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
  if (!grid.rows.length || !grid.columns.length) return;
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    select(grid.cells.columns[grid.columns[grid.column]].state);
    return;
  }
  if (!(event.key in steps)) return;
  event.preventDefault();
  const [down, right] = steps[event.key];
  grid.row = Math.min(grid.rows.length - 1, Math.max(0, grid.row + down));
  grid.column = Math.min(grid.columns.length - 1, Math.max(0, grid.column + right));
  if (topOf(grid.row) < grid.top) heat.scrollTop = grid.row * ROW;
  if (topOf(grid.row) + ROW > heat.clientHeight) heat.scrollTop = (grid.row + 1) * ROW - heat.clientHeight + grid.top;
  revealColumn(grid.column);
  tellCell();
}

function revealColumn(place) {
  if (leftOf(place) < grid.left) heat.scrollLeft = place * grid.cell;
  if (leftOf(place) + grid.cell > heat.clientWidth) {
    heat.scrollLeft = (place + 1) * grid.cell - heat.clientWidth + grid.left;
  }
}

function tellCell() {
  const lines = linesAt(grid);
  byId("heat-said").textContent = lines.join(". ");
  const box = heat.getBoundingClientRect();
  showTip(lines, box.left + leftOf(grid.column), box.top + topOf(grid.row));
  drawMap();
}

function listenToMap() {
  heat.addEventListener("scroll", () => { hideTip(); drawMap(); });
  heat.addEventListener("pointermove", (event) => {
    const at = cellAt(event);
    heat.style.cursor = at.column >= 0 ? "pointer" : "";
    if (at.column >= 0 && at.row >= 0) showTip(linesAt(at), event.clientX, event.clientY);
    else hideTip();
  });
  heat.addEventListener("pointerleave", hideTip);
  heat.addEventListener("click", (event) => {
    const { column } = cellAt(event);
    if (column >= 0) select(grid.cells.columns[grid.columns[column]].state);
  });
  heat.addEventListener("keydown", mapKey);
  heat.addEventListener("focus", () => {
    grid.active = heat.matches(":focus-visible");
    if (grid.active && grid.rows.length && grid.columns.length) tellCell();
  });
  heat.addEventListener("blur", () => { grid.active = false; hideTip(); drawMap(); });
}

function heatLegend() {
  const swatch = (variable, text, className = "") => {
    const box = el("i", { className: `swatch ${className}` });
    box.style.setProperty("--fill", `var(${variable})`);
    return el("span", {}, box, text);
  };
  byId("heat-legend").replaceChildren(
    swatch("--equal", "equal"),
    el("span", {}, "relative change 10⁻⁵", el("i", { className: "ramp" }), "1 and more"),
    swatch("--new", "new"),
    swatch("--unknown", "changed, not known by how much", "stripes"),
    swatch("--panel", "not in the state", "edge"));
}

function startHeatmap() {
  const about = byId("layers-about");
  if (!maps.length) {
    about.textContent = "No tensors are known here: there are no states, or their state objects are elsewhere.";
    for (const part of [".controls", ".heat", "#heat-legend"]) byId("layers").querySelector(part).remove();
    return;
  }
  about.textContent = "Which layers did a state change? Each is compared with its base: the older state that it "
    + "shares most bytes with, else the first of its architecture."
    + (data.compared ? "" : " Values were left out, so only what changed is known.");
  byId("map").replaceChildren(...maps.map((map, place) =>
    el("option", { value: place }, `${map.name} (${counted(map.columns.length, "state")})`)));
  const most = maps.reduce((best, map, place) => (map.columns.length > maps[best].columns.length ? place : best), 0);
  byId("map").value = String(most);
  byId("level").value = fittingLevel(maps[most]);
  byId("map").onchange = () => { byId("level").value = fittingLevel(currentMap()); showMap(); };
  byId("level").onchange = showMap;
  byId("touched").onchange = filterMap;
  byId("layer-search").oninput = filterMap;
  makeRamp();
  heatLegend();
  listenToMap();
  showMap();
  new ResizeObserver(measureMap).observe(heat.parentElement);
  onChange(() => {
    if (chosen.state && chosen.state.map && chosen.state.map !== currentMap()) {
      byId("map").value = String(maps.indexOf(chosen.state.map));
      byId("level").value = fittingLevel(currentMap());
      showMap();
    } else filterMap();
    const place = grid.columns.findIndex((at) => grid.cells.columns[at].state === chosen.state);
    if (place >= 0) revealColumn(place);
  });
}
