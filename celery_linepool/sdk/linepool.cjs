// Serves Celery tasks to a celery-linepool worker. Needs Node 18 and nothing else.
//
//   const linepool = require('./linepool.cjs'); // or: import linepool from './linepool.mjs';
//   linepool.task('billing.charge', async (task, amount, { currency = 'EUR' }) => {...});
//   linepool.run({ inflight: 16 });
//
// A handler gets the task, its positional arguments, and its keyword arguments as one
// object. Load this file before anything that may print: it turns stdout into stderr.
// Integers beyond 2 ** 53 lose digits, as they do in all JSON of JavaScript.
'use strict';
const fs = require('node:fs');
const path = require('node:path');
const { Socket } = require('node:net');
const { inspect } = require('node:util');
const { AsyncLocalStorage } = require('node:async_hooks');

const NEWLINE = 10;
const protocol = Number(process.env.LINEPOOL_PROTOCOL || 1);
const maxLine = Number(process.env.LINEPOOL_MAX_LINE || 16 * 1024 * 1024);
const channel = process.env.LINEPOOL_CHANNEL === 'fd'
  ? { in: 3, out: 4 }
  : { in: take(0, 'r', '/dev/null'), out: take(1, 'a', '/dev/fd/2') };

// Node has no dup2, but a file that is opened takes the lowest free descriptor.
function take(fd, flags, substitute) {
  try {
    const taken = fs.openSync(`/dev/fd/${fd}`, flags);
    fs.closeSync(fs.openSync(substitute, flags)); // it can be opened: only now close fd
    fs.closeSync(fd);
    fs.openSync(substitute, flags);
    return taken;
  } catch { // a socket, or another user's: then only what JavaScript prints goes elsewhere
    if (fd === 1) process.stdout.write = process.stderr.write.bind(process.stderr);
    return fd;
  }
}

/** Thrown by a handler to end its task in another way than with a result or an error. */
class Outcome extends Error {
  constructor(reply, message = reply.status) {
    super(message);
    this.name = new.target.name;
    this.reply = reply;
  }
}
/** Run it again, after so many seconds if they are given, as long as it may be. */
class Retry extends Outcome {
  constructor(message, { after } = {}) {
    super({ status: 'retry', retry_after_secs: after, message }, message);
  }
}
/** Run it again later; that uses up no retry. */
class Throttle extends Outcome {
  constructor(after = 60) { super({ status: 'throttled', retry_after_secs: after }); }
}
/** Reject its message, or have the broker deliver it again. */
class Reject extends Outcome {
  constructor({ requeue = false } = {}) { super({ status: 'rejected', requeue }); }
}
/** Store nothing. */
class Ignore extends Outcome {
  constructor() { super({ status: 'ignored' }); }
}
/** The task gave up because it was cancelled: `task.signal.throwIfAborted()` throws it. */
class Cancelled extends Outcome {
  constructor(reason) { super({ status: 'cancelled' }, reason); }
}
class Exit extends Error {
  constructor(code = '') { super(`process.exit(${code})`); }
}

const handlers = new Map();
const running = new Map();
const answers = new Map();
const current = new AsyncLocalStorage();
const realExit = process.exit.bind(process);
let seq = 0;
let parts = []; // of a line that has not come as a whole
let terminated = false;
let leaving = false;
let deaf = false;

/** The task that is running. `meta` is all that the worker tells about it. */
class Task {
  #abort = new AbortController();
  #replied = false;

  constructor({ id, payload: { task, meta = {} } }) {
    Object.assign(this, { id, name: task, meta, retries: meta.retries ?? 0 });
    /** Seconds since 1970, or undefined; the child is killed then. */
    this.deadline = meta.deadline;
  }

  /** Aborted when the task should end soon. Give it to fetch() and friends. */
  get signal() { return this.#abort.signal; }

  /** undefined, or why: 'soft_time_limit', 'revoked' or 'shutdown'. */
  get cancelled() { return this.#abort.signal.reason?.message; }

  progress(meta) { this.#event({ op: 'progress', meta }); }

  log(message, level = 'info') {
    if (protocol < 2) console.error(`${level}: ${message}`);
    this.#event({ op: 'log', level, message: String(message) });
  }

  /** Sends a task, now or once this one has succeeded. Resolves to its id. */
  async publish(task, args = [], kwargs = {}, { onSuccess = false, ...options } = {}) {
    if (protocol < 2) throw new Error('publish needs a worker that speaks protocol 2');
    if (deaf) throw new Error('not published: the channel has ended');
    if (this.#replied) throw new Error('a task that has ended cannot publish');
    const when = onSuccess ? 'success' : 'now';
    const number = ++seq;
    this.#event({ op: 'publish', seq: number, task, args, kwargs, options, when });
    const { task_id, error } = await new Promise((r) => { answers.set(number, r); });
    if (error) throw new Error(`not published: ${error}`);
    return task_id;
  }

  // What follows is for this file only.
  _cancel(reason) { this.#abort.abort(new Cancelled(reason)); }

  _fail(thrown) {
    if (thrown instanceof Outcome) return this._reply(thrown.reply);
    // fetch() and friends throw an error of their own when the signal is aborted.
    if (this.signal.aborted && thrown?.name === 'AbortError') {
      return this._reply({ status: 'cancelled' });
    }
    return this._reply(describe(thrown));
  }

  _reply(fields) {
    if (this.#replied) return false;
    let line;
    try {
      line = encode({ ...fields, id: this.id });
    } catch (error) { // no JSON, or too long
      line = encode({ ...describe(error), id: this.id });
    }
    this.#replied = true;
    running.delete(this.id);
    write(line);
    return true;
  }

  #event(fields) {
    if (protocol >= 2 && !this.#replied) write(encode({ ...fields, id: this.id }));
  }
}

function describe(thrown) {
  try {
    const error = thrown instanceof Error ? thrown : new Error(show(thrown));
    const backtrace = [...trace(error)];
    return { status: 'error', type: nameOf(error), message: `${error.message}`, backtrace };
  } catch { // the reply must not be lost, whoever wrote the error
    return { status: 'error', type: 'Error', message: 'an error that cannot say what it is' };
  }
}

const show = (value) => (typeof value === 'string' ? value : inspect(value));
// A subclass need not have set its name.
const nameOf = ({ name, constructor }) => (name === 'Error' ? constructor.name : name);

function* trace(error, seen = new Set()) {
  seen.add(error);
  const lines = String(error.stack).split('\n').map((line) => line.trim());
  yield* lines.filter((line) => line.startsWith('at ') && !line.includes(__filename));
  const { cause } = error;
  if (cause instanceof Error && !seen.has(cause)) {
    yield `caused by ${nameOf(cause)}: ${cause.message}`;
    yield* trace(cause, seen);
  } else if (cause !== undefined) yield `caused by ${show(cause)}`;
}

function encode(fields) {
  const line = Buffer.from(`${JSON.stringify(fields)}\n`);
  if (line.length > maxLine + 1) {
    throw new RangeError(`a line of ${line.length - 1} bytes, the limit is ${maxLine}`);
  }
  return line;
}

// Synchronous, unlike a stream: whole lines, in order, and nothing is left to be written
// when the process ends.
function write(line) {
  for (let done = 0; done < line.length;) {
    try {
      done += fs.writeSync(channel.out, line, done);
    } catch (error) {
      if (error.code === 'EPIPE') realExit(1); // nobody is left to reply to
      if (error.code !== 'EAGAIN') throw error;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
    }
  }
}

async function accept(request) {
  const task = new Task(request);
  running.set(task.id, task);
  await current.run(task, async () => {
    const { args = [], kwargs = {} } = request.payload;
    try { // what does not begin may run in another child at once
      if (terminated) throw protocol < 2 ? new Throttle(0) : new Outcome({ status: 'restart' });
      const handler = handlers.get(task.name);
      if (!handler) throw new ReferenceError(`unknown task ${task.name}`);
      task._reply({ status: 'ok', result: await handler(task, ...args, kwargs) });
    } catch (thrown) {
      task._fail(thrown);
    }
  });
  endIfDone();
}

const operations = {
  cancel: ({ id, reason }) => running.get(id)?._cancel(reason),
  answer: (message) => { answers.get(message.seq)?.(message); answers.delete(message.seq); },
  ping: ({ seq: number }) => write(encode({ op: 'pong', seq: number })),
  stop: leave,
};

// Not readline, which would also split at U+2028.
function listen(input) {
  input.on('data', (data) => {
    let start = 0;
    for (let end; (end = data.indexOf(NEWLINE, start)) >= 0; start = end + 1) {
      const message = JSON.parse(Buffer.concat([...parts, data.subarray(start, end)]));
      parts = [];
      if (message.op === undefined) accept(message);
      else if (Object.hasOwn(operations, message.op)) operations[message.op](message);
    }
    if (start < data.length) parts.push(data.subarray(start));
  });
  input.on('close', () => {
    deaf = true;
    for (const resolve of answers.values()) resolve({ error: 'the channel has ended' });
    leave();
  });
}

function leave() {
  leaving = true;
  endIfDone();
}

function endIfDone() {
  // Whatever else keeps the event loop alive, an open connection or a timer.
  if (leaving && running.size === 0 && (deaf || parts.length === 0)) realExit();
}

function surviveMistakes() {
  // One task must not end the others, nor lose its own reply.
  process.exit = (code) => {
    const task = current.getStore();
    if (!task) realExit(code);
    const exit = new Exit(code);
    task._fail(exit);
    endIfDone();
    throw exit;
  };
  const mistake = (error) => {
    const task = current.getStore() ?? (running.size === 1 ? [...running.values()][0] : null);
    if (error instanceof Exit && task) return;
    if (!task?._fail(error)) console.error(error);
    if (task) return endIfDone();
    for (const each of running.values()) each._fail(error);
    return realExit(1); // nobody knows what is broken
  };
  process.on('uncaughtException', mistake);
  process.on('unhandledRejection', mistake);
  process.on('exit', (code) => {
    for (const task of running.values()) task._fail(new Exit(code));
  });
}

/** Registers a handler, async or not, by the task's name. */
function task(name, handler) { handlers.set(name, handler); }

/** Serves tasks, so many at a time, until the worker or SIGTERM ends it. */
function run({ inflight = 1 } = {}) {
  process.on('SIGINT', () => {});
  process.on('SIGTERM', () => { terminated = true; leave(); });
  surviveMistakes();
  const { LINEPOOL_CHECK: checks } = process.env; // the folder of `celery linepool check`
  if (checks) require(path.resolve(checks, 'check.cjs'))(module.exports);
  const features = ['cancel', 'ping', 'stop'];
  const tasks = [...handlers.keys()];
  const hello = { op: 'hello', protocol: 2, language: 'node', tasks, inflight, features };
  if (protocol >= 2) write(encode(hello));
  const fd = channel.in;
  const stat = fs.fstatSync(fd);
  const isStream = stat.isFIFO() || stat.isSocket();
  listen(isStream ? new Socket({ fd, writable: false }) : fs.createReadStream(null, { fd }));
}

module.exports = { task, run, Retry, Throttle, Reject, Ignore, Cancelled };
