// The cells of the heat map: layers against states, by tensor, by module, or by block.

const KIND = { absent: 0, equal: 1, fresh: 2, unknown: 3, changed: 4 };

// The name of the row that a tensor is in.
function rowName(name, level) {
  const parts = name.split(".");
  if (level === "tensor" || parts.length === 1) return name;
  const module = parts.slice(0, -1);
  if (level === "module") return module.join(".");
  const digit = parts.findIndex((part) => /^\d+$/.test(part));
  return (digit > 0 ? parts.slice(0, digit + 1) : module).join(".");
}

// Rows and cells of a map. Of the tensors in a cell the one that changed most gives the colour.
function cellsOf(map, level) {
  const places = new Map();
  const rows = [];
  const rowOf = map.layers.map((layer) => {
    const name = rowName(layer.name, level);
    if (!places.has(name)) {
      places.set(name, rows.length);
      rows.push({ name, layers: 0, nbytes: 0, touched: false, only: layer });
    }
    const row = rows[places.get(name)];
    row.layers += 1;
    row.nbytes += layer.nbytes;
    return places.get(name);
  });
  const size = rows.length * map.columns.length;
  const cells = {
    rows, columns: map.columns, kind: new Uint8Array(size), value: new Float32Array(size),
    changed: new Uint32Array(size), fresh: new Uint32Array(size), change: new Array(size),
  };
  map.columns.forEach((column, place) => fillColumn(cells, column, place, rowOf));
  return cells;
}

function fillColumn(cells, column, place, rowOf) {
  const width = cells.columns.length;
  for (let layer = 0; layer < rowOf.length; layer += 1) {
    const mark = column.marks[layer];
    if (mark === ".") continue;
    const row = rowOf[layer];
    const cell = row * width + place;
    const kind = mark === "=" ? KIND.equal : mark === "+" ? KIND.fresh : KIND.unknown;
    if (kind === KIND.fresh) cells.fresh[cell] += 1;
    if (kind === KIND.unknown) cells.changed[cell] += 1;
    if (kind === KIND.unknown || (kind === KIND.fresh && column.base !== null)) {
      cells.rows[row].touched = true;
    }
    cells.kind[cell] = Math.max(cells.kind[cell], kind);
  }
  for (const change of column.changes) {
    const cell = rowOf[change[0]] * width + place;
    const value = change[1];
    if (value === null) continue;
    cells.kind[cell] = KIND.changed;
    if (cells.change[cell] === undefined || value > cells.value[cell]) {
      cells.value[cell] = value;
      cells.change[cell] = change;
    }
  }
}

// What a cell says, for tooltips and readers of screens.
function cellLines(cells, row, place) {
  const column = cells.columns[place];
  const cell = row * cells.columns.length + place;
  const { name, layers, nbytes, only } = cells.rows[row];
  const what = layers === 1 ? `${only.dtype} ${only.shape || "scalar"}` : counted(layers, "tensor");
  const lines = [name, `${what}, ${bytes(nbytes)}`, `${column.state.key}: ${cellWords(cells, cell, layers, column)}`];
  const change = cells.change[cell];
  if (change) {
    lines.push(`largest change of an element ${relative(change[2])}; ${number(change[3])} elements differ`);
    if (change[4]) lines.push(`${number(change[4])} of them are infinite or not a number`);
  }
  return lines;
}

function cellWords(cells, cell, layers, column) {
  const of = layers === 1 ? "" : `${cells.changed[cell]} of ${layers} changed, at most `;
  switch (cells.kind[cell]) {
    case KIND.absent: return "not in this state";
    case KIND.equal: return "equal to the base";
    case KIND.fresh: return column.base === null ? "first state" : "new, not in the base";
    case KIND.unknown: return `${layers === 1 ? "" : `${cells.changed[cell]} of ${layers} `}changed, not known by how much`;
    default: return `${of}relative change ${relative(cells.value[cell])}`;
  }
}

// The colour of a relative change: 1e-5 and less to 1 and more, by powers of ten.
const DECADES = 5;
let ramp = [];
function makeRamp() {
  const parts = ["--low", "--middle", "--high"].map((name) => colour(name).match(/[\d.]+/g).map(Number));
  ramp = Array.from({ length: 61 }, (_, step) => {
    const at = step / 30;
    const from = parts[Math.min(1, Math.floor(at))];
    const to = parts[Math.min(2, Math.floor(at) + 1)];
    const part = at < 1 ? at : at - 1;
    return `rgb(${from.map((value, place) => Math.round(value + (to[place] - value) * part)).slice(0, 3).join(",")})`;
  });
}
function rampColour(value) {
  const part = value > 0 ? Math.log10(value) / DECADES + 1 : 0;
  return ramp[Math.round(60 * Math.min(1, Math.max(0, part)))];
}
