// Figures as people read them. null is n/a: not measured, or nothing to measure.
export const NOT_MEASURED = 'n/a';

export function formatNumber(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return NOT_MEASURED;
  const magnitude = Math.abs(value);
  if (magnitude === 0) return '0';
  const whole = Math.floor(Math.log10(magnitude)) + 1;
  return value.toFixed(Math.max(0, Math.min(6, digits - whole)));
}

export const formatPercent = (share) =>
  share === null || share === undefined ? NOT_MEASURED
    : share > 0.9995 ? '100' : (100 * share).toFixed(1);

const SIZES = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
export function formatBytes(bytes) {
  if (bytes === null || bytes === undefined) return [NOT_MEASURED, ''];
  let i = 0;
  for (; bytes >= 1000 && i + 1 < SIZES.length; ++i) bytes /= 1024;
  return [formatNumber(bytes), SIZES[i]];
}

export function formatDuration(seconds) {
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const whole = Math.round(seconds);
  return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, '0')} s`;
}
