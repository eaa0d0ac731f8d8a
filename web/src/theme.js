// Light, dark, or as the system has it. The colours are in style.css; what is drawn on a canvas reads
// them from there.
import { useEffect, useState } from 'preact/hooks';

const STORED = 'moraine.theme';
const systemIsDark = matchMedia('(prefers-color-scheme: dark)');

export function useTheme() {
  const [choice, setChoice] = useState(localStorage.getItem(STORED) ?? 'auto');
  const [system, setSystem] = useState(systemIsDark.matches);
  useEffect(() => {
    const listen = () => setSystem(systemIsDark.matches);
    systemIsDark.addEventListener('change', listen);
    return () => systemIsDark.removeEventListener('change', listen);
  }, []);
  const dark = choice === 'dark' || (choice === 'auto' && system);
  document.documentElement.dataset.theme = dark ? 'dark' : 'light';
  const choose = (next) => {
    localStorage.setItem(STORED, next);
    setChoice(next);
  };
  return { choice, choose, dark };
}

// The value of a custom property, such as '--ink'.
export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
