<?php
/** What `celery linepool check` asks for: docs/protocol.md, section 10. */
declare(strict_types=1);

use Linepool\Child;
use Linepool\Outcome;
use Linepool\Task;

return function (Child $child): void {
    $child->task('linepool.check.echo', fn (...$given) => [
        'args' => array_filter($given, 'is_int', ARRAY_FILTER_USE_KEY),
        'kwargs' => (object) array_filter($given, 'is_string', ARRAY_FILTER_USE_KEY),
    ]);

    $child->task('linepool.check.sleep', function (Task $task, int|float $seconds) {
        $end = hrtime(true) + $seconds * 1e9;
        while (($left = $end - hrtime(true)) > 0) {
            $task->check();
            usleep((int) min($left / 1000, 20000));
        }
        return $seconds;
    });

    $child->task('linepool.check.fail', function (string $message): void {
        throw new RuntimeException($message, 0, new LogicException('the cause'));
    });

    $child->task('linepool.check.exit', function (int $code): void {
        exit($code);
    });

    $child->task('linepool.check.end', function (string $status, int|float $seconds): void {
        throw match ($status) {
            'retry' => Outcome::retry(after: $seconds),
            'throttled' => Outcome::throttle($seconds),
            'rejected' => Outcome::reject(),
            'ignored' => Outcome::ignore(),
        };
    });

    $child->task('linepool.check.print', function (string $text): void {
        echo $text, "\n";
        proc_close(proc_open(['echo', $text], [], $pipes));
    });

    $child->task('linepool.check.stderr', function (int $bytes): void {
        fwrite(STDERR, str_repeat('x', $bytes));
    });

    $child->task('linepool.check.big', fn (int $bytes) => str_repeat('x', $bytes));

    $child->task('linepool.check.context', fn (Task $task) => [
        'id' => $task->id,
        'retries' => $task->retries,
        'deadline' => $task->deadline,
    ]);

    $child->task('linepool.check.events', function (Task $task, int $count): int {
        for ($step = 1; $step <= $count; $step++) {
            $task->progress(['step' => $step]);
        }
        $task->log('checked', 'warning');
        return $count;
    });

    $child->task('linepool.check.publish', function (Task $task, string $name, string $when) {
        return $task->publish($name, [7], onSuccess: $when === 'success');
    });

    $child->task('linepool.check.spawn', function (): int {
        return proc_get_status(proc_open(['sleep', '30'], [], $pipes))['pid'];
    });
};
