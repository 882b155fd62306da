// Never replies to the first task.
const fs = require("fs");
const lines = require("readline").createInterface({ input: process.stdin });

lines.on("line", (line) => {
  const { id, payload } = JSON.parse(line);
  const mark = payload.args[0];
  if (!fs.existsSync(mark)) {
    fs.writeFileSync(mark, "");
    fs.writeSync(2, "thinking\n");
    return;
  }
  const reply = { id, status: "ok", result: process.pid };
  process.stdout.write(JSON.stringify(reply) + "\n");
});
