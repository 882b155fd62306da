# frozen_string_literal: true

# Serves Celery tasks to a celery-linepool worker.
#
#     require_relative "linepool"
#
#     Linepool.task("billing.charge") do |amount, currency: "EUR"|
#       progress(step: "charging")
#       { charged: amount, currency: currency, attempt: retries + 1 }
#     end
#
#     Linepool.run(inflight: 4)
#
# It needs Ruby 2.7 and nothing else. Require it before what may print: it turns stdout
# into stderr, for subprocesses as well. A block runs as a method of its Job; anything with
# `call` may take its place, and finds it in `Linepool.job`. Keys inside of arguments are
# strings. With Rails require config/environment next: each task runs in its reloader.

require "json"

module Linepool
  if ENV["LINEPOOL_CHANNEL"] == "fd"
    IN = IO.for_fd(3, "r")
    OUT = IO.for_fd(4, "w")
    IN.close_on_exec = OUT.close_on_exec = true
  else
    IN = STDIN.dup
    OUT = STDOUT.dup
    STDIN.reopen(File::NULL) # a subprocess that reads would swallow requests
    STDOUT.reopen(STDERR)
  end
  STDOUT.sync = OUT.binmode.sync = true
  PROTOCOL = ENV.fetch("LINEPOOL_PROTOCOL", 1).to_i
  MAX_LINE = ENV.fetch("LINEPOOL_MAX_LINE", 16 << 20).to_i
  PID = Process.pid
  private_constant :IN, :OUT, :PROTOCOL, :MAX_LINE, :PID

  class PublishError < StandardError; end

  # Raised by a task to end in another way than with a result or an error.
  class Outcome < StandardError
    attr_reader :reply

    def initialize(message = nil, after: nil, requeue: nil)
      super(message)
      @reply = { status: self.class::STATUS, message: message && Linepool.utf8(message),
                 retry_after_secs: after&.to_f, requeue: requeue }.compact
    end
  end

  # Retry counts, Throttle does not; Ignore stores nothing; Reject may be told to
  # `requeue: true`. The first two wait for `after:` so many seconds.
  { Retry: "retry", Throttle: "throttled", Reject: "rejected", Ignore: "ignored",
    Cancelled: "cancelled" }.each do |name, status|
    const_set(name, Class.new(Outcome)).const_set(:STATUS, status)
  end

  # The task that is running. `meta` is all that the worker tells about it; at the Time
  # `deadline`, if there is one, the child is killed.
  class Job
    attr_reader :id, :name, :args, :kwargs, :meta, :retries, :deadline
    attr_accessor :cancel_reason

    def initialize(child, id, payload)
      @child = child
      @id = id
      @name, @args, kwargs = payload.values_at("task", "args", "kwargs")
      @kwargs = kwargs.transform_keys(&:to_sym)
      @meta = payload["meta"] || {}
      @retries = @meta.fetch("retries", 0)
      @deadline = @meta["deadline"] && Time.at(@meta["deadline"])
    end

    def cancelled?
      !cancel_reason.nil?
    end

    # Whether the child is told to end: what runs is waited for, but for how long?
    def stopping?
      @child.leaving?
    end

    def check # in loops that take long
      raise Cancelled if cancelled?
    end

    def progress(**meta)
      @child.event(self, op: "progress", meta: meta)
    end

    def log(message, level: :info)
      event = { op: "log", level: level, message: Linepool.utf8(message) }
      PROTOCOL < 2 ? warn("#{level}: #{message}") : @child.event(self, **event)
    end

    # Sends a task, now or once this one has succeeded; returns its id.
    def publish(task, args: [], kwargs: {}, on_success: false, **options)
      @child.publish(self, task: task, args: args, kwargs: kwargs, options: options,
                           when: on_success ? "success" : "now")
    end
  end

  module Rails # :nodoc: what it wants of those who run its code
    module_function

    def boot
      ::Rails.autoloaders.each(&:eager_load) if app.config.cache_classes
      logger = ::Rails.logger
      return if ActiveSupport::Logger.logger_outputs_to?(logger, STDOUT, STDERR)

      copy = ActiveSupport::Logger.new(STDERR, level: logger.level)
      return logger.broadcast_to(copy) if logger.respond_to?(:broadcast_to)

      logger.extend(ActiveSupport::Logger.broadcast(copy)) # before 7.1
    end

    def wrap(&block)
      return app.reloader.wrap(&block) if app

      yield
    ensure # the reloader does it by itself
      ActiveRecord::Base.connection_handler.clear_active_connections! if
        !app && defined?(ActiveRecord::Base)
    end

    def app
      ::Rails.application if defined?(::Rails.application)
    end
  end

  class Child # :nodoc:
    RESTART = PROTOCOL < 2 ? { status: "throttled", retry_after_secs: 0 } : { status: "restart" }

    def initialize(handlers)
      @handlers = handlers
      @requests = Queue.new
      @running = {}
      @answers = {}
      @lock = Mutex.new # of the channel out, and of the last two
      @threads = []
      @alarm, @bell = IO.pipe
    end

    def serve(inflight)
      trap("TERM") { Process.pid == PID ? leave(:term) : exit(143) }
      trap("INT") {} # "IGNORE" would be inherited by subprocesses
      hello = { language: "ruby", tasks: @handlers.keys, features: %w[cancel ping stop] }
      write(encode(op: "hello", protocol: 2, inflight: inflight, **hello)) if PROTOCOL >= 2
      inflight.times { @threads << Thread.new { work } }
      listen
    ensure
      @requests.close
      synchronize { @deaf = true and @answers.each_value(&:close) }
      @threads.each(&:join)
    end

    def leaving?
      !@leaving.nil?
    end

    # Nothing is written after the reply, not even by a thread that a task left behind.
    def event(job, **fields)
      line = encode(id: job.id, **fields)
      synchronize { write(line) if PROTOCOL >= 2 && @running[job.id].equal?(job) }
    end

    def publish(job, **fields)
      seq = (answer = Queue.new).object_id
      synchronize { @deaf ? answer.close : @answers[seq] = answer }
      event(job, op: "publish", seq: seq, **fields) or
        raise PublishError, "the task has ended, or the worker speaks protocol 1 only"
      message = answer.pop or raise PublishError, "the worker has ended the channel"
      message.fetch("task_id") { raise PublishError, message["error"] }
    ensure
      synchronize { @answers.delete(seq) }
    end

    private

    def listen
      line = String.new
      # Who leaves looks first whether a request has come: it would be lost.
      while (ready, = IO.select([IN, @alarm], nil, nil, (0 if @leaving && @running.empty?)))
        @alarm.readpartial(64) if ready.include?(@alarm)
        chunk = ready.include?(IN) ? IN.readpartial(1 << 16) : ""
        chunk.each_line("\n") do |part|
          next unless (line << part).end_with?("\n")

          take(JSON.parse(line.force_encoding("UTF-8"), max_nesting: false))
          line = String.new
        end
      end
    rescue EOFError # the worker has ended the channel
    end

    def take(message)
      id, seq = message.values_at("id", "seq")
      synchronize do
        case message["op"]
        when nil then @requests << (@running[id] = Job.new(self, id, message["payload"]))
        when "cancel" then @running[id]&.cancel_reason = message["reason"]
        when "answer" then @answers[seq]&.push(message)
        when "ping" then write(encode(op: "pong", seq: seq))
        when "stop" then leave(:stop)
        end
      end
    end

    def leave(why)
      @leaving = why
      @bell.write_nonblock(".", exception: false)
    end

    def work
      while (job = @requests.pop)
        @leaving == :term ? finish(job, reply(job, RESTART)) : run(job)
        exit if Process.pid != PID # it came back from the task that made it
      end
    ensure # a task may kill its thread
      @threads << Thread.new { work } if job && Process.pid == PID
    end

    def run(job)
      line = call(job)
    rescue Exception => e # `exit` and a stack overflow are, too, only the task's end
      raise if Process.pid != PID

      line = reply(job, Linepool.error(e))
    ensure
      line ||= reply(job, status: "error", message: "the task killed its thread")
      finish(job, line) if Process.pid == PID
    end

    def call(job)
      Thread.current.thread_variable_set(:linepool_job, job)
      Rails.wrap do # which may load a task that is new
        handler = @handlers.fetch(job.name) { raise KeyError, "unknown task #{job.name}" }
        reply(job, status: "ok", result: job.send(handler, *job.args, **job.kwargs))
      rescue Outcome => e # here: to Rails what leaves the block is an error
        reply(job, e.reply)
      end
    end

    def reply(job, fields)
      encode(id: job.id, **fields)
    rescue StandardError, SystemStackError => e # too long, no JSON, or without an end
      encode(id: job.id, **Linepool.error(e))
    end

    def finish(job, line)
      synchronize { @running.delete(job.id) and write(line) }
      leave(@leaving) if @leaving
    end

    def encode(fields)
      fields = fields.as_json if fields.respond_to?(:as_json)
      line = JSON.generate(fields, max_nesting: 0)
      line.bytesize > MAX_LINE ? raise(ArgumentError, "over #{MAX_LINE} bytes") : line << "\n"
    end

    def write(line)
      OUT.write(line)
    rescue Errno::EPIPE # the end of IN ends the child
    end

    # A Timeout must not tear a line in two.
    def synchronize(&block)
      Thread.handle_interrupt(Object => :never) { @lock.synchronize(&block) }
    end
  end
  private_constant :Rails, :Child

  @handlers = {}
  class << self
    def task(name, callable = nil, &block)
      block ||= ->(*args, **kwargs) { callable.call(*args, **kwargs) }
      @handlers[name] = Job.send(:define_method, "task #{name}", &block)
    end

    def job # that the current thread runs
      Thread.current.thread_variable_get(:linepool_job)
    end

    # Serves tasks, so many at a time, until the worker or SIGTERM ends it.
    def run(inflight: 1)
      Rails.boot if Rails.app
      require File.join(ENV["LINEPOOL_CHECK"], "check") unless ENV["LINEPOOL_CHECK"].to_s.empty?
      Child.new(@handlers).serve(inflight)
    end

    def error(exc) # :nodoc:
      { status: "error", type: exc.class.to_s, message: utf8(exc.message), backtrace: trace(exc) }
    end

    def utf8(text) # :nodoc:
      text = text.to_s.dup
      text.force_encoding("UTF-8") if text.encoding == Encoding::BINARY
      text.encode("UTF-8", invalid: :replace, undef: :replace).scrub[0, 1 << 16]
    end

    def trace(exc) # :nodoc:
      frames = (exc.backtrace || []).reject { |frame| frame.start_with?(__FILE__) }
      cause = exc.cause
      causes = cause ? ["caused by #{cause.class}: #{utf8(cause.message)}", *trace(cause)] : []
      frames.first(100).map { |frame| utf8(frame) } + causes
    end
  end
end
