// Where each step's time went: a stacked bar a step, decode steps and prompt chunks as they came, and the
// mean of a token as figures.
import { useEffect, useRef } from 'preact/hooks';
import { COMPONENTS } from '../data/figures.js';
import { formatNumber, formatPercent } from '../format.js';
import { colour } from '../theme.js';
import { useWidth } from '../use_width.js';

const HEIGHT = 120;
const BARS = 96;
const PARTS = COMPONENTS.map(({ key }) => ({ key, paint: `--part-${key.replace('_us', '')}` }));

const wall = (step) => COMPONENTS.reduce((sum, { key }) => sum + step[key], 0);

function paint(canvas, steps, width) {
  const scale = devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(HEIGHT * scale);
  const context = canvas.getContext('2d');
  context.setTransform(scale, 0, 0, scale, 0, 0);
  const times = steps.map((step) => wall(step) / Math.max(1, step.tokens));
  const most = Math.max(...times, 1);
  const bar = (width - 44) / BARS;
  const top = 8, floor = HEIGHT - 4;
  context.font = '10.5px Inter, system-ui, sans-serif';
  context.fillStyle = colour('--muted');
  context.textAlign = 'right';
  context.fillText(`${formatNumber(most / 1e3, 2)} ms`, width, top + 4);
  context.fillText('0', width, floor);
  context.fillStyle = colour('--line');
  context.fillRect(0, top - 1, width - 44, 1);
  context.fillRect(0, floor, width - 44, 1);
  steps.slice(-BARS).forEach((step, i) => {
    let y = floor;
    for (const { key, paint: name } of PARTS) {
      const height = step[key] / Math.max(1, step.tokens) / most * (floor - top);
      if (height < 0.2) continue;
      context.fillStyle = colour(name);
      context.fillRect(i * bar, y - height, bar - 0.8, Math.max(height - 0.5, 0.3));
      y -= height;
    }
    if (!step.decode) {  // a chunk of a prompt: a foot below it
      context.fillStyle = colour('--ink');
      context.fillRect(i * bar, floor + 1, bar - 0.8, 2);
    }
  });
}

export function StepBars({ steps, dark }) {
  const [box, width] = useWidth();
  const canvas = useRef(null);
  useEffect(() => {
    if (width > 0) paint(canvas.current, steps, width);
  }, [steps, width, dark]);
  const decode = steps.filter((step) => step.decode);
  const tokens = decode.reduce((sum, step) => sum + step.tokens, 0);
  const total = decode.reduce((sum, step) => sum + wall(step), 0);
  return (
    <section class="card" aria-labelledby="steps-title">
      <div class="card-head">
        <h2 id="steps-title">Time of a token</h2>
        <span class="aside">{tokens ? `mean of the last ${tokens}` : 'no token yet'}</span>
      </div>
      <div ref={box}>
        <canvas ref={canvas} class="bars" role="img" aria-label="Stacked bars: time of each step by component; the table has the means" />
      </div>
      <table class="parts">
        <thead><tr><th scope="col">Component</th><th scope="col">ms/token</th><th scope="col">%</th></tr></thead>
        <tbody>
          {COMPONENTS.map(({ key, name, what }) => {
            const sum = decode.reduce((value, step) => value + step[key], 0);
            return (
              <tr key={key} title={what}>
                <th scope="row"><i class={`part part-${key.replace('_us', '')}`} aria-hidden="true" />{name}</th>
                <td>{tokens ? formatNumber(sum / 1e3 / tokens) : 'n/a'}</td>
                <td>{total ? formatPercent(sum / total) : 'n/a'}</td>
              </tr>
            );
          })}
        </tbody>
      </table>
    </section>
  );
}
