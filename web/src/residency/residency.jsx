// The residency view: key figures, the map, time, where a token's time goes, other cache sizes.
import { useRef } from 'preact/hooks';
import { figures } from '../data/figures.js';
import { formatBytes, formatNumber, formatPercent } from '../format.js';
import { ExpertMap } from './expert_map.jsx';
import { StepBars } from './step_bars.jsx';
import { Timeline } from './timeline.jsx';
import { WhatIf } from './what_if.jsx';

function KeyFigure({ name, value, unit, detail }) {
  return (
    <div class="figure">
      <dt>{name}</dt>
      <dd><b>{value}</b> <small>{unit}</small>{detail && <span>{detail}</span>}</dd>
    </div>
  );
}

// Of the last two seconds in which something was generated; what they showed stays until there is more.
function KeyFigures({ picture, base, isLive }) {
  const latest = useRef(null);
  const zero = Object.fromEntries(Object.keys(picture.numbers).map((name) => [name, 0]));
  const now = figures(base.numbers, picture.numbers);
  if (now.tokens > 0 || !latest.current || !isLive) {
    latest.current = now.tokens > 0 ? now : figures(zero, picture.numbers);
  }
  const shown = latest.current;
  const { resident, slot_count: slots, resident_set_bytes: rss, queue_length: queue } = picture.numbers;
  const [perToken, perTokenUnit] = formatBytes(shown.bytesPerToken);
  const [read, readUnit] = formatBytes(shown.readBytesPerSecond);
  const [memory, memoryUnit] = formatBytes(rss);
  const busy = isLive && now.tokens > 0;
  return (
    <dl class={`figures ${busy ? 'busy' : ''}`}>
      <KeyFigure name="decode" value={formatNumber(shown.tokensPerSecond)} unit="tok/s" detail={queue > 0 ? `${queue} waiting` : ''} />
      <KeyFigure name="hit rate" value={formatPercent(shown.hitRate)} unit="%" />
      <KeyFigure name="read" value={perToken} unit={perTokenUnit && `${perTokenUnit}/tok`} />
      <KeyFigure name="stall" value={formatNumber(shown.stallMsPerToken)} unit="ms/tok" />
      <KeyFigure name="drive" value={read} unit={readUnit && `${readUnit}/s`} />
      <KeyFigure name="in memory" value={resident} unit={`of ${picture.states.length}`} detail={`${slots} slots`} />
      <KeyFigure name="process" value={memory} unit={memoryUnit} />
    </dl>
  );
}

export function Residency({ residency, dark }) {
  const { picture, base, problem, isLive, steps } = residency;
  if (!picture) {
    return <p class="empty" role="status">{problem ?? 'Waiting for the first picture…'}</p>;
  }
  if (picture.states.length === 0) return <p class="empty">This model has no routed experts.</p>;
  return (
    <>
      {problem && <p class="banner" role="status">{problem}</p>}
      <KeyFigures picture={picture} base={base} isLive={isLive} />
      <ExpertMap picture={picture} base={base} isLive={isLive} dark={dark} />
      <Timeline residency={residency} dark={dark} />
      <div class="pair">
        <StepBars steps={steps} dark={dark} />
        <WhatIf picture={picture} dark={dark} />
      </div>
    </>
  );
}
