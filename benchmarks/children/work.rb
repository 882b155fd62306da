# Serves bench.work: sleeps so many milliseconds, and gives the text back.
require "json"

$stdout.sync = true
$stdin.each_line do |line|
  request = JSON.parse(line)
  ms, text = request["payload"]["args"]
  sleep(ms / 1000.0) if ms && ms > 0
  puts JSON.generate({ id: request["id"], status: "ok", result: text })
end
