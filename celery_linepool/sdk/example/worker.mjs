import { run, task } from './linepool.mjs'; // first: from here on stdout is stderr

task('example.add', async (context, a, b, { digits }) =>
  digits === undefined ? a + b : Number((a + b).toFixed(digits)));

run({ inflight: 16 });
