# Says that it has begun by making one file, and replies when another one is there.
require "json"

$stdout.sync = true

$stdin.each_line("\n") do |line|
  request = JSON.parse(line)
  begun, go = request["payload"]["args"]
  File.open(begun, "a") { |file| file.puts Process.pid } if begun
  sleep 0.01 until go.nil? || File.exist?(go)
  puts JSON.generate("id" => request["id"], "status" => "ok", "result" => Process.pid)
end
