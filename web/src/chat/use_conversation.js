// The conversation and the one answer that may be under way.
import { useCallback, useRef, useState } from 'preact/hooks';
import { streamChat } from '../api.js';
import { requestBody } from './settings.js';

// An answer: { role, content, reasoning, state, progress, usage, seconds, error }; state is 'waiting' until
// the first piece, then 'streaming', then 'done', 'stopped', 'length' or 'failed'.
const newAnswer = () => ({
  id: crypto.randomUUID?.() ?? String(Math.random()), role: 'assistant', content: '', reasoning: '', state: 'waiting',
  progress: null, usage: null, seconds: 0, firstSeconds: null, error: null,
});

export function useConversation(model, settings) {
  const [messages, setMessages] = useState([]);
  const running = useRef(null);

  const run = useCallback(async (history) => {
    const answer = newAnswer();
    const abort = new AbortController();
    running.current = abort;
    const began = performance.now();
    let scheduled = 0;
    // Text can arrive faster than it can be laid out: at most once a frame.
    const show = () => {
      scheduled = 0;
      if (running.current === abort) setMessages([...history, { ...answer }]);
    };
    const showSoon = () => { scheduled ||= requestAnimationFrame(show); };
    show();
    try {
      for await (const piece of streamChat(requestBody(model, history, settings), abort.signal)) {
        answer.content += piece.content;
        answer.reasoning += piece.reasoning;
        if (piece.progress) answer.progress = piece.progress;
        if (piece.usage) answer.usage = piece.usage;
        if (answer.state === 'waiting' && (piece.content || piece.reasoning)) {
          answer.state = 'streaming';
          answer.firstSeconds = (performance.now() - began) / 1e3;
        }
        if (piece.finishReason) answer.state = piece.finishReason === 'length' ? 'length' : 'done';
        showSoon();
      }
      if (answer.state === 'waiting' || answer.state === 'streaming') answer.state = 'done';
    } catch (error) {
      answer.state = abort.signal.aborted ? 'stopped' : 'failed';
      if (!abort.signal.aborted) answer.error = error.message;
    }
    cancelAnimationFrame(scheduled);
    answer.seconds = (performance.now() - began) / 1e3;
    show();
    if (running.current === abort) running.current = null;
  }, [model, settings]);

  const send = (text) => run([...messages, { id: String(messages.length), role: 'user', content: text }]);
  const again = () => run(messages.slice(0, messages.findLastIndex((message) => message.role === 'user') + 1));
  const stop = () => running.current?.abort();
  const clear = () => {
    stop();
    running.current = null;  // what it still says goes nowhere
    setMessages([]);
  };
  const busy = messages.length > 0 && ['waiting', 'streaming'].includes(messages.at(-1).state);
  return { messages, busy, send, again, stop, clear };
}
