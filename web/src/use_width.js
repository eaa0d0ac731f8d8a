import { useLayoutEffect, useRef, useState } from 'preact/hooks';

// A ref for an element, and its width in CSS pixels as it changes; 0 until it is laid out.
export function useWidth() {
  const ref = useRef(null);
  const [width, setWidth] = useState(0);
  useLayoutEffect(() => {
    const observer = new ResizeObserver(([entry]) => setWidth(Math.floor(entry.contentRect.width)));
    observer.observe(ref.current);
    return () => observer.disconnect();
  }, []);
  return [ref, width];
}
