import assert from 'node:assert/strict';
import { test } from 'node:test';
import { COMPONENTS, figures, layerFigures } from '../src/data/figures.js';
import { heatShares, projectHitRate, projectTokenMs } from '../src/data/projection.js';
import { formatBytes, formatNumber, formatPercent } from '../src/format.js';
import { cellAt, heatOrder, layoutMap, moveCursor } from '../src/residency/map_layout.js';
import { requestBody } from '../src/chat/settings.js';

const near = (found, expected, tolerance = 1e-9) =>
  assert.ok(Math.abs(found - expected) <= tolerance, `${found} is not ${expected}`);

test('figures are differences, and null where nothing happened', () => {
  const names = ['uptime_us', 'decode_tokens', 'decode_us', 'decode_hits', 'decode_misses', 'decode_bytes', 'prefill_hits',
    'prefill_misses', 'prefill_tokens', 'prefill_us', 'stall_us', 'bytes_read', 'read_busy_us', 'evictions', 'prefetch_used', 'prefetch_wasted'];
  const zero = Object.fromEntries(names.map((name) => [name, 0]));
  const idle = figures(zero, { ...zero, uptime_us: 1e6 });
  assert.equal(idle.tokensPerSecond, null);
  assert.equal(idle.hitRate, null);
  const busy = figures({ ...zero, decode_tokens: 10 }, { ...zero, decode_tokens: 14, decode_us: 2e6, decode_hits: 6, decode_misses: 2,
    prefill_misses: 2, decode_bytes: 800, stall_us: 4000, bytes_read: 1e6, read_busy_us: 5e5 });
  assert.equal(busy.tokensPerSecond, 2);
  assert.equal(busy.hitRate, 0.6);
  assert.equal(busy.decodeHitRate, 0.75);
  assert.equal(busy.bytesPerToken, 200);
  assert.equal(busy.stallMsPerToken, 1);
  assert.equal(busy.readBytesPerSecond, 2e6);
  assert.equal(COMPONENTS.length, 6);
});

test('layers: stall is of a token, prompt tokens too', () => {
  const at = (tokens, layer) => ({ numbers: { decode_tokens: tokens, prefill_tokens: 5 }, layers: [layer] });
  const [figure] = layerFigures(at(0, { resident: 1, hits: 0, misses: 0, stall_us: 0 }),
                                at(4, { resident: 2, hits: 3, misses: 1, stall_us: 8000 }));
  assert.deepEqual(figure, { resident: 2, lookups: 4, stallMs: 2, hitRate: 0.75 });
});

test('a projection passes through what was measured and ends at everything', () => {
  const heats = Uint8Array.from({ length: 100 }, (_, i) => 255 - 2 * i);
  const share = heatShares(heats);
  const measured = { slots: 30, hitRate: 0.8 };
  near(share[100], 1, 1e-12);
  near(projectHitRate(share, 30, measured), 0.8);
  assert.equal(projectHitRate(share, 100, measured), 1);
  for (let slots = 1; slots < 100; ++slots) {
    assert.ok(projectHitRate(share, slots, measured) >= projectHitRate(share, slots - 1, measured));
  }
  near(projectHitRate(share, 40, { slots: 100, hitRate: 1 }), share[40]);
  assert.equal(heatShares(new Uint8Array(4)), null);
});

test('projected time: stall goes with misses, the rest stays', () => {
  const measured = { slots: 30, hitRate: 0.8, tokenMs: 100, stallMs: 40, lookupsPerToken: 50, recordBytes: 1000, bytesPerMs: 500 };
  near(projectTokenMs(0.8, measured).tokenMs, 100);
  near(projectTokenMs(0.9, measured).tokenMs, 80);
  near(projectTokenMs(1, measured).tokenMs, 60);
  const full = { ...measured, hitRate: 1, stallMs: 0 };
  assert.deepEqual(projectTokenMs(0.9, full), { tokenMs: 100 + 50 * (1 - 0.9) * 1000 / 500, serial: true });
  assert.equal(projectTokenMs(0.9, { ...full, bytesPerMs: null }), null);
});

test('figures as text', () => {
  assert.deepEqual([0, 0.01234, 1.2345, 12.345, 123.45, 12345, null, NaN].map((value) => formatNumber(value)),
                   ['0', '0.0123', '1.23', '12.3', '123', '12345', 'n/a', 'n/a']);
  assert.deepEqual([0, 0.9996, 1, 0.5, null].map(formatPercent), ['0.0', '100', '100', '50.0', 'n/a']);
  assert.deepEqual(formatBytes(1536), ['1.50', 'KiB']);
  assert.deepEqual(formatBytes(1000 * 1024), ['0.977', 'MiB']);
});

test('the map: cells, order and keys', () => {
  const layout = layoutMap(700, [{ layer: 0, experts: 32 }, { layer: 3, experts: 8 }]);
  const at = (row, column) => cellAt(layout, layout.left + (column + 0.5) * layout.cellWidth, layout.top + (row + 0.5) * layout.rowHeight);
  assert.deepEqual(at(1, 7), { row: 1, column: 7 });
  assert.equal(at(1, 8), null);
  assert.equal(at(2, 0), null);
  assert.equal(cellAt(layout, 0, layout.top + 1), null);
  assert.ok(layout.hit.x + layout.hit.width <= layout.width);
  const heats = new Uint8Array(40);
  heats[5] = 9;
  heats[39] = 4;
  const order = heatOrder(layout, heats);
  assert.deepEqual([...order.slice(0, 4)], [5, 0, 1, 2]);
  assert.deepEqual([...order.slice(32, 35)], [39, 32, 33]);
  assert.deepEqual([...order].sort((a, b) => a - b), Array.from({ length: 40 }, (_, i) => i));
  assert.deepEqual(moveCursor(layout, null, 'ArrowDown'), { row: 0, column: 0 });
  assert.deepEqual(moveCursor(layout, { row: 0, column: 31 }, 'ArrowDown'), { row: 1, column: 7 });
  assert.deepEqual(moveCursor(layout, { row: 0, column: 5 }, 'End'), { row: 0, column: 31 });
  assert.equal(moveCursor(layout, { row: 0, column: 5 }, 'a'), null);
});

test('a request has what was set and nothing else', () => {
  const plain = { system: ' ', temperature: '', maxTokens: '', thinking: 'default' };
  const messages = [{ role: 'user', content: 'a' }, { role: 'assistant', content: '' }, { role: 'user', content: 'b' }];
  assert.deepEqual(requestBody('m', messages, plain), {
    model: 'm', return_progress: true, messages: [{ role: 'user', content: 'a' }, { role: 'user', content: 'b' }] });
  const set = requestBody('m', messages, { system: 's', temperature: '0', maxTokens: '5', thinking: 'off' });
  assert.deepEqual(set.messages[0], { role: 'system', content: 's' });
  assert.equal(set.temperature, 0);
  assert.equal(set.max_tokens, 5);
  assert.deepEqual(set.chat_template_kwargs, { enable_thinking: false });
});
