# A minimal child of the original protocol: no hello, one reply line per request.
# It answers with what it was asked, so that a test can compare both ends.
require "json"

$stdout.sync = true

$stdin.each_line("\n") do |line|
  request = JSON.parse(line)
  result = request.fetch("payload").merge("pid" => Process.pid)
  $stdout.puts(JSON.generate("id" => request["id"], "status" => "ok", "result" => result))
end
