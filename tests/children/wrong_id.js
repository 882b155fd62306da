// Answers, but with the id of another task.
require('readline')
  .createInterface({ input: process.stdin })
  .on('line', () => {
    process.stdout.write('{"id":"somebody-else","status":"ok"}\n');
  });
