# Ordinary, and at the service of tests of its life: says who it is, and can be made to
# work until a file is there, to use memory, or to end.
require "json"

OUT = STDOUT.dup
OUT.sync = true
STDOUT.reopen(STDERR)

KEPT = []

Signal.trap("USR1") { raise "told to hurry" }
Signal.trap("QUIT") { warn "it hangs here", Thread.main.backtrace }

def write(path, line)
  File.open(path, "a") { |file| file.write("#{line}\n") }
end

def answer(payload)
  task, args, meta = payload.values_at("task", "args", "meta")
  case task.split(".").last
  when "pid" then Process.pid
  when "work"
    sleep 0.01
    write(args[0], "#{args[1]} #{Process.pid}")
    args[1]
  when "late", "early"
    sleep rand * 0.03
    write(args[0], [*args[1..], Process.pid].join(" "))
    sleep rand * 0.03
  when "gate"
    write(args[0], Process.pid)
    sleep 0.01 until File.exist?(args[1])
    Process.pid
  when "crash"
    write(args[0], Process.pid)
    warn "about to crash"
    Process.kill(args[1] || "KILL", Process.pid)
    sleep
  when "once"
    write(args[0], Process.pid)
    if File.readlines(args[0]).size == 1
      Process.kill(args[1], Process.pid) if args[1]
      sleep
    end
    "second"
  when "die"
    write(args[0], JSON.generate(crashes: meta["crashes"]))
    sleep 0.01 until args[1].nil? || File.exist?(args[1])
    warn "about to die"
    Process.kill("KILL", Process.pid)
    sleep
  when "grow"
    KEPT << ("x" * (args[0] * 1024 * 1024))
    Process.pid
  when "swallow"
    KEPT << ("x" * (args[0] * 1024 * 1024))
    sleep
  else raise ArgumentError, "no task #{task}"
  end
end

STDIN.each_line("\n") do |line|
  request = JSON.parse(line)
  reply =
    begin
      { status: "ok", result: answer(request["payload"]) }
    rescue StandardError => e
      { status: "error", type: e.class.name, message: e.message, backtrace: e.backtrace }
    end
  OUT.puts JSON.generate(reply.merge(id: request["id"]))
end
