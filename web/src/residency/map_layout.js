// Where the map's cells are, and which expert is in which: geometry and order, without drawing.
//
// Cells begin at whole pixels, so that they are crisp; the width that is left over makes some of them a pixel wider.

const LEFT = 34, TOP = 20, RAIL_GAP = 14, STALL_WIDTH = 116, HIT_WIDTH = 72;
const LEAST_ROW = 6, MOST_ROW = 22, MOST_HEIGHT = 430;

// `width` in CSS pixels; `layers` as in a header: [{ layer, experts }].
export function layoutMap(width, layers) {
  const columns = Math.max(...layers.map((layer) => layer.experts));
  const rail = RAIL_GAP + STALL_WIDTH + HIT_WIDTH;
  const cellWidth = Math.max(1, (width - LEFT - rail) / columns);
  const rowHeight = Math.max(LEAST_ROW, Math.min(MOST_ROW, Math.floor(MOST_HEIGHT / layers.length),
                                                 Math.round(Math.max(cellWidth, 10))));
  const firsts = [];
  let first = 0;
  for (const layer of layers) {
    firsts.push(first);
    first += layer.experts;
  }
  const mapRight = LEFT + columns * cellWidth;
  return {
    layers, firsts, columns, cellWidth, rowHeight,
    left: LEFT, top: TOP, right: mapRight,
    stall: { x: mapRight + RAIL_GAP, width: STALL_WIDTH - 34 },
    hit: { x: mapRight + RAIL_GAP + STALL_WIDTH + 8, width: HIT_WIDTH - 12 },
    width, height: TOP + layers.length * rowHeight + 4,
    gap: cellWidth >= 5 ? 1 : 0, rowGap: rowHeight >= 7 ? 1 : 0,
  };
}

// order[first + column]: the flat index of the expert that stands in that column.
export function identityOrder(layout) {
  const order = new Uint32Array(layout.firsts.at(-1) + layout.layers.at(-1).experts);
  for (let i = 0; i < order.length; ++i) order[i] = i;
  return order;
}

// Hottest first within each layer; equal heat by number, so that cells do not dance.
export function heatOrder(layout, heats) {
  const order = identityOrder(layout);
  layout.layers.forEach((layer, row) => {
    const first = layout.firsts[row];
    order.subarray(first, first + layer.experts).sort((a, b) => heats[b] - heats[a] || a - b);
  });
  return order;
}

export const columnLeft = (layout, column) => Math.round(layout.left + column * layout.cellWidth);

// { row, column } under a point of the canvas; null outside.
export function cellAt(layout, x, y) {
  const row = Math.floor((y - layout.top) / layout.rowHeight);
  const column = Math.floor((x - layout.left) / layout.cellWidth);
  if (row < 0 || row >= layout.layers.length || column < 0 || column >= layout.layers[row].experts) return null;
  return { row, column };
}

const clamp = (value, limit) => Math.max(0, Math.min(limit - 1, value));

// The cursor after a key; null if the key is not for the map.
export function moveCursor(layout, cursor, key) {
  const at = cursor ?? { row: 0, column: 0 };
  const steps = {
    ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0],
    PageUp: [-8, 0], PageDown: [8, 0], Home: [0, -Infinity], End: [0, Infinity],
  };
  if (!steps[key]) return null;
  if (!cursor) return at;
  const row = clamp(at.row + steps[key][0], layout.layers.length);
  return { row, column: clamp(at.column + steps[key][1], layout.layers[row].experts) };
}
