# Ordinary, and at the service of tests of its life: says who it is, and can be made to
# work until a file is there, to use memory, or to end.
require "json"

OUT = STDOUT.dup
OUT.sync = true
STDOUT.reopen(STDERR)

KEPT = []

def answer(task, args)
  case task.split(".").last
  when "pid" then Process.pid
  when "gate"
    File.open(args[0], "a") { |file| file.puts Process.pid }
    sleep 0.01 until File.exist?(args[1])
    Process.pid
  when "crash"
    File.open(args[0], "a") { |file| file.puts Process.pid }
    warn "about to crash"
    Process.kill(args[1] || "KILL", Process.pid)
    sleep
  when "grow"
    KEPT << ("x" * (args[0] * 1024 * 1024))
    Process.pid
  else raise ArgumentError, "no task #{task}"
  end
end

STDIN.each_line("\n") do |line|
  request = JSON.parse(line)
  payload = request["payload"]
  reply =
    begin
      { status: "ok", result: answer(payload["task"], payload["args"]) }
    rescue StandardError => e
      { status: "error", type: e.class.name, message: e.message, backtrace: e.backtrace }
    end
  OUT.puts JSON.generate(reply.merge(id: request["id"]))
end
