// What happened when, and the slider that shows the map of any moment of it.
import { formatDuration, formatNumber, formatPercent } from '../format.js';
import { colour } from '../theme.js';
import { axisStyle, Chart } from './chart.jsx';

const SHOWN = 1500;  // moments: 5 minutes

// As a clock of the engine's: hours only when there are some.
function clock(seconds) {
  const whole = Math.round(seconds), parts = [Math.floor(whole / 60) % 60, whole % 60];
  if (whole >= 3600) parts.unshift(Math.floor(whole / 3600));
  return parts.map((part, i) => (i === 0 ? part : String(part).padStart(2, '0'))).join(':');
}

// The x axis counts moments, as the slider below it does: time in which nothing happens takes no room.
function chartOptions(series) {
  const line = (name, scale, paint, dash) => ({ label: name, scale, stroke: paint, width: 1.5, dash, points: { show: false }, spanGaps: false });
  return {
    scales: { x: { time: false }, hit: { range: [0, 100] }, speed: { range: (_, __, most) => [0, Math.max(1, (most ?? 1) * 1.1)] } },
    axes: [
      { ...axisStyle(), size: 24, incrs: [1, 5, 10, 25, 50, 100, 250], space: 70,
        values: (_, moments) => moments.map((moment) => (series.time[moment - series.start] !== undefined ? clock(series.time[moment - series.start]) : '')) },
      { ...axisStyle(), scale: 'speed', size: 44 },
      { ...axisStyle(), scale: 'hit', side: 1, size: 44, grid: { show: false }, values: (_, values) => values.map((value) => `${value} %`) },
    ],
    series: [{}, line('tokens/s', 'speed', colour('--series-speed')), line('hit rate', 'hit', colour('--series-hit'), [5, 3])],
    cursor: { y: false, drag: { x: false, y: false }, points: { show: false } },
  };
}

export function Timeline({ residency, dark }) {
  const { series, history, shown, isLive, setMoment } = residency;
  const last = history.length - 1;
  const from = Math.max(history.first, last - SHOWN + 1);
  const cut = (name) => series[name].slice(from - series.start);
  const times = cut('time');
  const data = [times.map((_, i) => from + i), cut('tokensPerSecond'), cut('hitRate')];
  const at = Math.max(0, shown - from);
  const ago = times.at(-1) - times[at];
  const when = isLive ? 'live' : `${formatDuration(ago)} ago`;
  const speed = formatNumber(data[1][at]), hit = formatPercent(data[2][at] === null ? null : data[2][at] / 100);
  return (
    <section class="card" aria-labelledby="time-title">
      <div class="card-head">
        <h2 id="time-title">Time</h2>
        <ul class="legend">
          <li><span class="line line-speed" aria-hidden="true" /> tokens/s</li>
          <li><span class="line line-hit" aria-hidden="true" /> hit rate</li>
        </ul>
        {!isLive && <output>{when}</output>}
        <button type="button" class="live" aria-pressed={isLive} onClick={() => setMoment(isLive ? shown : null)}>
          {isLive ? 'Live' : 'Back to live'}
        </button>
      </div>
      <Chart label={`Tokens per second and hit rate over the last ${formatDuration(times.at(-1) - times[0])}`}
        height={120} options={() => chartOptions(series)} data={data} dark={dark} cursorAt={isLive ? null : at} version={last} />
      <div class="scrubber under-chart">
        <input type="range" min={from} max={last} step="1" value={shown} aria-label="Moment that is shown"
          aria-valuetext={`${when}: ${speed} tokens per second, hit rate ${hit} %`}
          onInput={(event) => {
            const moment = Number(event.currentTarget.value);
            setMoment(moment >= last ? null : moment);
          }} />
      </div>
    </section>
  );
}
