// The tree of markdown.js as elements. Text goes in as text nodes only.
import { useMemo } from 'preact/hooks';
import { CopyButton } from './copy_button.jsx';
import { parseMarkdown } from './markdown.js';

function Inline({ nodes }) {
  return nodes.map((node, i) => {
    switch (node.type) {
      case 'text': return node.text;
      case 'break': return <br key={i} />;
      case 'code': return <code key={i}>{node.text}</code>;
      case 'strong': return <strong key={i}><Inline nodes={node.children} /></strong>;
      case 'emphasis': return <em key={i}><Inline nodes={node.children} /></em>;
      case 'strike': return <del key={i}><Inline nodes={node.children} /></del>;
      default:
        return (
          <a key={i} href={node.href} target="_blank" rel="noopener noreferrer nofollow">
            <Inline nodes={node.children} />
          </a>
        );
    }
  });
}

function CodeBlock({ block }) {
  return (
    <div class="code-block">
      <div class="code-head"><span>{block.language || 'text'}</span><CopyButton text={block.text} /></div>
      <pre tabindex="0"><code>{block.text}</code></pre>
    </div>
  );
}

function Table({ block }) {
  const align = (i) => `align-${block.align[i] ?? 'left'}`;
  return (
    <div class="table-scroll" tabindex="0" role="region" aria-label="table">
      <table>
        <thead><tr>{block.head.map((cell, i) => <th key={i} scope="col" class={align(i)}><Inline nodes={cell} /></th>)}</tr></thead>
        <tbody>
          {block.rows.map((row, r) => (
            <tr key={r}>{row.map((cell, i) => <td key={i} class={align(i)}><Inline nodes={cell} /></td>)}</tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function Blocks({ blocks }) {
  return blocks.map((block, i) => {
    switch (block.type) {
      case 'heading': {
        const Heading = `h${Math.min(6, block.level + 2)}`;  // below the page's own h1 and h2
        return <Heading key={i}><Inline nodes={block.children} /></Heading>;
      }
      case 'code': return <CodeBlock key={i} block={block} />;
      case 'rule': return <hr key={i} />;
      case 'quote': return <blockquote key={i}><Blocks blocks={block.children} /></blockquote>;
      case 'table': return <Table key={i} block={block} />;
      case 'list': {
        const items = block.items.map((item, n) => <li key={n}><Blocks blocks={item} /></li>);
        return block.ordered ? <ol key={i} start={block.start}>{items}</ol> : <ul key={i}>{items}</ul>;
      }
      default: return <p key={i}><Inline nodes={block.children} /></p>;
    }
  });
}

export function Markdown({ text }) {
  const blocks = useMemo(() => parseMarkdown(text), [text]);
  return <div class="markdown"><Blocks blocks={blocks} /></div>;
}
