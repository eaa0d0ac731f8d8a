// The page: a header, the chat on the left, the residency view on the right. On narrow screens one of them
// at a time.
import { useCallback, useEffect, useState } from 'preact/hooks';
import { ApiError, apiKey, fetchModel } from './api.js';
import { Chat } from './chat/chat.jsx';
import { Residency } from './residency/residency.jsx';
import { useResidency } from './residency/use_residency.js';
import { useTheme } from './theme.js';

const RETRY_MS = 2000;

// The model, as soon as the server has loaded it: { model, needsKey, problem, retry }.
function useModel() {
  const [state, setState] = useState({ model: null, needsKey: false, problem: null });
  const [attempt, setAttempt] = useState(0);
  const retry = useCallback(() => setAttempt((n) => n + 1), []);
  useEffect(() => {
    let timer = 0, gone = false;
    fetchModel().then(
      (model) => { if (!gone) setState({ model, needsKey: false, problem: null }); },
      (error) => {
        if (gone) return;
        const needsKey = error instanceof ApiError && error.status === 401;
        setState({ model: null, needsKey, problem: error.message });
        if (!needsKey) timer = setTimeout(retry, RETRY_MS);
      });
    return () => {
      gone = true;
      clearTimeout(timer);
    };
  }, [attempt]);
  return { ...state, retry };
}

function KeyForm({ problem, retry }) {
  const submit = (event) => {
    event.preventDefault();
    apiKey.set(new FormData(event.currentTarget).get('key').trim());
    retry();
  };
  return (
    <form class="card key-form" onSubmit={submit}>
      <h2>This server asks for its API key</h2>
      <label>API key <input name="key" type="password" autocomplete="off" required /></label>
      <button type="submit" class="primary">Go on</button>
      <p class="aside">{apiKey.get() ? problem : 'It is kept until this tab is closed.'}</p>
    </form>
  );
}

function Chips({ header }) {
  if (!header) return null;
  return (
    <ul class="chips" aria-label="Engine">
      <li>{header.policy}</li><li>{header.isa}</li><li>{header.io}</li>
      {header.lossy
        ? <li class="warn" title="What is computed is changed by these modes">lossy: {header.lossy}</li>
        : <li title="No mode that changes what is computed is on">exact</li>}
    </ul>
  );
}

function Mark() {
  return (
    <svg class="mark-logo" viewBox="0 0 32 32" aria-hidden="true">
      <path class="ice" d="M3 23 L12 9 L17 16 L21 11 L29 23Z" />
      <path class="stones" d="M4 27h24" />
    </svg>
  );
}

export function App() {
  const theme = useTheme();
  const { model, needsKey, problem, retry } = useModel();
  const residency = useResidency(model !== null);
  const [view, setView] = useState('chat');
  const header = residency.picture?.header;
  return (
    <>
      <header class="top">
        <Mark />
        <h1>Moraine</h1>
        <span class="model">{model?.id ?? (problem && !needsKey ? problem : '')}</span>
        <Chips header={header} />
        <nav class="views" aria-label="Views">
          {[['chat', 'Chat'], ['residency', 'Residency']].map(([name, text]) => (
            <button key={name} type="button" aria-pressed={view === name} onClick={() => setView(name)}>{text}</button>
          ))}
        </nav>
        <label class="theme">
          <span class="hidden">Colours</span>
          <select value={theme.choice} onChange={(event) => theme.choose(event.currentTarget.value)}>
            <option value="auto">auto</option><option value="light">light</option><option value="dark">dark</option>
          </select>
        </label>
      </header>
      {needsKey
        ? <main class="key"><KeyForm problem={problem} retry={retry} /></main>
        : (
          <main data-view={view}>
            <Chat model={model} />
            <div class="residency"><Residency residency={residency} dark={theme.dark} /></div>
          </main>
        )}
    </>
  );
}
