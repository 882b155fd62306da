#!/usr/bin/env node
'use strict';
const fs = require('node:fs');

// First of all, replies get a descriptor of their own and stdout becomes stderr: no
// console.log, of a package or of a subprocess, can come between the replies any more.
// Node has no dup2, but a file that is opened takes the lowest free descriptor: 1.
let replies = 1;
try {
  replies = fs.openSync('/dev/fd/1', 'a');
  fs.closeSync(1);
  fs.openSync('/dev/fd/2', 'a');
} catch { // another user than the worker's may not open them: at least console.log
  globalThis.console = new console.Console(process.stderr);
}

const { execSync } = require('node:child_process');
const billing = require('./billing');

const tasks = new Map(Object.entries({
  'billing.charge': billing.charge,
  'example.noisy': async () => {
    console.log('console.log goes to stderr');
    execSync('echo and so does a subprocess', { stdio: 'inherit' });
    return 'quiet';
  },
}));

async function answer({ task, args, kwargs }) {
  try {
    if (!tasks.has(task)) throw new ReferenceError(`unknown task ${task}`);
    return { status: 'ok', result: await tasks.get(task)(...args, kwargs) };
  } catch (thrown) {
    const error = thrown instanceof Error ? thrown : new Error(thrown);
    const frames = error.stack.split('\n').map((frame) => frame.trim());
    const backtrace = frames.filter((frame) => frame.startsWith('at '));
    return { status: 'error', type: error.name, message: error.message, backtrace };
  }
}

async function main() {
  let rest = '';
  // Not readline: it would also split at U+2028, which JSON may hold as it is.
  for await (const chunk of process.stdin.setEncoding('utf8')) {
    const lines = (rest + chunk).split('\n');
    rest = lines.pop();
    for (const line of lines) {
      const { id, payload } = JSON.parse(line);
      fs.writeSync(replies, `${JSON.stringify({ id, ...await answer(payload) })}\n`);
    }
  }
}

main();
