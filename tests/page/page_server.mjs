// `moraine serve` over the demo store with a cache of a quarter of the experts, so that there is something to see.
import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';

export const API_KEY = 'page-test-key';

// `options`: more of the command line. Resolves to { url, stop }; rejects with what the process wrote if it ends
// before it is ready.
export function startServer(options = []) {
  const child = spawn(process.env.MORAINE_BIN,
    ['serve', process.env.MORAINE_STORE, '--port', '0', '--api-key', API_KEY, '--ram-budget', '25%', ...options],
    { stdio: ['ignore', 'pipe', 'pipe'] });
  let errors = '';
  child.stderr.on('data', (data) => { errors += data; });
  const ended = new Promise((resolve) => { child.on('exit', resolve); });
  const stop = () => {
    child.kill('SIGTERM');
    return ended;
  };
  return new Promise((resolve, reject) => {
    ended.then((code) => reject(new Error(`moraine ended with ${code}: ${errors}`)));
    createInterface({ input: child.stdout }).on('line', (line) => {
      const url = line.match(/http:\/\/[0-9.:]+/);
      if (url) resolve({ url: url[0], stop });
    });
  });
}
