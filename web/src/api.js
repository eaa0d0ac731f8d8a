// The server, as the page sees it: same origin, nothing else (the CSP says so, too).
import { FrameSplitter } from './data/frame.js';

const KEY = 'moraine.api-key';

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export const apiKey = {
  get: () => sessionStorage.getItem(KEY) ?? '',  // gone with the tab
  set: (key) => (key ? sessionStorage.setItem(KEY, key) : sessionStorage.removeItem(KEY)),
};

async function request(path, options = {}) {
  const headers = { ...options.headers };
  if (apiKey.get()) headers.authorization = `Bearer ${apiKey.get()}`;
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  const body = await response.text();
  let message = `${response.status} ${response.statusText}`;
  try {
    message = JSON.parse(body).error.message;
  } catch { /* not the server's own error: the status has to do */ }
  throw new ApiError(message, response.status);
}

export async function fetchModel() {
  const response = await request('/v1/models');
  return (await response.json()).data[0];
}

// The `data:` lines of an event stream, parsed, until [DONE].
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split('\n');
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith('data:')) continue;  // comments keep the connection alive
      const data = line.slice(5).trim();
      if (data === '[DONE]') return;
      yield JSON.parse(data);
    }
  }
}

// Yields { content, reasoning, progress, finishReason, usage } as far as each chunk has them.
export async function* streamChat(body, signal) {
  const response = await request('/v1/chat/completions', {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  for await (const chunk of events(response)) {
    if (chunk.error) throw new ApiError(chunk.error.message, 200);
    const choice = chunk.choices?.[0];
    yield {
      content: choice?.delta?.content ?? '',
      reasoning: choice?.delta?.reasoning_content ?? '',
      finishReason: choice?.finish_reason ?? null,
      usage: chunk.usage ?? null,
      progress: chunk.prompt_progress ?? null,
    };
  }
}

// Calls onFrame with every frame until the stream ends; rejects when it breaks.
export async function streamResidency(onFrame, signal) {
  const response = await request('/residency/stream', { signal });
  const reader = response.body.getReader();
  const splitter = new FrameSplitter();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    for (const frame of splitter.push(value)) onFrame(frame);
  }
}
