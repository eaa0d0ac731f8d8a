import { readFileSync } from 'node:fs';
import { defineConfig } from 'vite';

// `npm run dev` serves the page's source against a moraine that runs already.
const server = process.env.MORAINE_URL ?? 'http://127.0.0.1:8080';

// What the bundle contains of others comes with their terms.
const licenses = {
  name: 'licenses',
  generateBundle() {
    const source = ['preact', 'uplot']
      .map((name) => `${name}\n\n${readFileSync(`node_modules/${name}/LICENSE`, 'utf8').trim()}\n`)
      .join('\n\n');
    this.emitFile({ type: 'asset', fileName: 'licenses.txt', source });
  },
};

export default defineConfig({
  base: './',
  plugins: [licenses],
  esbuild: { jsx: 'automatic', jsxImportSource: 'preact', legalComments: 'none' },
  build: {
    target: 'es2022',
    assetsInlineLimit: 0,  // the CSP allows no data: scripts or styles
    modulePreload: { polyfill: false },
    // Fixed names, which src/server/CMakeLists.txt lists: the server sends ETags, and the files are local.
    rollupOptions: { output: { entryFileNames: 'page.js', assetFileNames: 'page[extname]' } },
  },
  server: { proxy: { '/v1': server, '/residency': server } },
});
