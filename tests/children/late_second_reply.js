// Says the reply to the last request again when it is asked the next.
const lines = require("readline").createInterface({ input: process.stdin });
let last = "";

lines.on("line", (line) => {
  const { id, payload } = JSON.parse(line);
  const result = [payload.args[0], process.pid];
  if (last) process.stdout.write(last);
  else process.stdout.write((last = JSON.stringify({ id, status: "ok", result }) + "\n"));
});
