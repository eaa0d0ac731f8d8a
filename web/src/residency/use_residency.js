// The stream, its history, and the moment that is shown: the live one, or one in the past.
import { useCallback, useEffect, useMemo, useRef, useState } from 'preact/hooks';
import { streamResidency } from '../api.js';
import { applyFrame } from '../data/frame.js';
import { History } from '../data/history.js';
import { figures } from '../data/figures.js';

const WINDOW = 10;       // moments that current figures are taken over: 2 s
const STEPS_KEPT = 96;
const RETRY_MS = 2000;
const SERIES_LIMIT = 20_000;

export const SERIES = ['time', 'tokensPerSecond', 'hitRate', 'stallMsPerToken'];

// One point of the timeline a moment; kept apart from the frames, which may be forgotten earlier.
class Series {
  constructor() {
    this.start = 0;  // the moment of the first point
    for (const name of SERIES) this[name] = [];
  }
  push(before, after) {
    const now = figures(before, after);
    this.time.push(after.uptime_us / 1e6);
    this.tokensPerSecond.push(now.tokensPerSecond);
    this.hitRate.push(now.hitRate === null ? null : 100 * now.hitRate);
    this.stallMsPerToken.push(now.stallMsPerToken);
    if (this.time.length > SERIES_LIMIT) {
      for (const name of SERIES) this[name].shift();
      ++this.start;
    }
  }
}

// A full frame is of another process, unless only the connection was lost.
function startsAnew(live, frame) {
  if (frame[0] !== 1) return false;
  const next = applyFrame(null, frame);
  return next.numbers.uptime_us < live.numbers.uptime_us || next.states.length !== live.states.length;
}

export function useResidency(enabled) {
  const history = useMemo(() => new History(), []);
  const series = useRef(new Series());
  const recentSteps = useRef([]);
  const [, redraw] = useState(0);
  const [moment, setMoment] = useState(null);  // null: live
  const [problem, setProblem] = useState(null);

  const onFrame = useCallback((frame) => {
    let before = history.live ? { ...history.live.numbers } : null;
    if (before && startsAnew(history.live, frame)) {
      before = null;
      history.clear();
      series.current = new Series();
      recentSteps.current = [];
      setMoment(null);
    }
    history.push(frame);
    const { numbers, steps } = history.live;
    series.current.push(before ?? numbers, numbers);
    // A full frame has the last steps there were, those from before a lost connection too.
    recentSteps.current = [...(frame[0] === 1 ? [] : recentSteps.current), ...steps].slice(-STEPS_KEPT);
    redraw((n) => n + 1);
  }, [history]);

  useEffect(() => {
    if (!enabled) return undefined;
    const abort = new AbortController();
    let timer = 0;
    const connect = async () => {
      try {
        setProblem(null);
        await streamResidency(onFrame, abort.signal);
        setProblem('The stream has ended; connecting again.');
      } catch (error) {
        if (abort.signal.aborted) return;
        setProblem(error.message);
      }
      timer = setTimeout(connect, RETRY_MS);
    };
    connect();
    return () => {
      abort.abort();
      clearTimeout(timer);
    };
  }, [enabled, onFrame]);

  const last = history.length - 1;
  const shown = moment === null ? last : Math.max(history.first, Math.min(moment, last));
  const picture = last < 0 ? null : history.at(shown);
  // What the figures are taken against.
  const base = last < 0 ? null : history.countersBefore(shown, Math.min(WINDOW, shown - history.first));
  return {
    picture, base, problem, history, series: series.current, shown, isLive: moment === null, setMoment,
    steps: moment === null ? recentSteps.current : picture?.steps ?? [],
  };
}
