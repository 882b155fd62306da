<?php
/**
 * Serves Celery tasks to a celery-linepool worker. Needs PHP 8.0 and, to finish a task
 * when SIGTERM comes, ext-pcntl.
 *
 *     require __DIR__ . '/linepool.php';
 *     $child = new Linepool\Child();
 *     $child->task('billing.charge', fn (int $amount, string $currency = 'EUR') => ...);
 *     $child->run();
 *
 * If a handler's first parameter is a Linepool\Task, it gets that before the arguments.
 * Integers beyond 64 bits come as strings. Load this file first: it closes the constants
 * STDIN and STDOUT, and what is echoed or written to php://stdout goes to stderr. `exit`
 * in a handler, and what PHP calls fatal, is the error of its task; then the child ends.
 */
declare(strict_types=1);

namespace Linepool;

/** Thrown by a handler to end its task in another way than with a result or an error. */
final class Outcome extends \Exception
{
    private function __construct(public array $reply)
    {
        parent::__construct($reply['status']);
    }

    /** Run it again, after so many seconds if they are given, as long as it may be. */
    public static function retry(string $message = '', int|float|null $after = null): self
    {
        $after = $after === null ? [] : ['retry_after_secs' => $after];
        return new self(['status' => 'retry', 'message' => $message] + $after);
    }

    /** Run it again later; that uses up no retry. */
    public static function throttle(int|float $after = 60): self
    {
        return new self(['status' => 'throttled', 'retry_after_secs' => $after]);
    }

    /** Reject its message, or have the broker deliver it again. */
    public static function reject(bool $requeue = false): self
    {
        return new self(['status' => 'rejected', 'requeue' => $requeue]);
    }

    /** Store nothing. */
    public static function ignore(): self
    {
        return new self(['status' => 'ignored']);
    }

    /** The task gave up because it was cancelled; Task::check() throws it. */
    public static function cancelled(): self
    {
        return new self(['status' => 'cancelled']);
    }
}

/** The task that is running. `$meta` is all that the worker tells about it. */
final class Task
{
    public int $retries;
    /** Seconds since 1970; the child is killed then. */
    public ?float $deadline;
    /** @internal */
    public ?string $reason = null;

    public function __construct(
        private Child $child,
        public string $id,
        public string $name,
        public array $meta,
    ) {
        $this->retries = $meta['retries'] ?? 0;
        $this->deadline = $meta['deadline'] ?? null;
    }

    /** null, or why to end soon: 'soft_time_limit', 'revoked' or 'shutdown'. */
    public function cancelled(): ?string
    {
        $this->child->listen(0);
        return $this->reason;
    }

    /** Throws Cancelled if the task should end: for loops that take long. */
    public function check(): void
    {
        if ($this->cancelled() !== null) {
            throw Outcome::cancelled();
        }
    }

    public function progress(array $meta): void
    {
        $this->child->event($this, ['op' => 'progress', 'meta' => (object) $meta]);
    }

    public function log(string $message, string $level = 'info'): void
    {
        $this->child->event($this, ['op' => 'log', 'level' => $level, 'message' => $message]);
    }

    /** Sends a task, now or once this one has succeeded. Returns its id. */
    public function publish(
        string $task,
        array $args = [],
        array $kwargs = [],
        array $options = [],
        bool $onSuccess = false,
    ): ?string {
        return $this->child->publish($this, [
            'task' => $task, 'args' => $args, 'kwargs' => (object) $kwargs,
            'options' => (object) $options, 'when' => $onSuccess ? 'success' : 'now',
        ]);
    }
}

final class Child
{
    private const FLAGS = JSON_THROW_ON_ERROR | JSON_UNESCAPED_UNICODE | JSON_UNESCAPED_SLASHES
        | JSON_PRESERVE_ZERO_FRACTION;
    private const FATAL = E_ERROR | E_CORE_ERROR | E_COMPILE_ERROR | E_USER_ERROR;
    private static $in;
    private static $out;
    private static array $instead;

    private array $handlers = [];
    private array $requests = [];
    private array $answers = [];
    private array $parts = [];
    private ?Task $current = null;
    private bool $leaving = false;
    private bool $deaf = false;
    private int $seq = 0;
    private int $protocol;
    private int $maxLine;

    /** @param bool $objects have {} as a stdClass, so that it stays an object */
    public function __construct(private bool $objects = false)
    {
        $this->protocol = (int) (getenv('LINEPOOL_PROTOCOL') ?: 1);
        $this->maxLine = (int) (getenv('LINEPOOL_MAX_LINE') ?: 16 * 1024 * 1024);
    }

    /** @internal */
    public static function takeChannel(): void
    {
        $fds = getenv('LINEPOOL_CHANNEL') === 'fd' ? [3, 4] : [0, 1];
        self::$in = fopen("php://fd/$fds[0]", 'r');
        self::$out = fopen("php://fd/$fds[1]", 'w');
        stream_set_read_buffer(self::$in, 0); // stream_select() looks into no buffer
        if ($fds === [0, 1]) { // a stream that is opened takes the lowest free descriptor
            fclose(STDIN);
            self::$instead = [fopen('/dev/null', 'r')];
            fclose(STDOUT);
            self::$instead[] = fopen('php://fd/2', 'w');
        }
    }

    /** Registers a handler by the task's name. */
    public function task(string $name, callable $handler): self
    {
        $this->handlers[$name] = \Closure::fromCallable($handler);
        return $this;
    }

    /** Serves tasks until the worker or SIGTERM ends it. */
    public function run(): void
    {
        register_shutdown_function(fn () => $this->replyAtExit());
        if (function_exists('pcntl_signal')) {
            pcntl_async_signals(true);
            pcntl_signal(SIGINT, fn () => null); // SIG_IGN would be inherited by subprocesses
            pcntl_signal(SIGTERM, fn () => $this->leaving = true);
        }
        if ($this->protocol >= 2) {
            // No ping: while a handler runs there is nobody to answer it.
            $this->write(['op' => 'hello', 'protocol' => 2, 'language' => 'php',
                'tasks' => array_keys($this->handlers), 'features' => ['cancel', 'stop']]);
        }
        do {
            while ($request = array_shift($this->requests)) {
                $this->serve($request['id'], $request['payload']);
            }
            // Not for ever: a signal may have come just before.
        } while (!$this->leaving && ($this->listen(1) || $this->requests));
    }

    private function serve(string $id, array $payload): void
    {
        $this->current = new Task($this, $id, $payload['task'], $payload['meta'] ?? []);
        try {
            $handler = $this->handlers[$payload['task']]
                ?? throw new \BadFunctionCallException("unknown task {$payload['task']}");
            $type = ((new \ReflectionFunction($handler))->getParameters()[0] ?? null)?->getType();
            $first = (string) $type === Task::class ? [$this->current] : [];
            $result = $handler(...$first, ...$payload['args'] ?? [], ...$payload['kwargs'] ?? []);
            $reply = ['status' => 'ok', 'result' => $result];
        } catch (Outcome $outcome) {
            $reply = $outcome->reply;
        } catch (\Throwable $e) {
            $reply = self::describe($e);
        }
        $this->reply($reply);
    }

    private function reply(array $reply): void
    {
        $id = ['id' => $this->current->id];
        $this->current = null;
        try {
            $this->write($id + $reply);
        } catch (\Exception $e) { // no JSON, or too long
            $this->write($id + self::describe($e));
        }
    }

    private function replyAtExit(): void
    {
        if ($this->current) {
            $fatal = error_get_last();
            $fatal = $fatal && $fatal['type'] & self::FATAL ? $fatal : null;
            $this->reply($fatal
                ? ['status' => 'error', 'type' => 'FatalError', 'message' => $fatal['message'],
                    'backtrace' => ["{$fatal['file']}({$fatal['line']})"]]
                : ['status' => 'error', 'type' => 'Exit', 'message' => 'exit in a task']);
        }
    }

    private static function describe(\Throwable $e): array
    {
        $reply = ['status' => 'error', 'type' => $e::class, 'message' => $e->getMessage()];
        for ($text = ''; $e; $e = $e->getPrevious()) {
            $text .= $text ? "\ncaused by " . $e::class . ": {$e->getMessage()}\n" : '';
            $text .= "{$e->getFile()}({$e->getLine()})\n{$e->getTraceAsString()}";
        }
        return $reply + ['backtrace' => explode("\n", $text)];
    }

    /** @internal */
    public function event(Task $task, array $event): void
    {
        if ($this->protocol >= 2 && $task === $this->current) {
            $this->write(['id' => $task->id] + $event);
        } elseif ($event['op'] === 'log') {
            error_log("{$event['level']}: {$event['message']}");
        }
    }

    /** @internal */
    public function publish(Task $task, array $event): ?string
    {
        if ($this->protocol < 2 || $task !== $this->current) {
            throw new \LogicException('only a task that runs publishes, and in protocol 2');
        }
        $seq = ++$this->seq;
        $this->event($task, ['op' => 'publish', 'seq' => $seq] + $event);
        while (!isset($this->answers[$seq])) {
            $this->listen(60) || $this->answers[$seq] ??= ['error' => 'the channel has ended'];
        }
        $answer = $this->answers[$seq];
        $this->answers = [];
        return isset($answer['error'])
            ? throw new \RuntimeException("not published: {$answer['error']}")
            : $answer['task_id'];
    }

    /** @internal Hears what has come, and waits for it so long; false if nothing will come. */
    public function listen(int $seconds): bool
    {
        $ready = [self::$in];
        $none = null;
        if ($this->deaf || !self::quietly(fn () => stream_select($ready, $none, $none, $seconds))) {
            return !$this->deaf;
        }
        $data = fread(self::$in, 65536);
        if ($data === '' || $data === false) {
            return !($this->deaf = true);
        }
        $ends = explode("\n", $data);
        $rest = array_pop($ends);
        foreach ($ends as $end) {
            $this->parts[] = $end;
            $this->take(implode($this->parts));
            $this->parts = [];
        }
        $this->parts[] = $rest;
        return true;
    }

    private function take(string $line): void
    {
        $message = json_decode($line, true, 10000, JSON_THROW_ON_ERROR | JSON_BIGINT_AS_STRING);
        $op = $message['op'] ?? null;
        if ($op === null) {
            if ($this->objects) {
                $payload = json_decode($line, false, 10000, JSON_BIGINT_AS_STRING)->payload;
                $message['payload']['args'] = $payload->args ?? [];
                $message['payload']['kwargs'] = (array) ($payload->kwargs ?? []);
            }
            $this->requests[] = $message;
        } elseif ($op === 'cancel' && $this->current?->id === $message['id']) {
            $this->current->reason = $message['reason'] ?? 'cancelled';
        } elseif ($op === 'answer') {
            $this->answers[$message['seq']] = $message;
        } elseif ($op === 'stop') {
            $this->leaving = true;
        }
    }

    private function write(array $line): void
    {
        // An error's message may be in any encoding; a result is not guessed at.
        $lenient = ($line['status'] ?? '') === 'error' ? JSON_INVALID_UTF8_SUBSTITUTE : 0;
        $text = json_encode($line, self::FLAGS | $lenient);
        if (strlen($text) > $this->maxLine) {
            throw new \LengthException(strlen($text) . " bytes, the limit is {$this->maxLine}");
        }
        if (!self::quietly(fn () => fwrite(self::$out, "$text\n"))) {
            exit(1); // nobody is left to reply to
        }
    }

    /** An application's error handler may throw, also at what is suppressed by @. */
    private static function quietly(callable $call): mixed
    {
        set_error_handler(fn () => true);
        try {
            return $call();
        } finally {
            restore_error_handler();
        }
    }
}

Child::takeChannel();
