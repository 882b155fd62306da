<?php
/**
 * Serves Celery tasks to a celery-linepool worker. Needs PHP 8.0 and, to finish a task when
 * SIGTERM comes, ext-pcntl.
 *
 *     require __DIR__ . '/linepool.php';
 *     $child = new Linepool\Child();
 *     $child->task('billing.charge', fn (int $amount, string $currency = 'EUR') => ...);
 *     $child->run();
 *
 * If a handler's first parameter is a Linepool\Task, it gets that before the arguments.
 * Integers beyond 64 bits come as strings.
 *
 * Make the child before anything else: what is written to stdout then goes to stderr, also by
 * subprocesses. PHP has no dup2(), so the constants STDIN and STDOUT are closed for that, and
 * to use them throws; set `channel = "fd"` where they are needed.
 *
 * `exit` and what PHP calls fatal are the error of their task; the next one is handed on to
 * another child. What crashes PHP itself cannot be caught: before PHP 8.3 an endless
 * recursion through array_map() or __toString(), and without a memory_limit any other.
 */
declare(strict_types=1);

namespace Linepool;

/** Thrown by a handler to end its task otherwise. A retry counts, a throttle does not. */
final class Outcome extends \Exception
{
    /** @internal */
    public function __construct(public array $reply)
    {
        parent::__construct($reply['status']);
    }

    public static function retry(string $message = '', int|float|null $after = null): self
    {
        $after = $after === null ? [] : ['retry_after_secs' => $after];
        return new self(['status' => 'retry', 'message' => $message] + $after);
    }

    public static function throttle(int|float $after = 60): self
    {
        return new self(['status' => 'throttled', 'retry_after_secs' => $after]);
    }

    public static function reject(bool $requeue = false): self
    {
        return new self(['status' => 'rejected', 'requeue' => $requeue]);
    }

    public static function ignore(): self
    {
        return new self(['status' => 'ignored']);
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

    /** Ends the task if it was cancelled: for loops that take long. */
    public function check(): void
    {
        $this->cancelled() === null || throw new Outcome(['status' => 'cancelled']);
    }

    public function progress(array|object $meta): void
    {
        $this->child->tell($this, ['op' => 'progress', 'meta' => (object) $meta]);
    }

    public function log(string $message, string $level = 'info'): void
    {
        $this->child->tell($this, ['op' => 'log', 'level' => $level, 'message' => $message])
            || error_log("$level: $message");
    }

    /** Sends a task, now or once this one has succeeded. Returns its id. */
    public function publish(
        string $task,
        array $args = [],
        array|object $kwargs = [],
        array|object $options = [],
        bool $onSuccess = false,
    ): string {
        static $seq = 0;
        $event = ['op' => 'publish', 'seq' => ++$seq, 'task' => $task, 'args' => $args,
            'kwargs' => (object) $kwargs, 'options' => (object) $options,
            'when' => $onSuccess ? 'success' : 'now'];
        return $this->child->tell($this, $event) ? $this->child->answer($seq)
            : throw new \LogicException('only a task that runs publishes, and in protocol 2');
    }
}

final class Child
{
    private $in;
    private $out;
    private array $instead;
    private array $handlers = [];
    private array $requests = [];
    private array $answers = [];
    private string $heard = '';
    private ?Task $current = null;
    private bool $ending = false;
    private bool $refusing = false;
    private int $protocol;
    private int $pid;

    /** @param bool $objects have {} as a stdClass, so that it stays an object */
    public function __construct(private bool $objects = false)
    {
        $fds = getenv('LINEPOOL_CHANNEL') === 'fd' ? [3, 4] : [0, 1];
        $this->in = fopen("php://fd/$fds[0]", 'r');
        $this->out = fopen("php://fd/$fds[1]", 'w');
        stream_set_read_buffer($this->in, 0); // stream_select() looks into no buffer
        if ($fds === [0, 1]) { // a stream that is opened takes the lowest free descriptor
            fclose(STDIN);
            fclose(STDOUT);
            $this->instead = [fopen('/dev/null', 'r'), fopen('php://fd/2', 'w')];
        }
        $this->protocol = (int) getenv('LINEPOOL_PROTOCOL');
        $this->pid = getmypid();
        // Before the application's: if one of those exits, none is called after it.
        register_shutdown_function(fn () => $this->replyAtExit());
    }

    public function task(string $name, callable $handler): self
    {
        $this->handlers[$name] = \Closure::fromCallable($handler);
        return $this;
    }

    /** Serves tasks until the worker or SIGTERM ends it. */
    public function run(): void
    {
        if ($folder = getenv('LINEPOOL_CHECK')) {
            (require "$folder/check.php")($this);
        }
        if (function_exists('pcntl_signal')) {
            pcntl_async_signals(true);
            pcntl_signal(SIGINT, fn () => null); // SIG_IGN would be inherited by subprocesses
            pcntl_signal(SIGTERM, fn () => $this->ending = $this->refusing = true);
        }
        // No ping: while a handler runs there is nobody to answer it.
        $this->protocol < 2 || $this->write(['op' => 'hello', 'protocol' => 2, 'language' => 'php',
            'tasks' => array_keys($this->handlers), 'features' => ['cancel', 'stop']]);
        $this->loop();
    }

    private function loop(): void
    {
        do {
            while ($request = array_shift($this->requests)) {
                $this->serve($request['id'], (array) $request['payload']);
            }
            $ending = $this->ending || feof($this->in);
            // Once more at the end: a request may have come. Never for ever: a signal may have.
        } while ($this->listen($ending ? 0 : 1) || !$ending);
    }

    private function serve(string $id, array $payload): void
    {
        ['task' => $name, 'args' => $args, 'kwargs' => $kwargs] = $payload;
        $this->current = new Task($this, $id, $name, (array) ($payload['meta'] ?? []));
        try {
            $this->refusing && throw $this->protocol < 2
                ? Outcome::throttle(0) : new Outcome(['status' => 'restart']);
            $handler = $this->handlers[$name] ?? throw new \LogicException("unknown task $name");
            $type = ((new \ReflectionFunction($handler))->getParameters()[0] ?? null)?->getType();
            $first = (string) $type === Task::class ? [$this->current] : [];
            $result = $handler(...$first, ...$args, ...(array) $kwargs);
            $reply = ['status' => 'ok', 'result' => $result];
        } catch (\Throwable $e) {
            $reply = $e instanceof Outcome ? $e->reply : self::describe($e);
        }
        $this->reply($id, $reply);
    }

    private function reply(string $id, array $reply): void
    {
        getmypid() === $this->pid || exit(1); // it came back from the task that forked it
        try {
            $this->write(['id' => $id] + $reply);
        } catch (\Throwable $e) { // no JSON, or too long
            $this->write(['id' => $id] + self::describe($e));
        }
        $this->current = null;
    }

    private static function describe(\Throwable $e): array
    {
        return ['status' => 'error', 'type' => $e::class, 'message' => $e->getMessage(),
            'backtrace' => explode("\n", (string) $e)];
    }

    private function replyAtExit(): void
    {
        if ($this->current && getmypid() === $this->pid) {
            ini_set('memory_limit', '-1');
            $error = error_get_last();
            $fatal = ($error['type'] ?? 0) & (E_ERROR | E_COMPILE_ERROR | E_USER_ERROR);
            $this->reply($this->current->id, ['status' => 'error'] + ($fatal
                ? ['type' => 'FatalError', 'message' => $error['message'],
                    'backtrace' => ["{$error['file']}({$error['line']})"]]
                : ['type' => 'Exit', 'message' => 'exit in a task']));
            $this->refusing = true;
            // A request may be on its way, and would be lost if nobody replied. Last, since
            // the application may want to report the error.
            $this->protocol < 2 || register_shutdown_function(fn () => $this->loop());
        }
    }

    /** @internal Says it of a task that is not replied to yet; false if that cannot be. */
    public function tell(Task $task, array $event): bool
    {
        return $this->protocol >= 2 && $task === $this->current
            && $this->write(['id' => $task->id] + $event);
    }

    /** @internal */
    public function answer(int $seq): string
    {
        while (!isset($this->answers[$seq]) && !feof($this->in)) {
            $this->listen(60);
        }
        $answer = $this->answers[$seq] ?? ['error' => 'the channel has ended'];
        $this->answers = [];
        return $answer['task_id']
            ?? throw new \RuntimeException("not published: {$answer['error']}");
    }

    /** @internal Waits so many seconds for what the worker says; true if something came. */
    public function listen(int $seconds): bool
    {
        $ready = [$this->in];
        $none = null;
        set_error_handler(fn () => true); // to be interrupted is none
        $came = !feof($this->in) && stream_select($ready, $none, $none, $seconds);
        restore_error_handler();
        $data = $came ? (string) fread($this->in, 65536) : '';
        $this->heard .= $data;
        $lines = explode("\n", $this->heard);
        $this->heard = array_pop($lines);
        array_map([$this, 'take'], $lines);
        return $data !== '';
    }

    private function take(string $line): void
    {
        $flags = JSON_BIGINT_AS_STRING | ($this->objects ? 0 : JSON_OBJECT_AS_ARRAY);
        $message = (array) json_decode($line, null, 10000, $flags | JSON_THROW_ON_ERROR);
        $op = $message['op'] ?? 'request';
        if ($op === 'request') {
            $this->requests[] = $message;
        } elseif ($op === 'cancel' && $this->current?->id === $message['id']) {
            $this->current->reason = $message['reason'];
        } elseif ($op === 'answer') {
            $this->answers[$message['seq']] = $message;
        } elseif ($op === 'stop') {
            $this->ending = true;
        }
    }

    private function write(array $line): bool
    {
        // A message may be in any encoding; a result is not guessed at.
        $text = json_encode($line, JSON_THROW_ON_ERROR | JSON_UNESCAPED_UNICODE
            | JSON_UNESCAPED_SLASHES | JSON_PRESERVE_ZERO_FRACTION
            | (isset($line['message']) ? JSON_INVALID_UTF8_SUBSTITUTE : 0), 10000);
        if (strlen($text) > $limit = (int) getenv('LINEPOOL_MAX_LINE') ?: 1 << 24) {
            throw new \LengthException(strlen($text) . " bytes, the limit is $limit");
        }
        $text .= "\n";
        return @fwrite($this->out, $text) === strlen($text) || exit(1); // nobody listens
    }
}
