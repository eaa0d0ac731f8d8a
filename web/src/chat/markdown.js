// Markdown -> a tree of plain objects; markdown_view.jsx makes elements of it. No HTML is ever parsed or
// produced, so nothing in a model's text can become markup: a tag is text, an image is its link, and a
// link goes to http, https or mailto or is text.
//
// The subset that models write: headings, paragraphs, lists, quotes, fenced code, tables, rules; code,
// strong, emphasis, strike-through, links. A single line break is kept. An unfinished construct reads as
// far as it goes, since text arrives piece by piece.
//
// Cost: linear in the text but for nesting, which is bounded by DEPTH_LIMIT.

const DEPTH_LIMIT = 12;

const FENCE = /^( {0,3})(`{3,}|~{3,})[ \t]*([^\s`]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*$/;
const RULE = /^ {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$/;
const QUOTE = /^ {0,3}>[ \t]?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])([ \t]+|$)/;
const TABLE_RULE = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;

const indentOf = (line) => line.length - line.trimStart().length;
const isBlank = (line) => line.trim() === '';

export function parseMarkdown(text) {
  return parseBlocks(text.replace(/\r\n?/g, '\n').replace(/\t/g, '    ').split('\n'), 0);
}

function startsBlock(line) {
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line);
}

function parseBlocks(lines, depth) {
  const blocks = [];
  for (let i = 0; i < lines.length;) {
    if (isBlank(lines[i])) {
      ++i;
      continue;
    }
    const read = depth >= DEPTH_LIMIT ? readParagraph
      : [readFence, readHeading, readRule, readQuote, readList, readTable, readParagraph]
        .find((reader) => reader(lines, i, depth) !== null);
    const { block, next } = read(lines, i, depth);
    blocks.push(block);
    i = next;
  }
  return blocks;
}

function readFence(lines, i) {
  const open = FENCE.exec(lines[i]);
  if (!open) return null;
  const [, indent, fence, language] = open;
  const body = [];
  let next = i + 1;
  for (; next < lines.length; ++next) {
    const line = lines[next].trim();
    if (line.length >= fence.length && line === fence[0].repeat(line.length)) break;
    body.push(lines[next].slice(Math.min(indent.length, indentOf(lines[next]))));
  }
  return { block: { type: 'code', language, text: body.join('\n') }, next: next + 1 };
}

function readHeading(lines, i) {
  const match = HEADING.exec(lines[i]);
  if (!match) return null;
  return { block: { type: 'heading', level: match[1].length, children: parseInline(match[2]) }, next: i + 1 };
}

function readRule(lines, i) {
  return RULE.test(lines[i]) ? { block: { type: 'rule' }, next: i + 1 } : null;
}

function readQuote(lines, i, depth) {
  if (!QUOTE.test(lines[i])) return null;
  const inner = [];
  let next = i;
  for (; next < lines.length && !isBlank(lines[next]); ++next) {
    if (!QUOTE.test(lines[next]) && startsBlock(lines[next])) break;
    inner.push(lines[next].replace(QUOTE, ''));
  }
  return { block: { type: 'quote', children: parseBlocks(inner, depth + 1) }, next };
}

function readList(lines, i, depth) {
  const first = ITEM.exec(lines[i]);
  if (!first || RULE.test(lines[i])) return null;
  const ordered = /\d/.test(first[2]);
  const items = [];
  let next = i;
  while (next < lines.length) {
    const match = ITEM.exec(lines[next]);
    if (!match || /\d/.test(match[2]) !== ordered || RULE.test(lines[next])) break;
    const offset = match[0].length;
    const body = [lines[next].slice(offset)];
    for (++next; next < lines.length; ++next) {
      const line = lines[next];
      if (isBlank(line)) {
        // A blank line belongs to the item if something indented follows.
        if (next + 1 >= lines.length || indentOf(lines[next + 1]) < Math.min(offset, 2)) break;
        body.push('');
      } else if (indentOf(line) >= Math.min(offset, 2)) {
        body.push(line.slice(Math.min(offset, indentOf(line))));
      } else if (!startsBlock(line) && !isBlank(lines[next - 1])) {
        body.push(line);  // goes on lazily
      } else {
        break;
      }
    }
    items.push(parseBlocks(body, depth + 1));
    while (next < lines.length && isBlank(lines[next])) ++next;
  }
  const start = ordered ? Number.parseInt(first[2], 10) : 1;
  return { block: { type: 'list', ordered, start, items }, next };
}

// Cells between bars; a bar after a backslash is text.
function splitRow(line) {
  const cells = line.trim().replace(/^\|/, '').split(/(?<!\\)\|/);
  if (cells.at(-1).trim() === '') cells.pop();
  return cells.map((cell) => parseInline(cell.trim().replaceAll('\\|', '|')));
}

function readTable(lines, i) {
  if (!lines[i].includes('|') || i + 1 >= lines.length || !TABLE_RULE.test(lines[i + 1])) return null;
  if (!lines[i + 1].includes('|')) return null;
  const head = splitRow(lines[i]);
  const align = lines[i + 1].trim().replace(/^\||\|$/g, '').split('|').map((cell) => {
    const rule = cell.trim();
    return rule.endsWith(':') ? (rule.startsWith(':') ? 'center' : 'right') : 'left';
  });
  const rows = [];
  let next = i + 2;
  for (; next < lines.length && lines[next].includes('|'); ++next) rows.push(splitRow(lines[next]));
  return { block: { type: 'table', head, align, rows }, next };
}

function readParagraph(lines, i, depth) {
  const text = [];
  let next = i;
  for (; next < lines.length && !isBlank(lines[next]); ++next) {
    if (next > i && depth < DEPTH_LIMIT && startsBlock(lines[next])) break;
    text.push(lines[next].trimStart());
  }
  return { block: { type: 'paragraph', children: parseInline(text.join('\n')) }, next };
}

// --- Inline ---------------------------------------------------------------------------------------

const LINK = /\[((?:[^[\]\\]|\\.){1,1000})\]\([ ]*<?([^\s<>()]*(?:\([^\s()]*\)[^\s<>()]*)*)>?(?:[ ]+"[^"\n]*")?[ ]*\)/y;
const BARE_URL = /https?:\/\/[^\s<>"'`|]+/y;
const PUNCTUATION = /[!-/:-@[-`{-~]/;
const WORD = /[\p{L}\p{N}]/u;
const MARKS = { '**': 'strong', __: 'strong', '*': 'emphasis', _: 'emphasis', '~~': 'strike' };

export function safeLink(href) {
  return /^(https?:\/\/|mailto:)/i.test(href) ? href : null;
}

class InlineParser {
  constructor(text) {
    this.text = text;
    this.at = 0;
    this.stack = [{ mark: null, children: [] }];
    this.unclosedTicks = new Set();  // lengths of backtick runs that nothing closes from here on
  }

  get children() { return this.stack.at(-1).children; }

  addText(text) {
    const last = this.children.at(-1);
    if (last?.type === 'text') last.text += text;
    else this.children.push({ type: 'text', text });
  }

  run() {
    while (this.at < this.text.length) {
      const c = this.text[this.at];
      if (c === '\\' && PUNCTUATION.test(this.text[this.at + 1] ?? '')) {
        this.addText(this.text[this.at + 1]);
        this.at += 2;
      } else if (c === '\n') {
        this.children.push({ type: 'break' });
        ++this.at;
      } else if (!(c === '`' && this.code()) && !((c === '[' || c === '!') && this.link(c)) &&
                 !((c === '*' || c === '_' || c === '~') && this.mark(c)) &&
                 !(c === 'h' && this.url())) {
        this.addText(c);
        ++this.at;
      }
    }
    while (this.stack.length > 1) this.unravel();
    return this.children;
  }

  // The innermost mark was never closed: it is text.
  unravel() {
    const open = this.stack.pop();
    this.addText(open.mark);
    for (const child of open.children) {
      if (child.type === 'text') this.addText(child.text);
      else this.children.push(child);
    }
  }

  code() {
    let end = this.at;
    while (this.text[end] === '`') ++end;
    const ticks = this.text.slice(this.at, end);
    if (!this.unclosedTicks.has(ticks.length)) {
      for (let close = this.text.indexOf(ticks, end); close >= 0;) {
        let after = close;
        while (this.text[after] === '`') ++after;
        if (after - close === ticks.length) {
          this.children.push({ type: 'code', text: this.text.slice(end, close).replaceAll('\n', ' ').trim() });
          this.at = after;
          return true;
        }
        close = this.text.indexOf(ticks, after);
      }
      this.unclosedTicks.add(ticks.length);
    }
    this.addText(ticks);
    this.at = end;
    return true;
  }

  // [text](address), and ![text](address), which is not loaded but linked.
  link(c) {
    LINK.lastIndex = c === '!' ? this.at + 1 : this.at;
    const match = LINK.exec(this.text);
    const href = match && safeLink(match[2]);
    if (!href) return false;
    this.children.push({ type: 'link', href, children: parseInline(match[1], /*links=*/false) });
    this.at = LINK.lastIndex;
    return true;
  }

  url() {
    if (this.noLinks) return false;
    BARE_URL.lastIndex = this.at;
    const match = BARE_URL.exec(this.text);
    if (!match) return false;
    let href = match[0].replace(/[.,;:!?*_~]+$/, '');
    while (href.endsWith(')') && href.split(')').length > href.split('(').length) href = href.slice(0, -1);
    this.children.push({ type: 'link', href, children: [{ type: 'text', text: href }] });
    this.at += href.length;
    return true;
  }

  mark(c) {
    // Of three, the first closes the inner mark: **a *b***.
    const closesInner = this.stack.at(-1).mark === c && this.text[this.at + 2] === c;
    const double = this.text[this.at + 1] === c && !closesInner;
    const mark = double ? c + c : c;
    const type = MARKS[mark];
    if (!type) return false;
    const before = this.text[this.at - 1] ?? ' ', after = this.text[this.at + mark.length] ?? ' ';
    const inWord = c === '_' && WORD.test(before) && WORD.test(after);
    const depth = this.stack.findLastIndex((open) => open.mark === mark);
    if (depth > 0 && !/\s/.test(before) && !inWord) {
      while (this.stack.length - 1 > depth) this.unravel();
      const { children } = this.stack.pop();
      this.children.push({ type, children });
      this.at += mark.length;
      return true;
    }
    if (/\s/.test(after) || inWord || depth > 0 || this.stack.length > DEPTH_LIMIT) return false;
    this.stack.push({ mark, children: [] });
    this.at += mark.length;
    return true;
  }
}

export function parseInline(text, links = true) {
  const parser = new InlineParser(text);
  parser.noLinks = !links;
  return parser.run();
}
