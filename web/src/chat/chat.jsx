// The chat: messages, the composer, settings.
import { useEffect, useLayoutEffect, useRef, useState } from 'preact/hooks';
import { formatNumber } from '../format.js';
import { CopyButton } from './copy_button.jsx';
import { Markdown } from './markdown_view.jsx';
import { useSettings } from './settings.js';
import { useConversation } from './use_conversation.js';

function Settings({ settings, change }) {
  const field = (name) => ({
    value: settings[name],
    onInput: (event) => change({ [name]: event.currentTarget.value }),
  });
  return (
    <details class="settings">
      <summary>Settings</summary>
      <div class="fields">
        <label class="wide">System prompt <textarea rows="2" {...field('system')} /></label>
        <label>Temperature <input type="number" min="0" max="2" step="0.1" placeholder="model's" {...field('temperature')} /></label>
        <label>Most tokens <input type="number" min="1" step="1" placeholder="no limit" {...field('maxTokens')} /></label>
        <label>Thinking
          <select {...field('thinking')}>
            <option value="default">as the model</option><option value="on">on</option><option value="off">off</option>
          </select>
        </label>
      </div>
    </details>
  );
}

function Thinking({ message }) {
  const thinks = message.state === 'streaming' && !message.content;
  return (
    <details class="thinking">
      <summary>{thinks ? 'Thinking…' : 'Thoughts'}</summary>
      <Markdown text={message.reasoning} />
    </details>
  );
}

const ENDINGS = { stopped: 'stopped', length: 'cut off at the most tokens', failed: 'failed' };

function Footer({ message, again, isLast, busy }) {
  const { usage, seconds, firstSeconds, state } = message;
  const parts = [];
  if (ENDINGS[state]) parts.push(ENDINGS[state]);
  if (usage) {
    parts.push(`${usage.completion_tokens} tokens`);
    const time = seconds - (firstSeconds ?? 0);
    if (usage.completion_tokens > 1 && time > 0) parts.push(`${formatNumber((usage.completion_tokens - 1) / time)} tok/s`);
    const cached = usage.prompt_tokens_details?.cached_tokens;
    parts.push(`prompt ${usage.prompt_tokens}${cached ? `, ${cached} cached` : ''}`);
  }
  if (firstSeconds !== null) parts.push(`first after ${formatNumber(firstSeconds, 2)} s`);
  return (
    <footer>
      <span>{parts.join(' · ')}</span>
      {!busy && message.content && <CopyButton text={message.content} />}
      {!busy && isLast && <button type="button" class="quiet" onClick={again}>Again</button>}
    </footer>
  );
}

function Waiting({ progress }) {
  if (!progress?.total) return <p class="waiting">Waiting…</p>;
  return (
    <p class="waiting">
      Reading the prompt: {progress.processed} of {progress.total} tokens
      <progress value={progress.processed} max={progress.total} aria-label="Prompt" />
    </p>
  );
}

function Message({ message, again, isLast, busy }) {
  if (message.role === 'user') {
    return <article class="message user" aria-label="You"><p>{message.content}</p></article>;
  }
  const running = isLast && busy;
  return (
    <article class={`message answer ${running ? 'running' : ''}`} aria-label="Model" aria-busy={running}>
      {message.reasoning && <Thinking message={message} />}
      {message.state === 'waiting' ? <Waiting progress={message.progress} /> : <Markdown text={message.content} />}
      {message.error && <p class="error" role="alert">{message.error}</p>}
      {!running && <Footer message={message} again={again} isLast={isLast} busy={busy} />}
    </article>
  );
}

function Composer({ conversation, ready }) {
  const [text, setText] = useState('');
  const area = useRef(null);
  const { busy, send, stop } = conversation;
  useLayoutEffect(() => {
    area.current.style.height = 'auto';
    area.current.style.height = `${Math.min(240, area.current.scrollHeight + 2)}px`;
  }, [text]);
  const submit = (event) => {
    event?.preventDefault();
    if (busy || !ready || !text.trim()) return;
    send(text.trim());
    setText('');
  };
  const onKeyDown = (event) => {
    if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) submit(event);
    if (event.key === 'Escape' && busy) stop();
  };
  return (
    <form class="composer" onSubmit={submit}>
      <textarea ref={area} rows="1" value={text} placeholder="Ask something" aria-label="Message"
        onInput={(event) => setText(event.currentTarget.value)} onKeyDown={onKeyDown} />
      {busy
        ? <button type="button" class="stop" onClick={stop}>Stop</button>
        : <button type="submit" class="primary" disabled={!ready || !text.trim()}>Send</button>}
    </form>
  );
}

export function Chat({ model }) {
  const [settings, change] = useSettings();
  const conversation = useConversation(model?.id, settings);
  const { messages, busy, again, clear } = conversation;
  const log = useRef(null);
  const follows = useRef(true);  // until the user scrolls up
  useEffect(() => {
    if (follows.current) log.current.scrollTop = log.current.scrollHeight;
  });
  const onScroll = () => {
    const { scrollTop, scrollHeight, clientHeight } = log.current;
    follows.current = scrollHeight - scrollTop - clientHeight < 40;
  };
  return (
    <section class="chat" aria-labelledby="chat-title">
      <div class="card-head">
        <h2 id="chat-title">Chat</h2>
        <button type="button" class="quiet" disabled={messages.length === 0} onClick={clear}>New</button>
      </div>
      <Settings settings={settings} change={change} />
      <div ref={log} class="log" role="log" aria-label="Conversation" tabindex="0" onScroll={onScroll}>
        {messages.length === 0 && <p class="empty">Nothing leaves this machine. While the model answers, the map shows which experts it asks and where they come from.</p>}
        {messages.map((message, i) => (
          <Message key={message.id} message={message} again={again} isLast={i === messages.length - 1} busy={busy} />
        ))}
      </div>
      <Composer conversation={conversation} ready={Boolean(model)} />
    </section>
  );
}
