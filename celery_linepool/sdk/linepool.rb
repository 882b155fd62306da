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
# This file needs Ruby 2.7 and nothing else; copy it. Require it before what may print:
# it turns stdout into stderr, for subprocesses as well. A block runs as a method of its
# Job, so `return` ends it; anything with `call` may take its place, and finds its job in
# `Linepool.job`. Keys inside of arguments are strings. With Rails require
# config/environment next: each task then runs in the application's reloader.

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
    STDOUT.sync = true
  end
  IN.set_encoding("UTF-8")
  OUT.binmode.sync = true
  PROTOCOL = ENV.fetch("LINEPOOL_PROTOCOL", 1).to_i
  MAX_LINE = ENV.fetch("LINEPOOL_MAX_LINE", 16 << 20).to_i
  PID = Process.pid
  private_constant :IN, :OUT, :PROTOCOL, :MAX_LINE, :PID

  PublishError = Class.new(StandardError)

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

  # The task that is running. `meta` is all that the worker tells about it.
  class Job
    attr_reader :id, :name, :args, :kwargs, :meta
    attr_accessor :cancel_reason

    def initialize(child, id, payload)
      @child = child
      @id = id
      @name, @args, @kwargs = payload.values_at("task", "args", "kwargs")
      @meta = payload["meta"] || {}
    end

    def retries
      meta.fetch("retries", 0)
    end

    def deadline # the Time at which the child is killed, or nil
      meta["deadline"] && Time.at(meta["deadline"])
    end

    def cancelled?
      !cancel_reason.nil?
    end

    def check # in loops that take long
      raise Cancelled if cancelled?
    end

    def progress(**meta)
      @child.event(self, op: "progress", meta: meta) if PROTOCOL >= 2
    end

    def log(message, level: :info)
      return warn("#{level}: #{message}") if PROTOCOL < 2

      @child.event(self, op: "log", level: level, message: Linepool.utf8(message))
    end

    # Sends a task, now or once this one has succeeded; returns its id.
    def publish(task, args: [], kwargs: {}, on_success: false, **options)
      raise PublishError, "the worker does not speak protocol 2" if PROTOCOL < 2

      @child.publish(self, task: task, args: args, kwargs: kwargs, options: options,
                           when: on_success ? "success" : "now")
    end

    def perform(handler) # :nodoc:
      handler = method(handler) if handler.is_a?(Symbol)
      handler.call(*args, **kwargs.transform_keys(&:to_sym))
    end
  end

  module Rails # :nodoc: what it wants of those who run its code
    module_function

    def boot
      return unless app

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
    def initialize(handlers)
      @handlers = handlers
      @requests = Queue.new
      @running = {}
      @answers = {}
      @lock = Mutex.new # of the channel out, and of the last two
    end

    def serve(inflight)
      trap("TERM") { @requests.close }
      trap("INT") {} # "IGNORE" would be inherited by subprocesses
      greet(inflight) if PROTOCOL >= 2
      Thread.new { read }
      threads = Array.new(inflight - 1) { Thread.new { work } }
      work
    ensure
      @requests.close
      threads&.each(&:join)
    end

    # Nothing is written after the reply, not even by a thread that a task left behind.
    def event(job, **fields)
      synchronize { write(id: job.id, **fields) if @running[job.id].equal?(job) }
    end

    def publish(job, **fields)
      seq = (answer = Queue.new).object_id
      synchronize { @deaf ? answer.close : @answers[seq] = answer }
      event(job, op: "publish", seq: seq, **fields)
      message = answer.pop or raise PublishError, "the worker has ended the channel"
      raise PublishError, message["error"] if message["error"]

      message["task_id"]
    ensure
      synchronize { @answers.delete(seq) }
    end

    private

    def greet(inflight)
      write(op: "hello", protocol: 2, language: "ruby", tasks: @handlers.keys,
            inflight: inflight, features: %w[cancel ping stop])
    end

    def read
      IN.each_line("\n") do |line| # a last one without its end is not to be trusted
        take(JSON.parse(line, max_nesting: false)) if line.end_with?("\n")
      end
    ensure
      @requests.close
      synchronize { @deaf = true and @answers.each_value(&:close) }
    end

    def take(message)
      id, seq = message.values_at("id", "seq")
      case message["op"]
      when nil then enqueue(Job.new(self, id, message["payload"]))
      when "cancel" then synchronize { @running[id]&.cancel_reason = message["reason"] }
      when "answer" then synchronize { @answers[seq]&.push(message) }
      when "ping" then synchronize { write(op: "pong", seq: seq) }
      when "stop" then @requests.close
      end
    end

    def enqueue(job)
      synchronize { @running[job.id] = job }
      @requests.push(job)
    rescue ClosedQueueError # SIGTERM came first: another child may run it at once
      finish(job, Throttle.new(after: 0).reply)
    end

    def work
      while (job = @requests.pop)
        run(job)
        exit if Process.pid != PID # it came back from the task that made it
      end
    end

    def run(job)
      reply = { status: "error", message: "the task killed its thread" }
      reply = { status: "ok", result: call(job) }
    rescue Exception => e # `exit` and a stack overflow are, too, only the task's end
      raise if Process.pid != PID

      reply = e.is_a?(Outcome) ? e.reply : Linepool.error(e)
    ensure
      finish(job, reply) if Process.pid == PID
    end

    def call(job)
      handler = @handlers.fetch(job.name) { raise KeyError, "unknown task #{job.name}" }
      Thread.current.thread_variable_set(:linepool_job, job)
      Rails.wrap do
        result = job.perform(handler)
        result.respond_to?(:as_json) ? result.as_json : result
      end
    end

    def finish(job, reply)
      synchronize do
        @running.delete(job.id)
        write(id: job.id, **reply)
      rescue StandardError, SystemStackError => e # too long, no JSON, or without an end
        write(id: job.id, **Linepool.error(e))
      end
    end

    def write(**fields)
      line = JSON.generate(fields, max_nesting: 0) << "\n"
      raise ArgumentError, "a line over #{MAX_LINE} bytes" if line.bytesize > MAX_LINE + 1

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
      @handlers[name] = callable || Job.send(:define_method, "task #{name}", &block)
    end

    def job # that the current thread runs
      Thread.current.thread_variable_get(:linepool_job)
    end

    # Serves tasks, so many at a time, until the worker or SIGTERM ends it.
    def run(inflight: 1)
      Rails.boot
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
