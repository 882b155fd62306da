// Gives the replies that the task asks for, one at each run; the last one for ever.
// Every run adds its meta to a file, which is how it counts them.
const fs = require("fs");
const lines = require("readline").createInterface({ input: process.stdin });

lines.on("line", (line) => {
  const { id, payload } = JSON.parse(line);
  const { runs, replies } = payload.kwargs;
  fs.appendFileSync(runs, JSON.stringify(payload.meta) + "\n");
  const run = fs.readFileSync(runs, "utf8").split("\n").length - 1;
  const reply = replies[run - 1] ?? replies[replies.length - 1];
  process.stdout.write(JSON.stringify({ id, ...reply }) + "\n");
});
