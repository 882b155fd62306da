// The same work behind HTTP: POST a list of milliseconds and text, get the text back.
const { createServer } = require("node:http");

const server = createServer((request, response) => {
  const parts = [];
  request.on("data", (part) => parts.push(part));
  request.on("end", () => {
    const [ms, text] = JSON.parse(Buffer.concat(parts).toString());
    const end = () => response.end(JSON.stringify(text ?? null));
    if (ms) setTimeout(end, ms);
    else end();
  });
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
