// Speaks protocol 2 by hand: several tasks at once, events, cancels.
// Arguments: how many at once (1), features (comma separated; all if left out).
'use strict';
const fs = require('node:fs');
const readline = require('node:readline');

const inflight = Number(process.argv[2] || 1);
const features = (process.argv[3] || 'cancel,ping,stop').split(',');
const channel = process.env.LINEPOOL_CHANNEL === 'fd' ? { in: 3, out: 4 } : { in: 0, out: 1 };
const say = (line) => {
  let text = Buffer.from(`${JSON.stringify(line)}\n`);
  while (text.length) {
    try {
      text = text.subarray(fs.writeSync(channel.out, text));
    } catch (error) {
      if (error.code !== 'EAGAIN') throw error;
    }
  }
};
const answers = new Map();
const cancels = new Map();
let seq = 0;

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const cancelled = (id) => new Promise((resolve) => cancels.set(id, resolve));
const exists = async (path) => { while (!fs.existsSync(path)) await sleep(10); };
const publish = (id, message) => {
  seq += 1;
  say({ op: 'publish', id, seq, ...message });
  return new Promise((resolve) => answers.set(seq, resolve));
};

const tasks = {
  'talk.pid': async () => process.pid,
  'talk.meta': async (id, meta) => meta,
  'talk.env': async () => Object.fromEntries(
    Object.entries(process.env).filter(([name]) => name.startsWith('LINEPOOL_')),
  ),
  'talk.sleep': async (id, meta, ms) => {
    const reason = await Promise.race([sleep(ms), cancelled(id)]);
    if (reason) return { status: 'cancelled' };
    return ms;
  },
  // Finishes in spite of the cancel, and says so.
  'talk.finish': async (id, meta, path) => {
    const reason = await cancelled(id);
    if (path) fs.appendFileSync(path, `${reason}\n`);
    return reason;
  },
  'talk.wait': async (id, meta, path) => { await exists(path); return 'seen'; },
  // Hears nothing any more, and nor do the others in the process.
  'talk.hang': async (id, meta, path) => { if (path) fs.writeFileSync(path, ''); for (;;); },
  'talk.stubborn': () => new Promise(() => {}),
  'talk.bad': async () => ({ status: 'fine' }),
  'talk.garbled': async () => { fs.writeSync(channel.out, '{"id": \n'); return new Promise(() => {}); },
  'talk.die': async () => process.exit(3),
  'talk.restart': async () => ({ status: 'restart' }),
  'talk.progress': async (id, meta, steps, path) => {
    for (let step = 1; step <= steps; step += 1) say({ op: 'progress', id, meta: { step } });
    if (path) await exists(path);
    return steps;
  },
  'talk.log': async (id, meta, level, message) => {
    say({ op: 'log', id, level, message });
    say({ op: 'log', level: 'info', message: 'of no task' });
    return true;
  },
  'talk.logs': async (id, meta, count) => {
    for (let n = 0; n < count; n += 1) say({ op: 'log', id, level: 'info', message: `line ${n}` });
    return count;
  },
  'talk.noise': async (id, meta, text) => { console.log(text); console.log(text); return true; },
  'talk.publish': async (id, meta, message) => publish(id, message),
  'talk.publishes': async (id, meta, count, message) => {
    const all = [];
    for (let n = 0; n < count; n += 1) all.push(publish(id, { ...message, args: [n] }));
    return (await Promise.all(all)).map((answer) => answer.error || 'sent');
  },
  'talk.publish_and_fail': async (id, meta, message) => {
    await publish(id, message);
    return { status: 'error', message: 'too bad' };
  },
  'talk.late': async (id) => {
    say({ id, status: 'ok' });
    say({ op: 'progress', id, meta: {} });
    say({ op: 'publish', id, seq: 1, task: 'x' });
    return null;
  },
};

const serve = async ({ id, payload }) => {
  const task = tasks[payload.task];
  const result = task ? await task(id, payload.meta, ...payload.args)
    : { status: 'error', message: `unknown task ${payload.task}` };
  cancels.delete(id);
  if (payload.task === 'talk.late') return;
  say(result && result.status ? { id, ...result } : { id, status: 'ok', result });
};

readline.createInterface({ input: fs.createReadStream(null, { fd: channel.in }) })
  .on('line', (text) => {
    const line = JSON.parse(text);
    if (!line.op) serve(line);
    else if (line.op === 'answer') answers.get(line.seq)(line);
    else if (line.op === 'cancel') (cancels.get(line.id) || (() => {}))(line.reason);
    else if (line.op === 'ping') say({ op: 'pong', seq: line.seq });
    else if (line.op === 'stop' && process.env.STOPPED) fs.appendFileSync(process.env.STOPPED, 'stop\n');
  })
  .on('close', () => process.exit());
process.on('SIGINT', () => {});
say({ op: 'hello', protocol: 2, language: 'js', tasks: Object.keys(tasks), inflight, features });
