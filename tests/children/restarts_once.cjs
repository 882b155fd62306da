// Asked by once.restart it wants to be replaced, unless it is the successor already.
'use strict';
const readline = require('node:readline');
const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
const slot = process.pid;
let served = 0;
readline.createInterface({ input: process.stdin }).on('line', (text) => {
  const { id, payload } = JSON.parse(text);
  if (payload.task === 'once.restart' && served) say({ id, status: 'restart' });
  else say({ id, status: 'ok', result: slot });
  served += 1;
}).on('close', () => process.exit());
say({ op: 'hello', protocol: 2, tasks: ['once.pid', 'once.restart'] });
