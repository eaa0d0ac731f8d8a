import { useState } from 'preact/hooks';

// Nothing where browsers have no clipboard for the page: over plain HTTP from another machine.
export function CopyButton({ text }) {
  const [copied, setCopied] = useState(false);
  if (!navigator.clipboard) return null;
  const copy = async () => {
    await navigator.clipboard.writeText(text);
    setCopied(true);
    setTimeout(() => setCopied(false), 1500);
  };
  return <button type="button" class="quiet" onClick={copy}>{copied ? 'Copied' : 'Copy'}</button>;
}
