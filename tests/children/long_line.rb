# Replies once with a line of more than a mebibyte.
require "json"

$stdout.sync = true

$stdin.each_line("\n") do |line|
  request = JSON.parse(line)
  mark = request.dig("payload", "args", 0)
  result = Process.pid
  unless File.exist?(mark)
    File.write(mark, "")
    warn "grandchild #{spawn('sleep', '600')}"
    result = "long" * (1 << 18)
  end
  $stdout.puts(JSON.generate("id" => request["id"], "status" => "ok", "result" => result))
end
