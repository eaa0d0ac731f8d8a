import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseInline, parseMarkdown } from '../src/chat/markdown.js';

const text = (value) => ({ type: 'text', text: value });
const paragraph = (...children) => ({ type: 'paragraph', children });

test('blocks', () => {
  assert.deepEqual(parseMarkdown('# Title #\n\nOne\ntwo\n\n---\n\n> quoted\n> more'), [
    { type: 'heading', level: 1, children: [text('Title')] },
    paragraph(text('One'), { type: 'break' }, text('two')),
    { type: 'rule' },
    { type: 'quote', children: [paragraph(text('quoted'), { type: 'break' }, text('more'))] },
  ]);
});

test('code keeps its text as it is, and an open fence goes to the end', () => {
  assert.deepEqual(parseMarkdown('```js\nif (a < b) {\n\n  **x**\n}\n```\nafter'), [
    { type: 'code', language: 'js', text: 'if (a < b) {\n\n  **x**\n}' }, paragraph(text('after'))]);
  assert.deepEqual(parseMarkdown('~~~\n```\nx'), [{ type: 'code', language: '', text: '```\nx' }]);
});

test('lists nest, count from their first number, and hold blocks', () => {
  const [list] = parseMarkdown('3. one\n   more\n4. two\n   - a\n   - b\n\n     c\n\n5. ```\n   code\n   ```');
  assert.equal(list.ordered, true);
  assert.equal(list.start, 3);
  assert.equal(list.items.length, 3);
  assert.deepEqual(list.items[0], [paragraph(text('one'), { type: 'break' }, text('more'))]);
  assert.equal(list.items[1][1].type, 'list');
  assert.equal(list.items[1][1].items.length, 2);
  assert.deepEqual(list.items[2], [{ type: 'code', language: '', text: 'code' }]);
});

test('tables', () => {
  const [table] = parseMarkdown('| a | b |\n|:--|--:|\n| 1 | x \\| y |\n| `c` | d |\n\nafter');
  assert.deepEqual(table.align, ['left', 'right']);
  assert.deepEqual(table.rows[0][1], [text('x | y')]);
  assert.deepEqual(table.rows[1][0], [{ type: 'code', text: 'c' }]);
});

test('inline marks', () => {
  assert.deepEqual(parseInline('a **b *c*** `**` ~~d~~ snake_case_name 2 * 3 * 4'), [
    text('a '), { type: 'strong', children: [text('b '), { type: 'emphasis', children: [text('c')] }] },
    text(' '), { type: 'code', text: '**' }, text(' '), { type: 'strike', children: [text('d')] },
    text(' snake_case_name 2 * 3 * 4'),
  ]);
  assert.deepEqual(parseInline('**open and \\*escaped\\*'), [text('**open and *escaped*')]);
  assert.deepEqual(parseInline('`open'), [text('`open')]);
});

test('markup of a page is text, and links go to few places', () => {
  const evil = '<img src=x onerror=alert(1)><script>alert(1)</script>';
  assert.deepEqual(parseMarkdown(evil), [paragraph(text(evil))]);
  for (const href of ['javascript:alert(1)', 'JaVaScRiPt:alert(1)', 'data:text/html,x', 'vbscript:x', '//evil', '/admin', '&#106;avascript:x']) {
    const nodes = parseInline(`[x](${href})`);
    assert.equal(nodes.some((node) => node.type === 'link'), false, href);
  }
  assert.deepEqual(parseInline('[a *b*](https://example.org/x_(y)) ![i](http://a/b.png)'), [
    { type: 'link', href: 'https://example.org/x_(y)', children: [text('a '), { type: 'emphasis', children: [text('b')] }] },
    text(' '), { type: 'link', href: 'http://a/b.png', children: [text('i')] },
  ]);
  assert.deepEqual(parseInline('see https://example.org/a?b=c.'), [
    text('see '), { type: 'link', href: 'https://example.org/a?b=c', children: [text('https://example.org/a?b=c')] }, text('.')]);
});

test('every prefix of an answer can be shown, and what is hostile is not slow', () => {
  const answer = '# T\n\n1. **a** `b`\n   - [c](https://d.e)\n\n| a | b |\n|--|--|\n| 1 | 2 |\n\n```py\nx = 1\n```\n> q\n';
  for (let length = 0; length <= answer.length; ++length) parseMarkdown(answer.slice(0, length));
  const began = performance.now();
  for (const bait of ['*a ', '**', '[', '`', '``` ', '> ', '- ', '_a_', '![](', '|', '[a](', '\\', '~~a']) {
    parseMarkdown(bait.repeat(5000));
    parseMarkdown(`${bait}\n`.repeat(500));
  }
  assert.ok(performance.now() - began < 10_000, `${performance.now() - began} ms`);
});
