// Serves bench.work: sleeps so many milliseconds, and gives the text back. As many at
// once as are asked for.
const { createInterface } = require("node:readline");

const say = (reply) => process.stdout.write(`${JSON.stringify(reply)}\n`);
if (process.env.LINEPOOL_PROTOCOL === "2") {
  say({ op: "hello", protocol: 2, inflight: 1000, tasks: [], features: [] });
}
createInterface({ input: process.stdin }).on("line", (line) => {
  const { id, payload } = JSON.parse(line);
  const [ms, text] = payload?.args ?? [];
  const end = () => say({ id, status: "ok", result: text ?? null });
  if (ms) setTimeout(end, ms);
  else end();
});
