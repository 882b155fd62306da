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
 * A handler gets positional and keyword arguments as its own. If its first parameter is a
 * Linepool\Task, it gets that before them. Integers beyond 64 bits come as strings.
 * Load this file first: it closes the constants STDIN and STDOUT, and what is echoed or
 * written to php://stdout goes to stderr. `exit` in a handler, and what PHP calls fatal,
 * is the error of the task; then the child ends, and the worker starts another.
 */
declare(strict_types=1);

namespace Linepool;

/** Thrown by a handler to end its task in another way than with a result or an error. */
abstract class Outcome extends \Exception
{
    protected array $reply = [];

    public function reply(): array
    {
        return $this->reply;
    }
}

/** Run it again, after so many seconds if they are given, as long as it may be. */
final class Retry extends Outcome
{
    public function __construct(string $message = '', int|float|null $after = null)
    {
        parent::__construct($message);
        $this->reply = ['status' => 'retry', 'message' => $message];
        $this->reply += $after === null ? [] : ['retry_after_secs' => $after];
    }
}

/** Run it again later; that uses up no retry. */
final class Throttle extends Outcome
{
    public function __construct(int|float $after = 60)
    {
        parent::__construct();
        $this->reply = ['status' => 'throttled', 'retry_after_secs' => $after];
    }
}

/** Reject its message, or have the broker deliver it again. */
final class Reject extends Outcome
{
    public function __construct(bool $requeue = false)
    {
        parent::__construct();
        $this->reply = ['status' => 'rejected', 'requeue' => $requeue];
    }
}

/** Store nothing. */
final class Ignore extends Outcome
{
    protected array $reply = ['status' => 'ignored'];
}

/** The task gave up because it was cancelled; see Task::check(). */
final class Cancelled extends Outcome
{
    protected array $reply = ['status' => 'cancelled'];
}

/** The task that is running. `$meta` is all that the worker tells about it. */
final class Task
{
    public int $retries;
    /** Seconds since 1970; the child is killed then. */
    public ?float $deadline;

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
        return $this->child->cancelled();
    }

    /** Throws Cancelled if the task should end: for loops that take long. */
    public function check(): void
    {
        if ($this->cancelled() !== null) {
            throw new Cancelled();
        }
    }

    public function progress(array $meta): void
    {
        $this->child->event($this->id, ['op' => 'progress', 'meta' => (object) $meta]);
    }

    public function log(string $message, string $level = 'info'): void
    {
        $this->child->event($this->id, ['op' => 'log', 'level' => $level, 'message' => $message]);
    }

    /** Sends a task, now or once this one has succeeded. Returns its id. */
    public function publish(
        string $task,
        array $args = [],
        array $kwargs = [],
        array $options = [],
        bool $onSuccess = false,
    ): ?string {
        return $this->child->publish($this->id, [
            'task' => $task, 'args' => $args, 'kwargs' => (object) $kwargs,
            'options' => (object) $options, 'when' => $onSuccess ? 'success' : 'now',
        ]);
    }
}

final class Child
{
    private const FLAGS = JSON_THROW_ON_ERROR | JSON_UNESCAPED_UNICODE | JSON_UNESCAPED_SLASHES
        | JSON_PRESERVE_ZERO_FRACTION;
    private const FATAL = E_ERROR | E_PARSE | E_CORE_ERROR | E_COMPILE_ERROR | E_USER_ERROR
        | E_RECOVERABLE_ERROR;
    private static $in;
    private static $out;
    private static array $instead;

    private array $handlers = [];
    private array $requests = [];
    private array $answers = [];
    private string $unfinished = '';
    private ?string $current = null;
    private ?string $cancelled = null;
    private bool $leaving = false;
    private bool $deaf = false;
    private int $seq = 0;
    private int $protocol;
    private int $maxLine;

    /** @param bool $objects {} stays an object, a stdClass, as [] stays an array */
    public function __construct(private bool $objects = false)
    {
        $this->protocol = (int) (getenv('LINEPOOL_PROTOCOL') ?: 1);
        $this->maxLine = (int) (getenv('LINEPOOL_MAX_LINE') ?: 16 * 1024 * 1024);
    }

    /** @internal A stream that is opened takes the lowest free descriptor. */
    public static function takeChannel(): void
    {
        $fd = getenv('LINEPOOL_CHANNEL') === 'fd';
        self::$in = fopen($fd ? 'php://fd/3' : 'php://fd/0', 'r');
        self::$out = fopen($fd ? 'php://fd/4' : 'php://fd/1', 'w');
        stream_set_read_buffer(self::$in, 0); // stream_select() knows no buffer
        if (!$fd) {
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
            pcntl_signal(SIGINT, static function (): void {
            });
            pcntl_signal(SIGTERM, fn () => $this->leaving = true);
        }
        if ($this->protocol >= 2) {
            // No ping: between two lines of a handler there is nobody to answer it.
            $this->write($this->encode(['op' => 'hello', 'protocol' => 2, 'language' => 'php',
                'tasks' => array_keys($this->handlers), 'features' => ['cancel', 'stop']]));
        }
        do {
            while ($request = array_shift($this->requests)) {
                $this->serve($request);
            }
        } while (!$this->leaving && $this->listen(1) !== null); // a signal may come just before
    }

    private function serve(array $request): void
    {
        $payload = (array) $request['payload'];
        $meta = json_decode(json_encode($payload['meta'] ?? []), true);
        $task = new Task($this, $request['id'], $payload['task'], $meta);
        [$this->current, $this->cancelled] = [$task->id, null];
        try {
            $handler = $this->handlers[$task->name]
                ?? throw new \BadFunctionCallException("unknown task {$task->name}");
            $args = self::wantsTask($handler) ? [$task] : [];
            array_push($args, ...$payload['args'] ?? []);
            $result = $handler(...$args, ...(array) ($payload['kwargs'] ?? []));
            $reply = ['status' => 'ok', 'result' => $result];
        } catch (Outcome $outcome) {
            $reply = $outcome->reply();
        } catch (\Throwable $e) {
            $reply = self::describe($e);
        }
        $this->reply($reply);
    }

    private static function wantsTask(\Closure $handler): bool
    {
        $first = (new \ReflectionFunction($handler))->getParameters()[0] ?? null;
        $type = $first?->getType();
        return $type instanceof \ReflectionNamedType && $type->getName() === Task::class;
    }
}
