// The page in headless Chromium against the real server: what people do with it, that it makes no request
// to anybody else, writes nothing to the console, and passes axe. With SCREENSHOTS=directory it also takes the
// pictures of docs/web.md.
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { chromium } from 'playwright-core';
import { API_KEY, startServer } from './page_server.mjs';

const axePath = createRequire(import.meta.url).resolve('axe-core/axe.min.js');
const FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync'];

let server, context, page, profile;
const complaints = [];  // of the console, of failed requests, of requests to others

async function axe() {
  // Through the debugger: the page's CSP lets no other script in.
  await page.evaluate(await import('node:fs').then(({ readFileSync }) => readFileSync(axePath, 'utf8')));
  const { violations } = await page.evaluate(() => window.axe.run(document));
  return violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html).join(' | ')}`);
}

const mapPixels = () => page.locator('.map-box canvas').evaluate((canvas) => canvas.toDataURL());
// Until a key figure is a number: the frame that has it comes up to 200 ms after what it measures.
const measured = (name) => page.locator('.figure', { hasText: name }).locator('b', { hasText: /^[0-9.]+$/ }).waitFor();
const message = (role) => page.locator(`.message.${role}`).last();

async function ask(text) {
  await page.getByLabel('Message', { exact: true }).fill(text);
  await page.keyboard.press('Enter');
}

async function picture(name) {
  if (process.env.SCREENSHOTS) await page.screenshot({ path: join(process.env.SCREENSHOTS, name) });
}

before(async () => {
  server = await startServer();
  profile = await mkdtemp(join(tmpdir(), 'moraine-page-'));
  context = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.CHROMIUM, headless: true, args: FLAGS,
    viewport: { width: 1440, height: 1000 }, colorScheme: 'light', deviceScaleFactor: 1,
  });
  page = context.pages()[0];
  page.on('console', (entry) => {
    // The browser's own note that a request was refused, which the key form is about.
    const isRefusal = entry.location().url.startsWith(server.url) && entry.text().includes('401');
    if (['error', 'warning'].includes(entry.type()) && !isRefusal) complaints.push(`console: ${entry.text()}`);
  });
  page.on('pageerror', (error) => complaints.push(`error: ${error.message}`));
  page.on('request', (request) => {
    if (!request.url().startsWith(`${server.url}/`)) complaints.push(`request to ${request.url()}`);
  });
  page.setDefaultTimeout(20_000);
});

after(async () => {
  await context?.close();
  await server?.stop();
  if (profile) await rm(profile, { recursive: true, force: true });
});

describe('the page', () => {
  test('asks for the key, says that one is wrong, and goes on with the right one', async () => {
    await page.goto(server.url);
    await page.getByLabel('API key').fill('wrong');
    await page.getByRole('button', { name: 'Go on' }).click();
    await page.getByText('the API key is wrong').waitFor();
    await page.getByLabel('API key').fill(API_KEY);
    await page.getByRole('button', { name: 'Go on' }).click();
    await page.getByRole('heading', { name: 'Experts' }).waitFor();
    assert.match(await page.locator('.legend').first().innerText(), /in memory\s+\d+/);
  });

  test('streams an answer, and the map shows what it does', async () => {
    const before = await mapPixels();
    await ask('What is the capital of France?');
    await page.getByRole('button', { name: 'Again' }).waitFor();
    assert.match(await message('answer').innerText(), /Paris/);
    const footer = await message('answer').locator('footer').innerText();
    assert.match(footer, /\d+ tokens.*tok\/s/);
    // A bar for every step, though these took a few milliseconds each and the last of them ended the request. The
    // first token comes with the prompt.
    const tokens = Number.parseInt(footer.match(/(\d+) tokens/)[1], 10);
    await page.locator('.card', { hasText: 'Time of a token' }).getByText(`mean of the last ${tokens - 1}`, { exact: true }).waitFor();
    await page.waitForFunction((old) => document.querySelector('.map-box canvas').toDataURL() !== old, before);
    await measured('decode');
    await measured('hit rate');
  });

  test('stops an answer, and the map moves while it comes', async () => {
    // The small model's answers end at once: this one may not.
    await page.route('**/v1/chat/completions', (route) => route.continue({
      postData: JSON.stringify({ ...route.request().postDataJSON(), ignore_eos: true }) }));
    await ask('Tell me a story.');
    await message('answer').locator('.markdown').waitFor();
    const frames = new Set();
    while (frames.size < 4) {
      frames.add(await mapPixels());
      assert.equal(await page.getByRole('button', { name: 'Stop' }).count(), 1, 'ended by itself');
    }
    await page.getByRole('button', { name: 'Stop' }).click();
    await message('answer').locator('footer', { hasText: 'stopped' }).waitFor();
    assert.match(await page.locator('.card', { hasText: 'Time of a token' }).innerText(), /mean of the last \d+/);
    assert.ok((await message('answer').locator('.markdown').innerText()).length > 0);
    await page.unroute('**/v1/chat/completions');
  });

  test('the engine is free again at once, and settings are sent', async () => {
    await page.getByText('Settings').click();
    await page.getByLabel('Most tokens').fill('2');
    const sent = page.waitForRequest('**/v1/chat/completions');
    await ask('Tell me a story.');
    assert.equal((await sent).postDataJSON().max_tokens, 2);
    await message('answer').locator('footer', { hasText: 'cut off at the most tokens' }).waitFor();
    await page.getByLabel('Most tokens').fill('');
    await page.getByText('Settings').click();
  });

  test('what the model writes is text', async () => {
    await page.evaluate(() => { window.pwned = false; });
    const evil = '<img src=x onerror="window.pwned=true"> **bold** [x](javascript:window.pwned=true)';
    await ask(evil);
    await page.getByRole('button', { name: 'Again' }).waitFor();
    assert.equal(await message('user').innerText(), evil);
    assert.equal(await page.evaluate(() => window.pwned || document.querySelectorAll('.log img').length > 0), false);
  });

  test('the map can be read with the keyboard, sorted, and seen as a table', async () => {
    const canvas = page.locator('.map-box canvas');
    await canvas.focus();
    for (const key of ['ArrowRight', 'ArrowRight', 'ArrowDown']) await page.keyboard.press(key);
    assert.match(await page.locator('.readout').innerText(), /^Layer 1, expert 1 · .* · heat [0-9.]+ %/);
    const byNumber = await mapPixels();
    await page.getByRole('button', { name: 'by heat' }).click();
    await page.waitForFunction((old) => document.querySelector('.map-box canvas').toDataURL() !== old, byNumber);
    await page.getByText('Layers as a table').click();
    assert.equal(await page.locator('.layer-table tbody tr').count(), 8);
    await page.getByText('Layers as a table').click();
    await page.getByRole('button', { name: 'by number' }).click();
  });

  test('time goes back and comes again', async () => {
    const slider = page.getByLabel('Moment that is shown');
    const live = await mapPixels();
    await slider.focus();
    await page.keyboard.press('Home');
    assert.match(await page.locator('.card output').innerText(), / ago$/);
    await page.waitForFunction((old) => document.querySelector('.map-box canvas').toDataURL() !== old, live);
    await page.getByRole('button', { name: 'Back to live' }).click();
    await page.getByRole('button', { name: 'Live', exact: true }).waitFor();
    assert.equal(await page.locator('.card output').count(), 0);
  });

  test('another cache size is projected', async () => {
    const slider = page.getByLabel('Cache size, in experts');
    const hit = () => page.locator('.projection dd').nth(1).innerText();
    await slider.focus();
    await page.keyboard.press('End');
    assert.match(await hit(), /^100/);
    await page.keyboard.press('Home');
    const [least] = (await hit()).split(' ');
    assert.ok(Number.parseFloat(least) < 100);
    await page.getByRole('button', { name: 'Back to the present size' }).click();
  });

  for (const scheme of ['light', 'dark']) {
    test(`is accessible and drawn: ${scheme}`, async () => {
      await page.getByLabel('Colours').selectOption(scheme);
      if (process.env.SCREENSHOTS) {
        await page.getByRole('button', { name: 'New' }).click();
        await ask('What is the capital of France?');
        await page.getByRole('button', { name: 'Again' }).waitFor();
        await ask('Tell me a story.');
        await page.waitForTimeout(1500);
        await picture(`web-${scheme}.png`);
        await page.getByRole('button', { name: 'Again' }).or(page.getByRole('button', { name: 'Stop' })).click();
      }
      assert.deepEqual(await axe(), []);
    });
  }

  test('is usable on a narrow screen', async () => {
    await page.setViewportSize({ width: 420, height: 900 });
    assert.equal(await page.getByRole('heading', { name: 'Experts' }).isVisible(), false);
    await page.getByRole('button', { name: 'Residency' }).click();
    assert.equal(await page.getByRole('heading', { name: 'Experts' }).isVisible(), true);
    const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    assert.ok(overflow <= 0, `${overflow} px too wide`);
    assert.deepEqual(await axe(), []);
  });

  test('said nothing to the console and asked nobody else', () => {
    assert.deepEqual(complaints, []);
  });
});
