# A child of the original protocol for the tests of Celery's own behaviour. What a task
# does follows from the last part of its name, so that any prefix can be served.
require "json"

OUT = $stdout.dup
OUT.sync = true
$stdout.reopen($stderr)

def append(path, text)
  File.open(path, "a") { |file| file.syswrite("#{text}\n") }
  File.readlines(path).size
end

# Says that it runs, then waits until the test opens the gate.
def gate(path)
  start = Process.clock_gettime(Process::CLOCK_MONOTONIC)
  append("#{path}.started", Process.pid)
  sleep 0.005 until File.exist?("#{path}.open")
  seconds = Process.clock_gettime(Process::CLOCK_MONOTONIC) - start
  { "pid" => Process.pid, "seconds" => seconds }
end

# Fails until it has been run as often as that.
def flaky(path, succeeds_at)
  runs = append(path, "run")
  raise IOError, "run #{runs} fails" if runs < succeeds_at

  runs
end

TASKS = {
  "echo" => ->(value) { value },
  "add" => ->(x, y) { x + y },
  "sum" => ->(numbers) { numbers.flatten.sum },
  "boom" => ->(*) { raise ArgumentError, "boom" },
  "gate" => ->(path) { gate(path) },
  "mark" => ->(path, text) { append(path, text) },
  # The arguments the other way round, as a callback gets them.
  "note" => ->(value, path) { append(path, value) },
  "time" => ->(*) { Time.now.to_f },
  "flaky" => ->(path, succeeds_at) { flaky(path, succeeds_at) },
  "die" => ->(*) { Process.kill("KILL", Process.pid) },
}

$stdin.each_line("\n") do |line|
  request = JSON.parse(line)
  task = request["payload"]
  kind = task["task"].split(".").last
  reply =
    begin
      if kind == "reply"
        task["args"].first
      elsif (body = TASKS[kind])
        { status: "ok", result: body.call(*task["args"]) }
      else
        seen = task.merge("pid" => Process.pid, "pool" => ENV["POOL"])
        { status: "ok", result: seen }
      end
    rescue StandardError => e
      { status: "error", type: e.class.name, message: e.message, backtrace: e.backtrace }
    end
  OUT.puts(JSON.generate(reply.merge(id: request["id"])))
end
