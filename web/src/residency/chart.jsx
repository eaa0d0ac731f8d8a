// uPlot as a component: made anew when its options change, given data otherwise.
import { useEffect, useRef } from 'preact/hooks';
import uPlot from 'uplot';
import { colour } from '../theme.js';
import { useWidth } from '../use_width.js';

export const axisStyle = () => ({
  stroke: colour('--muted'), font: '10.5px Inter, system-ui, sans-serif',
  grid: { stroke: colour('--line'), width: 1 }, ticks: { show: false },
});

// `options`: a function, called in an effect, because colours change with `dark`. `cursorAt`: an index of the
// data that the vertical line stands at; null: none.
export function Chart({ label, height, options, data, dark, cursorAt = null, version }) {
  const [box, width] = useWidth();
  const plot = useRef(null);
  useEffect(() => {
    if (width === 0) return undefined;
    const common = { width, height, legend: { show: false }, padding: [6, 4, 0, 0] };
    plot.current = new uPlot({ ...common, ...options() }, data, box.current);
    return () => plot.current.destroy();
  }, [width, height, dark]);
  useEffect(() => {
    if (!plot.current || width === 0) return;
    plot.current.setData(data);
    const left = cursorAt === null ? -10 : plot.current.valToPos(data[0][cursorAt], 'x');
    plot.current.setCursor({ left, top: cursorAt === null ? -10 : 0 });
  }, [version, cursorAt, width, dark]);
  return <div class="chart" role="img" aria-label={label}><div ref={box} /></div>;
}
