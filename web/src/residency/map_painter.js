// Draws the layer x expert map and its rails. Cost: one fill for each colour that occurs, one rectangle a
// cell: 3 ms for 20,000 experts.
import { EVICTED, MISSED, RESIDENCE_MASK, USED } from '../data/frame.js';
import { formatNumber } from '../format.js';
import { colour } from '../theme.js';
import { columnLeft } from './map_layout.js';
import { drawPattern, TIERS } from './tiers.js';

const LEVELS = 24;        // of brightness
const PATTERN_CELL = 6;   // smaller cells show no pattern, but a shape

const rgb = (hex) => [1, 3, 5].map((i) => Number.parseInt(hex.slice(i, i + 2), 16));
const mix = (from, to, share) =>
  `rgb(${from.map((value, i) => Math.round(value + (to[i] - value) * share)).join(' ')})`;

export function readPalette(residences) {
  const panel = rgb(colour('--panel'));
  return {
    ink: colour('--ink'), muted: colour('--muted'), line: colour('--line'), panel: colour('--panel'),
    stall: colour('--part-stall'), hit: colour('--tier-memory'), missed: colour('--overlay-missed'),
    evicted: colour('--overlay-evicted'), patternInk: colour('--pattern-ink'), cursor: colour('--focus'),
    // fills[residence][level]
    fills: residences.map((name) => {
      const [least, most] = name === 'drive' ? [0.16, 0.75] : [0.34, 1];
      const full = rgb(colour(TIERS[name].colour));
      return Array.from({ length: LEVELS }, (_, level) =>
        mix(panel, full, least + (most - least) * level / (LEVELS - 1)));
    }),
  };
}

// `view`: { picture, layout, order, overlays: { used, missed, evicted }, cursor, figures }.
export function paintMap(canvas, view, palette) {
  const { layout } = view;
  const scale = devicePixelRatio || 1;
  const width = Math.round(layout.width * scale), height = Math.round(layout.height * scale);
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
  const context = canvas.getContext('2d');
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, layout.width, layout.height);
  paintCells(context, view, palette);
  paintOverlays(context, view, palette);
  paintAxes(context, view, palette);
  paintRails(context, view, palette);
  paintCursor(context, view, palette);
}

// Calls visit(expert, x, y, width, height) for every cell.
function forEachCell({ layout, order }, visit) {
  const height = layout.rowHeight - layout.rowGap;
  layout.layers.forEach((layer, row) => {
    const y = layout.top + row * layout.rowHeight, first = layout.firsts[row];
    for (let column = 0; column < layer.experts; ++column) {
      const x = columnLeft(layout, column);
      visit(order[first + column], x, y, columnLeft(layout, column + 1) - x - layout.gap, height);
    }
  });
}

function paintCells(context, view, palette) {
  const { picture, layout } = view;
  const hottest = picture.heats.reduce((most, heat) => Math.max(most, heat), 1);
  const paths = palette.fills.map(() => new Array(LEVELS));
  const patterns = picture.header.residences.map((name) => TIERS[name].pattern);
  const small = layout.cellWidth < PATTERN_CELL;
  const patterned = [];
  forEachCell(view, (expert, x, y, width, height) => {
    const residence = picture.states[expert] & RESIDENCE_MASK;
    const level = Math.round(picture.heats[expert] / hottest * (LEVELS - 1));
    const path = paths[residence][level] ??= new Path2D();
    const pattern = patterns[residence];
    if (pattern === 'solid' || pattern === 'hollow' || !small) {
      path.rect(x, y, width, height);
      if (pattern !== 'solid' && pattern !== 'hollow') patterned.push([pattern, x, y, width, height]);
    } else {  // what is on its way fills the upper half, what waits for its use the lower one
      path.rect(x, pattern === 'dots' ? y : y + height / 2, width, height / 2);
    }
  });
  paths.forEach((levels, residence) => levels.forEach((path, level) => {
    context.fillStyle = palette.fills[residence][level];
    context.fill(path);
  }));
  for (const [pattern, ...cell] of patterned) drawPattern(context, pattern, ...cell, palette.patternInk);
}

// Used: a frame. Missed: a corner. Evicted: a small cross.
function paintOverlays(context, view, palette) {
  const used = new Path2D(), missed = new Path2D(), evicted = new Path2D();
  const { states } = view.picture;
  forEachCell(view, (expert, x, y, width, height) => {
    const state = states[expert];
    if (state & USED) used.rect(x + 0.75, y + 0.75, Math.max(0.5, width - 1.5), height - 1.5);
    if (state & MISSED) {
      const size = Math.max(2.5, Math.min(width, height) * 0.45);
      missed.moveTo(x, y);
      missed.lineTo(x + size, y);
      missed.lineTo(x, y + size);
      missed.closePath();
    }
    if (state & EVICTED) {
      const size = Math.max(1, Math.min(width, height) * 0.22), cx = x + width / 2, cy = y + height / 2;
      evicted.moveTo(cx - size, cy - size);
      evicted.lineTo(cx + size, cy + size);
      evicted.moveTo(cx + size, cy - size);
      evicted.lineTo(cx - size, cy + size);
    }
  });
  if (view.overlays.used) {
    context.strokeStyle = palette.ink;
    context.lineWidth = view.layout.cellWidth >= PATTERN_CELL ? 1.5 : 0.75;
    context.stroke(used);
  }
  if (view.overlays.missed) {
    context.fillStyle = palette.missed;
    context.fill(missed);
  }
  if (view.overlays.evicted) {
    context.strokeStyle = palette.evicted;
    context.lineWidth = 1.5;
    context.stroke(evicted);
  }
}

const mostStall = (figures) => figures.reduce((value, layer) => Math.max(value, layer.stallMs ?? 0), 0);

function paintAxes(context, { layout, orderName, figures }, palette) {
  context.fillStyle = palette.muted;
  context.font = '10.5px Inter, system-ui, sans-serif';
  context.textBaseline = 'middle';
  context.textAlign = 'right';
  const every = Math.ceil(14 / layout.rowHeight);
  layout.layers.forEach((layer, row) => {
    if (row % every !== 0) return;
    context.fillText(String(layer.layer), layout.left - 7, layout.top + (row + 0.5) * layout.rowHeight - 0.5);
  });
  context.textAlign = 'left';
  if (orderName === 'heat') {
    context.fillText('hottest of its layer', layout.left, 8);
    context.textAlign = 'right';
    context.fillText('coldest', layout.right, 8);
  } else {
    const step = [1, 2, 4, 8, 16, 32, 64].find((n) => n * layout.cellWidth >= 30) ?? 64;
    for (let column = 0; column < layout.columns; column += step) {
      context.fillText(String(column), columnLeft(layout, column), 8);
    }
  }
  context.textAlign = 'left';
  context.fillText(`stall ≤ ${formatNumber(mostStall(figures), 2)} ms/tok`, layout.stall.x, 8);
  context.fillText('hit 0–100 %', layout.hit.x, 8);
}

function paintRails(context, { layout, figures }, palette) {
  const most = mostStall(figures) || 1;
  const height = Math.max(2, layout.rowHeight - 5);
  context.font = '10.5px Inter, system-ui, sans-serif';
  context.textBaseline = 'middle';
  figures.forEach((layer, row) => {
    const y = layout.top + row * layout.rowHeight + (layout.rowHeight - layout.rowGap - height) / 2;
    const middle = y + height / 2;
    context.fillStyle = palette.line;
    context.fillRect(layout.stall.x, y, layout.stall.width, height);
    context.fillRect(layout.hit.x, y, layout.hit.width, height);
    if (layer.stallMs !== null) {
      const width = layer.stallMs / most * layout.stall.width;
      context.fillStyle = palette.stall;
      context.fillRect(layout.stall.x, y, width, height);
      drawPattern(context, 'diagonal', layout.stall.x, y, width, height, palette.patternInk);
    }
    if (layer.hitRate !== null) {
      context.fillStyle = palette.hit;
      context.fillRect(layout.hit.x, y, layer.hitRate * layout.hit.width, height);
    }
    if (layout.rowHeight < 12) return;
    context.fillStyle = palette.muted;
    context.textAlign = 'right';
    if (layer.stallMs !== null) context.fillText(formatNumber(layer.stallMs, 2), layout.hit.x - 8, middle);
  });
}

function paintCursor(context, { layout, cursor }, palette) {
  if (!cursor) return;
  const x = columnLeft(layout, cursor.column), y = layout.top + cursor.row * layout.rowHeight;
  const width = columnLeft(layout, cursor.column + 1) - x - layout.gap;
  context.strokeStyle = palette.cursor;
  context.lineWidth = 2;
  context.strokeRect(x - 1.5, y - 1.5, width + 3, layout.rowHeight - layout.rowGap + 3);
}
