// The tasks of section 10 of docs/protocol.md; linepool.cjs loads this file.
'use strict';
const { execFileSync, spawn } = require('node:child_process');
const { setTimeout: sleep } = require('node:timers/promises');

module.exports = ({ task, Retry, Throttle, Reject, Ignore }) => {
  const tasks = {
    echo: (context, ...args) => ({ kwargs: args.pop(), args }),

    sleep: async ({ signal }, seconds) => sleep(seconds * 1000, seconds, { signal }),

    fail(context, message) {
      throw new Error(message, { cause: new Error('the cause') });
    },

    exit(context, code) { process.exit(code); },

    end(context, status, after) {
      throw {
        retry: new Retry(undefined, { after }),
        throttled: new Throttle(after),
        rejected: new Reject(),
        ignored: new Ignore(),
      }[status];
    },

    print(context, text) {
      console.log(text);
      execFileSync('echo', [text], { stdio: 'inherit' });
    },

    stderr(context, bytes) { process.stderr.write('x'.repeat(bytes)); },

    big: (context, bytes) => 'x'.repeat(bytes),

    context: ({ id, retries, deadline = null }) => ({ id, retries, deadline }),

    events(context, count) {
      for (let step = 1; step <= count; step += 1) context.progress({ step });
      context.log('checked', 'warning');
      return count;
    },

    publish: (context, name, when) =>
      context.publish(name, [7], {}, { onSuccess: when === 'success' }),

    spawn: () => spawn('sleep', ['30'], { stdio: 'inherit' }).pid,
  };
  for (const [name, handler] of Object.entries(tasks)) {
    task(`linepool.check.${name}`, handler);
  }
};
