# A Ruby child without OpenTelemetry's gem: it reads the context that the worker hands
# down, and sends its span to the collector as OTLP in JSON by itself.
require_relative "linepool"
require "net/http"
require "securerandom"
require "uri"

def attribute(key, value)
  { key: key, value: { stringValue: value } }
end

def now
  Process.clock_gettime(Process::CLOCK_REALTIME, :nanosecond).to_s
end

def export(span)
  resource = { attributes: [attribute("service.name", "billing")] }
  spans = { resourceSpans: [{ resource: resource, scopeSpans: [{ spans: [span] }] }] }
  uri = URI("#{ENV.fetch('OTEL_EXPORTER_OTLP_ENDPOINT')}/v1/traces")
  Net::HTTP.post(uri, JSON.generate(spans), "Content-Type" => "application/json").value
end

def traced(name)
  _, trace, parent, flags = Linepool.job.meta.fetch("traceparent").split("-")
  return yield if flags.hex.even? # not sampled

  consumer = 5
  span = { traceId: trace, parentSpanId: parent, spanId: SecureRandom.hex(8), name: name,
           kind: consumer, startTimeUnixNano: now,
           attributes: [attribute("messaging.message.id", Linepool.job.id)] }
  begin
    yield
  ensure
    export(span.merge(endTimeUnixNano: now))
  end
end

Linepool.task("ruby.charge") do |invoice|
  traced("ruby.charge") { invoice * 10 }
end

Linepool.run
