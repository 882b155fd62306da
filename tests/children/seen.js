// Returns what it was asked, and the type that each argument has to JavaScript.
const lines = require("readline").createInterface({ input: process.stdin });

lines.on("line", (line) => {
  const { id, payload } = JSON.parse(line);
  const types = payload.args.map((value) => typeof value);
  const result = { ...payload, types, pid: process.pid };
  process.stdout.write(JSON.stringify({ id, status: "ok", result }) + "\n");
});
