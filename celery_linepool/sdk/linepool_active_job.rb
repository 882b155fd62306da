# frozen_string_literal: true

# ActiveJob over Celery, and a client that sends Celery tasks from any Ruby process.
#
#     # config/application.rb
#     require_relative "../vendor/linepool_active_job"
#     config.active_job.queue_adapter = :celery_linepool
#
#     # in the child, before Linepool.run
#     Linepool.serve_jobs
#
# A job is the Celery task of its class's name, and its arguments are the task's: Python calls
# `send_task("ChargeJob", args=[42])`, and gets what `perform` returns, or null if that is no
# JSON. What JSON has no form for travels as ActiveJob serializes it. In a task
# `perform_later` goes through the worker. Elsewhere it goes to the broker that
# CELERY_BROKER_URL names, by the gem redis or bunny. It needs Rails 6.1.

require "active_job"
require "active_support/duration"
require "active_support/json"
require "json"
require "securerandom"
require "socket"

module Linepool
  # Sends tasks to a broker. `default_queue` is Celery's task_default_queue; other options
  # are those of the broker's class.
  class Client
    def initialize(url = ENV.fetch("CELERY_BROKER_URL"),
                   default_queue: ENV.fetch("CELERY_TASK_DEFAULT_QUEUE", "celery"), **options)
      @url = url
      @default_queue = default_queue
      @options = options
      @lock = Mutex.new
    end

    # The id of the new task. `eta` is a Time, `countdown` seconds, `expires` one or the other.
    def send_task(name, **options)
      send_tasks([[name, options]]).first
    end

    def send_tasks(tasks)
      messages = tasks.map { |name, options| Message.new(name, queue: @default_queue, **options) }
      @lock.synchronize { broker.deliver(messages) }
      messages.map(&:id)
    end

    private

    def broker # of this process: a fork must not share a connection
      return @broker if @pid == Process.pid

      @broker = connect
      @pid = Process.pid
      @broker
    end

    def connect
      case @url
      when /\Arediss?:/ then RedisBroker.new(@url, **@options)
      when /\A(py)?amqps?:/ then AMQPBroker.new(@url.delete_prefix("py"), **@options)
      else raise ArgumentError, "no redis or amqp URL: #{@url}"
      end
    end
  end

  # Celery's message protocol 2.
  class Message # :nodoc:
    NO_CALLBACKS = '{"callbacks": null, "errbacks": null, "chain": null, "chord": null}'
    TYPE = "application/json"

    attr_reader :id, :queue, :priority, :headers, :body

    def initialize(name, queue:, args: [], kwargs: {}, task_id: SecureRandom.uuid, priority: nil,
                   eta: nil, countdown: nil, expires: nil, time_limit: nil, soft_time_limit: nil,
                   ignore_result: false, headers: {})
      @id = task_id
      @queue = queue
      @priority = (priority || 0).to_i
      args, kwargs = [args, kwargs].map { |value| JSON.generate(value.as_json, max_nesting: 0) }
      @body = "[#{args}, #{kwargs}, #{NO_CALLBACKS}]"
      @headers = {
        "lang" => "ruby", "task" => name, "id" => id, "root_id" => id, "parent_id" => nil,
        "group" => nil, "group_index" => nil, "shadow" => nil, "retries" => 0,
        "eta" => time(eta || countdown), "expires" => time(expires),
        "timelimit" => [time_limit, soft_time_limit], "ignore_result" => ignore_result,
        "argsrepr" => args[0, 1024], "kwargsrepr" => kwargs[0, 1024],
        "origin" => "#{Process.pid}@#{Socket.gethostname}", "replaced_task_nesting" => 0,
        "stamped_headers" => nil, "stamps" => {}, **headers
      }
    end

    def self.text(time)
      time.getutc.strftime("%FT%T.%6N+00:00")
    end

    private

    def time(value)
      value = Time.now + value if value.is_a?(Numeric)
      value && Message.text(value)
    end
  end

  # `key_prefix` and `priority_steps` are Celery's broker_transport_options global_keyprefix
  # and priority_steps; other options are those of Redis.new.
  class RedisBroker # :nodoc:
    SEPARATOR = "\x06\x16"

    def initialize(url, key_prefix: "", priority_steps: [0, 3, 6, 9], **options)
      require "redis"
      @redis = Redis.new(url: url, **options)
      @key_prefix = key_prefix
      @priority_steps = priority_steps.sort
    end

    def deliver(messages)
      @redis.pipelined do |pipeline|
        messages.each { |message| pipeline.lpush(key(message), JSON.generate(envelope(message))) }
      end
    end

    private

    def key(message)
      priority = message.priority.clamp(0, 9)
      step = @priority_steps.reverse.find { |at_least| at_least <= priority }
      "#{@key_prefix}#{message.queue}#{"#{SEPARATOR}#{step}" if step&.positive?}"
    end

    def envelope(message)
      { "body" => [message.body].pack("m0"), "headers" => message.headers,
        "content-type" => Message::TYPE, "content-encoding" => "utf-8",
        "properties" => {
          "correlation_id" => message.id, "reply_to" => "", "delivery_mode" => 2,
          "delivery_info" => { "exchange" => "", "routing_key" => message.queue },
          "priority" => message.priority, "body_encoding" => "base64",
          "delivery_tag" => SecureRandom.uuid
        } }
    end
  end

  # A message is sent when the broker has confirmed it. A queue that is not there is declared
  # as Celery does, with `queue_arguments`; other options are those of Bunny.new.
  class AMQPBroker # :nodoc:
    def initialize(url, queue_arguments: {}, **options)
      require "bunny"
      @url = url.sub(%r{(?<=[^:/])//?\z}, "/%2F") # as Celery writes the virtual host /
      @queue_arguments = queue_arguments
      # With a thread that reads it would raise in ours whatever that is doing.
      @options = { threaded: false, automatically_recover: false, heartbeat: 10, **options,
                   session_error_handler: Kernel }
    end

    def deliver(messages)
      connect unless (reused = @channel)
      returned = publish(messages)
      returned.map(&:queue).uniq.each { |queue| declare(queue) }
      raise "RabbitMQ has no queue #{returned.first.queue}" if publish(returned).any?
    rescue Exception => e # half a message may be sent
      disconnect
      raise if !reused || !e.is_a?(StandardError) || e.is_a?(Timeout::Error)

      retry # the connection may have been closed long ago
    end

    private

    def connect
      @session = Bunny.new(@url, @options).start
      channel = @session.create_channel
      channel.confirm_select
      @exchange = channel.default_exchange
      @exchange.on_return { |_, properties, _| @returned << properties.correlation_id }
      @channel = channel
    end

    def disconnect
      @channel = nil
      @session&.close
    rescue StandardError # it is closed already
    end

    # Returns those for which there is no queue.
    def publish(messages)
      return [] if messages.empty?

      @returned = []
      messages.each do |message|
        @exchange.publish(
          message.body, routing_key: message.queue, mandatory: true, persistent: true,
                        content_type: Message::TYPE, content_encoding: "utf-8",
                        correlation_id: message.id, reply_to: "",
                        priority: message.priority, headers: message.headers
        )
      end
      @channel.wait_for_confirms or raise "RabbitMQ has refused a message"
      messages.select { |message| @returned.include?(message.id) }
    end

    def declare(queue)
      @channel.queue(queue, durable: true, arguments: @queue_arguments)
    end
  end
  private_constant :Message, :RedisBroker, :AMQPBroker

  # One run of an ActiveJob: that of the task which is running.
  class JobRun # :nodoc:
    PLAIN = [NilClass, TrueClass, FalseClass, Symbol, Numeric, Date, Time,
             ActiveSupport::Duration].freeze
    KEYWORDS = "_aj_ruby2_keywords"

    class << self
      def current
        Thread.current[:linepool_job_run]
      end

      # The name and the options of the task that a job is, due at a time or now.
      def task(job, due)
        data = job.serialize
        args, kwargs = split(data.delete("arguments"))
        options = { queue: queue(job), priority: job.priority, eta: due && Time.at(due).utc }
        # As text: a key in a table of RabbitMQ has 255 bytes at most.
        headers = { "active_job" => JSON.generate(data) }
        [job.class.name, { args: args, kwargs: kwargs, task_id: job.job_id, headers: headers,
                           **options.compact }]
      end

      private

      def split(arguments)
        *args, last = arguments
        keywords = last[KEYWORDS] if last.is_a?(Hash)
        # JSON could not tell symbols from strings, if there were both.
        return [arguments, {}] if keywords.nil? || keywords.size < last.size - 1

        [args, last.except(KEYWORDS)]
      end

      # The default queue is Celery's, which knows how to route it.
      def queue(job)
        job.queue_name unless job.queue_name == ActiveJob::Base.default_queue_name
      end
    end

    def initialize(task)
      @task = task
      @header = task.meta.dig("headers", "active_job")
    end

    def call
      Thread.current[:linepool_job_run] = self
      value = ActiveJob::Base.execute(data)
      raise @outcome if @outcome

      value if plain?(value)
    ensure
      Thread.current[:linepool_job_run] = nil
    end

    # Whether it is this job that is to be enqueued, as retry_on does. If Rails sent it, it is
    # sent anew under its id. If Python did, Celery retries it, so that what comes after it in
    # a chain still does; that counts towards max_retries.
    def again?(job, due)
      return false if job.job_id != @task.id

      if @header
        name, options = JobRun.task(job, due)
        Linepool.send_task(name, **options)
        @outcome = Ignore.new("enqueued again")
      else
        @outcome = Retry.new($! && "#{$!.class}: #{$!.message}", after: [due.to_f - Time.now.to_f, 0].max)
      end
      true
    end

    private

    def data
      data = @header ? JSON.parse(@header) : { "queue_name" => @task.meta["queue"] }
      executions = data.fetch("executions", 0) + @task.retries
      data.merge("job_class" => @task.name, "job_id" => @task.id, "provider_job_id" => @task.id,
                 "arguments" => arguments, "executions" => executions)
    end

    def arguments
      return @task.args if @task.kwargs.empty?

      kwargs = @task.kwargs.transform_keys(&:to_s)
      [*@task.args, { **kwargs, KEYWORDS => kwargs.keys }]
    end

    # What `perform` returns is often left there by chance: a mail, a file's bytes.
    def plain?(value)
      case value
      when String then value.encode("UTF-8").valid_encoding?
      when Array then value.all? { |item| plain?(item) }
      when Hash then value.each_pair.all? { |pair| plain?(pair) }
      else PLAIN.any? { |type| type === value }
      end
    rescue EncodingError
      false
    end
  end
  private_constant :JobRun

  class << self
    attr_writer :client

    def client
      @client ||= Client.new
    end

    # Sends a task from wherever this is, and returns its id.
    def send_task(name, **options)
      send_tasks([[name, options]]).first
    end

    def send_tasks(tasks) # :nodoc:
      running = job if respond_to?(:job)
      return client.send_tasks(tasks) unless running

      tasks.map do |name, options|
        options = options.transform_values { |o| o.is_a?(Time) ? Message.text(o) : o }
        running.publish(name, **options)
      end
    end

    def enqueue(jobs) # :nodoc: each with the time when it is due, or nil
      jobs = jobs.reject { |job, due| JobRun.current&.again?(job, due) }
      send_tasks(jobs.map { |job, due| JobRun.task(job, due) })
    end

    # Makes every job of the application a task, and those that a reload brings.
    def serve_jobs
      serve_new_jobs
      ::Rails.application.reloader.to_prepare { Linepool.serve_new_jobs }
    end

    def serve_new_jobs # :nodoc:
      ::Rails.autoloaders.each(&:eager_load)
      ActiveJob::Base.descendants.each do |job|
        next if job.name.nil? || @handlers.key?(job.name)
        next if job.instance_method(:perform).owner == ActiveJob::Execution

        task(job.name) { |*, **| JobRun.new(self).call }
      end
    end
  end
end

module ActiveJob
  module QueueAdapters
    # Rails' name for what `config.active_job.queue_adapter = :celery_linepool` names.
    class CeleryLinepoolAdapter < (const_defined?(:AbstractAdapter) ? AbstractAdapter : Object)
      def enqueue(job)
        enqueue_at(job, nil)
      end

      def enqueue_at(job, timestamp)
        Linepool.enqueue([[job, timestamp]])
        job.provider_job_id = job.job_id
      end

      def enqueue_all(jobs)
        Linepool.enqueue(jobs.map { |job| [job, job.scheduled_at&.to_f] })
        jobs.each { |job| job.provider_job_id = job.job_id }
        jobs.each { |job| job.successfully_enqueued = true if job.respond_to?(:successfully_enqueued=) }
        jobs.size
      end

      def enqueue_after_transaction_commit? # asked by Rails 7.2
        true
      end

      # Asked by a job with steps, from Rails 8.1 on: it goes on in another child.
      def stopping?(_job = nil)
        running = Linepool.job if Linepool.respond_to?(:job)
        running ? running.stopping? : false
      end
    end
  end
end
