// What another cache size would give, from the heat of the experts and what was measured so far
// (data/projection.js has the assumptions).
import { useState } from 'preact/hooks';
import { figures } from '../data/figures.js';
import { heatShares, projectHitRate, projectTokenMs } from '../data/projection.js';
import { formatBytes, formatNumber, formatPercent } from '../format.js';
import { colour } from '../theme.js';
import { axisStyle, Chart } from './chart.jsx';

const POINTS = 60;
const ENOUGH_TOKENS = 8;

// Since the process started: the curve must not jump with every sentence.
function measure(numbers, header) {
  const zero = Object.fromEntries(Object.keys(numbers).map((name) => [name, 0]));
  const all = figures(zero, numbers);
  if (all.tokens < ENOUGH_TOKENS || all.decodeHitRate === null) return null;
  return {
    slots: numbers.slot_count - numbers.ring_slots,
    hitRate: all.decodeHitRate,
    tokenMs: 1e3 / all.tokensPerSecond,
    stallMs: all.stallMsPerToken,
    lookupsPerToken: (numbers.decode_hits + numbers.decode_misses) / all.tokens,
    recordBytes: header.record_bytes,
    bytesPerMs: all.readBytesPerSecond === null ? null : all.readBytesPerSecond / 1e3,
  };
}

function curve(share, measured, least) {
  const experts = share.length - 1;
  const sizes = Array.from({ length: POINTS }, (_, i) => Math.round(least + (experts - least) * i / (POINTS - 1)));
  const hits = sizes.map((slots) => projectHitRate(share, slots, measured));
  const speeds = hits.map((hit) => projectTokenMs(hit, measured)).map((time) => time && 1e3 / time.tokenMs);
  return [sizes, speeds, hits.map((hit) => 100 * hit)];
}

function chartOptions(experts) {
  const line = (scale, paint, dash) => ({ scale, stroke: paint, width: 1.5, dash, points: { show: false } });
  return {
    scales: { x: { time: false }, hit: { range: [0, 100] }, speed: { range: (_, __, most) => [0, Math.max(1, (most ?? 1) * 1.1)] } },
    axes: [
      { ...axisStyle(), size: 24, splits: () => [0.25, 0.5, 0.75, 1].map((part) => part * experts),
        values: (_, values) => values.map((value) => `${Math.round(100 * value / experts)} %`) },
      { ...axisStyle(), scale: 'speed', size: 44 },
      { ...axisStyle(), scale: 'hit', side: 1, size: 44, grid: { show: false }, values: (_, values) => values.map((value) => `${value} %`) },
    ],
    series: [{}, line('speed', colour('--series-speed')), line('hit', colour('--series-hit'), [5, 3])],
    cursor: { y: false, drag: { x: false, y: false }, points: { show: false } },
  };
}

function Projection({ share, measured, header, dark, sequence }) {
  const experts = share.length - 1;
  const least = Math.min(experts, header.top_k + 2);
  const [wanted, setWanted] = useState(null);
  const slots = wanted ?? Math.max(least, Math.min(experts, measured.slots));
  const hitRate = projectHitRate(share, slots, measured);
  const time = projectTokenMs(hitRate, measured);
  const [size, unit] = formatBytes(slots * header.record_bytes);
  const data = curve(share, measured, least);
  const nearest = data[0].reduce((best, value, i) => (Math.abs(value - slots) < Math.abs(data[0][best] - slots) ? i : best), 0);
  const speedText = time ? `${time.serial ? 'at least ' : ''}${formatNumber(1e3 / time.tokenMs)}` : 'n/a';
  return (
    <>
      <Chart label="Projected tokens per second and hit rate by cache size" height={120} dark={dark}
        options={() => chartOptions(experts)} data={data} cursorAt={nearest} version={sequence} />
      <div class="scrubber under-chart">
        <input type="range" min={least} max={experts} value={slots} aria-label="Cache size, in experts"
          aria-valuetext={`${slots} experts, ${size} ${unit}: hit rate ${formatPercent(hitRate)} %, ${speedText} tokens per second`}
          onInput={(event) => setWanted(Number(event.currentTarget.value))} />
      </div>
      <dl class="projection">
        <div><dt>cache</dt><dd>{slots} <small>experts, {size} {unit}</small></dd></div>
        <div><dt>hit rate</dt><dd>{formatPercent(hitRate)} <small>%</small></dd></div>
        <div><dt>speed</dt><dd>{speedText} <small>tokens/s</small></dd></div>
      </dl>
      <p class="aside">
        {wanted === null ? 'This is the present size; the slider asks for another. '
          : <><button type="button" onClick={() => setWanted(null)}>Back to the present size</button> </>}
        Heat decides what is kept, stall grows with misses, all else stays.
      </p>
    </>
  );
}

export function WhatIf({ picture, dark }) {
  const share = heatShares(picture.heats);
  const measured = measure(picture.numbers, picture.header);
  return (
    <section class="card" aria-labelledby="what-if-title">
      <div class="card-head">
        <h2 id="what-if-title">Another cache size</h2>
        <span class="aside">projected, not measured</span>
      </div>
      {share && measured
        ? <Projection share={share} measured={measured} header={picture.header} dark={dark} sequence={picture.sequence} />
        : <p class="empty">After {ENOUGH_TOKENS} tokens there is something to project from.</p>}
    </section>
  );
}
