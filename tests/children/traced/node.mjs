// A Node child that uses OpenTelemetry's own packages: each task is a span, whose parent
// is the worker's, and what the task does is a span in it.
import { run, task } from './linepool.mjs';
import { context, propagation, SpanKind, trace } from '@opentelemetry/api';
import { OTLPTraceExporter } from '@opentelemetry/exporter-trace-otlp-proto';
import { resourceFromAttributes } from '@opentelemetry/resources';
import { BatchSpanProcessor, NodeTracerProvider } from '@opentelemetry/sdk-trace-node';

// Its address is in OTEL_EXPORTER_OTLP_ENDPOINT.
const exporter = new OTLPTraceExporter();
const provider = new NodeTracerProvider({
  resource: resourceFromAttributes({ 'service.name': 'renderer' }),
  spanProcessors: [new BatchSpanProcessor(exporter, { scheduledDelayMillis: 100 })],
});
provider.register(); // W3C's traceparent, tracestate and baggage
const tracer = trace.getTracer('renderer');

// What a handler does is in the span of its task.
const traced = (handler) => (given, ...args) => {
  const parent = propagation.extract(context.active(), given.meta);
  const options = { kind: SpanKind.CONSUMER, attributes: { 'messaging.message.id': given.id } };
  return tracer.startActiveSpan(given.name, options, parent, async (span) => {
    try {
      return await handler(given, ...args);
    } finally {
      span.end();
    }
  });
};

task('node.render', traced(async (given, charged) =>
  tracer.startActiveSpan('draw', (span) => {
    span.end();
    return `a receipt over ${charged}`;
  })));

run({ inflight: 4 });
