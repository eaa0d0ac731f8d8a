// What the user has set, kept in the browser. Empty means: as the model's files or the server have it.
import { useState } from 'preact/hooks';

const STORED = 'moraine.settings';
const DEFAULTS = { system: '', temperature: '', maxTokens: '', thinking: 'default' };

function load() {
  try {
    return { ...DEFAULTS, ...JSON.parse(localStorage.getItem(STORED)) };
  } catch {
    return DEFAULTS;
  }
}

export function useSettings() {
  const [settings, setSettings] = useState(load);
  const change = (part) => {
    const next = { ...settings, ...part };
    localStorage.setItem(STORED, JSON.stringify(next));
    setSettings(next);
  };
  return [settings, change];
}

// The body of a request, without what streaming adds. Answers that broke off are sent as far as they got.
export function requestBody(model, messages, settings) {
  const body = { model, return_progress: true, messages: [] };
  if (settings.system.trim()) body.messages.push({ role: 'system', content: settings.system });
  for (const { role, content } of messages) {
    if (content) body.messages.push({ role, content });
  }
  if (settings.temperature !== '') body.temperature = Number(settings.temperature);
  if (settings.maxTokens !== '') body.max_tokens = Number(settings.maxTokens);
  if (settings.thinking !== 'default') {
    body.chat_template_kwargs = { enable_thinking: settings.thinking === 'on' };
  }
  return body;
}
