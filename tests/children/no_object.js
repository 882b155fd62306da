// Replies once with JSON that is no object.
const fs = require("fs");
const { spawn } = require("child_process");
const lines = require("readline").createInterface({ input: process.stdin });

lines.on("line", (line) => {
  const { id, payload } = JSON.parse(line);
  const mark = payload.args[0];
  let reply = { id, status: "ok", result: process.pid };
  if (!fs.existsSync(mark)) {
    fs.writeFileSync(mark, "");
    const sleeper = spawn("sleep", ["600"], { stdio: "inherit" });
    fs.writeSync(2, `grandchild ${sleeper.pid}\n`);
    reply = [id, "ok", process.pid];
  }
  process.stdout.write(JSON.stringify(reply) + "\n");
});
