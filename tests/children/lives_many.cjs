// Like lives.rb in a storm, and several tasks at once: works a little, leaves a line in
// the file that it is given, works a little more. Reports progress, and gives up if asked.
'use strict';
const fs = require('node:fs');
const readline = require('node:readline');

const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
const nap = () => new Promise((resolve) => setTimeout(resolve, Math.random() * 30));
const cancelled = new Set();

const serve = async ({ id, payload }) => {
  await nap();
  if (cancelled.has(id)) return say({ id, status: 'cancelled' });
  say({ op: 'progress', id, meta: { pid: process.pid } });
  fs.appendFileSync(payload.args[0], `${[...payload.args.slice(1), process.pid].join(' ')}\n`);
  await nap();
  return say({ id, status: 'ok' });
};

readline.createInterface({ input: process.stdin }).on('line', (text) => {
  const line = JSON.parse(text);
  if (line.op === 'cancel') cancelled.add(line.id);
  else if (!line.op) serve(line);
}).on('close', () => process.exit());
say({ op: 'hello', protocol: 2, inflight: 4, features: ['cancel'] });
