// What another cache size would give: a projection, not a measurement.
//
// Heat is how often each expert is taken. If every token drew its experts independently by heat, and the
// cache held the hottest N, the hit rate would be the share of the heat that those N have. Real tokens
// resemble the ones before them, and a policy is not an oracle, so the measured hit rate at the present
// size differs; that difference, in log odds, is carried over to the other sizes. docs/web.md compares
// projections with runs.

const EPSILON = 1e-4;
const logit = (p) => {
  const clamped = Math.min(1 - EPSILON, Math.max(EPSILON, p));
  return Math.log(clamped / (1 - clamped));
};
const logistic = (x) => 1 / (1 + Math.exp(-x));

// Heat bytes are the root of heat, 255 for 1 (residency_frame.h).
export const heatOfByte = (byte) => (byte / 255) ** 2;

// share[n]: of all heat, that of the n hottest experts; n = 0 .. experts.
export function heatShares(heats) {
  const sorted = Float64Array.from(heats, heatOfByte).sort().reverse();
  const share = new Float64Array(sorted.length + 1);
  for (let i = 0; i < sorted.length; ++i) share[i + 1] = share[i] + sorted[i];
  const total = share[sorted.length];
  if (total > 0) for (let i = 1; i < share.length; ++i) share[i] /= total;
  return total > 0 ? share : null;
}

// `measured`: { slots, hitRate }. Everything in memory is a hit rate of 1, whatever the odds say.
export function projectHitRate(share, slots, measured) {
  const experts = share.length - 1;
  if (slots >= experts) return 1;
  const at = (n) => share[Math.max(0, Math.min(experts, Math.round(n)))];
  if (measured.slots >= experts) return at(slots);  // measured where every size would give 1
  return logistic(logit(at(slots)) + logit(measured.hitRate) - logit(at(measured.slots)));
}

// Milliseconds a token. Stall grows with misses; all else stays. Where nothing is missed now there is no
// stall to scale: then every missing byte is taken to cost what the drive has needed for one (`serial`,
// a lower bound of the speed), and null if no read was ever measured.
export function projectTokenMs(hitRate, measured) {
  const { tokenMs, stallMs, lookupsPerToken, recordBytes, bytesPerMs } = measured;
  const missesNow = lookupsPerToken * (1 - measured.hitRate);
  const misses = lookupsPerToken * (1 - hitRate);
  if (misses === 0) return { tokenMs: tokenMs - stallMs, serial: false };
  if (missesNow > 0.01 * lookupsPerToken && stallMs > 0) {
    return { tokenMs: tokenMs - stallMs + stallMs * misses / missesNow, serial: false };
  }
  if (!bytesPerMs) return null;
  return { tokenMs: tokenMs - stallMs + misses * recordBytes / bytesPerMs, serial: true };
}
