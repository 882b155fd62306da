import { run, task, Throttle } from './linepool.mjs'; // first of all: it takes stdout away
import { RateLimited } from './src/rates.mjs';
import { boot } from './src/shop.mjs';

const { invoices, rates } = boot(); // once, for all tasks

task('invoices.create', async (context, fields) => invoices.create(fields));

task('invoices.find', async (context, id) => invoices.find(id));

// A task that is delivered twice charges once: its id is the key.
task('invoices.charge', async ({ id }, invoice) => invoices.charge(invoice, id));

task('invoices.import', async (context, path) =>
  invoices.import(path, (done) => context.progress({ done })));

// Sends a task for each; the caller gets their ids and may wait for them.
task('invoices.collect', async (context) =>
  Promise.all(invoices.unpaid().map((id) => context.publish('invoices.charge', [id]))));

task('rates.fetch', async ({ signal }, currency) => {
  try {
    return await rates.fetch(currency, signal);
  } catch (error) {
    if (error instanceof RateLimited) throw new Throttle(error.after); // no retry is used up
    throw error;
  }
});

// It ends when it is cancelled: fetch() and setTimeout() know the signal.
task('rates.below', async ({ signal }, currency, limit) => rates.below(currency, limit, signal));

run({ inflight: 16 });
