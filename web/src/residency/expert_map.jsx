// The layer x expert map with its toolbar, its reading of one cell, and the same figures as a table.
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from 'preact/hooks';
import { EVICTED, MISSED, RESIDENCE_MASK, USED } from '../data/frame.js';
import { layerFigures } from '../data/figures.js';
import { heatOfByte } from '../data/projection.js';
import { formatNumber, formatPercent } from '../format.js';
import { colour } from '../theme.js';
import { useWidth } from '../use_width.js';
import { cellAt, heatOrder, identityOrder, layoutMap, moveCursor } from './map_layout.js';
import { paintMap, readPalette } from './map_painter.js';
import { drawPattern, TIERS } from './tiers.js';

const REORDER_MS = 2000;  // while live, so that the eye can follow

const OVERLAYS = [
  { key: 'used', name: 'used', what: 'named by a router since the last frame' },
  { key: 'missed', name: 'missed', what: 'was not in memory when it was named' },
  { key: 'evicted', name: 'evicted', what: 'left memory since the last frame' },
];

function describeCell(picture, layout, order, cursor) {
  const expert = order[layout.firsts[cursor.row] + cursor.column];
  const state = picture.states[expert];
  const tier = TIERS[picture.header.residences[state & RESIDENCE_MASK]];
  const events = [[USED, 'used'], [MISSED, 'missed'], [EVICTED, 'evicted']]
    .filter(([bit]) => state & bit).map(([, name]) => name);
  return [
    `Layer ${layout.layers[cursor.row].layer}, expert ${expert - layout.firsts[cursor.row]}`,
    tier.name,
    `heat ${formatPercent(heatOfByte(picture.heats[expert]))} %`,
    ...(events.length ? [`just ${events.join(', ')}`] : []),
  ].join(' · ');
}

function Swatch({ residence, dark }) {
  const ref = useRef(null);
  useLayoutEffect(() => {
    const context = ref.current.getContext('2d');
    context.setTransform(2, 0, 0, 2, 0, 0);
    context.clearRect(0, 0, 16, 12);
    context.fillStyle = colour(TIERS[residence].colour);
    context.globalAlpha = residence === 'drive' ? 0.5 : 1;
    context.fillRect(0, 0, 16, 12);
    context.globalAlpha = 1;
    drawPattern(context, TIERS[residence].pattern, 0, 0, 16, 12, colour('--pattern-ink'));
  }, [residence, dark]);
  return <canvas ref={ref} width="32" height="24" class="swatch" aria-hidden="true" />;
}

function Legend({ picture, dark }) {
  const counts = new Array(picture.header.residences.length).fill(0);
  for (const state of picture.states) ++counts[state & RESIDENCE_MASK];
  return (
    <ul class="legend" aria-label="Where the experts are">
      {Object.keys(TIERS).map((residence) => (
        <li key={residence}>
          <Swatch residence={residence} dark={dark} />
          {TIERS[residence].name} <b>{counts[picture.header.residences.indexOf(residence)]}</b>
        </li>
      ))}
      <li><span class="heat-ramp" aria-hidden="true" /> brightness: heat</li>
    </ul>
  );
}

function LayerTable({ layers, figures }) {
  return (
    <details class="layer-table">
      <summary>Layers as a table</summary>
      <div class="table-scroll" tabindex="0" role="region" aria-label="Layers">
        <table>
          <thead>
            <tr>
              <th scope="col">Layer</th><th scope="col">In memory</th><th scope="col">Experts</th>
              <th scope="col">Hit %</th><th scope="col">Stall ms/token</th>
            </tr>
          </thead>
          <tbody>
            {layers.map((layer, i) => (
              <tr key={layer.layer}>
                <th scope="row">{layer.layer}</th><td>{figures[i].resident}</td><td>{layer.experts}</td>
                <td>{formatPercent(figures[i].hitRate)}</td><td>{formatNumber(figures[i].stallMs)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </details>
  );
}

export function ExpertMap({ picture, base, isLive, dark }) {
  const [box, width] = useWidth();
  const canvas = useRef(null);
  const [orderName, setOrderName] = useState('id');
  const [overlays, setOverlays] = useState({ used: true, missed: true, evicted: true });
  const [cursor, setCursor] = useState(null);
  const sorted = useRef({ at: 0, order: null, key: '' });

  const { header } = picture;
  const layout = useMemo(() => (width > 0 ? layoutMap(width, header.layers) : null), [width, header]);
  const palette = useMemo(() => readPalette(header.residences), [header, dark]);
  const figures = layerFigures(base, picture);

  const order = useMemo(() => {
    if (!layout) return null;
    if (orderName === 'id') return identityOrder(layout);
    const now = performance.now(), key = `${width} ${isLive}`;
    if (!isLive || sorted.current.key !== key || now - sorted.current.at > REORDER_MS) {
      sorted.current = { at: now, order: heatOrder(layout, picture.heats), key };
    }
    return sorted.current.order;
  }, [layout, orderName, picture, picture.sequence, isLive]);

  useEffect(() => {
    if (layout) paintMap(canvas.current, { picture, layout, order, orderName, overlays, cursor, figures }, palette);
  });

  const onKeyDown = (event) => {
    if (event.key === 'Escape') return setCursor(null);
    const next = moveCursor(layout, cursor, event.key);
    if (!next) return undefined;
    event.preventDefault();
    return setCursor(next);
  };
  const onPointer = (event) => setCursor(cellAt(layout, event.offsetX, event.offsetY));
  const { resident, slot_count: slots } = picture.numbers;
  const summary = `${resident} of ${picture.states.length} experts in memory, ${slots} slots, ` +
    `${header.layers.length} layers. Arrow keys read single experts.`;

  return (
    <section class="card" aria-labelledby="map-title">
      <div class="card-head">
        <h2 id="map-title">Experts</h2>
        <div class="toolbar" role="group" aria-label="Order of a layer's experts">
          {[['id', 'by number'], ['heat', 'by heat']].map(([name, text]) => (
            <button key={name} type="button" aria-pressed={orderName === name} onClick={() => setOrderName(name)}>{text}</button>
          ))}
        </div>
        <div class="toolbar" role="group" aria-label="Marks">
          {OVERLAYS.map(({ key, name, what }) => (
            <button key={key} type="button" title={what} aria-pressed={overlays[key]} class={`mark mark-${key}`}
              onClick={() => setOverlays({ ...overlays, [key]: !overlays[key] })}>{name}</button>
          ))}
        </div>
      </div>
      <div ref={box} class="map-box">
        <canvas ref={canvas} tabindex="0" role="application" aria-label={`Map of layers and experts: ${summary}`}
          style={layout && { width: `${layout.width}px`, height: `${layout.height}px` }}
          onKeyDown={onKeyDown} onPointerMove={onPointer} onPointerLeave={() => setCursor(null)} />
      </div>
      <p class="readout" aria-live="polite">
        {cursor && layout && cursor.row < layout.layers.length
          ? describeCell(picture, layout, order, cursor)
          : 'Point at an expert, or walk the map with the arrow keys.'}
      </p>
      <Legend picture={picture} dark={dark} />
      <LayerTable layers={header.layers} figures={figures} />
    </section>
  );
}
