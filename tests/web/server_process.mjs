// Starts a server for a client test: the fake one (prints its URL), or the real one over a store.
import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';

// Polls /stats until `condition` holds: how a cancelled request shows from outside.
async function eventually(url, condition) {
  for (let tries = 0; tries < 2000; ++tries) {
    const response = await fetch(`${url}/stats?layers=0`, { headers: { 'x-api-key': 'test-key' } });
    if (condition(await response.json())) return;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  throw new Error('the statistics never showed it');
}

// Resolves to { url, stop, eventually }; rejects with what the process wrote if it ends before it is ready.
export function startServer() {
  const real = process.env.MORAINE_BIN !== undefined;
  const [command, args] = real
    ? [process.env.MORAINE_BIN,
       ['serve', process.env.MORAINE_STORE, '--port', '0', '--api-key', 'test-key', '--queue', '1',
        '--parallel', '1']]
    : [process.env.FAKE_SERVER, []];
  const child = spawn(command, args, { stdio: ['pipe', 'pipe', 'pipe'] });
  let errors = '';
  child.stderr.on('data', (data) => { errors += data; });
  const stop = () => new Promise((resolve) => {
    child.on('exit', (code) => resolve(code));
    child.stdin.end();  // ends the fake one
    if (real) child.kill('SIGTERM');
  });
  return new Promise((resolve, reject) => {
    child.on('exit', (code) => reject(new Error(`${command} ended with ${code}: ${errors}`)));
    createInterface({ input: child.stdout }).on('line', (line) => {
      const url = line.match(/http:\/\/[0-9.:]+/);
      if (url) resolve({ url: url[0], stop, eventually: (condition) => eventually(url[0], condition) });
    });
  });
}
